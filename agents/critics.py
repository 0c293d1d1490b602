"""Critic warm-up for off-policy algorithms: on the warm start's rounds, which the replay buffer begins with.

Otherwise its first steps would follow the gradient of a critic that knows nothing, and undo the warm start.
(On-policy algorithms have a value head, which the warm start trains itself.)
"""

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.recording import Keep


def replay_keeper(model: BaseAlgorithm) -> Keep | None:
    """What puts recorded transitions into a model's replay buffer; ``None`` if it has none."""
    if not isinstance(model, OffPolicyAlgorithm):
        return None

    def keep(before: Any, actions: Any, after: Any, rewards: Any, dones: Any, infos: list[dict[str, Any]]) -> None:
        model._last_obs = model._last_original_obs = before
        assert model.replay_buffer is not None
        model._store_transition(model.replay_buffer, actions, after, rewards, dones, infos)

    return keep


def critic_steps(model: BaseAlgorithm, rounds: int) -> int:
    """Gradient steps of the critic for so many recorded rounds: one a step of all environments; 0 without a buffer."""
    return rounds // model.n_envs if isinstance(model, OffPolicyAlgorithm) else 0


def warm_critic(model: BaseAlgorithm, progress: Callable[[int], object] = lambda _: None) -> None:
    """Trains the critic of an off-policy algorithm on its replay buffer, with the actor frozen; in place.

    Does nothing to an algorithm without a replay buffer.
    """
    if not isinstance(model, OffPolicyAlgorithm) or model.replay_buffer is None:
        return
    steps = critic_steps(model, model.replay_buffer.size() * model.n_envs)
    actor = model.policy.actor
    entropy = None if getattr(model, "log_ent_coef", None) is None else model.log_ent_coef.detach().clone()  # type: ignore[attr-defined]
    actor.requires_grad_(False)
    for _ in range(steps):
        model.train(gradient_steps=1, batch_size=model.batch_size)
        progress(1)
    actor.requires_grad_(True)
    if entropy is not None:  # a frozen actor says nothing about how much noise it should have
        model.log_ent_coef.data.copy_(entropy)  # type: ignore[attr-defined]
    model.policy.follow()  # type: ignore[operator]
