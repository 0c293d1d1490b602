"""Trust policies: the network, its training with Stable-Baselines3, and its deployment as an aggregation rule."""

from agents.deployed import PolicyFileError, TrustAggregator, load_policy, save_policy
from agents.trust_net import TrustNet

__all__ = ["PolicyFileError", "TrustAggregator", "TrustNet", "load_policy", "save_policy"]
