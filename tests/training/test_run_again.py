"""A run directory that is there already: refused, overwritten, resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stable_baselines3 import PPO

from agents import load_policy, training
from agents.callbacks import RoundCurves
from agents.settings import TrainingSettings, settings_of_run
from train_agent import main, parse

from .runs import contents, timesteps


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in the ``at``-th time step."""
    on_step = RoundCurves._on_step

    def stop(self: RoundCurves) -> bool:
        if self.num_timesteps >= at:
            raise KeyboardInterrupt
        return on_step(self)

    monkeypatch.setattr(RoundCurves, "_on_step", stop)


def test_an_existing_run_is_refused_and_left_alone(arguments: TrainingSettings) -> None:
    main(arguments)
    before = contents(arguments.run_dir)
    with pytest.raises(ValueError, match=r"exists already.*--resume.*--overwrite"):
        main(arguments)
    assert contents(arguments.run_dir) == before


def test_overwriting_begins_a_new_run(arguments: TrainingSettings) -> None:
    main(arguments)
    main(replace(arguments, overwrite=True, timesteps=8, seed=5))
    assert json.loads((arguments.run_dir / "config.json").read_text())["seed"] == 5
    assert timesteps(arguments.run_dir)[-1] == 8
    assert {path.name for path in (arguments.run_dir / "checkpoints").iterdir()} == {"model_8.zip"}


