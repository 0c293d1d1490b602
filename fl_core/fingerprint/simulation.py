"""Simulated honest updates: what clients with skewed classes would send, made by the server from its own data."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_core.fingerprint.autoencoder import UpdateAutoencoder
from fl_core.training import Engine, LocalTraining, Objective

# Range of the Dirichlet concentration of a simulated client's classes, drawn log-uniformly: from one or two classes
# to nearly the mixture of the root data.
_SKEW = (0.1, 10.0)

# The autoencoder is trained along a run of simulated clients alone: so many rounds, so many clients in each. Their
# training is nearly all that an autoencoder costs.
SIMULATED_ROUNDS = 10
_CLIENTS = 9
_STEPS = 30


@dataclass(frozen=True, eq=False)
class HonestSimulator:
    """Runs the clients' own local objective on class-skewed bootstraps of the reference half.

    Attributes:
        engine: Training engine.
        images: (R, C, H, W), the reference half.
        labels: (R,) int64.
        training: The clients' local work.
        objective: The clients' objective.
    """

    engine: Engine
    images: Tensor
    labels: Tensor
    training: LocalTraining
    objective: Objective

    def __call__(self, shared: Tensor, local: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Simulated honest updates.

        Args:
            shared: (P,) global model.
            local: (L,) the server's own BatchNorm.
            count: M, number of simulated clients.
            generator: Source of the bootstraps.

        Returns:
            (M, P) float32.
        """
        picks = self._bootstraps(count, generator)
        updates, _ = self.engine.train(
            shared,
            local.expand(count, -1),
            self.images[picks],
            self.labels[picks],
            objective=self.objective,
            learning_rate=self.training.learning_rate,
        )
        return updates

    def split(self) -> tuple["HonestSimulator", "HonestSimulator"]:
        """Two simulators with two thirds and one third of the samples of each class, that share none.

        Raises:
            ValueError: There is only one sample.
        """
        if len(self.labels) < 2:
            raise ValueError("a simulator with one sample cannot be split in two")
        held = torch.zeros_like(self.labels, dtype=torch.bool)
        held[self.labels.argsort(stable=True)[1::3]] = True
        larger, smaller = (replace(self, images=self.images[part], labels=self.labels[part]) for part in (~held, held))
        return larger, smaller

    def _bootstraps(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, K, B) indices into the reference half."""
        # Drawn on the CPU: a generator belongs to a device, and equal seeds are to give equal bootstraps on any.
        classes, which = self.labels.cpu().unique(return_inverse=True)
        low, high = torch.tensor(_SKEW).log()
        alpha = (low + (high - low) * torch.rand(count, 1, generator=generator)).exp()
        # A Dirichlet draw is a normalised Gamma draw; torch's own samplers take no generator.
        gamma = torch._standard_gamma(alpha.expand(-1, len(classes)).contiguous(), generator=generator)
        per_sample = (gamma + 1e-6) / torch.bincount(which)
        shape = (count, self.training.steps, self.training.batch_size)
        picks = torch.multinomial(per_sample[:, which], shape[1] * shape[2], replacement=True, generator=generator)
        return picks.view(shape).to(self.labels.device)


def train_autoencoder(
    simulator: HonestSimulator,
    shared: Tensor,
    local: Tensor,
    generator: torch.Generator,
    rounds: int = SIMULATED_ROUNDS,
) -> UpdateAutoencoder:
    """Trains an autoencoder on the honest updates of a small simulated federation.

    The model moves by the mean of the simulated updates, so that updates of early and of later rounds are known. Each
    is taken in units of the norm of that mean, as received updates are in units of the reference's.

    Real clients train on samples that the server does not have. So the clients that calibrate train on samples that
    those that the autoencoder learns from do not have: otherwise their error was a third of real clients'.

    Args:
        simulator: Makes honest updates.
        shared: (P,) initial global model.
        local: (L,) initial BatchNorm.
        generator: Source of everything random.
        rounds: Length of the simulated run, nine clients in each round: what an autoencoder costs.
    """
    autoencoder = UpdateAutoencoder(len(shared), generator).to(shared.device)
    learning, calibrating = simulator.split()
    train, calibration = [], []
    for _ in range(rounds):
        learned_from = learning(shared, local, _CLIENTS - _CLIENTS // 3, generator)
        held = calibrating(shared, local, _CLIENTS // 3, generator)
        mean = torch.cat([learned_from, held]).mean(dim=0)
        train.append(autoencoder.sketch(learned_from, mean.norm()))
        calibration.append(autoencoder.sketch(held, mean.norm()))
        shared = shared + mean
    autoencoder.fit(torch.cat(train), _STEPS, generator)
    autoencoder.calibrate(torch.cat(calibration))
    return autoencoder
