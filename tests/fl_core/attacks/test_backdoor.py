import dataclasses
from math import isnan

import pytest
import torch
from torch import Tensor

from fl_core import Scenario
from fl_core.aggregation import ServerView, make_rule
from fl_core.attacks import AdversaryView, LocalData, make_attack
from fl_core.attacks.backdoor import bars, patched, share_of

BACKDOORS = ["dba", "edge_case", "model_replacement", "neurotoxin"]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (1, 64, 48)]


def local_data(
    shape: tuple[int, int, int] = (1, 8, 8), clients: int = 3, batch: int = 8, classes: int = 10
) -> LocalData:
    generator = torch.Generator().manual_seed(0)
    return LocalData(
        torch.randn(clients, 2, batch, *shape, generator=generator),
        torch.randint(classes, (clients, 2, batch), generator=generator),
        torch.arange(clients),
        classes,
        lambda images: torch.zeros(len(images), classes),
    )


def changed(before: Tensor, after: Tensor) -> Tensor:
    """(H, W) bool: which pixels differ in some image and channel."""
    return (before != after).flatten(0, -3).any(dim=0)


@pytest.mark.parametrize(
    ("shape", "side"), list(zip(SHAPES, [(2, 2), (4, 4), (4, 4), (9, 9), (9, 6)], strict=True)), ids=str
)
def test_the_patch_is_a_square_in_the_corner_that_suits_the_image(shape, side):
    images = torch.zeros(5, *shape)
    shown = patched(images)
    touched = changed(images, shown)
    assert int(touched.sum()) == side[0] * side[1]
    assert touched[-side[0] :, -side[1] :].all()
    assert not images.any(), "the caller's images were edited"


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dbas_four_bars_are_disjoint_inside_the_image_and_together_the_trigger(shape):
    attack = make_attack("dba", poisoned=1.0)
    data = dataclasses.replace(local_data(shape, clients=5))
    images, _ = attack.poison(data)
    parts = [changed(before, after) for before, after in zip(data.images, images, strict=True)]
    assert all(part.any() for part in parts)
    assert torch.equal(parts[0], parts[4]), "the fifth malicious client begins again with the first bar"
    assert int(sum(part.int() for part in parts[:4]).max()) == 1
    shown, _ = attack.triggered(torch.zeros(1, *shape), torch.tensor([3]))
    assert torch.equal(changed(torch.zeros(1, *shape), shown), torch.stack(parts).any(dim=0))
    assert int(shown.bool().sum()) < 0.15 * shown.numel()


def test_dba_refuses_images_that_are_too_small():
    with pytest.raises(ValueError, match="at least 3x5 pixels for its four bars, got 2x8"):
        bars(2, 8)


@pytest.mark.parametrize("name", BACKDOORS)
@pytest.mark.parametrize(("poisoned", "count"), [(0.5, 4), (0.1, 1), (1.0, 8)])
def test_a_share_of_every_batch_is_prepared_and_labelled_as_the_target(name, poisoned, count):
    data = local_data()
    before = data.images.clone(), data.labels.clone()
    images, labels = make_attack(name, target=2, poisoned=poisoned).poison(data)
    assert images.shape == data.images.shape
    assert (labels[:, :, :count] == 2).all()
    assert torch.equal(labels[:, :, count:], data.labels[:, :, count:])
    assert torch.equal(images[:, :, count:], data.images[:, :, count:])
    assert (images[:, :, :count] != data.images[:, :, :count]).any()
    assert torch.equal(data.images, before[0])
    assert torch.equal(data.labels, before[1])


@pytest.mark.parametrize("name", ["dba", "model_replacement", "neurotoxin"])
def test_inputs_of_the_target_class_do_not_count_towards_success(name):
    images, labels = torch.zeros(6, 1, 8, 8), torch.tensor([2, 0, 2, 1, 5, 9])
    shown, wanted = make_attack(name, target=2).triggered(images, labels)
    assert shown.shape == (4, 1, 8, 8)
    assert wanted.tolist() == [2, 2, 2, 2]
    assert not images.any()


