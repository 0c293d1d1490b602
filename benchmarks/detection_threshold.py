"""Which threshold tells flagged from trusted clients best, on the train attacks alone.

    python benchmarks/detection_threshold.py    # minutes on one core; writes results/detection_threshold.csv

Federations are those that agents are trained on (their root data, their seeds), attacks are the train attacks in both
forms, and no test data is looked at. For each threshold: the true positive rate, the false positive rate under attack
and without one, and the balanced accuracy, mean over the rules that give weights by judgement.
"""

from collections import Counter
from itertools import product
from pathlib import Path

import torch
import tyro
from tqdm import tqdm

from agents.evaluation.detection import flag
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.files import write_csv
from optigrad_env import TRAIN_ATTACKS
from optigrad_env.scenarios import TRAINING_SPLITS

RULES = ("shapley", "fltrust")
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ROUNDS, SEEDS, FRACTION, ALPHAS = 10, 3, 0.3, (0.5, 0.1)


def count(rule_name: str, scenario: Scenario, seed: int, counts: Counter[tuple[str, float, str]]) -> None:
    """Adds the flags of one run: by rule, threshold, and kind of client."""
    federation = Federation(configure(split_seed=TRAINING_SPLITS + seed))
    federation.reset(scenario, entropy=TRAINING_SPLITS + seed)
    rule = make_rule(rule_name)
    for _ in range(ROUNDS):
        round_ = federation.local_round(rule)
        aggregate = rule(round_.view)
        federation.apply(aggregate.update)
        assert aggregate.weights is not None
        kind = "attacked" if round_.attacking else "quiet"
        for threshold in THRESHOLDS:
            flagged, bad = flag(aggregate.weights, threshold), round_.corrupted
            counts[rule_name, threshold, "caught"] += int((flagged & bad).sum())
            counts[rule_name, threshold, "bad"] += int(bad.sum())
            counts[rule_name, threshold, f"accused {kind}"] += int((flagged & ~bad).sum())
            counts[rule_name, threshold, f"honest {kind}"] += int((~bad).sum())


def main(out: Path = Path("results/detection_threshold.csv")) -> None:
    """Measures, prints and writes the table.

    Args:
        out: Where the table goes.
    """
    torch.set_num_threads(1)
    counts: Counter[tuple[str, float, str]] = Counter()
    scenarios = [Scenario("none", 0.0, alpha) for alpha in ALPHAS]
    scenarios += [
        Scenario(attack, FRACTION, alpha, attack_options={"colluding": colluding})
        for attack, colluding, alpha in product(TRAIN_ATTACKS, (False, True), ALPHAS)
    ]
    with torch.no_grad():
        for seed, scenario, rule in tqdm(list(product(range(SEEDS), scenarios, RULES))):
            count(rule, scenario, seed, counts)
    lines = []
    for threshold in THRESHOLDS:
        rates = []
        for rule in RULES:
            caught = counts[rule, threshold, "caught"] / counts[rule, threshold, "bad"]
            accused = counts[rule, threshold, "accused attacked"] / counts[rule, threshold, "honest attacked"]
            quiet = counts[rule, threshold, "accused quiet"] / counts[rule, threshold, "honest quiet"]
            rates.append((caught, accused, quiet, (caught + 1 - accused) / 2))
        means = [sum(column) / len(RULES) for column in zip(*rates, strict=True)]
        lines.append([threshold, *(round(value, 4) for value in means)])
        print(
            "threshold {:4.2f}  caught {:.3f}  accused {:.3f}  without attack {:.3f}  balanced {:.3f}".format(
                *lines[-1]
            )
        )
    columns = ("threshold", "true_positive_rate", "false_positive_rate", "quiet_rate", "balanced_accuracy")
    write_csv(out, [dict(zip(columns, line, strict=True)) for line in lines])


if __name__ == "__main__":
    tyro.cli(main)
