"""The rooms: imports go one way, agents → optigrad_env → fl_core."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "fl_core": {"optigrad_env", "agents", "gymnasium", "stable_baselines3", "train_agent", "evaluate"},
    "optigrad_env": {"agents", "stable_baselines3", "train_agent", "evaluate"},
    "agents": {"train_agent", "evaluate"},
}


def imported(source: str) -> set[str]:
    """Top-level names of all packages that a source imports, wherever in the file the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names.add((node.module or "").split(".")[0])
    return names


def test_the_parser_sees_imports_inside_functions_and_of_submodules():
    assert imported("def f():\n    import a.b\n    from c.d import e") == {"a", "c"}


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_go_one_way(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in files
        if (found := imported(path.read_text(encoding="utf-8")) & FORBIDDEN[package])
    }
    assert not wrong


def test_the_trust_net_is_plain_pytorch():
    packages = imported((ROOT / "agents" / "trust_net.py").read_text(encoding="utf-8"))
    assert packages - sys.stdlib_module_names == {"torch"}


def test_only_the_vision_module_imports_torchvision():
    users = {
        str(path.relative_to(ROOT))
        for package in FORBIDDEN
        for path in (ROOT / package).rglob("*.py")
        if "torchvision" in imported(path.read_text(encoding="utf-8"))
    }
    assert users <= {str(Path("fl_core", "data", "vision.py"))}


def test_a_deployed_policy_needs_neither_gymnasium_nor_stable_baselines3():
    code = (
        "import sys, fl_core, agents, fl_core.aggregation, fl_core.attacks, fl_core.data.vision\n"
        "print(sorted({'gymnasium', 'stable_baselines3', 'torchvision', 'optigrad_env'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
