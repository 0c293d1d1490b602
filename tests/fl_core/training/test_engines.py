"""Engines differ in speed only: stacked against sequential, and all against SGD written out by hand.

In double precision, where the native engine hands over to the stacked one; test_native.py has it in its own.
"""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_core.models import ParameterLayout
from fl_core.training import engine_names, make_engine, make_objective, native, objective_names

from .cases import CLASSES, Case, assert_close, make_case

# The linear engine runs none of the networks here; it has test_linear.py. The compiled one would compile in every test;
# it has test_compiled.py.
ENGINES = [
    name for name in engine_names() if name not in ("linear", "compiled") and (name != "native" or native.is_built())
]


def by_hand(case: Case, client: int, mu: float, learning_rate: float = 0.1) -> tuple[Tensor, Tensor]:
    """SGD on cross-entropy + mu/2 ‖w − w_global‖², the proximal term in the loss and through autograd."""
    network = copy.deepcopy(case.network).train()
    state = case.layout.unpack(case.shared[None], case.local[client : client + 1])
    network.load_state_dict({name: value[0] for name, value in state.items()}, strict=False)
    kept_local = {
        f"{name}.{field}"
        for name, module in network.named_modules()
        if isinstance(module, nn.BatchNorm2d) and case.layout.local_batchnorm
        for field in ("weight", "bias")
    }
    anchors = {name: p.detach().clone() for name, p in network.named_parameters() if name not in kept_local}
    for x, y in zip(case.images[client], case.labels[client], strict=True):
        network.zero_grad()
        distance = sum((p - anchors[name]).square().sum() for name, p in network.named_parameters() if name in anchors)
        (F.cross_entropy(network(x), y) + mu / 2 * distance).backward()
        with torch.no_grad():
            for p in network.parameters():
                p.sub_(learning_rate * p.grad)
    shared, local = case.layout.initial(network)
    return shared - case.shared, local


@pytest.mark.parametrize("objective", objective_names())
@pytest.mark.parametrize("clients", [1, 3, 12, 13, 25])
def test_a_stacked_round_equals_a_sequential_one_for_every_objective_and_any_number_of_clients(objective, clients):
    case = make_case(clients, local_batchnorm=make_objective(objective).local_batchnorm)
    assert_close(case.train("stacked", objective), case.train("sequential", objective), atol=1e-10)


@pytest.mark.parametrize("local_batchnorm", [True, False])
@pytest.mark.parametrize(("batch", "channels", "hidden"), [(2, 1, None), (5, 3, None), (16, 1, 5), (7, 3, 9)])
def test_a_stacked_round_equals_a_sequential_one_for_any_batch_image_and_head(batch, channels, hidden, local_batchnorm):
    case = make_case(4, batch=batch, channels=channels, hidden=hidden, local_batchnorm=local_batchnorm)
    objective = "fedbn_prox" if local_batchnorm else "fedprox"
    assert_close(case.train("stacked", objective), case.train("sequential", objective), atol=1e-10)


@pytest.mark.parametrize("objective", objective_names())
def test_engines_agree_in_float32_over_few_steps(objective):
    case = make_case(13, steps=3, dtype=torch.float32, local_batchnorm=make_objective(objective).local_batchnorm)
    expected = case.train("sequential", objective)
    for name in ENGINES:
        trained = case.train(name, objective)
        assert trained[0].dtype == torch.float32
        assert_close(trained, expected, atol=2e-5)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("objective", objective_names())
def test_the_update_is_that_of_sgd_on_cross_entropy_plus_the_proximal_term(name, objective):
    mu = 0.7
    made = make_objective(objective, mu)
    case = make_case(3, hidden=5, local_batchnorm=made.local_batchnorm)
    updates, local = case.train(name, objective, mu)
    for client in range(3):
        expected = by_hand(case, client, mu if objective in ("fedprox", "fedbn_prox") else 0.0)
        assert_close((updates[client], local[client]), expected, atol=1e-10)


