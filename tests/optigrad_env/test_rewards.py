"""Reward terms against figures worked out by hand."""

import pytest
import torch

from optigrad_env.rewards import Outcome, make_reward


def outcome(loss: float = 1.5) -> Outcome:
    weights, malicious = torch.tensor([0.1, 0.3, 0.2]), torch.tensor([False, True, True])
    return Outcome(loss_before=2.0, loss=loss, honest_loss=1.25, weights=weights, corrupted=malicious)


def test_the_terms_of_a_known_outcome() -> None:
    _, terms = make_reward("progress")(outcome())
    assert terms == pytest.approx({"oracle_gap": -0.25, "progress": 0.5, "malicious_mass": -0.5})


def test_every_loss_term_grows_as_the_loss_of_the_agents_model_falls() -> None:
    for name in ("oracle_gap", "progress"):
        reward = make_reward(name)
        assert reward(outcome(1.0))[0] > reward(outcome(1.1))[0]


def test_a_mixture_weighs_its_terms() -> None:
    reward, _ = make_reward({"oracle_gap": 2.0, "malicious_mass": 10.0})(outcome())
    assert reward == pytest.approx(2 * -0.25 + 10 * -0.5)


def test_without_malicious_clients_no_mass_is_lost() -> None:
    nobody = Outcome(2.0, 1.5, 1.25, torch.tensor([0.5, 0.5]), torch.tensor([False, False]))
    assert make_reward("malicious_mass")(nobody)[0] == 0


def test_a_reward_keeps_its_weights_when_the_mapping_it_came_from_changes() -> None:
    weights = {"progress": 1.0}
    reward = make_reward(weights)
    weights["progress"] = 100.0
    assert reward(outcome())[0] == pytest.approx(0.5)


def test_unknown_and_missing_terms_are_refused_with_a_list() -> None:
    with pytest.raises(ValueError, match=r"'accuracy'.*oracle_gap, progress, malicious_mass"):
        make_reward("accuracy")
    with pytest.raises(ValueError, match=r"no terms.*oracle_gap, progress, malicious_mass"):
        make_reward({})
