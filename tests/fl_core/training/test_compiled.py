"""The compiled engine equals the sequential one; without a compiler it says so."""

import pytest
import torch
from torch import nn

from fl_core.models import ParameterLayout, make_network
from fl_core.training import compiled, make_engine, make_objective


class Residual(nn.Module):
    """A network that is no sequence, as ResNet-18 is none: a convolution around which the input goes too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.norm = nn.BatchNorm2d(1)
        self.dense = nn.Linear(64, 4)

    def forward(self, x):
        return self.dense((x + torch.relu(self.norm(self.conv(x)))).flatten(1))


def equal(network: nn.Module, side: int, normal, tolerance: float, channels: int = 1) -> None:
    layout = ParameterLayout(network, local_batchnorm=True)
    shared, local = (row.double() for row in layout.initial(network))
    images = normal(2, 2, 4, channels, side, side, dtype=torch.float64)
    labels = torch.arange(16).view(2, 2, 4) % 4
    one, other = (
        make_engine(name, network, layout).train(
            *(shared, local.repeat(2, 1), images, labels), objective=make_objective("fedbn_prox"), learning_rate=0.1
        )
        for name in ("sequential", "compiled")
    )
    for a, b in zip(one, other, strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(b, a, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_network_that_is_no_sequence_is_trained_as_by_the_sequential_engine(normal):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Residual()
    equal(network, 8, normal, 1e-10)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_resnet_18_is_trained_as_by_the_sequential_engine(normal):
    equal(make_network("resnet18", (3, 32, 32), 4), 32, normal, 1e-8, channels=3)


def test_auto_never_picks_it():
    network = Residual()
    assert make_engine("auto", network, ParameterLayout(network, local_batchnorm=True)).name == "sequential"


def test_without_a_compiler_it_says_what_to_do(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    network = Residual()
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler .* or use engine='sequential'"):
        make_engine("compiled", network, ParameterLayout(network, local_batchnorm=True))
    assert compiled.CompiledEngine.name == "compiled"
