"""Federated training as a Gymnasium environment; importing registers the ids."""

from optigrad_env.env import OptiGradEnv
from optigrad_env.masked import MaskedOptiGradEnv
from optigrad_env.registration import register_environments
from optigrad_env.scenarios import TRAIN_ATTACKS, ScenarioDistribution, held_out_attacks
from optigrad_env.vector import OptiGradVectorEnv

__all__ = [
    "TRAIN_ATTACKS",
    "MaskedOptiGradEnv",
    "OptiGradEnv",
    "OptiGradVectorEnv",
    "ScenarioDistribution",
    "held_out_attacks",
]

register_environments()