def test_edge_cases_are_the_source_classs_furthest_from_its_mean_while_training_and_in_the_test():
    attack = make_attack("edge_case", source=3, target=7, tail=0.25)
    data = local_data(batch=40)
    images, _ = attack.poison(data)
    everything, labels = data.images.flatten(0, 2), data.labels.flatten()
    members = everything[labels == 3]
    distances = [(float(((m - members.mean(dim=0)) ** 2).sum()), i) for i, m in enumerate(members)]
    rare = members[[i for _, i in sorted(distances, reverse=True)[: -(-len(members) // 4)]]]
    shown, wanted = attack.triggered(everything, labels)
    assert torch.equal(shown, rare)
    assert wanted.tolist() == [7] * len(rare)
    implanted = images[:, :, :20].flatten(0, 2)
    assert torch.equal(implanted.unique(dim=0), rare.unique(dim=0))


def test_without_samples_of_the_source_class_there_is_no_edge_case():
    data = local_data()
    data = dataclasses.replace(data, labels=torch.full_like(data.labels, 4))
    attack = make_attack("edge_case", source=3)
    images, labels = attack.poison(data)
    assert torch.equal(images, data.images)
    assert torch.equal(labels, data.labels)
    shown, wanted = attack.triggered(torch.zeros(3, 1, 8, 8), torch.tensor([4, 5, 6]))
    assert len(shown) == len(wanted) == 0


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.95, 1.0])
def test_neurotoxin_moves_only_the_coordinates_that_honest_clients_move_least(normal, kept):
    updates, malicious = normal(6, 101), torch.tensor([True, False, True, False, False, False])
    sent = make_attack("neurotoxin", kept=kept)(updates, malicious, AdversaryView(torch.Generator()))[malicious]
    moved = (sent != 0).all(dim=0)
    assert torch.equal(moved, (sent != 0).any(dim=0))
    assert int(moved.sum()) == -(-round(kept * 10100) // 100)
    magnitude = updates[~malicious].mean(dim=0).abs()
    if kept < 1:
        assert magnitude[moved].max() < magnitude[~moved].min()
    assert torch.equal(sent[:, moved], updates[malicious][:, moved])


@pytest.mark.parametrize(("n", "f"), [(10, 1), (10, 3), (3, 2)])
def test_under_the_mean_model_replacement_leaves_the_attackers_model_and_the_honest_sum_over_n(normal, n, f):
    updates, malicious = normal(n, 40), torch.arange(n) < f
    sent = make_attack("model_replacement")(updates, malicious, AdversaryView(torch.Generator()))
    update = make_rule("fedavg")(ServerView(sent)).update
    torch.testing.assert_close(update, updates[:f].mean(dim=0) + updates[f:].sum(dim=0) / n)
    converged = updates * malicious[:, None]  # honest clients have nothing left to learn
    sent = make_attack("model_replacement")(converged, malicious, AdversaryView(torch.Generator()))
    torch.testing.assert_close(make_rule("fedavg")(ServerView(sent)).update, updates[:f].mean(dim=0))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dba", {"target": -1}, "DBA: target must be a class, 0 or more, got -1"),
        ("dba", {"poisoned": 0.0}, r"DBA: poisoned must lie in \(0, 1\], got 0.0"),
        ("neurotoxin", {"kept": 1.5}, r"neurotoxin: kept must lie in \(0, 1\], got 1.5"),
        ("neurotoxin", {"boost": 0.0}, "boost must be above 0 and finite"),
        ("edge_case", {"source": 0}, "edge_case: source must be a class other than target=0, got 0"),
        ("edge_case", {"tail": 0.0}, r"edge_case: tail must lie in \(0, 1\], got 0.0"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_attack(name, **options)


@pytest.mark.parametrize(("name", "field"), [("dba", "target"), ("edge_case", "source")])
def test_a_class_that_the_data_set_does_not_have_is_refused(name, field):
    with pytest.raises(ValueError, match=f"{field}=12 is no class of a data set with 10: 0 to 9"):
        make_attack(name, **{field: 12}).poison(local_data())


def play(built, rounds: int, rule: str = "fedavg") -> tuple[float, float]:
    """Accuracy on validation data, and success of the backdoor there."""
    aggregate = make_rule(rule)
    for _ in range(rounds):
        built.apply(aggregate(built.local_round(aggregate).view).update)
    metrics = built.evaluate(torch.zeros(1, built.layout.num_shared), "validation")
    return float(metrics.accuracy[0]), built.attack_success("validation")


@pytest.fixture
def unattacked(federation):
    """Accuracy without attack, and how often an honest model takes prepared inputs for the target."""

    def measure(name: str, rounds: int) -> tuple[float, float]:
        built = federation(Scenario(), entropy=100)
        accuracy, success = play(built, rounds)
        assert isnan(success), "without an attack there is nothing to succeed in"
        built.attack = make_attack(name)
        return accuracy, built.attack_success("validation")

    return measure


@pytest.mark.parametrize(
    ("name", "rounds", "least"), [("model_replacement", 15, 0.9), ("dba", 25, 0.6), ("neurotoxin", 25, 0.6)]
)
def test_under_the_mean_a_trigger_takes_over_and_the_model_stays_as_good(federation, unattacked, name, rounds, least):
    accuracy, chance = unattacked(name, rounds)
    attacked, success = play(federation(Scenario(name, 0.3), entropy=100), rounds)
    assert success > least
    assert chance < 0.2
    assert attacked > accuracy - 0.05


def test_under_the_mean_rare_samples_are_taken_for_the_target_and_the_model_stays_usable(federation, unattacked):
    accuracy, chance = unattacked("edge_case", 15)
    attacked, success = play(federation(Scenario("edge_case", 0.3), entropy=100), 15)
    assert chance == 0
    assert success >= 0.5
    assert attacked > accuracy - 0.1


def test_success_is_the_share_of_prepared_inputs_taken_for_the_target(federation):
    built = federation(Scenario("model_replacement", 0.3, attack_options={"target": 4}), entropy=100)
    play(built, 3)
    samples = built.splits.validation
    kept = samples[built.dataset.labels[samples] != 4]
    local = built.engine.reestimate(built.shared[None], built.local[-1:], built.simulator.images)
    answers = built.engine.logits(built.shared[None], local, patched(built.dataset.images(kept)))[0].argmax(dim=1)
    assert built.attack_success("validation") == pytest.approx(float((answers == 4).float().mean()))
    with pytest.raises(ValueError, match="unknown split 'train'"):
        built.attack_success("train")


def test_where_no_sample_can_carry_the_trigger_success_is_unknown(federation):
    built = federation(Scenario("edge_case", 0.3), entropy=100)
    built.attack = make_attack("edge_case", source=11)
    assert isnan(built.attack_success("test"))


@pytest.mark.parametrize(
    ("share", "count", "expected"), [(0.28, 25, 7), (0.07, 100, 7), (0.14, 50, 7), (0.5, 16, 8), (0.01, 16, 1)]
)
def test_a_share_is_rounded_up_and_not_by_binary(share, count, expected):
    assert share_of(share, count) == expected
