"""Clients that come and go: who is there, what an absent client is, and what it cannot change."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from fl_core.aggregation import make_rule
from optigrad_env.masked import MaskedOptiGradEnv
from optigrad_env.registration import ENVIRONMENTS, masked_id

SMALL: dict[str, Any] = {"num_clients": 8, "rounds": 6, "local_steps": 1, "batch_size": 8, "dataset": "digits"}
ATTACKED = {"attack": "sign_flip", "malicious_fraction": 0.4, "alpha": 1.0, "onset": 0, "num_clients": 8}


def played(seed: int = 0, **options: Any) -> list[Any]:
    env = MaskedOptiGradEnv(**SMALL)
    rng = np.random.default_rng(1)
    steps: list[Any] = [env.reset(seed=seed, options=options)]
    for _ in range(6):
        steps.append(env.step(rng.uniform(-1, 1, 8).astype(np.float32)))
    return steps


def test_every_id_has_a_masked_one_with_its_arguments() -> None:
    for env_id, kwargs in ENVIRONMENTS.items():
        assert gym.spec(masked_id(env_id)).kwargs == kwargs
    assert masked_id("OptiGrad/Digits-v0") == "OptiGrad/DigitsMasked-v0"


def test_the_mask_has_the_drawn_number_of_clients_and_changes_from_round_to_round() -> None:
    steps = played(**{**ATTACKED, "num_clients": 6}, participation=0.5)
    masks = np.stack([step[0]["mask"] for step in steps])
    assert (masks.sum(axis=1) == 3).all()
    assert not masks[:, 6:].any()
    assert len({mask.tobytes() for mask in masks}) > 3


def test_by_default_episodes_differ_in_clients_and_participation() -> None:
    env = MaskedOptiGradEnv(**SMALL)
    env.reset(seed=0)
    scenarios = []
    for _ in range(20):
        env.reset()
        scenarios.append(env.federation.scenario)
    assert {scenario.num_clients for scenario in scenarios} == {4, 5, 6, 7, 8}
    shares = [scenario.participation for scenario in scenarios]
    assert 0.5 <= min(shares) < 0.65
    assert 0.85 < max(shares) <= 1.0


def test_absent_clients_are_zeros_and_have_no_weight_whatever_their_action() -> None:
    for before, after in zip(steps := played(**ATTACKED, participation=0.5), steps[1:], strict=False):
        absent = before[0]["mask"] == 0
        assert absent.sum() == 4
        assert (before[0]["clients"][absent] == 0).all()
        assert (np.abs(before[0]["clients"][~absent]).sum(axis=1) > 0).all()
        info = after[4]
        np.testing.assert_array_equal(info["participants"], ~absent)
        assert (info["weights"][absent] == 0).all()
        assert (info["weights"][~absent] > 0).all()
        assert info["weights"].sum() + info["root_weight"] == pytest.approx(1, abs=1e-6)
        np.testing.assert_array_equal(info["malicious"], steps[0][1]["malicious"])


def test_actions_of_absent_clients_are_ignored() -> None:
    env, other = MaskedOptiGradEnv(**SMALL), MaskedOptiGradEnv(**SMALL)
    observation, _ = env.reset(seed=4, options={**ATTACKED, "participation": 0.5})
    other.reset(seed=4, options={**ATTACKED, "participation": 0.5})
    for _ in range(3):
        action = np.linspace(-1, 1, 8, dtype=np.float32)
        changed = np.where(observation["mask"] == 1, action, -action)
        step = env.step(action)
        np.testing.assert_equal(step, other.step(changed.astype(np.float32)))
        observation = step[0]


def test_with_everybody_there_it_plays_what_the_environment_without_a_mask_plays() -> None:
    pinned = {**ATTACKED, "participation": 1.0}
    masked = MaskedOptiGradEnv(**SMALL, scenarios={"num_clients": None, "participation": [1.0, 1.0]})
    plain = gym.make("OptiGrad/Digits-v0", num_clients=8, rounds=6, local_steps=1, batch_size=8)
    left, right = masked.reset(seed=3, options=pinned)[0], plain.reset(seed=3, options=pinned)[0]
    for _ in range(3):
        assert left["mask"].all()
        np.testing.assert_array_equal(left["clients"], right)
        action = np.linspace(1, -1, 8, dtype=np.float32)
        (left, *rest), (right, *others) = masked.step(action), plain.step(action)
        assert rest.pop().items() >= {"attack": others.pop()["attack"]}.items()
        assert rest == others


def test_absent_clients_neither_train_nor_lose_their_batchnorm() -> None:
    env = MaskedOptiGradEnv(**SMALL)
    env.reset(seed=2, options={**ATTACKED, "participation": 0.5})
    for _ in range(4):
        before = env.federation.local.clone()
        env.step(np.zeros(8, np.float32))
        present = torch.zeros(9, dtype=torch.bool)
        present[env.federation.participants] = True
        present[-1] = True  # the server always trains
        changed = (env.federation.local != before).any(dim=1)
        assert torch.equal(changed, present)


def test_the_view_says_who_has_sent_each_row_and_nothing_of_the_others() -> None:
    env = MaskedOptiGradEnv(**SMALL)
    observation, info = env.reset(seed=2, options={**ATTACKED, "participation": 0.5})
    round_ = env.current_round
    assert len(round_.view.updates) == 4
    assert round_.view.accepted_clients.tolist() == np.flatnonzero(observation["mask"]).tolist()
    assert round_.malicious.tolist() == info["malicious"][observation["mask"] == 1].tolist()


def test_an_honest_client_is_always_there() -> None:
    env = MaskedOptiGradEnv(**{**SMALL, "num_clients": 4, "rounds": 20})
    env.reset(seed=0, options={**ATTACKED, "malicious_fraction": 0.75, "num_clients": 4, "participation": 0.5})
    for _ in range(20):
        assert not env.current_round.malicious.all()
        env.step(np.zeros(4, np.float32))


def test_the_oracle_of_a_partial_round_is_the_mean_of_the_honest_clients_that_are_there() -> None:
    env = MaskedOptiGradEnv(**SMALL)
    env.reset(seed=2, options={**ATTACKED, "participation": 0.5})
    round_ = env.current_round
    honest = round_.view.updates[~round_.malicious].mean(dim=0)
    oracle = make_rule("oracle").told(env.federation.malicious)  # type: ignore[attr-defined]
    torch.testing.assert_close(oracle(round_.view).update, honest)
    torch.testing.assert_close(env.honest_mean(), honest)


def test_poisoned_data_reach_the_malicious_clients_that_are_there() -> None:
    """Label flips change the updates of the malicious participants, and nobody else's."""
    updates = {}
    for attack in ("label_flip", "none"):
        env = MaskedOptiGradEnv(**SMALL)
        env.reset(seed=5, options={**ATTACKED, "attack": attack, "participation": 0.6})
        updates[attack] = env.current_round.view.updates
        malicious = env.current_round.malicious
    assert malicious.any()
    changed = (updates["label_flip"] != updates["none"]).any(dim=1)
    assert torch.equal(changed, malicious)


@pytest.mark.parametrize(
    ("scenarios", "options", "message"),
    [
        ({"num_clients": [2, 9]}, {}, "9 clients need num_clients of at least 9, got 8"),
        ({}, {"num_clients": 9}, "9 clients need num_clients of at least 9, got 8"),
        ({}, {"attack": "policy_aware"}, "policy_aware is made against the deployed rule"),
        ({"participation": [0.0, 1.0]}, {}, r"participation.*\(0, 1\].*0\.0"),
    ],
)
def test_more_clients_than_rows_are_refused(scenarios: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedOptiGradEnv(**SMALL, scenarios=scenarios).reset(seed=0, options=options)


def test_two_masked_federations_step_together() -> None:
    envs = gym.make_vec("OptiGrad/DigitsMasked-v0", 2, num_clients=4, rounds=2, local_steps=1, batch_size=8)
    observations, _ = envs.reset(seed=0)
    assert observations["clients"].shape == (2, 4, 6)
    assert observations["mask"].shape == (2, 4)
    assert envs.step(envs.action_space.sample())[0] in envs.observation_space
