"""The examples run, as anybody would run them, at a small size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents import load_policy
from optigrad_env import TRAIN_ATTACKS

ROOT = Path(__file__).parents[2]
SIZE = ["--env-id", "OptiGrad/Softmax-v0", "--num-clients", "4", "--rounds", "5"]


def ended(example: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "examples" / example), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def run(example: str, *arguments: object) -> str:
    done = ended(example, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_ppo_in_a_single_file_trains_a_policy_that_can_be_deployed(tmp_path: Path) -> None:
    arguments = [*SIZE, "--timesteps", 64, "--rollout", 16, "--num-envs", 2, "--run-dir", tmp_path / "run"]
    printed = run("ppo_single_file.py", *arguments)
    assert printed.count("reward") == 2
    trust = load_policy(tmp_path / "run")(torch.zeros(7, 6))
    assert trust.shape == (7,)
    card = json.loads((tmp_path / "run" / "policy.json").read_text())
    assert card["provenance"]["attacks_seen"] == list(TRAIN_ATTACKS)


def test_the_sweep_goes_on_with_a_study_from_a_file(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason="the sweep needs the extra 'sweep'")
    arguments = [*SIZE, "--timesteps", 64, "--episodes", 2, "--trials", 1, "--study", tmp_path / "study.db"]
    first, second = (run("optuna_sweep.py", *arguments) for _ in range(2))
    assert "best mean reward" in first
    assert "learning_rate" in second
    import optuna

    study = optuna.load_study(study_name="ppo", storage=f"sqlite:///{tmp_path / 'study.db'}")
    assert len(study.trials) == 2
    assert study.trials[0].params != study.trials[1].params


@pytest.mark.parametrize("env_id", ["OptiGrad/Softmax-v0", "OptiGrad/DigitsMasked-v0"])
def test_the_rl_zoo_trains_on_it(tmp_path: Path, env_id: str) -> None:
    pytest.importorskip("rl_zoo3", reason="needs the extra 'zoo'")
    small = ["--env-kwargs", "num_clients:4", "rounds:5", "--n-timesteps", 512, "--eval-freq", -1]
    run("rl_zoo3_ppo.py", "--env", env_id, *small, "--log-folder", tmp_path, "--seed", 0)
    assert len(list(tmp_path.glob(f"ppo/*/{env_id.replace('/', '-')}.zip"))) == 1


@pytest.mark.parametrize(
    ("example", "arguments", "message"),
    [
        ("deploy_policy", ["nope"], "there is no directory 'nope' and no shipped policy"),
        ("ppo_single_file", ["--env-id", "foo"], "unknown environment without a mask 'foo'; there are: OptiGrad/"),
        ("ppo_single_file", ["--env-id", "OptiGrad/DigitsMasked-v0"], "unknown environment without a mask 'OptiGrad/"),
        ("ppo_single_file", ["--rollout", 0], "rollout must be at least 2"),
        ("optuna_sweep", ["--trials", 0], "trials must be at least 1, got 0"),
        ("optuna_sweep", ["--study", "/proc/x/y.db"], "No such file or directory: '/proc/x'"),
    ],
)
def test_a_mistake_in_an_examples_arguments_is_one_line(example: str, arguments: list[object], message: str) -> None:
    if example == "optuna_sweep":
        pytest.importorskip("optuna", reason="the sweep needs the extra 'sweep'")
    done = ended(f"{example}.py", *arguments)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"{example}: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
