"""The page, its tables and its plots."""

import csv
import html.parser
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.evaluation import CellResult, write_report
from agents.evaluation.figures_of_merit import COLUMNS
from agents.evaluation.grid import Cell
from agents.evaluation.report.material import Material

from .rows import entry, write_rows

MakeRows = Callable[..., list[dict[str, Any]]]
FACTS = {"command": "python evaluate.py", "seeds": [0, 1], "policies": {}, "revision": "abc"}


@pytest.fixture
def directory(tmp_path: Path, make_rows: MakeRows) -> Path:
    write_rows(tmp_path / "out", make_rows())
    return tmp_path / "out"


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_needs_no_network_and_no_two_things_have_one_id(directory: Path) -> None:
    page = write_report(directory, FACTS, ["mine"]).page.read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    loaded = [value for _, name, value in tags.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert {value for value in loaded if not value.startswith("#")} <= {"data:,"}
    assert not re.search(r"@import|fetch\(|XMLHttp|url\((?!#)", page)
    ids = [value for _, name, value in tags.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value[1:] for value in loaded if value.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", page))
    assert used <= set(ids)
    assert "python evaluate.py" in page


def test_seen_attacks_are_marked_and_the_headline_is_about_the_others(directory: Path) -> None:
    report = write_report(directory, FACTS, ["mine"])
    page = report.page.read_text()
    assert "sign_flip · seen by mine" in page
    assert "alie · held out" in page
    assert "<!-- sign_flip † -->" in (directory / "plots" / "heatmap.svg").read_text()
    assert entry(report.entries, "fedavg")["accuracy"]["value"] < 70  # alie alone, which fedavg suffers from
    assert "Under held-out attacks" in page
    assert "Under attacks that are not held out" in page


def test_a_policy_whose_card_is_silent_is_warned_about(directory: Path) -> None:
    facts = {**FACTS, "policies": {"mine on OptiGrad/Digits-v0": {"attacks_seen": None}}}
    page = write_report(directory, facts, ["mine"]).page.read_text()
    assert "does not say which attacks it has seen" in page


def test_names_cannot_break_the_page(tmp_path: Path, make_rows: MakeRows) -> None:
    write_rows(tmp_path, make_rows(rules=("oracle", "<script>alert(1)</script>", "fedavg")))
    page = write_report(tmp_path, {"a&b": "<i>", "quote": 'x"y'}, []).page.read_text()
    assert page.count("<script>") == 1  # the page's own
    assert "&lt;script&gt;alert(1)" in page
    assert "<i>" not in page


@pytest.mark.parametrize(
    "changes",
    [
        {"kinds": ("iid",)},
        {"kinds": ("label_skew_70", "0.1")},
        {"fractions": (0.0,)},
        {"fractions": (0.3,)},
        {"seeds": 1},
        {"attacks": tuple(f"attack_{i}" for i in range(30))},
        {"rules": ("oracle", "anchored_oracle", "root_only")},
    ],
)
def test_every_kind_of_grid_has_a_report(tmp_path: Path, make_rows: MakeRows, changes: dict[str, Any]) -> None:
    write_rows(tmp_path, make_rows(**changes))
    report = write_report(tmp_path, FACTS, [])
    assert report.page.read_text().endswith("</html>\n")
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == {
        path.stem for path in (tmp_path / "plots").glob("*.svg")
    }


def test_results_that_were_copied_without_their_curves_have_a_report_too(tmp_path: Path) -> None:
    committed = Path(__file__).parents[3] / "results" / "held_out" / "results.csv"
    shutil.copy(committed, tmp_path / "results.csv")
    report = write_report(tmp_path, FACTS, ["optigradtrust"])
    assert entry(report.entries, "fedavg")["accuracy"]["seeds"] == 20
    assert not (tmp_path / "plots" / "learning_curves.png").exists()


def test_old_results_without_the_newer_columns_have_a_report_too(tmp_path: Path, make_rows: MakeRows) -> None:
    newer = COLUMNS[COLUMNS.index("env_id") :]
    rows = [{name: value for name, value in row.items() if name not in newer} for row in make_rows()]
    with (tmp_path / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    report = write_report(tmp_path, FACTS, ["mine"])
    assert entry(report.entries, "mine")["accuracy"]["seeds"] == 5


def test_an_earlier_reports_tables_and_plots_are_taken_away(directory: Path) -> None:
    for name in (
        "tables/controls.csv",
        "tables/controls.tex",
        "plots/trust.svg",
        "plots/trust.png",
        "tables/notes.txt",
    ):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("of another grid")
    write_report(directory, FACTS, ["mine"])
    left = {path.name for path in directory.rglob("*") if path.is_file() and path.read_bytes() == b"of another grid"}
    assert left == {"notes.txt"}


def test_no_results_no_report(tmp_path: Path) -> None:
    write_rows(tmp_path, [])
    with pytest.raises(ValueError, match=r"results\.csv holds no results"):
        write_report(tmp_path, FACTS, [])


@pytest.fixture
def recorded(tmp_path: Path, results: list[CellResult]) -> Path:
    """A directory with curves."""
    path = tmp_path / "recorded"
    write_rows(path, [row for result in results for row in result.rows])
    (path / "curves").mkdir()
    for result in results:
        np.savez(path / "curves" / f"{result.cell.name}.npz", **result.curves)  # type: ignore[arg-type]
    return path


def test_curves_become_learning_curves_trust_and_features(recorded: Path, results: list[CellResult]) -> None:
    chosen = results[-1].cell.name
    write_report(recorded, FACTS, [], cell=chosen)
    drawn = {path.stem for path in (recorded / "plots").glob("*.svg")}
    assert drawn >= {"learning_curves", "trust", "features"}
    with (recorded / "tables" / "features.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["attack"] for line in lines] == ["sign_flip, α 0.5", "alie, α 0.5", "mean, α 0.5"]
    for column in ("root cosine", "the best one"):
        assert float(lines[2][column]) == pytest.approx((float(lines[0][column]) + float(lines[1][column])) / 2)
    assert float(lines[0]["root cosine"]) > 0.9  # a reversed update points away from the reference
    with pytest.raises(ValueError, match=f"unknown cell 'nowhere'.*{re.escape(chosen)}"):
        write_report(recorded, FACTS, [], cell="nowhere")


@pytest.fixture
def of_two_sizes(tmp_path: Path, make_rows: MakeRows, results: list[CellResult]) -> tuple[Path, list[dict[str, Any]]]:
    """Rows and curves of 10 and of 20 clients; the worst is with 20."""
    rows = [
        {**row, "num_clients": clients, "regret": row["regret"] + (0.1 if clients == 20 else 0.0)}
        for clients in (10.0, 20.0)
        for row in make_rows(kinds=("0.5", "0.1"))
    ]
    write_rows(tmp_path, rows)
    (tmp_path / "curves").mkdir()
    for cell in {Cell.of(row) for row in rows}:
        np.savez(tmp_path / "curves" / f"{cell.name}.npz", **results[-1].curves)  # type: ignore[arg-type]
    return tmp_path, rows


def test_the_worst_scenario_is_one_of_the_number_of_clients_too(
    of_two_sizes: tuple[Path, list[dict[str, Any]]],
) -> None:
    material = Material(*of_two_sizes, [], FACTS, ["mine"], None)
    assert material.lead().endswith("(alie, α 0.5, 30 % malicious, 20 clients).")
    chosen = material._trust_cell()
    assert chosen is not None
    assert chosen.cell.num_clients == 20
    table = next(material.tables())
    note = table.rows[0][table.header.index("worst regret")].note
    assert note.replace("\u00a0", " ") == "alie, α 0.5, 30 %, 20 clients"


@pytest.mark.parametrize("gone", ["*_10_0.1_alie_0.3_*", "*_20_0.1_alie_*", "*_0.1_*", "*_alie_*"])
def test_curves_of_which_some_are_missing_are_drawn_without_them(
    of_two_sizes: tuple[Path, list[dict[str, Any]]], gone: str
) -> None:
    directory, rows = of_two_sizes
    paths = list((directory / "curves").glob(f"{gone}.npz"))
    assert paths
    for path in paths:
        path.unlink()
    panels = Material(directory, rows, [], FACTS, ["mine"], None)._learning_panels(["mine", "fedavg"])
    assert panels.keys() <= {"alie, α 0.1, 30 %", "alie, α 0.5, 30 %"}
    assert panels or gone == "*_alie_*"


def test_a_thousand_cells_are_a_report_of_few_seconds_and_megabytes(tmp_path: Path, make_rows: MakeRows) -> None:
    rules = ("mine", *(f"rule_{i}" for i in range(7)), "fedavg", "oracle", "anchored_oracle", "root_only")
    attacks = ("alie", *(f"attack_{i}" for i in range(12)))
    rows = make_rows(kinds=("0.5", "0.1"), attacks=attacks, fractions=(0.0, 0.1, 0.3), rules=rules, seeds=20)
    cells = {(row["attack"], row["malicious_fraction"], row["heterogeneity"], row["seed"]) for row in rows}
    assert len(cells) >= 1000
    write_rows(tmp_path, rows)
    started = time.process_time()  # not the clock on the wall: other processes may want the core
    page = write_report(tmp_path, FACTS, ["mine"]).page
    assert time.process_time() - started <= 20
    assert page.stat().st_size <= 10 * 2**20


CHECK = """
<script>
addEventListener("load", () => {
  const said = [], heads = () => [...document.querySelectorAll("#table-headline thead th")];
  const names = () => [...document.querySelectorAll("#table-headline tbody th")].map(cell => cell.textContent);
  for (const drawing of document.querySelectorAll("figure svg")) {
    const box = drawing.getBoundingClientRect();
    if (!drawing.checkVisibility() || box.width < 200 || box.height < 100) said.push("invisible: " + drawing.ariaLabel);
  }
  said.push("drawings " + document.querySelectorAll("figure svg").length);
  said.push("overflow " + (document.documentElement.scrollWidth > innerWidth));
  heads()[1].firstElementChild.click();
  said.push("ascending " + names().join(" "), heads()[1].ariaSort);
  heads()[1].firstElementChild.click();
  said.push("descending " + names().join(" "), heads()[1].ariaSort);
  heads()[0].firstElementChild.click();
  said.push("by name " + names().join(" "), heads()[1].ariaSort);
  document.title = said.join("; ");
});
</script></body>
"""


@pytest.fixture
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


def test_in_a_browser_there_is_no_error_every_drawing_is_visible_and_the_table_sorts(
    recorded: Path, tmp_path: Path, browser: str, make_rows: MakeRows
) -> None:
    page = write_report(recorded, FACTS, []).page
    checked = tmp_path / "checked.html"
    checked.write_text(page.read_text().replace("</body>", CHECK))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1300,2000", "--dump-dom", checked.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title
    said = dict(part.split(" ", 1) for part in title[1].split("; ") if " " in part)
    assert "invisible:" not in title[1]
    assert int(said["drawings"]) == len(list((recorded / "plots").glob("*.svg")))
    assert said["overflow"] == "false"
    with (recorded / "tables" / "headline.csv").open() as file:
        accuracy = {line["rule"]: float(line["accuracy, attacked"]) for line in csv.DictReader(file)}
    ascending, descending = said["ascending"].split(), said["descending"].split()
    assert [accuracy[rule] for rule in ascending] == sorted(accuracy.values())
    assert [accuracy[rule] for rule in descending] == sorted(accuracy.values(), reverse=True)
    assert title[1].split("; ")[3:6:2] == ["ascending", "descending"]
    assert said["by"].removeprefix("name ").split() == sorted(accuracy)


def test_every_rule_has_one_look_in_all_plots() -> None:
    from agents.evaluation.report.style import looks_of

    rules = [f"rule_{i}" for i in range(25)]
    looks = looks_of([*rules, "mine", "oracle"], ["mine"])
    seen = {(looks[rule].color, looks[rule].marker) for rule in rules}
    assert len(seen) == len(list(product(rules)))
    assert looks["mine"].color not in {looks[rule].color for rule in rules}
