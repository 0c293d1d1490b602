"""Training environments as Stable-Baselines3 sees them: here, and shared out over processes."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents import worker_vec_env
from agents.algorithms import make_algorithm
from agents.environments import available_cores, make_env, make_training_envs
from agents.vec_env import FederationVecEnv
from agents.worker_vec_env import WorkerVecEnv
from optigrad_env import OptiGradVectorEnv
from optigrad_env.scenarios import TRAINING_SPLITS
from optigrad_env.wrappers import FeatureShuffle, RoundRecorder

DIGITS = "OptiGrad/Digits-v0"
TINY = {"num_clients": 3, "rounds": 2, "local_steps": 1, "batch_size": 8}
COUNT = 4
ATTACKED = {"attack": "sign_flip", "malicious_fraction": 0.5, "onset": 0}


def make(processes: int = 1, count: int = COUNT, seed: int = 3, **kwargs: Any) -> VecEnv:
    return make_training_envs(DIGITS, count, seed, processes=processes, **{**TINY, **kwargs})


@pytest.fixture(scope="module")
def workers() -> Iterator[WorkerVecEnv]:
    envs = make(processes=2, count=3)
    assert isinstance(envs, WorkerVecEnv)
    yield envs
    envs.close()


def without_times(infos: Any) -> list[dict[str, Any]]:
    """Infos with the seconds that an episode took left out."""
    return [
        {k: {"r": v["r"], "l": v["l"]} if k == "episode" else v for k, v in info.items()} for info in map(dict, infos)
    ]


def play(envs: VecEnv, steps: int = 5) -> list[Any]:
    """All that comes out of a few steps, the records of the rounds included."""
    rng = np.random.default_rng(1)
    kept: list[Any] = [envs.reset(), list(envs.reset_infos)]
    for _ in range(steps):
        kept.append([{k: v.numpy() for k, v in vars(r).items()} for r in envs.env_method("recorded_round")])
        actions = rng.uniform(-1, 1, (envs.num_envs, *envs.action_space.shape)).astype(np.float32)
        observations, rewards, dones, infos = envs.step(actions)
        kept += [observations, rewards, dones, without_times(infos), list(envs.reset_infos)]
    return kept


def test_what_is_played_does_not_depend_on_the_number_of_processes() -> None:
    episodes = []
    for processes in (1, 2, 3):
        envs = make(processes)
        assert isinstance(envs, FederationVecEnv if processes == 1 else WorkerVecEnv)
        episodes.append(play(envs))
        envs.close()
    np.testing.assert_equal(episodes[1], episodes[0])
    np.testing.assert_equal(episodes[2], episodes[0])


def test_it_plays_what_stable_baselines_own_vec_env_plays() -> None:
    def maker(i: int) -> Any:
        return lambda: Monitor(RoundRecorder(make_env(DIGITS, **TINY, split_seed=TRAINING_SPLITS + i)))

    reference = DummyVecEnv([maker(i) for i in range(COUNT)])
    reference.seed(3)
    expected, got = play(reference), play(make())
    np.testing.assert_equal(got, expected)
    for ours, theirs in zip(got[6], expected[6], strict=True):  # of the same Python types too
        assert {k: type(v) for k, v in ours.items()} == {k: type(v) for k, v in theirs.items()}


def test_an_episodes_end_is_told_as_stable_baselines_wants_it() -> None:
    envs = make()
    envs.reset()
    actions = np.zeros((COUNT, 3), np.float32)
    _, first, dones, infos = envs.step(actions)
    assert not dones.any()
    assert not any("terminal_observation" in info or info["TimeLimit.truncated"] for info in infos)
    observations, second, dones, infos = envs.step(actions)
    assert dones.all()
    for i, info in enumerate(infos):
        assert info["TimeLimit.truncated"] is True
        assert info["terminal_observation"].shape == (3, 6)
        assert not np.array_equal(info["terminal_observation"], observations[i])
        assert info["episode"]["l"] == 2
        assert info["episode"]["r"] == pytest.approx(float(first[i] + second[i]), abs=1e-6)
        assert info["episode"]["t"] > 0
        assert envs.reset_infos[i]["round"] == 0
    assert second.dtype == np.float32


def test_seeds_are_used_once_and_count_upwards(workers: WorkerVecEnv) -> None:
    assert workers.seed(7) == [7, 8, 9]
    first = workers.reset()
    second = workers.reset()
    workers.seed(7)
    np.testing.assert_array_equal(workers.reset(), first)
    assert not np.array_equal(first, second)


def test_every_environment_can_have_options_of_its_own(workers: WorkerVecEnv) -> None:
    workers.set_options([{**ATTACKED, "alpha": alpha} for alpha in (0.5, 0.6, 0.7)])
    workers.reset()
    assert [federation.scenario.alpha for federation in workers.get_attr("federation")] == [0.5, 0.6, 0.7]
    assert [info["attack"] for info in workers.reset_infos] == ["sign_flip"] * 3


def test_attributes_and_methods_reach_the_chosen_environments(workers: WorkerVecEnv) -> None:
    def split_seeds(indices: Any) -> list[int]:
        return [f.config.split_seed - TRAINING_SPLITS for f in workers.get_attr("federation", indices)]

    assert split_seeds(None) == [0, 1, 2]
    assert split_seeds([2, 0]) == [2, 0]
    assert split_seeds(1) == [1]
    assert split_seeds(-1) == [2]
    workers.set_attr("rounds", 9, indices=[1])
    assert workers.get_attr("rounds") == [2, 9, 2]
    workers.set_attr("rounds", 2)
    assert workers.get_attr("rounds") == [2, 2, 2]
    assert workers.env_method("get_wrapper_attr", "rounds", indices=[0]) == [2]
    assert workers.has_attr("federation")
    assert not workers.has_attr("confederation")


@pytest.mark.parametrize("processes", [1, 2])
def test_wrappers_are_known_and_episode_statistics_count_as_monitor(processes: int) -> None:
    envs = make(processes, count=2)
    assert envs.env_is_wrapped(RoundRecorder) == [True, True]
    assert envs.env_is_wrapped(Monitor) == [True, True]
    assert envs.env_is_wrapped(FeatureShuffle) == [False, False]
    envs.close()


def test_an_error_in_a_worker_is_raised_here_and_the_workers_live_on(workers: WorkerVecEnv) -> None:
    workers.reset()
    with pytest.raises(ValueError, match="finite"):
        workers.step(np.full((3, 3), np.nan, np.float32))
    with pytest.raises(AttributeError, match="no_such_method"):
        workers.env_method("no_such_method")
    workers.step(np.zeros((3, 3), np.float32))
    assert workers.get_attr("rounds") == [2, 2, 2]


class Unsendable(DummyVecEnv):
    def refuse(self) -> None:
        class OwnError(Exception):  # of a function: pickle does not find it
            pass

        raise OwnError("the reason")

    def refuse_with_two(self) -> None:
        raise TwoArgumentsError("the", "reason")

    def answer(self) -> Any:
        return lambda: None


class TwoArgumentsError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def test_what_cannot_be_sent_between_processes_is_told_and_the_worker_lives_on() -> None:
    with closing(WorkerVecEnv([lambda: Unsendable([lambda: gym.make("CartPole-v1")])])) as envs:
        worker = envs._workers[0]
        for name, message in (
            ("refuse", "OwnError: the reason"),
            ("refuse_with_two", "TwoArgumentsError: the reason"),
            ("answer", "the answer of answer cannot be sent"),
        ):
            worker.ask(name)
            with pytest.raises(RuntimeError, match=message):
                worker_vec_env._answers([worker])
        worker.ask("reset")
        assert worker_vec_env._answers([worker])[0].shape == (1, 4)


def test_a_wrong_argument_is_an_error_here_before_or_after_the_workers_start() -> None:
    with pytest.raises(ValueError, match="'num_client'"):
        make_training_envs(DIGITS, 2, 0, processes=2, num_client=3)
    with pytest.raises(ValueError, match="OptiGrad/Digits-v0"):
        make_training_envs("OptiGrad/Digit-v0", 2, 0)
    with pytest.raises(ValueError, match=r"processes.*0"):
        make(processes=0)


def test_there_are_no_more_processes_than_environments_and_by_default_one_a_core() -> None:
    envs = make(processes=5, count=2)
    assert isinstance(envs, WorkerVecEnv)
    assert len(envs.processes) == 2
    envs.close()
    envs = make_training_envs(DIGITS, COUNT, 0, **TINY)
    assert available_cores() >= 1
    assert (len(envs.processes) if isinstance(envs, WorkerVecEnv) else 1) == min(COUNT, available_cores())
    envs.close()


def test_workers_ignore_ctrl_c_and_end_when_they_are_closed_even_in_the_middle_of_a_step() -> None:
    envs = make(processes=2, count=2)
    assert isinstance(envs, WorkerVecEnv)
    envs.reset()
    for process in envs.processes:
        os.kill(process.pid, signal.SIGINT)
    envs.step(np.zeros((2, 3), np.float32))
    envs.step_async(np.zeros((2, 3), np.float32))
    envs.close()
    envs.close()
    assert not any(process.is_alive() for process in envs.processes)


def test_a_worker_that_has_died_is_an_error_not_a_hang() -> None:
    envs = make(processes=2, count=2)
    assert isinstance(envs, WorkerVecEnv)
    envs.processes[1].terminate()
    envs.processes[1].join()
    with pytest.raises(RuntimeError, match=r"worker process .* has died"):
        envs.reset()
    envs.close()


def test_pictures_of_all_environments_are_one_picture() -> None:
    for processes in (1, 2):
        envs = make(processes, count=2, render_mode="rgb_array")
        envs.reset()
        assert len(envs.get_images()) == 2
        picture = envs.render()
        assert picture is not None
        assert picture.dtype == np.uint8
        envs.close()


def test_another_autoreset_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'SameStep'.*'NextStep'"):
        FederationVecEnv(OptiGradVectorEnv(1, **TINY))
    envs = FederationVecEnv(OptiGradVectorEnv(1, autoreset_mode=AutoresetMode.SAME_STEP, **TINY))
    assert envs.observation_space == gym.make(DIGITS, **TINY).observation_space


@pytest.mark.parametrize("processes", [1, 2])
def test_ppo_with_the_attention_policy_learns_on_it(processes: int) -> None:
    envs = make(processes, count=2)
    model = make_algorithm("ppo", envs, seed=0, timesteps=64)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(64)
    assert model.num_timesteps >= 64
    assert any(not np.array_equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert model.ep_info_buffer
    assert {episode["l"] for episode in model.ep_info_buffer} == {2}
    returns, lengths = evaluate_policy(model, envs, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [2, 2]
    assert len(returns) == 2
    envs.close()


def test_an_answer_that_nobody_waited_for_is_not_taken_for_the_next_one() -> None:
    """Ctrl-C between the question and its answer: the workers have played the step, and this side has not seen it."""
    actions = np.zeros((2, 2, 3), np.float32)
    actions[1] = 1
    with closing(make(processes=2, count=2, rounds=6)) as envs, closing(make(count=2, rounds=6)) as whole:
        for each in (envs, whole):
            each.seed(5)
            each.reset()
        envs.step_async(actions[0])
        assert envs.get_attr("rounds") == [6, 6]
        whole.step(actions[0])
        np.testing.assert_array_equal(envs.step(actions[1])[0], whole.step(actions[1])[0])


def test_what_a_vec_env_says_of_itself_is_the_same_over_processes(workers: WorkerVecEnv) -> None:
    with closing(make(count=1)) as one:
        assert workers.metadata == one.metadata
    assert workers.get_attr("rounds", [-1]) == [2]
    with pytest.raises(IndexError):
        workers.get_attr("rounds", [3])
