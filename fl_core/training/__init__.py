"""Local training of all clients: objectives, and engines that are interchangeable and tested to be equal."""

from fl_core.training.engine import Engine, LocalTraining, engine_names, make_engine
from fl_core.training.linear import LinearEngine
from fl_core.training.objective import Objective, make_objective, objective_names

__all__ = [
    "Engine",
    "LinearEngine",
    "LocalTraining",
    "Objective",
    "engine_names",
    "make_engine",
    "make_objective",
    "objective_names",
]
