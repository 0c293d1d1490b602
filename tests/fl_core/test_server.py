"""The server of a federation whose clients are somebody else's: here plain PyTorch modules."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fl_core.aggregation import Aggregate, make_rule
from fl_core.data import load_dataset
from fl_core.models import make_network
from fl_core.server import RootServer
from fl_core.training import LocalTraining, make_objective

DIGITS = load_dataset("digits")
ROOT = DIGITS.train[:60]
NAN = float("nan")


def a_network(seed: int = 0) -> nn.Sequential:
    return make_network("small_cnn", DIGITS.image_shape, DIGITS.num_classes, seed)


def a_server(**changes) -> RootServer:
    arguments = {"images": DIGITS.images(ROOT), "labels": DIGITS.labels[ROOT], "num_classes": 10}
    return RootServer(**{"network": a_network(), **arguments, **changes})


def trained(network: nn.Module, shard: torch.Tensor, generator: torch.Generator) -> None:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.15)
    for batch in shard[torch.randperm(len(shard), generator=generator)][:48].split(16):
        optimizer.zero_grad()
        F.cross_entropy(network(DIGITS.images(batch)), DIGITS.labels[batch]).backward()
        optimizer.step()


def normal(rows: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def test_what_one_client_has_learned_reaches_another_without_its_batchnorm():
    server, client, other = a_server(), a_network(1), a_network(2)
    server.broadcast(client)
    trained(client, DIGITS.train[100:200], torch.Generator().manual_seed(0))
    before = copy.deepcopy(other.state_dict())
    server.apply(make_rule("fedavg")(server.view([server.update_of(client)])))
    server.broadcast(other)
    for name, value in other.state_dict().items():
        if name.startswith(("1.", "5.")):  # the two BatchNorm layers of small_cnn
            assert torch.equal(value, before[name])
        else:
            torch.testing.assert_close(value, client.state_dict()[name], atol=1e-6, rtol=0)


def test_under_fedavg_batchnorm_is_sent_too():
    server, client = a_server(objective=make_objective("fedavg")), a_network(1)
    assert server.update_of(client).shape == (1970,)
    server.broadcast(client)
    assert all(
        torch.equal(value, client.state_dict()[name])
        for name, value in a_network().state_dict().items()
        if value.is_floating_point()
    )


def test_an_aggregate_in_float64_leaves_the_model_in_float32():
    server = a_server()
    for number in range(2):
        view = server.view(normal(3, server.layout.num_shared, number))
        server.apply(Aggregate(view.updates.double().mean(dim=0), None))
    assert server.global_model.dtype == torch.float32


def test_a_variance_that_an_aggregate_has_left_below_zero_is_written_as_zero():
    server, client = a_server(objective=make_objective("fedavg")), a_network(1)
    update = torch.zeros(1, server.layout.num_shared)
    server.layout.unpack(update, torch.zeros(1, server.layout.num_local))["1.running_var"].fill_(-2.0)
    server.view(update)
    server.apply(Aggregate(update[0], None))
    for write in (server.broadcast, server.write_to):
        write(client)
        assert (client.state_dict()["1.running_var"] == 0).all()
        assert client.eval()(DIGITS.images(ROOT)).isfinite().all()


def test_a_federation_of_plain_modules_learns_and_the_written_network_is_what_was_learned():
    server, generator = a_server(), torch.Generator().manual_seed(0)
    clients, shards = [a_network() for _ in range(5)], DIGITS.train[100:600].split(100)
    rule = make_rule("fltrust")
    for _ in range(12):
        messages = []
        for client, shard in zip(clients, shards, strict=True):
            server.broadcast(client)
            trained(client, shard, generator)
            messages.append(server.update_of(client))
        server.apply(rule(server.view(messages)))
    network = a_network(9)
    server.write_to(network)
    held = DIGITS.train[700:1000]
    with torch.no_grad():
        correct = network.eval()(DIGITS.images(held)).argmax(dim=1) == DIGITS.labels[held]
    assert correct.double().mean() > 0.8


def test_the_reference_points_where_plain_training_on_the_root_data_points():
    server, network = a_server(), a_network()
    reference = server.view(normal(3, 1874)).reference
    trained(network, ROOT, torch.Generator().manual_seed(0))
    assert F.cosine_similarity(reference, server.update_of(network), dim=0) > 0.5


def test_a_bad_message_costs_its_sender_the_weight_and_not_the_round():
    server = a_server()
    good = list(normal(4, 1874))
    view = server.view([*good, torch.full((1874,), NAN), torch.ones(3)])
    assert view.rejected.tolist() == [False] * 4 + [True, True]
    assert view.fingerprint.observation.isfinite().all()
    aggregate = make_rule("shapley")(view)
    assert aggregate.weights[4:].tolist() == [0, 0]
    server.apply(aggregate)
    assert server.global_model.isfinite().all()


@pytest.mark.parametrize(
    ("messages", "clients", "message"),
    [
        ([], None, "no client has sent a message"),
        (
            normal(3, 1874),
            [0, 1],
            r"clients must be 3 different whole numbers below 2\*\*63, one a message, got \[0, 1\];",
        ),
        (normal(3, 1874), [0, 1, 1], r"clients must be 3 different whole numbers.*, got \[0, 1, 1\]"),
        (normal(3, 1874), [0.2, 1.7, 2.9], r"clients must be 3 different whole numbers.*, got \[0\.2, 1\.7, 2\.9\]"),
        (normal(3, 1874), ["a", "b", "c"], "clients must be 3 different whole numbers.*other names.*a number each"),
        (normal(3, 1874), [2**63 + 5, 7, 9], "clients must be 3 different whole numbers below"),
    ],
)
def test_a_round_that_cannot_begin_leaves_the_server_as_it_was(messages, clients, message):
    server, other = a_server(), a_server()
    with pytest.raises(ValueError, match=message):
        server.view(messages, clients)
    given = normal(3, 1874)
    assert torch.equal(server.view(given).reference, other.view(given).reference)


def test_rules_that_remember_clients_know_them_when_others_take_part():
    server, rule = a_server(), make_rule("foolsgold")
    a, b, c, d, e = normal(5, 1874)
    first, second = server.view([a, b, c], [0, 1, 2]), server.view([d, c, e], [2, 3, 4])
    assert second.accepted_clients.tolist() == [2, 3, 4]
    rule(first)
    weights, alone = rule(second).weights, make_rule("foolsgold")(second).weights
    assert weights[0] < alone[0], "client 2 has sent c before, which client 3 sends now"


def test_rounds_are_counted_and_the_servers_batchnorm_goes_on_from_round_to_round():
    server = a_server()
    first = server.view(normal(3, 1874))
    server.apply(make_rule("root_only")(first))
    second = server.view(normal(3, 1874))
    assert (first.round, second.round) == (0, 1)
    assert not torch.equal(first.server_local, second.server_local)
    torch.testing.assert_close(second.global_model, first.global_model + first.reference)


def test_a_pickled_server_goes_on_bit_for_bit():
    server = a_server()
    server.apply(make_rule("shapley")(server.view(normal(4, 1874))))
    other = pickle.loads(pickle.dumps(server))
    for number in range(1, 3):
        one, same = (each.view(normal(4, 1874, seed=number)) for each in (server, other))
        assert torch.equal(one.fingerprint.raw, same.fingerprint.raw)
        for each, view in ((server, one), (other, same)):
            each.apply(make_rule("shapley")(view))
    assert torch.equal(server.global_model, other.global_model)
    assert (server.round, server.engine.name) == (other.round, other.engine.name)


def test_equal_seeds_give_equal_views_and_the_given_network_is_left_alone():
    network = a_network()
    before = copy.deepcopy(network.state_dict())
    state = torch.get_rng_state()
    views = [
        RootServer(network, DIGITS.images(ROOT), DIGITS.labels[ROOT], 10, seed=s).view(normal(4, 1874))
        for s in (3, 3, 4)
    ]
    assert torch.equal(views[0].fingerprint.raw, views[1].fingerprint.raw)
    assert not torch.equal(views[0].fingerprint.raw, views[2].fingerprint.raw)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": DIGITS.images(ROOT)[:, 0]}, r"images must be \(R, C, H, W\) float32, got \(60, 8, 8\)"),
        ({"images": DIGITS.images(ROOT).double()}, "float64"),
        ({"labels": DIGITS.labels[ROOT][:5]}, r"labels must be \(60,\) int64, got \(5,\)"),
        ({"images": DIGITS.images(ROOT[:3]), "labels": DIGITS.labels[:3]}, "at least 4 samples.*got 3"),
        ({"num_classes": 5}, r"labels must lie in \[0, 5\), got 0 to 9"),
        ({"images": DIGITS.images(ROOT).numpy()}, r"images must be a tensor, got ndarray; torch.tensor"),
        ({"labels": DIGITS.labels[ROOT].tolist()}, "labels must be a tensor, got list"),
        ({"images": DIGITS.images(ROOT) * NAN}, "60 of 60 root images hold values that are not finite"),
        ({"num_classes": "10"}, "num_classes must be a whole number, got '10'"),
        ({"num_classes": 12}, r"must give 12 outputs an image, one a class; two images gave \(2, 10\)"),
        ({"images": DIGITS.images(ROOT)[..., :4, :4]}, r"cannot run on root images \(1, 4, 4\): mat1 and mat2"),
        ({"network": "small_cnn"}, "network must be a torch module with parameters, got 'small_cnn'"),
        ({"network": nn.Flatten()}, r"network must be a torch module with parameters, got Flatten"),
        ({"objective": "fedavg"}, "objective must be one of make_objective's.*got 'fedavg'"),
        ({"training": {"steps": 5}}, r"training must be a LocalTraining.*got \{'steps': 5\}"),
        ({"seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"engine": "nope"}, "'nope'; there are: sequential"),
        ({"shapley": "nope"}, "'nope'; there are: surrogate"),
    ],
)
def test_impossible_root_data_is_refused_with_what_was_given(changes, message):
    with pytest.raises(ValueError, match=message):
        a_server(**changes)


def test_of_unbalanced_root_data_both_halves_have_their_share_of_the_rare_class(monkeypatch):
    """A hospital's: 12 of 60 images are of one class. The half that judges had one of them, and the other eleven."""
    common, rare = (DIGITS.train[DIGITS.labels[DIGITS.train] == c] for c in (0, 1))
    root = torch.cat([common[:48], rare[:12]])
    seen = []
    monkeypatch.setattr("fl_core.server.HonestSimulator", lambda engine, x, y, *rest: seen.append(y) or None)
    monkeypatch.setattr("fl_core.server.Fingerprinter", lambda simulator, x, y, *rest: seen.append(y))
    a_server(images=DIGITS.images(root), labels=DIGITS.labels[root])
    assert [torch.bincount(labels, minlength=2).tolist() for labels in seen] == [[24, 6], [24, 6]]


