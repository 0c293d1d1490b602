"""What holds for every attack that is registered."""

import copy
import inspect
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fl_core import Scenario
from fl_core.aggregation import make_rule
from fl_core.attacks import Attack, Knowledge, LocalData, attack_names, base, make_attack, register_attack

TRAINED_ON = ["scaling", "partial_scaling", "sign_flip", "gaussian_noise", "label_flip"]
COLLUDABLE = [name for name in attack_names() if "colluding" in inspect.signature(base._ATTACKS[name]).parameters]
JITTERED = [name for name in attack_names() if "jitter" in inspect.signature(base._ATTACKS[name]).parameters]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SCHEDULES = ["late_onset", "on_off"]
# Rounds in which every attack with a timetable attacks, with its defaults.
ROUNDS = (13, 14)
N, P = 7, 50
SILENT = [name for name in attack_names() if name == "none" or make_attack(name).poisons]
BLIND = [name for name in attack_names() if make_attack(name).knows is Knowledge.NOTHING]

VARIANTS = [
    *((name, {}) for name in attack_names()),
    *((name, {"colluding": True}) for name in COLLUDABLE),
    *((name, {"jitter": 0.1}) for name in JITTERED),
    *(("free_rider", {"kind": kind}) for kind in ("stale", "noise")),
    *((name, {"perturbation": kind}) for name in ("min_max", "min_sum") for kind in ("sign", "unit")),
    *((name, {"attack": inner}) for name in SCHEDULES for inner in ("label_flip", "mimic", "poisonedfl")),
]


def label(variant) -> str:
    return "-".join([variant[0], *(f"{key}={value}" for key, value in variant[1].items())])


@pytest.fixture(params=VARIANTS, ids=label)
def attack(request) -> Attack:
    name, options = request.param
    return make_attack(name, **options)


def first(f: int, n: int = N) -> Tensor:
    """The malicious clients: every place is taken once as f grows, and not from the front only."""
    return torch.isin(torch.arange(n), torch.tensor([3, 0, 6, 2, 5, 1, 4])[:f])


@st.composite
def federations(draw) -> tuple[Tensor, Tensor]:
    """Updates (N, P) of all scales, some degenerate, and who is malicious: from nobody to all but one."""
    n, size = draw(st.integers(1, 8)), draw(st.integers(1, 30))
    scale = 10.0 ** draw(st.integers(-4, 4))
    rows = scale * torch.randn(n, size, generator=torch.Generator().manual_seed(draw(st.integers(0, 2**31))))
    shape = draw(st.sampled_from(["normal", "equal", "zero", "shifted", "sparse"]))
    if shape == "equal":
        rows = rows[:1].repeat(n, 1)
    elif shape == "zero":
        rows = torch.zeros_like(rows)
    elif shape == "shifted":
        rows = rows + 100 * scale
    elif shape == "sparse":
        rows = rows * (torch.arange(size) % 3 == 0)
    malicious = torch.zeros(n, dtype=torch.bool)
    malicious[draw(st.permutations(range(n)))[: draw(st.integers(0, n - 1))]] = True
    return rows, malicious


def play(attack: Attack, rounds, malicious: Tensor, knows_all, seed: int = 0, device: str = "cpu") -> list[Tensor]:
    """What all clients send in rounds of an episode that begins here."""
    attack.reset()
    return [
        attack(rows, malicious, knows_all(rows.shape[1], seed + i, ROUNDS[i], device)) for i, rows in enumerate(rounds)
    ]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", VARIANTS, ids=label)
