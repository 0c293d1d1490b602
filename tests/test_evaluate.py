"""The benchmark command: called as a function on a grid of a few rounds, and as a process that is killed."""

import csv
import errno
import json
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
import tyro

import evaluate
from agents.deployed import save_policy
from agents.evaluation import benchmark as benchmark_module
from agents.evaluation import cells as cells_module
from agents.evaluation import provenance as provenance_module
from agents.evaluation.cells import CellResult
from agents.evaluation.configuration import make_grid
from agents.evaluation.execution import run_grid
from agents.trust_net import TrustNet
from evaluate import Arguments, main

ROOT = Path(evaluate.__file__).parent
REFERENCES = {"oracle", "anchored_oracle", "root_only"}


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    return Arguments(
        rules=("fedavg", "krum"),
        attacks=("sign_flip", "alie"),
        malicious_fraction=(0.0, 0.4),
        heterogeneity=("0.5",),
        seeds=1,
        env_id=("OptiGrad/Softmax-v0",),
        num_clients=(5,),
        rounds=3,
        features=False,
        workers=1,
        out=tmp_path / "results" / "tiny",
        progress=False,
    )


def strict_json(path: Path) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_benchmark_leaves_tables_summary_page_and_pictures(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    policy = save_policy(TrustNet(), tmp_path / "runs" / "mine", {"attacks_seen": ["sign_flip"], "seed": 7})
    assert main(replace(arguments, policies=(str(policy),), features=True)) == 0
    rules = {"mine", "fedavg", "krum"} | REFERENCES
    rows = table(arguments.out)
    assert {row["rule"] for row in rows} == rules
    assert len(rows) == len(rules) * 3
    summary = strict_json(arguments.out / "summary.json")
    assert {entry["rule"] for entry in summary["rules"]} == rules
    assert summary["policies"]["mine on OptiGrad/Softmax-v0"]["provenance"]["seed"] == 7
    assert summary["seeds"] == [0]
    assert summary["versions"]["torch"]
    assert summary["attacks"] == {"sign_flip": "seen by mine", "alie": "held out"}
    drawn = {path.stem for path in (arguments.out / "plots").glob("*.svg")}
    assert drawn >= {"heatmap", "regret_by_fraction", "learning_curves", "trust", "features", "time_accuracy"}
    for name in drawn:
        assert matplotlib.image.imread(arguments.out / "plots" / f"{name}.png").ndim == 3
    for name in ("headline", "merits", "comparison", "seen", "features"):
        assert (arguments.out / "tables" / f"{name}.csv").stat().st_size
        assert r"\toprule" in (arguments.out / "tables" / f"{name}.tex").read_text()
    page = (arguments.out / "report.html").read_text()
    for rule in rules:
        assert f'<th scope="row">{rule}</th>' in page
    printed = capsys.readouterr().out
    assert "3 cells, 6 rules each, 3 rounds; 0 done before" in printed
    assert re.search(r"about \d+ s on 1 workers", printed)
    assert "mine" in printed
    assert str(arguments.out / "report.html") in printed


def test_the_summary_is_made_of_the_rows_of_the_csv(arguments: Arguments) -> None:
    main(replace(arguments, attacks=("alie", "ipm")))
    rows = table(arguments.out)
    for entry in strict_json(arguments.out / "summary.json")["rules"]:
        mine = [row for row in rows if row["rule"] == entry["rule"] and float(row["malicious_fraction"]) > 0]
        assert entry["accuracy"]["value"] == pytest.approx(
            100 * sum(float(row["test_accuracy"]) for row in mine) / len(mine)
        )
        assert entry["worst_regret"]["value"] == pytest.approx(100 * max(float(row["regret"]) for row in mine))


def test_the_same_command_on_finished_results_runs_nothing_and_writes_the_report_again(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    before = (arguments.out / "results.csv").read_bytes()
    (arguments.out / "report.html").unlink()

    def refuse(grid: Any, cells: list[Any], **_: Any) -> list[Any]:
        assert not cells
        return []

    monkeypatch.setattr(benchmark_module, "run_grid", refuse)
    assert main(arguments) == 0
    assert (arguments.out / "results.csv").read_bytes() == before
    assert (arguments.out / "report.html").exists()
    assert "3 done before" in capsys.readouterr().out


def test_results_of_another_grid_are_kept_unless_they_may_be_replaced(arguments: Arguments) -> None:
    arguments = replace(arguments, rules=("fedavg",), malicious_fraction=(0.0,))
    main(arguments)
    before = (arguments.out / "results.csv").read_bytes()
    with pytest.raises(ValueError, match=r"another grid.*rules was .*fedavg.* is .*median.*--overwrite"):
        main(replace(arguments, rules=("median",)))
    assert (arguments.out / "results.csv").read_bytes() == before
    main(replace(arguments, overwrite=True, rules=("median",)))
    assert {row["rule"] for row in table(arguments.out)} == {"median"} | REFERENCES


def test_ctrl_c_keeps_the_cells_so_far_and_the_same_command_continues(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_grid = benchmark_module.run_grid

    def interrupted(*given: Any, **named: Any) -> Any:
        yield next(iter(run_grid(*given, **named)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(benchmark_module, "run_grid", interrupted)
        assert main(arguments) == 130
    assert str(arguments.out) in capsys.readouterr().out
    assert {row["rule"] for row in table(arguments.out)} == {"fedavg", "krum"} | REFERENCES
    assert main(arguments) == 0
    assert "1 done before" in capsys.readouterr().out
    assert len(table(arguments.out)) == 5 * 3


FAILING = """
from fl_core.aggregation import Rule, register_rule

@register_rule("fails_in_round_two")
class Fails(Rule):
    def aggregate(self, view):
        if view.round == 2:
            raise RuntimeError("no more")
        return make_rule("fedavg").aggregate(view)

from fl_core.aggregation import make_rule
"""


def test_a_run_that_fails_is_in_the_exit_status_and_the_report_and_the_rest_is_there(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "failing.py"
    plugin.write_text(FAILING)
    given = replace(arguments, rules=("fails_in_round_two", "fedavg"), plugin=(plugin,), attacks=("alie",))
    assert main(given) == 1
    assert "RuntimeError: no more" in capsys.readouterr().err
    assert {row["rule"] for row in table(arguments.out)} == {"fedavg"} | REFERENCES
    page = (arguments.out / "report.html").read_text()
    assert "What failed" in page
    assert "RuntimeError: no more" in page
    assert len(strict_json(arguments.out / "failures.json")["failures"]) == 2


def test_a_plugins_attack_and_rule_appear_in_every_table_and_plot(arguments: Arguments) -> None:
    example = ROOT / "examples" / "own_attack_and_rule.py"
    given = replace(arguments, rules=("shortest_half", "fedavg"), attacks=("echo", "alie"), plugin=(example,))
    assert main(given) == 0
    rows = table(arguments.out)
    assert {row["held_out"] for row in rows if row["attack"] == "echo"} == {"True"}
    for file in ("headline.csv", "merits.csv", "comparison.csv", "headline.tex"):
        assert "shortest" in (arguments.out / "tables" / file).read_text()
    page = (arguments.out / "report.html").read_text()
    assert "echo · held out" in page
    drawings = [(arguments.out / "plots" / f"{n}.svg").read_text() for n in ("heatmap", "time_accuracy", "profiles")]
    assert all("<!-- shortest_half -->" in drawing for drawing in drawings)
    assert "<!-- echo -->" in drawings[0]


def test_a_report_that_is_made_again_says_where_the_results_came_from_and_more_seeds_say_both(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told() -> dict[str, Any]:
        manifest: dict[str, Any] = strict_json(arguments.out / "manifest.json")
        return manifest

    arguments = replace(arguments, rules=("fedavg",), attacks=("alie",))
    monkeypatch.setattr(provenance_module, "git_revision", lambda: "first")
    main(arguments)
    monkeypatch.setattr(provenance_module, "git_revision", lambda: "second")
    main(arguments)
    assert told()["provenance"]["revision"] == "first"
    assert strict_json(arguments.out / "summary.json")["revision"] == "first"
    main(replace(arguments, seeds=2))
    assert told()["provenance"]["revision"] == "second"
    assert [facts["revision"] for facts in told()["earlier"]] == ["first"]
    assert (told()["earlier"][0]["rows_before"], told()["provenance"]["rows_before"]) == (0, 8)
    shown = strict_json(arguments.out / "summary.json")
    assert (shown["revision"], [run["revision"] for run in shown["earlier"]]) == ("second", ["first"])
    assert "<dt>earlier</dt>" in (arguments.out / "report.html").read_text()


def test_more_rules_and_attacks_join_what_is_there_and_only_they_are_run(
    arguments: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = replace(arguments, rules=("krum", "fedavg"), attacks=("sign_flip", "alie"), features=True)
    main(replace(more, out=tmp_path / "at_once"))
    main(replace(more, rules=("fedavg",), attacks=("alie",)))
    ran, run_rule = [], cells_module.run_rule

    def counted(grid: Any, contestant: Any, cell: Any) -> Any:
        ran.append((contestant.label, cell.attack))
        return run_rule(grid, contestant, cell)

    monkeypatch.setattr(cells_module, "run_rule", counted)
    monkeypatch.setattr(evaluate, "estimate_seconds", lambda *_: 0.0)  # which runs a cell too
    main(more)
    assert sorted(ran) == sorted(
        [("krum", "none"), ("krum", "alie"), *((rule, "sign_flip") for rule in ("krum", "fedavg", *REFERENCES))]
    )
    assert (arguments.out / "results.csv").read_bytes() == (tmp_path / "at_once" / "results.csv").read_bytes()
    for whole in (tmp_path / "at_once" / "curves").iterdir():
        with np.load(whole) as expected, np.load(arguments.out / "curves" / whole.name) as found:
            assert sorted(found) == sorted(expected)
            for name in expected:
                np.testing.assert_array_equal(found[name], expected[name])
    with pytest.raises(ValueError, match=r"holds results of another grid .*rules was"):
        main(replace(more, rules=("fedavg", "median")))


def test_a_policy_that_has_seen_an_attack_makes_it_held_out_no_longer_for_anybody(
    arguments: Arguments, tmp_path: Path
) -> None:
    arguments = replace(arguments, rules=("fedavg",), attacks=("alie",))
    main(arguments)
    assert {row["held_out"] for row in table(arguments.out) if row["attack"] == "alie"} == {"True"}
    policy = save_policy(TrustNet(), tmp_path / "knowing", {"attacks_seen": ["alie"]})
    main(replace(arguments, policies=(str(policy),)))
    rows = [row for row in table(arguments.out) if row["attack"] == "alie"]
    assert {row["rule"] for row in rows} == {"knowing", "fedavg", *REFERENCES}
    assert {row["held_out"] for row in rows} == {"False"}


def test_a_run_that_is_stopped_leaves_where_its_cells_came_from(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped_after(cells: int, revision: str) -> None:
        def stop(*arguments: Any, **settings: Any) -> Iterator[CellResult]:
            for i, result in enumerate(run_grid(*arguments, **settings)):
                if i == cells:
                    raise KeyboardInterrupt
                yield result

        monkeypatch.setattr(provenance_module, "git_revision", lambda: revision)
        monkeypatch.setattr(benchmark_module, "run_grid", stop)
        assert main(replace(arguments, rules=("fedavg",), attacks=("alie", "ipm"))) == 130

    stopped_after(1, "first")
    stopped_after(0, "nothing done")
    monkeypatch.setattr(benchmark_module, "run_grid", run_grid)
    monkeypatch.setattr(provenance_module, "git_revision", lambda: "last")
    assert main(replace(arguments, rules=("fedavg",), attacks=("alie", "ipm"))) == 0
    manifest = strict_json(arguments.out / "manifest.json")
    assert [facts["revision"] for facts in manifest["earlier"]] == ["first"]
    assert (manifest["provenance"]["revision"], manifest["provenance"]["rows_before"]) == ("last", 4)


def test_a_policy_of_the_package_is_told_by_its_name_not_by_a_path_of_this_machine(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])  # where pytest lies is the test's own doing
    main(replace(arguments, rules=(), policies=("shipped",), malicious_fraction=(0.0,)))
    summary = (arguments.out / "summary.json").read_text()
    assert "fashion_mnist, ships with the package" in summary
    assert str(ROOT) not in summary


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 0}, "seeds.*0"),
        ({"rounds": 2}, "rounds.*2"),
        ({"workers": 0}, "workers.*0"),
        ({"rules": ("kurm",)}, r"'kurm'.*krum"),
        ({"rules": ()}, "neither rules nor policies"),
        ({"attacks": ("sign_flop",)}, r"'sign_flop'.*sign_flip"),
        ({"attacks": ()}, "attacks is empty"),
        ({"heterogeneity": ("0.0",)}, r"alpha.*0\.0"),
        ({"heterogeneity": ("even",)}, r"'even'.*iid"),
        ({"malicious_fraction": (-0.5,)}, r"malicious_fraction.*-0\.5"),
        ({"num_clients": (0,)}, "num_clients.*0"),
        ({"num_clients": (10**6,)}, "num_clients=1000000"),
        ({"policies": ("no/such/run",)}, r"no/such/run.*run directory"),
        ({"env_id": ("OptiGrad/Nope-v0",)}, r"'OptiGrad/Nope-v0'; there are: .*OptiGrad/Digits-v0"),
        ({"env_id": ("CartPole-v1",)}, r"OptiGrad/Digits-v0"),
        ({"preset": "qick"}, r"'qick'.*quick"),
        ({"config": Path("no.yaml")}, r"no\.yaml cannot be read"),
        ({"plugin": (Path("no.py"),)}, r"no\.py cannot be read"),
    ],
)
def test_a_benchmark_that_cannot_work_is_refused_before_anything_is_written_or_replaced(
    arguments: Arguments, changes: dict[str, Any], message: str
) -> None:
    arguments.out.mkdir(parents=True)
    (arguments.out / "results.csv").write_text("a month of computing")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        main(replace(arguments, overwrite=True, **changes))
    assert [path.name for path in arguments.out.iterdir()] == ["results.csv"]
    assert (arguments.out / "results.csv").read_text() == "a month of computing"


def test_a_cell_that_is_not_there_cannot_be_shown(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match=r"unknown cell 'nowhere'; there are: .*alie"):
        main(replace(arguments, cell="nowhere"))


def test_on_the_command_line_a_mistake_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "evaluate.py", "--rules", "kurm", "--out", str(tmp_path / "out")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 1
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("evaluate: unknown aggregation rule 'kurm'; there are: ")
    assert not (tmp_path / "out").exists()


def command_line(out: Path, workers: int) -> list[str]:
    grid = ["--env-id", "OptiGrad/Softmax-v0", "--num-clients", "5", "--rounds", "8", "--rules", "fedavg", "krum"]
    grid += ["--attacks", "alie", "sign_flip", "--alpha", "0.5", "iid", "--seeds", "4", "--no-features"]
    return [sys.executable, "evaluate.py", *grid, "--no-progress", "--workers", str(workers), "--out", str(out)]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_ten_times_at_random_moments_and_continued_the_results_are_those_of_an_undisturbed_run(
    tmp_path: Path, workers: int
) -> None:
    subprocess.run(command_line(tmp_path / "whole", 1), check=True, capture_output=True, cwd=ROOT)
    expected = (tmp_path / "whole" / "results.csv").read_bytes()
    moments = random.Random(workers)
    out = tmp_path / "killed"
    sizes = []
    for _ in range(10):
        process = subprocess.Popen(
            command_line(out, workers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT
        )
        grown = _wait_for_a_cell(process, out)
        time.sleep(moments.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.wait()
        sizes.append(len((out / "results.csv").read_bytes().splitlines()) if grown else 0)
    subprocess.run(command_line(out, workers), check=True, capture_output=True, cwd=ROOT)
    assert (out / "results.csv").read_bytes() == expected
    assert any(1 < size < len(expected.splitlines()) for size in sizes)  # some kill came in the middle


def _wait_for_a_cell(process: subprocess.Popen[bytes], out: Path) -> bool:
    """Until the process has written something more, or has ended."""
    path = out / "results.csv"
    before = path.stat().st_size if path.exists() else 0
    while process.poll() is None:
        if path.exists() and path.stat().st_size != before:
            return True
        time.sleep(0.01)
    return path.exists()


def test_where_nothing_could_be_run_the_reason_is_told(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "failing.py"
    given = replace(arguments, rules=("fedavg",), attacks=("cannot_say",), malicious_fraction=(0.4,), plugin=(plugin,))
    plugin.write_text(CANNOT_SAY)
    with pytest.raises(ValueError, match="no results to report on"):
        main(given)
    told = capsys.readouterr().err
    assert "my bug" in told
    assert "failures.json; the same command tries again" in told


CANNOT_SAY = """
from dataclasses import dataclass
from fl_core.attacks import Attack, register_attack


@register_attack("cannot_say")
@dataclass(frozen=True)
class CannotSay(Attack):
    def corrupt(self, own, honest, adversary):
        return own

    def triggered(self, images, labels):
        raise RuntimeError("my bug")
"""


def test_an_unknown_cell_is_refused_before_anything_is_run(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match="unknown cell 'typo'; there are: OptiGrad"):
        main(replace(arguments, cell="typo"))
    assert not arguments.out.exists()


def test_what_overwrote_results_is_not_to_be_said_again(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*given: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_module, "run_grid", interrupted)
    for overwrite, again in ((True, "the same command without --overwrite continues"), (False, "the same command con")):
        assert main(replace(arguments, overwrite=overwrite)) == 130
        assert f"the cells so far are in {arguments.out}; {again}" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "estimate_seconds", interrupted)  # also before the first cell
    assert main(arguments) == 130


def test_a_run_that_fails_is_told_at_once_and_stays_known_when_the_rest_is_broken_off(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_then_stops(grid: Any, cells: Any, **named: Any) -> Iterator[CellResult]:
        first = next(iter(run_grid(grid, cells[:1])))
        yield replace(first, failures=[cells_module.failure(first.cell, "krum", ValueError("no reason"))])
        assert "failed: krum in" in capsys.readouterr().err
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark_module, "run_grid", fails_then_stops)
    assert main(arguments) == 130
    (told,) = strict_json(arguments.out / "failures.json")["failures"]
    assert told["rule"] == "krum"


def test_a_number_of_attackers_beyond_a_rules_bound_is_refused_before_anything_runs(arguments: Arguments) -> None:
    with pytest.raises(ValueError, match=r"rule 'bulyan' with 5 clients: .*4f \+ 3"):
        main(replace(arguments, rules=("fedavg", "bulyan"), num_byzantine=2))
    assert not arguments.out.exists()


@pytest.mark.parametrize(
    ("flags", "features", "controls"),
    [([], False, True), (["--features"], True, True), (["--no-controls"], False, False), (["--controls"], False, True)],
)
def test_a_switch_that_is_said_wins_over_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], features: bool, controls: bool
) -> None:
    file = tmp_path / "grid.yml"
    file.write_text("{controls: true, features: false, rules: [fedavg], env_id: [OptiGrad/Softmax-v0]}")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--config", str(file), *flags])
    grid = make_grid(*evaluate._layers(tyro.cli(Arguments)))
    assert (grid.features, grid.controls) == (features, controls)


def test_a_disk_that_is_full_when_the_report_is_written_is_one_line(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    monkeypatch.setattr(evaluate, "main", full)
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    with pytest.raises(SystemExit, match=r"evaluate: report\.html cannot be read or written: No space left on device"):
        evaluate.cli()
