"""What an agent may learn from, and how its scenarios are drawn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_core.attacks import Attack, attack_names, base, make_attack, register_attack
from optigrad_env import TRAIN_ATTACKS, ScenarioDistribution, held_out_attacks
from optigrad_env.scenarios import BROAD, FAINT, WIDE, attack_set, make_scenarios


def draws(distribution: ScenarioDistribution, count: int = 300, **pinned: Any) -> list[Any]:
    generator = np.random.default_rng(0)
    return [distribution.sample(generator, pinned) for _ in range(count)]


def test_the_train_attacks_are_the_five_of_the_paper() -> None:
    assert set(TRAIN_ATTACKS) == {"scaling", "partial_scaling", "sign_flip", "gaussian_noise", "label_flip"}


def test_train_held_out_and_none_are_disjoint_and_together_all_attacks() -> None:
    parts = [*TRAIN_ATTACKS, *held_out_attacks(), "none"]
    assert len(parts) == len(set(parts))
    assert set(parts) == set(attack_names())
    assert {"alie", "ipm", "ipm_small", "mimic", "min_max", "min_sum", "poisonedfl"} <= set(held_out_attacks())


@pytest.mark.parametrize("name", ["on_off", "late_onset"])
def test_a_timetable_is_held_out_even_around_a_train_attack(name: str) -> None:
    attack = make_attack(name)
    assert attack.attack in TRAIN_ATTACKS
    assert name in held_out_attacks()
    rounds = [attack.active(i) for i in range(20)]
    begins = ScenarioDistribution().onset
    assert rounds not in [[i >= onset for i in range(20)] for onset in range(begins[0], begins[1] + 1)]


def test_a_plugged_in_attack_is_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base._ATTACKS, "_factories", dict(base._ATTACKS._factories))
    register_attack("brand_new")(Attack)
    assert "brand_new" in held_out_attacks()
    assert "brand_new" in attack_set("all")
    assert "brand_new" not in {scenario.attack for scenario in draws(ScenarioDistribution())}


def test_attack_sets_stand_for_their_members_and_a_name_for_itself() -> None:
    assert attack_set("train") == list(TRAIN_ATTACKS)
    assert attack_set("held_out") == held_out_attacks()
    assert attack_set("all") == [*TRAIN_ATTACKS, *held_out_attacks()]
    assert attack_set("alie") == ["alie"]


def test_sampling_reaches_every_train_attack_and_never_a_held_out_one() -> None:
    assert {scenario.attack for scenario in draws(ScenarioDistribution())} == {*TRAIN_ATTACKS, "none"}


def test_draws_stay_in_their_ranges_and_spread_over_them() -> None:
    distribution = ScenarioDistribution(malicious_fraction=(0.2, 0.4), alpha=(0.1, 10.0), onset=(1, 4))
    scenarios = draws(distribution, 600)
    fractions = np.array([scenario.malicious_fraction for scenario in scenarios])
    alphas = np.array([scenario.alpha for scenario in scenarios])
    onsets = np.array([scenario.onset for scenario in scenarios])
    assert 0.2 <= fractions.min() < 0.21
    assert 0.39 < fractions.max() <= 0.4
    assert alphas.min() >= 0.1
    assert alphas.max() <= 10
    assert np.mean(alphas < 1) == pytest.approx(0.5, abs=0.07)  # log-uniform: half on each side of the geometric mean
    assert set(onsets) == {1, 2, 3, 4}
    assert np.mean(onsets == 1) == pytest.approx(0.5 + 0.5 / 4, abs=0.07)


def test_weakest_lowers_the_lower_end_of_every_strength_but_no_share_and_shifts_no_other_draw() -> None:
    usual, faint = draws(BROAD, 2000), draws(replace(BROAD, weakest=0.05), 2000)
    for name, option, low, high in [
        ("scaling", "factor", 0.1, 20.0),
        ("partial_scaling", "factor", 0.1, 20.0),
        ("partial_scaling", "share", 0.2, 0.8),
        ("sign_flip", "scale", 0.025, 10.0),
        ("gaussian_noise", "factor", 0.025, 10.0),
    ]:
        drawn = [scenario.attack_options[option] for scenario in faint if scenario.attack == name]
        assert low <= min(drawn) < 1.2 * low
        assert 0.9 * high < max(drawn) <= high
    assert [replace(s, attack_options={}) for s in usual] == [replace(s, attack_options={}) for s in faint]
    assert make_scenarios("faint") == FAINT == replace(BROAD, weakest=0.05)


def test_strengths_are_drawn_around_the_usual_value_or_left_at_it() -> None:
    scenarios = [scenario for scenario in draws(ScenarioDistribution()) if scenario.attack == "scaling"]
    factors = [scenario.attack_options["factor"] for scenario in scenarios]
    assert 2 <= min(factors) < 4 < make_attack("scaling").factor < max(factors) <= 20
    for scenario in draws(ScenarioDistribution(random_strength=False)):
        usual = make_attack(scenario.attack, **scenario.attack_options)
        assert {**vars(usual), "colluding": False} == vars(make_attack(scenario.attack)) | {"colluding": False}


@pytest.mark.parametrize(("probability", "expected"), [(0.0, {False}), (1.0, {True}), (0.5, {False, True})])
def test_collusion_is_the_probability_of_the_colluding_form(probability: float, expected: set[bool]) -> None:
    scenarios = draws(ScenarioDistribution(attacks=TRAIN_ATTACKS, collusion=probability), 60)
    for attack in TRAIN_ATTACKS:
        chosen = [scenario for scenario in scenarios if scenario.attack == attack]
        assert {make_attack(s.attack, **s.attack_options).colluding for s in chosen} == expected


@pytest.mark.parametrize("attack", [*TRAIN_ATTACKS, "alie", "none"])
def test_a_pinned_attack_comes_at_its_usual_strength(attack: str) -> None:
    for scenario in draws(ScenarioDistribution(), 20, attack=attack):
        assert scenario.attack == attack
        assert scenario.make_attack() == make_attack(attack)


def test_a_pinned_attack_takes_pinned_options() -> None:
    scenario = ScenarioDistribution().sample(
        np.random.default_rng(0), {"attack": "scaling", "attack_options": {"factor": 3.0, "colluding": True}}
    )
    assert scenario.make_attack() == make_attack("scaling", factor=3.0, colluding=True)


PINS = st.fixed_dictionaries(
    {},
    optional={
        "attack": st.sampled_from([*TRAIN_ATTACKS, "alie", "none"]),
        "malicious_fraction": st.floats(0, 0.9),
        "alpha": st.none() | st.floats(0.01, 10),
        "onset": st.integers(0, 9),
    },
)


@settings(derandomize=True, max_examples=60)
@given(seed=st.integers(0, 1000), pinned=PINS)
def test_the_same_random_numbers_are_drawn_whatever_is_pinned(seed: int, pinned: dict[str, Any]) -> None:
    free, bound = np.random.default_rng(seed), np.random.default_rng(seed)
    drawn, given_ = ScenarioDistribution().sample(free), ScenarioDistribution().sample(bound, pinned)
    for name in ("malicious_fraction", "alpha", "onset"):
        assert getattr(given_, name) == pinned.get(name, getattr(drawn, name))
    assert free.bit_generator.state == bound.bit_generator.state


def test_options_of_an_attack_that_is_left_to_chance_are_refused() -> None:
    with pytest.raises(ValueError, match="attack_options are of one attack, and without it another is drawn: pin"):
        draws(ScenarioDistribution(), 1, attack_options={"factor": 5.0})
    assert all(not scenario.attack_options for scenario in draws(ScenarioDistribution(), 20, attack_options={}))


def test_alpha_may_be_pinned_among_the_options_of_the_partition() -> None:
    pinned = {"partition": "dirichlet", "partition_options": {"alpha": 0.3}}
    assert {scenario.alpha for scenario in draws(ScenarioDistribution(), 5, **pinned)} == {None}
    usual = draws(ScenarioDistribution(), 5)
    assert [scenario.attack for scenario in draws(ScenarioDistribution(), 5, **pinned)] == [one.attack for one in usual]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attacks": ()}, "attacks is empty.*sign_flip"),
        ({"attacks": ("sign_flop",)}, "'sign_flop'.*sign_flip"),
        ({"malicious_fraction": (0.5, 0.1)}, r"malicious_fraction.*\(0\.5, 0\.1\)"),
        ({"malicious_fraction": (-0.1, 0.1)}, r"malicious_fraction.*-0\.1"),
        ({"malicious_fraction": (0.1, 1.0)}, r"malicious_fraction.*1\.0"),
        ({"alpha": (0.0, 1.0)}, r"alpha.*0\.0"),
        ({"alpha": (2.0, 1.0)}, r"alpha.*\(2\.0, 1\.0\)"),
        ({"onset": (-1, 3)}, "onset.*-1"),
        ({"onset": (3, 1)}, r"onset.*\(3, 1\)"),
        ({"collusion": 1.5}, r"collusion.*1\.5"),
        ({"collusion": -0.5}, r"collusion.*-0\.5"),
        ({"weakest": 0.0}, r"weakest.*0\.0"),
        ({"weakest": 2.0}, r"weakest.*2\.0"),
        ({"weakest": "a"}, "weakest must be a number, got 'a'"),
        ({"collusion": "a"}, "collusion must be a number, got 'a'"),
        ({"random_strength": "no"}, "random_strength must be true or false, got 'no'"),
        ({"attacks": "sign_flip"}, "attacks must be a list of names, got 'sign_flip'"),
        ({"attacks": None}, "attacks must be a list of names, got None"),
        ({"alpha": ("a", "b")}, "alpha must be a number or None, got 'a'"),
        ({"alpha": (0.1, float("inf"))}, r"alpha must be a range.*both finite, got \(0\.1, inf\)"),
        ({"alpha": (None, 1.0)}, r"alpha must be a range.*\(None, 1\.0\)"),
        ({"onset": (0.5, 2)}, r"onset must be a whole number, got 0\.5"),
    ],
)
def test_a_bad_distribution_is_refused_with_field_and_value(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        ScenarioDistribution(**fields)


@pytest.mark.parametrize("field", ["malicious_fraction", "alpha", "onset"])
@pytest.mark.parametrize("value", [1, (0, 1, 2)])
def test_a_range_that_is_not_a_pair_is_refused_with_the_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{field}.*\(low, high\)"):
        ScenarioDistribution(**{field: value})


def test_a_distribution_from_json_equals_the_original() -> None:
    original = ScenarioDistribution(attacks=("sign_flip", "none"), alpha=(0.2, 0.3))
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(original).items()}
    assert ScenarioDistribution(**lists) == original


def test_switched_on_draws_cover_their_ranges() -> None:
    distribution = ScenarioDistribution(
        malicious_fraction=(0.0, 0.6), roots=5, root_size=(20, 320), root_bias=(0.2, 0.6), num_clients=(3, 6)
    )
    scenarios = draws(distribution, 300)
    roots = {(s.root_size, s.root_bias, s.root_draw) for s in scenarios}
    assert len(roots) == 5
    sizes = sorted(size for size, _, _ in roots)
    assert sizes[2] == 80  # log-uniform: the middle is the geometric one
    assert 20 <= sizes[0] < 40
    assert 200 < sizes[-1] <= 320
    biases = sorted(bias for _, bias, _ in roots)
    assert 0.2 <= biases[0] < 0.3
    assert 0.5 < biases[-1] <= 0.6
    assert {s.num_clients for s in scenarios} == {3, 4, 5, 6}
    assert min(s.malicious_fraction for s in scenarios) < 0.02
    assert max(s.malicious_fraction for s in scenarios) > 0.58


def test_what_is_switched_off_does_not_shift_what_the_others_draw() -> None:
    usual = draws(ScenarioDistribution(), 1)[0]
    more = draws(ScenarioDistribution(roots=4, num_clients=(2, 5), participation=(0.5, 1.0)), 1)[0]
    for name in ("attack", "attack_options", "malicious_fraction", "alpha", "onset"):
        assert getattr(usual, name) == getattr(more, name)
    assert (usual.num_clients, usual.participation, usual.root_size, usual.root_draw) == (None, 1.0, None, 0)


def test_every_switch_can_be_turned_off_in_the_widest_distribution() -> None:
    off: dict[str, Any] = {
        "attacks": ("sign_flip",),
        "malicious_fraction": (0.3, 0.3),
        "alpha": (0.5, 0.5),
        "onset": (0, 0),
        "random_strength": False,
        "collusion": 0.0,
    }
    fixed = replace(WIDE, roots=1, root_size=None, root_bias=(0.0, 0.0), **off)
    assert len({str(scenario) for scenario in draws(fixed, 20)}) == 1
    for name, value in off.items():
        one = draws(replace(WIDE, **{name: value}), 60)
        assert len({str(scenario) for scenario in one}) > 20, name
    assert len({s.root_draw for s in draws(replace(WIDE, **off), 60)}) == 8


def test_names_mappings_and_distributions_make_a_distribution() -> None:
    assert make_scenarios(None) == make_scenarios("default") == make_scenarios({}) == ScenarioDistribution()
    assert make_scenarios("wide") == WIDE
    assert make_scenarios({"alpha": [0.2, 0.3]}, roots=2) == ScenarioDistribution(alpha=(0.2, 0.3), roots=2)
    assert make_scenarios(WIDE, num_clients=(2, 3)) is WIDE


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"roots": 0}, "roots.*at least 1.*0"),
        ({"roots": "a"}, "roots must be a whole number, got 'a'"),
        ({"roots": 1.5}, r"roots must be a whole number, got 1\.5"),
        ({"root_size": (20, 50)}, "give roots"),
        ({"root_bias": (0.0, 0.5)}, "give roots"),
        ({"roots": 4, "root_size": (2, 50)}, "root_size.*at least 4.*2"),
        ({"roots": 4, "root_bias": (0.0, 1.0)}, r"root_bias.*1\.0"),
        ({"num_clients": (0, 5)}, "num_clients.*0"),
        ({"participation": (0.5, 1.5)}, r"participation.*1\.5"),
    ],
)
def test_bad_switches_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ScenarioDistribution(**fields)


def test_numbers_of_numpy_make_the_distribution_and_the_scenarios_that_plain_ones_make() -> None:
    plain = ScenarioDistribution(alpha=(0.5, 1.0), onset=(0, 3), roots=2, collusion=0.5)
    of_numpy = ScenarioDistribution(
        alpha=(np.float64(0.5), np.float64(1)),
        onset=(np.int64(0), np.int32(3)),
        roots=np.int64(2),
        collusion=np.float64(0.5),
    )
    assert of_numpy == plain
    assert draws(of_numpy, 9, onset=np.int64(2)) == draws(plain, 9, onset=2)
