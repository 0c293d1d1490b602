"""Tables of a report, once, and what they look like in HTML, Markdown, LaTeX, CSV and on a terminal."""

import csv
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from rich.table import Table as RichTable

from agents.evaluation.heterogeneity import show_heterogeneity
from agents.evaluation.summary import Entry, kind_of

# What must be said of an environment and a number of clients, see ``places``.
Place = Callable[[Any, Any], list[str]]

_DASH = "–"
_BACKDOOR = "worst backdoor success"
_ON_A_TERMINAL = ("rule", "accuracy, attacked", "regret", "worst regret", _BACKDOOR, "accuracy, no attack", "server ms")


@dataclass(frozen=True)
class Value:
    """One field of a table.

    Attributes:
        text: What is shown.
        number: What is sorted by and goes into a CSV; NaN for words and for missing figures.
        low: Lower end of the interval, or NaN.
        high: Upper end.
        note: Said in small print: which scenario was worst.
    """

    text: str
    number: float = nan
    low: float = nan
    high: float = nan
    note: str = ""

    @property
    def interval(self) -> str:
        """``[1.0, 2.0]``, or nothing."""
        decimals = len(self.text.partition(".")[2])
        return "" if isnan(self.low) else f"[{_plain(self.low, decimals)}, {_plain(self.high, decimals)}]"

    def __str__(self) -> str:
        return " ".join(part for part in (self.text, self.interval, self.note and f"({self.note})") if part)


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: File name without ending.
        caption: What it shows.
        header: Columns.
        rows: Lines, the first field of each its name.
        kinds: Of each line, for its looks: ``policy``, ``rule``, ``reference``, ``control``.
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Value]]
    kinds: Sequence[str]


def nowhere(env_id: Any, num_clients: Any) -> list[str]:
    """The ``Place`` of tables that are of one environment and number of clients."""
    return []


def headline(
    entries: Sequence[Entry], learned: Sequence[str], name: str, caption: str, place: Place = nowhere
) -> Table:
    """The main table: what each rule reaches under attack, its worst case, and what it costs without one."""
    kinds = list(entries[0]["regret_by_heterogeneity"]) if entries else []
    several = kinds if len(kinds) > 1 else []
    # Accuracy does not show a backdoor. Where no attack has a target, there is none to show.
    aimed = any(not isnan(entry["worst_backdoor"]["value"]) for entry in entries)
    header = [
        "rule",
        "accuracy, attacked",
        "IQM",
        "worst scenario",
        "regret",
        *(f"regret, {show_heterogeneity(kind)}" for kind in several),
        "worst regret",
        *([_BACKDOOR] if aimed else []),
        "regret to anchored oracle",
        "normalised score (IQM)",
        "accuracy, no attack",
        "server ms",
    ]
    rows = [
        [
            Value(entry["rule"]),
            figure(entry["accuracy"]),
            figure(entry["accuracy_iqm"]),
            worst(entry["worst_accuracy"], place),
            figure(entry["regret"]),
            *(figure(entry["regret_by_heterogeneity"][kind]) for kind in several),
            worst(entry["worst_regret"], place),
            *([worst(entry["worst_backdoor"], place)] if aimed else []),
            figure(entry["regret_anchored"]),
            figure(entry["normalised_score"], 2),
            figure(entry["accuracy_no_attack"]),
            number(1e3 * entry["server_seconds"]),
        ]
        for entry in entries
    ]
    return Table(name, caption, header, rows, [kind_of(entry["rule"], learned) for entry in entries])


def merits(entries: Sequence[Entry], learned: Sequence[str], name: str, caption: str) -> Table:
    """The other figures of merit: who is hit, who is found out, and how soon it is good."""
    header = [
        "rule",
        "attack impact",
        "backdoor success",
        "worst class",
        "personalised, mean",
        "worst honest client",
        "detection AUROC",
        "precision",
        "recall",
        "false positives, no attack",
        "honest weight share",
        "rounds to 90 % of oracle",
    ]
    rows = [
        [
            Value(entry["rule"]),
            figure(entry["attack_impact"]),
            figure(entry["attack_success"]),
            figure(entry["worst_class"]),
            figure(entry["personalised"]),
            figure(entry["worst_client"]),
            figure(entry["detection_auroc"], 2),
            figure(entry["detection_precision"], 2),
            figure(entry["detection_recall"], 2),
            figure(entry["false_positive_rate"], 2),
            figure(entry["honest_weight_share"], 2),
            _rounds(entry["rounds_to_oracle"]),
        ]
        for entry in entries
    ]
    return Table(name, caption, header, rows, [kind_of(entry["rule"], learned) for entry in entries])


