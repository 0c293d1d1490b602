"""A server for a federation of one's own: root data in, views for aggregation rules out.

The simulated federation trains the server as one more row of the clients' stack. Where the clients are real, this class
does the server's part by itself: it owns the global model and its own BatchNorm, trains the reference update, checks
what was received, and fingerprints it.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_core.aggregation import Aggregate, ServerView
from fl_core.aggregation.view import receive
from fl_core.data.splits import split_in_halves
from fl_core.fingerprint import Fingerprinter, HonestSimulator, make_shapley, train_autoencoder
from fl_core.models import ParameterLayout
from fl_core.models.parameters import Entry
from fl_core.randomness import Purpose, Streams
from fl_core.registry import check_types
from fl_core.training import LocalTraining, Objective, make_engine, make_objective
from fl_core.training.sampling import cyclic


class RootServer:
    """Global model, root data, and the view of each round.

    Args:
        network: The model, with its initial weights; copied. BatchNorm stays at each participant under an objective
            with ``local_batchnorm``, and everything else is shared.
        images: (R, C, H, W) float32 root data, standardised as the clients standardise theirs; R at least 4. Half of
            each class is for the reference update, the other half judges. Benchmarks here have as many of each class.
        labels: (R,) int64 in [0, num_classes).
        num_classes: C.
        objective: What the clients minimise; FedBN-Prox with mu 0.1 by default.
        training: The clients' local work in a round: steps, batch size and learning rate as theirs.
        engine: Training engine; ``auto`` is the fastest that is built and can run the network.
        shapley: Shapley estimator.
        seed: Seed of everything that the server draws.

    Attributes:
        layout: Which of the network's tensors are shared, and their order in an update (P,).
        engine: What trains the reference update; ``engine.name`` says which was taken.
        global_model: (P,).
        round: Rounds that were applied.

    Raises:
        ValueError: Root data of the wrong shape or size or not finite, an unknown name, or a network that cannot run on
            the root data, gives another number of outputs than there are classes, or is not for the engine.
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
        _check_kinds(network, objective, training, seed)
        _check_root(images, labels, num_classes)
        _check_outputs(network, images[:2], num_classes)
        self._objective = objective or make_objective("fedbn_prox", 0.1)
        self._training = training or LocalTraining()
        self.layout = ParameterLayout(network, local_batchnorm=self._objective.local_batchnorm)
        self.engine = make_engine(engine, network, self.layout)
        self.global_model, self._local = self.layout.initial(network)
        self.round = 0

        streams = Streams(seed)
        # Were all of a rare class in the one half, the other would judge by the frequent classes alone.
        halves = split_in_halves(labels.numpy(), streams.numpy(Purpose.SPLIT))
        reference, utility = map(torch.from_numpy, halves)
        self._simulator = HonestSimulator(
            self.engine, images[reference], labels[reference], self._training, self._objective
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
        """Writes the global model's shared parameters into a client's network; its BatchNorm stays its own (FedBN).

        Raises:
            ValueError: The network lacks one of them, by name and shape; nothing was written.
        """
        _check_holds(network, self.layout.shared)
        _write(network, self.layout.shared, self.layout.unpack(self.global_model[None], self._local[None]))

    def update_of(self, network: nn.Module) -> Tensor:
        """What a client sends after local training: its network's shared parameters minus the global model, (P,).

        The network may be on a GPU, and of another precision; the update is float32 on the CPU.

        Raises:
            ValueError: The network lacks one of them, by name and shape.
        """
        _check_holds(network, self.layout.shared)
        return self.layout.initial(network)[0].to(self.global_model) - self.global_model

    def view(
        self, messages: Tensor | Collection[Tensor | NDArray[Any]], clients: Sequence[int] | None = None
    ) -> ServerView:
        """Trains the reference update and shows a rule what the server has received.

        Args:
            messages: One update (P,) a client, a tensor or an array; a message of the wrong shape, or one that is not
                finite, costs its sender its weight.
            clients: Number of the client that each message is from, for rules that remember clients where not all
                take part in every round; by default 0, 1, and so on.

        Returns:
            The view of this round. Call once a round, and ``apply`` before the next.

        Raises:
            ValueError: No messages, or not one client of its own for each; the round has not begun then.
        """
        updates = receive(messages, self.layout.num_shared, self.global_model.device)
        senders = None if clients is None else _numbers(clients, len(updates))
        size = self._training.steps * self._training.batch_size
        picks = cyclic(torch.arange(len(self._simulator.labels)), size, self._batches)
        picks = picks.view(1, self._training.steps, self._training.batch_size)
        reference, local = self.engine.train(
            self.global_model,
            self._local[None],
            self._simulator.images[picks],
            self._simulator.labels[picks],
            objective=self._objective,
            learning_rate=self._training.learning_rate,
        )
        if not reference.isfinite().all():
            raise ValueError(
                "the reference update that was trained on the root data is not finite; is the learning rate "
                f"{self._training.learning_rate} too large, or the global model broken?"
            )
        self._local = local[0]
        return ServerView(
            updates,
            self.global_model,
            reference[0],
            self._local,
            self.round,
            self._fingerprinter,
            senders,
            self.layout.sizes,
        )

    def apply(self, aggregate: Aggregate) -> None:
        """Ends the round: adds a rule's update to the global model.

        Raises:
            ValueError: It is no update of this model, or not finite; the round has not ended then.
        """
        update = getattr(aggregate, "update", None)
        if not isinstance(update, Tensor) or update.shape != self.global_model.shape:
            found = tuple(update.shape) if isinstance(update, Tensor) else repr(aggregate)[:80]
            raise ValueError(
                f"apply takes what a rule returns, an Aggregate with an update ({len(self.global_model)},), got {found}"
            )
        if not update.isfinite().all():
            raise ValueError(f"{int((~update.isfinite()).sum())} of {len(update)} values of the update are not finite")
        self.global_model = self.global_model + update.to(self.global_model)  # a rule may have computed in float64
        self.round += 1

    def write_to(self, network: nn.Module) -> None:
        """Writes the global model into a network for use.

        Where BatchNorm is local (FedBN), with the server's own, its statistics re-estimated on root data; where it is
        shared, its statistics are part of the global model and are written as they are.

        Raises:
            ValueError: The network lacks one of the model's tensors, by name and shape; nothing was written.
        """
        _check_holds(network, self.layout.entries)
        shared = self.global_model[None]
        local = self.engine.reestimate(shared, self._local[None], self._simulator.images)
        _write(network, self.layout.entries, self.layout.unpack(shared, local))


def _numbers(clients: Any, count: int) -> Tensor:
    """The clients' numbers (N,) int64; a ValueError unless there is one of its own for each of ``count`` messages."""
    given = clients.tolist() if hasattr(clients, "tolist") else list(clients)
    numbers = [int(one) for one in given if isinstance(one, Integral) and -(2**63) <= int(one) < 2**63]
    if len(numbers) < len(given) or len(given) != count or len({*numbers}) != count:
        raise ValueError(
            f"clients must be {count} different whole numbers below 2**63, one a message, got {given}; give clients "
            "with other names, or larger ones, a number each, and keep it"
        )
    return torch.tensor(numbers)


def _check_kinds(network: object, objective: object, training: object, seed: int) -> None:
    if not isinstance(network, nn.Module) or not any(True for _ in network.parameters()):
        raise ValueError(f"network must be a torch module with parameters, got {network!r}")
    if not isinstance(objective, Objective | None):
        raise ValueError(f"objective must be one of make_objective's, or None for FedBN-Prox, got {objective!r}")
    if not isinstance(training, LocalTraining | None):
        raise ValueError(f"training must be a LocalTraining, or None for the usual one, got {training!r}")
    check_types({"seed": seed}, {"seed": int})
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")


def _check_root(images: Any, labels: Any, num_classes: int) -> None:
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a tensor, got {type(value).__name__}; torch.tensor(...) makes one of it")
        if value.device.type != "cpu":
            raise ValueError(
                f"{name} must be on the CPU, where this server runs, got {value.device}; give {name}.cpu()"
            )
    check_types({"num_classes": num_classes}, {"num_classes": int})
    if images.ndim != 4 or images.dtype != torch.float32:
        raise ValueError(f"images must be (R, C, H, W) float32, got {tuple(images.shape)} {images.dtype}")
    if not images.isfinite().all():
        broken = (~images.isfinite()).flatten(1).any(dim=1)
        raise ValueError(f"{int(broken.sum())} of {len(images)} root images hold values that are not finite")
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}")
    if len(images) < 4:
        raise ValueError(f"root data must hold at least 4 samples, two in each half; got {len(images)}")
    low, high = int(np.min(labels.numpy())), int(np.max(labels.numpy()))
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must lie in [0, {num_classes}), got {low} to {high}")


