from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from fl_core.aggregation import Aggregate, Rule, ServerView, make_rule
from fl_core.attacks import AdversaryView, Attack, make_attack

MALICIOUS = torch.tensor([False, True, False, True, True])


@dataclass
class Memory:
    rounds: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Remembering(Rule):
    """The mean of all rounds' mean updates."""

    memory: Memory = field(default_factory=Memory, compare=False)

    def aggregate(self, view: ServerView) -> Aggregate:
        self.memory.rounds.append(view.accepted.mean(dim=0))
        return Aggregate(torch.stack(self.memory.rounds).mean(dim=0), None)


def test_what_an_adversary_tries_out_on_a_rule_with_a_memory_does_not_happen(normal):
    rule = Remembering()
    rule(ServerView(normal(5, 4)))
    before = rule(ServerView(normal(5, 4, seed=1))).update
    adversary = AdversaryView(torch.Generator(), rule=rule)
    one = adversary.aggregate("test", normal(5, 4, seed=2))
    other = adversary.aggregate("test", normal(5, 4, seed=2))
    assert torch.equal(one, other), "the first trial was remembered"
    assert len(rule.memory.rounds) == 2
    expected = (2 * before + normal(5, 4, seed=2).mean(dim=0)) / 3
    torch.testing.assert_close(one, expected)


def test_without_a_server_the_rule_is_asked_about_updates_alone(normal):
    adversary = AdversaryView(torch.Generator(), rule=make_rule("median"))
    torch.testing.assert_close(adversary.aggregate("test", normal(5, 4)), normal(5, 4).median(dim=0).values)
    with pytest.raises(ValueError, match="FLTrust needs root data"):
        replace(adversary, rule=make_rule("fltrust")).aggregate("test", normal(5, 4))


def test_without_a_server_the_rule_is_asked_about_this_round(normal):
    rule = make_rule("dnc", num_byzantine=2, coordinates=20)
    asked = [
        AdversaryView(torch.Generator(), round_, rule=rule).aggregate("test", normal(6, 200)) for round_ in range(4)
    ]
    for round_, update in enumerate(asked):
        assert torch.equal(update, rule(ServerView(normal(6, 200), round=round_)).update)
    assert len({tuple(update.tolist()) for update in asked}) > 1  # or the round would not matter here


def test_an_attack_knows_who_the_honest_clients_are(normal):
    own, honest = normal(2, 4), normal(3, 4, seed=1)
    adversary = AdversaryView(torch.Generator(), malicious=MALICIOUS)
    assert adversary.honest_clients(own, honest) == (~MALICIOUS).nonzero()[:, 0].tolist()
    some = replace(adversary, clients=torch.tensor([2, 3, 5, 7, 11]))
    assert some.honest_clients(own, honest) == torch.tensor([2, 3, 5, 7, 11])[~MALICIOUS].tolist()


def test_an_attack_is_told_which_rows_are_its_own_and_can_put_all_rows_in_order(normal):
    seen = []

    class Spy(Attack):
        def corrupt(self, own, honest, adversary):
            seen.append((adversary.places(own, honest), adversary.arrange(own, honest)))
            return own

    Spy()(normal(5, 4), MALICIOUS, AdversaryView(torch.Generator()))
    places, arranged = seen[0]
    assert torch.equal(places, MALICIOUS)
    assert torch.equal(arranged, normal(5, 4))


def test_where_places_are_not_known_its_own_rows_come_first(normal):
    own, honest = normal(2, 4), normal(3, 4, seed=1)
    adversary = AdversaryView(torch.Generator())
    assert adversary.places(own, honest).tolist() == [True, True, False, False, False]
    assert torch.equal(adversary.arrange(own, honest), torch.cat([own, honest]))


@pytest.mark.parametrize("name", ["optimised_alie", "optimised_ipm", "policy_aware"])
def test_an_attack_on_the_deployed_rule_says_that_none_is_known(name, white_box, normal):
    adversary = replace(white_box(9, make_rule("fedavg")), rule=None)
    with pytest.raises(ValueError, match=f"{name} is made against the deployed rule, and none is known here"):
        make_attack(name)(normal(5, 9), MALICIOUS, adversary)


@pytest.mark.parametrize("name", ["feature_box", "fltrust_adaptive", "reference_orthogonal"])
def test_an_attack_on_the_reference_says_that_no_server_is_known(name, normal):
    with pytest.raises(ValueError, match=f"{name} knows the server's fingerprint: give AdversaryView a server"):
        make_attack(name)(normal(5, 9), MALICIOUS, AdversaryView(torch.Generator()))
