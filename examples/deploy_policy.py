"""Use a trained policy as the aggregation rule of a federation of your own.

    python examples/deploy_policy.py runs/optigradtrust

The federation here is the simulated one; in yours, replace the two marked lines by what your server has received and
by how it sends its model on.
"""

import sys

import torch

from agents import TrustAggregator, load_policy
from fl_core import Federation, FederationConfig, Scenario


def main(run_directory: str) -> None:
    """Twenty rounds under an attack that the policy never saw."""
    rule = TrustAggregator(load_policy(run_directory))
    federation = Federation(FederationConfig(num_clients=25, split_seed=7))
    federation.reset(Scenario("ipm", malicious_fraction=0.3, alpha=0.5), entropy=7)
    for _ in range(20):
        view = federation.local_round().view  # yours: ServerView(updates, global_model, reference, ...)
        aggregate = rule(view)
        federation.apply(aggregate.update)  # yours: global_model += aggregate.update
    present = torch.zeros(1, federation.layout.num_shared)
    print(f"test accuracy after 20 rounds: {federation.evaluate(present, 'test').accuracy.item():.3f}")
    print("weights:", " ".join(f"{weight:.3f}" for weight in aggregate.weights.tolist()))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/optigradtrust")
