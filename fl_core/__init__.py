"""Federated learning under attack: data, local training, attacks, fingerprint, aggregation.

Knows nothing of reinforcement learning. The currency between its rooms is one matrix: ``updates``, float32, shape
(N, P), one row a client, over the shared parameters only.
"""

from fl_core.config import FederationConfig, configure, federation_settings, settings_of
from fl_core.federation import Federation, Round
from fl_core.scenario import Scenario

__all__ = ["Federation", "FederationConfig", "Round", "Scenario", "configure", "federation_settings", "settings_of"]
