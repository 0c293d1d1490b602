"""The reference engine: one client after the other, plain PyTorch, any network."""

import copy

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from fl_core.models.parameters import ParameterLayout
from fl_core.training.objective import Objective


class SequentialEngine:
    """Trains the clients in a Python loop. Slow, short, and what the other engines are tested against."""

    name = "sequential"

    def __init__(self, network: nn.Module, layout: ParameterLayout) -> None:
        self._network = copy.deepcopy(network)
        self._layout = layout

    @torch.enable_grad()
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
        trained = [
            self._train_client(shared, client_local, x, y, objective, learning_rate)
            for client_local, x, y in zip(local, images, labels, strict=True)
        ]
        return torch.stack([row for row, _ in trained]) - shared, torch.stack([row for _, row in trained])

    def _train_client(
        self, shared: Tensor, local: Tensor, images: Tensor, labels: Tensor, objective: Objective, learning_rate: float
    ) -> tuple[Tensor, Tensor]:
        network = self._network.to(shared.dtype).train()
        start = {name: value[0] for name, value in self._layout.unpack(shared[None], local[None]).items()}
        network.load_state_dict(start, strict=False)
        anchored = [e.name for e in self._layout.shared if e.trainable]
        optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate)
        for x, y in zip(images, labels, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            for name in anchored:
                # The gradient of the proximal term in closed form, mu·(w − w_global), rather than through autograd.
                weight = network.get_parameter(name)
                assert weight.grad is not None
                weight.grad.add_(weight.detach() - start[name], alpha=objective.mu)
            optimizer.step()
        return self._layout.initial(network)

    def logits(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.logits``."""
        network = self._network.to(shared.dtype).eval()
        models = self._layout.unpack(shared, local)
        for name, module in network.named_modules():
            if isinstance(module, _BatchNorm) and module.track_running_stats:
                # A hostile update may have pushed a shared running variance below zero.
                models[f"{name}.running_var"] = models[f"{name}.running_var"].clamp_min(0)
        rows = [{name: value[m] for name, value in models.items()} for m in range(len(shared))]
        return torch.stack([functional_call(network, row, (images,)) for row in rows])

    def reestimate(self, shared: Tensor, local: Tensor, images: Tensor) -> Tensor:
        """See ``Engine.reestimate``; raises ValueError where a gradient is wanted, which it would get wrong."""
        if torch.is_grad_enabled() and (shared.requires_grad or local.requires_grad):
            raise ValueError("the sequential engine's statistics are not differentiable; use engine='stacked'")
        network = self._network.to(shared.dtype).train()
        batchnorms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        momenta = [module.momentum for module in batchnorms]
        models = self._layout.unpack(shared, local)
        rows = []
        for m in range(len(shared)):
            # functional_call hands the very tensors of this dict to the modules, which write the statistics into them.
            row = {name: value[m].clone() for name, value in models.items()}
            for module in batchnorms:
                module.momentum = 1.0
            functional_call(network, row, (images,))
            for module, momentum in zip(batchnorms, momenta, strict=True):
                module.momentum = momentum
            rows.append(self._layout.pack({name: value[None] for name, value in row.items()})[1][0])
        return torch.stack(rows)
