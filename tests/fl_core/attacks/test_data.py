import pytest
import torch
from torch.nn import functional as F

from fl_core import Scenario
from fl_core.attacks import AdversaryView, LocalData, make_attack


class Spy:
    """Passes everything on to an engine, and keeps what clients were trained on."""

    def __init__(self, engine):
        self.engine, self.images, self.labels = engine, [], []

    def train(self, shared, local, images, labels, **kwargs):
        self.images.append(images.clone())
        self.labels.append(labels.clone())
        return self.engine.train(shared, local, images, labels, **kwargs)

    def logits(self, shared, local, images):
        return self.engine.logits(shared, local, images)


@pytest.mark.parametrize("classes", [2, 10])
def test_label_flip_turns_y_into_the_opposite_end_and_does_not_edit(classes):
    labels = torch.arange(classes).repeat(3, 2)
    before = labels.clone()
    data = LocalData(torch.zeros(1), labels, torch.arange(3), classes, logits=lambda images: images)
    images, flipped = make_attack("label_flip").poison(data)
    assert images is data.images
    assert [(int(y), int(z)) for y, z in zip(labels[0], flipped[0], strict=True)] == [
        (y, classes - 1 - y) for y in list(range(classes)) * 2
    ]
    assert torch.equal(labels, before)


@pytest.mark.parametrize("colluding", [False, True])
def test_label_flip_sends_what_was_trained(normal, colluding):
    updates, malicious = normal(5, 9), torch.tensor([True, False, True, False, False])
    sent = make_attack("label_flip", colluding=colluding)(updates, malicious, AdversaryView(torch.Generator()))
    expected = updates.clone()
    if colluding:
        expected[[0, 2]] = (updates[0] + updates[2]) / 2
    torch.testing.assert_close(sent, expected)


def known(labels: torch.Tensor, classes: int = 10) -> LocalData:
    """Data whose images are their labels; the model finds the next class but one least likely."""
    images = labels.float()[..., None, None, None]

    def logits(seen: torch.Tensor) -> torch.Tensor:
        return -F.one_hot((seen.flatten().long() + 2) % classes, classes).float()

    return LocalData(images, labels, torch.arange(len(labels)), classes, logits)


def test_dynamic_label_flip_takes_the_class_that_the_global_model_finds_least_likely():
    labels = torch.arange(3 * 40 * 10).view(3, 40, 10) % 10  # more images than go through the model together
    data = known(labels)
    images, flipped = make_attack("dynamic_label_flip").poison(data)
    assert images is data.images
    assert torch.equal(flipped, (labels + 2) % 10)


def test_in_a_federation_dynamic_label_flip_asks_the_global_model(federation):
    built = federation(Scenario("dynamic_label_flip", 0.3, onset=3), entropy=1)
    for _ in range(3):
        built.apply(built.local_round().view.updates.mean(dim=0))
    engine, model, local = built.engine, built.shared.clone(), built.local.clone()
    built.engine = spy = Spy(engine)
    malicious = built.local_round().malicious.nonzero()[:, 0]
    images, labels = spy.images[0][malicious].flatten(0, 2), spy.labels[0][malicious].flatten()
    logits = engine.logits(model[None], local[malicious[:1]], images)[0]
    assert torch.equal(labels, logits.argmin(dim=1))
    assert len(labels.unique()) > 1


@pytest.mark.parametrize(("source", "target"), [(1, 0), (0, 9), (6, 2)])
def test_targeted_label_flip_turns_the_source_into_the_target_and_spares_the_others(source, target):
    data = known(torch.arange(10).repeat(2, 3, 1))
    images, flipped = make_attack("targeted_label_flip", source=source, target=target).poison(data)
    assert images is data.images
    assert flipped[0, 0].tolist() == [target if y == source else y for y in range(10)]
    assert torch.equal(data.labels, torch.arange(10).repeat(2, 3, 1))


def test_targeted_label_flip_wants_the_sources_samples_taken_for_the_target():
    labels = torch.tensor([3, 1, 3, 0, 5])
    images, wanted = make_attack("targeted_label_flip", source=3, target=5).triggered(
        torch.arange(5.0).view(5, 1, 1, 1), labels
    )
    assert images.flatten().tolist() == [0, 2]
    assert wanted.tolist() == [5, 5]
    none, nothing = make_attack("targeted_label_flip", source=7).triggered(torch.zeros(5, 1, 1, 1), labels)
    assert len(none) == len(nothing) == 0


def test_targeted_label_flip_succeeds_in_a_federation_of_averages(federation):
    success = {}
    for fraction in (0.0, 0.5):
        built = federation(Scenario("targeted_label_flip", fraction), entropy=1)
        for _ in range(10):
            built.apply(built.local_round().view.updates.mean(dim=0))
        success[fraction] = built.attack_success("validation")
    assert success[0.0] < 0.1
    assert success[0.5] > success[0.0] + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": -1}, "source must be a class, 0 or more, got -1"),
        ({"target": -3}, "target must be a class, 0 or more, got -3"),
        ({"source": 4, "target": 4}, "source and target must be two classes, got 4 for both"),
    ],
)
def test_classes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=f"targeted_label_flip: {message}"):
        make_attack("targeted_label_flip", **options)


@pytest.mark.parametrize(("options", "field"), [({"source": 10}, "source"), ({"target": 12}, "target")])
def test_a_class_that_the_data_do_not_have_is_refused(options, field):
    data = known(torch.arange(10).repeat(2, 3, 1))
    with pytest.raises(ValueError, match=f"targeted_label_flip: {field} must be one of the 10 classes, 0 to 9, got 1"):
        make_attack("targeted_label_flip", **options).poison(data)


def test_in_a_federation_only_malicious_clients_train_on_flipped_labels_and_only_from_the_onset(federation):
    seen = {}
    for attack in ("none", "label_flip"):
        built = federation(Scenario(attack, 0.3, onset=2), entropy=1)
        built.engine = spy = Spy(built.engine)
        rounds = []
        for _ in range(4):
            rounds.append(built.local_round())
            built.apply(rounds[-1].view.updates.mean(dim=0))
        seen[attack] = spy.labels
        assert [r.attacking for r in rounds] == [False, False, *[attack != "none"] * 2]
        malicious = rounds[0].malicious
    rows = torch.cat([malicious, torch.tensor([False])])  # the server's own training comes last
    assert rows.sum() == 3
    for round_, (honest, poisoned) in enumerate(zip(seen["none"], seen["label_flip"], strict=True)):
        assert torch.equal(poisoned[~rows], honest[~rows])
        assert torch.equal(poisoned[rows], honest[rows] if round_ < 2 else 9 - honest[rows])


def test_the_data_set_itself_is_never_poisoned(federation):
    built = federation(Scenario("label_flip", 0.5), entropy=1)
    before = built.dataset.labels.clone()
    built.local_round()
    assert torch.equal(built.dataset.labels, before)
