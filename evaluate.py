"""Benchmarks trust policies against aggregation rules: `python evaluate.py --help`."""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from rich.console import Console
from tqdm import tqdm

from agents.dataset_options import parse_dataset_options
from agents.environments import available_cores
from agents.evaluation.benchmark import Benchmark
from agents.evaluation.cells import CellResult
from agents.evaluation.configuration import make_grid, read_config, read_preset
from agents.evaluation.estimate import estimate_seconds, show_seconds
from agents.evaluation.execution import check_ray
from agents.evaluation.files import FAILURES
from agents.evaluation.report.tables import to_rich
from fl_core.registry import check_known

_GRID = (
    *("rules", "policies", "attacks", "malicious_fraction", "heterogeneity", "seeds", "first_seed", "env_id"),
    *("num_clients", "rounds", "num_byzantine"),
)


@dataclass(frozen=True)
class Arguments:
    """Runs every rule and policy on the same federations and writes results.csv and report.html.

    Every rule sees the same partition, attackers, initial model and client batches for a seed. Accuracy is the mean
    over the last three rounds on test data. A run that was stopped is continued by the same command; with more rules,
    policies, attacks or seeds it runs what is not there yet. What is left unsaid comes from --config, then --preset,
    then the defaults: the held-out attacks on digits, 0 and 30 % malicious, alpha 0.5 and 0.1, five seeds.
    """

    preset: str | None = None
    """A grid that comes with the package: quick, paper, held-out, adaptive, scaling."""
    config: Path | None = None
    """YAML file of settings by the names of these flags, and `settings:` of the federations."""
    policies: tuple[str, ...] | None = None
    """Run directories of trained policies; `shipped` is the one that comes with the package for each data set, or that
    for Fashion-MNIST. `shipped:safeguard=false` weighs its trust otherwise. If neither policies nor rules are said, it
    is compared with the usual rules."""
    rules: tuple[str, ...] | None = None
    """Aggregation rules; oracle, anchored_oracle and root_only are always run, for the figures of merit."""
    attacks: tuple[str, ...] | None = None
    """Attacks by name (`ipm:epsilon=2` sets an option), or train, train_colluding, held_out, adaptive, all."""
    malicious_fraction: tuple[float, ...] | None = None
    """Shares of malicious clients; 0 is one scenario without attack."""
    heterogeneity: Annotated[tuple[str, ...] | None, tyro.conf.arg(aliases=["--alpha"])] = None
    """Dirichlet alphas of the clients' labels (small is heterogeneous), iid, label_skew_70, label_skew_90, ..."""
    seeds: int | None = None
    """Number of seeds."""
    first_seed: int | None = None
    """The first of them; 0 unless the preset or the file says otherwise. Other seeds are other root data, clients,
    attackers and initial weights; test samples stay."""
    env_id: tuple[str, ...] | None = None
    """Environments whose federations are used."""
    num_clients: tuple[int, ...] | None = None
    """Numbers of clients, by default the environment's."""
    rounds: int | None = None
    """Rounds of a run; 20 by default."""
    num_byzantine: int | None = None
    """What rules that need it are told; by default each assumes 30 % of the clients."""
    controls: bool = False
    """Run the negative controls too: features shuffled between clients, labels of the root data shuffled."""
    features: bool = True
    """Record the features of every client, for the report."""
    plugin: Annotated[tuple[Path, ...], tyro.conf.UseAppendAction] = ()
    """Python file that registers attacks and rules of your own; may be given several times."""
    data_dir: Path | None = None
    """Where the data sets' files are; by default $OPTIGRAD_DATA, else the user's cache directory."""
    download: bool = False
    """Fetch the data sets' files if they are missing."""
    dataset_options: tuple[str, ...] = ()
    """What the data set takes, as NAME=VALUE: `image_size=64`, and for folders of one's own `group_pattern=REGEX`, so
    that images of one patient stay together. As in training."""
    workers: int = available_cores()
    """Processes, one thread each; by default one a core."""
    ray: str | None = None
    """Address of a Ray cluster to run on instead; `auto` finds one on this machine."""
    out: Path = Path("results/evaluation")
    """Where the results go; a run of the same grid, or of a part of it, that is there is continued."""
    overwrite: bool = False
    """Replace the results that are there. Leave it out to continue a run that was stopped."""
    reuse: tuple[Path, ...] = ()
    """Results directories of which the same cells are taken over instead of run, if --out holds no rows yet: for a
    report of fewer seeds or rules, of the whole seeds of a run that was stopped, or of runs that shared the rules. They
    stay as they are."""
    cell: str | None = None
    """Cell whose trust over rounds the report shows: a name from curves/, without its ending."""
    progress: bool = True
    """Show a progress bar."""