def frozen() -> nn.Sequential:
    network = a_network()
    network[0].requires_grad_(False)
    return network


def test_a_network_whose_frozen_layers_would_be_trained_is_refused():
    with pytest.raises(ValueError, match=r"parameters of the network are frozen, the first is 0\.weight"):
        a_server(network=frozen())


def test_a_network_that_drops_at_random_is_refused_and_one_that_drops_nothing_is_not():
    for p in (0.5, 0.0):
        network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(p), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 10))
        if p:
            with pytest.raises(ValueError, match=r"layer '1' is Dropout\(p=0.5.*global generator"):
                a_server(network=network)
        else:
            views = [a_server(network=network).view(normal(3, 834)) for _ in range(2)]
            assert torch.equal(views[0].reference, views[1].reference)


class Attentive(nn.Module):
    """Attention, which drops on the way without a layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(8, 1, dropout=0.5, batch_first=True), nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.squeeze(1)
        return self.head(self.attention(rows, rows, rows)[0].flatten(1))


def test_attention_that_drops_is_refused_too():
    with pytest.raises(ValueError, match="layer 'attention' is MultiheadAttention"):
        a_server(network=Attentive())


class Wrapped(nn.Module):
    """The same layers under other names."""

    def __init__(self) -> None:
        super().__init__()
        self.body = a_network()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


@pytest.mark.parametrize("name", ["broadcast", "update_of", "write_to"])
@pytest.mark.parametrize(
    ("other", "found"),
    [
        (Wrapped, r"the first is 0.weight \(8, 1, 3, 3\); it has body.0.weight"),
        (lambda: make_network("small_cnn", (1, 8, 8), 7, 0), r"2 of \d+ .* \(10, \d+\); there it is \(7, \d+\)"),
    ],
)
def test_a_network_that_is_built_otherwise_is_refused_and_left_alone(name, other, found):
    """Written by name, and leniently, it would have been left untrained without a word."""
    server, network = a_server(), other()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=f"not built as the server's.*{found}"):
        getattr(server, name)(network)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (Aggregate(torch.zeros(1), None), r"an Aggregate with an update \(1874,\), got \(1,\)"),
        (torch.zeros(1874), r"takes what a rule returns, .*got tensor"),
        (None, "got None"),
        (Aggregate(torch.full((1874,), NAN), None), "1874 of 1874 values of the update are not finite"),
    ],
)
def test_what_is_no_update_is_not_applied(aggregate, message):
    server = a_server()
    before = server.global_model.clone()
    with pytest.raises(ValueError, match=message):
        server.apply(aggregate)
    assert torch.equal(server.global_model, before)
    assert server.round == 0


def small(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def test_a_buffer_that_is_not_saved_with_the_model_is_no_part_of_it():
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("by", torch.ones(1), persistent=False)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images + self.by

    server = a_server(network=small(Shift()))
    assert len(server.global_model) == 650
    view = server.view(normal(3, 650))
    assert view.fingerprint.observation.isfinite().all()


def test_a_parameter_that_two_layers_share_is_refused():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    network[3].weight = network[1].weight
    with pytest.raises(ValueError, match=r"1\.weight and 3\.weight of the network are one tensor"):
        a_server(network=network)


class Unused(nn.Module):
    """Has a layer that its forward pass leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(64, 10), nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.used(images.flatten(1))


