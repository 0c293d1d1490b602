"""Policies as files: saved, loaded, damaged, shipped; their cards for programs and for people."""

import base64
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO

from agents import PolicyFileError, TrustNet, deployed, load_policy, save_policy
from agents.deployed import CARD, MODEL_CARD, WEIGHTS, read_card, shipped_policies
from agents.model_card import model_card
from agents.policies import AttentionPolicy
from agents.trust_net import Architecture
from fl_core.aggregation import TrustWeighting
from optigrad_env import OptiGradEnv
from optigrad_env.wrappers import ClientHistory, FeatureSubset


def break_weights(path: Path) -> None:
    content = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(content[: len(content) // 2])


def break_header(path: Path) -> None:
    (path / WEIGHTS).write_bytes(b"\xff" * 64)


def edit_card(path: Path, **changes: Any) -> None:
    card = json.loads((path / CARD).read_text())
    (path / CARD).write_text(json.dumps({**card, **changes}))


def poison(path: Path, value: float) -> None:
    weights = load_file(path / WEIGHTS)
    weights["score_head.bias"].fill_(value)
    save_file(weights, path / WEIGHTS)
    edit_card(path, weights_sha256=None)  # a card that does not say of which weights it is


def test_a_saved_policy_comes_back_bit_for_bit(tmp_path: Path, make_policy: Callable[..., TrustNet]) -> None:
    original = make_policy(seed=5, architecture=Architecture(width=24, depth=3, heads=3))
    loaded = load_policy(save_policy(original, tmp_path / "new" / "folder"))
    assert loaded.architecture == original.architecture
    assert loaded.state_dict().keys() == original.state_dict().keys()
    for name, value in original.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    observed = torch.linspace(-1, 1, 60).view(10, 6)
    assert torch.equal(loaded(observed), original(observed))


def test_a_provenance_that_json_does_not_have_leaves_the_policy_that_is_there_whole(
    saved_policy: Path, make_policy: Callable[..., TrustNet]
) -> None:
    before = {path.name: path.read_bytes() for path in saved_policy.iterdir()}
    with pytest.raises(PolicyFileError, match=r"its provenance is no plain data: .*float32"):
        save_policy(make_policy(), saved_policy, {"metrics": {"reward": np.float32(1)}})
    assert {path.name: path.read_bytes() for path in saved_policy.iterdir()} == before


def test_a_loaded_policy_is_frozen(saved_policy: Path) -> None:
    policy = load_policy(saved_policy)
    assert not policy.training
    assert not any(parameter.requires_grad for parameter in policy.parameters())
    assert not policy(torch.zeros(3, 6)).requires_grad


def test_the_path_may_be_a_string_and_the_card_keeps_where_a_policy_comes_from(saved_policy: Path) -> None:
    load_policy(str(saved_policy))
    card = read_card(str(saved_policy))
    assert card["provenance"] == {"attacks_seen": ["sign_flip"]}
    assert card["features"] == [
        "reconstruction_error",
        "root_cosine",
        "peer_cosine",
        "norm",
        "sign_agreement",
        "shapley",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_weights, r"policy\.safetensors is damaged"),
        (break_header, r"policy\.safetensors is damaged"),
        (lambda path: (path / WEIGHTS).write_bytes(b""), r"policy\.safetensors is damaged"),
        (lambda path: (path / WEIGHTS).unlink(), r"cannot read .*policy\.safetensors.*run directory"),
        (lambda path: (path / CARD).unlink(), r"cannot read .*policy\.json.*run directory"),
        (lambda path: (path / CARD).write_text("{"), r"policy\.json is damaged"),
        (lambda path: (path / CARD).write_text(""), r"policy\.json is damaged"),
        (lambda path: (path / CARD).write_text("[]"), r"policy\.json is damaged"),
        (lambda path: (path / CARD).write_text("{}"), r"policy\.json is damaged"),
        (lambda path: (path / CARD).write_bytes(b"\xff\xfe\x00"), r"policy\.json is damaged"),
        (lambda path: edit_card(path, format_version=2), r"policy\.json has format version 2.*reads 1"),
        (lambda path: edit_card(path, features=["norm", "shapley"]), r"features \['norm', 'shapley'\].*root_cosine"),
        (lambda path: edit_card(path, architecture={"width": 32, "depth": 2, "heads": 2}), "does not fit"),
        (lambda path: edit_card(path, architecture={"width": 16, "depth": 1, "heads": 2}), "does not fit"),
        (lambda path: edit_card(path, architecture={"size": 16}), "does not fit"),
        (lambda path: edit_card(path, architecture=None), "does not fit"),
        (lambda path: edit_card(path, weighting={"update_clip": "mode"}), "does not fit"),
        (lambda path: poison(path, float("nan")), r"policy\.safetensors is damaged.*not finite, in score_head\.bias$"),
        (lambda path: poison(path, float("inf")), r"policy\.safetensors is damaged.*not finite, in score_head\.bias$"),
    ],
)
def test_a_damaged_or_foreign_policy_is_refused_with_file_and_reason(
    saved_policy: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved_policy)
    with pytest.raises(PolicyFileError, match=f"(?s){message}"):
        load_policy(saved_policy)


