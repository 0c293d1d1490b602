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
