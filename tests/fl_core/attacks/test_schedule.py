import pytest
import torch

from fl_core import Scenario
from fl_core.attacks import Knowledge, make_attack


def active(attack, rounds: int) -> list[int]:
    return [i for i in range(rounds) if attack.active(i)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"honest_rounds": 3, "attack_rounds": 2}, [3, 4, 8, 9, 13]),
        ({"honest_rounds": 1, "attack_rounds": 1}, [1, 3, 5, 7, 9, 11, 13]),
        ({"honest_rounds": 0, "attack_rounds": 1}, list(range(14))),
        ({"honest_rounds": 20, "attack_rounds": 1}, []),
    ],
)
def test_on_off_is_honest_for_k_rounds_and_attacks_for_m(options, expected):
    assert active(make_attack("on_off", **options), 14) == expected


@pytest.mark.parametrize("onset", [0, 4, 20])
def test_late_onset_attacks_from_its_round_on(onset):
    assert active(make_attack("late_onset", onset=onset), 14) == list(range(onset, 14))


def test_a_timetable_in_a_timetable_attacks_where_both_do():
    inner = {"attack": "on_off", "options": {"honest_rounds": 1, "attack_rounds": 1}}
    assert active(make_attack("late_onset", onset=4, **inner), 10) == [5, 7, 9]


def test_the_other_attack_comes_with_its_parameters():
    attack = make_attack("on_off", attack="ipm", options={"epsilon": 0.3, "jitter": 0.1})
    assert attack.inner == make_attack("ipm", epsilon=0.3, jitter=0.1)
    assert attack.knows is Knowledge.HONEST_UPDATES
    assert attack == make_attack("on_off", attack="ipm", options={"epsilon": 0.3, "jitter": 0.1})
    assert attack != make_attack("on_off", attack="ipm", options={"epsilon": 0.4, "jitter": 0.1})


def test_the_callers_options_are_not_the_attacks():
    options = {"epsilon": 0.3}
    attack = make_attack("late_onset", attack="ipm", options=options)
    options["epsilon"] = 5.0
    assert attack.options == {"epsilon": 0.3}


@pytest.mark.parametrize("name", ["on_off", "late_onset"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"attack": "sign_flop"}, "unknown attack 'sign_flop'.*sign_flip"),
        ({"attack": "ipm", "options": {"eps": 1.0}}, "ipm.*epsilon.*eps"),
        ({"attack": "ipm", "options": {"epsilon": float("nan")}}, "epsilon must be a finite number"),
        ({"options": [("scale", 2.0)]}, "options of 'sign_flip' must be a mapping"),
    ],
)
def test_a_wrong_other_attack_is_refused_when_the_schedule_is_made(name, given, message):
    with pytest.raises(ValueError, match=message):
        make_attack(name, **given)


@pytest.mark.parametrize(
    ("name", "field", "value", "least"),
    [("on_off", "honest_rounds", -1, 0), ("on_off", "attack_rounds", 0, 1), ("late_onset", "onset", -1, 0)],
)
def test_a_number_of_rounds_that_is_none_is_refused_by_name(name, field, value, least):
    with pytest.raises(ValueError, match=f"{name}: {field} must be a number of rounds, {least} or more, got {value}"):
        make_attack(name, **{field: value})


@pytest.mark.parametrize(
    ("options", "rounds"),
    [
        ({"attack": "scaling", "options": {"factor": -4.0}}, {2, 3}),
        ({"attack": "label_flip"}, {2, 3}),
    ],
)
def test_in_a_federation_updates_differ_from_honest_ones_in_the_rounds_of_the_timetable_alone(
    federation, options, rounds
):
    timetable = {"honest_rounds": 2, "attack_rounds": 2, **options}
    calm, built = (
        federation(Scenario(attack, 0.3, attack_options=given), entropy=1)
        for attack, given in [("none", {}), ("on_off", timetable)]
    )
    for i in range(5):
        honest, seen = calm.local_round(), built.local_round()
        assert seen.attacking == (i in rounds)
        differs = (honest.view.updates != seen.view.updates).any(dim=1)
        assert torch.equal(differs, seen.malicious & (i in rounds))
        # The same model for both, and no BatchNorm from a round of attack.
        calm.apply(honest.view.updates.mean(dim=0))
        built.apply(honest.view.updates.mean(dim=0))
        built.local = calm.local.clone()


def test_an_episode_begins_with_an_attack_that_remembers_nothing(federation):
    scenario = Scenario("late_onset", 0.3, attack_options={"attack": "mimic", "onset": 1})
    sent = []
    for _ in range(2):
        built = federation(scenario, entropy=3)
        for _ in range(3):
            last = built.local_round()
            built.apply(last.view.updates.mean(dim=0))
        sent.append(last.view.updates)
        built.reset(scenario, entropy=4)
        assert built.attack.inner._memory.rounds == 0
    assert torch.equal(*sent)