def test_overwriting_never_deletes_what_is_no_run(arguments: TrainingSettings, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(ValueError, match="not a run directory"):
        main(replace(arguments, run_dir=tmp_path, overwrite=True))
    assert (tmp_path / "notes.txt").read_text() == "keep me"


def test_resuming_goes_on_to_the_larger_number_of_timesteps(arguments: TrainingSettings) -> None:
    main(arguments)
    first = timesteps(arguments.run_dir)
    assert main(replace(arguments, resume=True, timesteps=32)) == 0
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps == 32
    after = timesteps(arguments.run_dir)
    assert after[: len(first)] == first
    assert after[-1] == 32
    assert len(after) == len(set(after))
    assert (arguments.run_dir / "checkpoints" / "model_32.zip").exists()


def test_after_resuming_the_config_says_how_long_the_run_is(arguments: TrainingSettings) -> None:
    main(arguments)
    main(replace(arguments, resume=True, timesteps=32))
    assert json.loads((arguments.run_dir / "config.json").read_text())["timesteps"] == 32


def test_resuming_a_finished_run_changes_nothing(arguments: TrainingSettings) -> None:
    main(arguments)
    before = load_policy(arguments.run_dir).state_dict()
    main(replace(arguments, resume=True))
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps == 16
    assert all(torch.equal(value, before[name]) for name, value in load_policy(arguments.run_dir).state_dict().items())


def test_resuming_to_fewer_timesteps_than_are_done_is_refused_with_both_numbers(arguments: TrainingSettings) -> None:
    main(arguments)
    before = contents(arguments.run_dir)
    with pytest.raises(ValueError, match=r"timesteps 8: .* has 16 behind it; give at least 16"):
        main(replace(arguments, resume=True, timesteps=8))
    assert contents(arguments.run_dir) == before


def test_a_run_whose_last_rollout_went_beyond_its_timesteps_may_be_resumed_as_it_was(
    arguments: TrainingSettings,
) -> None:
    main(replace(arguments, timesteps=12))
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps == 16
    assert main(replace(arguments, timesteps=12, resume=True)) == 0


def test_resuming_with_other_settings_is_refused_naming_them(arguments: TrainingSettings) -> None:
    main(arguments)
    before = contents(arguments.run_dir)
    with pytest.raises(ValueError, match=r"num_clients was 3, is 4, seed was 0, is 9"):
        main(replace(arguments, resume=True, timesteps=32, seed=9, num_clients=4))
    assert contents(arguments.run_dir) == before


def test_resuming_nothing_is_refused(arguments: TrainingSettings) -> None:
    with pytest.raises(ValueError, match="nothing to resume"):
        main(replace(arguments, resume=True))
    assert not arguments.run_dir.exists()


def test_ctrl_c_saves_the_model_says_where_and_the_run_can_go_on(
    arguments: TrainingSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    arguments: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = replace(arguments, warm_start="clone+gradient")
    calls: list[str] = []

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_warm_start", stopped)
        assert main(arguments) == 130
    monkeypatch.setattr(training, "_warm_start", lambda *_: calls.append("warm start"))
    assert main(replace(arguments, resume=True)) == 0
    assert calls == ["warm start"]
    assert main(replace(arguments, resume=True, timesteps=24)) == 0
    assert calls == ["warm start"]


def test_a_resumed_run_needs_none_of_its_settings_said_again(
    arguments: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(arguments)
    again = parse(["--resume", "--run-dir", str(arguments.run_dir), "--timesteps", "24", "--no-progress"])
    assert again == replace(arguments, resume=True, timesteps=24)
    assert main(again) == 0
    assert PPO.load(arguments.run_dir / "model.zip", device="cpu").num_timesteps == 24


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("edited", [True, False])
def test_a_resumed_run_reads_its_own_copy_of_the_algorithms_settings(
    edited: bool, checkpoint: bool, arguments: TrainingSettings
) -> None:
    assert arguments.hyperparams is not None
    main(arguments)
    if not checkpoint:  # killed before the first: it begins again
        (arguments.run_dir / "checkpoint.pkl").unlink()
    if edited:
        arguments.hyperparams.write_text("default: {n_steps: 4, batch_size: 4}")
    else:
        arguments.hyperparams.unlink()
    assert main(replace(arguments, resume=True, timesteps=24)) == 0
    model = PPO.load(arguments.run_dir / "model.zip", device="cpu")
    assert (model.num_timesteps, model.n_steps) == (24, 8)


def test_settings_may_lie_in_the_run_that_is_overwritten(arguments: TrainingSettings) -> None:
    main(arguments)
    copy = arguments.run_dir / "hyperparams.yml"
    content = copy.read_bytes()
    assert main(replace(arguments, overwrite=True, hyperparams=copy)) == 0
    assert copy.read_bytes() == content


def test_a_flag_that_contradicts_the_run_is_refused_naming_it(arguments: TrainingSettings) -> None:
    main(arguments)
    command = ["--resume", "--run-dir", str(arguments.run_dir), "--seed", "3", "--algo", "a2c", "--no-progress"]
    with pytest.raises(ValueError, match=r"algo was 'ppo', is 'a2c', seed was 0, is 3"):
        main(parse(command))


@pytest.mark.parametrize("name", ["hyperparams", "data_dir"])
def test_a_path_in_a_runs_settings_that_is_none_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"algo": "ppo", "timesteps": 1, "seed": 0, name: 5}))
    with pytest.raises(ValueError, match=rf"config\.json is damaged: {name} must be a path or null, got 5"):
        settings_of_run(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"n_steps": 8, "clip_rnge": 0.2}, r"own\.yml does not fit ppo: .*clip_rnge"),
        ({"n_steps": 8, "policy_kwargs": "dict(net_arch=[64])"}, r"own\.yml: policy_kwargs must be a mapping"),
        ({"n_steps": 1, "batch_size": 1}, r"own\.yml does not fit ppo: .*batch_size"),
    ],
)
def test_settings_that_only_the_algorithm_can_refuse_cost_no_old_run(
    arguments: TrainingSettings, tmp_path: Path, entry: dict[str, Any], message: str
) -> None:
    main(arguments)
    before = contents(arguments.run_dir)
    own = tmp_path / "own.yml"
    own.write_text(yaml.safe_dump({"default": entry}))
    with pytest.raises(ValueError, match=message):
        main(replace(arguments, overwrite=True, hyperparams=own))
    assert contents(arguments.run_dir) == before