@settings(derandomize=True, max_examples=25)
@given(federation=federations())
def test_every_attack_works_for_any_number_of_clients_attackers_and_parameters(
    variant, device, knows_all, federation
) -> None:
    name, options = variant
    updates, malicious = federation
    rounds = [updates.to(device), (-0.7 * updates).to(device)]
    before, at = [rows.clone() for rows in rounds], malicious.to(device)
    sent = play(make_attack(name, **options), rounds, at, knows_all, device=device)
    again = play(make_attack(name, **options), rounds, at, knows_all, device=device)
    for rows, kept, out, repeated in zip(rounds, before, sent, again, strict=True):
        assert out.shape == rows.shape
        assert out.dtype == torch.float32
        assert out.device == rows.device
        assert out.isfinite().all()
        assert torch.equal(out[~at], kept[~at]), "an honest update was changed"
        assert torch.equal(rows, kept), "the caller's tensor was edited"
        assert torch.equal(out, repeated), "equal generators, unequal attacks"
        if not malicious.any():
            assert torch.equal(out, kept)
        out.zero_()
        assert torch.equal(rows, kept), "the result shares memory with the caller's tensor"


@pytest.mark.parametrize("f", range(N))
def test_every_attack_works_for_every_number_of_attackers(attack, normal, knows_all, f):
    updates, malicious = normal(N, P), first(f)
    (sent,) = play(attack, [updates], malicious, knows_all)
    assert sent.isfinite().all()
    assert torch.equal(sent[~malicious], updates[~malicious])


def test_reset_forgets_the_rounds_before(attack, normal, knows_all):
    rounds = [normal(N, P, seed=1), normal(N, P, seed=2)]
    once = play(attack, rounds, first(3), knows_all)
    play(attack, [normal(5, 9), normal(5, 9, seed=3)], first(2, 5), knows_all, seed=9)
    for a, b in zip(once, play(attack, rounds, first(3), knows_all), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda attack: pickle.loads(pickle.dumps(attack))])
def test_a_copy_goes_on_where_the_original_was_and_apart_from_it(attack, normal, knows_all, duplicate):
    updates, malicious = [normal(N, P, seed=i) for i in range(3)], first(3)
    attack.reset()
    attack(updates[0], malicious, knows_all(P, 0, ROUNDS[0]))
    twin = duplicate(attack)
    assert twin == attack
    other = duplicate(attack)
    other(updates[2], malicious, knows_all(P, 5, ROUNDS[1]))
    sent = [one(updates[1], malicious, knows_all(P, 1, ROUNDS[1])) for one in (attack, twin)]
    assert torch.equal(*sent)


def test_a_federation_without_honest_clients_is_refused(attack, normal, knows_all):
    with pytest.raises(ValueError, match=f"all {N} clients are malicious"):
        attack(normal(N, P), first(N), knows_all(P))


@pytest.mark.parametrize("name", [name for name in attack_names() if name not in SILENT])
def test_every_attack_on_updates_changes_what_is_sent(name, normal, knows_all):
    updates, malicious = normal(N, P), first(2)
    for out in play(make_attack(name), [updates, updates], malicious, knows_all):
        assert (out[malicious] != updates[malicious]).any(dim=1).all()


def test_none_sends_what_was_trained(normal, knows_all):
    updates = normal(N, P)
    assert torch.equal(play(make_attack("none"), [updates], first(3), knows_all)[0], updates)


@pytest.mark.parametrize("name", BLIND)
def test_an_attack_that_says_it_knows_nothing_reads_no_honest_update(name, normal, knows_all):
    attack = make_attack(name)
    updates, malicious = normal(N, P), first(3)
    others = torch.where(malicious[:, None], updates, normal(N, P, seed=5))
    sent, elsewhere = (play(attack, [rows], malicious, knows_all)[0] for rows in (updates, others))
    assert torch.equal(sent[malicious], elsewhere[malicious])


