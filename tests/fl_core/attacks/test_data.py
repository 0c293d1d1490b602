import pytest
import torch

from fl_core import Scenario
from fl_core.attacks import AdversaryView, LocalData, make_attack


class Spy:
    """Passes everything on to an engine, and keeps the labels that clients were trained on."""

    def __init__(self, engine):
        self.engine, self.labels = engine, []

    def train(self, shared, local, images, labels, **kwargs):
        self.labels.append(labels.clone())
        return self.engine.train(shared, local, images, labels, **kwargs)


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
        assert [r.attacking for r in rounds] == [False, False, True, True]
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