@pytest.mark.parametrize("objective", ["fedavg", "fedprox"])
def test_a_layer_that_the_forward_pass_does_not_use_stays_as_it_is(objective):
    server = a_server(network=Unused(), objective=make_objective(objective, 0.1))
    for _ in range(2):
        reference = server.view(normal(3, 662)).reference
        assert reference[:650].abs().min() < reference[:650].abs().max()
        assert torch.equal(reference[650:], torch.zeros(12))
        server.apply(Aggregate(reference, None))


def test_a_client_may_be_of_another_precision():
    server, network = a_server(), a_network().double()
    server.broadcast(network)
    with torch.no_grad():
        network[-1].bias += 1
    update = server.update_of(network)
    assert (update.dtype, update.device) == (torch.float32, torch.device("cpu"))
    assert update.sum() == pytest.approx(len(network[-1].bias), rel=1e-5)


@pytest.mark.parametrize("which", ["images", "labels"])
def test_root_data_on_another_device_is_refused(which):
    given = {"images": DIGITS.images(ROOT), "labels": DIGITS.labels[ROOT]}
    with pytest.raises(ValueError, match=rf"{which} must be on the CPU.*got meta; give {which}\.cpu\(\)"):
        a_server(**{**given, which: given[which].to("meta")})


def test_a_reference_that_training_has_blown_up_ends_no_round_in_silence():
    server = a_server(training=LocalTraining(learning_rate=1e30))
    with pytest.raises(ValueError, match=r"reference update .* is not finite; is the learning rate 1e\+30 too large"):
        server.view(normal(3, len(server.global_model)))
    assert server.round == 0
