"""What the data set of a training takes, from the command line to the federations."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
from PIL import Image

import evaluate
from agents import training
from agents.environments import make_env
from agents.evaluation.configuration import make_grid
from agents.run_directory import CONFIG
from agents.settings import TrainingSettings
from fl_core import Federation
from optigrad_env.env import federated
from train_agent import main, parse


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two classes, twenty patients of twenty images each."""
    generator = np.random.default_rng(0)
    for patient in range(40):
        folder = tmp_path / "scans" / "train" / ("ill" if patient % 2 else "well")
        folder.mkdir(parents=True, exist_ok=True)
        for scan in range(20):
            pixels = generator.integers(100 * (patient % 2), 100 * (patient % 2) + 100, (10, 10)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"p{patient}_{scan}.png")
    return tmp_path / "scans"


def test_images_of_a_patient_stay_together_where_a_pattern_says_whose_they_are(
    arguments: TrainingSettings, scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    make_env = training.make_env
    monkeypatch.setattr(
        training, "make_env", lambda *args, **kwargs: made.append(make_env(*args, **kwargs)) or made[-1]
    )
    wanted = {"env_id": "OptiGrad/ImageFolder-v0", "data_dir": scans}
    options = ("image_size=8", r"group_pattern=^(\w+?)_")
    settings = replace(arguments, **wanted, dataset_options=options, scenarios="default", num_clients=2)
    assert main(settings) == 0
    federation = federated(made[0]).federation
    assert federation.dataset.image_shape[1:] == (8, 8)
    assert federation.dataset.groups is not None
    assert len(federation.dataset.groups.unique()) == 40
    assert json.loads((settings.run_dir / CONFIG).read_text())["dataset_options"] == list(options)
    resumed = parse(["--resume", "--run-dir", str(settings.run_dir), "--timesteps", "24"])
    assert resumed.dataset_options == options
    assert main(resumed) == 0
    with pytest.raises(ValueError, match=r"dataset_options was .*only timesteps may change"):
        main(parse(["--resume", "--run-dir", str(settings.run_dir), "--dataset-options", "image_size=9"]))


def test_what_is_not_said_of_the_data_set_is_the_environments(scans: Path) -> None:
    env = make_env("OptiGrad/ImageFolder-v0", data_dir=scans, dataset_options={"group_pattern": "^(p[0-9])"})
    assert dict(federated(env).federation.config.dataset_options) == {"image_size": 32, "group_pattern": "^(p[0-9])"}


def test_a_policy_is_benchmarked_on_the_patients_that_it_was_trained_without(
    scans: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """By the command that the training ended with, in what it says of the data."""
    settings = TrainingSettings(
        env_id="OptiGrad/ImageFolderMasked-v0",
        data_dir=scans,
        dataset_options=("image_size=8", "group_pattern=^(p[0-9]+)_"),
    )
    program, name, *flags = shlex.split(training._benchmark(settings, tmp_path / "run"))
    assert (program, name, flags[:4]) == (
        "python",
        "evaluate.py",
        ["--policies", str(tmp_path / "run"), "--env-id", "OptiGrad/ImageFolder-v0"],
    )
    arguments = tyro.cli(evaluate.Arguments, args=[*flags[2:], "--rules", "fedavg", "--seeds", "1"])
    federation = Federation(make_grid(*evaluate._layers(arguments)).config("OptiGrad/ImageFolder-v0"))
    assert federation.dataset.image_shape == (1, 8, 8)
    patients = federation.dataset.groups
    assert patients is not None and len(patients.unique()) == 40
    assert not set(patients[federation.dataset.train].tolist()) & set(patients[federation.dataset.test].tolist())
    assert training._benchmark(TrainingSettings(), Path("runs/a b")) == "python evaluate.py --policies 'runs/a b'"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("image_size",), "NAME=VALUE.*'image_size'"),
        (("=3",), "NAME=VALUE.*'=3'"),
        (("image_size=3", "image_size=4"), "image_size is given twice"),
    ],
)
def test_what_is_no_option_is_refused_before_anything_is_made(
    arguments: TrainingSettings, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        main(replace(arguments, dataset_options=options))
    assert not arguments.run_dir.exists()


def test_an_option_that_the_data_set_does_not_know_is_refused(arguments: TrainingSettings) -> None:
    with pytest.raises(ValueError, match="size_of_image"):
        main(replace(arguments, dataset_options=("size_of_image=3",)))
    assert not arguments.run_dir.exists()
