"""How long a grid will take, from a few measured rounds."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from agents.evaluation.cells import CellResult, run_cell
from agents.evaluation.execution import Known
from agents.evaluation.grid import FINAL_ROUNDS, NO_ATTACK, Cell, Grid, parse_attack
from agents.evaluation.runs import curve_rounds, meets_attackers, ready
from fl_core import Federation
from fl_core.attacks import Knowledge, make_attack


def estimate_seconds(grid: Grid, cells: Sequence[Cell], workers: int, known: Known | None = None) -> float:
    """Seconds that the cells will take, from one shortened cell for each environment and number of clients.

    What every seed pays once (an autoencoder) and what every round costs are told apart, because a shortened cell is
    nearly all the former. Attacks are taken to cost what the probed one does, but for those that search for what they
    send: what they add to a round is measured for each, against every contestant.

    Args:
        grid: The grid.
        cells: Those that are to be run.
        workers: Processes.
        known: By cell what is not run again; its share of the rules is taken off, whatever each costs.
    """
    short = replace(grid, rounds=FINAL_ROUNDS)
    groups = Counter((cell.env_id, cell.num_clients) for cell in cells)
    total = 0.0
    for group, count in groups.items():
        mine = [cell for cell in cells if (cell.env_id, cell.num_clients) == group]
        plain = [cell for cell in mine if not _searches(cell.attack)]
        probe = max(plain or mine, key=lambda cell: cell.malicious_fraction)
        run_once = {one.label for one in grid.contestants(probe.env_id) if not meets_attackers(grid, one)}
        started = time.perf_counter()
        result = run_cell(short, probe)
        seconds = time.perf_counter() - started
        once = _set_up(result)
        round_seconds = [timing["seconds_per_round"] for timing in result.timings]
        scoring = max(seconds - once - FINAL_ROUNDS * sum(round_seconds), 0) / FINAL_ROUNDS / max(len(round_seconds), 1)
        seeds = len({cell.seed for cell in mine})
        total += seeds * once * min(workers, count / seeds)  # at worst, every worker meets every seed
        # References are run once for all attacks on the same clients, at worst in every worker.
        reference_runs = min(len({replace(cell, attack=NO_ATTACK) for cell in mine}) * workers, count)
        for timing, of_round in zip(result.timings, round_seconds, strict=True):
            runs = reference_runs if timing["rule"] in run_once else count
            total += runs * (grid.rounds * of_round + len(curve_rounds(grid.rounds)) * scoring)
        searching = Counter(cell.attack for cell in mine if _searches(cell.attack)) if plain else Counter()
        if searching:
            usual = _round_seconds(grid, probe)
        for attack, of_attack in searching.items():
            dear = max((cell for cell in mine if cell.attack == attack), key=lambda cell: cell.malicious_fraction)
            total += of_attack * grid.rounds * max(_round_seconds(grid, dear) - usual, 0)
    rules = sum(len(grid.contestants(cell.env_id)) for cell in cells)
    left = 1 - sum(len((known or {}).get(cell, {})) for cell in cells) / max(rules, 1)
    return left * total / min(workers, len(cells)) if cells else 0.0


def show_seconds(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _searches(attack: str) -> bool:
    name, options = parse_attack(attack)
    return make_attack(name, **options).knows in (Knowledge.RULE, Knowledge.FINGERPRINT, Knowledge.POLICY)


def _round_seconds(grid: Grid, cell: Cell) -> float:
    """Training and attack of the second round of all who meet attackers: in the first an autoencoder may be trained."""
    seconds = 0.0
    for contestant in grid.contestants(cell.env_id):
        if not meets_attackers(grid, contestant):
            continue
        config = grid.config(cell.env_id, cell.num_clients, cell.seed)
        federation = Federation(config)
        federation.reset(cell.scenario(), entropy=cell.seed)
        try:
            rule = ready(contestant.make(config, cell.seed), federation)
            federation.apply(rule(federation.local_round(rule).view).update)
            started = time.perf_counter()
            federation.local_round(rule)
            seconds += time.perf_counter() - started
        except Exception:  # what fails here fails in its cell, where it is recorded
            continue
    return seconds


def _set_up(result: CellResult) -> float:
    """What first rounds took above the usual: trained once a seed, and kept in the process."""
    return max((t["first_round_seconds"] - t["seconds_per_round"] for t in result.timings), default=0.0)
