"""Federated training as a Gymnasium environment; importing registers the ids."""

import gymnasium

from optigrad_env.env import OptiGradEnv
from optigrad_env.scenarios import TRAIN_ATTACKS, ScenarioDistribution, held_out_attacks

__all__ = ["TRAIN_ATTACKS", "OptiGradEnv", "ScenarioDistribution", "held_out_attacks"]

gymnasium.register("OptiGrad/Digits-v0", entry_point="optigrad_env.env:OptiGradEnv", kwargs={"dataset": "digits"})
