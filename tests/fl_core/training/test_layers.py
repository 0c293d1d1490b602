"""Which sequences of layers the stacked engine runs, as the sequential one does, and which it leaves to that one."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import spectral_norm

from fl_core.models import ParameterLayout
from fl_core.models.networks import small_cnn
from fl_core.training import make_engine, make_objective, native

from .cases import CLASSES, assert_close, make_case

RELU, POOL, DENSE, NORM = nn.ReLU(), nn.MaxPool2d(2), nn.Linear(64, 64), nn.BatchNorm2d(2)


class Residual(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + x.relu()


def around(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * 8 * 8, CLASSES))


@pytest.mark.parametrize(
    ("network", "culprit"),
    [
        (Residual(), "Residual"),
        (around(nn.Conv2d(1, 2, 3, padding=1), nn.GELU()), "GELU"),
        (around(nn.Conv2d(1, 2, 3, padding=1), nn.Sequential(nn.ReLU(), Residual())), "Residual at '1.1'"),
        (around(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1, groups=2)), "Conv2d at '1'"),
    ],
    ids=["no sequence", "layer", "nested layer", "groups"],
)
def test_the_stacked_engine_refuses_other_networks_and_names_what_it_knows(network, culprit):
    with pytest.raises(ValueError, match=f"got {culprit}") as error:
        make_engine("stacked", network, ParameterLayout(network, local_batchnorm=True))
    known = ("Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d", "Flatten", "Linear", "engine='sequential'")
    assert all(name in str(error.value) for name in known)


@pytest.mark.parametrize(
    "network",
    [
        around(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular")),
        around(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2, affine=False)),
        around(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2, track_running_stats=False)),
        around(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2, momentum=None)),
        nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(2), nn.Flatten(), nn.Linear(128, CLASSES)),
    ],
    ids=["padding mode", "no affine", "no running statistics", "cumulative average", "flatten from axis 2"],
)
def test_an_option_of_a_layer_is_either_refused_or_done_as_the_sequential_engine_does_it(network):
    case = make_case(3, network=network)
    try:
        case.engine("stacked")
    except ValueError as error:
        assert "stacked engine" in str(error)
        return
    assert_close(case.train("stacked", "fedbn"), case.train("sequential", "fedbn"), atol=1e-10)
    shared, local = case.models()
    torch.testing.assert_close(
        case.engine("stacked").logits(shared, local, case.held_out),
        case.engine("sequential").logits(shared, local, case.held_out),
    )


class Scaled(nn.Sequential):
    """A sequence that does more than its layers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 10


def hooked(network: nn.Sequential) -> nn.Sequential:
    network[-1].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    return network


def replaced(network: nn.Sequential) -> nn.Sequential:
    network[0].forward = torch.flatten
    return network


CONV = nn.Conv2d(1, 2, 3, padding=1)
TAIL = (nn.Flatten(), nn.Linear(64, CLASSES))
SMALL = small_cnn((1, 8, 8), CLASSES)


@pytest.mark.parametrize(
    ("network", "found"),
    [
        (Scaled(*TAIL), "Scaled is an nn.Sequential with a forward pass of its own"),
        (Scaled(*SMALL), "Scaled is an nn.Sequential with a forward pass of its own"),
        (around(CONV, Scaled(RELU)), "Scaled is an nn.Sequential with a forward pass of its own"),
        (hooked(nn.Sequential(*copy.deepcopy(TAIL))), "layer '1' of the network, a Linear, has hooks"),
        (hooked(copy.deepcopy(SMALL)), "layer '[^']*' of the network, a Linear, has hooks"),
        (replaced(around(copy.deepcopy(CONV))), "layer '0' of the network, a Conv2d, has .* a replaced forward pass"),
        (nn.Sequential(nn.Flatten(), spectral_norm(nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, CLASSES)), "has hooks"),
        (nn.Sequential(CONV, nn.Linear(8, 4), nn.Flatten(), nn.Linear(64, CLASSES)), "got Linear at '1'"),
        (nn.Sequential(nn.Flatten(), nn.BatchNorm2d(2), nn.Linear(64, CLASSES)), "got BatchNorm2d at '1'"),
        (nn.Sequential(CONV, nn.ReLU()), "has no Flatten"),
    ],
)
def test_what_is_more_than_its_layers_is_left_to_the_sequential_engine(network, found):
    layout = ParameterLayout(network, local_batchnorm=True)
    with pytest.raises(ValueError, match=found):
        make_engine("stacked", network, layout)
    for name in ("native", "linear"):
        with pytest.raises(ValueError):
            make_engine(name, network, layout)
    assert make_engine("auto", network, layout).name == "sequential"