def costs(entries: Sequence[Entry], learned: Sequence[str]) -> Table:
    """What a round costs, see ``costs_by_place``."""
    place = places((entry["env_id"], entry["num_clients"]) for entry in entries)
    where = [place(entry["env_id"], entry["num_clients"]) for entry in entries]
    several = any(where)
    header = ["rule", *(["in"] if several else []), "round ms", "server ms", "features ms", "peak MiB"]
    caption = (
        "Cost of a round, median: all of it, the server's aggregation, the features' part of that; and the memory that "
        "the aggregation took above what was there before it"
    )
    rows = [
        [
            Value(entry["rule"]),
            *([Value(", ".join(said))] if several else []),
            *(number(1e3 * entry[name]) for name in ("seconds_per_round", "server_seconds", "feature_seconds")),
            number(entry["peak_memory_mib"]),
        ]
        for entry, said in zip(entries, where, strict=True)
    ]
    return Table("costs", caption, header, rows, [kind_of(entry["rule"], learned) for entry in entries])


def comparison(rule: str, comparisons: Sequence[Mapping[str, Any]], learned: Sequence[str]) -> Table:
    """One rule against every other, paired."""
    header = ["other", f"{rule} minus other", "probability of improvement"]
    rows = [[Value(c["other"]), figure(c["difference"]), figure(c["improvement"], 2)] for c in comparisons]
    caption = (
        f"{rule} against every other rule: paired difference of accuracy under attack, points, and the probability "
        "that a run of it is better than one of the other's in the same scenario"
    )
    return Table("comparison", caption, header, rows, [kind_of(c["other"], learned) for c in comparisons])


def circumstances(entries: Sequence[Entry], learned: Sequence[str]) -> Table:
    """Each rule in each of the circumstances, the attacks taken together."""
    header = [
        "rule",
        "in",
        "accuracy",
        "regret",
        "regret to anchored oracle",
        "worst regret",
        "behind FedAvg",
        "above root only, worst attack",
    ]
    place = places((entry["env_id"], entry["num_clients"]) for entry in entries)
    rows = []
    for entry in entries:
        fraction = entry["malicious_fraction"]
        malicious = f"{100 * fraction:.0f} % malicious" if fraction else "no attack"
        where = [show_heterogeneity(entry["heterogeneity"]), malicious, *place(entry["env_id"], entry["num_clients"])]
        rows.append(
            [
                Value(entry["rule"]),
                Value(", ".join(where)),
                *(figure(entry[name]) for name in ("accuracy", "regret", "regret_anchored")),
                worst(entry["worst_regret"]),
                figure(entry["behind_fedavg"]),
                number(entry["above_root_only"]),
            ]
        )
    caption = "By circumstances: mean over the attacks, and the worst of them"
    return Table("circumstances", caption, header, rows, [kind_of(entry["rule"], learned) for entry in entries])


def attacks(regrets: Mapping[tuple[Any, ...], Mapping[str, float]], rules: Sequence[str]) -> Table:
    """Regret of every rule in every scenario under attack."""
    place = places((task[0], task[1]) for task in regrets)
    rows = []
    for (env_id, clients, kind, attack, fraction), of_rule in regrets.items():
        name = ", ".join((attack, show_heterogeneity(kind), f"{100 * fraction:.0f} %", *place(env_id, clients)))
        rows.append([Value(name), *(number(of_rule.get(rule, nan)) for rule in rules)])
    caption = "Regret under each attack, mean over seeds"
    return Table("attacks", caption, ["scenario", *rules], rows, ["rule"] * len(rows))


def places(found: Iterable[tuple[Any, Any]]) -> Place:
    """What must be said of an environment and a number of clients, where there are several of either."""
    pairs = set(found)
    ids, sizes = {env_id for env_id, _ in pairs}, {clients for _, clients in pairs}
    return lambda env_id, clients: (
        ([f"{clients:.0f} clients"] if len(sizes) > 1 else []) + ([str(env_id)] if len(ids) > 1 else [])
    )


def figure(estimate: Mapping[str, Any], decimals: int = 1) -> Value:
    """An ``Estimate`` as a field."""
    value = estimate["value"]
    if isnan(value):
        return Value(_DASH)
    return Value(_plain(value, decimals), value, estimate["low"], estimate["high"])


