"""Presets, YAML files and flags."""

from pathlib import Path
from typing import Any

import pytest

import agents.evaluation.policies as policies_module
from agents.deployed import save_policy
from agents.evaluation.configuration import make_grid, preset_names, read_config, read_preset
from agents.evaluation.policies import SHIPPED_LABEL, shipped_policy
from agents.trust_net import TrustNet
from optigrad_env import TRAIN_ATTACKS, held_out_attacks
from optigrad_env.scenarios import attack_set


def test_the_presets_that_were_promised_are_there() -> None:
    assert preset_names() == ["adaptive", "held-out", "paper", "quick", "scaling"]


@pytest.mark.parametrize("name", ["adaptive", "held-out", "quick", "scaling"])
def test_presets_make_grids_without_any_files(name: str) -> None:
    grid = make_grid(read_preset(name))
    assert grid.cells()
    assert "fedavg" in grid.labels()


def test_the_papers_preset_is_its_protocol_and_names_the_files_that_it_needs(tmp_path: Path) -> None:
    preset = read_preset("paper")
    assert preset["attacks"] == list(TRAIN_ATTACKS)
    assert preset["env_id"] == [f"OptiGrad/{name}-v0" for name in ("MNIST", "CIFAR10", "AlzheimerMRI")]
    assert preset["heterogeneity"] == ["iid", "label_skew_70", "label_skew_90", 0.5, 0.1]
    with pytest.raises(ValueError, match="mnist"):
        make_grid(preset, {"settings": {"data_dir": str(tmp_path)}})


def test_the_headline_preset_is_all_held_out_attacks_on_twenty_seeds() -> None:
    grid = make_grid(read_preset("held-out"))
    assert set(grid.attacks) == set(held_out_attacks())
    assert grid.seeds == tuple(range(40, 60))


def test_the_adaptive_preset_has_the_colluding_forms_of_the_train_attacks() -> None:
    grid = make_grid(read_preset("adaptive"))
    assert {f"{name}:colluding=true" for name in TRAIN_ATTACKS} <= set(grid.attacks)


def test_the_shipped_policy_is_the_data_sets_own_or_the_one_for_the_largest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies_module, "PRETRAINED", tmp_path)
    for name in ("digits", "fashion_mnist"):
        save_policy(TrustNet(), tmp_path / name, {"attacks_seen": ["sign_flip"]})
    assert shipped_policy("digits") == tmp_path / "digits"
    assert shipped_policy("fashion_mnist") == shipped_policy("mnist") == tmp_path / "fashion_mnist"
    grid = make_grid(read_preset("quick"))
    assert grid.labels()[0] == SHIPPED_LABEL
    assert grid.seen_attacks() == {"sign_flip"}


def test_unless_told_what_to_compare_it_is_the_shipped_policy_with_the_usual_rules() -> None:
    assert make_grid({"seeds": 1}).policies == ("shipped",)
    assert make_grid({"rules": ("krum",)}).policies == ()
    assert make_grid({"policies": ("digits",)}).rules == make_grid({}).rules


def test_later_layers_win_and_what_is_unsaid_stays(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "rules: [krum]\nmalicious-fraction: 0.2\nalpha: [iid, 0.3]\nseeds: [4, 7]\n"
        "env_id: OptiGrad/Softmax-v0\nsettings: {learning_rate: 0.3, root: 60}\n"
    )
    flags = {"rules": ("median",), "seeds": None, "attacks": ("alie", "train"), "settings": {"root": 80}}
    grid = make_grid(read_config(file), flags)
    assert grid.rules == ("median",)
    assert grid.seeds == (4, 7)
    assert grid.heterogeneities == ("iid", "0.3")
    assert grid.malicious_fractions == (0.2,)
    assert grid.attacks == ("alie", *attack_set("train"))
    assert dict(grid.settings) == {"learning_rate": 0.3, "root": 80}


