"""A user's file of attacks and rules."""

from pathlib import Path

import pytest

from agents.evaluation import Grid, read_plugin, run_grid
from agents.evaluation.plugins import Plugin

RULE = """
from dataclasses import dataclass
from fl_core.aggregation import Aggregate, Rule, register_rule

@register_rule("{name}")
@dataclass(frozen=True)
class First(Rule):
    def aggregate(self, view):
        return Aggregate(view.accepted[0].clone(), None)
"""


def test_a_plugins_rule_runs_in_worker_processes_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(RULE.format(name="first_client"))
    grid = Grid(
        rules=("first_client",),
        attacks=("alie",),
        malicious_fractions=(0.4,),
        seeds=(0, 1),
        env_ids=("OptiGrad/Softmax-v0",),
        rounds=3,
        features=False,
        plugins=(read_plugin(path),),
    )
    results = list(run_grid(grid, workers=2))
    assert not [result.failures for result in results if result.failures]
    assert {row["rule"] for result in results for row in result.rows} >= {"first_client"}


def test_a_file_is_run_once_a_process_however_often_it_is_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(RULE.format(name="only_once"))
    for _ in range(3):
        read_plugin(path).load()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ny = 1 / 0\n", r"bad\.py, line 2: ZeroDivisionError"),
        ("def f(:\n", r"bad\.py, line 1: SyntaxError"),
        ("import not_a_package_at_all\n", r"bad\.py, line 1: ModuleNotFoundError.*not_a_package_at_all"),
        ("import sys\nsys.exit(3)\n", r"bad\.py calls exit"),
        (RULE.format(name="fedavg"), r"bad\.py, line \d+: ValueError.*'fedavg' is registered already"),
    ],
)
def test_a_failing_plugin_is_a_line_that_names_file_line_and_error(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(source)
    with pytest.raises(ValueError, match=message) as raised:
        read_plugin(path).load()
    assert "\n" not in str(raised.value)


def test_a_plugin_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.py cannot be read: No such file"):
        read_plugin(tmp_path / "nowhere.py")
    (tmp_path / "binary.py").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.py is not a Python file in UTF-8"):
        read_plugin(tmp_path / "binary.py")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        read_plugin(tmp_path)


def test_the_checksum_is_the_sources() -> None:
    assert Plugin("a.py", "x = 1").checksum == Plugin("b.py", "x = 1").checksum
    assert Plugin("a.py", "x = 1").checksum != Plugin("a.py", "x = 2").checksum
