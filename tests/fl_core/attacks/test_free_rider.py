import numpy as np
import pytest
import torch

from fl_core import Scenario
from fl_core.attacks import AdversaryView, make_attack

MALICIOUS = torch.tensor([False, True, False, True])


def sent_by(change: torch.Tensor, **options) -> np.ndarray:
    attack, generator = make_attack("free_rider", **options), torch.Generator().manual_seed(0)
    updates = torch.full((4, len(change)), 7.0)
    return attack(updates, MALICIOUS, AdversaryView(generator, last_change=change))[MALICIOUS].double().numpy()


def test_without_noise_it_replays_the_last_change_or_sends_zeros(normal):
    change = normal(30)
    assert np.array_equal(sent_by(change, kind="stale", noise=0.0), change.double().expand(2, -1).numpy())
    assert not sent_by(change, kind="noise", noise=0.0).any()


@pytest.mark.parametrize("kind", ["stale", "noise"])
@pytest.mark.parametrize("noise", [0.1, 2.0])
def test_the_disguise_is_as_long_as_said_and_of_each_clients_own(normal, kind, noise):
    change = 3 * normal(20_000, seed=5)
    added = sent_by(change, kind=kind, noise=noise) - (kind == "stale") * change.double().numpy()
    ratio = np.linalg.norm(added, axis=1) / float(change.norm())
    assert ratio == pytest.approx([noise, noise], rel=0.03)
    for a, b in [(added[0], added[1]), (added[0], change.double().numpy())]:
        assert np.corrcoef(a, b)[0, 1] == pytest.approx(0, abs=5 / np.sqrt(20_000))


@pytest.mark.parametrize("kind", ["stale", "noise"])
def test_before_the_first_change_zeros_are_sent(kind):
    assert not sent_by(torch.zeros(30), kind=kind).any()


def test_in_a_federation_the_last_change_of_the_global_model_comes_back(federation):
    built = federation(Scenario("free_rider", 0.3, attack_options={"noise": 0.0}), entropy=1)
    change = torch.zeros_like(built.shared)
    for _ in range(3):
        seen = built.local_round()
        assert torch.equal(seen.view.updates[seen.malicious], change.expand(3, -1))
        assert (seen.view.updates[~seen.malicious] != change).any(dim=1).all()
        change = seen.view.updates.mean(dim=0)
        built.apply(change)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_a_noise_that_is_no_length_is_refused(noise):
    with pytest.raises(ValueError, match=f"free_rider: noise must be 0 or more and finite, got {noise}"):
        make_attack("free_rider", noise=noise)


def test_an_unknown_kind_is_answered_with_those_there_are():
    with pytest.raises(ValueError, match="unknown kind of free_rider 'lazy'; there are: stale, noise"):
        make_attack("free_rider", kind="lazy")