def test_seeds_are_counted_from_the_first_one() -> None:
    assert make_grid({"seeds": 3}, {"first_seed": 20}).seeds == (20, 21, 22)
    assert make_grid({"seeds": 2, "first_seed": 5}, {"first_seed": 0}).seeds == (0, 1)
    assert make_grid({"seeds": 2, "first_seed": 5}, {"seeds": [4, 7]}).seeds == (4, 7)  # a list says where it begins


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "is not YAML"),
        ("- krum", "must be a mapping"),
        ("", "must be a mapping.*NoneType"),
        ("ruls: [krum]", r"'ruls'.*rules"),
        ("seeds: 0", "seeds.*0"),
        ("seeds: many", "seeds.*'many'"),
        ("seeds: 1.5", "seeds.*1.5"),
        ("attacks: []", "attacks is empty"),
        ("first-seed: -3", "seeds must be 0 or more, got -3"),
        ("first_seed: x", "first_seed.*'x'"),
        ("seeds: [4, 7]\nfirst_seed: 2", r"first_seed=2 beside the list of seeds \[4, 7\]: leave first_seed out"),
        ("first_seed: 9998", "seeds must be below 10000.*got 10002"),
        ("malicious_fraction: [a]", "malicious_fraction.*'a'"),
        ("num_clients: 2.5", "num_clients.*whole.*2.5"),
        ("rules: {krum: 1}", "rules must be one value or a list"),
        ("settings: {clients: 3}", r"'clients'.*num_clients"),
        ("settings: 5", "settings must be a mapping.*got 5"),
        ("settings: {learning_rate: 1e-2}", r"learning_rate must be a number, got '1e-2' \(YAML takes 1e-1 for text"),
        ('settings: {root: "50"}', "root must be a whole number, got '50'"),
        ("settings: {split_seed: 7}", "settings cannot hold split_seed.*give seeds"),
        ('rounds: "20"', "rounds must be whole numbers, got '20'"),
        ("rounds: 10.5", "rounds must be whole numbers, got 10.5"),
        ("rounds: .inf", "rounds must be whole numbers, got inf"),
        ('num_byzantine: "3"', "num_byzantine must be whole numbers, got '3'"),
        ("num_byzantine: -3", "num_byzantine must be 0 or more and below the 10 clients, got -3"),
        ("num_byzantine: 1000", "num_byzantine must be 0 or more and below the 10 clients, got 1000"),
        ('features: "no"', "features must be true or false, got 'no'"),
        ("plugins: nowhere.py", "plugin nowhere.py cannot be read"),
        ("plugin: nowhere.py", "plugin nowhere.py cannot be read"),
        ("plugins: 5", "plugins must be paths of Python files, got 5"),
        ("plugins: [null]", "plugins must be paths of Python files, got None"),
        ("settings: {network_options: 5}", "network_options must be a mapping from names to values, got 5"),
        ("settings: {network_options: {5: 1}}", "network_options must be a mapping from names to values"),
        ("settings: {dataset_options: abc}", "dataset_options must be a mapping from names to values, got 'abc'"),
    ],
)
def test_a_bad_file_is_an_error_that_names_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make_grid(read_config(file))


def test_plugins_that_are_left_empty_are_left_unsaid(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("plugins:\n")
    assert read_config(file) == {}


def test_options_of_networks_and_data_sets_are_settings_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("rules: [fedavg]\nsettings: {network_options: {channels: [4, 8]}}")
    grid = make_grid(read_config(file))
    assert dict(grid.config("OptiGrad/Digits-v0").network_options) == {"channels": (4, 8)}


def test_missing_files_and_unknown_presets_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.yaml cannot be read"):
        read_config(tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match=r"unknown preset 'qick'; there are: .*quick"):
        read_preset("qick")


def test_a_layer_of_nothing_is_the_defaults() -> None:
    empty: dict[str, Any] = {"rules": None, "seeds": None}
    assert make_grid(empty) == make_grid()


@pytest.mark.parametrize("name", ["rules", "policies", "env_id"])
def test_a_number_where_a_name_belongs_is_an_unknown_name(name: str) -> None:
    with pytest.raises(ValueError, match="'5'"):
        make_grid({name: [5]})
