"""The benchmark: paired, honest about what is held out, and with the figures that a loop by hand gives."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agents import benchmark
from agents.benchmark import Grid, ResultsFile, run, run_rule
from agents.deployed import save_policy
from agents.trust_net import TrustNet
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.attacks import attack_names
from optigrad_env import TRAIN_ATTACKS

DESIGNED = [
    *("rule", "attack", "held_out", "malicious_fraction", "alpha", "seed", "test_accuracy", "test_loss"),
    *("regret", "regret_anchored", "detection_auroc", "honest_weight_share", "seconds_per_round"),
]


def a_grid(**changes: Any) -> Grid:
    fields: dict[str, Any] = {
        "rules": ("fedavg", "median", "shapley"),
        "policies": (),
        "attacks": ("sign_flip", "alie"),
        "malicious_fractions": (0.0, 0.4),
        "alphas": (0.5,),
        "seeds": (0,),
        "rounds": 3,
        "settings": {"num_clients": 5},
    }
    return Grid(**{**fields, **changes})


def rows_of(grid: Grid) -> list[dict[str, Any]]:
    return [row for rows in run(grid, workers=1) for row in rows]


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return save_policy(TrustNet(), tmp_path_factory.mktemp("runs") / "my_run")


@pytest.fixture(scope="module")
def rows(learned: Path) -> list[dict[str, Any]]:
    return rows_of(a_grid(policies=(str(learned),)))


def select(rows: list[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_rows_have_the_designed_columns_and_two_more(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert sorted(row) == sorted([*DESIGNED, "personalised_accuracy", "attack_success"])


def test_there_is_a_row_for_every_rule_scenario_and_seed(rows: list[dict[str, Any]]) -> None:
    rules = {"my_run", "fedavg", "median", "shapley", "oracle", "anchored_oracle"}
    cells = {("none", 0.0, 0), ("sign_flip", 0.4, 0), ("alie", 0.4, 0)}
    assert len(rows) == len(rules) * len(cells)
    assert {row["rule"] for row in rows} == rules
    assert {(row["attack"], row["malicious_fraction"], row["seed"]) for row in rows} == cells


def test_held_out_is_every_attack_that_no_agent_learns_from(rows: list[dict[str, Any]]) -> None:
    assert {row["attack"]: row["held_out"] for row in rows} == {"none": False, "sign_flip": False, "alie": True}


def test_regret_is_the_difference_to_the_oracles_of_the_same_scenario(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for name, oracle in (("regret", "oracle"), ("regret_anchored", "anchored_oracle")):
            (best,) = select(rows, rule=oracle, attack=row["attack"])
            assert row[name] == best["test_accuracy"] - row["test_accuracy"]
    assert {row["regret"] for row in select(rows, rule="oracle")} == {0.0}
    assert {row["regret_anchored"] for row in select(rows, rule="anchored_oracle")} == {0.0}


def test_without_attackers_the_oracle_is_fedavg(rows: list[dict[str, Any]]) -> None:
    (oracle,), (fedavg,) = (select(rows, rule=rule, attack="none") for rule in ("oracle", "fedavg"))
    for name in ("test_accuracy", "test_loss", "personalised_accuracy"):
        assert oracle[name] == pytest.approx(fedavg[name], abs=1e-6)


def test_detection_is_measured_under_attack_only_and_perfect_for_the_oracle(rows: list[dict[str, Any]]) -> None:
    for row in select(rows, attack="none"):
        assert row["detection_auroc"] is None
        assert row["honest_weight_share"] is None
    for row in select(rows, rule="oracle", malicious_fraction=0.4):
        assert row["detection_auroc"] == 1
        assert row["honest_weight_share"] == pytest.approx(1)
    for row in select(rows, rule="fedavg", malicious_fraction=0.4):
        assert row["detection_auroc"] == 0.5
        assert row["honest_weight_share"] == pytest.approx(0.6)
    for row in select(rows, rule="median"):  # a rule without weights has nothing to detect with
        assert row["detection_auroc"] is None


def test_figures_are_those_of_a_loop_by_hand() -> None:
    grid = a_grid(rounds=5)
    scenario = Scenario("sign_flip", 0.4, 0.5)
    row = run_rule(grid, "fedavg", scenario, 0)
    federation = Federation(configure(num_clients=5, split_seed=0))
    federation.reset(scenario, entropy=0)
    accuracies, losses = [], []
    test = federation.dataset.test
    for _ in range(5):
        federation.apply(federation.local_round().view.updates.mean(dim=0))
        local = federation.engine.reestimate(
            federation.shared[None], federation.local[-1:], federation.simulator.images
        )
        logits = federation.engine.logits(federation.shared[None], local, federation.dataset.images(test))[0]
        labels = federation.dataset.labels[test]
        accuracies.append(float((logits.argmax(dim=1) == labels).double().mean()))
        chosen = -torch.log_softmax(logits.double(), dim=1)[torch.arange(len(labels)), labels]
        losses.append(float(chosen.clamp_max(2 * np.log(10)).mean()))
    assert row["test_accuracy"] == pytest.approx(np.mean(accuracies[-3:]), abs=1e-6)
    assert row["test_loss"] == pytest.approx(np.mean(losses[-3:]), abs=1e-5)


def test_all_rules_of_a_cell_see_the_same_partition_attackers_model_and_first_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Any, ...]] = []

    class Watched(Federation):
        def local_round(self, rule: Any = None) -> Any:
            first, shared = self.round == 0, self.shared
            round_ = super().local_round(rule)
            if first:
                shards = tuple(tuple(shard.tolist()) for shard in self.shards)
                tensors = (self.malicious, shared, round_.view.updates, self.splits.reference)
                seen.append((shards, *(tensor.tolist() for tensor in tensors)))
            return round_

    monkeypatch.setattr(benchmark, "Federation", Watched)
    rows_of(a_grid(attacks=("alie",), malicious_fractions=(0.4,), seeds=(0, 1)))
    assert len(seen) == 10
    for cell in (seen[:5], seen[5:]):
        assert all(one == cell[0] for one in cell)
    assert all(one != other for one, other in zip(seen[0], seen[5], strict=True))


def test_the_same_grid_gives_the_same_figures_again(rows: list[dict[str, Any]], learned: Path) -> None:
    again = rows_of(a_grid(policies=(str(learned),), attacks=("alie",), malicious_fractions=(0.4,)))
    for row in again:
        (before,) = select(rows, rule=row["rule"], attack="alie")
        assert {**row, "seconds_per_round": 0} == {**before, "seconds_per_round": 0}


@pytest.mark.slow
def test_worker_processes_give_the_same_rows_in_the_same_order() -> None:
    grid = a_grid(rules=("fedavg",), seeds=(0, 1))
    left, right = ([[{**row, "seconds_per_round": 0} for row in rows] for rows in run(grid, n)] for n in (1, 2))
    assert left == right


def test_fraction_zero_is_one_scenario_without_attack_for_each_alpha() -> None:
    cells = a_grid(malicious_fractions=(0.0,), alphas=(0.5, 0.1, None), seeds=(3, 4)).cells()
    assert [(s.attack, s.malicious_fraction, s.alpha, seed) for s, seed in cells] == [
        ("none", 0.0, alpha, seed) for seed in (3, 4) for alpha in (0.5, 0.1, None)
    ]


def test_every_seed_has_every_attack_fraction_and_alpha_once() -> None:
    attacks, fractions = tuple(name for name in attack_names() if name != "none"), (0.0, 0.2, 0.4)
    grid = a_grid(attacks=attacks, malicious_fractions=fractions, alphas=(0.5, 0.1), seeds=(0, 1, 2))
    cells = [(s.attack, s.malicious_fraction, s.alpha, seed) for s, seed in grid.cells()]
    assert len(cells) == len(set(cells)) == 3 * 2 * (1 + 2 * len(attacks))


def test_no_attack_by_malicious_clients_is_the_scenario_without_any() -> None:
    cells = a_grid(attacks=("none", "ipm"), malicious_fractions=(0.4,), alphas=(0.5,), seeds=(0,)).cells()
    assert [(s.attack, s.malicious_fraction) for s, _ in cells] == [("none", 0.0), ("ipm", 0.4)]


def test_a_fraction_that_is_less_than_one_client_is_refused_because_nobody_would_attack() -> None:
    with pytest.raises(ValueError, match=r"malicious_fraction=0\.1 of 5 clients.*at least 0\.2"):
        a_grid(malicious_fractions=(0.1,))


def test_a_policy_weighs_its_trust_as_the_federation_is_set_to(learned: Path) -> None:
    rule = a_grid(policies=(str(learned),), settings={"num_clients": 5, "root_anchor": 0.25}).make("my_run")
    assert rule.weighting.root_anchor == 0.25  # type: ignore[attr-defined]


def test_rules_that_can_be_told_the_number_of_attackers_are_told() -> None:
    grid = a_grid(rules=("krum", "trimmed_mean", "median"), num_byzantine=1)
    assert vars(grid.make("krum"))["num_byzantine"] == 1
    assert vars(grid.make("trimmed_mean"))["num_byzantine"] == 1
    assert "num_byzantine" not in vars(grid.make("median"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ()}, "attacks is empty"),
        ({"malicious_fractions": ()}, "malicious_fractions is empty"),
        ({"alphas": ()}, "alphas is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"rules": (), "policies": ()}, "neither rules nor policies"),
        ({"rounds": 2}, "rounds must be at least 3.*got 2"),
        ({"rules": ("kurm",)}, r"'kurm'.*krum"),
        ({"attacks": ("signflip",)}, r"'signflip'.*sign_flip"),
        ({"malicious_fractions": (1.0,)}, r"malicious_fraction.*1\.0"),
        ({"alphas": (0.0,)}, r"alpha.*0\.0"),
        ({"policies": ("nowhere/at/all",)}, r"cannot read .*nowhere/at/all"),
        ({"settings": {"clients": 5}}, r"'clients'.*num_clients"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_before_it_starts(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        a_grid(**changes)


@pytest.mark.parametrize("workers", [0, -2])
def test_at_least_one_worker_is_needed(workers: int) -> None:
    with pytest.raises(ValueError, match=f"workers.*{workers}"):
        next(run(a_grid(), workers))


def test_two_policies_of_the_same_name_are_refused(tmp_path: Path, make_policy: Callable[..., TrustNet]) -> None:
    paths = tuple(str(save_policy(make_policy(), tmp_path / parent / "trust")) for parent in ("a", "b"))
    with pytest.raises(ValueError, match="same directory name"):
        a_grid(policies=paths)


@pytest.mark.parametrize("name", ["oracle", "anchored_oracle", "fedavg"])
def test_a_policy_with_the_name_of_a_rule_is_refused_because_it_would_take_its_row(
    tmp_path: Path, name: str, make_policy: Callable[..., TrustNet]
) -> None:
    path = save_policy(make_policy(), tmp_path / name)
    with pytest.raises(ValueError, match=name):
        a_grid(policies=(str(path),))


def test_a_policy_in_the_current_directory_has_a_name_all_the_same(
    learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(learned)
    assert "my_run" in a_grid(policies=(".",)).labels()


def test_results_are_on_disk_as_soon_as_they_are_there_and_read_back(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path / "new" / "results.csv"
    results = ResultsFile(path, overwrite=False)
    results.append(rows[:2])
    with path.open(newline="") as file:
        read = list(csv.DictReader(file))
    results.close()
    assert [float(row["test_accuracy"]) for row in read] == [row["test_accuracy"] for row in rows[:2]]
    assert read[0]["detection_auroc"] == ""


def test_old_results_are_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("a month of computing")
    with pytest.raises(ValueError, match=r"results\.csv exists already.*--overwrite"):
        ResultsFile(path, overwrite=False)
    assert path.read_text() == "a month of computing"
    ResultsFile(path, overwrite=True).close()
    assert path.read_text().startswith("rule,attack,held_out")


def test_the_train_attacks_are_never_called_held_out() -> None:
    for attack in TRAIN_ATTACKS:
        row = run_rule(a_grid(), "fedavg", Scenario(attack, 0.4, 0.5), 0)
        assert row["held_out"] is False


def test_the_benchmark_takes_composed_names_and_tells_them_the_number():
    grid = Grid(("nnm+krum", "clipping+fedavg"), (), ("sign_flip",), (0.3,), (0.5,), (0,), rounds=3, num_byzantine=3)
    assert grid.make("nnm+krum") == make_rule("nnm+krum", num_byzantine=3)
    assert grid.make("clipping+fedavg") == make_rule("clipping+fedavg")
    assert grid.labels()[:2] == ["nnm+krum", "clipping+fedavg"]
    row = run_rule(grid, "nnm+krum", *grid.cells()[0])
    assert (row["rule"], 0 < row["test_accuracy"] < 1) == ("nnm+krum", True)