@pytest.mark.parametrize("name", ENGINES)
def test_a_larger_mu_keeps_the_clients_nearer_to_the_global_model(name):
    case = make_case(3, steps=20)
    lengths = torch.stack([case.train(name, mu=mu)[0].norm(dim=1) for mu in (0.0, 0.3, 1.0, 5.0)])
    assert (lengths.diff(dim=0) < 0).all()


@pytest.mark.parametrize("name", ENGINES)
def test_training_lowers_the_loss_of_each_client_on_its_own_data(name):
    case = make_case(3, steps=1, batch=16)
    case.images, case.labels = case.images.repeat(1, 30, 1, 1, 1, 1), case.labels.repeat(1, 30, 1)
    updates, local = case.train(name, "fedbn")
    for client in range(3):
        x, y = case.images[client, 0], case.labels[client, 0]

        def loss(offset: Tensor, state: Tensor, x: Tensor = x, y: Tensor = y) -> float:
            return F.cross_entropy(case.engine(name).logits((case.shared + offset)[None], state[None], x)[0], y).item()

        assert loss(updates[client], local[client]) < 0.5 * loss(torch.zeros_like(case.shared), case.local[client])


@pytest.mark.parametrize("name", ENGINES)
def test_clients_do_not_touch_each_other(name):
    case = make_case(3)
    updates, local = case.train(name)
    case.images[1] += 1
    case.local[1] += 1
    again, local_again = case.train(name)
    torch.testing.assert_close(again[[0, 2]], updates[[0, 2]], atol=1e-12, rtol=0)
    torch.testing.assert_close(local_again[[0, 2]], local[[0, 2]], atol=1e-12, rtol=0)
    assert not torch.allclose(again[1], updates[1])


@pytest.mark.parametrize("local_batchnorm", [True, False])
@pytest.mark.parametrize("clients", [1, 3, 13, 25])
@pytest.mark.parametrize(("channels", "hidden"), [(1, None), (3, 5)])
def test_logits_and_reestimated_statistics_are_the_same_in_both_engines(clients, local_batchnorm, channels, hidden):
    case = make_case(clients, channels=channels, hidden=hidden, local_batchnorm=local_batchnorm)
    shared, local = case.models()
    stacked, sequential = case.engine("stacked"), case.engine("sequential")
    torch.testing.assert_close(
        stacked.logits(shared, local, case.held_out),
        sequential.logits(shared, local, case.held_out),
        atol=1e-10,
        rtol=0,
    )
    torch.testing.assert_close(
        stacked.reestimate(shared, local, case.held_out),
        sequential.reestimate(shared, local, case.held_out),
        atol=1e-10,
        rtol=0,
    )


