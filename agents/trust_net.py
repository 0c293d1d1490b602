"""The attention network that turns fingerprints into trust. Plain PyTorch: what is deployed needs nothing else."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Width of a robust z-score's denominator at which it stops magnifying: differences below it are noise.
_SPREAD_FLOOR = 0.05
_Z_LIMIT = 5.0


@dataclass(frozen=True)
class Architecture:
    """Sizes of a ``TrustNet``.

    Attributes:
        width: Width of a token.
        depth: Number of attention blocks.
        heads: Attention heads; must divide the width.
    """

    width: int = 64
    depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise ValueError(f"width, depth and heads must be positive and heads divide width, got {self}")


class TrustNet(nn.Module):
    """Self-attention over clients: (..., N, 6) observations to (..., N) trust, for any N.

    Each client is a token: its six features, and the same six as robust z-scores within the round (median and MAD over
    the clients). Pre-norm attention blocks, one score a client, a pooled value head for training. No positional
    encoding: permuting the clients permutes their trust. No dropout.

    Args:
        architecture: Sizes.
        features: Number of features of a client.
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
        self.score_head = nn.Linear(width, 1)
        self.value_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, fingerprint: Tensor) -> Tensor:
        """Trust in (0, 1) of every client: (..., N, 6) to (..., N).

        Raises:
            ValueError: The last dimension is not the number of features.
        """
        return torch.sigmoid(self.score_and_value(fingerprint)[0])

    def score_and_value(self, fingerprint: Tensor) -> tuple[Tensor, Tensor]:
        """The pre-sigmoid score of every client (..., N), and the state's value (...,)."""
        if fingerprint.shape[-1] != self.features:
            raise ValueError(f"expected {self.features} features in the last dimension, got {tuple(fingerprint.shape)}")
        tokens = self.embed(torch.cat([fingerprint, _robust_z_scores(fingerprint)], dim=-1))
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        # tanh keeps the score inside the action box without a dead zone at its edges.
        limit = 5.0
        score = limit * torch.tanh(self.score_head(tokens).squeeze(-1) / limit)
        return score, self.value_head(tokens.mean(dim=-2)).squeeze(-1)


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

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part in self.project_in(self.attention_norm(tokens)).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        tokens = tokens + self.project_out(attended.transpose(-3, -2).flatten(-2))
        residual: Tensor = self.feed_forward(tokens)
        return tokens + residual


def _robust_z_scores(fingerprint: Tensor) -> Tensor:
    """(x − median) / (1.4826 · MAD) over the clients, cut at ±5: (..., N, F) to the same shape."""
    deviation = fingerprint - fingerprint.median(dim=-2, keepdim=True).values
    spread = 1.4826 * deviation.abs().median(dim=-2, keepdim=True).values
    return (deviation / (spread + _SPREAD_FLOOR)).clamp(-_Z_LIMIT, _Z_LIMIT)
