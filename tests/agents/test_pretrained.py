"""The policies that ship with the package."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from agents import TrustAggregator, load_policy
from agents.deployed import CARD, MODEL_CARD, PRETRAINED, WEIGHTS, read_card, shipped_policies
from agents.evaluation.policies import policy_facts
from agents.model_card import model_card
from fl_core import Federation, Scenario, configure
from fl_core.aggregation import Rule, TrustWeighting, make_rule
from optigrad_env import TRAIN_ATTACKS
from optigrad_env.scenarios import EVALUATION_SPLIT, TRAINING_SPLITS

MAKEFILE = (Path(__file__).parents[2] / "Makefile").read_text()


def test_digits_and_fashion_mnist_ship() -> None:
    assert {"digits", "fashion_mnist"} <= set(shipped_policies())


@pytest.mark.parametrize("name", shipped_policies())
def test_a_card_says_what_was_seen_and_by_which_committed_command(name: str) -> None:
    provenance = read_card(name)["provenance"]
    assert sorted(provenance["attacks_seen"]) == sorted(TRAIN_ATTACKS)
    assert provenance["evaluation_split_seed"] == EVALUATION_SPLIT
    assert min(provenance["split_seeds"]) == TRAINING_SPLITS
    flags = provenance["command"].removeprefix("python train_agent.py ").split(" --run-dir ")[0]
    assert flags in " ".join(MAKEFILE.replace("\\\n", " ").split())
    assert "/" not in provenance["command"].replace("OptiGrad/", "").replace("runs/", "")


@pytest.mark.parametrize("name", shipped_policies())
def test_its_page_is_its_cards_and_the_card_has_all_of_the_weighting(name: str) -> None:
    card = read_card(name)
    assert (PRETRAINED / name / MODEL_CARD).read_text() == model_card(card)
    sybils = {"digits": 0.0, "fashion_mnist": 2.0}[name]
    assert card["weighting"] == asdict(TrustWeighting("median_or_reference", safeguard=True, sybil_exponent=sybils))
    given = re.search(r"--update-clip (\w+)", card["provenance"]["command"])
    trained = {"update_clip": given[1] if given else "median", "root_anchor": 1.0, "sybil_exponent": 0.0}
    assert {"sybil_exponent": 0.0, **card["provenance"]["trained_with"]} == trained


@pytest.mark.parametrize("name", shipped_policies())
def test_it_is_small_and_takes_any_number_of_clients(name: str) -> None:
    assert (PRETRAINED / name / WEIGHTS).stat().st_size + (PRETRAINED / name / CARD).stat().st_size < 400_000
    policy = load_policy(name)
    for clients in (1, 7, 200):
        trust = policy(torch.zeros(clients, 6))
        assert trust.shape == (clients,)
        assert bool(((trust > 0) & (trust < 1)).all())


@pytest.mark.parametrize("attack", ["sign_flip", "scaling"])
def test_on_validation_data_it_is_far_ahead_of_the_plain_mean_under_an_attack_it_knows(attack: str) -> None:
    def accuracy(rule: Rule) -> float:
        federation = Federation(configure(num_clients=10, split_seed=EVALUATION_SPLIT + 7))
        federation.reset(Scenario(attack, 0.4, 0.5), entropy=3)
        for _ in range(10):
            federation.apply(rule(federation.local_round(rule).view).update)
        metrics = federation.evaluate(torch.zeros(1, federation.layout.num_shared), "validation")
        return float(metrics.accuracy[0])

    assert accuracy(TrustAggregator(load_policy("digits"))) > accuracy(make_rule("fedavg")) + 0.1


@pytest.mark.parametrize("results", ["held_out", "held_out_majority", "quick"])
def test_published_results_are_of_the_policy_that_ships(results: str) -> None:
    """Or nobody could continue or reuse them."""
    manifest = json.loads((PRETRAINED.parents[1] / "results" / results / "manifest.json").read_text())
    assert manifest["grid"]["policies"]["optigradtrust on OptiGrad/Digits-v0"] == policy_facts("digits").checksum
