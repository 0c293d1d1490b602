import os
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from fl_core.training import native

# How long an example takes is the machine's affair: a busy one fails no test.
hypothesis.settings.register_profile("optigrad", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("optigrad")

# One thread a process: tiny networks gain nothing from two, and sums keep one order.
torch.set_num_threads(1)


def pytest_configure() -> None:
    """Skips the tests of the native library where there is none, unless it is what should be tested."""
    if os.environ.get("OPTIGRAD_REQUIRE_NATIVE") and (reason := native.why_not()):
        raise pytest.UsageError(f"OPTIGRAD_REQUIRE_NATIVE is set and there is no native engine: {reason}")


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded images go to a temporary cache, not to the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def data_dir() -> Callable[..., Path]:
    """``data_dir("MNIST/raw")``: the directory in ``$OPTIGRAD_DATA`` if it holds all of these, else a skip."""

    def find(*needed: str) -> Path:
        given = os.environ.get("OPTIGRAD_DATA")
        if not given:
            pytest.skip("$OPTIGRAD_DATA is not set: no real data")
        missing = [name for name in needed if not (Path(given) / name).exists()]
        if missing:
            pytest.skip(f"$OPTIGRAD_DATA={given} holds no {', '.join(missing)}")
        return Path(given)

    return find
