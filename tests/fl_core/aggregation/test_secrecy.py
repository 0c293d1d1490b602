"""What a rule can reach from its view: nothing of the truth, whatever it follows."""

import functools
import inspect
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from fl_core import Federation, Scenario
from fl_core.aggregation import ReferenceRule, ServerView, make_rule, rule_names
from fl_core.attacks import AdversaryView, Attack
from fl_core.randomness import Purpose, Streams

ENTROPY = 918_273_645
SCENARIO = Scenario("sign_flip", 0.3, 0.5, attack_options={"scale": 3.0, "colluding": True})
NUM_MALICIOUS = 3


def neighbours(thing: Any) -> Iterator[Any]:
    """All that one object leads to: attributes, slots, items, closures, defaults, partial arguments, owners, views."""
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, functools.partial):
        yield from (thing.func, thing.args, thing.keywords)
    elif isinstance(thing, types.MethodType):
        yield from (thing.__self__, thing.__func__)
    elif isinstance(thing, types.FunctionType):
        yield from (cell.cell_contents for cell in thing.__closure__ or ())
        yield from (thing.__defaults__ or ())
        yield from (thing.__kwdefaults__ or {}).values()
    elif isinstance(thing, torch.Tensor):
        yield thing._base
        yield thing.grad_fn
    if not isinstance(thing, (type, types.ModuleType)):
        yield from vars(thing).values() if hasattr(thing, "__dict__") else ()
        slots = [name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())]
        yield from (getattr(thing, name) for name in slots if hasattr(thing, name) and not name.startswith("__"))


