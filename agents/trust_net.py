"""The attention network that turns fingerprints into trust. Plain PyTorch: what is deployed needs nothing else."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Width of a robust z-score's denominator at which it stops magnifying: differences below it are noise.
_SPREAD_FLOOR = 0.05
_Z_LIMIT = 5.0
# Scores lie within ±5: trust from 0.007 to 0.993.
SCORE_LIMIT = 5.0
# Blocks are made one by one before any weight is looked at, and their number may come from a file.
_MOST_BLOCKS = 64


@dataclass(frozen=True)
class Architecture:
    """Sizes of a ``TrustNet``.

    Attributes:
        width: Width of a token.
        depth: Number of attention blocks, at most 64.
        heads: Attention heads; must divide the width.
    """

    width: int = 64
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        sizes: tuple[object, ...] = (self.width, self.depth, self.heads)  # may come from a file
        if not all(isinstance(size, int) and size > 0 for size in sizes) or self.width % self.heads:
            raise ValueError(f"width, depth and heads must be positive whole numbers, heads divide width, got {self}")
        if self.depth > _MOST_BLOCKS:
            raise ValueError(f"depth must be at most {_MOST_BLOCKS}, got {self.depth}")


class Trunk(nn.Module):
    """Self-attention over clients: (..., N, F) observations to (..., N, width) tokens, for any N.

    Each client is a token: its features, and the same as robust z-scores within the round (median and MAD over the
    clients). Pre-norm attention blocks, no positional encoding, no dropout.

    Args:
        architecture: Sizes.
        features: F, number of features of a client.
    """

    def __init__(self, architecture: Architecture | None = None, features: int = 6) -> None:
        super().__init__()
        self.architecture = architecture or Architecture()
        self.features = features
        width = self.architecture.width
        self.embed = nn.Linear(2 * features, width)
        self.blocks = nn.ModuleList(
            _AttentionBlock(width, self.architecture.heads) for _ in range(self.architecture.depth)
        )
        self.norm = nn.LayerNorm(width)

    def tokens(self, fingerprint: Tensor, mask: Tensor | None = None) -> Tensor:
        """One token a client, (..., N, width).

        Args:
            fingerprint: (..., N, F).
            mask: (..., N) bool, which clients are there; ``None`` if all are. Those who are not have no influence on
                the tokens of the others.

        Raises:
            ValueError: No tensor of at least one client's features, or the mask does not fit.
        """
        if not isinstance(fingerprint, Tensor):
            raise ValueError(f"expected a tensor (N, {self.features}), got {type(fingerprint).__name__}")
        if fingerprint.ndim < 2 or not fingerprint.shape[-2] or fingerprint.shape[-1] != self.features:
            raise ValueError(
                f"expected {self.features} features in the last dimension, and before it at least one client; "
                f"got {tuple(fingerprint.shape)}"
            )
        fingerprint = fingerprint.to(self.embed.weight.dtype)
        if mask is not None and mask.shape != fingerprint.shape[:-1]:
            raise ValueError(
                f"mask must have shape {tuple(fingerprint.shape[:-1])}, one value a client; got {tuple(mask.shape)}"
            )
        tokens: Tensor = self.embed(torch.cat([fingerprint, _robust_z_scores(fingerprint, mask)], dim=-1))
        # With nobody there, a softmax over nobody would be NaN, and so would the gradients of the whole batch.
        seen = None if mask is None else (mask | ~mask.any(dim=-1, keepdim=True))[..., None, None, :]
        for block in self.blocks:
            tokens = block(tokens, seen)
        normed: Tensor = self.norm(tokens)
        return normed


class TrustNet(Trunk):
    """The policy: (..., N, 6) observations to (..., N) trust, for any N.

    One score a client on the trunk's tokens, and a pooled value head for training. Permuting the clients permutes
    their trust.

    Args:
        architecture: Sizes.
        features: Number of features of a client.

    Attributes:
        weighting: How its trust becomes an update, if its file says so.
    """

    weighting: object = None

    def __init__(self, architecture: Architecture | None = None, features: int = 6) -> None:
        super().__init__(architecture, features)
        width = self.architecture.width
        self.score_head = nn.Linear(width, 1)
        self.value_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, fingerprint: Tensor, mask: Tensor | None = None) -> Tensor:
        """Trust in (0, 1) of every client: (..., N, 6) to (..., N); 0 for a client that the mask (..., N) leaves out.

        Raises:
            ValueError: The last dimension is not the number of features, or the mask does not fit.
        """
        trust = torch.sigmoid(self.score_and_value(fingerprint, mask)[0])
        return trust if mask is None else trust * mask

    def score_and_value(self, fingerprint: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The pre-sigmoid score in [-5, 5] of every client (..., N), and the state's value (...,)."""
        drive, value = self.drive_and_value(fingerprint, mask)
        # tanh keeps the score inside the action box without a dead zone at its edges.
        return SCORE_LIMIT * torch.tanh(drive), value

    def drive_and_value(self, fingerprint: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """What the score is the tanh of, unbounded (..., N), and the state's value (...,); 0 for who is not there."""
        tokens = self.tokens(fingerprint, mask)
        drive: Tensor = self.score_head(tokens).squeeze(-1) / SCORE_LIMIT
        if mask is not None:
            drive = drive * mask
        return drive, self.value_head(_mean_over_clients(tokens, mask)).squeeze(-1)


class ActionValueNet(Trunk):
    """The critic of an algorithm that learns from actions: a round and an action a client to what they are worth.

    A network of its own on every pair of token and action, pooled over the clients: permuting clients and actions
    together changes nothing, and it runs with any number of them.

    Args:
        architecture: Sizes.
        features: Number of features of a client.
        outputs: Numbers that say what an action is worth: 1, or the quantiles of a distribution.
    """

    def __init__(self, architecture: Architecture | None = None, features: int = 6, outputs: int = 1) -> None:
        super().__init__(architecture, features)
        width = self.architecture.width
        self.pair = nn.Sequential(nn.Linear(width + 1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, fingerprint: Tensor, action: Tensor, mask: Tensor | None = None) -> Tensor:
        """Worth (..., outputs) of actions (..., N) in rounds (..., N, 6); actions of who is not there do not count."""
        pairs = self.pair(torch.cat([self.tokens(fingerprint, mask), action[..., None]], dim=-1))
        worth: Tensor = self.head(_mean_over_clients(pairs, mask))
        return worth


def _mean_over_clients(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """(..., N, W) to (..., W), over those who are there; zero if nobody is."""
    if mask is None:
        return tokens.mean(dim=-2)
    present = mask[..., None].to(tokens.dtype)
    return (tokens * present).sum(dim=-2) / present.sum(dim=-2).clamp(min=1)


class _AttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, tokens: Tensor, seen: Tensor | None) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part in self.project_in(self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        tokens = tokens + self.project_out(attended.transpose(-3, -2).flatten(-2))
        residual: Tensor = self.feed_forward(tokens)
        return tokens + residual


def _robust_z_scores(fingerprint: Tensor, mask: Tensor | None) -> Tensor:
    """(x − median) / (1.4826 · MAD) over the clients, cut at ±5: (..., N, F) to the same shape."""
    deviation = fingerprint - _median(fingerprint, mask)
    spread = 1.4826 * _median(deviation.abs(), mask)
    return (deviation / (spread + _SPREAD_FLOOR)).clamp(-_Z_LIMIT, _Z_LIMIT)


def _median(values: Tensor, mask: Tensor | None) -> Tensor:
    """Median (..., 1, F) over the clients that are there; of an even number the lower of the middle two."""
    if mask is None:
        return values.median(dim=-2, keepdim=True).values
    present = values.masked_fill(~mask[..., None], torch.nan)
    return present.nanmedian(dim=-2, keepdim=True).values.nan_to_num()
