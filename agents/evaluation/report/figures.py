"""The plots of a report. Each takes rows or curves and returns a figure, or ``None`` where there is nothing to show."""

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Patch
from numpy.typing import NDArray

from agents.evaluation.heterogeneity import show_heterogeneity
from agents.evaluation.report.curves import Arrays
from agents.evaluation.report.style import HONEST, INK, MALICIOUS, MUTED, Look, legend_below
from agents.evaluation.summary import Entry
from agents.statistics import (
    Row,
    estimate,
    heterogeneities_of,
    performance_profile,
    resampled,
    score_matrix,
)
from fl_core.fingerprint import FEATURES

# Regret, in points, at which the heatmap's colour is full.
_FULL = 40.0
_DIVERGING = LinearSegmentedColormap.from_list("regret", ["#1f6f8b", "#8fc1cf", "#f4f1ea", "#f0a58f", "#b3243b"])
SEEN_MARK = "†"


def short(env_id: str) -> str:
    """``OptiGrad/Digits-v0`` as ``Digits``."""
    return env_id.removeprefix("OptiGrad/").removesuffix("-v0")


def environments_of(rows: Sequence[Row]) -> list[str]:
    """Environments in the rows; older files name none."""
    return list(dict.fromkeys(str(row.get("env_id", "")) for row in rows))


def heatmap(rows: Sequence[Row], rules: Sequence[str], seen: set[str]) -> Figure | None:
    """Mean regret of each rule under each attack, with mean and worst at the right; a panel an environment."""
    attacked = [row for row in rows if row["malicious_fraction"] and row.get("regret") is not None]
    attacks = list(dict.fromkeys(row["attack"] for row in attacked))
    if not attacks:
        return None
    envs = environments_of(attacked)
    width, height = 2.6 + 0.62 * (len(attacks) + 2), 0.42 * len(rules) + 1.9
    figure = Figure(figsize=(max(width, 5.5), height * len(envs)), layout="constrained")
    panels = figure.subplots(len(envs), 1, squeeze=False)[:, 0]
    for axes, env_id in zip(panels, envs, strict=True):
        table = _mean_regrets([row for row in attacked if str(row.get("env_id", "")) == env_id], rules, attacks)
        _draw_heatmap(axes, table, rules, [f"{a} {SEEN_MARK}" if a in seen else a for a in attacks])
        axes.set_title(f"{short(env_id)}: regret to the oracle, points".removeprefix(": "), loc="left")
    return figure


def _mean_regrets(rows: Sequence[Row], rules: Sequence[str], attacks: Sequence[str]) -> NDArray[np.float64]:
    values: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        values.setdefault((row["rule"], row["attack"]), []).append(100 * row["regret"])
    means = np.array([[np.mean(values.get((rule, attack), [nan])) for attack in attacks] for rule in rules])
    known = np.where(np.isnan(means).all(axis=1, keepdims=True), 0.0, means)
    summary = np.stack([np.nanmean(known, axis=1), np.nanmax(known, axis=1)], axis=1)
    summary[np.isnan(means).all(axis=1)] = nan
    return np.concatenate([means, summary], axis=1)


