"""A step of the environment: who knows what, what trust does, what is rewarded, and what is refused."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded

from fl_core import settings_of
from optigrad_env import OptiGradEnv
from optigrad_env.env import federated

from .episodes import ATTACKED, SMALL, assert_same, episode, uniform


def sigmoid_of_five(action: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-5 * action.astype(np.float64)))


def test_the_observation_does_not_depend_on_who_is_called_malicious() -> None:
    """With the attack ``none`` all updates are the same, whoever is malicious in name."""
    env = gym.make("OptiGrad/Digits-v0", num_clients=5, rounds=3)
    episodes = []
    for fraction in (0.0, 0.8):
        options = {"attack": "none", "malicious_fraction": fraction, "alpha": 0.5, "onset": 0}
        episodes.append(episode(env, seed=9, options=options))
        assert env.unwrapped.federation.malicious.sum() == 5 * fraction
    for honest, called in zip(*episodes, strict=True):
        np.testing.assert_array_equal(honest[0], called[0])


def test_the_observation_does_not_know_the_attack_before_its_onset() -> None:
    env = gym.make("OptiGrad/Digits-v0", **SMALL)
    plans = {name: {**ATTACKED, "attack": name, "onset": 2} for name in ("sign_flip", "scaling", "label_flip", "none")}
    episodes = {name: episode(env, seed=9, options=plan) for name, plan in plans.items()}
    for name in ("sign_flip", "scaling", "label_flip"):
        for step in (0, 1):
            np.testing.assert_array_equal(episodes[name][step][0], episodes["none"][step][0])
        assert not np.array_equal(episodes[name][2][0], episodes["none"][2][0])


def test_attacking_begins_with_the_onset_and_malicious_never_changes() -> None:
    _, *steps = episode(gym.make("OptiGrad/Digits-v0", **SMALL), seed=9, options={**ATTACKED, "onset": 1})
    assert [step[4]["attacking"] for step in steps] == [False, True, True]
    assert all(np.array_equal(step[4]["malicious"], steps[0][4]["malicious"]) for step in steps)


def test_without_an_attack_those_drawn_as_malicious_are_honest() -> None:
    env = gym.make("OptiGrad/Digits-v0", **SMALL)
    first, *steps = episode(env, seed=9, options={**ATTACKED, "attack": "none"})
    assert env.unwrapped.federation.malicious.sum() == 2
    assert not any(info["malicious"].any() for info in (first[1], *(step[4] for step in steps)))
    assert not any(info["attacking"] for *_, info in steps)
    assert [info["reward_terms"]["malicious_mass"] for *_, info in steps] == [0, 0, 0]
    present = env.unwrapped.current_round
    assert not present.corrupted.any()
    torch.testing.assert_close(env.unwrapped.honest_mean(), present.view.updates.mean(dim=0))
    assert not env.unwrapped._frame().malicious.any()  # nobody is marked in the picture


def test_where_many_clients_share_few_samples_an_episode_begins_all_the_same() -> None:
    env = OptiGradEnv(num_clients=100, rounds=2)
    for seed in range(2):  # the first scenario of both has no partition
        env.reset(seed=seed)
        assert env.federation.scenario.alpha > 0.1
    with pytest.raises(ValueError, match=r"alpha=0\.01 left a client with fewer than 2 of"):
        env.reset(seed=0, options={"alpha": 0.01})
    with pytest.raises(ValueError, match="take a larger alpha, fewer clients or more data"):
        OptiGradEnv(num_clients=100, rounds=2, scenarios={"alpha": (0.01, 0.01)}).reset(seed=0)


def test_the_picture_marks_those_who_attack() -> None:
    env = gym.make("OptiGrad/Digits-v0", **SMALL)
    episode(env, seed=9, options=ATTACKED)
    assert env.unwrapped._frame().malicious.sum() == 2


def test_info_counts_rounds_and_weights_sum_to_one_with_the_root() -> None:
    first, *steps = episode(gym.make("OptiGrad/Digits-v0", **SMALL), seed=3, options=ATTACKED)
    assert first[1]["round"] == 0
    assert "weights" not in first[1]
    assert [step[4]["round"] for step in steps] == [1, 2, 3]
    assert [step[3] for step in steps] == [False, False, True]
    assert not any(step[2] for step in steps)
    for *_, info in steps:
        assert info["attack"] == "sign_flip"
        assert info["malicious"].dtype == bool
        assert info["malicious"].sum() == 2
        assert not info["rejected"].any()
        assert info["weights"].shape == (4,)
        assert info["weights"].sum() + info["root_weight"] == pytest.approx(1, abs=1e-6)
        assert 0 <= info["validation_accuracy"] <= 1


def test_trust_of_an_action_is_its_sigmoid_and_weights_are_proportional_to_it() -> None:
    env = gym.make("OptiGrad/Digits-v0", **SMALL)
    env.reset(seed=3)
    action = np.array([-1, -0.2, 0.3, 1], np.float32)
    *_, info = env.step(action)
    trust = sigmoid_of_five(action)
    np.testing.assert_allclose(info["weights"], trust / (trust.sum() + 1), rtol=1e-5)
    assert info["root_weight"] == pytest.approx(1 / (trust.sum() + 1), rel=1e-5)


def test_actions_outside_the_box_count_as_its_edge() -> None:
    env = OptiGradEnv(**SMALL)
    env.reset(seed=3)
    outside = env.step(np.array([-7, 9, 0, 1], np.float32))
    env.reset(seed=3)
    assert_same(outside, env.step(np.array([-1, 1, 0, 1], np.float32)))


def test_reward_is_the_weighted_sum_of_the_terms() -> None:
    weights = {"oracle_gap": 2.0, "progress": -0.5, "malicious_mass": 3.0}
    _, *steps = episode(gym.make("OptiGrad/Digits-v0", **SMALL, reward=weights), seed=4, options=ATTACKED)
    for _, reward, _, _, info in steps:
        terms = info["reward_terms"]
        assert set(terms) == set(weights)
        assert reward == pytest.approx(sum(weights[name] * terms[name] for name in weights), rel=1e-12)
        mass = -float(info["weights"][info["malicious"]].sum())
        assert terms["malicious_mass"] == pytest.approx(mass, rel=1e-6)


@pytest.mark.parametrize("name", ["oracle_gap", "progress", "malicious_mass"])
def test_a_single_reward_term_is_the_reward(name: str) -> None:
    _, *steps = episode(gym.make("OptiGrad/Digits-v0", **SMALL, reward=name), seed=4, options=ATTACKED)
    assert [reward for _, reward, *_ in steps] == [info["reward_terms"][name] for *_, info in steps]


def test_oracle_gap_and_progress_agree_with_a_recomputation_from_the_raw_updates() -> None:
    env = OptiGradEnv(num_clients=5, rounds=3)
    options = {**ATTACKED, "malicious_fraction": 0.4, "attack_options": {"scale": 4.0}}
    before = env.reset(seed=8, options=options)[1]["validation_loss"]
    for action in (np.array([-1, -0.3, 0.1, 0.6, 1], np.float32), np.array([1, 1, -1, 0, 0.2], np.float32)):
        federation, round_ = env.federation, env.current_round
        updates, reference = round_.view.updates.double().numpy(), round_.view.reference.double().numpy()
        lengths = np.linalg.norm(updates, axis=1)
        clipped = updates * np.minimum(1, np.median(lengths) / lengths)[:, None]
        trust = sigmoid_of_five(action)
        mine = (trust @ clipped + reference) / (trust.sum() + 1)
        honest = updates[~round_.malicious.numpy()].mean(axis=0)
        candidates = torch.from_numpy(np.stack([mine, honest])).float()
        after, oracle = federation.evaluate(candidates, "validation").loss.tolist()
        shared = federation.shared.double().numpy()

        _, reward, _, _, info = env.step(action)
        assert reward == pytest.approx(oracle - after, abs=1e-5)
        assert info["validation_loss"] == pytest.approx(after, abs=1e-5)
        np.testing.assert_allclose(federation.shared.double().numpy(), shared + mine, atol=1e-5)
        assert info["reward_terms"]["progress"] == pytest.approx(before - after, abs=1e-5)
        before = after


@pytest.mark.parametrize("seed", range(4))
def test_trusting_the_honest_clients_pays_more_than_trusting_the_malicious_ones(seed: int) -> None:
    env = gym.make("OptiGrad/Digits-v0", num_clients=5, rounds=4)
    returns = {}
    for side in (1, -1):
        _, info = env.reset(seed=seed, options={**ATTACKED, "malicious_fraction": 0.4})
        action = side * (1 - 2 * info["malicious"].astype(np.float32))
        returns[side] = sum(float(env.step(action)[1]) for _ in range(4))
    assert returns[1] > returns[-1] + 0.1


def test_options_pin_the_fields_of_the_scenario() -> None:
    env = OptiGradEnv(num_clients=10, rounds=2)
    options = {
        "attack": "gaussian_noise",
        "malicious_fraction": 0.3,
        "alpha": None,
        "onset": 1,
        "attack_options": {"factor": 2.5},
        "partition": "label_skew",
        "partition_options": {"q": 0.7},
        "feature_shift": 0.5,
        "num_clients": 10,
        "participation": 1.0,
        "root_size": 40,
        "root_bias": 0.5,
        "root_draw": 2,
    }
    for _ in range(3):
        _, info = env.reset(options=options)
        assert info["attack"] == "gaussian_noise"
        assert info["malicious"].sum() == 3
        assert vars(env.unwrapped.federation.scenario) == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"malicious_fraction": 1.0}, r"malicious_fraction.*1\.0"),
        ({"malicious_fraction": -0.1}, r"malicious_fraction.*-0\.1"),
        ({"alpha": 0}, r"alpha.*0"),
        ({"alpha": -1.5}, r"alpha.*-1\.5"),
        ({"onset": -1}, r"onset.*-1"),
        ({"atack": "sign_flip"}, r"'atack'.*attack.*malicious_fraction.*alpha.*onset"),
        ({"attack": "sing_flip"}, r"'sing_flip'.*label_flip.*sign_flip"),
        ({"attack": "sign_flip", "attack_options": {"factr": 2}}, r"sign_flip.*scale.*factr"),
        ({"num_clients": 3}, r"mask.*DigitsMasked.*num_clients=3"),
        ({"participation": 0.5}, r"mask.*DigitsMasked.*participation=0\.5"),
        ({"participation": 0}, r"participation.*\(0, 1\].*0"),
        ({"num_clients": 0}, r"num_clients.*at least 1.*0"),
        ({"root_size": 3}, r"root_size.*at least 4.*3"),
        ({"root_size": 5000}, r"root_size=5000.*no sample for the clients"),
        ({"root_bias": 1.0}, r"root_bias.*\[0, 1\).*1\.0"),
        ({"root_draw": -1}, r"root_draw.*-1"),
        *[
            ({name: "a"}, f"{name} must be a (whole )?number.*got 'a'")
            for name in ("malicious_fraction", "alpha", "onset", "participation", "feature_shift", "root_size")
        ],
        *[({name: "a"}, f"{name} must be.*got 'a'") for name in ("root_bias", "root_draw", "num_clients")],
        ({"onset": None}, "onset must be a whole number, got None"),
        ({"onset": 1.5}, r"onset must be a whole number, got 1\.5"),
        ({"root_size": 10.5}, r"root_size must be a whole number or None, got 10\.5"),
        ({"root_draw": 1.5}, r"root_draw must be a whole number, got 1\.5"),
        ({"attack": ["sign_flip"]}, r"attack must be text, got \['sign_flip'\]"),
        ({"attack_options": 5}, "attack_options must be a mapping from names to values, got 5"),
        ({"partition_options": 5}, "partition_options must be a mapping from names to values, got 5"),
        ({"partition_options": {"minimum": "a"}}, "'dirichlet': minimum must be a whole number, got 'a'"),
        (
            {"partition_options": {"alpha": 0.1}, "alpha": 0.5},
            r"alpha is given twice, as 0\.5 and in partition_options",
        ),
        ("none", "options must be a mapping.*got 'none'"),
        *[
            ({"attack": name}, f"{name} is made against the deployed rule.*benchmark")
            for name in ("policy_aware", "optimised_alie", "optimised_ipm")
        ],
        ({"attack": "on_off", "attack_options": {"attack": "policy_aware"}}, "on_off is made against the deployed"),
    ],
)
def test_bad_options_are_refused_with_field_value_and_what_there_is(options: Any, message: str) -> None:
    env = gym.make("OptiGrad/Digits-v0", **SMALL)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        env.reset(seed=0, options=options)


def test_an_environment_with_the_safeguard_survives_an_agent_that_trusts_the_attackers() -> None:
    """They send twenty times the reverse of what they learned: trusted alone, they would undo the model."""
    last = {}
    for safeguard in (False, True):
        env = OptiGradEnv(num_clients=4, rounds=6, update_clip="none", safeguard=safeguard)
        _, info = env.reset(seed=0, options={**ATTACKED, "attack_options": {"scale": 20.0}})
        for _ in range(6):
            _, _, _, _, info = env.step(np.where(info["malicious"], 1.0, -1.0).astype(np.float32))
            assert info["weights"].sum() + info["root_weight"] == pytest.approx(1, abs=1e-5)
        last[safeguard] = info
    assert last[False]["validation_loss"] > 2
    assert last[True]["validation_loss"] < 1
    assert last[True]["root_weight"] > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clients": 0}, r"num_clients.*0"),
        ({"num_clients": 100_000}, r"num_clients=100000.*samples"),
        ({"rounds": 0}, r"rounds.*0"),
        ({"reward": "orcale_gap"}, r"'orcale_gap'.*oracle_gap, progress, malicious_mass"),
        ({"reward": {}}, r"no terms.*oracle_gap"),
        ({"reward": {"progress": 1.0, "fairness": 1.0}}, r"'fairness'.*oracle_gap"),
        ({"lerning_rate": 0.1}, r"'lerning_rate'.*learning_rate"),
        ({"objective": "fedsgd"}, r"'fedsgd'.*fedbn_prox"),
        ({"update_clip": "mean"}, r"'mean'.*median"),
        ({"root_anchor": -1.0}, r"root_anchor.*-1\.0"),
        ({"safeguard": "on"}, r"safeguard.*'on'"),
        ({"shapley": "guess"}, r"'guess'.*surrogate"),
        ({"dataset": "letters"}, r"'letters'.*digits"),
        ({"scenarios": {"alphas": [1, 2]}}, r"'alphas'.*malicious_fraction"),
        ({"scenarios": "narrow"}, r"'narrow'.*default, broad, faint, wide"),
        ({"scenarios": {"participation": [0.5, 1.0]}}, r"mask.*participation=\(0\.5, 1\.0\)"),
        *[({"rounds": value}, f"rounds must be a whole number, got {value!r}") for value in ("20", None, 2.5, True)],
        *[
            ({"reward": value}, "reward must be text or a mapping from names to values, got")
            for value in (None, 3, ["oracle_gap"])
        ],
        *[({"reward": {"progress": value}}, "weight of progress must be a number, got") for value in ("1", None)],
        ({"reward": {"progress": float("nan")}}, "weights must be finite, got.*nan"),
        *[({"scenarios": value}, "scenarios must be text or a mapping.*got") for value in (5, ["broad"])],
        ({"network_options": 5}, "network_options must be a mapping from names to values, got 5"),
        ({"network_options": {"channels": "a"}}, "channels must be a list of whole numbers, got 'a'"),
        ({"network_options": {"channels": [0]}}, "channels: a layer must be at least 1 wide, got 0"),
        (
            {"scenarios": {"attacks": ["none", "policy_aware"]}},
            "policy_aware is made against the deployed rule.*benchmark",
        ),
        ({"scenarios": {"roots": 4, "root_size": [10, 5000]}}, r"root_size=2299.*no sample for the clients"),
        ({"split_seed": -1}, "split_seed must be 0 or more, got -1"),
    ],
)
def test_bad_arguments_are_refused_with_name_value_and_what_there_is(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        OptiGradEnv(**{**SMALL, **arguments})


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3, np.float32), r"\(4,\).*\(3,\)"),
        (np.zeros((1, 4), np.float32), r"\(4,\).*\(1, 4\)"),
        (np.float32(0), r"\(4,\).*\(\)"),
        (np.array([0, np.nan, 0, 0], np.float32), "finite.*nan"),
        (np.array([0, 0, np.inf, 0], np.float32), "finite.*inf"),
    ],
)
def test_a_bad_action_is_refused_and_leaves_the_round_waiting(action: np.ndarray, message: str) -> None:
    env, undisturbed = OptiGradEnv(**SMALL), OptiGradEnv(**SMALL)
    env.reset(seed=0)
    undisturbed.reset(seed=0)
    with pytest.raises(ValueError, match=f"(?s)action.*{message}"):
        env.step(action)
    assert_same(env.step(uniform()), undisturbed.step(uniform()))


@pytest.mark.parametrize("wrapped", [True, False])
def test_stepping_before_a_reset_or_after_the_end_asks_for_a_reset(wrapped: bool) -> None:
    env: Any = gym.make("OptiGrad/Digits-v0", **SMALL) if wrapped else OptiGradEnv(**SMALL)
    with pytest.raises(ResetNeeded):
        env.step(uniform())
    env.reset(seed=0)
    for _ in range(3):
        env.step(uniform())
    with pytest.raises(ResetNeeded, match="3 rounds"):
        env.step(uniform())
    env.reset()
    env.step(uniform())


@pytest.mark.parametrize("kind", ["nan", "infinity", "minus infinity", "wrong shape"])
def test_a_broken_message_costs_its_sender_the_weight_and_not_the_round(
    kind: str, broken_senders: dict[str, dict[str, Any]]
) -> None:
    env = OptiGradEnv(num_clients=5, rounds=3)
    observation, info = env.reset(seed=2, options={**ATTACKED, "malicious_fraction": 0.4, **broken_senders[kind]})
    for _ in range(3):
        bad = info["malicious"]
        np.testing.assert_array_equal(env.current_round.view.rejected.numpy(), bad)
        np.testing.assert_array_equal(observation[bad], np.tile(np.float32([3, -1, -1, 3, -1, -1]), (2, 1)))
        assert observation in env.observation_space
        observation, reward, _, _, info = env.step(np.ones(5, np.float32))
        np.testing.assert_array_equal(info["rejected"], bad)
        assert (info["weights"][bad] == 0).all()
        assert (info["weights"][~bad] > 0).all()
        assert info["weights"].sum() + info["root_weight"] == pytest.approx(1, abs=1e-6)
        assert np.isfinite(reward)
        assert np.isfinite(info["validation_loss"])
        assert env.federation.shared.isfinite().all()


def test_with_every_message_broken_the_server_takes_the_reference_update(
    broken_senders: dict[str, dict[str, Any]],
) -> None:
    env = OptiGradEnv(**SMALL)
    env.reset(seed=2, options={**ATTACKED, **broken_senders["everybody"]})
    for _ in range(3):
        expected = env.federation.shared + env.current_round.view.reference
        observation, reward, _, _, info = env.step(np.ones(4, np.float32))
        assert info["rejected"].all()
        assert not info["weights"].any()
        assert info["root_weight"] == 1
        assert torch.equal(env.federation.shared, expected)
        assert np.isfinite(reward)
        assert observation in env.observation_space


@pytest.mark.parametrize("clients", [1, 2, 11])
def test_any_number_of_clients_plays(clients: int) -> None:
    for observation, *_ in episode(OptiGradEnv(num_clients=clients, rounds=2), seed=0, options={"alpha": 1.0}):
        assert observation.shape == (clients, 6)
        assert np.isfinite(observation).all()


@pytest.mark.parametrize("objective", ["fedavg", "fedprox", "fedbn", "fedbn_prox"])
def test_every_objective_plays_and_learns(objective: str) -> None:
    env = OptiGradEnv(num_clients=4, rounds=8, objective=objective)
    _, info = env.reset(seed=0, options={"attack": "none", "alpha": 1.0})
    start = info["validation_loss"]
    for _ in range(8):
        *_, info = env.step(np.ones(4, np.float32))
    assert info["validation_loss"] < 0.8 * start


def test_an_agent_that_writes_on_its_observation_changes_its_own_copy_only() -> None:
    env = OptiGradEnv(**SMALL)
    observation, _ = env.reset(seed=0)
    kept = observation.copy()
    observation[:] = 0.5
    np.testing.assert_array_equal(env.current_round.view.fingerprint.observation.numpy(), kept)


def test_what_info_gives_away_cannot_be_used_to_change_the_episode() -> None:
    env, undisturbed = OptiGradEnv(**SMALL), OptiGradEnv(**SMALL)
    for one in (env, undisturbed):
        one.reset(seed=0, options=ATTACKED)
    *_, info = env.step(uniform())
    undisturbed.step(uniform())
    for array in (info["malicious"], info["rejected"]):
        array[:] = ~array
    info["weights"][:] = 7
    assert_same(env.step(uniform()), undisturbed.step(uniform()))


def test_an_environment_like_another_differs_in_what_its_id_is_alone() -> None:
    own = {"update_clip": "none", "root_anchor": 0.5, "safeguard": True, "root": 40, "root_bias": 0.5, "mu": 0.2}
    env = federated(gym.make("OptiGrad/Softmax-v0", num_clients=4, objective="fedprox", shapley="exact", **own))
    other = env.like("OptiGrad/Quadratic-v0")
    before, after = settings_of(env.federation.config), settings_of(other.federation.config)
    assert {name for name in before if before[name] != after[name]} == {"loss", "learning_rate"}
    assert len(other.federation.splits.reference) + len(other.federation.splits.utility) == 40
    assert other.spec is not None
    assert other.spec.id == "OptiGrad/Quadratic-v0"


def test_after_a_reset_that_failed_half_way_the_old_episode_does_not_go_on() -> None:
    env = OptiGradEnv(num_clients=5, rounds=6)
    env.reset(seed=0, options={"attack": "sign_flip", "malicious_fraction": 0.4})
    with pytest.raises(ValueError, match="root"):
        env.reset(options={"attack": "none", "root_size": 10**6})
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(5, np.float32))
    env.reset(seed=0)
    env.step(np.zeros(5, np.float32))
