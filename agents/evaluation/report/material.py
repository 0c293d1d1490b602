"""What a report is made of: rows, curves and facts, and the tables and plots that come out of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isnan
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from agents.evaluation.contestants import ORACLES
from agents.evaluation.files import CURVES, PLOTS, RESULTS, curves_name
from agents.evaluation.grid import Cell, parse_attack
from agents.evaluation.heterogeneity import show_heterogeneity
from agents.evaluation.report import figures
from agents.evaluation.report.curves import Recorded, feature_aurocs, feature_samples, learning_curves
from agents.evaluation.report.page import Drawing
from agents.evaluation.report.style import inlined, looks_of, styled, to_png, to_svg
from agents.evaluation.report.tables import (
    Table,
    Value,
    attacks,
    circumstances,
    comparison,
    costs,
    headline,
    merits,
    places,
)
from agents.evaluation.summary import (
    by_circumstances,
    compare,
    costs_by_place,
    focus,
    kind_of,
    regret_by_attack,
    summarise,
)
from agents.statistics import TASK, Row, task_of
from fl_core.files import write_atomically
from fl_core.registry import check_known
from optigrad_env import TRAIN_ATTACKS

# Learning curves are shown of this many attacks, the most harmful ones.
_PANELS = 6
# Below this many seeds a bootstrap interval says little.
_FEW_SEEDS = 5


class Material:
    """Rows, curves and facts, and what tables and plots are made of them.

    Args:
        directory: Results directory; plots are written below it.
        rows: Of results.csv.
        timings: Of timings.csv.
        facts: See ``provenance``.
        learned: Labels of the trained policies.
        cell: Name of the cell whose trust is shown; ``None`` picks one.

    Raises:
        ValueError: No rows, or no curves of that cell.
    """

    def __init__(
        self,
        directory: Path,
        rows: list[dict[str, Any]],
        timings: list[dict[str, Any]],
        facts: Mapping[str, Any],
        learned: Sequence[str],
        cell: str | None,
    ) -> None:
        if not rows:
            raise ValueError(f"{directory / RESULTS} holds no results to report on")
        self.directory, self.rows, self.timings, self.facts, self.learned = directory, rows, timings, facts, learned
        self.statuses = attack_statuses(rows, learned)
        # The headline is about attacks that nobody was trained on, where there are any.
        self.unseen = [row for row in rows if row["held_out"] or not row["malicious_fraction"]]
        self.has_unseen = any(row["held_out"] for row in rows)
        self.main_rows = self.unseen if self.has_unseen else rows
        self.entries = summarise(self.main_rows, timings)
        self.rules = [entry["rule"] for entry in self.entries]
        self.focus = focus(self.entries, learned)
        self.place = places((row.get("env_id"), row.get("num_clients")) for row in rows)
        self.cells = _recorded(directory, rows)
        if cell is not None:
            check_known("cell", [cell], [recorded.cell.name for recorded in self.cells])
        self._cell = cell

    def tables(self) -> Iterator[Table]:
        """All tables, the headline first."""
        kind = "held-out attacks" if self.has_unseen else "attack"
        yield headline(self.entries, self.learned, "headline", f"Under {kind}, the best mean regret first", self.place)
        yield merits(self.entries, self.learned, "merits", f"Other figures of merit, under {kind}")
        found = [entry for entry in costs_by_place(self.timings) if entry["rule"] in self.rules]
        yield costs(sorted(found, key=lambda entry: self.rules.index(entry["rule"])), self.learned)
        yield comparison(self.focus, compare(self.main_rows, self.focus), self.learned)
        yield circumstances(by_circumstances(self.main_rows), self.learned)
        seen = [row for row in self.rows if not row["held_out"]]
        if self.has_unseen and any(row["malicious_fraction"] for row in seen):
            caption = "Under attacks that are not held out, the best mean regret first"
            yield headline(summarise(seen, self.timings), self.learned, "seen", caption, self.place)
        yield attacks(regret_by_attack(self.rows), self.rules)
        aurocs = feature_aurocs(self.cells)
        if aurocs:
            yield _auroc_table(aurocs)

    def drawings(self) -> Iterator[Drawing]:
        """All plots for which there is something to show; each is written as PNG and SVG too."""
        plain = [rule for rule in self.rules if kind_of(rule, self.learned) != "control"]
        looks = looks_of(plain, self.learned)
        but_oracle = {rule: look for rule, look in looks.items() if rule != ORACLES[0]}
        not_held_out = {attack for attack, status in self.statuses.items() if status != "held out"}
        ranked = [rule for rule in self.rules if rule != ORACLES[0]]
        yield from self._draw(
            "heatmap",
            "Regret, rule by attack",
            "Mean over seeds, heterogeneity and malicious fractions; at the right the mean over attacks and the worst "
            f"attack. {figures.SEEN_MARK} marks attacks that are not held out.",
            lambda: figures.heatmap(self.rows, ranked, not_held_out),
        )
        yield from self._draw(
            "regret_by_fraction",
            "Regret against malicious fraction",
            "Mean over attacks, with 95 % intervals over seeds; linear up to 5 points, logarithmic beyond.",
            lambda: figures.regret_by_fraction(self.main_rows, but_oracle),
        )
        yield from self._draw(
            "learning_curves",
            "Learning curves",
            "Test accuracy after each round, mean over seeds with 95 % intervals, under the most harmful attacks. "
            "Nothing is chosen by these curves.",
            lambda: figures.learning(self._learning_panels(plain), looks),
        )
        chosen = self._trust_cell()
        if chosen is not None:
            yield from self._draw(
                "trust",
                "Trust over rounds",
                f"One cell: {_title(chosen)}, seed {chosen.cell.seed}. Each thin line is a client, the thick ones are "
                "means; 1 is an equal share.",
                lambda: figures.trust(chosen.load(), self._trusting(plain)),
            )
        yield from self._draw(
            "features",
            "Features of honest and attacking clients",
            "Observations along the anchored oracle's run in all rounds under attack; the stroke is the median.",
            lambda: figures.feature_violins(*feature_samples(self.cells)),
        )
        yield from self._draw(
            "time_accuracy",
            "Time against accuracy",
            "Median of the server's time a round, the features' time included; up and left is better.",
            lambda: figures.time_accuracy(self.entries, looks),
        )
        yield from self._draw(
            "profiles",
            "Performance profiles",
            "Share of runs under attack with at least this accuracy, with 95 % bands; higher is better everywhere.",
            lambda: figures.profiles(self.main_rows, looks),
        )

    def lead(self) -> str:
        """The finding about the rule in focus, in a sentence."""
        entry = next(entry for entry in self.entries if entry["rule"] == self.focus)
        accuracy, regret, worst = entry["accuracy"], entry["regret"], entry["worst_regret"]
        if isnan(accuracy["value"]) or isnan(worst["value"]):
            return f"{self.focus} without any attack: {entry['accuracy_no_attack']['value']:.1f} % of the test data."
        where = "held-out attacks" if self.has_unseen else "attack"
        malicious = f"{100 * worst['malicious_fraction']:.0f} % malicious"
        place = self.place(worst["env_id"], worst["num_clients"])
        scenario = ", ".join((worst["attack"], show_heterogeneity(worst["heterogeneity"]), malicious, *place))
        return (
            f"{self.focus} reaches {accuracy['value']:.1f} % of the test data under {where}: "
            f"{_signed(regret['value'])} points of regret to an oracle that knows who is honest, "
            f"{_signed(worst['value'])} in its worst scenario ({scenario})."
        )

    def warnings(self, failures: Sequence[Mapping[str, Any]]) -> list[str]:
        """What a reader must know before the figures."""
        said = []
        silent = [name for name, card in self.facts.get("policies", {}).items() if card.get("attacks_seen") is None]
        if silent:
            said.append(
                f"The card of {', '.join(silent)} does not say which attacks it has seen: none is called held out."
            )
        if failures:
            said.append(f"{len(failures)} run(s) failed and are missing from every figure; they are listed below.")
        said += self.gaps()
        apart = self.mixed()
        if apart:
            said.append(
                f"Its runs are of several {' and '.join(apart)}, named at the end: they can differ by rounding, and by "
                "what was changed in between."
            )
        seeds = len({row["seed"] for row in self.rows})
        if seeds < _FEW_SEEDS:
            said.append(f"Only {seeds} seed{'s' * (seeds > 1)}: too few for intervals that one could lean on.")
        return said

    def mixed(self) -> list[str]:
        """In what the runs that gave these rows differ, as far as it was written down."""
        runs = [*self.facts.get("earlier", []), self.facts]
        kinds = {"revision": "revisions", "versions": "versions", "processor": "processors", "engines": "engines"}
        told = {kind: [run[kind] for run in runs if run.get(kind) is not None] for kind in kinds}
        return [kinds[kind] for kind, values in told.items() if any(value != values[0] for value in values)]

    def gaps(self) -> list[str]:
        """Which rules lack runs under attack that others have, in words."""
        runs: dict[str, set[tuple[Any, ...]]] = {}
        for row in self.rows:
            if row["malicious_fraction"]:
                runs.setdefault(row["rule"], set()).add((row["seed"], *task_of(row)))
        every = set().union(*runs.values())
        return [
            f"{rule} lacks {len(every - there)} of {len(every)} runs under attack. Its means leave out scenarios or "
            "seeds with gaps, so they flatter a rule that failed under the hard ones; its worst cases, the heat map "
            "and the table by attack are over all of its runs."
            for rule, there in runs.items()
            if there != every
        ]

    def _draw(self, name: str, title: str, caption: str, make: Callable[[], Figure | None]) -> Iterator[Drawing]:
        with styled():
            figure = make()
        if figure is None:
            return
        svg = to_svg(figure, name)
        folder = self.directory / PLOTS
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{name}.svg", svg.encode())
        write_atomically(folder / f"{name}.png", to_png(figure))
        yield Drawing(name, title, caption, inlined(svg, name, title), round(96 * figure.get_figwidth()))

    def _learning_panels(self, rules: Sequence[str]) -> dict[str, Any]:
        """The most harmful attacks, at the largest fraction and last heterogeneity that are there of each."""
        if not self.cells:
            return {}
        attacked = [row for row in self.main_rows if row["malicious_fraction"] and row.get("regret") is not None]
        harm: dict[str, list[float]] = {}
        for row in attacked:
            if kind_of(row["rule"], self.learned) == "rule":
                harm.setdefault(row["attack"], []).append(row["regret"])
        worst = sorted(harm, key=lambda attack: -float(np.mean(harm[attack])))[:_PANELS]
        panels = {}
        for attack in worst or [self.cells[0].cell.attack]:
            mine = [recorded for recorded in self.cells if recorded.cell.attack == attack]
            if mine:
                hardest = max(mine, key=lambda recorded: recorded.cell.malicious_fraction).cell
                where = (hardest.env_id, hardest.num_clients, hardest.malicious_fraction)
                alike = [r for r in mine if (r.cell.env_id, r.cell.num_clients, r.cell.malicious_fraction) == where]
                group = [r for r in alike if r.cell.heterogeneity == alike[-1].cell.heterogeneity]
                panels[_title(group[0])] = learning_curves(group, rules)
        return panels

    def _trust_cell(self) -> Recorded | None:
        if self._cell is not None:
            return next(recorded for recorded in self.cells if recorded.cell.name == self._cell)
        attacked = [recorded for recorded in self.cells if recorded.cell.malicious_fraction]
        worst = next(entry for entry in self.entries if entry["rule"] == self.focus)["worst_regret"]
        same = [r for r in attacked if all(getattr(r.cell, name) == worst[name] for name in TASK)]
        return next(iter([*same, *attacked]), None)

    def _trusting(self, rules: Sequence[str]) -> list[str]:
        """The rule in focus first, then the others that know no truth."""
        others = [r for r in rules if r != self.focus and kind_of(r, self.learned) != "reference" and r != "fedavg"]
        return [self.focus, *others]


def attack_statuses(rows: Sequence[Row], learned: Sequence[str]) -> dict[str, str]:
    """What is known of each attack: ``held out``, ``seen by NAME``, ``train attack``, ``not known to be held out``."""
    statuses = {}
    for attack in dict.fromkeys(row["attack"] for row in rows if row["malicious_fraction"]):
        mine = [row for row in rows if row["attack"] == attack]
        seers = list(dict.fromkeys(row["rule"] for row in mine if row.get("seen") and row["rule"] in learned))
        if seers:
            statuses[attack] = f"seen by {', '.join(seers)}"
        elif any(row["held_out"] for row in mine):
            statuses[attack] = "held out"
        else:
            trained = parse_attack(attack)[0] in TRAIN_ATTACKS
            statuses[attack] = "train attack" if trained else "not known to be held out"
    return statuses


def _recorded(directory: Path, rows: Sequence[Row]) -> list[Recorded]:
    """The cells of the rows whose curves are there."""
    found = {}
    for row in rows:
        if row.get("env_id") is None or row.get("num_clients") is None:
            continue
        cell = Cell.of(row)
        if cell not in found:
            found[cell] = Recorded(cell, directory / CURVES / curves_name(cell))
    return [recorded for recorded in found.values() if recorded.path.exists()]


def _auroc_table(aurocs: Sequence[Mapping[str, Any]]) -> Table:
    """A line per attack and heterogeneity, and one for their mean; a column per feature, and one for the best."""
    groups: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in aurocs:
        groups.setdefault((row["env_id"], row["attack"], row["heterogeneity"]), {})[row["feature"]] = row["auroc"]
    for scores in groups.values():
        scores["the best one"] = max(scores.values())
    columns = list(next(iter(groups.values())))
    for env_id, kind in dict.fromkeys((env_id, kind) for env_id, _, kind in groups):
        mine = [scores for key, scores in groups.items() if key[0::2] == (env_id, kind)]
        groups[env_id, "mean", kind] = {column: fmean(scores[column] for scores in mine) for column in columns}
    several = len({key[0] for key in groups}) > 1
    rows = []
    for (env_id, attack, kind), scores in groups.items():
        name = f"{attack}, {show_heterogeneity(kind)}" + (f", {figures.short(env_id)}" if several else "")
        rows.append([Value(name), *(Value(f"{scores[column]:.2f}", scores[column]) for column in columns)])
    caption = (
        "How well each feature by itself tells attackers from honest clients, and the best of them under each attack: "
        "AUROC along the anchored oracle's run (attacks that search against the deployed rule have none there, and are "
        "left out); 0.5 is chance, below it the feature points the wrong way"
    )
    header = ["attack", *(column.replace("_", " ") for column in columns)]
    return Table("features", caption, header, rows, ["rule"] * len(rows))


def _title(recorded: Recorded) -> str:
    cell = recorded.cell
    return f"{cell.attack}, {show_heterogeneity(cell.heterogeneity)}, {100 * cell.malicious_fraction:.0f} %"


def _signed(value: float) -> str:
    return f"{value:.1f}".replace("-", "−")