@pytest.mark.parametrize("name", attack_names())
def test_every_attack_is_documented_in_the_form_that_tables_are_made_of(name):
    text = inspect.getdoc(base._ATTACKS[name])
    assert text.split("\n\n")[0].endswith("."), "one sentence first"
    lines = text.splitlines()
    starts = [
        next(i for i, line in enumerate(lines) if line.startswith(k)) for k in ("Formula:", "Source:", "Checked ")
    ]
    assert starts == sorted(starts)
    described = {
        line.strip().split(":")[0]
        for kind in base._ATTACKS[name].__mro__[:-1]
        for line in inspect.getdoc(kind).partition("Attributes:")[2].splitlines()
    }
    assert set(inspect.signature(base._ATTACKS[name]).parameters) <= described


def test_the_families_are_complete():
    data = {"label_flip", "dynamic_label_flip", "targeted_label_flip"}
    simple = {*TRAINED_ON, "zero", "same_value", "free_rider", "random_direction"}
    colluding = {"alie", "ipm", "ipm_small", "mimic", "min_max", "min_sum"}
    assert {"none", *data, *simple, *colluding, *SCHEDULES, "poisonedfl"} <= set(attack_names())


def test_the_train_attacks_have_an_independent_and_a_colluding_form():
    assert set(TRAINED_ON) <= set(COLLUDABLE)


@pytest.mark.parametrize("name", COLLUDABLE)
def test_the_colluding_form_starts_from_the_mean_of_the_malicious_updates(name, normal, knows_all):
    updates, malicious = normal(N, P), first(3)
    met = updates.clone()
    met[malicious] = updates[malicious].mean(dim=0)
    (colluding,) = play(make_attack(name, colluding=True), [updates], malicious, knows_all)
    assert torch.equal(colluding, play(make_attack(name, colluding=True), [met], malicious, knows_all)[0])
    assert (colluding[malicious] == colluding[malicious][0]).all(), "colluding clients send one and the same vector"
    if name not in ("partial_scaling", "gaussian_noise", "random_direction"):  # which draw for each client
        torch.testing.assert_close(colluding, play(make_attack(name), [met], malicious, knows_all)[0])


@pytest.mark.parametrize("name", JITTERED)
def test_jitter_tells_colluding_clients_apart_by_as_much_as_it_says(name, normal, knows_all):
    updates, malicious, size = normal(N, 20_000), first(3), 0.05
    options = {"colluding": True} if name in COLLUDABLE else {}
    if "evaluations" in inspect.signature(base._ATTACKS[name]).parameters:
        options["evaluations"] = 1  # one that searches may find something else with its noise
    (plain,) = play(make_attack(name, **options), [updates], malicious, knows_all)
    (moved,) = play(make_attack(name, jitter=size, **options), [updates], malicious, knows_all)
    rows, noise = plain[malicious], (moved - plain)[malicious]
    assert (moved[malicious][0] != moved[malicious][1]).any()
    assert (noise.norm(dim=1) / rows.norm(dim=1)).tolist() == pytest.approx([size] * 3, rel=0.05)


@pytest.mark.parametrize("name", JITTERED)
@pytest.mark.parametrize("jitter", [-0.1, float("nan"), float("inf")])
def test_a_jitter_that_is_no_length_is_refused(name, jitter):
    with pytest.raises(ValueError, match=f"jitter must be 0 or more and finite, got {jitter}"):
        make_attack(name, jitter=jitter)


@pytest.fixture
def data(normal) -> LocalData:
    """Three malicious clients, two batches of ten 6x6 images each, ten classes."""
    labels = torch.arange(10).repeat(3, 2, 1)
    head = normal(36, 10, seed=3)
    return LocalData(normal(3, 2, 10, 1, 6, 6), labels, torch.arange(3), 10, lambda images: images.flatten(1) @ head)


def test_every_attack_leaves_the_data_as_they_are_and_hands_out_data_of_the_same_form(attack, data):
    before = data.images.clone(), data.labels.clone()
    images, labels = attack.poison(data)
    assert torch.equal(data.images, before[0])
    assert torch.equal(data.labels, before[1])
    assert (images.shape, images.dtype) == (data.images.shape, torch.float32)
    assert (labels.shape, labels.dtype) == (data.labels.shape, torch.int64)
    assert images.isfinite().all()
    assert labels.min() >= 0
    assert labels.max() < data.num_classes
    if attack.poisons:
        assert not (torch.equal(images, data.images) and torch.equal(labels, data.labels))
    else:
        assert images is data.images
        assert labels is data.labels


