"""A policy in another directory, weighed in another way."""

import json
from pathlib import Path

import pytest

from agents import TrustNet, load_policy, save_policy
from agents import publish as publishing
from agents.deployed import MODEL_CARD, WEIGHTS, read_card, weighting_of
from agents.publish import publish
from fl_core.aggregation import TrustWeighting

TRAINED = {"update_clip": "median", "root_anchor": 1.0, "sybil_exponent": 0.0, "sybil_power": 0.0}


@pytest.fixture
def run(tmp_path: Path) -> str:
    provenance = {"attacks_seen": ["sign_flip"], "command": "python train_agent.py"}
    return str(save_policy(TrustNet(), tmp_path / "run", provenance, TrustWeighting(safeguard=True)))


def test_without_options_it_is_the_same_policy(run: str, tmp_path: Path) -> None:
    publish(run, tmp_path / "out")
    for name in (WEIGHTS, MODEL_CARD, "policy.json"):
        assert (tmp_path / "out" / name).read_bytes() == (Path(run) / name).read_bytes()


def test_another_weighting_is_deployed_and_the_card_says_both(run: str, tmp_path: Path) -> None:
    publish(f"{run}:update_clip=reference,safeguard_margin=1", tmp_path / "out")
    assert weighting_of(load_policy(tmp_path / "out")) == TrustWeighting("reference", 1.0, True, 1.0)
    card = read_card(tmp_path / "out")
    assert card["provenance"] == {
        **read_card(run)["provenance"],
        "trained_with": TRAINED,
    }
    page = (tmp_path / "out" / MODEL_CARD).read_text()
    assert "update_clip='reference'` and `root_anchor=1.0`; it was trained with `update_clip='median'`" in page
    assert "it has seen no other weighting" not in page


def test_what_it_was_trained_with_survives_to_be_published_again(run: str, tmp_path: Path) -> None:
    publish(f"{run}:root_anchor=2", tmp_path / "once")
    publish(f"{tmp_path / 'once'}:update_clip=none", tmp_path / "twice")
    assert read_card(tmp_path / "twice")["provenance"]["trained_with"] == TRAINED
    publish(f"{tmp_path / 'twice'}:update_clip=median,root_anchor=1", tmp_path / "back")
    assert (tmp_path / "back" / "policy.json").read_bytes() == (Path(run) / "policy.json").read_bytes()


def test_that_sybils_are_counted_is_said_and_whether_training_did(run: str, tmp_path: Path) -> None:
    assert "are discounted" not in (Path(run) / MODEL_CARD).read_text()
    publish(f"{run}:sybil_exponent=2", tmp_path / "out")
    assert weighting_of(load_policy(tmp_path / "out")).sybil_exponent == 2
    assert read_card(tmp_path / "out")["provenance"]["trained_with"] == TRAINED
    page = (tmp_path / "out" / MODEL_CARD).read_text()
    assert "are discounted, with `sybil_exponent=2`; it has not seen this in training." in page
    assert "it has seen no other weighting" in page
    publish(f"{tmp_path / 'out'}:sybil_exponent=0", tmp_path / "back")
    assert (tmp_path / "back" / "policy.json").read_bytes() == (Path(run) / "policy.json").read_bytes()
    trained = save_policy(TrustNet(), tmp_path / "trained", {}, TrustWeighting(sybil_exponent=2))
    assert "`sybil_exponent=2`; as in training." in (trained / MODEL_CARD).read_text()
    publish(f"{trained}:sybil_exponent=3", tmp_path / "more")
    assert "`sybil_exponent=3`; it was trained with `sybil_exponent=2`." in (tmp_path / "more" / MODEL_CARD).read_text()
    publish(f"{trained}:sybil_exponent=1,sybil_power=8", tmp_path / "power")
    page = (tmp_path / "power" / MODEL_CARD).read_text()
    assert "in every round weigh less and less, with `sybil_exponent=1` and `sybil_power=8`;" in page.replace("\n", " ")
    assert "it was trained with `sybil_exponent=2`." in page
    assert "The rule remembers clients: give each view `clients=`" in page
    publish(f"{trained}:sybil_exponent=0", tmp_path / "none")
    assert "were discounted; deployed they are not." in (tmp_path / "none" / MODEL_CARD).read_text()


def test_a_card_from_before_sybils_were_counted_remembers_what_it_was_trained_with(run: str, tmp_path: Path) -> None:
    publish(f"{run}:root_anchor=2", tmp_path / "old")
    card = json.loads((tmp_path / "old" / "policy.json").read_text())
    for name in ("sybil_exponent", "sybil_power"):
        del card["weighting"][name], card["provenance"]["trained_with"][name]
    (tmp_path / "old" / "policy.json").write_text(json.dumps(card))
    publish(f"{tmp_path / 'old'}:root_anchor=1,sybil_exponent=2", tmp_path / "out")
    assert read_card(tmp_path / "out")["provenance"]["trained_with"] == {"update_clip": "median", "root_anchor": 1.0}
    assert "it has not seen this in training" in (tmp_path / "out" / MODEL_CARD).read_text()


def test_the_safeguard_comes_after_training_and_needs_no_word(run: str, tmp_path: Path) -> None:
    publish(f"{run}:safeguard=false", tmp_path / "out")
    assert not weighting_of(load_policy(tmp_path / "out")).safeguard
    assert "trained_with" not in read_card(tmp_path / "out")["provenance"]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("{run}:update_clip=mean", "publish: unknown update_clip 'mean'; there are: none, median"),
        ("{run}:clip=none", "publish: unknown option of a policy 'clip'; there are: update_clip"),
        ("nowhere", "publish: there is no directory 'nowhere'"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    policy: str, message: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["publish", policy.format(run=run), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=message):
        publishing.cli()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("/proc/x", "No such file"),
        ("file", "is a file"),
        ("file/x", "Not a directory"),
        ("x" * 300, ""),
    ],
)
def test_a_place_that_cannot_be_written_to_is_one_line(
    where: str, reason: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["publish", run, str(tmp_path / where)])
    with pytest.raises(SystemExit, match=rf"^publish: .*{reason}") as stopped:
        publishing.cli()
    assert where in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_training_run_is_not_overwritten(run: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is a training run, whose policy would be overwritten"):
        publish(run, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; give a directory"):
        publish(run, tmp_path / "file")