@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        (None, "provenance must be a mapping.*None"),
        ("mine", "provenance must be a mapping.*'mine'"),
        (["mine"], r"provenance must be a mapping.*\['mine'\]"),
        ({"attacks_seen": "sign_flip"}, "attacks_seen must be a list of names.*'sign_flip'"),
        ({"attacks_seen": [1]}, r"attacks_seen must be a list of names.*\[1\]"),
        ({"detection_threshold": "0.5"}, "detection_threshold must be a number, got '0.5'"),
        ({"metrics": 5}, "metrics must be a mapping.*5"),
        ({"trained_with": "median"}, "trained_with must be a mapping.*'median'"),
        ({"trained_with": {"clip": "none"}}, "unknown option in trained_with 'clip'; there are: update_clip"),
        ({"trained_with": {"sybil_exponent": 1.0}}, "trained_with must say update_clip and root_anchor"),
        ({"trained_with": {"update_clip": "mode", "root_anchor": 1.0}}, "unknown update_clip 'mode'"),
    ],
)
def test_facts_that_are_read_again_must_be_of_their_kind(
    provenance: Any, message: str, saved_policy: Path, policy: TrustNet, tmp_path: Path
) -> None:
    edit_card(saved_policy, provenance=provenance)
    for read in (read_card, load_policy):
        with pytest.raises(PolicyFileError, match=rf"policy\.json is damaged: {message}"):
            read(saved_policy)
    if provenance is not None:  # to whom saves it means that there is none
        with pytest.raises(ValueError, match=message):
            save_policy(policy, tmp_path / "out", provenance)
        assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_not_saved_over_those_that_are(saved_policy: Path, policy: TrustNet) -> None:
    before = (saved_policy / WEIGHTS).read_bytes()
    torch.nn.init.constant_(policy.score_head.bias, float("nan"))
    with pytest.raises(PolicyFileError, match=r"cannot be saved: .*not finite, in score_head\.bias$"):
        save_policy(policy, saved_policy)
    assert (saved_policy / WEIGHTS).read_bytes() == before


@pytest.mark.parametrize("path", [None, 5, b"digits"])
def test_what_is_no_path_is_refused_in_words(path: Any) -> None:
    with pytest.raises(TypeError, match=f"path must be that of a policy or the name of one that ships, got {path!r}"):
        load_policy(path)


@pytest.mark.parametrize(("where", "reason"), [("/proc/x", "No such file"), ("file/x", "Not a directory")])
def test_a_place_that_cannot_be_written_to_is_named_with_the_reason(
    where: str, reason: str, policy: TrustNet, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PolicyFileError, match=f"cannot write a policy to .*{where}: {reason}"):
        save_policy(policy, tmp_path / where)


def test_a_policy_for_a_permuted_layout_of_the_same_features_is_refused(saved_policy: Path) -> None:
    edit_card(saved_policy, features=read_card(saved_policy)["features"][::-1])
    with pytest.raises(PolicyFileError, match="was made for the features"):
        load_policy(saved_policy)


