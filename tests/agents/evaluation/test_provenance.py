"""Who ran what, and with which settings, is known of a results directory however it came about."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents.evaluation import Benchmark, Grid, ResultsError
from agents.evaluation import provenance as provenance_module
from agents.evaluation.provenance import provenance
from fl_core.training import native

MANIFEST = "manifest.json"


def manifest_of(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    return found


def run(grid: Grid, out: Path, command: str, reuse: tuple[Path, ...] = ()) -> None:
    benchmark = Benchmark(grid, out, command, reuse=reuse)
    with benchmark.open() as directory:
        assert not benchmark.run(directory)


@pytest.fixture
def small(make_grid: Callable[..., Grid]) -> Callable[..., Grid]:
    """Grids of two cells a seed, three rounds."""
    return lambda **axes: make_grid(rules=("fedavg",), features=False, rounds=3, **axes)


def test_every_run_of_an_assembled_directory_is_told_and_who_assembled_it(
    tmp_path: Path, small: Callable[..., Grid]
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    run(small(seeds=(0,)), source, "one")
    run(small(seeds=(0, 1)), source, "two")
    # As many rows of the source are taken as it had when its second run began.
    run(small(seeds=(1, 2)), out, "three", reuse=(source,))
    manifest = manifest_of(out)
    assert manifest["provenance"]["command"] == "three"
    assert [each["command"] for each in manifest["earlier"]] == ["one", "two", "three"]
    assert manifest["earlier"][-1]["assembled_from"] == [str(source)]


def test_the_provenance_names_the_processor_and_what_auto_stands_for(small: Callable[..., Grid]) -> None:
    assert len(provenance(small(), "command")["processor"]) > 2
    softmax = small(env_ids=("OptiGrad/Softmax-v0",))
    assert provenance(softmax, "command")["engines"] == {"OptiGrad/Softmax-v0": "linear"}


def test_the_provenance_names_the_kernels_and_the_library(small: Callable[..., Grid]) -> None:
    if not native.is_built():
        pytest.skip("the native engine is not built")
    digits = provenance(small(env_ids=("OptiGrad/Digits-v0",)), "command")["engines"]["OptiGrad/Digits-v0"]
    assert digits == f"native, {native.instruction_set()}, {native.checksum()[:12]}"


def test_a_report_says_of_runs_by_several_revisions_or_engines_that_they_are(
    tmp_path: Path, small: Callable[..., Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "Its runs are of several revisions and engines, named at the end"
    run(small(seeds=(0,)), tmp_path, "one")
    grid = small(seeds=(0, 1))
    assert told not in Benchmark(grid, tmp_path, "two").report().page.read_text()
    monkeypatch.setattr(provenance_module, "git_revision", lambda: "another")
    monkeypatch.setattr(provenance_module, "_engines", lambda _: {"any": "another"})
    run(grid, tmp_path, "two")
    assert told in Benchmark(grid, tmp_path, "two").report().page.read_text()


def test_other_defaults_of_an_environment_are_other_measurements(tmp_path: Path, small: Callable[..., Grid]) -> None:
    out, grid = tmp_path / "out", small(seeds=(0,))
    run(grid, out, "before")
    manifest = manifest_of(out)
    ((env_id, settings),) = manifest["grid"]["federations"].items()
    assert settings["mu"] == 0.1
    assert not {"data_dir", "split_seed", "num_clients"} & set(settings)
    settings["mu"] = 0.9
    (out / MANIFEST).write_text(json.dumps(manifest))
    told = rf"mu of {env_id} was 0\.9, is 0\.1"
    with pytest.raises(ResultsError, match=told):
        Benchmark(grid, out, "after").open()
    with pytest.raises(ResultsError, match=told):
        Benchmark(grid, tmp_path / "other", "after", reuse=(out,)).open()


@pytest.mark.parametrize("written", [False, True])
def test_what_an_older_version_did_not_write_down_is_nothing_that_differs(
    tmp_path: Path, small: Callable[..., Grid], written: bool
) -> None:
    out, grid = tmp_path / "out", small(seeds=(0,))
    run(grid, out, "before")
    manifest = manifest_of(out)
    if written:
        ((env_id, settings),) = manifest["grid"]["federations"].items()
        manifest["grid"]["federations"] = {env_id: {"mu": settings["mu"]}}
    else:
        del manifest["grid"]["federations"]
    (out / MANIFEST).write_text(json.dumps(manifest))
    with Benchmark(grid, out, "after").open() as directory:
        assert not directory.missing()
    with Benchmark(grid, tmp_path / "other", "after", reuse=(out,)).open() as directory:
        assert not directory.missing()