def _check_outputs(network: nn.Module, images: Tensor, num_classes: int) -> None:
    """On a copy: not even the mode of the given network changes."""
    try:
        with torch.no_grad():
            shape = tuple(copy.deepcopy(network).eval()(images).shape)
    except RuntimeError as error:
        raise ValueError(f"the network cannot run on root images {tuple(images.shape[1:])}: {error}") from error
    if shape != (len(images), num_classes):
        raise ValueError(f"the network must give {num_classes} outputs an image, one a class; two images gave {shape}")


def _write(network: nn.Module, entries: Sequence[Entry], tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors (1, *shape) into a network.

    Where BatchNorm is shared an aggregate can leave a variance below 0: it counts as 0, as it does for the engines.
    """
    values = {entry.name: tensors[entry.name][0] for entry in entries}
    variances = {name: value.clamp_min(0) for name, value in values.items() if name.endswith("running_var")}
    network.load_state_dict({**values, **variances}, strict=False)


def _check_holds(network: nn.Module, entries: Sequence[Entry]) -> None:
    """Raises a ValueError, unless a network has tensors of these names and shapes."""
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    lacking = [entry for entry in entries if shapes.get(entry.name) != entry.shape]
    if lacking:
        first = lacking[0]
        found = f"there it is {tuple(shapes[first.name])}" if first.name in shapes else f"it has {', '.join(shapes)}"
        raise ValueError(
            f"the network is not built as the server's: {len(lacking)} of {len(entries)} tensors do not fit, the first "
            f"is {first.name} {tuple(first.shape)}; {found[:300]}"
        )
