"""Each claim runs in a process of its own, because what is tested is the state of the import system."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

VISION = Path(__file__).parents[3] / "fl_core" / "data" / "vision.py"
# The module alone, without the rest of fl_core, which takes seconds to import and plays no part here.
LOAD = f"""
import importlib.util, sys, torch
original = torch.library.register_fake
spec = importlib.util.spec_from_file_location("vision", {str(VISION)!r})
vision = importlib.util.module_from_spec(spec)
spec.loader.exec_module(vision)
"""

installed = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed (the [vision] extra)"
)


def run(code: str, path: Path | None = None) -> None:
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    command = [sys.executable, "-B", "-W", "error", "-c", LOAD + dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


def package(folder: Path, source: str) -> Path:
    """A folder for the search path that holds a torchvision of our own."""
    (folder / "torchvision").mkdir(parents=True)
    (folder / "torchvision" / "__init__.py").write_text(dedent(source), encoding="utf-8")
    return folder


@installed
def test_the_installed_torchvision_imports_works_and_leaves_register_fake_as_it_was():
    run("""
        assert "torchvision" not in sys.modules
        torchvision = vision.import_torchvision()
        assert torch.library.register_fake is original
        assert vision.import_torchvision() is torchvision is sys.modules["torchvision"]
        from torchvision import datasets, models, transforms
        assert issubclass(datasets.MNIST, torch.utils.data.Dataset)
        assert models.resnet18(num_classes=3)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
        assert transforms.Resize(4)(torch.zeros(1, 8, 8)).shape == (1, 4, 4)
    """)


def test_a_matched_install_is_imported_as_it_is_and_register_fake_is_never_replaced(tmp_path):
    run(
        f"""
        torchvision = vision.import_torchvision()
        assert torchvision.__file__.startswith({str(tmp_path)!r})
        assert torchvision.seen is original is torch.library.register_fake
        assert vision.import_torchvision() is torchvision
        """,
        package(tmp_path, "import torch\nseen = torch.library.register_fake"),
    )


def test_a_mismatched_install_loses_the_shape_functions_of_missing_operators_only(tmp_path):
    mismatched = """
        import torch
        if not hasattr(torch.ops.torchvision, "there"):
            torch.library.define("torchvision::there", "(Tensor x) -> Tensor")

        @torch.library.register_fake("torchvision::missing")
        def missing(x):
            return x

        @torch.library.register_fake("torchvision::there")
        def there(x):
            return x.new_empty(7)
        """
    run(
        """
        torchvision = vision.import_torchvision()
        assert torch.library.register_fake is original
        assert torchvision.missing(3) == 3
        assert torch.ops.torchvision.there(torch.empty(1, device="meta")).shape == (7,)
        """,
        package(tmp_path, mismatched),
    )


def test_other_errors_are_not_swallowed_and_leave_register_fake_as_it_was(tmp_path):
    missing = "import torch\ntorch.library.register_fake('torchvision::missing')(print)\n"
    sources = {
        "at once": ("raise RuntimeError('the disk is on fire')", "the disk is on fire"),
        "first attempt only": (
            "import sys\nif not hasattr(sys, 'tried'):\n    sys.tried = True\n    raise RuntimeError('out of luck')",
            "out of luck",
        ),
        "second attempt": (missing + "raise RuntimeError('the disk is on fire')", "the disk is on fire"),
        "another library": (missing + "torch.library.register_fake('elsewhere::missing')(print)", "elsewhere::missing"),
    }
    cases = [(str(package(tmp_path / name, source)), message) for name, (source, message) in sources.items()]
    run(f"""
        for path, message in {cases!r}:
            sys.path.insert(0, path)
            try:
                vision.import_torchvision()
            except RuntimeError as error:
                assert message in str(error), (path, error)
            else:
                raise AssertionError(f"swallowed: {{message}}")
            assert torch.library.register_fake is original
            assert "torchvision" not in sys.modules
    """)


def test_an_absent_torchvision_is_an_import_error(tmp_path):
    run(
        """
        try:
            vision.import_torchvision()
        except ImportError as error:
            assert "torchvision is not here" in str(error)
        else:
            raise AssertionError("no error")
        """,
        package(tmp_path, "raise ImportError('torchvision is not here')"),
    )
