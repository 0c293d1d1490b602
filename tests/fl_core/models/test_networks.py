import pytest
import torch
from torch import nn

from fl_core.models import make_network, network_names
from fl_core.models.networks import small_cnn


def count(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


def test_small_cnn_has_1922_parameters_48_of_them_batchnorms_for_8x8_grey_images():
    network = make_network("small_cnn", (1, 8, 8), 10)
    assert count(network.parameters()) == 1922
    batchnorms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(count(module.parameters()) for module in batchnorms) == 48


@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 8, 10), (3, 8, 2), (3, 32, 100), (1, 28, 10)])
@pytest.mark.parametrize("hidden", [None, 7])
def test_small_cnn_has_one_output_a_class(channels, size, classes, hidden):
    network = small_cnn((channels, size, size), classes, hidden=hidden)
    assert network(torch.zeros(2, channels, size, size)).shape == (2, classes)


def test_weights_are_drawn_from_the_seed_alone_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    first, again, other = (make_network("small_cnn", (1, 8, 8), 10, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c) == bool((a == a.flatten()[0]).all())  # only BatchNorm's constants are the same


def test_too_small_images_are_refused_with_their_size():
    with pytest.raises(ValueError, match="halves the image 2 times: 3x8 is too small"):
        make_network("small_cnn", (1, 3, 8), 10)


def test_an_unknown_network_lists_the_names():
    with pytest.raises(ValueError, match=f"unknown network 'resnet'; there are: {', '.join(network_names())}"):
        make_network("resnet", (1, 8, 8), 10)
