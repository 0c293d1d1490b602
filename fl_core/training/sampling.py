"""Which samples a client trains on in a round."""

import torch
from torch import Tensor


def cyclic(shard: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """``size`` samples of a shard (n,): a fresh permutation, repeated as often as needed."""
    permuted = shard[torch.randperm(len(shard), generator=generator)]
    return permuted.repeat(-(-size // len(shard)))[:size] if size > len(shard) else permuted[:size]
