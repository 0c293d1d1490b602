"""Policies as aggregation rules."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents import TrustAggregator, TrustNet, load_policy, save_policy
from agents.deployed import CARD, MODEL_CARD
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import ServerView, TrustWeighting
from optigrad_env import OptiGradEnv

ATTACKED = {"attack": "sign_flip", "malicious_fraction": 0.4, "alpha": 1.0, "onset": 0}


def a_view(clients: int = 5, **settings: Any) -> ServerView:
    env = OptiGradEnv(num_clients=clients, rounds=3, **settings)
    env.reset(seed=1, options=ATTACKED)
    return env.current_round.view


@pytest.mark.parametrize("clients", [10, 25, 50])
def test_one_policy_aggregates_federations_of_any_size(clients: int, policy: TrustNet) -> None:
    view = a_view(clients)
    aggregate = TrustAggregator(policy)(view)
    assert aggregate.update.shape == view.global_model.shape
    assert aggregate.update.isfinite().all()
    assert not aggregate.update.requires_grad
    assert aggregate.weights.shape == (clients,)
    trust = policy(view.fingerprint.observation).detach()
    torch.testing.assert_close(aggregate.weights, trust / (trust.sum() + 1))
    assert float(aggregate.weights.sum()) + aggregate.root_weight == pytest.approx(1, abs=1e-6)


def test_rejected_clients_get_no_weight_and_the_others_are_judged_in_their_company(policy: TrustNet) -> None:
    view = a_view()
    updates = view.updates.clone()
    updates[[1, 4], 0] = torch.tensor([float("nan"), float("inf")])
    view = replace(view, updates=updates)
    aggregate = TrustAggregator(policy)(view)
    trust = policy(view.fingerprint.observation).detach()
    trust[[1, 4]] = 0
    torch.testing.assert_close(aggregate.weights, trust / (trust.sum() + 1))
    assert aggregate.update.isfinite().all()


def test_with_all_clients_rejected_the_reference_is_the_update(policy: TrustNet) -> None:
    view = a_view()
    broken = replace(view, updates=torch.full_like(view.updates, float("nan")))
    aggregate = TrustAggregator(policy)(broken)
    assert torch.equal(aggregate.update, view.reference)
    assert aggregate.root_weight == 1


@pytest.mark.parametrize("settings", [{}, {"update_clip": "reference", "root_anchor": 0.5}, {"update_clip": "none"}])
def test_the_rule_does_what_the_environment_does_with_the_same_trust(
    settings: dict[str, Any], policy: TrustNet
) -> None:
    env = OptiGradEnv(num_clients=5, rounds=4, **settings)
    observation, _ = env.reset(seed=1, options=ATTACKED)
    rule = TrustAggregator(policy, TrustWeighting(**settings))
    for _ in range(3):
        before = env.federation.shared
        expected = rule(env.current_round.view)
        with torch.no_grad():
            action = policy.score_and_value(torch.from_numpy(observation))[0].numpy() / 5
        observation, *_, info = env.step(action)
        np.testing.assert_allclose(info["weights"], expected.weights.numpy(), atol=1e-6)
        assert info["root_weight"] == pytest.approx(expected.root_weight, abs=1e-6)
        torch.testing.assert_close(env.federation.shared - before, expected.update, rtol=0, atol=2e-6)


def test_a_view_without_root_data_is_refused_in_words(policy: TrustNet) -> None:
    with pytest.raises(ValueError, match="TrustAggregator needs root data"):
        TrustAggregator(policy)(ServerView(updates=torch.ones(3, 4)))


def test_an_attack_can_be_made_against_a_frozen_policy_and_leaves_it_as_it_was(
    make_policy: Callable[..., TrustNet],
) -> None:
    federation = Federation(configure(num_clients=8))
    federation.reset(Scenario("policy_aware", 0.4, 0.5, attack_options={"evaluations": 20}), entropy=100)
    rule = TrustAggregator(make_policy())
    before = {name: value.clone() for name, value in rule.policy.state_dict().items()}
    round_ = federation.local_round(rule)
    assert all(torch.equal(value, before[name]) for name, value in rule.policy.state_dict().items())

    federation.reset(Scenario("none", 0.4, 0.5), entropy=100)
    honest = round_.view.updates[~round_.malicious].mean(dim=0)
    calm = rule(federation.local_round().view).update @ honest
    assert float(rule(round_.view).update @ honest) < float(calm)


def test_a_copy_of_the_rule_shares_the_frozen_policy_and_nothing_else(policy: TrustNet) -> None:
    class Remembers(TrustAggregator):
        pass

    rule = Remembers(policy)
    object.__setattr__(rule, "seen", [1])
    copied = copy.deepcopy(rule)
    assert type(copied) is Remembers
    assert copied.policy is policy
    assert copied.seen == [1]  # type: ignore[attr-defined]
    assert copied.seen is not rule.seen  # type: ignore[attr-defined]


def test_a_rule_weighs_as_its_policy_was_trained_unless_told_otherwise(tmp_path: Path, policy: TrustNet) -> None:
    trained = TrustWeighting(update_clip="reference", root_anchor=0.3)
    loaded = load_policy(save_policy(policy, tmp_path, weighting=trained))
    assert TrustAggregator(loaded).weighting == trained
    assert TrustAggregator(loaded, TrustWeighting(root_anchor=2.0)).weighting == TrustWeighting(root_anchor=2.0)
    assert TrustAggregator(policy).weighting == TrustWeighting()
    view = a_view()
    trust = policy(view.fingerprint.observation).detach()
    torch.testing.assert_close(TrustAggregator(loaded)(view).weights, trust / (trust.sum() + 0.3))


def test_a_policy_that_is_saved_with_the_safeguard_is_deployed_with_it(tmp_path: Path, policy: TrustNet) -> None:
    guarded = TrustWeighting(safeguard=True, safeguard_margin=0.0)
    rule = TrustAggregator(load_policy(save_policy(policy, tmp_path, weighting=guarded)))
    assert rule.weighting == guarded
    assert "the safeguard stands behind it" in (tmp_path / MODEL_CARD).read_text()
    view = a_view()
    losses = view.root_losses(torch.stack([rule(view).update, view.reference, TrustAggregator(policy)(view).update]))
    assert float(losses[0]) == float(losses.min())


def test_a_policy_from_before_weightings_were_written_down_loads_with_the_usual_one(saved_policy: Path) -> None:
    card = json.loads((saved_policy / CARD).read_text())
    del card["weighting"]
    (saved_policy / CARD).write_text(json.dumps(card))
    assert TrustAggregator(load_policy(saved_policy)).weighting == TrustWeighting()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("digits",), r"policy must be a torch module, such as load_policy\('digits'\) gives, got 'digits'"),
        ((TrustNet(), "median"), "weighting must be a TrustWeighting.*got 'median'"),
        ((TrustNet(), {"safeguard": True}), "weighting must be a TrustWeighting"),
    ],
)
def test_a_rule_around_what_is_no_policy_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrustAggregator(*arguments)


class Answers(nn.Module):
    def __init__(self, answer: object) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, fingerprint: torch.Tensor) -> object:
        return self.answer


@pytest.mark.parametrize(
    ("answer", "found"), [(torch.ones(4, 1), r"\(4, 1\)"), (torch.ones(3), r"\(3,\)"), ([1.0] * 4, "list")]
)
def test_a_policy_that_does_not_answer_for_every_client_is_refused(answer: object, found: str) -> None:
    with pytest.raises(ValueError, match=f"one trust value for each of 4 clients, got {found}"):
        TrustAggregator(Answers(answer))(a_view(4))
