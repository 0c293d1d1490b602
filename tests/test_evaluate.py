"""The benchmark command, called as a function on a grid of a few rounds."""

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

import evaluate
from agents import benchmark
from agents.deployed import save_policy
from agents.trust_net import TrustNet
from evaluate import Arguments, main

ROOT = Path(evaluate.__file__).parent


@pytest.fixture
def arguments(tmp_path: Path) -> Arguments:
    return Arguments(
        rules=("fedavg", "krum"),
        attacks=("sign_flip", "alie"),
        malicious_fraction=(0.0, 0.4),
        alpha=(0.5,),
        seeds=1,
        num_clients=5,
        rounds=3,
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


def test_a_benchmark_leaves_table_summary_page_and_picture(
    arguments: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    policy = save_policy(TrustNet(), tmp_path / "runs" / "mine", {"seed": 7})
    main(replace(arguments, policies=(str(policy),)))
    rows = table(arguments.out)
    rules = {"mine", "fedavg", "krum", "oracle", "anchored_oracle"}
    assert {row["rule"] for row in rows} == rules
    assert len(rows) == len(rules) * 3
    summary = strict_json(arguments.out / "summary.json")
    assert {entry["rule"] for entry in summary["rules"]} == rules
    assert summary["policies"] == {"mine": {"seed": 7}}
    assert summary["seeds"] == 1
    assert "torch" in summary["versions"]
    for picture in arguments.out.glob("*.png"):
        assert matplotlib.image.imread(picture).ndim == 3
    assert list(arguments.out.glob("*.png"))
    page = (arguments.out / "report.html").read_text()
    assert "http" not in page.split("data:image/png;base64,")[0]
    for rule in rules:
        assert f"<td>{rule}</td>" in page
    printed = capsys.readouterr().out
    assert "mine" in printed
    assert str(arguments.out / "report.html") in printed


def test_the_summary_is_made_of_the_rows_of_the_csv(arguments: Arguments) -> None:
    main(arguments)
    rows = table(arguments.out)
    for entry in strict_json(arguments.out / "summary.json")["rules"]:
        mine = [row for row in rows if row["rule"] == entry["rule"] and float(row["malicious_fraction"]) > 0]
        accuracy = 100 * sum(float(row["test_accuracy"]) for row in mine) / len(mine)
        assert entry["accuracy"]["mean"] == pytest.approx(accuracy)
        assert entry["worst_regret"] == pytest.approx(100 * max(float(row["regret"]) for row in mine))


def test_attack_sets_are_spelled_out_in_the_summary(arguments: Arguments) -> None:
    main(replace(arguments, rules=("fedavg",), attacks=("held_out",), malicious_fraction=(0.4,)))
    rows = table(arguments.out)
    assert {row["held_out"] for row in rows} == {"True"}
    named = strict_json(arguments.out / "summary.json")["attacks"].split(", ")
    assert set(named) == {row["attack"] for row in rows} >= {"alie", "ipm", "min_max"}


def test_old_results_are_kept_unless_they_may_be_replaced(arguments: Arguments) -> None:
    arguments = replace(arguments, rules=("fedavg",), malicious_fraction=(0.0,))
    main(arguments)
    before = (arguments.out / "results.csv").read_bytes()
    with pytest.raises(ValueError, match=r"results\.csv exists already.*--overwrite"):
        main(arguments)
    assert (arguments.out / "results.csv").read_bytes() == before
    main(replace(arguments, overwrite=True, rules=("median",)))
    assert {row["rule"] for row in table(arguments.out)} == {"median", "oracle", "anchored_oracle"}


def test_ctrl_c_keeps_the_rows_so_far_and_says_where_they_are(
    arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_cell, cells = benchmark.run_cell, []

    def second_is_interrupted(*cell: Any) -> Any:
        cells.append(cell)
        if len(cells) == 2:
            raise KeyboardInterrupt
        return run_cell(*cell)

    monkeypatch.setattr(benchmark, "run_cell", second_is_interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert str(arguments.out / "results.csv") in str(stopped.value)
    assert {row["rule"] for row in table(arguments.out)} == {"fedavg", "krum", "oracle", "anchored_oracle"}


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
        ({"alpha": (0.0,)}, r"alpha.*0\.0"),
        ({"malicious_fraction": (-0.5,)}, r"malicious_fraction.*-0\.5"),
        ({"num_clients": 0}, "num_clients.*0"),
        ({"num_clients": 10**6}, "num_clients=1000000"),
        ({"policies": ("no/such/run",)}, r"no/such/run.*run directory"),
        ({"env_id": "OptiGrad/Nope-v0"}, r"'OptiGrad/Nope-v0'; there are: .*OptiGrad/Digits-v0"),
        ({"env_id": "CartPole-v1"}, r"OptiGrad/Digits-v0"),
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


def test_on_the_command_line_a_mistake_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "evaluate.py", "--rules", "kurm", "--out", str(tmp_path / "out")]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert answer.returncode == 1
    (line,) = answer.stderr.strip().splitlines()
    assert line.startswith("evaluate: unknown aggregation rule 'kurm'; there are: ")
    assert not (tmp_path / "out").exists()
