"""Evaluation, checkpoints and curves, on a model that learns for a few steps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv

from agents.algorithms import load_algorithm
from agents.callbacks import FixedScenarioEvaluation, ProgressBar, RoundCurves, Saving, curves_of, save_model
from agents.checkpoint import CHECKPOINT, read
from agents.environments import make_env, make_training_envs
from agents.policies import AttentionPolicy

SIZES = {"num_clients": 4, "rounds": 3}


class Curves(KVWriter):
    """Keeps everything that is logged."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        for name, value in key_values.items():
            self.values.setdefault(name, []).append(value)


@pytest.fixture(scope="module")
def envs() -> Iterator[VecEnv]:
    made = make_training_envs("OptiGrad/Digits-v0", 1, 0, **SIZES)
    yield made
    made.close()


@pytest.fixture
def curves() -> Curves:
    return Curves()


@pytest.fixture
def model(envs: VecEnv, curves: Curves) -> PPO:
    made = PPO(AttentionPolicy, envs, seed=0, n_steps=16, batch_size=16, device="cpu")
    made.set_logger(Logger(None, [curves]))
    return made


def evaluation(
    file: Path, *, on_best: Callable[[Any], None] = lambda _: None, every: int = 16, **settings: Any
) -> FixedScenarioEvaluation:
    env = make_env("OptiGrad/Digits-v0", **SIZES)
    return FixedScenarioEvaluation(env, every=every, episodes=2, file=file, on_best=on_best, **settings)


def test_evaluations_begin_before_learning_and_come_at_their_time(tmp_path: Path, model: PPO, curves: Curves) -> None:
    callback = evaluation(tmp_path / "e.npz")
    model.learn(48, callback=callback)
    callback.finish()
    with np.load(tmp_path / "e.npz") as kept:
        assert kept["timesteps"].tolist() == [0, 16, 32, 48]
        assert kept["results"].shape == (4, 2)
        np.testing.assert_allclose(curves.values["eval/mean_round_reward"], kept["results"].mean(axis=1))


def test_an_unchanged_policy_gets_the_same_figures_every_time(tmp_path: Path, model: PPO) -> None:
    callback = evaluation(tmp_path / "e.npz")
    callback.init_callback(model)
    assert callback.evaluate() == callback.evaluate()
    with np.load(tmp_path / "e.npz") as kept:
        assert (kept["results"][0] == kept["results"][1]).all()
        assert kept["results"][0][0] != kept["results"][0][1]


@pytest.mark.parametrize(("steps", "every"), [(32, 16), (40, 20)])
def test_first_and_last_state_are_evaluated_and_none_twice(tmp_path: Path, model: PPO, steps: int, every: int) -> None:
    callback = evaluation(tmp_path / "e.npz", every=every)
    model.learn(steps, callback=callback)
    callback.finish()
    with np.load(tmp_path / "e.npz") as kept:
        timesteps = kept["timesteps"].tolist()
    assert timesteps == sorted(set(timesteps))
    assert (timesteps[0], timesteps[-1]) == (0, model.num_timesteps)
    assert len(timesteps) >= 3


def test_a_run_that_is_made_longer_is_evaluated_where_a_whole_one_is_and_where_it_had_ended(
    tmp_path: Path, model: PPO
) -> None:
    def timesteps(*lengths: int) -> list[int]:
        file = tmp_path / f"{len(lengths)}.npz"
        model.num_timesteps = 0
        for length in lengths:
            callback = evaluation(file, every=30, resumed_at=model.num_timesteps if model.num_timesteps else None)
            model.learn(length, callback=callback, reset_num_timesteps=model.num_timesteps == 0)
            callback.finish()
        with np.load(file) as kept:
            return kept["timesteps"].tolist()

    assert timesteps(128) == [0, 32, 64, 96, 128]
    assert timesteps(48, 80) == [0, 32, 48, 64, 96, 128]


def test_what_the_last_update_made_of_the_policy_is_evaluated_too(tmp_path: Path, model: PPO) -> None:
    callback = evaluation(tmp_path / "e.npz")
    model.learn(32, callback=callback)
    callback.finish()
    with np.load(tmp_path / "e.npz") as kept:
        last = kept["results"][-1].mean()
    fresh = evaluation(tmp_path / "fresh.npz")
    fresh.init_callback(model)
    assert last == pytest.approx(fresh.evaluate(), rel=1e-9)


