"""A server for a federation of one's own: root data in, views for aggregation rules out.

The simulated federation trains the server as one more row of the clients' stack. Where the clients are real, this class
does the server's part by itself: it owns the global model and its own BatchNorm, trains the reference update, checks
what was received, and fingerprints it.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fl_core.aggregation import Aggregate, ServerView
from fl_core.aggregation.view import receive
from fl_core.data.splits import interleave_classes
from fl_core.fingerprint import Fingerprinter, HonestSimulator, make_shapley, train_autoencoder
from fl_core.models import ParameterLayout
from fl_core.randomness import Purpose, Streams
from fl_core.training import LocalTraining, Objective, make_engine, make_objective
from fl_core.training.sampling import cyclic


class RootServer:
    """Global model, root data, and the view of each round.

    Args:
        network: The model, with its initial weights; copied. BatchNorm stays at each participant under an objective
            with ``local_batchnorm``, and everything else is shared.
        images: (R, C, H, W) float32 root data, standardised as the clients standardise theirs; R at least 4.
        labels: (R,) int64 in [0, num_classes).
        num_classes: C.
        objective: What the clients minimise; FedBN-Prox with mu 0.1 by default.
        training: The clients' local work in a round.
        engine: Training engine; ``auto`` is the fastest that is built and can run the network.
        shapley: Shapley estimator.
        seed: Seed of everything that the server draws.

    Raises:
        ValueError: Root data of the wrong shape or size, an unknown name, or a network that the engine cannot run.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        objective: Objective | None = None,
        training: LocalTraining | None = None,
        engine: str = "auto",
        shapley: str = "surrogate",
        seed: int = 0,
    ) -> None:
        _check_root(images, labels, num_classes)
        self._objective = objective or make_objective("fedbn_prox", 0.1)
        self._training = training or LocalTraining()
        self.layout = ParameterLayout(network, local_batchnorm=self._objective.local_batchnorm)
        self._engine = make_engine(engine, network, self.layout)
        self.global_model, self._local = self.layout.initial(network)
        self.round = 0

        streams = Streams(seed)
        order = torch.from_numpy(interleave_classes(labels.numpy(), streams.numpy(Purpose.SPLIT)))
        reference, utility = order[: len(order) // 2], order[len(order) // 2 :]
        self._simulator = HonestSimulator(
            self._engine, images[reference], labels[reference], self._training, self._objective
        )
        autoencoder = partial(
            train_autoencoder, self._simulator, self.global_model, self._local, streams.torch(Purpose.AUTOENCODER)
        )
        self._fingerprinter = Fingerprinter(
            self._simulator,
            images[utility],
            labels[utility],
            num_classes,
            autoencoder,
            make_shapley(shapley),
            streams.descend(Purpose.FINGERPRINT),
        )
        self._batches = streams.torch(Purpose.SERVER)

    def broadcast(self, network: nn.Module) -> None:
        """Writes the global model's shared parameters into a client's network; its BatchNorm stays its own (FedBN)."""
        tensors = self.layout.unpack(self.global_model[None], self._local[None])
        network.load_state_dict({e.name: tensors[e.name][0] for e in self.layout.shared}, strict=False)

    def update_of(self, network: nn.Module) -> Tensor:
        """What a client sends after local training: its network's shared parameters minus the global model, (P,)."""
        return self.layout.initial(network)[0] - self.global_model

    def view(self, messages: Tensor | Sequence[Tensor], clients: Sequence[int] | None = None) -> ServerView:
        """Trains the reference update and shows a rule what the server has received.

        Args:
            messages: One update (P,) a client; a message of the wrong shape, or one that is not finite, costs its
                sender its weight.
            clients: Number of the client that each message is from, for rules that remember clients where not all
                take part in every round; by default 0, 1, and so on.

        Returns:
            The view of this round. Call once a round, and ``apply`` before the next.

        Raises:
            ValueError: No message, or not one client of its own for each; the round has not begun then.
        """
        updates = receive(messages, self.layout.num_shared, self.global_model.device)
        senders = None if clients is None else torch.tensor(list(clients), dtype=torch.int64)
        if senders is not None and (len(senders) != len(updates) or len(senders.unique()) != len(senders)):
            raise ValueError(
                f"clients must be {len(updates)} different numbers, one a message, got {list(clients or ())}"
            )
        size = self._training.steps * self._training.batch_size
        picks = cyclic(torch.arange(len(self._simulator.labels)), size, self._batches)
        picks = picks.view(1, self._training.steps, self._training.batch_size)
        reference, local = self._engine.train(
            self.global_model,
            self._local[None],
            self._simulator.images[picks],
            self._simulator.labels[picks],
            objective=self._objective,
            learning_rate=self._training.learning_rate,
        )
        self._local = local[0]
        return ServerView(
            updates, self.global_model, reference[0], self._local, self.round, self._fingerprinter, senders
        )

    def apply(self, aggregate: Aggregate) -> None:
        """Ends the round: adds a rule's update to the global model."""
        self.global_model = self.global_model + aggregate.update
        self.round += 1

    def write_to(self, network: nn.Module) -> None:
        """Writes the global model into a network for use, with the server's BatchNorm re-estimated on root data."""
        shared = self.global_model[None]
        local = self._engine.reestimate(shared, self._local[None], self._simulator.images)
        tensors = self.layout.unpack(shared, local)
        network.load_state_dict({name: value[0] for name, value in tensors.items()}, strict=False)


def _check_root(images: Tensor, labels: Tensor, num_classes: int) -> None:
    if images.ndim != 4 or images.dtype != torch.float32:
        raise ValueError(f"images must be (R, C, H, W) float32, got {tuple(images.shape)} {images.dtype}")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}")
    if len(images) < 4:
        raise ValueError(f"root data must hold at least 4 samples, two in each half; got {len(images)}")
    low, high = int(np.min(labels.numpy())), int(np.max(labels.numpy()))
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), got {low} to {high}")
