"""Wrappers around the environment."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray
from torch import Tensor

from fl_core.checkpoint import check_same, check_state
from fl_core.fingerprint import FEATURES
from fl_core.registry import check_known, check_types
from optigrad_env.env import Action, federated
from optigrad_env.observation import trust_of_action


@dataclass(frozen=True, eq=False)
class RecordedRound:
    """One round with everything needed to ask, later, what another trust would have led to. All of it on the CPU.

    Attributes:
        observation: (N, 6) float32.
        corrupted: (N,) bool, whose update is an attack in this round.
        rejected: (N,) bool.
        updates: (N, P) float32, clipped as the environment clips; zero for a rejected client.
        reference: (P,) float32.
        shared: (P,) float32, the global model.
        server_local: (L,) float32, the server's BatchNorm.
        honest: (P,) float32, plain mean of the honest clients' updates.
        present: (N,) bool, who takes part; where clients can be absent, they have rows of zeros and count as rejected.
        discount: (N,) float32, what each client's trust is multiplied by before it is weighed: 1 where the environment
            does not discount sybils; 0 for absent clients.
    """

    observation: Tensor
    corrupted: Tensor
    rejected: Tensor
    updates: Tensor
    reference: Tensor
    shared: Tensor
    server_local: Tensor
    honest: Tensor
    present: Tensor
    discount: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        # As arrays: between processes torch sends every tensor as an open file, and a recording is thousands of them.
        return _from_arrays, tuple(value.numpy() for value in vars(self).values())


def _from_arrays(*arrays: NDArray[Any]) -> RecordedRound:
    return RecordedRound(*map(torch.from_numpy, arrays))


class RoundRecorder(gym.Wrapper[Any, Action, Any, Action], RecordConstructorArgs):
    """Gives the round that waits for an action as data: for offline stages of training. Holds truth.

    Raises:
        ValueError: A ``ClientObservation`` has changed what is seen of the clients.
    """

    def __init__(self, env: gym.Env[Any, Action]) -> None:
        RecordConstructorArgs.__init__(self)
        federated(env)  # of something else it is an error
        inner: gym.Env[Any, Any] = env
        while isinstance(inner, gym.Wrapper):
            if isinstance(inner, ClientObservation):
                raise ValueError(
                    f"a recorded round holds what the server sees, not what {type(inner).__name__} makes of it: a warm "
                    f"start would not train on the policy's own observations; put RoundRecorder inside "
                    f"{type(inner).__name__} and train without a warm start"
                )
            inner = inner.env
        super().__init__(env)

    def recorded_round(self) -> RecordedRound:
        """The present round; call it between ``reset`` or ``step`` and the next ``step``.

        Raises:
            ValueError: The environment's weighting has a ``sybil_power``.
        """
        env = federated(self)
        if power := env.federation.config.weighting.sybil_power:
            raise ValueError(
                f"with sybil_power={power:g} a client's discount is also of the trust that it had in earlier rounds, "
                "which a recorded round does not hold: record with sybil_power=0; a policy can be deployed with it"
            )
        round_ = env.current_round
        view = round_.view
        assert view.reference is not None
        assert view.global_model is not None
        assert view.server_local is not None
        weighting = env.federation.config.weighting
        updates, discount = torch.zeros_like(view.updates), torch.ones(len(view.updates), device=view.updates.device)
        if len(view.accepted):
            updates[~view.rejected] = weighting.clip(view.accepted, view.reference)
            discount[~view.rejected] = weighting.discount(view.accepted)
        recorded = (
            env.of_clients(view.fingerprint.observation),
            env.of_clients(round_.corrupted),
            env.of_clients(view.rejected, absent=True),
            env.of_clients(updates),
            view.reference,
            view.global_model,
            view.server_local,
            env.honest_mean(),
            env.of_clients(torch.ones_like(view.rejected)),
            env.of_clients(discount),
        )
        return RecordedRound(*(tensor.cpu() for tensor in recorded))


class ClientObservation(gym.Wrapper[Any, Action, Any, Action]):
    """Base of wrappers that change what is seen of the clients, with a mask or without.

    Subclasses write ``clients``; one whose columns are others gives their bounds to ``__init__``, one with a memory
    forgets it in ``begin`` and keeps it in ``memory``.

    Args:
        env: The environment.
        low: (N, F) bounds of what is seen; by default those of ``env``.
        high: Likewise.
    """

    def __init__(
        self,
        env: gym.Env[Any, Action],
        low: NDArray[np.float32] | None = None,
        high: NDArray[np.float32] | None = None,
    ) -> None:
        bounds(env)  # of something else it is an error
        super().__init__(env)
        if low is not None and high is not None:
            box = spaces.Box(low, high, dtype=np.float32)
            space = env.observation_space
            self.observation_space = (
                spaces.Dict({**space.spaces, "clients": box}) if isinstance(space, spaces.Dict) else box
            )

    def clients(self, rows: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """What is seen of the clients: (N, F) to (N, F'); rows of absent ones become zeros anyway."""
        raise NotImplementedError

    def begin(self, seed: int | None) -> None:
        """An episode begins; ``seed`` is what the environment was reset with."""

    def memory(self) -> dict[str, Any]:
        """Names and values of the attributes that an episode changes."""
        return {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """See ``gymnasium.Env.reset``."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.begin(seed)
        return self._seen(observation), info

    def step(self, action: Action) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._seen(observation), reward, terminated, truncated, info

    def state_dict(self) -> dict[str, Any]:
        """State of the environment inside, and of this wrapper."""
        inside = self.env.get_wrapper_attr("state_dict")()
        return {"env": inside, "settings": self._settings(), "memory": copy.deepcopy(self.memory())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a ``state_dict``; raises ValueError for one of a wrapper with other settings."""
        check_state(state, "env", "settings", "memory")
        check_state(state["memory"], *self.memory())
        check_same(type(self).__name__, state["settings"], self._settings())
        self.env.get_wrapper_attr("load_state_dict")(state["env"])
        for name, value in copy.deepcopy(state["memory"]).items():
            setattr(self, name, value)

    def _settings(self) -> dict[str, Any]:
        """What the wrapper was made with, of one that keeps it (``RecordConstructorArgs``)."""
        return dict(getattr(self, "_saved_kwargs", {}))

    def _seen(self, observation: Any) -> Any:
        if not isinstance(observation, dict):
            return self.clients(observation, np.ones(len(observation), dtype=np.bool_))
        present = observation["mask"].astype(np.bool_)
        seen = self.clients(observation["clients"], present)
        return {**observation, "clients": np.where(present[:, None], seen, np.float32(0))}


class ClientHistory(ClientObservation, RecordConstructorArgs):
    """Shows each client's last ``k`` fingerprints and trusts too, so that slow and on-off attackers can be seen.

    The row of a client is its present fingerprint (F), then for each of its last k rounds, the latest first, the
    fingerprint that it had (F) and the trust σ(5a) that the agent gave it (1). By client: of one that was absent, the
    last k rounds in which it took part. A trust of 0, which no action gives, marks a round that there has not been.

    Args:
        env: The environment.
        k: Number of rounds, at least 1; a row has F + k·(F + 1) columns.
    """

    def __init__(self, env: gym.Env[Any, Action], k: int = 3) -> None:
        check_types({"k": k}, {"k": int})
        if k < 1:
            raise ValueError(f"k must be at least 1 round, got {k}")
        RecordConstructorArgs.__init__(self, k=k)
        low, high = bounds(env)
        past = [
            np.column_stack([edge, np.full(len(edge), trust, dtype=np.float32)])
            for edge, trust in ((low, 0.0), (high, 1.0))
        ]
        # What has not been is zeros, whatever the bounds.
        lows, highs = np.minimum(past[0], 0), np.maximum(past[1], 0)
        super().__init__(env, np.hstack([low, *[lows] * k]), np.hstack([high, *[highs] * k]))
        self._k = k
        self.begin(None)

    def begin(self, seed: int | None) -> None:
        """See ``ClientObservation.begin``."""
        low, _ = bounds(self.env)
        # (N, k, F + 1), the latest round first.
        self._past = np.zeros((len(low), self._k, low.shape[1] + 1), dtype=np.float32)
        self._waiting: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None

    def memory(self) -> dict[str, Any]:
        """See ``ClientObservation.memory``."""
        return {"_past": self._past, "_waiting": self._waiting}

    def step(self, action: Action) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """See ``gymnasium.Env.step``."""
        past = self._with(action)
        answer = self.env.step(action)
        self._past = past
        return self._seen(answer[0]), *answer[1:]

    def clients(self, rows: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See ``ClientObservation.clients``."""
        self._waiting = rows, present
        return np.hstack([rows, self._past.reshape(len(rows), -1)])

    def _with(self, action: Action) -> NDArray[np.float32]:
        """The past with the waiting round in it, if the action is one: a wrong one is refused further inside."""
        if self._waiting is None or np.shape(action) != (len(self._past),):
            return self._past
        rows, present = self._waiting
        trust = trust_of_action(action, len(rows)).numpy()
        latest = np.column_stack([rows, trust])[:, None]
        return np.where(present[:, None, None], np.hstack([latest, self._past[:, :-1]]), self._past)


class FeatureSubset(ClientObservation, RecordConstructorArgs):
    """Shows some of the features only: for ablations, and for policies that need no root data.

    Args:
        env: The environment, with the six features.
        features: Names from ``fl_core.fingerprint.FEATURES``; columns keep the order that they have there.

    Raises:
        ValueError: An unknown name, no name at all, or an environment whose columns are not the six features.
    """

    def __init__(self, env: gym.Env[Any, Action], features: Sequence[str]) -> None:
        check_known("feature", features, FEATURES)
        if not features:
            raise ValueError(f"features is empty; there are: {', '.join(FEATURES)}")
        low, high = bounds(env)
        if low.shape[1] != len(FEATURES):
            raise ValueError(f"FeatureSubset goes around the six features, inside other wrappers; got {low.shape[1]}")
        RecordConstructorArgs.__init__(self, features=list(features))
        self._columns = [i for i, name in enumerate(FEATURES) if name in features]
        super().__init__(env, low[:, self._columns], high[:, self._columns])

    def clients(self, rows: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See ``ClientObservation.clients``."""
        return rows[:, self._columns]


class RandomObservation(ClientObservation, RecordConstructorArgs):
    """Base of wrappers that draw: from a stream of their own, so the environment plays the same scenarios as without.

    Args:
        env: The environment.
        seed: Seed of the draws. Resetting with a seed begins them anew, from both seeds. An environment that was never
            seeded takes its own random seed, so two such environments differ.
    """

    def __init__(self, env: gym.Env[Any, Action], seed: int = 0) -> None:
        check_types({"seed": seed}, {"seed": int})
        if seed < 0:
            raise ValueError(f"seed must be 0 or more, got {seed}")
        RecordConstructorArgs.__init__(self, seed=seed)
        super().__init__(env)
        self._seed, self._generator = seed, np.random.default_rng(seed)
        self._begun = False

    def begin(self, seed: int | None) -> None:
        """Equal seeds of the environment give equal draws, too."""
        if seed is None and not self._begun:
            seed = self.unwrapped.np_random_seed
        if seed is not None:
            self._generator, self._begun = np.random.default_rng([self._seed, abs(seed)]), True

    def memory(self) -> dict[str, Any]:
        """See ``ClientObservation.memory``."""
        return {"_generator": self._generator, "_begun": self._begun}


class FeatureDropout(RandomObservation):
    """Hides features at random: in each round, each of them is 0 for all clients with some probability.

    Trained so, a policy cannot lean on a single feature, and can be asked what it does without one. Training is without
    a warm start then: recorded rounds hold the features as they are.

    Args:
        env: The environment; its own random numbers stay as they are.
        probability: Of each feature and round, in [0, 1].
        seed: Seed of the draws; a seed that the environment is reset with begins them anew.
    """

    def __init__(self, env: gym.Env[Any, Action], probability: float = 0.1, seed: int = 0) -> None:
        check_types({"probability": probability}, {"probability": float})
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {probability}")
        RecordConstructorArgs.__init__(self, probability=probability, seed=seed)  # the first call is what is kept
        super().__init__(env, seed)
        self._probability = probability

    def clients(self, rows: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """See ``ClientObservation.clients``."""
        return np.where(self._generator.random(rows.shape[1]) < self._probability, np.float32(0), rows)


class FeatureShuffle(RandomObservation):
    """Negative control: permutes each feature among the clients before the policy sees it.

    What is left is the distribution of each feature in the round, but no longer whose it is.

    Args:
        env: The environment; its own random numbers stay as they are, so it plays the same scenarios as without.
        seed: Seed of the permutations; a seed that the environment is reset with begins them anew.
    """

    def clients(self, rows: NDArray[np.float32], present: NDArray[np.bool_]) -> NDArray[np.float32]:
        """Permutes every column by itself, among the clients that are there."""
        shuffled = rows.copy()
        shuffled[present] = self._generator.permuted(rows[present], axis=0)
        return shuffled


def bounds(env: gym.Env[Any, Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Lowest and highest values (N, F) of what is seen of the clients.

    Raises:
        ValueError: The environment is not one of federations.
    """
    space = env.observation_space
    box = space["clients"] if isinstance(space, spaces.Dict) and "clients" in space.spaces else space
    if not isinstance(box, spaces.Box) or len(box.shape) != 2:
        raise ValueError(f"expected observations of clients and features, got {space}")
    return box.low, box.high