def reachable(root: Any) -> list[Any]:
    """Every object that can be reached from ``root``."""
    found: dict[int, Any] = {}
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in found:
            found[id(thing)] = thing
            waiting.extend(neighbours(thing))
    return list(found.values())


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """All numbers in the storage that a tensor is a part of, (S,)."""
    whole = torch.empty(0, dtype=tensor.dtype)
    return whole.set_(tensor.untyped_storage(), 0, (tensor.untyped_storage().nbytes() // tensor.element_size(),))


def holds(numbers: torch.Tensor, rows: torch.Tensor) -> bool:
    """Whether most of any row is among the numbers; a few equal ones, zeros for one, are chance."""
    return bool((torch.isin(rows, numbers).float().mean(dim=1) > 0.5).any())


def secrets_in(root: Any, federation: Federation, honest: torch.Tensor) -> list[str]:
    """What of the truth can be reached: names for the message of a failure.

    Args:
        root: Where the walk begins.
        federation: The federation that knows.
        honest: (N, P), what the clients had trained before the malicious ones replaced theirs.
    """
    found = []
    own = honest[federation.malicious]
    for thing in reachable(root):
        if isinstance(thing, (Federation, Scenario, Attack, AdversaryView)):
            found.append(type(thing).__name__)
        if isinstance(thing, types.MethodType) and isinstance(thing.__self__, Federation):
            found.append(f"bound method {thing.__name__}")
        if isinstance(thing, str) and thing == SCENARIO.attack:
            found.append("name of the attack")
        if isinstance(thing, Streams) and thing == Streams(ENTROPY):
            found.append("streams of the episode")
        if isinstance(thing, int) and thing == ENTROPY:
            found.append("entropy of the episode")
        if isinstance(thing, (torch.Generator, np.random.Generator)):
            found.append("a generator")
        if isinstance(thing, torch.Tensor):
            if thing.dtype == torch.bool and thing.shape == federation.malicious.shape:
                same = torch.equal(thing, federation.malicious) or torch.equal(thing, ~federation.malicious)
                found += ["who is malicious"] if same else []
            if thing.dtype == torch.float32 and holds(memory_of(thing), own[:, :50]):
                found.append("what a malicious client trained in truth")
            if thing.dtype == torch.float32 and holds(memory_of(thing), federation.local[:-1]):
                found.append("a client's own BatchNorm")
    return found


@pytest.fixture
def played(federation) -> tuple[Federation, ServerView, torch.Tensor]:
    """A federation in its second round under attack, its view, and what the clients had trained in truth."""
    # The benchmark draws the root data and the episode from one seed.
    truth = federation(Scenario("none", 0.3, 0.5), ENTROPY, split_seed=ENTROPY)
    attacked = federation(SCENARIO, ENTROPY, split_seed=ENTROPY)
    for built in (truth, attacked):
        built.local_round()
        built.apply(0.01 * torch.ones(built.layout.num_shared))
    honest, view = truth.local_round().view.updates, attacked.local_round().view
    assert attacked.malicious.sum() == NUM_MALICIOUS
    assert torch.equal(honest[~attacked.malicious], view.updates[~attacked.malicious])
    assert not holds(view.updates, honest[attacked.malicious])
    return attacked, view, honest


def test_the_walk_finds_what_is_hidden_in_closures_partials_slots_methods_and_memory(played):
    federation, _, honest = played
    secret = federation.scenario

    class Slotted:
        __slots__ = ("inside",)

    slotted = Slotted()
    slotted.inside = secret
    trained = torch.cat([honest, torch.zeros(1, honest.shape[1])])
    hiding = {
        "closure": lambda: secret,
        "partial": functools.partial(print, secret),
        "keyword": functools.partial(print, end=secret),
        "slots": slotted,
        "method": federation.apply,
        "deep": {"a": [({"b": secret},)]},
        "slice": trained[-1],
        "detached slice": trained[-1].detach(),
        "mask": ~federation.malicious,
        "local": federation.local[-1],
        "streams": Streams(ENTROPY),
        "name": {"sign_flip": 1},
        "generator": [federation._attack_generator],
    }
    assert [name for name, root in hiding.items() if not secrets_in(root, federation, honest)] == []


def test_a_view_leads_to_nothing_of_the_truth(played):
    federation, view, honest = played
    assert secrets_in(view, federation, honest) == []


def test_after_its_fingerprint_and_losses_were_asked_for_a_view_still_leads_to_nothing(played):
    federation, view, honest = played
    assert view.fingerprint.observation.shape == (10, 6)
    view.root_losses(view.updates[:2])
    assert secrets_in(view, federation, honest) == []


BLIND = [name for name in rule_names() if not isinstance(make_rule(name), ReferenceRule)]


@pytest.mark.parametrize("name", BLIND)
def test_no_rule_reaches_the_truth_from_what_it_is_called_with_and_what_it_keeps(name, played):
    federation, view, honest = played
    rule = make_rule(name)
    seen: list[Any] = []

    class Watched(type(rule)):
        def aggregate(self, given: ServerView):
            seen.append(given)
            return super().aggregate(given)

    watched = object.__new__(Watched)
    vars(watched).update(vars(rule))
    result = watched(view)
    assert seen == [view]
    assert secrets_in([seen, watched], federation, honest) == []
    assert result.update.isfinite().all()


@pytest.mark.parametrize("name", BLIND)
def test_the_number_of_attackers_that_a_rule_expects_is_the_users_or_a_fixed_share(name):
    """No rule can be told the true number but by its own parameter, and calling it takes a view alone."""
    parameters = inspect.signature(type(make_rule(name)).aggregate).parameters
    assert list(parameters) == ["self", "view"]
    if "num_byzantine" in inspect.signature(type(make_rule(name))).parameters:
        assert make_rule(name).num_byzantine is None


def test_the_fingerprints_streams_are_not_the_episodes(played):
    _, view, _ = played
    streams = [thing for thing in reachable(view) if isinstance(thing, Streams)]
    assert streams
    order = Streams(ENTROPY).numpy(Purpose.MALICIOUS).permutation(10).tolist()
    assert all(own.numpy(Purpose.MALICIOUS).permutation(10).tolist() != order for own in streams)
