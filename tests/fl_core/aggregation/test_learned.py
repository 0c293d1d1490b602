"""The two controls: formulas, fitted numbers, and what may be given instead of them."""

import json
from importlib.resources import files

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from fl_core.aggregation import ServerView, make_rule
from fl_core.aggregation.learned import fitted
from fl_core.fingerprint import FEATURES, Fingerprint

NAMES = ("logistic", "feature_weights")


class Given:
    """A fingerprinter that has seen it all before."""

    def __init__(self, observation: torch.Tensor) -> None:
        self.observation = observation

    def __call__(self, updates, rejected, *rest):
        return Fingerprint(self.observation.double(), self.observation)


def seen(observation: torch.Tensor) -> ServerView:
    updates = torch.randn(len(observation), 5, generator=torch.Generator().manual_seed(1))
    return ServerView(updates, torch.zeros(5), torch.ones(5), fingerprinter=Given(observation))


def observed(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, len(FEATURES), generator=torch.Generator().manual_seed(seed)).clamp(-1, 1)


def test_logistic_trusts_with_the_probability_that_scikit_learn_gives():
    observation = observed(60)
    honest = observation @ torch.tensor([-1.0, 2, 0, -1, 1, 2]) + observed(60, 1)[:, 0] > 0
    model = LogisticRegression().fit(observation.numpy(), honest.numpy())
    rule = make_rule(
        "logistic", weights=dict(zip(FEATURES, model.coef_[0], strict=True)), intercept=model.intercept_[0]
    )
    expected = torch.from_numpy(model.predict_proba(observation.numpy())[:, 1])
    torch.testing.assert_close(rule.trust(seen(observation)).double(), expected.double(), atol=1e-6, rtol=1e-5)


def test_feature_weights_trusts_by_the_weighted_sum_above_the_cut_off_and_at_most_fully():
    rule = make_rule("feature_weights", weights={"root_cosine": 2.0, "shapley": 1.0}, cut_off=0.5)
    observation = torch.zeros(4, 6)
    observation[:, 1] = torch.tensor([0.0, 0.25, 0.5, 1.0])
    observation[:, 5] = torch.tensor([0.4, 0.1, 0.2, 1.0])
    observation[:, 0] = 3.0  # without a weight: does not count
    torch.testing.assert_close(rule.trust(seen(observation)), torch.tensor([0.0, 0.1, 0.7, 1.0]))


@pytest.mark.parametrize("name", NAMES)
def test_the_defaults_are_the_fitted_numbers_and_trust_what_looks_honest_more(name):
    rule = make_rule(name)
    assert dict(rule.weights) == fitted(name)["weights"]
    honest = torch.tensor([[0.0, 0.7, 0.3, 0.0, 0.5, 0.8]])
    hostile = torch.tensor([[3.0, -0.7, 0.6, 2.0, -0.5, -1.0]])
    trust = rule.trust(seen(torch.cat([honest, hostile])))
    assert trust[0] > 0.5 > trust[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_fitted_file_is_package_data_and_names_no_attack_that_is_held_out(name):
    content = json.loads((files("fl_core.aggregation") / "fitted" / f"{name}.json").read_text())
    assert content == fitted(name)
    assert len(content["weights"]) == {"logistic": 6, "feature_weights": 4}[name]


def test_weights_are_kept_in_the_order_of_the_features_whatever_they_come_in():
    given = make_rule("feature_weights", weights={"shapley": 1, "norm": 2.0}, cut_off=0.0)
    assert given.weights == (("norm", 2.0), ("shapley", 1.0))
    assert given == make_rule("feature_weights", weights=(("norm", 2.0), ("shapley", 1.0)), cut_off=0.0)
    assert hash(given) == hash(make_rule("feature_weights", weights=[("norm", 2.0), ("shapley", 1.0)], cut_off=0.0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("logistic", {"weights": {"age": 1.0}}, "unknown feature 'age'; there are: reconstruction_error"),
        ("logistic", {"intercept": float("nan")}, "intercept must be a finite number"),
        ("logistic", {"weights": {"norm": float("inf")}}, "weights must be finite"),
        ("feature_weights", {"weights": dict.fromkeys(FEATURES[:5], 1.0)}, "one to four features, got 5"),
        ("feature_weights", {"cut_off": float("inf")}, "cut_off must be a finite number"),
    ],
)
def test_impossible_numbers_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_rule(name, **options)
