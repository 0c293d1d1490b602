"""The stages before reinforcement learning: what they optimise is what the environment pays."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor, nn

from agents.recording import policy_behaviour
from agents.trust_net import TrustNet
from agents.warm_start import (
    Recording,
    WarmStart,
    affordable,
    clone,
    fit_value,
    gradient,
    mean_gap,
    oracle_gap,
    record,
    units,
    warm_start,
)
from fl_core import Federation, configure
from fl_core.attacks import AdversaryView, Attack, base, register_attack
from optigrad_env import OptiGradEnv
from optigrad_env.masked import MaskedOptiGradEnv
from optigrad_env.wrappers import RoundRecorder

ATTACKED = {
    "attacks": ("sign_flip",),
    "malicious_fraction": (0.4, 0.5),
    "alpha": (0.3, 1.0),
    "onset": (0, 0),
    "collusion": 0.0,
}
MakeEnvs = Callable[..., Any]


def quiet(_: int) -> None:
    """A progress bar that nobody sees."""


def uniform(observations: np.ndarray, present: list[Any]) -> np.ndarray:
    return np.zeros(observations.shape[:2], np.float32)


def everything(recording: Recording) -> Tensor:
    return recording.federation.splits.validation


class GivenScores(nn.Module):
    """Stands in for a network whose score is a parameter."""

    def __init__(self, score: Tensor) -> None:
        super().__init__()
        self.score = nn.Parameter(score.clone())

    def score_and_value(self, fingerprint: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.score.expand(fingerprint.shape[:-1]), self.score.new_zeros(len(fingerprint))


def recorded(make: MakeEnvs, rounds: int, seed: int = 0, **kwargs: Any) -> Recording:
    envs, federations = make(seed, **kwargs)
    (recording,) = record(envs, federations, rounds, uniform, quiet)
    return recording


def reward_and_gap(envs: VecEnv, federations: list[Any], policy: TrustNet) -> tuple[list[float], list[float]]:
    """The environment's reward of the policy's deterministic actions, and the gap on the recordings of those rounds."""
    rewards: list[float] = []

    @torch.no_grad()
    def act(observations: np.ndarray, present: list[Any]) -> np.ndarray:
        return policy.score_and_value(torch.from_numpy(observations))[0].numpy() / 5

    step = envs.step

    def spy(actions: np.ndarray) -> Any:
        result = step(actions)
        rewards.append(result[3][0]["reward_terms"]["oracle_gap"])
        return result

    envs.step = spy  # type: ignore[method-assign]
    (recording,) = record(envs, federations, 8, act, quiet)
    picks = torch.arange(len(recording))
    with torch.no_grad():
        gaps, _ = oracle_gap(policy, recording, picks, everything(recording))
    return rewards, gaps.tolist()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"update_clip": "reference", "root_anchor": 0.3},
        {"update_clip": "none"},
        {"objective": "fedprox"},
        {"num_clients": 3},
        {"sybil_exponent": 2.0},
    ],
)
def test_the_gap_of_a_recorded_round_is_the_reward_that_the_environment_paid(
    settings: dict[str, Any], recording_envs: MakeEnvs, policy: TrustNet
) -> None:
    rewards, gaps = reward_and_gap(*recording_envs(1, scenarios=ATTACKED, **settings), policy)
    assert len(set(np.round(rewards, 4))) > 4
    assert gaps == pytest.approx(rewards, abs=1e-4)


class _SendsNan(Attack):
    def corrupt(self, own: Tensor, honest: Tensor, adversary: AdversaryView) -> Tensor:
        return own * float("nan")


def test_the_gap_equals_the_reward_in_rounds_with_rejected_clients_too(
    recording_envs: MakeEnvs, policy: TrustNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base._ATTACKS, "_factories", dict(base._ATTACKS._factories))
    register_attack("test_nan")(_SendsNan)
    rewards, gaps = reward_and_gap(*recording_envs(1, scenarios={**ATTACKED, "attacks": ("test_nan",)}), policy)
    assert gaps == pytest.approx(rewards, abs=1e-4)


def test_the_gradient_of_the_gap_in_the_score_agrees_with_finite_differences(recording_envs: MakeEnvs) -> None:
    recording = recorded(recording_envs, 3, seed=2, scenarios=ATTACKED)
    picks, score = torch.tensor([0, 2]), torch.tensor([0.5, -0.5, 0.0, 1.0, -1.0])
    stand_in: Any = GivenScores(score)

    def total() -> Tensor:
        return oracle_gap(stand_in, recording, picks, everything(recording))[0].sum()

    (slope,) = torch.autograd.grad(total(), stand_in.score)
    differences = []
    for i in range(5):
        sides = []
        for sign in (1, -1):
            moved = score.clone()
            moved[i] += 0.02 * sign
            stand_in.score.data.copy_(moved)
            sides.append(float(total().detach()))
        stand_in.score.data.copy_(score)
        differences.append((sides[0] - sides[1]) / 0.04)
    assert slope.abs().max() > 1e-3
    np.testing.assert_allclose(slope.numpy(), differences, rtol=0.05, atol=0.02 * float(slope.abs().max()))


def test_more_trust_for_an_honest_client_raises_the_gap_and_for_a_malicious_one_lowers_it(
    recording_envs: MakeEnvs,
) -> None:
    recording = recorded(recording_envs, 6, seed=2, scenarios=ATTACKED)
    stand_in: Any = GivenScores(torch.zeros(len(recording), 5))
    stand_in.score_and_value = lambda fingerprint, mask: (stand_in.score, torch.zeros(len(fingerprint)))
    gap, _ = oracle_gap(stand_in, recording, torch.arange(len(recording)), everything(recording))
    (slope,) = torch.autograd.grad(gap.sum(), stand_in.score)
    malicious = recording.rounds.corrupted
    assert slope[~malicious].mean() > 0 > slope[malicious].mean()


def test_a_recording_holds_every_round_in_order_with_the_progress_told(recording_envs: MakeEnvs) -> None:
    envs, federations = recording_envs(0, scenarios=ATTACKED)
    told: list[int] = []
    (recording,) = record(envs, federations, 8, uniform, told.append)
    assert len(recording) == 8
    assert sum(told) == 8
    assert recording.rounds.observation.shape == (8, 5, 6)
    moved = recording.rounds.shared.diff(dim=0).norm(dim=1)
    assert (moved > 0).all()
    assert recording.rounds.updates.isfinite().all()


def test_cloning_tells_honest_from_malicious_clients_of_rounds_it_has_not_seen(
    recording_envs: MakeEnvs, policy: TrustNet
) -> None:
    recording = recorded(recording_envs, 24, seed=0, scenarios=ATTACKED)
    unseen = recorded(recording_envs, 24, seed=100, scenarios=ATTACKED)
    rng = np.random.default_rng(0)
    loss = clone(policy, [recording], WarmStart(clone_steps=150, batch=6), rng, quiet)
    trust = policy(unseen.rounds.observation).detach()
    auroc = roc_auc_score((~unseen.rounds.corrupted).flatten().numpy(), trust.flatten().numpy())
    assert auroc > 0.8
    assert loss < 0.4  # ln 2 = 0.69 is what a coin reaches


def test_the_gradient_stage_raises_the_gap_of_its_recording(recording_envs: MakeEnvs, policy: TrustNet) -> None:
    recording = recorded(recording_envs, 24, scenarios=ATTACKED)
    before = mean_gap(policy, [recording])
    settings = WarmStart(gradient_steps=80, batch=8, samples=64)
    gradient(policy, [recording], settings, np.random.default_rng(0), quiet)
    assert mean_gap(policy, [recording]) > before + 0.02


def test_the_cloning_loss_holds_the_gradient_stage_to_the_labels_by_its_weight(
    recording_envs: MakeEnvs, make_policy: Callable[..., TrustNet]
) -> None:
    recording = recorded(recording_envs, 24, scenarios=ATTACKED)
    honest = ~recording.rounds.corrupted

    def trained(weight: float) -> tuple[float, float]:
        policy = make_policy(0)
        settings = WarmStart(gradient_steps=80, batch=8, samples=64, clone_weight=weight)
        gradient(policy, [recording], settings, np.random.default_rng(0), quiet)
        trust = policy(recording.rounds.observation).detach()
        return float(trust[honest].mean() - trust[~honest].mean()), mean_gap(policy, [recording])

    (free, gap), (held, held_gap) = trained(0.0), trained(10.0)
    assert held > free + 0.1
    assert held_gap < gap


def test_absent_clients_have_no_part_in_the_cloning_loss_of_the_gradient_stage(policy: TrustNet) -> None:
    envs, federations = masked_envs()
    (recording,) = record(envs, federations, 8, policy_behaviour(policy, NoNoise()), quiet)  # type: ignore[arg-type]
    assert recording.present is not None
    turned = replace(recording.rounds, corrupted=recording.rounds.corrupted ^ ~recording.present)
    settings, results = WarmStart(gradient_steps=3, batch=4, samples=16, clone_weight=1.0), []
    for rounds in (recording.rounds, turned):
        learner = deepcopy(policy)
        gradient(learner, [replace(recording, rounds=rounds)], settings, np.random.default_rng(0), quiet)
        results.append(learner.state_dict())
    assert all(torch.equal(value, results[1][name]) for name, value in results[0].items())


def test_the_mean_gap_does_not_depend_on_how_it_is_batched(recording_envs: MakeEnvs, policy: TrustNet) -> None:
    recording = recorded(recording_envs, 7, scenarios=ATTACKED)
    assert mean_gap(policy, [recording], batch=2) == pytest.approx(mean_gap(policy, [recording], batch=7), abs=1e-5)


def test_the_federation_that_scores_may_be_a_copy_of_the_one_that_played(
    recording_envs: MakeEnvs, policy: TrustNet
) -> None:
    """The worker keeps its federation; the main process has one made from the same settings."""
    envs, federations = recording_envs(1, scenarios=ATTACKED)
    played = envs.env_method("get_wrapper_attr", "federation")[0]
    (recording,) = record(envs, federations, 4, uniform, quiet)
    picks = torch.arange(4)
    with torch.no_grad():
        copy, _ = oracle_gap(policy, recording, picks, everything(recording))
        own, _ = oracle_gap(policy, Recording(played, recording.rounds), picks, everything(recording))
    assert torch.equal(copy, own)


def test_both_stages_together_report_what_they_reached_and_repeat_themselves(
    recording_envs: MakeEnvs, make_policy: Callable[..., TrustNet]
) -> None:
    settings = WarmStart(rounds=24, clone_steps=40, gradient_steps=40, batch=8, samples=32)
    runs = []
    for _ in range(2):
        envs, federations = recording_envs(3, scenarios=ATTACKED)
        policy, told = make_policy(1), []
        figures = warm_start(policy, envs, federations, settings, 0, told.append)
        runs.append((figures, policy.state_dict(), sum(told)))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(value, runs[1][1][name]) for name, value in runs[0][1].items())
    assert runs[0][0]["gap_after_gradient"] > runs[0][0]["gap_after_cloning"]
    assert runs[0][2] == 24 + 40 + 40


@pytest.mark.parametrize(
    "field", ["rounds", "clone_steps", "gradient_steps", "batch", "samples", "learning_rate", "clone_weight"]
)
def test_a_stage_of_impossible_length_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValueError, match=rf"{field}.*-1"):
        WarmStart(**{field: -1})


def test_memory_and_the_size_of_images_limit_the_length() -> None:
    federation = Federation(configure(num_clients=5))
    round_size = 4 * 5 * federation.layout.num_shared
    found = affordable(federation, 2.0, memory=600 * round_size / 2**30)
    assert found == {"--warm-start-length": 2.0, "--warm-start-memory": pytest.approx(0.5)}
    images = Federation(configure(num_clients=5, dataset="gaussian_clusters", dataset_options={"side": 32}))
    assert affordable(images, 3.0)["--warm-start-length"] == pytest.approx(0.75)


def masked_envs() -> tuple[VecEnv, list[Any]]:
    scenarios = {**ATTACKED, "num_clients": (6, 8), "participation": (0.5, 0.8)}

    def make() -> OptiGradEnv:
        return MaskedOptiGradEnv(num_clients=8, rounds=6, scenarios=scenarios)

    envs = DummyVecEnv([lambda: RoundRecorder(make())])
    envs.seed(1)
    return envs, [make().federation]


def test_where_clients_are_missing_the_gap_is_still_the_reward_that_the_environment_paid(policy: TrustNet) -> None:
    envs, federations = masked_envs()
    rewards: list[float] = []

    def keep(_: Any, action: np.ndarray, after: Any, reward: np.ndarray, *__: Any) -> None:
        rewards.append(float(reward[0]))

    (recording,) = record(envs, federations, 8, policy_behaviour(policy, NoNoise()), quiet, keep)  # type: ignore[arg-type]
    assert recording.present is not None
    assert 3 <= int(recording.present.sum(dim=1).min()) <= int(recording.present.sum(dim=1).max()) < 8
    assert (recording.rounds.updates[~recording.present] == 0).all()
    assert recording.rounds.rejected[~recording.present].all()
    with torch.no_grad():
        gaps, _ = oracle_gap(policy, recording, torch.arange(8), everything(recording))
    assert len(set(np.round(rewards, 4))) > 4
    assert gaps.tolist() == pytest.approx(rewards, abs=1e-4)


class NoNoise:
    """Stands in for a generator whose every draw is zero."""

    def standard_normal(self, shape: Any) -> np.ndarray:
        return np.zeros(shape)


def test_a_whole_warm_start_works_where_clients_are_missing(policy: TrustNet) -> None:
    settings = WarmStart(rounds=24, clone_steps=60, gradient_steps=40, batch=8, samples=64)
    figures = warm_start(policy, *masked_envs(), settings, 0, quiet)
    assert figures["gap_after_gradient"] > figures["gap_after_cloning"]
    assert figures["cloning_loss"] < 0.69


def test_cloning_alone_leaves_the_gradient_out_and_still_trains_the_value_head(
    recording_envs: MakeEnvs, policy: TrustNet
) -> None:
    settings = WarmStart(rounds=24, clone_steps=20, gradient_steps=40, value_steps=60, batch=8, samples=64)
    told: list[int] = []
    envs, federations = recording_envs(3, scenarios=ATTACKED)
    figures = warm_start(policy, envs, federations, settings, 0, told.append, kind="clone")
    assert set(figures) == {"cloning_loss", "gap_after_cloning"}
    assert sum(told) == units(settings, "clone") == 24 + 20 + 60


def test_where_root_data_are_drawn_anew_there_is_cloning_and_nothing_that_scores_recorded_rounds(
    recording_envs: MakeEnvs, policy: TrustNet
) -> None:
    settings = WarmStart(rounds=24, clone_steps=20, gradient_steps=40, value_steps=60, batch=8, samples=64)
    value = {name: weight.clone() for name, weight in policy.value_head.state_dict().items()}
    told: list[int] = []
    envs, federations = recording_envs(3, scenarios="wide")
    figures = warm_start(policy, envs, federations, settings, 0, told.append, kind="clone", one_root=False)
    assert set(figures) == {"cloning_loss"}
    assert sum(told) == units(settings, "clone", one_root=False) == 24 + 20
    assert all(torch.equal(weight, value[name]) for name, weight in policy.value_head.state_dict().items())
    with pytest.raises(ValueError, match="'gradient' scores recorded rounds"):
        warm_start(policy, envs, federations, settings, 0, quiet, kind="gradient", one_root=False)


def test_fitting_the_value_moves_nothing_but_the_value_head_and_comes_closer_to_the_gap(
    recording_envs: MakeEnvs, policy: TrustNet
) -> None:
    recording = recorded(recording_envs, 24, scenarios=ATTACKED)
    before = {name: value.clone() for name, value in policy.state_dict().items()}

    def error() -> float:
        with torch.no_grad():
            gap, value = oracle_gap(policy, recording, torch.arange(24), everything(recording))
        return float((gap - value).square().mean())

    at_first = error()
    settings = WarmStart(value_steps=200, batch=8, samples=64, learning_rate=1e-2)
    fit_value(policy, [recording], settings, np.random.default_rng(0), quiet)
    assert error() < at_first / 2
    moved = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("value_head") for name in moved)


@pytest.mark.parametrize("kind", ["none", "cloning"])
def test_an_unknown_kind_of_warm_start_is_refused_with_the_list(
    kind: str, recording_envs: MakeEnvs, policy: TrustNet
) -> None:
    with pytest.raises(ValueError, match=rf"'{kind}'; there are: clone\+gradient, gradient, clone"):
        warm_start(policy, *recording_envs(0), WarmStart(), 0, quiet, kind=kind)