def test_what_a_backdoor_is_for_are_images_with_a_wish_each(attack, normal):
    images, labels = normal(40, 1, 6, 6), torch.arange(40) % 10
    before = images.clone(), labels.clone()
    aimed = attack.triggered(images, labels)
    assert torch.equal(images, before[0])
    assert torch.equal(labels, before[1])
    if aimed is not None:
        shown, wanted = aimed
        assert shown.shape[1:] == images.shape[1:]
        assert 0 < len(shown) == len(wanted) <= 40
        assert wanted.dtype == torch.int64


@pytest.mark.parametrize("inner", attack_names())
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduled_attack_is_the_other_one_but_for_the_rounds(name, inner, normal, knows_all, data):
    other, scheduled = make_attack(inner), make_attack(name, attack=inner)
    assert (scheduled.knows, scheduled.poisons) == (other.knows, other.poisons)
    rounds, malicious = [normal(N, P, seed=1), normal(N, P, seed=2)], first(3)
    expected = play(other, rounds, malicious, knows_all)
    for _ in range(2):  # the second time shows that reset reaches the other attack
        for a, b in zip(play(scheduled, rounds, malicious, knows_all), expected, strict=True):
            assert torch.equal(a, b)
    for a, b in zip(scheduled.poison(data), other.poison(data), strict=True):
        assert torch.equal(a, b)
    images, labels = normal(40, 1, 6, 6), torch.arange(40) % 10
    aims = [one.triggered(images, labels) for one in (scheduled, other)]
    assert (aims[0] is None) == (aims[1] is None)
    if aims[0] is not None:
        assert all(torch.equal(a, b) for a, b in zip(*aims, strict=True))


@pytest.mark.parametrize("participation", [1.0, 0.5])
@pytest.mark.parametrize("name", attack_names())
def test_in_a_federation_every_attack_runs_for_an_episode(name, participation, federation):
    built, rule = federation(Scenario(name, 0.3, participation=participation), entropy=1), make_rule("fltrust")
    attacked = 0
    for _ in range(14):  # beyond every timetable's first round of attack, with attackers there
        seen = built.local_round(rule=rule)
        attacked += int(seen.attacking)
        assert seen.view.updates.isfinite().all()
        built.apply(rule(seen.view).update)
    assert (attacked > 0) == (name != "none")
    success = built.attack_success("validation")
    assert math.isnan(success) or 0 <= success <= 1


def test_a_memory_of_another_federation_is_refused_with_the_way_out(normal, knows_all):
    for name in ("mimic", "poisonedfl"):
        attack = make_attack(name)
        attack(normal(N, P), first(2), knows_all(P))
        with pytest.raises(ValueError, match=rf"{name} remembers .*{P}.*call reset\(\)"):
            attack(normal(N, 9), first(2), knows_all(9))


@pytest.mark.parametrize("name", ["free_rider", "poisonedfl"])
def test_an_attack_that_reads_the_last_change_says_so_where_there_is_none(name, normal, knows_all):
    with pytest.raises(ValueError, match=f"{name} reads the global model's last change.*last_change="):
        make_attack(name)(normal(N, P), first(2), knows_all(P, last_change=None))


def test_an_attack_of_a_plug_in_has_its_threat_model_from_the_base(monkeypatch):
    monkeypatch.setattr(base._ATTACKS, "_factories", dict(base._ATTACKS._factories))
    register_attack("brand_new")(type("BrandNew", (Attack,), {}))
    assert make_attack("brand_new").knows is Knowledge.NOTHING
    assert make_attack("late_onset", attack="brand_new").knows is Knowledge.NOTHING