@pytest.mark.parametrize("where", ["os.fsync", "Path.replace"])
def test_an_interrupted_write_leaves_the_old_policy(
    saved_policy: Path, where: str, make_policy: Callable[..., TrustNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved_policy.iterdir()}

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if where == "os.fsync" else (Path, "replace")), interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_policy(make_policy(seed=99), saved_policy)
    assert {path.name: path.read_bytes() for path in saved_policy.iterdir()} == before
    load_policy(saved_policy)


def test_a_write_that_is_broken_off_between_two_files_leaves_no_policy_under_anothers_card(
    saved_policy: Path, make_policy: Callable[..., TrustNet], monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, done = Path.replace, []

    def second_is_interrupted(path: Path, target: Path) -> Path:
        done.append(target)
        if len(done) == 2:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", second_is_interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_policy(make_policy(seed=99), saved_policy)
    assert [target.name for target in done] == [WEIGHTS, CARD]
    with pytest.raises(PolicyFileError, match="broken off; write it again"):
        load_policy(saved_policy)
    save_policy(make_policy(seed=99), saved_policy)
    load_policy(saved_policy)


@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_loading_a_policy_draws_no_random_number(name: str) -> None:
    before = torch.get_rng_state()
    policy = load_policy(name)
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.device.type for value in policy.state_dict().values()} == {"cpu"}
    assert {value.dtype for value in policy.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 2**20, "heads": 1}, "damaged or does not fit"),
        ({"depth": 10**9}, "depth must be at most 64, got 1000000000"),
    ],
)
def test_a_card_cannot_ask_for_more_memory_or_time_than_its_weights_have(
    saved_policy: Path, sizes: dict[str, int], message: str
) -> None:
    edit_card(saved_policy, architecture={**read_card(saved_policy)["architecture"], **sizes})
    with pytest.raises(PolicyFileError, match=message):  # 2**20 wide it would be 26 TB
        load_policy(saved_policy)


def test_a_card_of_brackets_in_brackets_is_damaged(saved_policy: Path) -> None:
    (saved_policy / CARD).write_text("[" * 100_000)
    with pytest.raises(PolicyFileError, match="is damaged"):
        read_card(saved_policy)


def test_one_of_the_pair_of_files_stands_for_both_whatever_their_name(saved_policy: Path, tmp_path: Path) -> None:
    (saved_policy / WEIGHTS).rename(tmp_path / "mine.safetensors")
    (saved_policy / CARD).rename(tmp_path / "mine.json")
    for name in ("mine.safetensors", "mine.json"):
        assert load_policy(tmp_path / name)(torch.zeros(3, 6)).shape == (3,)
        assert read_card(tmp_path / name)["features"]


