"""What a grid is made of, and what it refuses before anything is run."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from agents.deployed import TrustAggregator, save_policy
from agents.evaluation import Cell, Grid
from agents.evaluation.grid import parse_attack
from agents.evaluation.heterogeneity import parse_heterogeneity, show_heterogeneity
from agents.evaluation.policies import parse_policy, policy_facts
from agents.trust_net import TrustNet
from fl_core.attacks import attack_names
from optigrad_env import TRAIN_ATTACKS


def scenarios(cells: list[Cell]) -> list[tuple[Any, ...]]:
    return [(cell.attack, cell.malicious_fraction, cell.heterogeneity, cell.seed) for cell in cells]


def test_fraction_zero_is_one_scenario_without_attack_for_each_heterogeneity(make_grid: Callable[..., Grid]) -> None:
    cells = make_grid(malicious_fractions=(0.0,), heterogeneities=("0.5", "iid"), seeds=(3, 4)).cells()
    assert scenarios(cells) == [("none", 0.0, kind, seed) for seed in (3, 4) for kind in ("0.5", "iid")]


def test_every_seed_has_every_attack_fraction_and_heterogeneity_once(make_grid: Callable[..., Grid]) -> None:
    attacks, fractions = ("sign_flip", "alie", "ipm"), (0.0, 0.2, 0.4)
    grid = make_grid(attacks=attacks, malicious_fractions=fractions, heterogeneities=("0.5", "0.1"), seeds=(0, 1, 2))
    cells = scenarios(grid.cells())
    assert len(cells) == len(set(cells)) == 3 * 2 * (1 + 2 * len(attacks))


def test_several_environments_and_numbers_of_clients_are_axes_too(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(env_ids=("OptiGrad/Softmax-v0", "OptiGrad/Quadratic-v0"), num_clients=(5, 10))
    pairs = {(cell.env_id, cell.num_clients) for cell in grid.cells()}
    assert pairs == {(f"OptiGrad/{name}-v0", n) for name in ("Softmax", "Quadratic") for n in (5, 10)}


def test_cells_have_names_of_their_own_that_are_file_names(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(attacks=("ipm:epsilon=2", "ipm"), heterogeneities=("0.5", "label_skew_70"), seeds=(0, 1))
    names = [cell.name for cell in grid.cells()]
    assert len(set(names)) == len(names)
    assert not any(set(name) & set("/\\: *") for name in names)


def test_an_attacks_options_reach_it_and_held_out_goes_by_its_name(make_grid: Callable[..., Grid]) -> None:
    assert parse_attack("sign_flip:scale=3,colluding=true") == ("sign_flip", {"scale": 3, "colluding": True})
    nested = parse_attack("on_off:attack=alie,options={z: 1, jitter: [0.1, 2]},honest_rounds=1")[1]
    assert nested == {"attack": "alie", "options": {"z": 1, "jitter": [0.1, 2]}, "honest_rounds": 1}
    with pytest.raises(ValueError, match="option 'scale' is given twice"):
        parse_attack("sign_flip:scale=3,scale=5")
    grid = make_grid(attacks=("sign_flip:colluding=true", "ipm:epsilon=2"), malicious_fractions=(0.4,))
    attacks = [cell.scenario().make_attack() for cell in grid.cells()]
    assert vars(attacks[0])["colluding"] is True
    assert vars(attacks[1])["epsilon"] == 2
    assert [grid.is_held_out(cell.attack) for cell in grid.cells()] == [False, True]


def test_words_for_heterogeneity() -> None:
    assert parse_heterogeneity("0.10").label == "0.1"
    skewed = parse_heterogeneity("label_skew_90")
    assert (skewed.partition, skewed.options, skewed.alpha) == ("label_skew", {"q": 0.9}, None)
    assert parse_heterogeneity("iid").partition == "iid"
    shown = [show_heterogeneity(word) for word in ("0.5", "iid", "label_skew_70", "by_group")]
    assert shown == ["α 0.5", "IID", "label skew 70 %", "by group"]


def test_the_train_attacks_are_never_held_out_and_all_others_are(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid()
    held_out = {name for name in attack_names() if grid.is_held_out(name)}
    assert held_out == set(attack_names()) - set(TRAIN_ATTACKS) - {"none"}


@pytest.mark.parametrize(
    ("attack", "held_out"),
    [
        ("late_onset:onset=0", False),
        ("on_off:honest_rounds=0", False),
        ("late_onset:onset=0,attack=ipm", True),
        ("late_onset:onset=1", True),
        ("on_off", True),
    ],
)
def test_a_timetable_that_leaves_no_round_out_is_the_attack_that_it_is_of(
    make_grid: Callable[..., Grid], attack: str, held_out: bool
) -> None:
    assert make_grid().is_held_out(attack) == held_out


def test_an_attack_that_a_policys_card_lists_as_seen_is_not_called_held_out(
    make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    path = save_policy(TrustNet(), tmp_path / "peeked", {"attacks_seen": ["sign_flip", "alie"]})
    grid = make_grid(policies=(str(path),))
    assert not grid.is_held_out("alie")
    assert not grid.is_held_out("alie:jitter=0.1")
    assert grid.is_held_out("ipm")


def test_with_a_policy_whose_card_is_silent_nothing_is_called_held_out(
    make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    path = save_policy(TrustNet(), tmp_path / "silent")
    assert not make_grid(policies=(str(path),)).is_held_out("ipm")


def test_the_oracles_and_the_floor_are_always_run(make_grid: Callable[..., Grid]) -> None:
    assert make_grid(rules=("krum",)).labels() == ["krum", "oracle", "anchored_oracle", "root_only"]


def test_controls_stand_after_what_they_control_and_only_where_there_is_something_to_take_away(
    make_grid: Callable[..., Grid],
) -> None:
    labels = make_grid(rules=("fedavg", "shapley", "fltrust"), controls=True).labels()
    assert labels[:6] == [
        "fedavg",
        "shapley",
        "shapley (features shuffled)",
        "shapley (root labels shuffled)",
        "fltrust",
        "fltrust (root labels shuffled)",
    ]


def test_a_policy_weighs_its_trust_as_the_federation_is_set_to(
    make_grid: Callable[..., Grid], saved_policy: Path
) -> None:
    grid = make_grid(policies=(str(saved_policy),), settings={"root_anchor": 0.25})
    contestant = grid.contestants("OptiGrad/Softmax-v0")[0]
    rule = contestant.make(grid.config("OptiGrad/Softmax-v0"))
    assert contestant.label == "learned"
    assert rule.weighting.root_anchor == 0.25  # type: ignore[attr-defined]


def test_a_policy_may_be_given_with_options_which_say_how_its_trust_is_weighed(
    make_grid: Callable[..., Grid], saved_policy: Path
) -> None:
    specs = (str(saved_policy), f"{saved_policy}:safeguard=true", f"{saved_policy}:safeguard=true,root_anchor=2")
    grid = make_grid(policies=specs, settings={"root_anchor": 0.5})
    labels = ["learned", "learned (safeguard=true)", "learned (safeguard=true,root_anchor=2)"]
    assert grid.labels()[:3] == labels
    rules = [one.make(grid.config(grid.env_ids[0])) for one in grid.contestants(grid.env_ids[0])[:3]]
    weightings = [(rule.weighting.root_anchor, rule.weighting.safeguard) for rule in rules]  # type: ignore[attr-defined]
    assert weightings == [(0.5, False), (0.5, True), (2, True)]
    # Results with and without the safeguard are results of different policies.
    assert len(set(grid.to_json()["policies"].values())) == 3


def test_a_directory_whose_name_looks_like_options_is_a_directory(tmp_path: Path) -> None:
    for name in ("run:lr=0.1", "run:root_anchor=2"):
        (tmp_path / name).mkdir()
        assert parse_policy(str(tmp_path / name)) == (str(tmp_path / name), {})
    assert parse_policy("C:\\runs\\a=b") == ("C:\\runs\\a=b", {})
    assert parse_policy("C:\\runs\\a:root_anchor=2,") == ("C:\\runs\\a", {"root_anchor": 2})


def test_the_same_weighting_is_the_same_policy_however_it_is_written(
    make_grid: Callable[..., Grid], saved_policy: Path
) -> None:
    grids = [make_grid(policies=(f"{saved_policy}:root_anchor={anchor}",)) for anchor in ("2", "2.0", "3")]
    two, also_two, three = (tuple(grid.to_json()["policies"].values()) for grid in grids)
    assert two == also_two != three


def test_policies_of_other_weightings_are_other_policies(saved_policy: Path) -> None:
    # 0.5 and 0.05 together must not read as 0.55.
    weightings: list[dict[str, float]] = [
        {"safeguard_margin": 0.55},
        {"safeguard_margin": 0.5, "sybil_exponent": 0.05},
        {"sybil_exponent": 0.01},
        {"sybil_exponent": 2},
        {"sybil_exponent": 2, "sybil_power": 8},
        {},
    ]
    checksums = {policy_facts(str(saved_policy), **weighting).checksum for weighting in weightings}
    assert len(checksums) == len(weightings)
    assert policy_facts(str(saved_policy), sybil_exponent=0).checksum in checksums
    assert policy_facts(str(saved_policy), sybil_exponent=2, sybil_power=0).checksum in checksums


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("safegard=true", "unknown option of a policy 'safegard'; there are: update_clip, root_anchor, safeguard"),
        ("safeguard=maybe", "safeguard must be true or false, got 'maybe'"),
        ("update_clip=mode", "unknown update_clip 'mode'"),
        ("root_anchor=1e9", "root_anchor must be a number .*got '1e9'"),
        ("root_anchor=true", "root_anchor must be a number .*got True"),
        ("safeguard", "option 'safeguard' has no value; write .*:safeguard=VALUE"),
        ("safeguard=", "option 'safeguard=' has no value"),
        ("safeguard=[", r"the value of option 'safeguard=\[' cannot be read"),
    ],
)
def test_wrong_options_of_a_policy_are_named(
    make_grid: Callable[..., Grid], saved_policy: Path, options: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(policies=(f"{saved_policy}:{options}",))


def test_rules_that_can_be_told_the_number_of_attackers_are_told(make_grid: Callable[..., Grid]) -> None:
    grid = make_grid(rules=("krum", "median"), num_byzantine=1)
    krum, median, *_ = (one.make(grid.config("OptiGrad/Softmax-v0")) for one in grid.contestants("OptiGrad/Softmax-v0"))
    assert vars(krum)["num_byzantine"] == 1
    assert "num_byzantine" not in vars(median)


def test_a_policy_in_the_current_directory_has_a_name_all_the_same(
    make_grid: Callable[..., Grid], saved_policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved_policy)
    assert "learned" in make_grid(policies=(".",)).labels()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ()}, "attacks is empty"),
        ({"malicious_fractions": ()}, "malicious_fractions is empty"),
        ({"heterogeneities": ()}, "heterogeneities is empty"),
        ({"seeds": ()}, "seeds is empty"),
        ({"env_ids": ()}, "env_ids is empty"),
        ({"rules": ()}, "neither rules nor policies"),
        ({"rounds": 2}, "rounds must be at least 3.*got 2"),
        ({"seeds": (-1,)}, "seeds.*-1"),
        ({"rules": ("kurm",)}, r"'kurm'.*krum"),
        ({"attacks": ("signflip",)}, r"'signflip'.*sign_flip"),
        ({"attacks": ("ipm:epsilon",)}, r"'ipm:epsilon'.*epsilon=VALUE"),
        ({"attacks": ("ipm:size=2",)}, r"size"),
        ({"malicious_fractions": (1.0,)}, r"malicious_fraction.*1\.0"),
        ({"malicious_fractions": (0.1,)}, r"malicious_fraction=0\.1 of 5 clients.*at least 0\.2"),
        ({"malicious_fractions": (0.2, 0.3)}, r"0\.2 and 0\.3 of 5 clients are both 1 clients.*count twice"),
        ({"heterogeneities": ("0",)}, r"alpha.*0"),
        ({"heterogeneities": ("even",)}, r"'even'.*iid"),
        ({"heterogeneities": ("label_skew_130",)}, r"label_skew_130.*100"),
        ({"policies": ("nowhere/at/all",)}, r"cannot read .*nowhere/at/all"),
        ({"settings": {"clients": 5}}, r"'clients'.*num_clients"),
        ({"env_ids": ("OptiGrad/Nope-v0",)}, r"'OptiGrad/Nope-v0'.*OptiGrad/Digits-v0"),
        ({"num_clients": (10**6,)}, "num_clients=1000000"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_before_it_starts(
    make_grid: Callable[..., Grid], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make_grid(**changes)


def test_a_policy_for_another_feature_layout_is_refused_by_name(
    make_grid: Callable[..., Grid], saved_policy: Path
) -> None:
    card = saved_policy / "policy.json"
    card.write_text(card.read_text().replace('"peer_cosine"', '"peer_angle"'))
    with pytest.raises(ValueError, match=r"policy\.json.*peer_angle"):
        make_grid(policies=(str(saved_policy),))


def test_two_policies_of_the_same_name_are_refused(make_grid: Callable[..., Grid], tmp_path: Path) -> None:
    paths = tuple(str(save_policy(TrustNet(), tmp_path / parent / "trust")) for parent in ("a", "b"))
    with pytest.raises(ValueError, match="same directory name"):
        make_grid(policies=paths)


@pytest.mark.parametrize("name", ["oracle", "anchored_oracle", "root_only", "fedavg"])
def test_a_policy_with_the_name_of_a_rule_is_refused_because_it_would_take_its_row(
    make_grid: Callable[..., Grid], tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        make_grid(policies=(str(save_policy(TrustNet(), tmp_path / name)),))


def test_a_policy_that_is_trained_on_meanwhile_stays_what_it_was(
    make_grid: Callable[..., Grid], tmp_path: Path
) -> None:
    def network(seed: int) -> TrustNet:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return TrustNet()

    save_policy(network(0), tmp_path / "mine")
    grid = make_grid(policies=(str(tmp_path / "mine"),))
    (mine, *_) = grid.contestants(grid.env_ids[0])
    save_policy(network(1), tmp_path / "mine")
    for one in (mine, pickle.loads(pickle.dumps(mine))):
        rule = one.make(grid.config(grid.env_ids[0]))
        assert isinstance(rule, TrustAggregator)
        assert torch.equal(rule.policy(torch.eye(6)), network(0).eval()(torch.eye(6)))


def test_an_attack_that_there_is_not_is_refused_where_nobody_is_malicious_too(make_grid: Callable[..., Grid]) -> None:
    with pytest.raises(ValueError, match="unknown attack 'typo'; there are: "):
        make_grid(attacks=("typo",), malicious_fractions=(0.0,))


def test_clients_that_come_and_go_are_refused(make_grid: Callable[..., Grid]) -> None:
    with pytest.raises(ValueError, match=r"'OptiGrad/DigitsMasked-v0' is for training .* give 'OptiGrad/Digits-v0'"):
        make_grid(env_ids=("OptiGrad/DigitsMasked-v0",))


def test_a_rule_that_reads_no_feature_has_no_control_with_shuffled_ones(make_grid: Callable[..., Grid]) -> None:
    labels = make_grid(rules=("root_cosine", "shapley"), controls=True).labels()
    assert "shapley (features shuffled)" in labels
    assert "root_cosine (features shuffled)" not in labels
    assert "root_cosine (root labels shuffled)" in labels


@pytest.mark.parametrize("word", ["inf", "nan", "0", "-1"])
def test_an_alpha_that_no_partition_can_have_is_refused_before_anything_is_run(word: str) -> None:
    with pytest.raises(
        ValueError, match=rf"a Dirichlet alpha must be greater than 0 and finite \(or iid\), got {word}"
    ):
        parse_heterogeneity(word)