@pytest.mark.parametrize("name", ENGINES)
def test_logits_of_a_piece_of_the_images_are_a_piece_of_the_logits(name):
    case = make_case(2)
    engine, models = case.engine(name), case.models()
    whole = engine.logits(*models, case.held_out)
    torch.testing.assert_close(engine.logits(*models, case.held_out[3:7]), whole[:, 3:7], atol=1e-12, rtol=0)
    order = torch.tensor([8, 1, 5])
    torch.testing.assert_close(engine.logits(*models, case.held_out[order]), whole[:, order], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_reestimated_statistics_are_mean_and_variance_of_what_enters_each_batchnorm(name):
    case = make_case(2)
    shared, local = case.models()
    tensors = case.layout.unpack(shared, case.engine(name).reestimate(shared, local, case.held_out))
    before = case.layout.unpack(shared, local)
    for m in range(2):
        maps = F.conv2d(case.held_out, tensors["0.weight"][m], padding=1)
        torch.testing.assert_close(tensors["1.running_mean"][m], maps.mean(dim=(0, 2, 3)))
        torch.testing.assert_close(tensors["1.running_var"][m], maps.transpose(0, 1).flatten(1).var(dim=1))
        for affine in ("1.weight", "1.bias", "5.weight", "5.bias"):
            assert torch.equal(tensors[affine][m], before[affine][m])


@pytest.mark.parametrize("name", ENGINES)
def test_engines_do_not_modify_what_they_are_given(name):
    case = make_case(3)
    given = [case.shared, case.local, case.images, case.labels, case.held_out, *case.network.state_dict().values()]
    before = [tensor.clone() for tensor in given]
    updates, local = case.train(name)
    engine = case.engine(name)
    engine.logits(*case.models(), case.held_out)
    engine.reestimate(*case.models(), case.held_out)
    for tensor in (updates, local):
        tensor.zero_()
    for tensor, copy_ in zip(given, before, strict=True):
        assert torch.equal(tensor, copy_)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_used_before_gives_what_a_fresh_one_gives(name):
    case = make_case(3)
    engine, models = case.engine(name), case.models()
    expected = engine.logits(*models, case.held_out)
    engine.reestimate(*models, case.held_out)
    engine.train(
        case.shared, case.local, case.images, case.labels, objective=make_objective("fedbn_prox"), learning_rate=0.1
    )
    assert torch.equal(engine.logits(*models, case.held_out), expected)
    assert torch.equal(engine.reestimate(*models, case.held_out), case.engine(name).reestimate(*models, case.held_out))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("models", [2, 13])
def test_the_gradient_flows_through_reestimated_statistics_into_the_shared_parameters(name, models):
    # The oracle gap is differentiated along this way: utility of w + Σ wᵢΔᵢ with re-estimated BatchNorm.
    case = make_case(models)
    shared, local = case.models()
    engine = case.engine(name)
    mix = torch.randn(models, 11, CLASSES, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def value(rows: Tensor) -> Tensor:
        return (engine.logits(rows, engine.reestimate(rows, local, case.held_out), case.held_out) * mix).sum()

    rows = shared.clone().requires_grad_()
    try:
        (gradient,) = torch.autograd.grad(value(rows), rows)
    except (ValueError, RuntimeError) as error:
        # The reference engine need not have this gradient; it must not have a wrong one.
        assert name == "sequential"
        assert "differentiable" in str(error)
        return
    for seed in range(4):
        direction = torch.randn(shared.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        step = 1e-6
        with torch.no_grad():
            slope = (value(shared + step * direction) - value(shared - step * direction)) / (2 * step)
        assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_a_shared_variance_that_an_attacker_pushed_below_zero_counts_as_zero(name):
    case = make_case(2, local_batchnorm=False)
    hostile, zero = case.shared.repeat(2, 1), case.shared.repeat(2, 1)
    case.layout.unpack(hostile, case.local)["1.running_var"].fill_(-3.0)
    case.layout.unpack(zero, case.local)["1.running_var"].fill_(0.0)
    engine = case.engine(name)
    assert engine.logits(hostile, case.local, case.held_out).isfinite().all()
    torch.testing.assert_close(
        engine.logits(hostile, case.local, case.held_out), engine.logits(zero, case.local, case.held_out)
    )


def test_an_unknown_engine_lists_the_names():
    case = make_case(1)
    with pytest.raises(
        ValueError, match="unknown engine 'warp'; there are: sequential, stacked, native, linear, compiled, auto"
    ):
        case.engine("warp")


def test_counters_of_a_network_begin_anew_for_every_client():
    """Without a momentum BatchNorm averages over the batches that its counter has counted."""
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )
    layout = ParameterLayout(network, local_batchnorm=False)
    engine = make_engine("sequential", network, layout)
    shared, local = layout.initial(network)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 2, 8, 1, 8, 8, generator=generator).expand(3, -1, -1, -1, -1, -1)
    labels = torch.arange(16).view(1, 2, 8).expand(3, -1, -1) % CLASSES
    arguments = {"objective": make_objective("fedavg"), "learning_rate": 0.1}
    updates, _ = engine.train(shared, local.repeat(3, 1), images, labels, **arguments)
    again, _ = engine.train(shared, local.repeat(3, 1), images, labels, **arguments)
    assert torch.equal(updates[0].expand(3, -1), updates)
    assert torch.equal(again, updates)