def test_a_shipped_policy_is_found_by_its_name(
    saved_policy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(deployed, "PRETRAINED", saved_policy.parent)
    monkeypatch.chdir(tmp_path)
    assert shipped_policies() == ["learned"]
    assert load_policy("learned")(torch.zeros(3, 6)).shape == (3,)
    assert read_card("learned")["provenance"]["attacks_seen"] == ["sign_flip"]
    with pytest.raises(PolicyFileError, match=r"'learnt' and no shipped policy.*shipped are: learned"):
        load_policy("learnt")
    with pytest.raises(PolicyFileError, match=r"are for command lines: here load 'learned', and give TrustAggregator"):
        load_policy("learned:safeguard=false,root_anchor=2")


def test_a_directory_comes_before_a_shipped_policy_of_the_same_name(
    saved_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_policy: Callable[..., TrustNet]
) -> None:
    monkeypatch.setattr(deployed, "PRETRAINED", saved_policy.parent)
    monkeypatch.chdir(tmp_path)
    mine = make_policy(seed=8)
    save_policy(mine, "learned")
    assert torch.equal(load_policy("learned").embed.weight, mine.embed.weight)


@pytest.mark.parametrize("name", ["learned", "mine"])
def test_a_folder_of_images_does_not_hide_a_shipped_policy_of_its_name(
    name: str, saved_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deployed, "PRETRAINED", saved_policy.parent)
    (tmp_path / "work" / name / "train").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    if name == "learned":
        assert read_card(name)["provenance"]["attacks_seen"] == ["sign_flip"]
        assert load_policy(name)(torch.zeros(3, 6)).shape == (3,)
    else:
        with pytest.raises(PolicyFileError, match=r"cannot read mine/policy\.json.*is mine a run directory"):
            load_policy(name)


class _Bomb:
    """What a malicious file would have in it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("exploded",)


def test_a_zip_is_not_even_opened_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content = {"policy_kwargs": {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(_Bomb())).decode()}}
    with zipfile.ZipFile("model.zip", "w") as archive:
        archive.writestr("data", json.dumps(content))
    with pytest.raises(PolicyFileError, match=r"executes code.*trusted=True"):
        load_policy("model.zip")
    assert not Path("exploded").exists()
    with pytest.raises(PolicyFileError, match="damaged or holds no attention policy"):
        load_policy("model.zip", trusted=True)
    assert Path("exploded").exists()  # which is why


@pytest.mark.parametrize(
    ("wrap", "count"),
    [(lambda env: ClientHistory(env, 2), 20), (lambda env: FeatureSubset(env, ["norm", "shapley"]), 2)],
)
def test_a_policy_on_other_features_is_not_published(
    wrap: Callable[[OptiGradEnv], gymnasium.Env[Any, Any]], count: int, tmp_path: Path
) -> None:
    model = PPO(AttentionPolicy, wrap(OptiGradEnv(num_clients=4, rounds=3)), n_steps=4, batch_size=4, device="cpu")
    message = rf"reads {count} features a client \(ClientHistory, FeatureSubset\?\); only policies on the six"
    with pytest.raises(PolicyFileError, match=message):
        save_policy(model.policy.trust_net, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    model.save(tmp_path / "model.zip")
    with pytest.raises(PolicyFileError, match=message):
        load_policy(tmp_path / "model.zip", trusted=True)


def test_the_model_card_tells_people_what_the_json_tells_programs(tmp_path: Path, policy: TrustNet) -> None:
    facts = {
        "env_id": "OptiGrad/Digits-v0",
        "command": "python train_agent.py --seed 7",
        "attacks_seen": ["sign_flip", "scaling"],
        "metrics": {"mean_reward": 0.03217},
    }
    page = (save_policy(policy, tmp_path, facts, TrustWeighting(root_anchor=0.7)) / MODEL_CARD).read_text()
    for said in (
        "trained on OptiGrad/Digits-v0",
        "`root_cosine`",
        "2 blocks of width 16",
        "python train_agent.py --seed 7",
        "sign_flip, scaling",
        "0.0322",
        "root_anchor=0.7",
    ):
        assert said in page


def test_a_card_from_before_there_was_a_margin_can_be_read_by_people_too(saved_policy: Path) -> None:
    card = json.loads((saved_policy / CARD).read_text())
    del card["weighting"]["safeguard_margin"]
    assert "without the safeguard" in model_card(card)


def test_a_card_without_provenance_says_that_it_has_none(tmp_path: Path, policy: TrustNet) -> None:
    assert (save_policy(policy, tmp_path) / MODEL_CARD).read_text().count("Not recorded.") == 2


def test_a_card_without_provenance_says_nothing_of_where_it_comes_from(tmp_path: Path, policy: TrustNet) -> None:
    save_policy(policy, tmp_path)
    card = json.loads((tmp_path / CARD).read_text())
    del card["provenance"]
    (tmp_path / CARD).write_text(json.dumps(card))
    assert read_card(tmp_path)["provenance"] == {}


def test_a_number_of_numpys_is_a_number(policy: TrustNet, tmp_path: Path) -> None:
    save_policy(policy, tmp_path, {"detection_threshold": np.float64(0.5)})
    assert read_card(tmp_path)["provenance"]["detection_threshold"] == 0.5
