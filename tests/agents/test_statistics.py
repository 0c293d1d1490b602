"""Statistics against scipy, numpy, numbers worked out by hand, and the published definitions of rliable."""

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from agents.statistics import (
    Estimate,
    estimate,
    estimate_improvement,
    interquartile_mean,
    main,
    mean,
    paired_scores,
    performance_profile,
    probability_of_improvement,
    read_results,
    resampled,
    score_matrix,
)

# The example in rliable's own tests (google-research/rliable, tests/rliable/metrics_test.py): three runs against four.
RLIABLE_X = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 1.0], [2.0, 1.0]])
RLIABLE_Y = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])


def row(rule: str = "a", seed: int = 0, attack: str = "alie", **more: Any) -> dict[str, Any]:
    fixed = {"env_id": "e", "num_clients": 10, "heterogeneity": "0.5", "malicious_fraction": 0.3}
    return {"rule": rule, "seed": seed, "attack": attack, **fixed, **more}


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (5, 4), (7, 3), (10, 20), (2, 5)])
def test_the_interquartile_mean_is_scipys_trimmed_mean(shape: tuple[int, int]) -> None:
    scores = np.random.default_rng(shape).normal(size=shape)
    assert interquartile_mean(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None))


def test_the_interquartile_mean_of_many_matrices_is_that_of_each() -> None:
    scores = np.random.default_rng(0).normal(size=(6, 5, 3))
    assert interquartile_mean(scores) == pytest.approx([float(interquartile_mean(one)) for one in scores])


def test_an_outlier_moves_the_mean_and_not_the_interquartile_mean() -> None:
    scores = np.arange(1.0, 9.0).reshape(4, 2)  # the middle half: 3, 4, 5, 6
    spoiled = scores.copy()
    spoiled[3, 1] = 1e6
    assert interquartile_mean(scores) == interquartile_mean(spoiled) == 4.5
    assert mean(spoiled) > 1e5


def test_the_numbers_that_rliable_publishes_for_its_example() -> None:
    assert interquartile_mean(RLIABLE_X) == 1.5
    assert interquartile_mean(RLIABLE_Y) == 2.0
    assert probability_of_improvement(RLIABLE_X, RLIABLE_Y) == pytest.approx(1 / 3)


def test_the_probability_of_improvement_is_mann_whitneys_u_over_the_number_of_pairs() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 4, size=(6, 5)).astype(float), rng.integers(0, 4, size=(9, 5)).astype(float)
    by_task = [stats.mannwhitneyu(x[:, t], y[:, t], alternative="greater").statistic / 54 for t in range(5)]
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(by_task))
    assert probability_of_improvement(x, x) == 0.5


def test_a_frozen_example_worked_out_by_hand() -> None:
    x, y = np.array([[90.0, 60.0], [80.0, 70.0]]), np.array([[85.0, 60.0], [75.0, 50.0]])
    # Pairs, task 0: 90>85, 90>75, 80<85, 80>75: 3 of 4. Task 1: 60=60 (½), 60>50, 70>60, 70>50: 3½ of 4.
    assert probability_of_improvement(x, y) == pytest.approx((0.75 + 0.875) / 2)
    assert interquartile_mean(x) == pytest.approx((70 + 80) / 2)
    assert performance_profile(x, np.array([0.0, 60.0, 75.0, 90.0])).tolist() == [1.0, 0.75, 0.5, 0.0]


def test_a_performance_profile_is_the_share_above_each_threshold_and_never_rises() -> None:
    scores, thresholds = np.random.default_rng(1).uniform(size=(8, 5)), np.linspace(0, 1, 21)
    profile = performance_profile(scores, thresholds)
    assert profile == pytest.approx([(scores > t).mean() for t in thresholds])
    assert (np.diff(profile) <= 0).all()


def test_resampling_is_stratified_values_stay_with_their_task() -> None:
    scores = np.arange(5.0)[:, None] + 100 * np.arange(3.0)
    for shared in (True, False):
        drawn = resampled(scores, repetitions=50, shared_seeds=shared)
        assert drawn.shape == (50, 5, 3)
        assert (drawn // 100 == np.arange(3)).all()


def test_shared_seeds_stay_together_and_others_do_not() -> None:
    scores = np.arange(6.0)[:, None] + 100 * np.arange(4.0)
    together, apart = (resampled(scores, repetitions=40, shared_seeds=shared) % 100 for shared in (True, False))
    assert (together == together[:, :, :1]).all()
    assert not (apart == apart[:, :, :1]).all()


def test_the_interval_of_independent_runs_is_near_the_normal_one() -> None:
    scores = np.random.default_rng(5).normal(size=(200, 1))
    found = estimate(scores, mean)
    half = 1.96 * scores.std(ddof=1) / np.sqrt(200)
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=0.02)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.02)


