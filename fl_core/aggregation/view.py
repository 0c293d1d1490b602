"""All that a defence may see."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_core.fingerprint.fingerprint import Fingerprint, Fingerprinter
from fl_core.fingerprint.geometry import norms

# What a message may be of. PyTorch has others that cannot be turned into float32.
_NUMBERS = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)


@dataclass(frozen=True, eq=False)
class ServerView:
    """What the server has in one round, and nothing else: not who is malicious, how many, or by which attack.

    Attributes:
        updates: (N, P) float32 (what rules make of float64 is float64), as received. Rows with a NaN or an infinity are
            rejected, see ``rejected``.
        global_model: (P,) float32, shared parameters that the round began with.
        reference: (P,) float32, what the server got by running the clients' objective on the reference half.
        server_local: (L,) float32, the server's own BatchNorm after its reference training.
        round: Round number from 0.
        fingerprinter: Computes the six features from the above and the server's root data.
        clients: (N,) int64, who has sent each row, for rules that remember clients; by default 0 to N − 1.
        layers: Sizes of the parameters that an update is made of, in order, for rules that go layer by layer; () if
            they are not known.

    Raises:
        ValueError: One of them is of another kind or size than the updates ask for.
    """

    updates: Tensor
    global_model: Tensor | None = None
    reference: Tensor | None = None
    server_local: Tensor | None = None
    round: int = 0
    fingerprinter: Fingerprinter | None = None
    clients: Tensor | None = None
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.updates.ndim != 2 or 0 in self.updates.shape:
            raise ValueError(f"updates must have shape (N, P) with N, P of at least 1, got {tuple(self.updates.shape)}")
        if self.updates.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"updates must be float32 or float64, got {self.updates.dtype}; call .float() on them")
        if self.updates.requires_grad:  # an update is what a client has sent: nothing is differentiated through it
            object.__setattr__(self, "updates", self.updates.detach())
        size = self.updates.shape[1]
        for name in ("global_model", "reference"):
            vector = getattr(self, name)
            if vector is not None and vector.shape != (size,):
                raise ValueError(f"{name} must have shape ({size},) like an update, got {tuple(vector.shape)}")
        if self.clients is not None:
            self._check_clients(self.clients)
        if self.layers and (sum(self.layers) != size or min(self.layers) < 1):
            raise ValueError(
                f"layers must be sizes of at least 1 that add up to the {size} parameters of an update; got "
                f"{self.layers}, in all {sum(self.layers)}"
            )

    def _check_clients(self, clients: Tensor) -> None:
        count = len(self.updates)
        if not isinstance(clients, Tensor) or clients.dtype != torch.int64 or clients.shape != (count,):
            told = f"{clients.dtype} of shape {tuple(clients.shape)}" if isinstance(clients, Tensor) else repr(clients)
            raise ValueError(
                f"clients must be {count} numbers, a torch.int64 tensor of shape ({count},): who has sent each row of "
                f"the updates; got {told}"
            )
        numbers = clients.tolist()
        if len({*numbers}) < count or min(numbers) < 0:
            raise ValueError(
                f"clients must be {count} different numbers from 0 up, one a row of the updates; got {numbers}"
            )

    @cached_property
    def rejected(self) -> Tensor:
        """(N,) bool: clients whose update is not finite; they get no weight in any rule.

        On the CPU, wherever the updates are: whom a server leaves out decides what it does next.
        """
        # The norm of a row with a NaN or an infinity is not finite: ten times faster at millions of parameters than
        # asking each. In float32 it may also be too large a number; in float64 that of a finite row is finite.
        rejected = ~torch.linalg.vector_norm(self.updates, dim=1).isfinite().cpu()
        return ~norms(self.updates).isfinite().cpu() if bool(rejected.any()) else rejected

    @cached_property
    def accepted(self) -> Tensor:
        """(A, P), the finite updates in order."""
        return self.updates[~self.rejected] if bool(self.rejected.any()) else self.updates

    @cached_property
    def accepted_clients(self) -> Tensor:
        """(A,) int64, who has sent each accepted row."""
        clients = torch.arange(len(self.updates)) if self.clients is None else self.clients
        return clients[~self.rejected]

    def root_losses(self, candidates: Tensor) -> Tensor:
        """Loss on the utility half of the root data of the models that candidate updates would make.

        Args:
            candidates: (M, P), added to the global model; a row of zeros is the present one.

        Returns:
            (M,) float64, mean capped cross-entropy in nats. BatchNorm's statistics are re-estimated on the reference
            half for each candidate, so a loss does not depend on the others.

        Raises:
            ValueError: This view has no root data.
        """
        return self.root_sample_losses(candidates).mean(dim=1)

    def root_sample_losses(self, candidates: Tensor) -> Tensor:
        """Like ``root_losses``, of each sample of the utility half by itself.

        Args:
            candidates: (M, P), added to the global model.

        Returns:
            (M, V) float64, capped cross-entropy in nats; the mean of a row is what ``root_losses`` gives.

        Raises:
            ValueError: This view has no root data.
        """
        fingerprinter, model, local = self._root("the loss on root data")
        return fingerprinter.losses(candidates, model, local)

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """The six features of every client, computed when first asked for.

        Raises:
            ValueError: This view has no root data to compute them with.
        """
        fingerprinter, model, local = self._root("the fingerprint")
        assert self.reference is not None
        return fingerprinter(self.updates, self.rejected, model, self.reference, local, self.round)

    def _root(self, what: str) -> tuple[Fingerprinter, Tensor, Tensor]:
        """Fingerprinter, global model (P,) and the server's BatchNorm (L,)."""
        if self.fingerprinter is None or self.reference is None or self.global_model is None:
            raise ValueError(f"{what} needs root data: give ServerView a fingerprinter, global_model and reference")
        local = self.global_model.new_zeros(0) if self.server_local is None else self.server_local
        return self.fingerprinter, self.global_model, local


