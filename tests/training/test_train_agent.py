"""The training command, called as a function on runs of a few rounds."""

import json
import math
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import train_agent
from agents import TrustAggregator, load_policy, training
from agents.algorithms import algorithm_names
from agents.deployed import read_card
from agents.run_directory import LOCK
from agents.settings import TrainingSettings
from fl_core.aggregation import TrustWeighting
from train_agent import main, parse

from .runs import contents, timesteps

ROOT = Path(train_agent.__file__).parent


def test_a_run_leaves_everything_that_evaluation_resuming_and_curves_need(
    arguments: TrainingSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 0
    directory = arguments.run_dir
    names = {path.name for path in directory.iterdir()} - {LOCK}
    files = {"config.json", "model.zip", "checkpoint.pkl", "policy.safetensors", "policy.json", "evaluations.npz"}
    assert names == files | {"card.md", "tensorboard", "checkpoints", "hyperparams.yml"}
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


def test_a_policy_is_deployed_with_the_safeguard_unless_it_is_switched_off(arguments: TrainingSettings) -> None:
    assert main(arguments) == 0
    assert read_card(arguments.run_dir)["weighting"]["safeguard"] is True
    parsed = parse(["--no-safeguard", "--run-dir", str(arguments.run_dir)])
    assert parsed.safeguard is False
    assert main(replace(arguments, safeguard=False, overwrite=True)) == 0
    assert TrustAggregator(load_policy(arguments.run_dir)).weighting == TrustWeighting()


def test_equal_seeds_train_equal_policies_and_other_seeds_others(arguments: TrainingSettings, tmp_path: Path) -> None:
    policies = []
    for i, seed in enumerate((0, 0, 1)):
        directory = tmp_path / f"run_{i}"
        main(replace(arguments, run_dir=directory, seed=seed))
        model = PPO.load(directory / "model.zip", device="cpu")
        policies.append(torch.cat([value.flatten() for value in model.policy.state_dict().values()]))
    assert torch.equal(policies[0], policies[1])
    assert not torch.equal(policies[0], policies[2])


def test_the_weight_of_cloning_reaches_the_warm_start(
    arguments: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[float] = []

    def short(policy: Any, envs: Any, federations: Any, lengths: Any, *_: Any, **__: Any) -> dict[str, float]:
        weights.append(lengths.clone_weight)
        return {}

    monkeypatch.setattr(training, "warm_start", short)
    main(replace(arguments, warm_start="gradient"))
    main(replace(arguments, warm_start="gradient", clone_weight=0.3, overwrite=True))
    assert weights == [0.0, 0.3]


@pytest.mark.parametrize("kind", ["clone+gradient", "clone"])
def test_the_warm_start_trains_the_models_own_network_on_data_like_its_environments(
    kind: Any, arguments: TrainingSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def short(policy: Any, envs: Any, federations: Any, *_: Any, **options: Any) -> dict[str, float]:
        seen.append((policy, options["kind"]))
        assert [federation.config.num_clients for federation in federations] == [3]
        assert [federation.config for federation in federations] == [
            env.config for env in envs.env_method("get_wrapper_attr", "federation")
        ]
        return {"cloning_loss": 0.5}

    monkeypatch.setattr(training, "warm_start", short)
    main(arguments)
    assert seen == []
    main(replace(arguments, warm_start=kind, overwrite=True))
    assert [(type(policy).__name__, found) for policy, found in seen] == [("TrustNet", kind)]


def test_unless_switched_off_there_is_a_whole_warm_start() -> None:
    assert TrainingSettings().warm_start == "clone+gradient"


def test_a_warm_start_that_does_not_fit_into_its_memory_is_shortened_and_says_by_which_flag(
    arguments: TrainingSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    main(replace(arguments, warm_start="clone+gradient", warm_start_memory=1e-6))
    assert (
        "of its length, for updates of this size (--warm-start-memory is how to ask for more)"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("name", algorithm_names())
def test_every_algorithm_runs_warm_started_and_its_policy_deploys_the_same_way(
    name: str,
    arguments: TrainingSettings,
    short_rollouts: Callable[[str, Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = training.WarmStart(rounds=8, clone_steps=2, gradient_steps=2, batch=2, samples=8)
    monkeypatch.setattr(training, "WarmStart", lambda: lengths)
    monkeypatch.setattr(training, "affordable", lambda _, wanted, memory: {"--warm-start-length": wanted})
    settings = replace(arguments, algo=name, hyperparams=short_rollouts(name, tmp_path), warm_start="clone+gradient")
    assert main(settings) == 0
    policy = load_policy(arguments.run_dir)
    assert policy(torch.zeros(25, 6)).shape == (25,)
    assert read_card(arguments.run_dir)["provenance"]["algorithm"] == name
    assert timesteps(arguments.run_dir)[-1] == 16


def test_a_quiet_run_prints_nothing(arguments: TrainingSettings, capfd: pytest.CaptureFixture[str]) -> None:
    main(replace(arguments, quiet=True))
    assert capfd.readouterr() == ("", "")


def test_a_run_for_batch_systems_prints_an_object_a_line_curves_among_them(
    arguments: TrainingSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    main(replace(arguments, log_format="json"))
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "start"
    assert kinds[-1] == "summary"
    assert kinds.count("evaluation") == len(timesteps(arguments.run_dir))
    curves = {name for event in events if event["event"] == "curves" for name in event}
    assert {"reward_terms/oracle_gap", "eval/mean_round_reward", "time/steps_per_second"} <= curves
    assert any(name.startswith("regret/") for name in curves)
    assert events[-1]["timesteps"] == 16
    assert events[-1]["best_reward"] == max(e["mean_reward"] for e in events if e["event"] == "evaluation")


def test_the_summary_says_what_was_reached_and_what_to_do_next(
    arguments: TrainingSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    printed = capsys.readouterr().out
    with np.load(arguments.run_dir / "evaluations.npz") as kept:
        best = kept["results"].mean(axis=1).max()
    assert f"best {best:+.4f}" in printed
    assert f"benchmark it: python evaluate.py --policies {arguments.run_dir}\n" in printed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algo": "nope"}, r"'nope'; there are: ppo, a2c"),
        ({"algo": "dqn"}, "'dqn' cannot work here"),
        ({"distribution": "cauchy"}, "'cauchy'; there are: squashed"),
        ({"hyperparams": Path("nowhere.yml")}, "nowhere.yml"),
        ({"warm_start": "maybe"}, "'maybe'; there are: clone\\+gradient"),
        ({"env_id": "OptiGrad/Nope-v0"}, r"'OptiGrad/Nope-v0'; there are: .*OptiGrad/Digits-v0"),
        ({"env_id": "CartPole-v1"}, r"OptiGrad/Digits-v0"),
        ({"env_id": "no id"}, r"OptiGrad/Digits-v0"),
        ({"warm_start_memory": 0.0}, "warm-start-memory must be greater than 0 and finite, got 0.0"),
        ({"warm_start_length": -1.0}, "warm-start-length must be greater than 0 and finite, got -1.0"),
        ({"warm_start_length": math.inf}, "warm-start-length must be greater than 0 and finite, got inf"),
        ({"warm_start_memory": math.inf}, "warm-start-memory must be greater than 0 and finite, got inf"),
        ({"clone_weight": -1.0}, "clone-weight must be 0 or more and finite, got -1.0"),
        ({"warm_start_length": 2.0}, "warm-start-length 2.0 is for the warm start, which --warm-start none leaves out"),
        ({"warm_start_memory": 4.0}, "warm-start-memory 4.0 is for the warm start, which --warm-start none leaves out"),
        ({"clone_weight": 0.5, "warm_start": "clone"}, "clone-weight 0.5 is for the gradient, .* clone leaves out"),
        ({"update_clip": "mean"}, "'mean'; there are: none, median"),
        ({"select_by": "loss"}, "'loss'; there are: reward, accuracy"),
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
    arguments: TrainingSettings, changes: dict[str, Any], message: str
) -> None:
    arguments.run_dir.mkdir(parents=True)
    (arguments.run_dir / "config.json").write_text("{}")
    (arguments.run_dir / "model.zip").write_text("an old run")
    before = contents(arguments.run_dir)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        main(replace(arguments, overwrite=True, **changes))
    assert contents(arguments.run_dir) == before


def test_with_clients_that_come_and_go_the_most_of_them_are_tried_before_anything_is_written(
    arguments: TrainingSettings,
) -> None:
    with pytest.raises(ValueError, match=r"alpha=0\.1 left a client with fewer than .* for 90 clients"):
        main(replace(arguments, env_id="OptiGrad/DigitsMasked-v0", num_clients=90))
    assert not arguments.run_dir.exists()


def test_a_run_directory_that_cannot_be_made_is_refused_naming_it(arguments: TrainingSettings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot make the run directory .*file/run: Not a directory"):
        main(replace(arguments, run_dir=tmp_path / "file" / "run"))


def test_a_run_leaves_no_thread_behind(arguments: TrainingSettings, tmp_path: Path) -> None:
    main(arguments)  # what is started once a process
    before = threading.active_count()
    main(replace(arguments, run_dir=tmp_path / "second"))
    assert threading.active_count() == before


def test_on_the_command_line_a_mistake_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "train_agent.py", "--algo", "nope", "--run-dir", str(tmp_path / "run")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 1
    assert answer.stderr.strip().splitlines() == [
        "train_agent: unknown algorithm 'nope'; there are: ppo, a2c, trpo, sac, td3, tqc"
    ]
    assert answer.stdout == ""
    assert not (tmp_path / "run").exists()
