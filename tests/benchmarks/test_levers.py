"""What choices are made by: the adversary that searches, and which scenarios there are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from fl_core import Federation, Scenario, configure
from fl_core.aggregation import make_rule
from fl_core.attacks import attack_names, base, make_attack
from optigrad_env.scenarios import TRAIN_ATTACKS


@pytest.fixture
def levers(program: Callable[[str], ModuleType]) -> ModuleType:
    return program("levers")


@pytest.mark.parametrize(("attack", "colluding"), [("sign_flip", True), ("gaussian_noise", False)])
def test_the_searching_adversary_sends_the_strength_that_moves_the_rule_furthest(
    levers: ModuleType, attack: str, colluding: bool
) -> None:
    federation = Federation(configure(num_clients=8))
    options = {"train_attack": attack, "colluding": colluding}
    federation.reset(Scenario(levers.SEARCHED, 0.4, 0.5, 0, options), entropy=1)
    rule = make_rule("safeguarded_shapley")
    generator = federation._attack_generator.clone_state()
    round_ = federation.local_round(rule)
    sent, malicious = round_.view.updates, round_.malicious
    honest = sent[~malicious]

    def damage(updates: Tensor) -> float:
        view = replace(round_.view, updates=updates)
        return float((rule(view).update.double() - honest.mean(dim=0).double()).norm())

    # The same federation without an attack tells what the malicious clients had trained.
    federation.reset(Scenario("none", 0.4, 0.5), entropy=1)
    trained = federation.local_round().view.updates
    torch.testing.assert_close(trained[~malicious], honest, rtol=0, atol=0)
    strength = levers.STRENGTH[attack]
    for multiple in (16.0, 4.0, 1.0, 0.25, 0.125):
        one = make_attack(attack, colluding=colluding, **{strength: multiple * levers.usual_strength(attack)})
        adversary = base.AdversaryView(generator.clone_state(), malicious=malicious)
        tried = one(trained, malicious, adversary)
        assert damage(sent) >= damage(tried) * (1 - 1e-5)
    assert damage(sent) > damage(trained)


def test_scenarios_are_train_attacks_in_both_forms_and_nothing_else(levers: ModuleType) -> None:
    usual = list(levers.attacks(TRAIN_ATTACKS, ("1.0", "4.0")))
    assert {name for name, _ in usual} == set(TRAIN_ATTACKS)
    assert len(usual) == 4 * 2 * 2 + 2  # label_flip has no strength
    searched = list(levers.attacks(TRAIN_ATTACKS, (levers.SEARCHED,)))
    assert {options["train_attack"] for _, options in searched} == set(TRAIN_ATTACKS) - {"label_flip"}
    assert len(searched) == 8
    assert len(list(levers.attacks(("sign_flip",), (levers.SEARCHED,)))) == 2
    (one,) = levers.attacks(("sign_flip",), ("1.0",), ("colluding",))
    assert one == ("sign_flip", {"colluding": True, "scale": 1.0})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strengths": ("hard",)}, "strengths must be numbers of 0 or more, or 'searched'; got 'hard'"),
        ({"attacks": ("ipm",)}, "unknown train attack 'ipm'; there are: scaling"),
        ({"forms": ("alone",)}, "unknown form 'alone'; there are: independent, colluding"),
        ({"policies": ("nowhere",)}, "no shipped policy of this name"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(
    levers: ModuleType, changes: dict[str, tuple[str, ...]], message: str, tmp_path: Path
) -> None:
    arguments = levers.Arguments(policies=("digits",), out=tmp_path / "levers.csv")
    with pytest.raises(ValueError, match=message):
        levers.main(replace(arguments, **changes))
    assert not arguments.out.exists()


def test_a_row_tells_what_was_lost_and_under_what(levers: ModuleType, monkeypatch) -> None:
    monkeypatch.setattr(levers, "ROUNDS", 2)
    monkeypatch.setattr(levers, "FINAL_ROUNDS", 1)
    assert levers.SEARCHED in attack_names()
    arguments = levers.Arguments(policies=("fedavg",), attacks=("sign_flip",), forms=("colluding",), validation=100)
    scenario = Scenario("sign_flip", 0.4, 0.5, 0, {"scale": 4.0})
    attacked, clean = (levers.accuracy(arguments, label, scenario, 0) for label in ("fedavg", "oracle"))
    assert attacked < clean
    row = levers.row(arguments, "fedavg", (0.5, 0.4), [attacked], [clean, clean, clean], ("", "0badcafe"))
    assert row["mean_regret"] == pytest.approx(clean - attacked, abs=0.01)
    assert (row["attacks"], row["validation"]) == ("colluding sign_flip", 100)
    assert (row["num_clients"], row["checksum"], row["revision"]) == (20, "", "0badcafe")
