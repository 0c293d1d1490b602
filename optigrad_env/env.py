"""The federation as a Gymnasium environment."""

import copy
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray
from torch import Tensor

from fl_core import Federation, Round, Scenario, checkpoint, configure, settings_of
from fl_core.aggregation import Aggregate, GivenTrust, SimilarityMemory
from fl_core.attacks import RULE_NEEDED, Knowledge
from fl_core.data.partition import PartitionError
from fl_core.registry import check_known, check_types
from optigrad_env import rendering
from optigrad_env.history import History
from optigrad_env.observation import action_space, observation_space, trust_of_action
from optigrad_env.rewards import Outcome, make_reward
from optigrad_env.scenarios import TRAINING_SPLITS, ScenarioDistribution, make_scenarios

# (N, 6); with a mask a dictionary of it.
Observation = NDArray[np.float32] | dict[str, NDArray[Any]]
Action = NDArray[np.float32]

# How many scenarios are drawn for an episode until one has a partition that leaves every client enough samples.
_MOST_SCENARIOS = 100


class OptiGradEnv(gym.Env[Any, Action]):
    """
    ## Description

    One step is one round of federated learning. Clients train locally with FedBN-Prox, the malicious ones among them
    corrupt what they send, and the server fingerprints each update with six features. The agent answers with one trust
    value a client; the server clips the updates to their median norm and adds their trust-weighted mean to the global
    model. The server's own small labelled set (the root data) takes part as one more, fully trusted client.

    The method is from [OptiGradTrust](https://arxiv.org/abs/2507.23638).

    ## Action Space

    The action is an `ndarray` of shape `(N,)`, dtype `float32`, values in [-1, 1]: one per client. Trust is `σ(5a)`.

    | Num | Action               | Min | Max |
    |-----|----------------------|-----|-----|
    | i   | trust of client i    | -1 (trust 0.007) | 1 (trust 0.993) |

    ## Observation Space

    The observation is an `ndarray` of shape `(N, 6)`, dtype `float32`: one row per client, one column per feature.

    | Num | Feature                | Meaning | Min | Max |
    |-----|------------------------|---------|-----|-----|
    | 0   | `reconstruction_error` | VAE error; log-ratio to its median on simulated honest updates | -3 | 3 |
    | 1   | `root_cosine`          | cosine to the reference update, trained on root data | -1 | 1 |
    | 2   | `peer_cosine`          | mean cosine to the other clients' updates | -1 | 1 |
    | 3   | `norm`                 | L2 norm; log-ratio to the round's median | -3 | 3 |
    | 4   | `sign_agreement`       | share of coordinates with the reference's sign, as 2s - 1 | -1 | 1 |
    | 5   | `shapley`              | Shapley value on root data, over the round's largest absolute value | -1 | 1 |

    A client whose update is not finite shows the worst value in every feature.

    ## Rewards

    A weighted sum of named terms; all of them are in `info["reward_terms"]`.

    - `oracle_gap` (the default, weight 1): validation loss of the honest clients' plain mean minus that of the agent's
      model, from the same updates.
    - `progress`: fall of the validation loss. Needs no truth.
    - `malicious_mass`: minus the share of the aggregate that malicious clients got.

    ## Starting State

    `reset` draws a scenario (attack and its strength, share of malicious clients, heterogeneity, onset, and where
    `scenarios` says so the root data), a partition of the data, and runs the first local round. `options` pins any
    field of the scenario: `reset(options={"attack": "sign_flip", "malicious_fraction": 0.3, "alpha": 0.5})`. An attack
    that is pinned comes with its default options, unless `attack_options` are pinned as well.

    ## Episode End

    The episode is truncated after `rounds` rounds. It never terminates.

    ## Info

    `round`, `attack`, `attacking`, `malicious` (N,), `rejected` (N,), `validation_accuracy`, `validation_loss` and the
    training `engine` in use; after a step also `weights` (N,) and `root_weight` (together they sum to 1) and
    `reward_terms`. This is the ground truth: an agent that reads it cheats. `round` counts the rounds that have ended.
    After a step `attacking`, `rejected`, `weights` and the scores are of the round that the step has ended, not of the
    one that the returned observation shows. `malicious` does not change within an episode.

    ## Arguments

    ```python
    gym.make("OptiGrad/Digits-v0", num_clients=10, rounds=20, reward="oracle_gap")
    ```

    - `num_clients`: N. `rounds`: length of an episode.
    - `data_dir`: where the data set's files are, for the ids that need some; by default `$OPTIGRAD_DATA`, else the
      user's cache directory. `download=True` fetches MNIST, Fashion-MNIST and CIFAR-10. For
      `OptiGrad/ImageFolder-v0` it is the folder itself, laid out as `train/CLASS/*.png`.
    - `reward`: name of a term, or a mapping from names to weights.
    - `scenarios`: a `ScenarioDistribution`, a mapping of its fields, or a name: `"broad"`, from no malicious client to
      a majority of 60 %, nearly equal clients and late attacks too; `"faint"`, the same and attacks too weak to stand
      out; `"wide"`, as `"broad"` with α from 0.1 and eight draws of root data, of 20 to 200 samples and up to half of
      them of one class.
    - any of `fl_core.federation_settings()`: `objective`, `mu`, `local_steps`, `learning_rate`, `engine`, `root`, ...
    - `device`: one of them too, `"cpu"` or `"cuda"`; observations and infos are NumPy arrays either way.

    Several federations in one process: `gym.make_vec("OptiGrad/Digits-v0", num_envs=8)`, see `OptiGradVectorEnv`.

    ## Checkpoints

    `env.unwrapped.state_dict()` is the episode as data (`pickle` takes it, and `torch.save`, for `torch.load` with
    `weights_only=False`), and `env.unwrapped.load_state_dict(state)` of an environment made with the same arguments, in
    another process too, continues it bit by bit. A fresh `gym.make` wants one `reset()` first. Wrappers that remember
    something (`ClientHistory`, `FeatureDropout`, `FeatureShuffle`, `Curriculum`) have a state of their own: around the
    environment, it is `env.get_wrapper_attr("state_dict")()` and `env.get_wrapper_attr("load_state_dict")(state)` that
    continue.

    ## Version History

    * v0: Initial version.
    """

    metadata = {  # noqa: RUF012
        "render_modes": ["ansi", "rgb_array"],
        "render_fps": 4,
    }
    # Whether clients may be absent.
    masked: ClassVar[bool] = False

    def __init__(
        self,
        num_clients: int = 10,
        rounds: int = 20,
        reward: str | Mapping[str, float] = "oracle_gap",
        scenarios: str | ScenarioDistribution | Mapping[str, Any] | None = None,
        render_mode: str | None = None,
        **federation: Any,
    ) -> None:
        check_types({"rounds": rounds}, {"rounds": int})
        if rounds < 1:
            raise ValueError(f"rounds must be at least 1, got {rounds}")
        if render_mode is not None:
            check_known("render_mode", [render_mode], self.metadata["render_modes"])
        federation = {"split_seed": TRAINING_SPLITS, **federation}
        # A step asks no more of it than reset, local_round, apply and evaluate, its round, scenario and malicious
        # clients, how trust is weighed (config.weighting) and the engine's name. Whatever has these can take its place.
        self.federation = Federation(configure(num_clients=num_clients, **federation))
        self.rounds = rounds
        self.render_mode = render_mode
        self.scenarios = self._make_scenarios(scenarios, num_clients)
        self.observation_space: spaces.Space[Any] = self._observation_space(num_clients)
        self.action_space: spaces.Box = action_space(num_clients)  # type: ignore[assignment]
        self._reward = make_reward(reward)
        self._num_clients = num_clients
        for attack in self.scenarios.attacks:
            self._check(Scenario(attack=attack))
        if self.scenarios.root_size is not None:  # sizes ascend with the draws
            self.federation.check_root(Scenario(**self.scenarios.root(self.scenarios.roots - 1)).make_root())
        self._round: Round | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; ``options`` pins fields of the scenario.

        Where many clients share few samples, a scenario's small α may have no partition that leaves every client two of
        them: another scenario is drawn then, unless its α is pinned.

        Raises:
            ValueError: Options that do not fit, or a pinned α, or a hundred that were drawn, without such a partition.
        """
        super().reset(seed=seed)
        self._round = None  # what cannot be drawn is found out half way: the old episode does not go on then
        for attempt in range(_MOST_SCENARIOS):
            scenario = self.scenarios.sample(self.np_random, options)
            self._check(scenario)
            try:
                self.federation.reset(scenario, entropy=int(self.np_random.integers(2**63)))
                break
            except PartitionError:
                if "alpha" in (options or {}) or attempt == _MOST_SCENARIOS - 1:
                    raise
        self._round = self.federation.local_round()
        self._measure(torch.zeros_like(self._round.view.updates[:1]))
        self._aggregate: Aggregate | None = None
        self._similarity = SimilarityMemory()
        self._history = History([self._accuracy], [self._features(self._round)])
        return self._observation(self._round), self._info(self._round)

    def step(self, action: Action) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Aggregates the present round with the action's trust, scores the new model, and runs the next round."""
        ended = self.current_round
        if self.federation.round >= self.rounds:
            raise ResetNeeded(f"the episode ended after {self.rounds} rounds; call reset()")
        trust = trust_of_action(action, self._num_clients)[ended.participants]
        self._aggregate = GivenTrust(trust, self.federation.config.weighting, self._similarity)(ended.view)
        loss_before = self._loss
        honest_loss, honest_accuracy = self._measure(torch.stack([self._aggregate.update, self.honest_mean()]))
        self.federation.apply(self._aggregate.update)

        weights = self._aggregate.weights
        assert weights is not None
        reward, terms = self._reward(Outcome(loss_before, self._loss, honest_loss, weights, ended.corrupted))
        self._round = self.federation.local_round()
        self._history.append(
            self._accuracy, honest_accuracy, self._of_clients(trust, ended, np.nan), self._features(self._round)
        )
        truncated = self.federation.round >= self.rounds
        return self._observation(self._round), reward, False, truncated, {**self._info(ended), "reward_terms": terms}

    def render(self) -> Any:
        """Trust per client with the truth marked: text for ``ansi``, (H, W, 3) uint8 for ``rgb_array``.

        Raises:
            ResetNeeded: Before the first ``reset``.
        """
        if self.render_mode is None:
            gym.logger.warn("render() without a render_mode: give gym.make one of ansi, rgb_array")
            return None
        self.current_round  # noqa: B018  (asks for a reset before the first)
        frame = self._frame()
        return rendering.to_text(frame) if self.render_mode == "ansi" else rendering.to_rgb(frame)

    @property
    def current_round(self) -> Round:
        """The round that waits for an action, truth included. Raises ResetNeeded before the first ``reset``."""
        if self._round is None:
            raise ResetNeeded("call reset() first")
        return self._round

    def honest_mean(self) -> torch.Tensor:
        """Plain mean (P,) of the present round's honest, finite updates; zero if there is none. Truth.

        Before the onset of the attack everybody is honest.
        """
        round_ = self.current_round
        updates = round_.view.updates
        honest = updates[~round_.corrupted & ~round_.view.rejected]
        return honest.mean(dim=0) if len(honest) else torch.zeros_like(updates[0])

    def like(self, env_id: str) -> "OptiGradEnv":
        """An environment of another id with what is this one's own.

        Data set, network, local training and engine are the other id's; everything else is this one's: clients, rounds,
        reward, scenarios, objective, how trust is weighed, root and validation data, split seed, device, directory.

        Raises:
            ValueError: An unknown id, or one whose data set is too small for this one's root and validation data.
        """
        settings = settings_of(self.federation.config)
        made = gym.make(
            env_id,
            disable_env_checker=True,
            rounds=self.rounds,
            reward=self._reward.weights,
            scenarios=self.scenarios,
            render_mode=self.render_mode,
            **{name: value for name, value in settings.items() if name not in _OF_THE_ID},
        )
        return federated(made)

    def state_dict(self) -> dict[str, Any]:
        """The episode as data: a snapshot that later steps do not change. See ``load_state_dict``.

        Raises:
            ResetNeeded: Before the first ``reset``.
        """
        return {
            "environment": self._settings(),
            "federation": checkpoint.state_of(self.federation, self.current_round),
            "np_random": copy.deepcopy(self.np_random.bit_generator.state),
            "np_random_seed": self.np_random_seed,
            "scores": (self._loss, self._accuracy),
            "aggregate": None if self._aggregate is None else vars(self._aggregate).copy(),
            "similarity": copy.deepcopy(self._similarity),
            "history": self._history.copy(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the episode of a ``state_dict``: the same steps, resets and pictures, bit by bit.

        Raises:
            ValueError: The state is of an environment or a federation with other settings, or is none at all.
        """
        checkpoint.check_state(state, *_STATE)
        checkpoint.check_same("an environment", state["environment"], self._settings())
        self._round = checkpoint.restore(self.federation, state["federation"])
        self.np_random.bit_generator.state = copy.deepcopy(state["np_random"])
        self._np_random_seed = state["np_random_seed"]
        self._loss, self._accuracy = state["scores"]
        self._aggregate = None if state["aggregate"] is None else Aggregate(**state["aggregate"])
        self._similarity = copy.deepcopy(state["similarity"])
        self._history = state["history"].copy()

    def _settings(self) -> dict[str, Any]:
        """What an episode goes on by, beside the federation's own settings."""
        reward = dict(self._reward.weights)
        return {"masked": self.masked, "rounds": self.rounds, "reward": reward, "scenarios": asdict(self.scenarios)}

    def of_clients(self, rows: Tensor, absent: float = 0) -> Tensor:
        """Rows of the waiting round's participants as rows of clients, (num_clients, ...); ``absent`` elsewhere."""
        return torch.from_numpy(self._of_clients(rows, self.current_round, absent))

    def _of_clients(self, rows: Tensor, round_: Round, absent: float = 0) -> NDArray[Any]:
        clients = rows.new_full((self._num_clients, *rows.shape[1:]), absent)
        clients[round_.participants] = rows
        return clients.cpu().numpy()

    def _measure(self, candidates: Tensor) -> tuple[float, float]:
        """Scores candidate updates (M, P) on validation data; keeps the first's figures.

        Returns:
            The last one's loss and accuracy.
        """
        metrics = self.federation.evaluate(candidates, "validation")
        self._loss, self._accuracy = float(metrics.loss[0]), float(metrics.accuracy[0])
        return float(metrics.loss[-1]), float(metrics.accuracy[-1])

    def _make_scenarios(
        self, scenarios: str | ScenarioDistribution | Mapping[str, Any] | None, num_clients: int
    ) -> ScenarioDistribution:
        made = make_scenarios(scenarios)
        if made.num_clients is not None or made.participation != (1.0, 1.0):
            raise ValueError(_FIXED.format(made.num_clients, made.participation))
        return made

    def _check(self, scenario: Scenario) -> None:
        if not self.masked and (scenario.num_clients not in (None, self._num_clients) or scenario.participation < 1):
            raise ValueError(_FIXED.format(scenario.num_clients, scenario.participation))
        if Knowledge(scenario.make_attack().knows).needs_rule:  # a policy that still learns is no rule that is deployed
            raise ValueError(RULE_NEEDED.format(scenario.attack))

    def _observation_space(self, num_clients: int) -> spaces.Space[Any]:
        return observation_space(num_clients)

    def _observation(self, round_: Round) -> Observation:
        return self._of_clients(round_.view.fingerprint.observation, round_)

    def _features(self, round_: Round) -> NDArray[np.float32]:
        """(num_clients, 6), NaN for an absent client."""
        return self._of_clients(round_.view.fingerprint.observation, round_, np.nan)

    def _malicious(self) -> NDArray[np.bool_]:
        """(num_clients,), False for a client that this episode does not have, and for all where nobody ever attacks."""
        malicious = np.zeros(self._num_clients, dtype=np.bool_)
        if self.federation.scenario.attack == "none":
            return malicious
        malicious[: len(self.federation.malicious)] = self.federation.malicious.numpy()
        return malicious

    def _info(self, round_: Round) -> dict[str, Any]:
        info = {
            "round": self.federation.round,
            "attack": self.federation.scenario.attack,
            "attacking": round_.attacking,
            "malicious": self._malicious(),
            "rejected": self._of_clients(round_.view.rejected, round_),
            "validation_accuracy": self._accuracy,
            "validation_loss": self._loss,
            "engine": self.federation.engine.name,
        }
        if self._aggregate is not None:
            assert self._aggregate.weights is not None
            weights = self._of_clients(self._aggregate.weights, round_)
            info |= {"weights": weights, "root_weight": self._aggregate.root_weight}
        return info

    def _frame(self) -> rendering.Frame:
        history, scenario, clients = self._history, self.federation.scenario, self.federation.num_clients
        weights, aggregate = np.zeros(self._num_clients), self._aggregate
        malicious = self._malicious()
        if aggregate is not None and aggregate.weights is not None:
            weights[~np.isnan(history.trust[-1])] = aggregate.weights.double().cpu().numpy()
        return rendering.Frame(
            title=f"round {self.federation.round} of {self.rounds}, attack {scenario.attack}",
            rounds=self.rounds,
            onset=scenario.onset if malicious.any() else None,
            malicious=malicious[:clients],
            weights=weights[:clients],
            root_weight=aggregate.root_weight if aggregate is not None else 0.0,
            trust=np.array(history.trust, dtype=np.float64).reshape(-1, self._num_clients)[:, :clients],
            features=np.array(history.features, dtype=np.float64)[:, :clients],
            accuracy=np.array(history.accuracy),
            oracle=np.array(history.oracle),
        )


def federated(env: gym.Env[Any, Any]) -> OptiGradEnv:
    """The environment inside all wrappers; raises a ValueError for another package's."""
    inner = env.unwrapped
    if not isinstance(inner, OptiGradEnv):
        raise ValueError(f"expected an environment of federations, such as OptiGrad/Digits-v0, got {env}")
    return inner


# What an id is: see optigrad_env/registration.py. An engine is chosen for a network.
_OF_THE_ID = {
    *("dataset", "dataset_options", "network", "network_options"),
    *("loss", "local_steps", "batch_size", "learning_rate", "engine"),
}
_STATE = ("environment", "federation", "np_random", "np_random_seed", "scores", "aggregate", "similarity", "history")
_FIXED = (
    "the number of clients and their participation can vary only where the observation has a mask, as in "
    "OptiGrad/DigitsMasked-v0; leave them out, or take that id; got num_clients={}, participation={}"
)
