"""The training command, called as a function on runs of a few rounds."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import train_agent
from agents import load_policy
from agents.callbacks import RewardTerms
from agents.deployed import read_card
from agents.environments import make_env
from agents.policies import AttentionPolicy
from train_agent import Arguments, main

ROOT = Path(train_agent.__file__).parent


@pytest.fixture(autouse=True)
def short_rollouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """PPO with rollouts of 8 rounds instead of 512, evaluated on episodes of 4 instead of 20."""

    def make(name: str, env: Any, *, seed: int, tensorboard: Path, **_: Any) -> PPO:
        return PPO(
            AttentionPolicy, env, n_steps=8, batch_size=8, seed=seed, device="cpu", tensorboard_log=str(tensorboard)
        )

    monkeypatch.setattr(train_agent, "make_algorithm", make)
    monkeypatch.setattr(train_agent, "make_env", partial(make_env, rounds=4))


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    return Arguments(
        timesteps=16,
        n_envs=1,
        num_clients=3,
        run_dir=tmp_path / "runs" / "tiny",
        warm_start=False,
        eval_every=8,
        eval_episodes=1,
        progress=False,
    )


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def timesteps(directory: Path) -> list[int]:
    with np.load(directory / "evaluations.npz") as kept:
        result: list[int] = kept["timesteps"].tolist()
    return result


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in the ``at``-th time step."""
    on_step = RewardTerms._on_step

    def stop(self: RewardTerms) -> bool:
        if self.num_timesteps >= at:
            raise KeyboardInterrupt
        return on_step(self)

    monkeypatch.setattr(RewardTerms, "_on_step", stop)