def receive(
    messages: Tensor | Collection[Tensor | NDArray[Any]], num_parameters: int, device: torch.device | None = None
) -> Tensor:
    """Turns what clients sent into a matrix; a message of the wrong shape or kind becomes a row of NaN.

    A server cannot choose what it is sent: a bad message must cost its sender its weight, not the round.

    Args:
        messages: One message a client, at least one; NumPy's floating-point arrays are taken for tensors.
        num_parameters: P, the length that an update should have.
        device: Where to; by default where the first of the messages is that is a tensor.

    Returns:
        (N, P) float32.

    Raises:
        ValueError: No message at all, or no collection of messages.
    """
    is_list = isinstance(messages, Tensor | Collection) and not isinstance(messages, Mapping | str | bytes)
    if not is_list or getattr(messages, "ndim", 2) < 2:
        shape = f" of the shape {tuple(messages.shape)}" if hasattr(messages, "shape") else ""
        raise ValueError(f"messages must be N updates (P,), one a client; got one {type(messages).__name__}{shape}")
    if not len(messages):
        raise ValueError("no client has sent a message: there is nothing to aggregate, so leave this round out")
    if isinstance(messages, Tensor) and _fits(messages, (len(messages), num_parameters), torch.float32):
        messages = messages.detach()
        return messages if device is None else messages.to(device)
    sent = [_as_tensor(message) for message in messages]
    if not isinstance(messages, Tensor):
        # Methods of a client's own class would run in whatever is done with the matrix that its message is a row of.
        sent = [message if type(message) in (Tensor, nn.Parameter) else None for message in sent]
    if device is None:
        device = next((message.device for message in sent if _readable(message)), None)
    missing = torch.full((num_parameters,), float("nan"), device=device)
    return torch.stack(
        [message.detach().to(missing) if _fits(message, (num_parameters,)) else missing for message in sent]
    )


def _as_tensor(message: Any) -> Any:
    """A floating-point array, which is what Flower sends, as a tensor; anything else as it is, to be rejected."""
    if not isinstance(message, np.ndarray) or message.dtype.kind != "f" or message.dtype.itemsize > 8:
        return message
    return torch.tensor(np.ascontiguousarray(message, dtype=message.dtype.newbyteorder("=")))


def _fits(message: Any, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> bool:
    return _readable(message) and message.shape == shape and dtype in (None, message.dtype)


def _readable(message: object) -> bool:
    """Whether a message is an ordinary tensor: dense, and with numbers behind it."""
    return (
        isinstance(message, Tensor)
        and message.layout == torch.strided
        and message.dtype in _NUMBERS
        and not (message.is_meta or message.is_nested)
    )
