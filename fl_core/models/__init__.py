"""Networks, and the mapping between their tensors and flat vectors."""

from fl_core.models.networks import make_network, network_names, register_network
from fl_core.models.parameters import ParameterLayout

__all__ = ["ParameterLayout", "make_network", "network_names", "register_network"]
