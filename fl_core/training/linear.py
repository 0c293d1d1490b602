"""The linear engine: one dense layer, its gradient written by hand, all clients in one batched matrix product."""

import torch
from torch import Tensor, nn

from fl_core.models.parameters import ParameterLayout, layers_in_order
from fl_core.training.objective import Objective


class LinearEngine:
    """Trains softmax regression, or least squares on the same features, of any number of clients at once.

    With outputs z = W x + b the gradient of a batch's mean loss is ``mean (∂ℓ/∂z) xᵀ``: no autograd. What is kept is
    the update δ = w − w_global itself, so that a proximal step is ``δ ← (1 − η·mu)·δ − η·gradient`` and the outputs of
    the global model on all batches are one product. There is no BatchNorm: FedBN is FedAvg, FedBN-Prox is FedProx.

    Raises:
        ValueError: The network is not ``nn.Sequential(Flatten, Linear)``.
    """

    name = "linear"

    def __init__(self, network: nn.Module, layout: ParameterLayout) -> None:
        layers = [layer for _, layer in layers_in_order(network)] if isinstance(network, nn.Sequential) else []
        if [type(layer) for layer in layers] != [nn.Flatten, nn.Linear]:
            raise ValueError(
                "the linear engine runs nn.Sequential(Flatten, Linear), which is network='mlp' with "
                f"network_options={{'hidden': []}}; got {type(network).__name__} of "
                f"{[type(layer).__name__ for layer in layers]}. Use engine='auto'."
            )
        flatten, dense = layers
        assert isinstance(flatten, nn.Flatten)
        assert isinstance(dense, nn.Linear)
        if flatten.start_dim != 1 or flatten.end_dim != -1:
            raise ValueError(f"the linear engine flattens from axis 1 to the last, got {flatten}")
        self._classes, self._features = dense.out_features, dense.in_features
        self._has_bias = dense.bias is not None

    @torch.no_grad()
    def train(
        self,
        shared: Tensor,
        local: Tensor,
        images: Tensor,
        labels: Tensor,
        *,
        objective: Objective,
        learning_rate: float,
    ) -> tuple[Tensor, Tensor]:
        """See ``Engine.train``."""
        clients, steps, batch = labels.shape
        x = images.flatten(3).to(shared.dtype)
        weight, bias = self._cut(shared[None])
        outputs = torch.addmm(bias[0], x.reshape(-1, self._features), weight[0].T).view(*labels.shape, -1)
        updates = shared.new_zeros(clients, len(shared))
        step_weight, step_bias = self._cut(updates)
        kept, rate = 1 - learning_rate * objective.mu, learning_rate / batch
        for k in range(steps):
            z = outputs[:, k]
            if k:  # the first step's clients are all at the global model
                z = torch.baddbmm(z, x[:, k], step_weight.transpose(1, 2)).add_(step_bias[:, None])
            slope = objective.slope(z, labels[:, k])
            step_weight.baddbmm_(slope.transpose(1, 2), x[:, k], beta=kept, alpha=-rate)
            if self._has_bias:
                step_bias.mul_(kept).sub_(slope.sum(dim=1), alpha=rate)
        return updates, local.clone()

    def logits(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.logits``: one matrix product for all models."""
        weight, bias = self._cut(shared)
        x = images.flatten(1).to(shared.dtype)
        outputs = torch.addmm(bias.flatten(), x, weight.flatten(0, 1).T)
        return outputs.view(len(x), len(shared), self._classes).transpose(0, 1)

    def reestimate(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.reestimate``: there is nothing to estimate."""
        return local

    def _cut(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Views of weight (M, C, D) and bias (M, C) in rows (M, P); a network without bias has one of zeros."""
        size = self._classes * self._features
        weight = rows[:, :size].unflatten(1, (self._classes, self._features))
        return weight, rows[:, size:] if self._has_bias else rows.new_zeros(len(rows), self._classes)
