import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fl_core import Federation, configure
from fl_core.models import ParameterLayout, make_network, networks
from fl_core.registry import Registry


def network() -> nn.Sequential:
    return make_network("small_cnn", (1, 8, 8), 10)


@settings(max_examples=30)
@given(st.integers(1, 8), st.booleans(), st.integers(0, 2**31))
def test_unpack_and_pack_are_each_others_inverse(models, local_batchnorm, seed):
    layout = ParameterLayout(network(), local_batchnorm=local_batchnorm)
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(models, layout.num_shared, generator=generator)
    local = torch.randn(models, layout.num_local, generator=generator)
    tensors = layout.unpack(shared, local)
    again = layout.pack(tensors)
    assert torch.equal(again[0], shared)
    assert torch.equal(again[1], local)
    assert sum(tensor[0].numel() for tensor in tensors.values()) == layout.num_shared + layout.num_local


@settings(max_examples=15)
@given(st.booleans(), st.integers(0, 1000))
def test_initial_vectors_load_back_into_an_equal_network(local_batchnorm, seed):
    source = make_network("small_cnn", (1, 8, 8), 10, seed)
    layout = ParameterLayout(source, local_batchnorm=local_batchnorm)
    shared, local = layout.initial(source)
    target = make_network("small_cnn", (1, 8, 8), 10, seed + 1)
    target.load_state_dict({k: v[0] for k, v in layout.unpack(shared[None], local[None]).items()}, strict=False)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(source.eval()(x), target.eval()(x))


def test_fedbn_keeps_batchnorms_affine_and_statistics_local_and_shares_everything_else():
    layout = ParameterLayout(network(), local_batchnorm=True)
    batchnorms = {name for name, module in network().named_modules() if isinstance(module, nn.BatchNorm2d)}
    fields = ("weight", "bias", "running_mean", "running_var")
    assert {entry.name for entry in layout.local} == {f"{name}.{field}" for name in batchnorms for field in fields}
    assert {entry.name for entry in layout.shared} == {
        name for name, _ in network().named_parameters() if name.rsplit(".", 1)[0] not in batchnorms
    }
    assert layout.num_shared == 1922 - 48
    assert layout.num_local == 2 * 48


def test_fedavg_shares_everything_floating():
    layout = ParameterLayout(network(), local_batchnorm=False)
    floating = {name for name, value in network().state_dict().items() if value.is_floating_point()}
    assert {entry.name for entry in layout.shared} == floating
    assert layout.local == ()
    assert layout.num_shared == 1922 + 48
    assert layout.initial(network())[1].shape == (0,)


def test_batchnorm_is_recognised_by_its_class_wherever_it_stands():
    odd = nn.ModuleDict({"stem": nn.Sequential(nn.Conv1d(1, 2, 3), nn.BatchNorm1d(2)), "norm": nn.LayerNorm(4)})
    layout = ParameterLayout(odd, local_batchnorm=True)
    assert {entry.name.rsplit(".", 1)[0] for entry in layout.local} == {"stem.1"}
    assert {entry.name.rsplit(".", 1)[0] for entry in layout.shared} == {"stem.0", "norm"}


@pytest.mark.parametrize("local_batchnorm", [True, False])
def test_trainable_entries_are_the_networks_parameters(local_batchnorm):
    layout = ParameterLayout(network(), local_batchnorm=local_batchnorm)
    assert {entry.name for entry in layout.entries if entry.trainable} == {
        name for name, _ in network().named_parameters()
    }


def test_a_network_that_engines_would_train_otherwise_than_pytorch_is_refused_wherever_it_is_used(monkeypatch):
    def frozen(image_shape, num_classes):
        made = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
        made[1].requires_grad_(False)
        return made

    monkeypatch.setattr(networks, "_NETWORKS", Registry("network"))
    networks._NETWORKS.register("frozen")(frozen)
    with pytest.raises(ValueError, match=r"2 parameters of the network are frozen, the first is 1\.weight"):
        Federation(configure(network="frozen"))
    tied = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    tied[3].weight = tied[1].weight
    with pytest.raises(ValueError, match=r"1\.weight and 3\.weight of the network are one tensor"):
        ParameterLayout(tied, local_batchnorm=True)


def test_a_layer_that_is_used_twice_is_one_entry():
    layer = nn.Linear(64, 64)
    layout = ParameterLayout(nn.Sequential(nn.Flatten(), layer, nn.ReLU(), layer), local_batchnorm=True)
    assert [entry.name for entry in layout.entries] == ["1.weight", "1.bias"]
