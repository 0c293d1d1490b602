"""The README's speeds are told as they were measured."""

import csv

from .figures import README, ROOT, is_told


def test_speeds_are_told_as_they_were_measured() -> None:
    with (ROOT / "results" / "round.csv").open() as file:
        native = [row for row in csv.DictReader(file) if row["part"] == "native" and row["relative"]]
    figures = {
        (row["images"], row["clients"], row["what"]): float(row["relative"].split("x")[0].split()[0]) for row in native
    }
    steps = f"{figures['8x8', '10', 'environment step']:.0f} times a second on digits with 10 clients"
    assert is_told(README, f"runs {steps}.")
    digits = [value for (images, _, what), value in figures.items() if (images, what) == ("8x8", "local round")]
    times = f"{min(digits):.0f} to {max(digits):.0f} times as fast as client after client in PyTorch there"
    assert is_told(README, f"is {times} and {figures['28x28', '10', 'local round']} times on 28x28 images.")


def _engines(file: str, *engines: str) -> dict[str, list[str]]:
    """By work how many times faster than the sequential engine each of these is."""
    with (ROOT / "results" / file).open() as opened:
        rows = list(csv.DictReader(opened))
    ratios = {(row["work"], row["engine"]): f"{float(row['relative_to_sequential']):.1f}×" for row in rows}
    works = dict.fromkeys(work for work, _ in ratios)
    return {work: [ratios[work, engine] for engine in engines] for work in works}


def test_engines_are_told_as_they_were_measured() -> None:
    page = (ROOT / "docs" / "native_engine.md").read_text()
    each = ("stacked", "native (avx512)", "native (avx2)", "native (portable)")
    for work, ratios in _engines("engines.csv", *each).items():
        assert f"| {work} | {' | '.join(ratios)} |" in page
    avx2 = each[2:]
    direct, winograd = _engines("engines_avx2_direct.csv", *avx2), _engines("engines_avx2.csv", *avx2)
    wide = [work for work in direct if "28x28" in work]
    assert len(wide) == 3
    faster = winograd["train 28x28, 16-32-fc64: 10 clients x 600, batch 32"][0].rstrip("×")
    before = direct["train 28x28, 16-32-fc64: 10 clients x 600, batch 32"][0].rstrip("×")
    assert is_told(README, f"where it was {before} times, it is [{faster} times](docs/native_engine.md#measured) now.")
    assert is_told((ROOT / "docs" / "speed.md").read_text(), f"on 28x28 from {before} to {faster} times the sequential")
    for work in wide:
        both = [ratio for pair in zip(direct[work], winograd[work], strict=True) for ratio in pair]
        assert f"| {work} | {' | '.join(both)} |" in page
