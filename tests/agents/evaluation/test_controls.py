"""Negative controls take away what they say, and nothing else."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from agents.evaluation import Grid, run_grid
from agents.evaluation.controls import ShuffledFeatures, ShuffledRootFederation
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import ServerView, TrustWeighting, make_rule
from fl_core.aggregation.trust import ShapleyTrust

CONFIG = {"dataset": "gaussian_clusters", "network": "mlp", "network_options": {"hidden": []}, "num_clients": 6}


def begun(kind: type[Federation]) -> Federation:
    federation = kind(configure(**CONFIG, learning_rate=0.2))
    federation.reset(Scenario("sign_flip", 0.34, 0.5), entropy=0)
    return federation


def test_shuffled_features_are_the_same_values_among_other_clients_and_the_view_stays_as_it_was() -> None:
    view = begun(Federation).local_round().view
    before = view.fingerprint.observation.clone()
    rule = ShuffledFeatures(make_rule("shapley"), seed=1)
    weights, plain = rule(view).weights, make_rule("shapley")(view).weights
    assert weights is not None
    assert plain is not None
    assert torch.equal(view.fingerprint.observation, before)
    assert torch.allclose(weights.sort().values, plain.sort().values)
    assert not torch.equal(weights, plain)
    assert torch.equal(weights, rule(view).weights)
    assert not torch.equal(weights, ShuffledFeatures(make_rule("shapley"), seed=2)(view).weights)


def test_a_safeguard_behind_shuffled_features_sees_as_well_as_before() -> None:
    class Equal(ShapleyTrust):
        """Trust that no feature has a part in: shuffling may change nothing."""

        def trust(self, view: ServerView) -> torch.Tensor:
            return torch.ones(len(view.accepted))

    rule = Equal(TrustWeighting(safeguard=True, safeguard_margin=0.0))
    for entropy in range(5):
        federation = Federation(configure(**CONFIG, learning_rate=0.2))
        federation.reset(Scenario("sign_flip", 0.34, 0.5), entropy)
        view = federation.local_round().view
        assert torch.equal(ShuffledFeatures(rule, seed=entropy)(view).update, rule(view).update)


def test_behind_shuffled_features_clients_are_remembered_as_before() -> None:
    federation = Federation(configure(num_clients=8))
    federation.reset(Scenario(), entropy=0)
    view = federation.local_round().view
    rule = ShuffledFeatures(ShapleyTrust(TrustWeighting(sybil_exponent=1, sybil_power=4)))
    assert rule.by_client
    twins = replace(view, updates=view.updates[:2].repeat(4, 1))
    first, _, again = rule(view), rule(twins), rule(view)
    assert not torch.equal(first.weights, again.weights)
    rule.reset()
    assert torch.equal(rule(view).weights, first.weights)


def test_shuffled_root_labels_leave_clients_and_test_alone() -> None:
    plain, shuffled = begun(Federation), begun(ShuffledRootFederation)
    root = torch.cat([plain.splits.reference, plain.splits.utility])
    others = torch.ones(len(plain.dataset.labels), dtype=torch.bool)
    others[root] = False
    assert torch.equal(plain.dataset.labels[others], shuffled.dataset.labels[others])
    assert not torch.equal(plain.dataset.labels[root], shuffled.dataset.labels[root])
    assert torch.equal(plain.dataset.labels[root].bincount(), shuffled.dataset.labels[root].bincount())
    ours, theirs = plain.local_round(), shuffled.local_round()
    assert torch.equal(ours.view.updates, theirs.view.updates)
    assert torch.equal(ours.malicious, theirs.malicious)
    assert ours.view.reference is not None
    assert theirs.view.reference is not None
    assert not torch.equal(ours.view.reference, theirs.view.reference)


def test_taking_away_the_root_datas_labels_takes_away_what_fltrust_stands_on(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(rules=("fltrust",), attacks=("sign_flip",), malicious_fractions=(0.4,), rounds=8, controls=True)
    accuracy: dict[str, Any] = {row["rule"]: row["test_accuracy"] for result in run_grid(grid) for row in result.rows}
    assert accuracy["fltrust (root labels shuffled)"] < accuracy["fltrust"] - 0.1
