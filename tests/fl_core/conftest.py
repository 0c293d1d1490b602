from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fl_core import Federation, Scenario, configure


@pytest.fixture
def federation() -> Callable[..., Federation]:
    """Builds a federation from flat settings and begins an episode: ``federation(scenario, entropy, **settings)``."""

    def build(scenario: Scenario | None = None, entropy: int = 0, **settings) -> Federation:
        built = Federation(configure(**settings))
        built.reset(scenario or Scenario(), entropy)
        return built

    return build


@pytest.fixture
def normal() -> Callable[..., Tensor]:
    """Standard normal numbers of a shape: ``normal(3, 4, seed=1, dtype=torch.float64)``."""

    def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)

    return draw