def worst(scenario: Mapping[str, Any], place: Place = nowhere) -> Value:
    """The worst scenario as a field."""
    if isnan(scenario["value"]):
        return Value(_DASH)
    kind = show_heterogeneity(scenario["heterogeneity"])
    where = place(scenario["env_id"], scenario["num_clients"])
    parts = (scenario["attack"], kind, f"{100 * scenario['malicious_fraction']:.0f} %", *where)
    note = ", ".join(part.replace(" ", "\u00a0") for part in parts)
    return Value(_plain(scenario["value"], 1), scenario["value"], note=note)


def number(value: float) -> Value:
    """A bare figure as a field."""
    return Value(_DASH) if isnan(value) else Value(_plain(value, 1), value)


def _rounds(rounds: Mapping[str, float]) -> Value:
    if isnan(rounds["median"]):
        return Value(_DASH)
    return Value(f"{rounds['median']:.0f}", rounds["median"], note=f"{100 * rounds['share']:.0f} % of runs")


def _plain(value: float, decimals: int) -> str:
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if not float(text) else text.replace("-", "−")  # no -0.0


def to_html(table: Table) -> str:
    """A table whose columns sort on a click; the script is the page's."""
    head = "".join(
        f'<th scope="col" aria-sort="none"><button type="button">{html.escape(name)}</button></th>'
        for name in table.header
    )
    body = "".join(
        f'<tr class="{kind}">' + "".join(_field(value, i == 0) for i, value in enumerate(row)) + "</tr>"
        for row, kind in zip(table.rows, table.kinds, strict=True)
    )
    return (
        f'<figure class="table" id="table-{table.name}"><figcaption>{html.escape(table.caption)}</figcaption>'
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        "</figure>"
    )


def _field(value: Value, first: bool) -> str:
    if first:
        return f'<th scope="row">{html.escape(value.text)}</th>'
    small = f"<small>{html.escape(value.interval)}</small>" if value.interval else ""
    small += f'<small class="note">{html.escape(value.note)}</small>' if value.note else ""
    key = "" if isnan(value.number) else f' data-value="{value.number!r}"'
    return f"<td{key}>{html.escape(value.text)}{small}</td>"


def to_markdown(table: Table) -> str:
    """The table for a document."""
    lines = [
        list(table.header),
        ["---", *["---:"] * (len(table.header) - 1)],
        *([str(v) for v in r] for r in table.rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_csv(table: Table) -> str:
    """Numbers in full, with the ends of their intervals in columns of their own where there are any; words as such."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    columns = list(range(1, len(table.header)))
    wide = [any(not isnan(row[i].low) for row in table.rows) for i in columns]
    header = [table.header[0]]
    for i, has_interval in zip(columns, wide, strict=True):
        name = table.header[i]
        header += [name, f"{name}, low", f"{name}, high"] if has_interval else [name]
    writer.writerow(header)
    for row in table.rows:
        line = [row[0].text]
        for i, has_interval in zip(columns, wide, strict=True):
            value = row[i]
            words = value.text if isnan(value.number) and value.text != _DASH else ""
            parts = (value.number, value.low, value.high)[: 3 if has_interval else 1]
            line += [words if isnan(part) else repr(part) for part in parts]
        writer.writerow(line)
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    """A ``booktabs`` tabular; intervals in small print."""
    lines = [
        f"% {table.caption}",
        r"\begin{tabular}{l" + "r" * (len(table.header) - 1) + "}",
        r"\toprule",
        " & ".join(map(_latex, table.header)) + r" \\",
        r"\midrule",
    ]
    for row in table.rows:
        fields = [_latex(row[0].text)]
        for value in row[1:]:
            interval = rf" {{\scriptsize {_latex(value.interval)}}}" if value.interval else ""
            fields.append(_latex(value.text) + interval)
        lines.append(" & ".join(fields) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_LATEX = {
    **{character: "\\" + character for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}", "α": r"$\alpha$", "−": "$-$", "–": "--"},
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def to_rich(table: Table) -> RichTable:
    """The columns of the headline table that a terminal has room for; learned policies stand out."""
    columns = [i for i, name in enumerate(table.header) if name in _ON_A_TERMINAL]
    shown = RichTable(title=table.caption)
    for i in columns:
        shown.add_column(table.header[i], justify="right" if i else "left", no_wrap=True)
    styles = {"policy": "bold", "reference": "dim", "control": "dim italic"}
    for row, kind in zip(table.rows, table.kinds, strict=True):
        fields = (" ".join(filter(None, (row[i].text, row[i].interval))) for i in columns)
        shown.add_row(*fields, style=styles.get(kind))
    return shown
