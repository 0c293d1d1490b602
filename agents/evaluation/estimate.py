"""How long a grid will take, from a few measured rounds."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import torch

from agents.evaluation.cells import CellResult, run_cell
from agents.evaluation.contestants import Contestant
from agents.evaluation.execution import Known
from agents.evaluation.grid import FINAL_ROUNDS, NO_ATTACK, Cell, Grid, parse_attack
from agents.evaluation.runs import CURVE_SAMPLES, curve_rounds, meets_attackers, ready
from fl_core import Federation
from fl_core.attacks import Knowledge, make_attack

# Attacks that search are timed against one contestant after the other for about so long; after it, an attack is taken
# to cost against the others what it cost on average.
PROBE_SECONDS = 20.0


def estimate_seconds(grid: Grid, cells: Sequence[Cell], workers: int, known: Known | None = None) -> float:
    """Seconds that the cells will take, from one shortened cell for each environment and number of clients.

    What every seed pays once (an autoencoder) and what every round costs are told apart, because a shortened cell is
    nearly all the former. Attacks are taken to cost what the probed one does, but for those that search for what they
    send: what they add to a round is measured for each.

    Args:
        grid: The grid.
        cells: Those that are to be run.
        workers: Processes.
        known: By cell what is not run again; what is known everywhere is not probed either.
    """
    groups: dict[tuple[str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.env_id, cell.num_clients), []).append(cell)
    total = sum(_group_seconds(grid, group, workers, known or {}) for group in groups.values())
    return total / min(workers, len(cells)) if cells else 0.0


def _group_seconds(grid: Grid, cells: Sequence[Cell], workers: int, known: Known) -> float:
    """Seconds of one core for cells of one environment and number of clients."""
    contestants = grid.contestants(cells[0].env_id)
    missing = {one.label: [cell for cell in cells if one.label not in known.get(cell, {})] for one in contestants}
    plain = [cell for cell in cells if not _searches(cell.attack)]
    probe = max(plain or cells, key=lambda cell: cell.malicious_fraction)
    started = time.perf_counter()
    done = {label: 0.0 for label, left in missing.items() if not left}
    result = run_cell(replace(grid, rounds=FINAL_ROUNDS), probe, done)
    seconds = time.perf_counter() - started
    once = _set_up(result)
    round_seconds = [timing["seconds_per_round"] for timing in result.timings]
    # The rounds of the probe are final ones, which are scored by more than those of a curve.
    scoring = max(seconds - once - FINAL_ROUNDS * sum(round_seconds), 0) / max(len(round_seconds), 1)
    if round_seconds:
        scoring += (len(curve_rounds(grid.rounds)) - FINAL_ROUNDS) * _curve_seconds(grid, probe)
    seeds = len({cell.seed for cell in cells})
    total = seeds * once * min(workers, len(cells) / seeds)  # at worst, every worker meets every seed
    attacked = [one for one in contestants if meets_attackers(grid, one) and missing[one.label]]
    run_under_attack = {one.label for one in attacked}
    for timing, of_round in zip(result.timings, round_seconds, strict=True):
        left = missing[timing["rule"]]
        runs = len(left)
        if timing["rule"] not in run_under_attack:
            # References are run once for all attacks on the same clients, at worst in every worker.
            runs = min(len({replace(cell, attack=NO_ATTACK) for cell in left}) * workers, runs)
        total += runs * (grid.rounds * of_round + scoring)
    if plain:
        total += grid.rounds * _searching_seconds(grid, probe, [(one, missing[one.label]) for one in attacked])
    return total


def _searching_seconds(grid: Grid, plain: Cell, missing: Sequence[tuple[Contestant, Sequence[Cell]]]) -> float:
    """What attacks that search add, over ``plain``, to one round of each of the cells that contestants miss."""
    total, started = 0.0, time.perf_counter()
    measured: dict[str, list[float]] = {}
    for contestant, cells in missing:
        usual = None
        for attack, count in Counter(cell.attack for cell in cells if _searches(cell.attack)).items():
            of_attack = measured.setdefault(attack, [])
            if of_attack and time.perf_counter() - started > PROBE_SECONDS:
                total += count * fmean(of_attack)
                continue
            dear = max((cell for cell in cells if cell.attack == attack), key=lambda cell: cell.malicious_fraction)
            try:
                usual = _round_seconds(grid, plain, contestant) if usual is None else usual
                added = max(_round_seconds(grid, dear, contestant) - usual, 0.0)
            except Exception:  # what fails here fails in its cell, where it is recorded
                continue
            of_attack.append(added)
            total += count * added
    return total


def show_seconds(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _searches(attack: str) -> bool:
    name, options = parse_attack(attack)
    return make_attack(name, **options).knows in (Knowledge.RULE, Knowledge.FINGERPRINT, Knowledge.POLICY)


def _curve_seconds(grid: Grid, cell: Cell) -> float:
    """A point of the curve of test accuracy."""
    federation = Federation(grid.config(cell.env_id, cell.num_clients, cell.seed))
    federation.reset(cell.scenario(), entropy=cell.seed)
    present = torch.zeros_like(federation.shared[None])
    started = time.perf_counter()
    federation.evaluate(present, "test", at_most=CURVE_SAMPLES)
    return time.perf_counter() - started


def _round_seconds(grid: Grid, cell: Cell, contestant: Contestant) -> float:
    """Training and attack of the second round; in the first, left in peace, an autoencoder may be trained."""
    config = grid.config(cell.env_id, cell.num_clients, cell.seed)
    federation = Federation(config)
    federation.reset(replace(cell.scenario(), onset=1), entropy=cell.seed)
    rule = ready(contestant.make(config, cell.seed), federation)
    federation.apply(rule(federation.local_round(rule).view).update)
    started = time.perf_counter()
    federation.local_round(rule)
    return time.perf_counter() - started


def _set_up(result: CellResult) -> float:
    """What first rounds took above the usual: trained once a seed, and kept in the process."""
    return max((t["first_round_seconds"] - t["seconds_per_round"] for t in result.timings), default=0.0)
