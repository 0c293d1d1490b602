"""Networks, and the mapping between their tensors and flat vectors."""

from fl_core.models.networks import make_network, network_names, register_network
from fl_core.models.parameters import ParameterLayout, layers_in_order

__all__ = ["ParameterLayout", "layers_in_order", "make_network", "network_names", "register_network"]