def _draw_heatmap(axes: Axes, table: NDArray[np.float64], rules: Sequence[str], attacks: Sequence[str]) -> None:
    rows, columns = table.shape
    shift = [*map(float, range(columns - 2)), columns - 1.75, columns - 0.75]  # mean and worst stand apart
    norm = TwoSlopeNorm(0, -_FULL, _FULL)
    for i, j in np.ndindex(rows, columns):
        value = table[i, j]
        if isnan(value):
            continue
        color = _DIVERGING(norm(np.clip(value, -_FULL, _FULL)))
        axes.add_patch(_square(shift[j], i, color))
        dark = sum(c * w for c, w in zip(color[:3], (0.299, 0.587, 0.114), strict=True)) < 0.55
        text = f"{value:.0f}" if abs(value) >= 9.95 else f"{value if abs(value) >= 0.05 else 0.0:.1f}"
        text = text.replace("-", "−")
        axes.text(shift[j], i, text, ha="center", va="center", fontsize=8, color="#ffffff" if dark else "#101010")
    axes.set(xlim=(-0.5, columns - 0.25), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(shift, [*attacks, "mean", "worst"], rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(rows), rules)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _square(x: float, y: float, color: Any) -> Patch:
    return FancyBboxPatch((x - 0.46, y - 0.44), 0.92, 0.88, boxstyle="round,pad=0,rounding_size=0.08", fc=color, lw=0)


def regret_by_fraction(rows: Sequence[Row], looks: Mapping[str, Look]) -> Figure | None:
    """Regret, mean over attacks with its interval over seeds, against the share of malicious clients."""
    fractions = sorted({row["malicious_fraction"] for row in rows})
    if len(fractions) < 2:
        return None
    envs, kinds = environments_of(rows), heterogeneities_of(rows)
    figure = Figure(figsize=(max(3.1 * len(kinds), 5.5), 2.9 * len(envs) + 0.8), layout="constrained")
    panels = figure.subplots(len(envs), len(kinds), squeeze=False, sharey="row", sharex=True)
    for (i, env_id), (j, kind) in ((e, k) for e in enumerate(envs) for k in enumerate(kinds)):
        axes = panels[i, j]
        here = [r for r in rows if str(r.get("env_id", "")) == env_id and r["heterogeneity"] == kind]
        for rule, look in looks.items():
            points = []
            for fraction in fractions:
                mine = [r for r in here if r["rule"] == rule and r["malicious_fraction"] == fraction]
                points.append(estimate(score_matrix(mine, "regret", 100)[0]))
            values = [point.value for point in points]
            axes.plot(fractions, values, label=rule, markersize=4, **look.line())
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(fractions, low, high, color=look.color, alpha=0.13, lw=0)
        axes.set_title(", ".join(filter(None, (short(env_id), show_heterogeneity(kind)))), loc="left")
        axes.set_yscale("symlog", linthresh=5)
        axes.yaxis.set_major_formatter("{x:g}")
        if i == len(envs) - 1:
            axes.set_xlabel("share of malicious clients")
        if j == 0:
            axes.set_ylabel("regret, points (lower is better)")
    legend_below(figure, panels[0, 0])
    return figure


def learning(
    panels: Mapping[str, tuple[NDArray[Any], Mapping[str, NDArray[np.float64]]]], looks: Mapping[str, Look]
) -> Figure | None:
    """Test accuracy by round; mean over seeds with its bootstrap interval. A panel a scenario, at most six."""
    if not panels:
        return None
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(max(3.3 * columns, 5.5), 2.7 * lines + 0.9), layout="constrained")
    every = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, (title, (rounds, curves)) in zip(every, panels.items(), strict=False):
        for rule, seeds in curves.items():
            look = looks[rule]
            axes.plot(rounds + 1, 100 * seeds.mean(axis=0), label=rule, **look.line(marks=False))
            if len(seeds) > 1:
                low, high = np.quantile(resampled(100 * seeds, repetitions=500).mean(axis=1), [0.025, 0.975], axis=0)
                axes.fill_between(rounds + 1, low, high, color=look.color, alpha=0.13, lw=0)
        axes.set_title(title, loc="left")
    axes_list = figure.axes
    for axes in axes_list[len(panels) :]:
        axes.set_visible(False)
    for axes in axes_list[::columns]:
        axes.set_ylabel("test accuracy, %")
    for axes in axes_list[max(len(panels) - columns, 0) : len(panels)]:
        axes.set_xlabel("round")
        axes.tick_params(labelbottom=True)
    legend_below(figure, axes_list[0])
    return figure