def test_a_seeds_luck_in_many_scenarios_is_one_piece_of_luck() -> None:
    luck = np.random.default_rng(2).normal(size=(10, 1))
    alone, repeated = estimate(luck), estimate(np.repeat(luck, 50, axis=1))
    assert repeated.high - repeated.low == pytest.approx(alone.high - alone.low)
    too_narrow = estimate(np.repeat(luck, 50, axis=1), shared_seeds=False)
    assert too_narrow.high - too_narrow.low < (alone.high - alone.low) / 3


def test_one_seed_has_no_interval_and_no_data_no_value() -> None:
    alone = estimate(np.array([[2.0, 4.0]]))
    assert (alone.value, alone.seeds) == (3.0, 1)
    assert np.isnan([alone.low, alone.high]).all()
    for shape in ((0, 3), (3, 0)):
        nothing = estimate(np.empty(shape))
        assert np.isnan(nothing.value)
        assert nothing.seeds == 0


def test_estimates_show_intervals_only_where_there_are_any() -> None:
    assert str(Estimate(1.234, 0.5, 2.0, 5)) == "1.23 [0.50, 2.00]"
    assert str(Estimate(1.234, float("nan"), float("nan"), 1)) == "1.23"


def test_a_paired_difference_has_no_error_where_a_seeds_luck_is_the_same_for_both() -> None:
    luck = np.random.default_rng(0).normal(size=6)
    rows = [
        row(rule, seed, attack, test_accuracy=0.5 + offset + 0.1 * luck[seed])
        for rule, offset in (("a", 0.03), ("b", 0.0))
        for seed in range(6)
        for attack in ("alie", "ipm")
    ]
    ours, theirs = paired_scores(rows, "a", "b", "test_accuracy", 100)
    found = estimate(ours - theirs)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))
    assert found.seeds == 6


def test_a_paired_difference_leaves_out_what_only_one_of_them_has() -> None:
    rows = [row("a", s, t, test_accuracy=0.9) for s in range(3) for t in ("x", "y")]
    rows += [row("b", s, t, test_accuracy=0.8) for s in range(3) for t in ("x", "y") if (s, t) != (0, "y")]
    rows += [row("b", s, "z", test_accuracy=0.1) for s in range(3)]
    ours, theirs = paired_scores(rows, "a", "b", "test_accuracy", 100)
    assert ours.size == theirs.size == 4
    assert (ours - theirs).mean() == pytest.approx(10)


@pytest.mark.parametrize("damaged", ["a", "b"])
def test_a_seed_without_a_figure_is_left_out_on_whichever_side_it_is(damaged: str) -> None:
    rows = [row("a", s, test_accuracy=0.9 + 0.01 * s) for s in range(3)]
    rows += [row("b", s, test_accuracy=0.8) for s in range(3)]
    next(one for one in rows if one["rule"] == damaged and one["seed"] == 1)["test_accuracy"] = float("nan")
    ours, theirs = paired_scores(rows, "a", "b", "test_accuracy", 100)
    assert (ours - theirs).ravel().tolist() == pytest.approx([10, 12])


def test_a_matrix_loses_the_task_that_is_rarely_there_and_keeps_the_seeds() -> None:
    rows = [row(seed=s, attack=t, x=float(s)) for s in range(4) for t in ("p", "q", "r")]
    rows[2]["x"] = None
    matrix, seeds, tasks = score_matrix(rows, "x")
    assert matrix.shape == (len(seeds), len(tasks))
    assert matrix.size == max(4 * 2, 3 * 3)
    assert not np.isnan(matrix).any()


def test_the_improvements_interval_holds_it_and_stays_a_probability() -> None:
    rng = np.random.default_rng(4)
    x = rng.normal(size=(8, 3))
    found = estimate_improvement(x + 0.3, x)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.value > 0.5


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_rows_come_back_with_types_and_older_files_get_their_heterogeneity(tmp_path: Path) -> None:
    given = [{"rule": "1", "attack": "alie", "held_out": True, "alpha": 0.5, "seed": 0, "regret": None}]
    given += [{"rule": "2", "attack": "none", "held_out": False, "alpha": None, "seed": 0, "regret": 0.25}]
    first, second = read_results(write(tmp_path / "results.csv", given))
    assert (first["rule"], first["held_out"], first["regret"], first["heterogeneity"]) == ("1", True, None, "0.5")
    assert (second["alpha"], second["regret"], second["heterogeneity"]) == (None, 0.25, "iid")