def main(arguments: Arguments) -> int:
    """Runs the benchmark, prints the table, and returns the exit status: 1 if a run failed, 130 after Ctrl-C."""
    if arguments.workers < 1:
        raise ValueError(f"workers must be at least 1, got {arguments.workers}")
    if arguments.ray is not None:
        check_ray(arguments.ray)
    grid = make_grid(*_layers(arguments))
    if arguments.cell is not None:
        check_known("cell", [arguments.cell], [cell.name for cell in grid.cells()])
    command = shlex.join(["python", *sys.argv])
    benchmark = Benchmark(grid, arguments.out, command, arguments.overwrite, arguments.reuse, arguments.cell)
    again = "the same command without --overwrite" if arguments.overwrite else "the same command"
    try:
        return _run(benchmark, arguments, again)
    except KeyboardInterrupt:
        print(f"\ninterrupted: the cells so far are in {arguments.out}; {again} continues")
        return 130


def _run(benchmark: Benchmark, arguments: Arguments, again: str) -> int:
    grid = benchmark.grid
    with benchmark.open() as directory:
        if arguments.reuse and not directory.assembled:
            print(f"{arguments.out} holds results already, so nothing is taken over from --reuse")
        missing, every, rules = directory.missing(), len(grid.cells()), len(grid.labels())
        partly = f", {len(directory.known())} in part" if directory.known() else ""
        print(f"{every} cells, {rules} rules each, {grid.rounds} rounds; {every - len(missing)} done before{partly}")
        if missing:
            workers = 1 if arguments.ray else arguments.workers
            seconds = show_seconds(estimate_seconds(grid, missing, workers, directory.known()))
            where = "one core, before Ray shares it out" if arguments.ray else f"{workers} workers"
            print(f"about {seconds} on {where}; results in {arguments.out}")
        with tqdm(total=len(missing), desc="evaluate", disable=None if arguments.progress else True) as bar:

            def show(result: CellResult) -> None:
                for failure in result.failures:  # at once: what fails everywhere is not to be learned after hours
                    told = f"failed: {failure.rule or 'all rules'} in {failure.cell.name}: {failure.error}"
                    tqdm.write(told, file=sys.stderr)
                bar.update()

            failures = benchmark.run(directory, workers=arguments.workers, ray=arguments.ray, on_cell=show)
        # Before the report: where nothing could be run there is none.
        if failures:
            print(f"{len(failures)} failed, see {arguments.out / FAILURES}; {again} tries again", file=sys.stderr)
        report = benchmark.report()
    Console(width=None if sys.stdout.isatty() else 200).print(to_rich(report.table))
    print(f"report {report.page}")
    return 1 if failures else 0


def _layers(arguments: Arguments) -> list[dict[str, Any]]:
    """What the preset, the file and the flags say, in this order."""
    preset = read_preset(arguments.preset) if arguments.preset is not None else {}
    config = read_config(arguments.config) if arguments.config is not None else {}
    flags: dict[str, Any] = {name: getattr(arguments, name) for name in _GRID}
    flags |= {name: _said(name, getattr(arguments, name)) for name in ("controls", "features")}
    settings = {
        "data_dir": arguments.data_dir and str(arguments.data_dir),
        "download": _said("download", arguments.download),
        "dataset_options": parse_dataset_options(arguments.dataset_options),
    }
    flags["settings"] = {name: value for name, value in settings.items() if value is not None}
    flags["plugins"] = [*config.get("plugins", []), *arguments.plugin] or None
    return [preset, config, flags]


def _said(switch: str, value: bool) -> bool | None:
    """A switch's value, if it was said: also where it only says again what it would be by default."""
    said = value != getattr(Arguments, switch) or {f"--{switch}", f"--no-{switch}"} & {*sys.argv}
    return value if said else None


def cli() -> None:
    """Entry point: errors of the user's making are one line, not a traceback."""
    torch.set_num_threads(1)
    try:
        sys.exit(main(tyro.cli(Arguments)))
    except ValueError as error:
        sys.exit(f"evaluate: {error}")
    except OSError as error:  # a full disk, say: what was computed before is on it
        sys.exit(f"evaluate: {error.filename or 'a file'} cannot be read or written: {error.strerror or error}")


if __name__ == "__main__":
    cli()
