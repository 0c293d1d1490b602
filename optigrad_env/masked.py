"""The environment with a variable number of clients, some of them absent."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from fl_core import Round, Scenario
from optigrad_env.env import Observation, OptiGradEnv
from optigrad_env.observation import masked_observation_space
from optigrad_env.scenarios import ScenarioDistribution, make_scenarios
from optigrad_env.vector import OptiGradVectorEnv


class MaskedOptiGradEnv(OptiGradEnv):
    """
    ## Description

    Federated learning with clients that come and go. An episode has some number of clients, at most `num_clients`, and
    in every round a random part of them takes part; the others keep their own BatchNorm until they are drawn again.
    All else is as without a mask: clients train locally with FedBN-Prox, the malicious ones among them corrupt what
    they send, the server fingerprints each update that has arrived with six features, and the agent answers with one
    trust value a client.

    The method is from [OptiGradTrust](https://arxiv.org/abs/2507.23638); partial participation is ours.

    ## Action Space

    The action is an `ndarray` of shape `(N,)`, dtype `float32`, values in [-1, 1], N being `num_clients`. Trust is
    `σ(5a)`. What it says of an absent client is ignored.

    | Num | Action               | Min | Max |
    |-----|----------------------|-----|-----|
    | i   | trust of client i    | -1 (trust 0.007) | 1 (trust 0.993) |

    ## Observation Space

    A dictionary of two arrays. A client has the same row in every round of an episode.

    - `mask`, shape `(N,)`, dtype `int8`: 1 for a client that takes part in this round, 0 for one that does not, or
      that the episode does not have.
    - `clients`, shape `(N, 6)`, dtype `float32`: a row a client, zeros where the mask is 0.

    | Num | Feature                | Meaning | Min | Max |
    |-----|------------------------|---------|-----|-----|
    | 0   | `reconstruction_error` | of a VAE for honest updates; log-ratio to its median on simulated ones | -3 | 3 |
    | 1   | `root_cosine`          | cosine to the reference update, trained on root data | -1 | 1 |
    | 2   | `peer_cosine`          | mean cosine to the other present clients' updates | -1 | 1 |
    | 3   | `norm`                 | L2 norm; log-ratio to the round's median | -3 | 3 |
    | 4   | `sign_agreement`       | share of coordinates with the reference's sign, as 2s - 1 | -1 | 1 |
    | 5   | `shapley`              | Shapley value for the loss on root data, over the round's largest | -1 | 1 |

    A client whose update is not finite shows the worst value in every feature.

    ## Rewards

    As without a mask, over the clients that take part: `oracle_gap` (the default), `progress`, `malicious_mass`.

    ## Starting State

    `reset` draws a scenario, among other things the number of clients (by default uniformly from half of `num_clients`
    to all of them) and the share that takes part in a round (by default uniformly from 0.5 to 1), a partition of the
    data among the episode's clients, and runs the first local round. At least one honest client takes part in each
    round. `options` pins any field of the scenario: `reset(options={"num_clients": 8, "participation": 0.5})`.

    ## Episode End

    The episode is truncated after `rounds` rounds. It never terminates.

    ## Info

    As without a mask, with a row for each of the N clients: `malicious` is false for a client that the episode does not
    have, `weights` is 0 and `rejected` false for one that was absent. Also `participants` (N,), who took part in the
    round that the step has ended (after `reset`: in the round that waits). This is the truth: an agent that reads it
    cheats.

    ## Arguments

    ```python
    gym.make("OptiGrad/DigitsMasked-v0", num_clients=20, scenarios={"participation": [0.2, 1]})
    ```

    All arguments are those of the environment without a mask; `num_clients` is the largest number of clients, N. A
    `ScenarioDistribution` is used as it is: set its `num_clients` and `participation`, or nobody is ever absent.

    ## Checkpoints

    `env.unwrapped.state_dict()` and `load_state_dict(state)`, as without a mask.

    ## Version History

    * v0: Initial version.
    """

    masked: ClassVar[bool] = True

    def _make_scenarios(
        self, scenarios: str | ScenarioDistribution | Mapping[str, Any] | None, num_clients: int
    ) -> ScenarioDistribution:
        made = make_scenarios(scenarios, num_clients=(-(-num_clients // 2), num_clients), participation=(0.5, 1.0))
        self._check_clients(made.num_clients[1] if made.num_clients else None, num_clients)
        return made

    def _check(self, scenario: Scenario) -> None:
        super()._check(scenario)
        self._check_clients(scenario.num_clients, self._num_clients)

    @staticmethod
    def _check_clients(wanted: int | None, largest: int) -> None:
        if wanted is not None and wanted > largest:
            raise ValueError(f"scenarios with {wanted} clients need num_clients of at least {wanted}, got {largest}")

    def _observation_space(self, num_clients: int) -> spaces.Space[Any]:
        return masked_observation_space(num_clients)

    def _observation(self, round_: Round) -> Observation:
        mask = np.zeros(self._num_clients, dtype=np.int8)
        mask[round_.participants.numpy()] = 1
        return {"clients": self._of_clients(round_.view.fingerprint.observation, round_), "mask": mask}

    def _info(self, round_: Round) -> dict[str, Any]:
        participants = np.zeros(self._num_clients, dtype=np.bool_)
        participants[round_.participants.numpy()] = True
        return {**super()._info(round_), "participants": participants}


class MaskedOptiGradVectorEnv(OptiGradVectorEnv):
    """Several federations with clients that come and go; see ``OptiGradVectorEnv`` and ``MaskedOptiGradEnv``."""

    env_class: ClassVar[type[OptiGradEnv]] = MaskedOptiGradEnv