def test_the_command_prints_paired_differences_with_intervals_or_names_the_rules(tmp_path: Path) -> None:
    rows = [
        row(rule, seed, alpha=0.5, test_accuracy=0.5 + 0.1 * (rule == "a")) for rule in ("a", "b") for seed in (0, 1)
    ]
    path = write(tmp_path / "results.csv", rows)

    def run(rule: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agents.statistics", str(path), rule]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])

    assert "10.00 [10.00, 10.00]" in run("a").stdout
    assert "P 1.00" in run("a").stdout
    refused = run("c")
    assert refused.returncode == 1
    assert "no rule 'c'" in refused.stderr
    assert "a, b" in refused.stderr
    path.unlink()
    missing = run("a")
    assert missing.returncode == 1
    assert missing.stderr.startswith(f"cannot read {path}: No such file")


def test_the_command_tells_shares_of_attackers_and_heterogeneities_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lead = {(0.0, "0.5"): 1, (0.3, "0.5"): 2, (0.6, "0.5"): 4, (0.3, "0.1"): 8}
    rows = [
        row(
            rule,
            seed,
            heterogeneity=alpha,
            malicious_fraction=fraction,
            test_accuracy=0.5 + points / 100 * (rule == "a"),
        )
        for (fraction, alpha), points in lead.items()
        for rule in ("a", "b")
        for seed in (0, 1)
    ]
    main(str(write(tmp_path / "results.csv", rows)), "a")
    told = [line.split("  b")[0].strip() + line.split("  b")[1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert [" ".join(line.split()) for line in told] == [
        "all, malicious 4.67 [4.67, 4.67] P 1.00",
        "0.5, no attack 1.00 [1.00, 1.00] P 1.00",
        "0.5, 30 % malicious 2.00 [2.00, 2.00] P 1.00",
        "0.5, 60 % malicious 4.00 [4.00, 4.00] P 1.00",
        "0.1, 30 % malicious 8.00 [8.00, 8.00] P 1.00",
    ]


HEADER = "rule,seed,heterogeneity,malicious_fraction,test_accuracy"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"# A heading\n\nText, with a comma.\n",
            "has no column rule, seed, malicious_fraction, test_accuracy, alpha;",
        ),
        (b"policy,alpha\ndigits,0.5\n", "has no column rule, seed, malicious_fraction, test_accuracy;"),
        (b"", "has no column rule, seed, malicious_fraction, test_accuracy, alpha;"),
        (b"rule,seed,alpha,malicious_fraction,seconds\na,0,0.5,0.3,1\n", "has no column test_accuracy;"),
        (f"{HEADER}\na,0,0.5,0.3,0.9\na,1,0.5,0.".encode(), ", line 3, is damaged: it has another number of fields"),
        (f"{HEADER}\na,0,0.5,0.3,0.9,7\n".encode(), ", line 2, is damaged: it has another number of fields"),
        (f"{HEADER}\na,0,0.5,0.3,good\n".encode(), ", line 2, is damaged: could not convert string to float: 'good'"),
        (f"{HEADER}\nb,0,0.5,0.3,0.9\n".encode(), "no rule 'a' in .*there are: b"),
        (f"{HEADER}\n".encode(), "no rule 'a' in .*there are: none"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "is no table: "),
        (f"{HEADER}\na,0,0.5,0.3,\xff\n".encode("latin-1"), "is no table: "),
    ],
)
def test_another_file_than_a_table_of_results_is_one_line_that_names_it_and_what_is_missing(
    content: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    with pytest.raises(SystemExit, match=message) as stopped:
        main(str(path), "a")
    assert str(path) in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_the_interval_of_an_improvement_is_that_of_resampled_runs() -> None:
    rng = np.random.default_rng(5)
    ours, theirs = rng.normal(0.3, 1, size=(7, 4)), rng.normal(0, 1, size=(7, 4)).round()
    replicates = probability_of_improvement(resampled(ours), resampled(theirs))
    found = estimate_improvement(ours, theirs)
    assert found.value == pytest.approx(float(probability_of_improvement(ours, theirs)))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])))
