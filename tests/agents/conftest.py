"""Small training environments, settings of algorithms and saved policies, shared by the tests of this folder."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import nn

from agents.algorithms import HYPERPARAMS
from agents.deployed import save_policy
from agents.environments import make_training_envs
from agents.trust_net import Architecture, TrustNet
from fl_core import Federation
from optigrad_env import OptiGradEnv
from optigrad_env.wrappers import RoundRecorder


def seeded_net(seed: int = 0, architecture: Architecture | None = None) -> TrustNet:
    """A network with random weights whose scores spread over their range."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = TrustNet(architecture or Architecture(width=16, depth=2, heads=2))
        nn.init.normal_(policy.score_head.weight, std=0.5)
    return policy


@pytest.fixture(autouse=True)
def sb3_logs(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3 makes a log directory for every run; not in the machine's temporary directory, where nobody removes it."""
    monkeypatch.setenv("SB3_LOGDIR", str(tmp_path_factory.mktemp("sb3")))


@pytest.fixture
def make_policy() -> Callable[..., TrustNet]:
    return seeded_net


@pytest.fixture
def policy() -> TrustNet:
    return seeded_net()


@pytest.fixture
def saved_policy(tmp_path: Path, policy: TrustNet) -> Path:
    return save_policy(policy, tmp_path / "runs" / "learned", {"attacks_seen": ["sign_flip"]})


RecordingEnvs = Callable[..., tuple[VecEnv, list[Federation]]]


@pytest.fixture
def recording_envs() -> Iterator[RecordingEnvs]:
    """Makes one environment ready for ``record``, and the list of its federation."""
    opened: list[VecEnv] = []

    def make(seed: int = 0, **kwargs: Any) -> tuple[VecEnv, list[Federation]]:
        env = OptiGradEnv(**{"num_clients": 5, "rounds": 6, **kwargs})
        envs = DummyVecEnv([lambda: RoundRecorder(env)])
        envs.seed(seed)
        opened.append(envs)
        return envs, [OptiGradEnv(**{"num_clients": 5, "rounds": 6, **kwargs}).federation]

    yield make
    for envs in opened:
        envs.close()


# As in the package's own settings, but for what makes a few hundred steps enough.
_FAST: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 64, "batch_size": 64, "learning_rate": 1e-2},
    "a2c": {"n_steps": 16, "learning_rate": 1e-2},
    "trpo": {"n_steps": 64, "batch_size": 64, "target_kl": 0.05},
    **{name: {"learning_starts": 40, "batch_size": 32, "learning_rate": 1e-2} for name in ("sac", "td3", "tqc")},
}


@pytest.fixture
def fast(tmp_path: Path) -> Callable[[str], Path]:
    """An algorithm's settings for a small network and short rollouts, as a file."""
    small = {"architecture": {"width": 16, "depth": 1, "heads": 2}}

    def write(name: str) -> Path:
        entry = yaml.safe_load((HYPERPARAMS / f"{name}.yml").read_text())["default"]
        entry = {**entry, **_FAST[name], "n_envs": 1, "policy_kwargs": {**entry["policy_kwargs"], **small}}
        file = tmp_path / f"{name}.yml"
        file.write_text(yaml.safe_dump({"default": entry}))
        return file

    return write


@pytest.fixture(scope="module")
def federation() -> Iterator[VecEnv]:
    """One environment on digits of four clients and three rounds."""
    made = make_training_envs("OptiGrad/Digits-v0", 1, 0, num_clients=4, rounds=3)
    yield made
    made.close()
