"""Which library the native engine loads, and what is said where there is none."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fl_core.fingerprint import geometry
from fl_core.models import ParameterLayout
from fl_core.models.networks import small_cnn
from fl_core.training import Engine, engine, make_engine, native
from fl_core.training.native import library

pytestmark = pytest.mark.skipif(
    not native.is_built(), reason="the native engine is not built: python setup.py build_ext --inplace"
)
NETWORK = small_cnn((1, 8, 8), 4)
LAYOUT = ParameterLayout(NETWORK, local_batchnorm=True)
ISAS = native.supported_instruction_sets() if native.is_built() else []


def make(name: str) -> Engine:
    return make_engine(name, NETWORK, LAYOUT)


def model() -> tuple[Tensor, Tensor]:
    shared, local = LAYOUT.initial(NETWORK)
    return shared[None], local[None]


def test_without_the_library_native_says_so_in_a_line_and_auto_takes_the_stacked_engine(monkeypatch):
    monkeypatch.setattr(library, "_load", lambda: (None, "it has not been built"))
    with pytest.raises(ValueError, match="there is no native engine: it has not been built; install a C") as error:
        make("native")
    assert "\n" not in str(error.value)
    assert make("auto").name == "stacked"
    assert not native.is_built()


@pytest.fixture
def load(monkeypatch) -> Iterator[Callable[[Path], None]]:
    """Loads a library anew, from the place that it is given."""

    def load_from(path: Path) -> None:
        monkeypatch.delenv("OPTIGRAD_LIBRARY", raising=False)
        monkeypatch.setattr(library, "_path", lambda: path)
        library._load.cache_clear()

    yield load_from
    library._load.cache_clear()


def test_a_library_that_cannot_be_loaded_counts_as_missing_and_the_reason_is_told(tmp_path, load, caplog):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    load(broken)
    engine._say_if_not_built.cache_clear()
    assert not native.is_built()
    assert make("auto").name == "stacked"
    assert f"there is no native engine ({broken} cannot be loaded (" in caplog.text
    with pytest.raises(ValueError, match=r"broken.so cannot be loaded \(.*\); install a C\+\+ compiler"):
        make("native")


def test_a_library_of_another_version_says_of_which(load, monkeypatch):
    monkeypatch.setattr(library, "_ABI_VERSION", library._ABI_VERSION + 1)
    load(library._path())
    assert re.search(r"was built by another version of this package \(interface 4, not 5\)", native.why_not())


def test_a_library_that_was_asked_for_is_not_replaced_in_silence(tmp_path):
    script = "from fl_core.training import native; native.is_built()"
    environment = {"OPTIGRAD_LIBRARY": str(tmp_path / "none.so"), "PYTHONPATH": ":".join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert re.search(r"OPTIGRAD_LIBRARY=.*none.so cannot be used: .*; unset it", done.stderr)


def test_the_best_instruction_set_is_used_unless_another_is_forced(monkeypatch):
    monkeypatch.delenv("OPTIGRAD_ISA", raising=False)
    assert native.instruction_set() == ISAS[0]
    assert ISAS[-1] == "portable"
    for name in ISAS:
        monkeypatch.setenv("OPTIGRAD_ISA", name)
        assert native.instruction_set() == name
    monkeypatch.setenv("OPTIGRAD_ISA", "mmx")
    with pytest.raises(ValueError, match=r"OPTIGRAD_ISA is 'mmx'; this processor runs: .*portable"):
        native.instruction_set()
    with pytest.raises(ValueError, match="'mmx'"):
        make("native").logits(*model(), torch.zeros(1, 1, 8, 8))


def test_a_library_that_is_loaded_anew_is_called_as_the_one_before(load):
    updates = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    before = geometry.norms(updates)
    load(library._path())
    assert torch.equal(geometry.norms(updates), before)
