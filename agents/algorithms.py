"""The registry behind ``--algo``: which algorithms there are, with their settings, and why others cannot work."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from inspect import signature
from math import inf, isfinite
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from sb3_contrib import TQC, TRPO
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.distributions import DISTRIBUTIONS
from agents.off_policy import NO_GAUSSIAN, OffPolicyAttentionPolicy
from agents.policies import AttentionPolicy, architecture_of
from agents.trust_net import Architecture, TrustNet
from fl_core.registry import check_known, yaml_hint

HYPERPARAMS = Path(__file__).parent / "hyperparams"

_ALGORITHMS: dict[str, type[BaseAlgorithm]] = {
    "ppo": PPO,
    "a2c": A2C,
    "trpo": TRPO,
    "sac": SAC,
    "td3": TD3,
    "tqc": TQC,
}

_DISCRETE = "it chooses among a few discrete actions, and trust is a number for every client"
_IMPOSSIBLE = {
    "dqn": _DISCRETE,
    "qrdqn": _DISCRETE,
    "ppo_mask": f"{_DISCRETE}; clients that are not there are masked in the observation",
    "ppo_lstm": "its memory belongs to a place in the observation, and a client's place and the number of clients "
    "change; give the past to the observation instead",
    "recurrent_ppo": "its memory belongs to a place in the observation, and a client's place and the number of clients "
    "change; give the past to the observation instead",
    "her": "it relabels goals, and there are none here",
}

# What the policy must be told for these, and settings may leave unsaid.
_POLICY_DEFAULTS: dict[str, dict[str, Any]] = {"td3": {"distribution": None}, "tqc": {"n_quantiles": 25}}

# Of rl_zoo3's form, not of the algorithm's constructor.
_ZOO_ONLY = ("n_timesteps", "n_envs", "policy", "noise_type", "noise_std")

# What numbers may be: whole or not, and from where to where. Learning rates and clip ranges are Stable-Baselines3's to
# refuse, which it does by name.
_NUMBERS: dict[str, tuple[type[int] | type[float], float, float]] = {
    **dict.fromkeys(("n_envs", "n_steps", "batch_size", "n_epochs", "buffer_size", "train_freq"), (int, 1, inf)),
    **dict.fromkeys(("policy_delay", "target_update_interval", "n_critics", "n_quantiles"), (int, 1, inf)),
    **dict.fromkeys(("cg_max_steps", "line_search_max_iter", "n_critic_updates", "sub_sampling_factor"), (int, 1, inf)),
    **dict.fromkeys(("learning_starts", "top_quantiles_to_drop_per_net"), (int, 0, inf)),
    "gradient_steps": (int, -1, inf),
    **dict.fromkeys(("gamma", "gae_lambda", "tau", "line_search_shrinking_factor"), (float, 0, 1)),
    **dict.fromkeys(("noise_std", "vf_coef", "max_grad_norm", "target_kl", "cg_damping"), (float, 0, inf)),
    **dict.fromkeys(("target_policy_noise", "target_noise_clip", "rms_prop_eps"), (float, 0, inf)),
    **dict.fromkeys(("ent_coef", "target_entropy", "log_std_init"), (float, -inf, inf)),
}
_MAY_BE_NONE = ("target_kl", "n_quantiles")


@dataclass(frozen=True)
class Hyperparams:
    """Settings of an algorithm out of a file in rl_zoo3's form.

    Attributes:
        n_envs: Environments that ``n_steps`` is meant for.
        noise_std: Scale of a normal action noise; 0 for none.
        constructor: Arguments of the algorithm's constructor.
    """

    n_envs: int
    noise_std: float
    constructor: dict[str, Any]

    @property
    def architecture(self) -> Architecture:
        """Sizes of the network; raises a ValueError for what is none."""
        return architecture_of((self.constructor.get("policy_kwargs") or {}).get("architecture"))


def algorithm_names() -> list[str]:
    """Names that ``--algo`` accepts."""
    return list(_ALGORITHMS)


def check_algorithm(name: str) -> None:
    """Raises a ValueError for a name that is unknown, or that cannot work here, with the reason."""
    if name in _IMPOSSIBLE:
        raise ValueError(f"algorithm {name!r} cannot work here: {_IMPOSSIBLE[name]}; there are: {_names()}")
    check_known("algorithm", [name], _ALGORITHMS)


def learns_off_policy(name: str) -> bool:
    """Whether an algorithm learns from a buffer of earlier steps, by a critic that the actor follows."""
    return issubclass(_ALGORITHMS[name], OffPolicyAlgorithm)


def check_distribution(name: str, distribution: str | None) -> None:
    """Raises a ValueError for a distribution that is unknown, or does not go with an algorithm, with the reason."""
    if distribution is None:
        return
    check_known("distribution", [distribution], DISTRIBUTIONS)
    if name == "td3":
        raise ValueError(f"distribution {distribution!r} cannot work with td3: its actor is deterministic")
    if distribution == "gaussian" and learns_off_policy(name):
        raise ValueError(f"distribution {distribution!r} cannot work with {name}: {NO_GAUSSIAN}")


def read_hyperparams(name: str, env_id: str, *, warm_started: bool, file: Path | None = None) -> Hyperparams:
    """An algorithm's settings for an environment.

    Args:
        name: One of ``algorithm_names()``.
        env_id: An entry with this name comes before ``default``.
        warm_started: Take the entry for a policy that only has to be refined, if the file has one, before any other.
        file: Instead of the package's own.

    Raises:
        ValueError: Unknown algorithm, or a file that cannot be read or has no fitting entry.
    """
    check_algorithm(name)
    path = file or HYPERPARAMS / f"{name}.yml"
    try:
        entries = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read hyperparameters from {path}: {error}") from error
    wanted = ["after_warm_start"] * warm_started + [env_id, "default"]
    found = [entries[key] for key in wanted if isinstance(entries, dict) and isinstance(entries.get(key), dict)]
    if not found:
        raise ValueError(f"{path} has no entry {' or '.join(map(repr, wanted))} with settings")
    entry = dict(found[0])
    if not isinstance(entry.get("policy_kwargs") or {}, Mapping):
        raise ValueError(f"{path}: policy_kwargs must be a mapping, not the text {entry['policy_kwargs']!r}")
    if entry.get("noise_type", "normal") != "normal":
        raise ValueError(f"{path}: noise_type must be 'normal', got {entry['noise_type']!r}")
    for key, value in {**entry, **(entry.get("policy_kwargs") or {})}.items():
        due = _unfit(name, key, value)
        if due is not None:
            raise ValueError(f"{path}: {key} must be {due}, got {value!r}{yaml_hint(value)}")
    dropped = entry.get("top_quantiles_to_drop_per_net", 2)  # the class's own
    quantiles = (entry.get("policy_kwargs") or {}).get("n_quantiles", _POLICY_DEFAULTS["tqc"]["n_quantiles"])
    if name == "tqc" and quantiles is not None and dropped >= quantiles:
        raise ValueError(
            f"{path}: top_quantiles_to_drop_per_net must be less than n_quantiles={quantiles}, got {dropped}: "
            "no target would be left"
        )
    return Hyperparams(
        n_envs=int(entry.get("n_envs", 1)),
        noise_std=float(entry.get("noise_std", 0)),
        constructor={key: value for key, value in entry.items() if key not in _ZOO_ONLY},
    )


def make_algorithm(
    name: str,
    env: VecEnv,
    *,
    seed: int,
    timesteps: int | None = None,
    warm_started: bool = False,
    distribution: str | None = None,
    env_id: str = "default",
    hyperparams: Path | None = None,
) -> Any:
    """Builds an algorithm around the attention network.

    Args:
        name: One of ``algorithm_names()``.
        env: Training environments.
        seed: Seed of the algorithm.
        timesteps: Length of the run: a rollout is no longer. ``None`` for rollouts as long as the settings say.
        warm_started: The algorithm gets a policy that knows something already, and refines it.
        distribution: Of the actions; by default what the settings say.
        env_id: Environment to look up in the settings.
        hyperparams: File of settings, in rl_zoo3's form; by default the package's own.

    Raises:
        ValueError: Unknown name, one that cannot work, settings that the algorithm does not take, or a distribution
            that does not go with it.
    """
    settings = read_hyperparams(name, env_id, warm_started=warm_started, file=hyperparams)
    algorithm, kwargs = _ALGORITHMS[name], dict(settings.constructor)
    policy_kwargs = {**_POLICY_DEFAULTS.get(name, {}), **(kwargs.pop("policy_kwargs", None) or {})}
    check_distribution(name, distribution)
    if distribution is not None:
        policy_kwargs["distribution"] = distribution
    if settings.noise_std:
        clients = env.action_space.shape or ()
        kwargs["action_noise"] = NormalActionNoise(np.zeros(clients), np.full(clients, settings.noise_std))
    off_policy = learns_off_policy(name)
    if not off_policy:
        parameters = signature(algorithm).parameters
        kwargs.setdefault("n_steps", parameters["n_steps"].default)
        if "batch_size" in parameters:
            kwargs.setdefault("batch_size", parameters["batch_size"].default)
        kwargs |= _rollout(kwargs, settings.n_envs, env.num_envs, timesteps)
    policy = OffPolicyAttentionPolicy if off_policy else AttentionPolicy
    try:
        _check_policy(name, policy_kwargs)
        return algorithm(policy, env, seed=seed, device="cpu", policy_kwargs=policy_kwargs, **kwargs)
    except (TypeError, ValueError, AssertionError) as error:  # Stable-Baselines3 asserts what it asks of sizes
        raise ValueError(f"{hyperparams or HYPERPARAMS / f'{name}.yml'} does not fit {name}: {error}") from error


def start_from(model: Any, policy: TrustNet) -> None:
    """Puts a trained policy of the same architecture into a fresh algorithm, its value head included; in place."""
    model.policy.trust_net.load_state_dict(policy.state_dict())
    if isinstance(model, OffPolicyAlgorithm):
        model.policy.follow()  # type: ignore[operator]


def _unfit(name: str, key: str, value: Any) -> str | None:
    """What a setting of an algorithm should have been, if it is a number and this value cannot be."""
    if key not in _NUMBERS or (value is None and key in _MAY_BE_NONE):
        return None
    learned = key in ("ent_coef", "target_entropy") and learns_off_policy(name)
    if learned and isinstance(value, str):  # "auto", "auto_0.003"
        value = _number(value.removeprefix("auto_" if key == "ent_coef" else "")) if value != "auto" else 1.0
    kind, low, high = _NUMBERS[key]
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    if number and isfinite(value) and low <= value <= high:
        return None
    within = f" in [{low}, {high}]" if high < inf else f" of at least {low}" if low > -inf else ""
    auto = " or auto" if learned else ""
    return ("a whole number" if kind is int else "a finite number" if high == inf else "a number") + within + auto


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _check_policy(name: str, policy_kwargs: Mapping[str, Any]) -> None:
    """Raises a ValueError for a distribution or quantiles that an algorithm cannot learn with."""
    check_distribution(name, policy_kwargs.get("distribution"))
    if name in ("sac", "tqc") and policy_kwargs.get("distribution", "squashed") is None:
        raise ValueError(f"policy_kwargs: distribution null is for td3; {name} needs squashed or beta")
    if name in ("sac", "td3") and policy_kwargs.get("n_quantiles") is not None:
        raise ValueError(f"policy_kwargs: n_quantiles is for tqc; {name} has critics without")
    if name == "tqc" and policy_kwargs["n_quantiles"] is None:
        raise ValueError("policy_kwargs: n_quantiles must be a whole number of at least 1 for tqc, got null")


def _rollout(kwargs: dict[str, Any], meant_for: int, envs: int, timesteps: int | None) -> dict[str, int]:
    """Steps an environment, so that a rollout over all of them is as long as the settings mean, or as the run."""
    whole = kwargs["n_steps"] * meant_for
    steps = max((whole if timesteps is None else min(whole, timesteps)) // envs, min(8, kwargs["n_steps"]))
    if "batch_size" not in kwargs:
        return {"n_steps": steps}
    # Minibatches are of one size, which Stable-Baselines3 asks for.
    minibatches = min(max(steps * envs // kwargs["batch_size"], 1), steps)
    steps -= steps % minibatches
    return {"n_steps": steps, "batch_size": steps * envs // minibatches}


def load_algorithm(name: str, path: Path | io.BytesIO, env: VecEnv | None = None, *, keep_episode: bool = False) -> Any:
    """Loads a ``model.zip`` of this machine's own run. It is pickled code: never load one that somebody sent you.

    Args:
        name: The algorithm.
        path: The file, or its content.
        env: Environments to go on with.
        keep_episode: The environments are in the state in which the model left them: do not reset them.
    """
    check_algorithm(name)
    return _ALGORITHMS[name].load(path, env=env, device="cpu", force_reset=not keep_episode)


def _names() -> str:
    return ", ".join(_ALGORITHMS)