def trust(arrays: Arrays, rules: Sequence[str]) -> Figure | None:
    """Weight of every client, times N, over the rounds of one cell: 1 is an equal share. At most four rules."""
    shown = [rule for rule in rules if f"{rule}/weights" in arrays][:4]
    if not shown:
        return None
    figure = Figure(figsize=(max(3.1 * len(shown), 5.5), 3.0), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    malicious = arrays["malicious"]
    for axes, rule in zip(panels, shown, strict=True):
        weights = arrays[f"{rule}/weights"]
        shares = weights * weights.shape[1]
        rounds = np.arange(1, len(shares) + 1)
        thin = max(0.5, 1.4 - shares.shape[1] / 60)
        for client, bad in enumerate(malicious):
            axes.plot(rounds, shares[:, client], color=MALICIOUS if bad else HONEST, alpha=0.55, lw=thin)
        for color, mask in ((HONEST, ~malicious), (MALICIOUS, malicious)):
            if mask.any():
                axes.plot(rounds, shares[:, mask].mean(axis=1), color=color, lw=2.6)
        axes.axhline(1, color=MUTED, lw=0.8, ls=":")
        axes.set_title(rule, loc="left")
        axes.set_xlabel("round")
    panels[0].set_ylabel("weight × N")
    handles = [Patch(color=HONEST, label="honest"), Patch(color=MALICIOUS, label="malicious")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def feature_violins(features: NDArray[np.float32], corrupted: NDArray[np.bool_]) -> Figure | None:
    """Distribution of each feature over honest and attacking clients."""
    if not corrupted.any() or corrupted.all():
        return None
    figure = Figure(figsize=(9.5, 3.0), layout="constrained")
    panels = figure.subplots(1, len(FEATURES))
    for axes, name, column in zip(panels, FEATURES, features.T, strict=True):
        for side, color, mask in (("low", HONEST, ~corrupted), ("high", MALICIOUS, corrupted)):
            values = column[mask].astype(np.float64)
            if np.ptp(values) == 0:  # a density of a single value does not exist
                axes.hlines(values[0], *((-0.3, 0) if side == "low" else (0, 0.3)), color=color, lw=2)
                continue
            parts = axes.violinplot([values], [0], widths=0.85, showextrema=False, side=side)
            for body in parts["bodies"]:
                body.set(facecolor=color, alpha=0.75, edgecolor=color)
            middle = float(np.median(values))
            axes.hlines(middle, *((-0.2, 0) if side == "low" else (0, 0.2)), color=INK, lw=1.2)
        axes.set_title(name.replace("_", "\n", 1), fontsize=9)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    handles = [Patch(color=HONEST, label="honest"), Patch(color=MALICIOUS, label="attacking")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def time_accuracy(entries: Sequence[Entry], looks: Mapping[str, Look]) -> Figure | None:
    """Accuracy under attack against the server's time a round; up and left is better."""
    shown = [e for e in entries if not isnan(e["server_seconds"]) and not isnan(e["accuracy"]["value"])]
    shown = [e for e in shown if e["rule"] in looks]
    if not shown:
        return None
    figure = Figure(figsize=(6.6, 4.0), layout="constrained")
    axes = figure.subplots()
    for entry in shown:
        look, accuracy = looks[entry["rule"]], entry["accuracy"]
        x, y = 1e3 * entry["server_seconds"], accuracy["value"]
        error = None if isnan(accuracy["low"]) else [[max(y - accuracy["low"], 0)], [max(accuracy["high"] - y, 0)]]
        mark = look.marker or "o"
        axes.errorbar(x, y, yerr=error, fmt=mark, color=look.color, markersize=6, lw=1.2, label=entry["rule"])
    axes.set_xscale("log")
    axes.set(xlabel="server's milliseconds a round (features included)", ylabel="test accuracy under attack, %")
    axes.margins(x=0.12, y=0.1)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def profiles(rows: Sequence[Row], looks: Mapping[str, Look]) -> Figure | None:
    """Share of runs under attack whose accuracy is above a threshold, with bootstrap bands."""
    attacked = [row for row in rows if row["malicious_fraction"]]
    thresholds = np.linspace(0, 100, 101)
    scores = {rule: score_matrix([r for r in attacked if r["rule"] == rule], "test_accuracy", 100)[0] for rule in looks}
    scores = {rule: matrix for rule, matrix in scores.items() if matrix.size}
    if not scores:
        return None
    figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    axes = figure.subplots()
    for rule, matrix in scores.items():
        look = looks[rule]
        axes.plot(thresholds, performance_profile(matrix, thresholds), label=rule, **look.line(marks=False))
        if len(matrix) > 1:
            replicates = performance_profile(resampled(matrix, repetitions=200), thresholds)
            low, high = np.quantile(replicates, [0.025, 0.975], axis=0)
            axes.fill_between(thresholds, low, high, color=look.color, alpha=0.1, lw=0)
    lowest = min(float(matrix.min()) for matrix in scores.values())
    axes.set(xlim=(max(lowest - 5, 0), 100), xlabel="test accuracy τ, %", ylabel="share of runs above τ")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure
