"""The training command, when it begins with a trained policy."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import load_policy, training
from agents import warm_start as stages
from agents.deployed import read_card, save_policy
from agents.settings import TrainingSettings
from agents.trust_net import Architecture, TrustNet
from optigrad_env.scenarios import TRAIN_ATTACKS
from train_agent import main


def test_a_run_can_start_from_a_trained_policy_and_says_so(arguments: TrainingSettings, tmp_path: Path) -> None:
    first = TrustNet()
    with torch.no_grad():
        first.score_head.bias.fill_(0.7)
    save_policy(first, tmp_path / "first", provenance={"attacks_seen": list(TRAIN_ATTACKS), "command": "by hand"})
    # A learning rate of nearly nothing: what is saved is what it started from.
    still = tmp_path / "still.yml"
    still.write_text("default: {policy: p, n_envs: 1, n_steps: 8, batch_size: 8, learning_rate: 1.0e-12}")
    again = replace(arguments, start_from=str(tmp_path / "first"), hyperparams=still)
    assert main(again) == 0
    for name, value in load_policy(arguments.run_dir).state_dict().items():
        torch.testing.assert_close(value, first.state_dict()[name], msg=name)
    provenance = read_card(arguments.run_dir)["provenance"]
    assert provenance["started_from"] == {"policy": str(tmp_path / "first"), "command": "by hand"}
    assert set(TRAIN_ATTACKS) <= set(provenance["attacks_seen"])


def test_the_policy_to_start_from_may_be_in_the_run_that_is_overwritten_or_gone_when_it_is_resumed(
    arguments: TrainingSettings,
) -> None:
    main(arguments)
    policy = str(arguments.run_dir)
    assert main(replace(arguments, start_from=policy, overwrite=True, eval_every=1000)) == 0
    assert load_policy(arguments.run_dir / "start").architecture == Architecture()
    shutil.rmtree(arguments.run_dir / "checkpoints")
    for name in ("policy.json", "policy.safetensors"):
        (arguments.run_dir / name).unlink()
    assert main(replace(arguments, start_from=policy, resume=True, eval_every=1000, timesteps=24)) == 0


def test_a_copy_that_was_not_written_to_the_end_is_written_again_when_the_run_is_resumed(
    arguments: TrainingSettings, tmp_path: Path
) -> None:
    save_policy(TrustNet(), tmp_path / "first")
    again = replace(arguments, start_from=str(tmp_path / "first"))
    main(again)
    for path in (arguments.run_dir / "start" / "policy.json", arguments.run_dir / "checkpoint.pkl"):
        path.unlink()  # killed while the copy was written
    assert main(replace(again, resume=True)) == 0
    assert (arguments.run_dir / "start" / "policy.json").is_file()


def test_what_the_first_policy_has_seen_counts_and_if_nobody_knows_nothing_is_said(
    arguments: TrainingSettings, tmp_path: Path
) -> None:
    for name, facts in (("told", {"attacks_seen": ["alie"]}), ("untold", {})):
        save_policy(TrustNet(), tmp_path / name, provenance=facts)
        main(replace(arguments, start_from=str(tmp_path / name), overwrite=True))
        seen = read_card(arguments.run_dir)["provenance"].get("attacks_seen")
        assert seen == (["alie", *TRAIN_ATTACKS] if facts else None)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("policy", "clone", "cloning would overwrite"),
        ("policy", "clone+gradient", "cloning would overwrite"),
        ("small", "none", "width=16"),
        ("nowhere", "none", "no shipped policy"),
    ],
)
def test_a_policy_that_cannot_be_started_from_is_refused_before_anything_is_written(
    path: str, kind: Any, words: str, arguments: TrainingSettings, tmp_path: Path
) -> None:
    save_policy(TrustNet(), tmp_path / "policy")
    save_policy(TrustNet(Architecture(width=16)), tmp_path / "small")
    given = path if path == "nowhere" else str(tmp_path / path)
    with pytest.raises(ValueError, match=words):
        main(replace(arguments, start_from=given, warm_start=kind))
    assert not arguments.run_dir.exists()


@pytest.mark.parametrize("algo", ["sac", "td3", "tqc"])
def test_an_untrained_critic_is_not_let_loose_on_a_trained_policy(
    algo: Any, arguments: TrainingSettings, tmp_path: Path
) -> None:
    save_policy(TrustNet(), tmp_path / "policy")
    start = replace(arguments, algo=algo, start_from=str(tmp_path / "policy"), hyperparams=None)
    with pytest.raises(ValueError, match=f"the critic of {algo} knows nothing yet.*--warm-start gradient"):
        main(replace(start, warm_start="none"))
    assert not arguments.run_dir.exists()
    replace(start, warm_start="gradient").check()


def test_the_gradient_alone_trains_a_policy_that_knows_something(
    arguments: TrainingSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = training.WarmStart(rounds=8, clone_steps=2, gradient_steps=2, batch=2, samples=8)
    monkeypatch.setattr(training, "WarmStart", lambda: lengths)
    monkeypatch.setattr(stages, "clone", lambda *_: pytest.fail("cloned"))
    told: list[int] = []
    run = training.warm_start

    def watched(
        policy: Any, envs: Any, federations: Any, settings: Any, seed: int, progress: Any, **options: Any
    ) -> Any:
        return run(policy, envs, federations, settings, seed, told.append, **options)

    monkeypatch.setattr(training, "warm_start", watched)
    first = TrustNet()
    save_policy(first, tmp_path / "policy")
    still = tmp_path / "still.yml"
    still.write_text("default: {policy: p, n_envs: 1, n_steps: 8, batch_size: 8, learning_rate: 1.0e-12}")
    settings = replace(
        arguments, start_from=str(tmp_path / "policy"), warm_start="gradient", hyperparams=still, eval_every=1000
    )
    assert main(settings) == 0
    assert sum(told) == stages.units(lengths, "gradient") == 10
    trained = load_policy(arguments.run_dir).state_dict()
    assert (trained["embed.weight"] - first.state_dict()["embed.weight"]).abs().max() > 1e-5