def test_a_run_leaves_everything_that_evaluation_resuming_and_curves_need(
    arguments: Arguments, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    directory = arguments.run_dir
    names = {path.name for path in directory.iterdir()}
    files = {"config.json", "model.zip", "policy.safetensors", "policy.json", "evaluations.npz"}
    assert names == files | {"tensorboard", "checkpoints"}
    assert list(directory.glob("tensorboard/*/events.out.tfevents.*"))
    assert {path.name for path in (directory / "checkpoints").iterdir()} == {"model_8.zip", "model_16.zip"}
    config = json.loads((directory / "config.json").read_text())
    assert config["num_clients"] == 3
    assert config["timesteps"] == 16
    assert timesteps(directory)[0] == 0
    assert timesteps(directory)[-1] == 16
    card = read_card(directory)["provenance"]
    assert (card["env_id"], card["seed"], card["num_clients"]) == ("OptiGrad/Digits-v0", 0, 3)
    assert "alie" not in card["attacks_seen"]
    assert str(directory) in capsys.readouterr().out
    assert load_policy(directory)(torch.zeros(25, 6)).shape == (25,)


def test_equal_seeds_train_equal_policies_and_other_seeds_others(arguments: Arguments, tmp_path: Path) -> None:
    policies = []
    for i, seed in enumerate((0, 0, 1)):
        directory = tmp_path / f"run_{i}"
        main(replace(arguments, run_dir=directory, seed=seed))
        model = PPO.load(directory / "model.zip", device="cpu")
        policies.append(torch.cat([value.flatten() for value in model.policy.state_dict().values()]))
    assert torch.equal(policies[0], policies[1])
    assert not torch.equal(policies[0], policies[2])


def test_an_existing_run_is_refused_and_left_alone(arguments: Arguments) -> None:
    main(arguments)
    before = contents(arguments.run_dir)
    with pytest.raises(ValueError, match=r"exists already.*--resume.*--overwrite"):
        main(arguments)
    assert contents(arguments.run_dir) == before


def test_overwriting_begins_a_new_run(arguments: Arguments) -> None:
    main(arguments)
    main(replace(arguments, overwrite=True, timesteps=8, seed=5))
    assert json.loads((arguments.run_dir / "config.json").read_text())["seed"] == 5
    assert timesteps(arguments.run_dir)[-1] == 8
    assert {path.name for path in (arguments.run_dir / "checkpoints").iterdir()} == {"model_8.zip"}


def test_overwriting_never_deletes_what_is_no_run(arguments: Arguments, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not a run directory"):
        main(replace(arguments, run_dir=tmp_path, overwrite=True))
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_resuming_goes_on_to_the_larger_number_of_timesteps(arguments: Arguments) -> None:
    main(arguments)
    first = timesteps(arguments.run_dir)
    assert main(replace(arguments, resume=True, timesteps=32)) == 0
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps == 32
    after = timesteps(arguments.run_dir)
    assert after[: len(first)] == first
    assert after[-1] == 32
    assert len(after) == len(set(after))
    assert (arguments.run_dir / "checkpoints" / "model_32.zip").exists()


def test_after_resuming_the_config_says_how_long_the_run_is(arguments: Arguments) -> None:
    main(arguments)
    main(replace(arguments, resume=True, timesteps=32))
    assert json.loads((arguments.run_dir / "config.json").read_text())["timesteps"] == 32


def test_resuming_a_finished_run_changes_nothing(arguments: Arguments) -> None:
    main(arguments)
    before = load_policy(arguments.run_dir).state_dict()
    main(replace(arguments, resume=True))
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps == 16
    assert all(torch.equal(value, before[name]) for name, value in load_policy(arguments.run_dir).state_dict().items())


def test_resuming_with_other_settings_is_refused_naming_them(arguments: Arguments) -> None:
    main(arguments)
    before = contents(arguments.run_dir)
    with pytest.raises(ValueError, match=r"num_clients was 3, is 4, seed was 0, is 9"):
        main(replace(arguments, resume=True, timesteps=32, seed=9, num_clients=4))
    assert contents(arguments.run_dir) == before


def test_resuming_nothing_is_refused(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        main(replace(arguments, resume=True))
    assert not arguments.run_dir.exists()


def test_ctrl_c_saves_the_model_says_where_and_the_run_can_go_on(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, at=11)
        assert main(replace(arguments, eval_every=1000)) == 130
    printed = capsys.readouterr().out
    assert "interrupted" in printed
    assert str(arguments.run_dir / "model.zip") in printed
    assert "--resume" in printed
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps == 11
    load_policy(arguments.run_dir)
    assert main(replace(arguments, eval_every=1000, resume=True)) == 0
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps >= 16


def test_a_warm_start_that_was_interrupted_is_done_when_the_run_is_resumed(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = replace(arguments, warm_start=True)
    calls: list[str] = []

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_agent, "_warm_start", stopped)
        assert main(arguments) == 130
    monkeypatch.setattr(train_agent, "_warm_start", lambda *_: calls.append("warm start"))
    assert main(replace(arguments, resume=True)) == 0
    assert calls == ["warm start"]
    assert main(replace(arguments, resume=True, timesteps=24)) == 0
    assert calls == ["warm start"]


def test_the_warm_start_is_on_unless_switched_off_and_trains_the_models_own_network(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def short(policy: Any, envs: Any, federations: Any, *_: Any) -> dict[str, float]:
        seen.append(policy)
        assert [federation.config.num_clients for federation in federations] == [3]
        assert [federation.config for federation in federations] == [
            env.config for env in envs.env_method("get_wrapper_attr", "federation")
        ]
        return {"cloning_loss": 0.5}

    monkeypatch.setattr(train_agent, "warm_start", short)
    main(arguments)
    assert seen == []
    main(replace(arguments, warm_start=True, overwrite=True))
    assert len(seen) == 1
    assert type(seen[0]).__name__ == "TrustNet"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo": "nope"}, r"'nope'; there are: ppo"),
        ({"env_id": "OptiGrad/Nope-v0"}, r"'OptiGrad/Nope-v0'; there are: .*OptiGrad/Digits-v0"),
        ({"env_id": "CartPole-v1"}, r"OptiGrad/Digits-v0"),
        ({"env_id": "no id"}, r"OptiGrad/Digits-v0"),
        ({"timesteps": 0}, "timesteps"),
        ({"eval_every": 0}, "eval-every"),
        ({"eval_episodes": 0}, "eval-episodes"),
        ({"num_clients": 0}, "num_clients.*0"),
        ({"num_clients": 10**6}, "num_clients.*1000000"),
        ({"n_envs": 0}, "n-envs.*0"),
        ({"seed": -1}, "seed.*-1"),
    ],
)
def test_a_run_that_cannot_work_is_refused_before_anything_is_written_or_deleted(
    arguments: Arguments, changes: dict[str, Any], message: str
) -> None:
    arguments.run_dir.mkdir(parents=True)
    (arguments.run_dir / "config.json").write_text("{}")
    (arguments.run_dir / "model.zip").write_text("an old run")
    before = contents(arguments.run_dir)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        main(replace(arguments, overwrite=True, **changes))
    assert contents(arguments.run_dir) == before


def test_on_the_command_line_a_mistake_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "train_agent.py", "--algo", "nope", "--run-dir", str(tmp_path / "run")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines() == ["train_agent: unknown algorithm 'nope'; there are: ppo"]
    assert answer.stdout == ""
    assert not (tmp_path / "run").exists()
