"""Other root data per episode: drawn from what is neither validation nor test, biased as asked, an autoencoder each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fl_core import Federation, Scenario, configure
from fl_core.data import load_dataset, make_splits
from fl_core.data.splits import Root, favour_class, interleave_classes, redraw_root
from fl_core.fingerprint import trained


def splits_and_dataset() -> tuple[Any, Any]:
    dataset = load_dataset("digits")
    return make_splits(dataset, np.random.default_rng(0)), dataset


@pytest.mark.parametrize("root", [Root(), Root(20), Root(401, 0.3), Root(draw=5)])
def test_a_redraw_moves_root_and_clients_only_and_loses_no_sample(root: Root) -> None:
    splits, dataset = splits_and_dataset()
    drawn = redraw_root(dataset, splits, np.random.default_rng(1), root)
    assert torch.equal(drawn.validation, splits.validation)
    assert torch.equal(drawn.test, splits.test)
    own = torch.cat([drawn.reference, drawn.utility])
    assert len(own) == (root.size or 100)
    assert len(drawn.reference) == len(own) // 2
    everything = torch.cat([own, drawn.clients, drawn.validation]).sort().values
    assert torch.equal(everything, dataset.train.sort().values)


@pytest.mark.parametrize("bias", [0.0, 0.3, 0.8])
def test_the_bias_is_the_share_of_one_class_on_top_of_its_balanced_share_in_both_halves(bias: float) -> None:
    splits, dataset = splits_and_dataset()
    drawn = redraw_root(dataset, splits, np.random.default_rng(1), Root(100, bias))
    favoured = set()
    for half in (drawn.reference, drawn.utility):
        counts = torch.bincount(dataset.labels[half], minlength=10)
        favoured.add(int(counts.argmax()))
        assert abs(int(counts.max()) - 50 * (bias + (1 - bias) / 10)) <= 1.5
        others = counts[counts.argsort()[:-1]]
        assert int(others.max() - others.min()) <= 1
    assert len(favoured) == 1 or bias == 0


def test_a_favoured_class_that_runs_out_leaves_its_last_member_to_the_clients() -> None:
    labels = np.repeat(np.arange(3), 4)
    queue = interleave_classes(labels, np.random.default_rng(0))
    biased = favour_class(queue, labels, 1, 0.9)
    assert sorted(biased) == list(range(12))
    assert (labels[biased[:3]] == 1).all()
    assert labels[biased[-3:]].tolist().count(1) == 1


@pytest.mark.parametrize("root", [Root(200, 0.8), Root(400, 0.6)])
def test_what_a_favoured_class_has_is_shared_between_both_halves(root: Root) -> None:
    splits, dataset = splits_and_dataset()
    drawn = redraw_root(dataset, splits, np.random.default_rng(1), root)
    shares = [torch.bincount(dataset.labels[half]).max() / len(half) for half in (drawn.reference, drawn.utility)]
    assert shares[0] - shares[1] <= 0.02
    assert shares[1] > 0.2
    favoured = int(torch.bincount(dataset.labels[drawn.reference]).argmax())
    assert (dataset.labels[drawn.clients] == favoured).any()


def test_groups_stay_whole_and_apart_from_validation() -> None:
    dataset = load_dataset("digits")
    groups = torch.arange(len(dataset.labels)) // 3
    # Groups of three; the border between train and test is at a multiple of three.
    grouped = replace(dataset, groups=groups, train=torch.arange(1500), test=torch.arange(1500, 1797))
    splits = make_splits(grouped, np.random.default_rng(0), root=60, validation=60)
    drawn = redraw_root(grouped, splits, np.random.default_rng(3), Root(80, 0.4))
    held = [set(groups[part].tolist()) for part in (drawn.clients, drawn.reference, drawn.utility, drawn.validation)]
    assert sum(map(len, held)) == len(set.union(*held))


def test_an_episode_uses_the_root_that_its_scenario_names_and_the_next_one_its_own_again() -> None:
    federation, other = (Federation(configure(num_clients=4, local_steps=1, batch_size=8)) for _ in range(2))
    own = federation.splits.reference
    federation.reset(Scenario(alpha=1.0, root_size=30, root_bias=0.5, root_draw=1), entropy=0)
    assert len(federation.simulator.labels) == 15
    assert not np.isin(torch.cat(federation.shards), federation.splits.reference).any()
    other.reset(Scenario(alpha=1.0, root_size=30, root_bias=0.5, root_draw=1), entropy=9)
    assert torch.equal(federation.splits.reference, other.splits.reference)  # the root is not the episode's draw
    for same in (Scenario(alpha=1.0), Scenario(alpha=1.0, root_size=100)):
        federation.reset(same, entropy=0)
        assert torch.equal(federation.splits.reference, own)


def test_a_federation_of_biased_root_data_has_the_draw_that_a_scenario_would_name() -> None:
    plain, biased = (Federation(configure(num_clients=4, **settings)) for settings in ({}, {"root_bias": 0.5}))
    plain.reset(Scenario(alpha=1.0, root_bias=0.5), entropy=0)
    biased.reset(Scenario(alpha=1.0), entropy=0)
    for field in ("clients", "reference", "utility", "validation", "test"):
        assert torch.equal(getattr(plain.splits, field), getattr(biased.splits, field))
    assert torch.bincount(biased.dataset.labels[biased.splits.utility]).max() in (27, 28)
    biased.reset(Scenario(alpha=1.0, root_size=50, root_draw=1), entropy=0)  # of another draw and size the bias is this
    assert torch.bincount(biased.dataset.labels[biased.splits.utility]).max() in (13, 14)
    for own in (Scenario(alpha=1.0), Scenario(alpha=1.0, root_size=100)):
        biased.reset(own, entropy=0)
        assert torch.equal(plain.splits.utility, biased.splits.utility)
    biased.reset(Scenario(alpha=1.0, root_bias=0.0), entropy=0)
    assert torch.bincount(biased.dataset.labels[biased.splits.utility]).max() == 5
    with pytest.raises(ValueError, match=r"root_bias must lie in \[0, 1\), got 1\.0"):
        configure(root_bias=1.0)


def test_each_root_has_its_own_autoencoder_that_is_trained_once(monkeypatch) -> None:
    trainings = []
    train = trained.train_autoencoder
    monkeypatch.setattr(trained, "train_autoencoder", lambda *given: trainings.append(0) or train(*given))
    federation = Federation(configure(num_clients=4, local_steps=1, batch_size=8, split_seed=77))
    errors = []
    for draw in (0, 1, 0, 1, 0):
        federation.reset(Scenario(alpha=1.0, root_draw=draw), entropy=draw)
        errors.append(federation.local_round().view.fingerprint.raw[:, 0])
    assert len(trainings) == 2
    assert torch.equal(errors[1], errors[3])
    assert not torch.equal(errors[0], errors[1])
