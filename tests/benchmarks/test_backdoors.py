"""What the memory of similarity was chosen by: triggers that are not the benchmark's, and what they measure."""

import csv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import isnan
from pathlib import Path
from types import ModuleType

import pytest
import torch

from agents.deployed import PolicyFileError, TrustAggregator, weighting_of
from agents.evaluation.policies import policy_facts, rule_or_policy
from fl_core.aggregation import make_rule
from fl_core.attacks import make_attack


@pytest.fixture
def backdoors(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("backdoors")


def test_no_trigger_is_one_of_the_benchmarks_nor_like_another(backdoors: ModuleType) -> None:
    images = torch.zeros(1, 1, 28, 28)
    shown = [trigger(images) for trigger in backdoors.TRIGGERS.values()]
    shown += [make_attack(name).triggered(images, torch.ones(1).long())[0] for name in ("dba", "neurotoxin")]
    changed = torch.stack([one[0, 0] != 0 for one in shown]).flatten(1)
    assert (changed.sum(dim=1) > 8).all()
    patches = changed[[0, 1, 3, 4]].float()  # without the wave, which is everywhere
    assert (patches @ patches.T).fill_diagonal_(0).max() == 0
    assert not images.any()


def test_a_line_for_each_trigger_and_heterogeneity_of_a_rule_and_of_a_policy(backdoors: ModuleType) -> None:
    policies = ("oracle_is_none_of_these", "fedavg")
    arguments = backdoors.Arguments(
        policies, "OptiGrad/Digits-v0", seeds=1, num_clients=8, alphas=(0.5,), triggers=("none", "cross")
    )
    with pytest.raises(PolicyFileError, match="no shipped policy of this name"):
        backdoors.main(arguments)
    for wrong, message in (
        ({"policies": ("oracle",)}, "oracle must be told who is malicious, and is no defence; leave it out"),
        (
            {"policies": ("fedavg",), "env_id": "OptiGrad/Digit-v0"},
            "unknown environment 'OptiGrad/Digit-v0'; there are",
        ),
        ({"policies": ("fedavg",), "triggers": ("star",)}, "unknown trigger 'star'; there are: none, cross"),
    ):
        with pytest.raises(ValueError, match=message):
            backdoors.check(replace(arguments, **wrong))
    success, accuracy = backdoors.figures(arguments, "fedavg", "cross", 0.5, 3)
    honest, clean = backdoors.figures(arguments, "fedavg", "none", 0.5, 3)
    assert success > 50
    assert isnan(honest)  # nobody aims at anything
    assert accuracy > 60
    assert clean > 60
    policy, _ = backdoors.figures(arguments, "digits:sybil_exponent=1,sybil_power=8", "cross", 0.5, 3)
    assert policy < 0.5 * success


def test_a_row_says_of_which_clients_and_policy_it_is(
    backdoors: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(backdoors, "ProcessPoolExecutor", lambda *_, **__: ThreadPoolExecutor(1))
    monkeypatch.setattr(backdoors, "figures", lambda *_: (50.0, 80.0))
    policies, out = ("digits", "fedavg"), tmp_path / "new" / "rows.csv"
    backdoors.main(backdoors.Arguments(policies, seeds=1, num_clients=8, alphas=(0.5,), triggers=("cross",), out=out))
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["num_clients"] for row in rows] == ["8", "8"]
    assert [row["checksum"] for row in rows] == [policy_facts("digits").checksum[:12], ""]


def test_a_name_is_a_rules_or_a_policys_with_options() -> None:
    assert rule_or_policy("shapley") == make_rule("shapley")
    assert rule_or_policy("nnm+krum") == make_rule("nnm+krum")
    policy = rule_or_policy("fashion_mnist:sybil_exponent=1,sybil_power=8,root_anchor=2")
    assert isinstance(policy, TrustAggregator)
    assert (policy.weighting.sybil_power, policy.weighting.root_anchor) == (8, 2)
    assert policy.weighting.update_clip == weighting_of(policy.policy).update_clip
