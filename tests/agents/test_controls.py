"""The fit of the controls: repeatable, on training federations and train attacks alone, and what is committed."""

import shlex
from pathlib import Path
from typing import Annotated, get_type_hints

import numpy as np
import pytest
import torch
import tyro

from agents.controls import COMMAND, Controls, Rounds, command, fit, fit_logistic, main, record_rounds
from agents.warm_start import mean_gap
from fl_core.aggregation.learned import fitted
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAIN_ATTACKS, TRAINING_SPLITS

NAMES = ("logistic", "feature_weights")
SMALL = Controls(num_clients=5, federations=2, rounds=24, population=4, elite=2, screening=1, iterations=2)


def quiet(_: int) -> None:
    """A progress bar that nobody sees."""


def test_a_fit_repeats_itself_and_another_seed_gives_another(tmp_path: Path) -> None:
    one, again = fit(SMALL, quiet), fit(SMALL, quiet)
    assert one == again
    other = fit(Controls(**{**vars(SMALL), "seed": 1}), quiet)
    assert other["logistic"]["weights"] != one["logistic"]["weights"]
    assert other["feature_weights"]["cut_off"] != one["feature_weights"]["cut_off"]


def test_the_progress_told_is_the_rounds_and_the_candidates() -> None:
    told: list[int] = []
    fit(SMALL, told.append)
    assert sum(told) == 24 + 4 * (15 * 1 + 2)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_numbers_come_from_the_committed_command(name: str) -> None:
    content, controls = fitted(name), Controls()
    assert content["command"] == COMMAND == command(controls)
    assert content["seed"] == controls.seed
    assert content["rounds"] == controls.rounds
    assert content["num_clients"] == controls.num_clients
    assert content["split_seeds"] == list(range(TRAINING_SPLITS, TRAINING_SPLITS + controls.federations))
    assert max(content["split_seeds"]) < EVALUATION_SPLIT
    assert set(content["attacks"]) == {*TRAIN_ATTACKS, "none"}


@pytest.mark.slow
def test_the_committed_command_gives_rules_as_good_as_the_committed_ones() -> None:
    # Not the same digits: another processor's sums end in other ones, and the recorded federations go other ways. Then
    # the search of feature_weights may end at other features that are worth as much.
    contents = fit(Controls(), quiet)
    for name in NAMES:
        assert contents[name]["mean_gap"] == pytest.approx(fitted(name)["mean_gap"], abs=3e-3)
    assert contents["logistic"]["weights"] == pytest.approx(fitted("logistic")["weights"], rel=0.1, abs=0.05)


def test_settings_that_are_not_the_defaults_stand_in_the_command() -> None:
    assert command(Controls(rounds=7, seed=3)) == f"{COMMAND} --rounds 7 --seed 3"


def test_main_writes_a_file_for_each_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(SMALL, tmp_path / "numbers")
    assert sorted(path.name for path in (tmp_path / "numbers").iterdir()) == ["feature_weights.json", "logistic.json"]
    assert "feature_weights: mean oracle gap" in capsys.readouterr().out


class _Trusting(torch.nn.Module):
    """A policy that trusts everybody by half."""

    def score_and_value(
        self, fingerprint: torch.Tensor, mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(fingerprint.shape[:-1]), torch.zeros(len(fingerprint))


def test_the_gap_is_that_of_the_warm_start() -> None:
    recordings = record_rounds(SMALL, np.random.default_rng(0), quiet)
    policy: torch.nn.Module = _Trusting()
    half = Rounds(recordings).gap(lambda observation: torch.full(observation.shape[:-1], 0.5))
    assert half == pytest.approx(mean_gap(policy, recordings), abs=1e-6)  # type: ignore[arg-type]


def test_logistic_regression_tells_the_attackers_of_its_rounds_from_the_honest() -> None:
    recordings = record_rounds(SMALL, np.random.default_rng(0), quiet)
    _, trust = fit_logistic(recordings)
    observation = torch.cat([recording.rounds.observation for recording in recordings])
    corrupted = torch.cat([recording.rounds.corrupted for recording in recordings])
    assert corrupted.any()
    assert trust(observation)[~corrupted].mean() > trust(observation)[corrupted].mean() + 0.2


@pytest.mark.parametrize("field", ["rounds", "population", "iterations", "num_clients"])
def test_a_fit_of_impossible_size_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field.replace('_', '-')} must be at least 1, got 0"):
        Controls(**{field: 0})


def test_an_elite_must_be_a_part_of_the_population() -> None:
    with pytest.raises(ValueError, match="elite=4 must be smaller than population=4"):
        Controls(population=4, elite=4)


def test_the_command_is_one_that_the_program_takes() -> None:
    controls = Controls(num_clients=7, rounds=24, seed=3)
    words = shlex.split(command(controls).removeprefix(COMMAND))
    assert tyro.cli(main_arguments, args=words) == controls


def main_arguments(controls: Annotated[Controls, tyro.conf.arg(name="")], out: Path = Path()) -> Controls:
    return controls


def test_main_takes_flags_as_the_command_has_them() -> None:
    assert (
        get_type_hints(main, include_extras=True)["controls"]
        == get_type_hints(main_arguments, include_extras=True)["controls"]
    )