def test_a_batchnorm_that_keeps_its_statistics_is_run_by_every_engine():
    network = copy.deepcopy(SMALL)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0
    case = make_case(3, network=network)
    expected = case.train("sequential", "fedbn")
    assert_close(case.train("stacked", "fedbn"), expected, atol=1e-10)
    if native.is_built():
        assert case.engine("auto").name == "native"


def test_batch_statistics_of_large_maps_keep_their_digits():
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 96**2, 2))
    layout = ParameterLayout(network, local_batchnorm=True)
    shared, local = layout.initial(network)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 1, 16, 1, 96, 96, generator=generator) + 3
    labels = torch.randint(0, 2, (1, 1, 16), generator=generator)
    single, double = (
        make_engine("stacked", network, layout).train(
            *(shared.to(dtype), local[None].to(dtype), images.to(dtype), labels),
            objective=make_objective("fedbn"),
            learning_rate=0.1,
        )
        for dtype in (torch.float32, torch.float64)
    )
    variance = layout.local[-1].size
    torch.testing.assert_close(single[1][:, -variance:].double(), double[1][:, -variance:], rtol=2e-6, atol=0)


def test_an_engine_that_has_evaluated_in_inference_mode_still_trains():
    case = make_case(2)
    engine = make_engine("sequential", case.network.float(), case.layout)
    shared, local = case.models()
    with torch.inference_mode():
        engine.logits(shared.double(), local.double(), case.held_out.double())
    engine.train(
        *(case.shared, case.local[:2], case.images[:2], case.labels[:2]),
        objective=make_objective("fedbn"),
        learning_rate=0.1,
    )


@pytest.mark.parametrize(
    ("network", "twice"),
    [
        (nn.Sequential(nn.Flatten(), DENSE, RELU, DENSE, nn.Linear(64, CLASSES)), "'1' and '3'.*Linear"),
        (around(nn.Conv2d(1, 2, 3, padding=1), NORM, nn.Sequential(RELU, NORM)), r"'1' and '2\.1'.*BatchNorm2d"),
    ],
)
def test_a_layer_with_parameters_that_is_used_twice_is_left_to_the_sequential_engine(network, twice):
    layout = ParameterLayout(network, local_batchnorm=True)
    with pytest.raises(ValueError, match=f"{twice}.*engine='sequential'"):
        make_engine("stacked", network, layout)
    assert make_engine("auto", network, layout).name == "sequential"


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 6), RELU, nn.Linear(6, 6), RELU, nn.Linear(6, CLASSES)),
        nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), RELU, POOL),
            *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), RELU, POOL),
            *(nn.Flatten(), nn.Linear(32, CLASSES)),
        ),
        nn.Sequential(nn.Flatten(), nn.Flatten(), nn.Linear(64, CLASSES)),
    ],
    ids=["dense", "small_cnn", "flatten"],
)
def test_a_layer_without_parameters_that_is_used_twice_is_run_twice_by_every_engine(network):
    case = make_case(13, network=network)
    assert_close(case.train("stacked"), case.train("sequential"), atol=1e-10)
    shared, local = case.models()
    one, other = (case.engine(n).logits(shared, local, case.held_out) for n in ("stacked", "sequential"))
    torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
    case = make_case(3, network=copy.deepcopy(network).float(), steps=2, dtype=torch.float32)
    assert_close(case.train("auto"), case.train("sequential"), atol=1e-5)


@pytest.mark.parametrize(
    "network",
    [
        around(nn.Conv2d(1, 2, 3, padding="same", bias=True), nn.BatchNorm2d(2, eps=0.1, momentum=0.3)),
        around(nn.Conv2d(1, 2, 3, padding=2, dilation=2), nn.ReLU(), nn.BatchNorm2d(2)),
        nn.Sequential(
            nn.Conv2d(1, 3, 3, stride=2), nn.MaxPool2d(2, stride=1), nn.Flatten(), nn.Linear(12, 4, bias=False)
        ),
        nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4)),
        nn.Sequential(
            nn.BatchNorm2d(1), nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2)), nn.Flatten(), nn.Linear(18, 4)
        ),
    ],
    ids=["bias, eps, momentum", "dilation, late batchnorm", "stride", "dense", "batchnorm first, nested"],
)
def test_other_sequences_of_known_layers_are_equal_too(network):
    case = make_case(13, network=network)
    assert_close(case.train("stacked"), case.train("sequential"), atol=1e-10)
    shared, local = case.models()
    for method in ("logits", "reestimate"):
        one, other = (getattr(case.engine(n), method)(shared, local, case.held_out) for n in ("stacked", "sequential"))
        torch.testing.assert_close(one, other, atol=1e-10, rtol=0)
