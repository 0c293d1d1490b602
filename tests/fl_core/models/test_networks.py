import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_core.data.vision import import_torchvision
from fl_core.models import ParameterLayout, make_network, network_names
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


ALL = ["lenet", "mlp", "resnet18", "small_cnn"]


def options_for(name: str, norm: str) -> dict:
    if name == "resnet18" and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed (the [vision] extra)")
    return {"norm": norm}


def kinds(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(module, kind) for module in network.modules())


def test_every_network_is_tested_here():
    assert network_names() == ALL


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", ALL)
def test_every_network_has_one_output_a_class_and_the_norm_that_was_asked_for(name, norm, channels):
    network = make_network(name, (channels, 16, 16), 7, **options_for(name, norm))
    assert network(torch.zeros(2, channels, 16, 16)).shape == (2, 7)
    assert (kinds(network, _BatchNorm) > 0) == (norm == "batch")
    assert (kinds(network, nn.GroupNorm) > 0) == (norm == "group")


@pytest.mark.parametrize("name", ALL)
def test_every_network_learns_a_batch_with_every_weight_taking_part(name):
    network = make_network(name, (1, 16, 16), 3, **options_for(name, "batch"))
    images = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    nn.functional.cross_entropy(network(images), torch.arange(6) % 3).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(p.grad.abs().sum() > 0 for name, p in network.named_parameters() if name.endswith("weight"))


@pytest.mark.parametrize(
    ("name", "shape", "classes", "options", "expected"),
    [
        # Layer by layer: 1·5·5·6+6, 6·5·5·16+16, 400·120+120, 120·84+84, 84·10+10; a 28x28 image padded to 32x32.
        ("lenet", (1, 28, 28), 10, {"norm": "none"}, 156 + 2416 + 48_120 + 10_164 + 850),
        ("lenet", (1, 28, 28), 10, {"norm": "none"}, 61_706),
        ("lenet", (1, 28, 28), 10, {"norm": "batch"}, 61_706 + 2 * (6 + 16)),
        ("lenet", (3, 32, 32), 10, {"norm": "none"}, 456 + 2416 + 576 * 120 + 120 + 10_164 + 850),
        # McMahan et al. 2017, section 3: "2NN ... (199,210 total parameters)".
        ("mlp", (1, 28, 28), 10, {"norm": "none"}, 199_210),
        ("mlp", (1, 28, 28), 10, {"norm": "group"}, 199_210 + 2 * 400),
        ("mlp", (3, 4, 4), 5, {"norm": "none", "hidden": ()}, 48 * 5 + 5),
        # ResNet-18 for CIFAR-10 (github.com/kuangliu/pytorch-cifar), and torchvision's for ImageNet.
        ("resnet18", (3, 32, 32), 10, {"norm": "batch"}, 11_173_962),
        ("resnet18", (3, 64, 64), 10, {"norm": "group"}, 11_173_962),
        ("resnet18", (1, 32, 32), 10, {"norm": "batch"}, 11_173_962 - 2 * 64 * 9),
        ("resnet18", (3, 224, 224), 1000, {"norm": "batch"}, 11_689_512),
        ("resnet18", (3, 32, 32), 10, {"norm": "none"}, 11_173_962 - 9600),
    ],
)
def test_parameter_counts_are_the_published_ones(name, shape, classes, options, expected):
    options_for(name, "none")
    assert count(make_network(name, shape, classes, **options).parameters()) == expected


@pytest.mark.parametrize("shape", [(1, 15, 16), (1, 16, 15), (3, 8, 8)])
def test_lenet_refuses_images_below_16_pixels_and_takes_16(shape):
    with pytest.raises(ValueError, match=f"lenet needs images of at least 16x16, got {shape[1]}x{shape[2]}"):
        make_network("lenet", shape, 10)
    assert make_network("lenet", (1, 16, 17), 10)(torch.zeros(1, 1, 16, 17)).shape == (1, 10)


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_option_or_norm_lists_what_there_is(name):
    options_for(name, "batch")
    with pytest.raises(ValueError, match=f"unknown option of network '{name}' 'depth'; there are: .*norm"):
        make_network(name, (1, 16, 16), 10, depth=3)
    with pytest.raises(ValueError, match="unknown norm 'layer'; there are: batch, group, none"):
        make_network(name, (1, 16, 16), 10, norm="layer")


@pytest.mark.parametrize("width", [1, 3, 6, 8, 12, 16, 84, 200, 11])
def test_groupnorm_has_the_most_groups_up_to_8_that_divide_the_channels(width):
    network = make_network("small_cnn", (1, 8, 8), 10, channels=(width,), norm="group")
    (norm,) = (module for module in network.modules() if isinstance(module, nn.GroupNorm))
    assert norm.num_groups == {1: 1, 3: 3, 6: 6, 8: 8, 12: 6, 16: 8, 84: 7, 200: 8, 11: 1}[width]


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", ALL)
def test_under_fedbn_the_batchnorms_are_local_and_nothing_else_is(name, norm):
    network = make_network(name, (1, 16, 16), 5, **options_for(name, norm))
    layout = ParameterLayout(network, local_batchnorm=True)
    channels = sum(m.num_features for m in network.modules() if isinstance(m, _BatchNorm))
    assert layout.num_local == 4 * channels  # weight, bias, mean, variance
    assert (layout.num_local > 0) == (norm == "batch")
    assert layout.num_shared == count(network.parameters()) - 2 * channels
    by_module = {name for name, module in network.named_modules() if isinstance(module, _BatchNorm)}
    assert {entry.name.rpartition(".")[0] for entry in layout.local} == by_module


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict]:
    """A state dict as torchvision's own ResNet-18 has it, with random weights."""
    options_for("resnet18", "batch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        state = import_torchvision().models.resnet18().state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, path)
    return path, state


@pytest.mark.parametrize(
    ("shape", "classes", "others"),
    [
        ((3, 224, 224), 1000, set()),
        ((3, 224, 224), 10, {"fc.weight", "fc.bias"}),
        ((3, 32, 32), 10, {"fc.weight", "fc.bias", "conv1.weight"}),
        ((1, 224, 224), 1000, {"conv1.weight"}),
    ],
)
@pytest.mark.parametrize("kind", [str, Path])
def test_weights_of_a_file_are_copied_where_they_fit_and_the_rest_stays_random(published, shape, classes, others, kind):
    path, state = published
    network = make_network("resnet18", shape, classes, seed=2, weights=kind(path)).state_dict()
    random = make_network("resnet18", shape, classes, seed=2).state_dict()
    assert network.keys() == state.keys()
    for name, value in network.items():
        assert torch.equal(value, random[name] if name in others else state[name]), name


def test_weights_that_are_none_are_refused_by_the_files_name(tmp_path):
    options_for("resnet18", "batch")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04 and no more")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other")
    for name, message in (
        ("missing", "cannot be read"),
        ("empty", "is no file of torch.save"),
        ("zip", "is no file of torch.save"),
        ("other", "none of its 1 tensors fits ResNet-18"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            make_network("resnet18", (3, 32, 32), 10, weights=tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