def test_the_mean_reward_is_that_of_the_deterministic_policy_on_the_fixed_seeds(tmp_path: Path, model: PPO) -> None:
    callback = evaluation(tmp_path / "e.npz")
    callback.init_callback(model)
    env, rewards = make_env("OptiGrad/Digits-v0", **SIZES), []
    for seed in (callback.SEED, callback.SEED + 1):
        observation, _ = env.reset(seed=seed)
        for _ in range(3):
            observation, reward, *_ = env.step(model.predict(observation, deterministic=True)[0])
            rewards.append(reward)
    assert callback.evaluate() == pytest.approx(np.mean(rewards), rel=1e-9)


def test_the_best_policy_is_kept_and_a_worse_one_is_not(
    tmp_path: Path, model: PPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[float] = []
    callback = evaluation(tmp_path / "e.npz", on_best=lambda figures: kept.append(figures["mean_reward"]))
    callback.init_callback(model)
    for reward in (0.1, 0.1, -1.0, 0.3, 0.2):
        monkeypatch.setattr(callback, "_play", lambda seed, reward=reward: (reward, 0.5))
        callback.evaluate()
    assert kept == pytest.approx([0.1, 0.3])


def test_selected_by_accuracy_the_reward_decides_nothing(
    tmp_path: Path, model: PPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[float] = []
    callback = evaluation(
        tmp_path / "e.npz", on_best=lambda figures: kept.append(figures["mean_reward"]), select_by="accuracy"
    )
    callback.init_callback(model)
    for reward, accuracy in ((0.1, 0.5), (0.9, 0.5), (0.2, 0.7), (0.8, 0.6)):
        monkeypatch.setattr(callback, "_play", lambda seed, played=(reward, accuracy): played)
        callback.evaluate()
    assert kept == pytest.approx([0.1, 0.2])
    again = evaluation(tmp_path / "e.npz", select_by="accuracy", resumed_at=model.num_timesteps)
    assert again.best == 2
    with pytest.raises(ValueError, match=r"'loss'; there are: reward, accuracy"):
        evaluation(tmp_path / "other.npz", select_by="loss")


def test_evaluations_from_before_accuracies_were_kept_do_not_stay_the_best(
    tmp_path: Path, model: PPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "e.npz", timesteps=np.array([0, 16]), results=np.array([[0.1, 0.2], [0.7, 0.9]]))
    kept: list[float] = []
    callback = evaluation(tmp_path / "e.npz", on_best=lambda _: kept.append(1.0), select_by="accuracy", resumed_at=16)
    callback.init_callback(model)
    for accuracy in (0.6, 0.5, 0.7):
        monkeypatch.setattr(callback, "_play", lambda seed, accuracy=accuracy: (0.1, accuracy))
        callback.evaluate()
    assert len(kept) == 2
    assert callback.best == 4


def test_a_resumed_evaluation_remembers_the_best_and_goes_on_with_the_curve(
    tmp_path: Path, model: PPO, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "e.npz", timesteps=np.array([0, 16]), results=np.array([[0.1, 0.2], [0.7, 0.9]]))
    kept: list[float] = []
    callback = evaluation(tmp_path / "e.npz", on_best=lambda _: kept.append(1.0), resumed_at=16)
    assert callback.best == 1
    callback.init_callback(model)
    monkeypatch.setattr(callback, "_play", lambda seed: (0.5, 0.5))
    callback.evaluate()
    assert kept == []
    with np.load(tmp_path / "e.npz") as file:
        assert len(file["timesteps"]) == 3
        assert file["results"][:2].tolist() == [[0.1, 0.2], [0.7, 0.9]]


def test_evaluations_after_the_time_at_which_a_run_is_resumed_are_forgotten_with_their_best(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "e.npz", timesteps=np.array([0, 16, 32]), results=np.array([[0.1, 0.2], [0.3, 0.5], [0.7, 0.9]])
    )
    assert evaluation(tmp_path / "e.npz", resumed_at=31).means == pytest.approx([0.15, 0.4])
    assert evaluation(tmp_path / "e.npz", resumed_at=31).best == 1
    assert evaluation(tmp_path / "e.npz").means == []


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"garbage", lambda c: b""])
def test_damaged_evaluations_are_refused_by_name(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    np.savez(tmp_path / "e.npz", timesteps=np.array([0]), results=np.array([[0.1, 0.2]]))
    (tmp_path / "e.npz").write_bytes(damage((tmp_path / "e.npz").read_bytes()))
    with pytest.raises(ValueError, match=r"e\.npz is damaged: .*; move it away"):
        evaluation(tmp_path / "e.npz", resumed_at=16)


def test_saving_keeps_a_checkpoint_of_the_last_moment_between_rollouts(tmp_path: Path, model: PPO) -> None:
    seen: list[int] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(read(tmp_path / CHECKPOINT).model is not None and self.num_timesteps)
            return True

    model.learn(32, callback=[Saving(tmp_path, every=16, keep_every=16, seconds=5.0), Look()])
    assert seen == list(range(1, 33))
    checkpoint = read(tmp_path / CHECKPOINT)
    assert checkpoint.seconds > 5
    assert checkpoint.replay_buffer is None
    assert len(checkpoint.envs) == 1


def test_models_are_kept_as_they_were_at_their_time(tmp_path: Path, model: PPO, envs: VecEnv) -> None:
    model.learn(48, callback=Saving(tmp_path, every=16, keep_every=16))
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["model_16.zip", "model_32.zip", "model_48.zip"]
    for steps in (16, 48):
        assert load_algorithm("ppo", tmp_path / "checkpoints" / f"model_{steps}.zip", envs).num_timesteps == steps
    last, checkpoint = (
        load_algorithm("ppo", path, envs).policy.state_dict()
        for path in (tmp_path / "model.zip", tmp_path / "checkpoints" / "model_48.zip")
    )
    assert all(torch.equal(last[name], checkpoint[name]) for name in last)


def test_an_interrupted_save_leaves_the_old_model(
    tmp_path: Path, model: PPO, envs: VecEnv, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(model, tmp_path / "model.zip")
    old = (tmp_path / "model.zip").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        save_model(model, tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == old
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


class Reader(BaseCallback):
    """Keeps the infos of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.infos: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.infos += self.locals["infos"]
        return True


def test_logged_reward_terms_are_the_means_over_a_rollout(model: PPO, curves: Curves) -> None:
    reader = Reader()
    model.learn(32, callback=[RoundCurves(), reader])
    assert len(reader.infos) == 32
    for name in ("oracle_gap", "progress", "malicious_mass"):
        terms = np.array([info["reward_terms"][name] for info in reader.infos]).reshape(2, 16)
        np.testing.assert_allclose(curves.values[f"reward_terms/{name}"], terms.mean(axis=1), rtol=1e-6)
    shares = [
        float(info["weights"][~info["malicious"]].sum() / info["weights"].sum())
        for info in reader.infos[:16]
        if info["attacking"] and info["malicious"].any()
    ]
    assert curves.values["trust/honest_weight_share"][0] == pytest.approx(np.mean(shares), rel=1e-6)
    for name in {f"regret/{info['attack']}" for info in reader.infos}:
        assert all(np.isfinite(curves.values[name]))
    assert len(curves.values["time/steps_per_second"]) == 2
    assert min(curves.values["time/steps_per_second"]) > 0


def an_info(**changes: Any) -> dict[str, Any]:
    return {
        "attack": "sign_flip",
        "attacking": True,
        "malicious": np.array([True, False, False, True]),
        "weights": np.array([0.1, 0.4, 0.2, 0.2]),
        "reward_terms": {"oracle_gap": -0.25, "progress": 0.5},
        **changes,
    }


def test_the_curves_of_a_round_are_regret_by_attack_share_and_auroc_with_ties_for_half() -> None:
    curves = curves_of(an_info())
    assert curves["regret/sign_flip"] == 0.25
    assert curves["reward_terms/progress"] == 0.5
    assert curves["trust/honest_weight_share"] == pytest.approx(0.6 / 0.9)
    assert curves["trust/detection_auroc"] == pytest.approx(3.5 / 4)  # of four pairs one is a tie


def test_of_a_round_without_an_attack_no_trust_is_judged() -> None:
    assert set(curves_of(an_info(attack="none", attacking=False))) == {
        "regret/none",
        "reward_terms/oracle_gap",
        "reward_terms/progress",
    }


def test_clients_that_are_absent_are_not_judged() -> None:
    round_of_three = {
        "malicious": np.array([True, True, False, False, True]),
        "weights": np.array([0.2, 0.0, 0.0, 0.5, 0.3]),
        "participants": np.array([True, False, False, True, True]),
    }
    assert curves_of(an_info(**round_of_three))["trust/detection_auroc"] == 1
    only_honest = {**round_of_three, "participants": np.array([False, False, True, True, False])}
    assert "trust/detection_auroc" not in curves_of(an_info(**only_honest))


@pytest.mark.parametrize(
    "changes", [{"attacking": False}, {"malicious": np.zeros(4, bool)}, {"malicious": np.ones(4, bool)}]
)
def test_where_there_is_nobody_to_tell_apart_there_is_no_auroc(changes: dict[str, Any]) -> None:
    assert "trust/detection_auroc" not in curves_of(an_info(**changes))


def test_a_progress_bar_is_for_terminals_only(model: PPO, capfd: pytest.CaptureFixture[str]) -> None:
    model.learn(16, callback=ProgressBar("ppo", shown=True))
    assert capfd.readouterr().err == ""
