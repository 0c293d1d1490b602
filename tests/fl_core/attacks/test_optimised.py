from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fl_core.aggregation import Aggregate, Rule, ServerView, make_rule
from fl_core.attacks import AdversaryView, make_attack
from fl_core.attacks.optimised import axes


def split(updates: Tensor, f: int) -> tuple[Tensor, Tensor]:
    malicious = torch.arange(len(updates)) < f
    return malicious, updates[~malicious]


def attacked(name: str, updates: Tensor, f: int, adversary: AdversaryView | None = None, **options) -> Tensor:
    malicious, _ = split(updates, f)
    return make_attack(name, **options)(
        updates, malicious, adversary or AdversaryView(torch.Generator().manual_seed(3))
    )


@settings(max_examples=30)
@given(st.integers(2, 9), st.data())
def test_fang_trims_values_lie_beyond_the_honest_extreme_against_the_honest_way(n, data):
    f = data.draw(st.integers(1, n - 1))
    b = data.draw(st.sampled_from([1.5, 2.0, 10.0]))
    updates = torch.randn(n, 40, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 2**31))))
    sent = attacked("fang_trim", updates, f, b=b)[:f].double().numpy()
    honest, way = updates[f:].double().numpy(), np.sign(updates.double().numpy().sum(axis=0))
    for j in range(40):
        if way[j] > 0:
            edge = honest[:, j].min()
            low, high = (edge / b, edge) if edge > 0 else (b * edge, edge)
        else:
            edge = honest[:, j].max()
            low, high = (edge, b * edge) if edge > 0 else (edge, edge / b)
        slack = 1e-6 * abs(edge)
        assert (low - slack <= sent[:, j]).all()
        assert (sent[:, j] <= high + slack).all()


def test_fang_trim_draws_for_each_client_by_itself_over_the_whole_interval():
    updates = torch.ones(4, 5000)
    sent = attacked("fang_trim", updates, 2)[:2]
    assert not torch.equal(sent[0], sent[1])
    assert 0.5 <= float(sent.min()) < 0.51
    assert 0.99 < float(sent.max()) <= 1.0


@pytest.mark.parametrize("rule", ["trimmed_mean", "median"])
def test_to_the_rules_it_is_made_for_fang_trim_does_all_that_any_value_could_do(rule, normal):
    updates = normal(10, 500) + 0.3
    way = updates.sum(dim=0).sign()
    furthest = updates.clone()
    furthest[:3] = -1e6 * way
    update = make_rule(rule)(ServerView(attacked("fang_trim", updates, 3))).update
    torch.testing.assert_close(update, make_rule(rule)(ServerView(furthest)).update)
    assert float(update @ way) < 0 < float(make_rule(rule)(ServerView(updates)).update @ way)


def krum_bound(updates: np.ndarray, f: int) -> float:
    """Theorem 1 of the paper, straight from its text."""
    honest = updates[f:]
    m, d = updates.shape
    distances = ((honest[:, None] - honest[None]) ** 2).sum(axis=2)
    nearest = min(np.sort(np.delete(row, i))[: m - f - 2].sum() for i, row in enumerate(distances))
    return np.sqrt(nearest / ((m - 2 * f - 1) * d)) + np.sqrt((honest**2).sum(axis=1).max() / d)


@pytest.mark.parametrize(("n", "f"), [(9, 1), (7, 2), (10, 3), (15, 4), (21, 9)])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_krum_chooses_fang_krums_vector_and_would_not_choose_one_twice_as_strong(normal, n, f, shift):
    updates = 0.1 * (normal(n, 60) + shift)
    sent = attacked("fang_krum", updates, f)
    if torch.equal(sent, updates):  # no strength is small enough: not even the smallest tried one is chosen
        assert f == 1
        return
    strength = float(sent[0].abs().max())
    np.testing.assert_array_equal(sent[:f].numpy(), (-strength * updates.sum(dim=0).sign()).expand(f, -1).numpy())
    krum = make_rule("krum", num_byzantine=f)
    assert torch.equal(krum(ServerView(sent)).update, sent[0])
    halved = np.log2(krum_bound(updates.double().numpy(), f) / strength)
    assert halved == pytest.approx(round(halved), abs=1e-4)
    if round(halved) > 0:
        stronger = sent.clone()
        stronger[:f] *= 2
        assert not torch.equal(krum(ServerView(stronger)).update, stronger[0])


def test_fang_krum_gives_up_where_krum_never_falls_for_it():
    # Honest clients agree far from zero: a vector near zero is never among the closest.
    updates = 1 + 1e-3 * torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    assert torch.equal(attacked("fang_krum", updates, 1), updates)


@dataclass(frozen=True)
class Asked(Rule):
    """Another rule, and a list of what it was asked that copies of it share."""

    rule: Rule
    questions: list[Tensor] = field(default_factory=list)

    def __deepcopy__(self, memo):
        return self

    def aggregate(self, view: ServerView) -> Aggregate:
        self.questions.append(view.updates.clone())
        return self.rule.aggregate(view)


@pytest.mark.parametrize("rule", ["fedavg", "median", "trimmed_mean", "krum", "fltrust"])
@pytest.mark.parametrize(("name", "usual"), [("optimised_ipm", "ipm"), ("optimised_alie", "alie")])
def test_an_optimised_attack_is_the_most_harmful_of_all_that_it_tried(white_box, normal, rule, name, usual):
    updates = normal(10, 60) + 0.2
    malicious, honest = split(updates, 3)
    asked = Asked(make_rule(rule))
    adversary = white_box(60, asked)
    sent = make_attack(name, evaluations=17)(updates, malicious, adversary)

    def harm(received: Tensor) -> float:
        return float((adversary.aggregate("test", received) - honest.mean(dim=0)).double().norm())

    assert len(asked.questions) == 17
    tried = [harm(question) for question in list(asked.questions)]
    assert harm(sent) == pytest.approx(max(tried), rel=1e-6)
    # What was asked are the usual attack's own vectors, at other strengths.
    direction = (sent[0] - honest.mean(dim=0)).double()
    other = (make_attack(usual)(updates, malicious, adversary)[0] - honest.mean(dim=0)).double()
    assert float(direction @ other / direction.norm() / other.norm()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("rule", ["median", "trimmed_mean", "krum"])
def test_optimised_ipm_harms_more_than_ipm_at_the_usual_strengths(white_box, normal, rule):
    updates = normal(10, 60) + 0.2
    malicious, honest = split(updates, 3)
    adversary = white_box(60, make_rule(rule))

    def harm(name: str, **options) -> float:
        sent = make_attack(name, **options)(updates, malicious, adversary)
        return float((adversary.aggregate("test", sent) - honest.mean(dim=0)).norm())

    assert harm("optimised_ipm", evaluations=30) >= max(harm("ipm", epsilon=e) for e in (0.1, 2.0)) * (1 - 1e-3)


def test_a_rule_that_depends_on_places_is_asked_with_every_row_in_its_place(white_box, normal):
    updates, malicious = normal(6, 8), torch.tensor([False, True, False, False, True, False])
    asked = Asked(make_rule("fedavg"))
    make_attack("optimised_ipm")(updates, malicious, white_box(8, asked))
    for question in asked.questions:
        assert torch.equal(question[~malicious], updates[~malicious])
        assert (question[malicious] != updates[malicious]).all()


def test_a_rules_own_refusal_of_too_few_clients_reaches_the_user(white_box, normal):
    with pytest.raises(ValueError, match="krum needs n >= 2f"):
        make_attack("optimised_ipm")(normal(2, 8), torch.tensor([True, False]), white_box(8, make_rule("krum")))


@pytest.mark.parametrize("f", [1, 3, 6])
@pytest.mark.parametrize("seed", range(3))
def test_no_vectors_turn_fltrust_further_than_fltrust_adaptives(white_box, reference, normal, f, seed):
    size = 12
    updates, root = normal(9, size, seed=seed) + 0.5 * reference(size), reference(size)
    malicious, _ = split(updates, f)
    adversary = white_box(size, make_rule("fltrust"))
    way = adversary.aggregate("test", updates).sign()
    sent = make_attack("fltrust_adaptive")(updates, malicious, adversary)

    def progress(received: Tensor) -> float:
        return float(adversary.aggregate("test", received).double() @ way.double())

    reached = progress(sent)
    assert reached < progress(updates)
    generator = torch.Generator().manual_seed(seed)
    for spread in (0.03, 0.3, 3.0):  # near the attack's own vectors, and anywhere
        for _ in range(300):
            other = updates.clone()
            other[malicious] = sent[malicious] + spread * root.norm() * torch.randn(f, size, generator=generator) / 3.5
            assert progress(other) >= reached - 1e-4 * abs(reached)


def test_fltrust_adaptive_withholds_where_there_is_nothing_but_the_reference(white_box, reference):
    updates = torch.ones(4, 1) * reference(1)
    sent = attacked("fltrust_adaptive", updates, 2, white_box(1, make_rule("fltrust")))
    assert torch.equal(sent[:2], -reference(1).expand(2, 1))


def test_axes_are_orthonormal_and_span_what_they_are_made_of(normal):
    a, b = normal(2, 30)
    unit, aside = axes(a, b)
    gram = torch.stack([unit, aside]) @ torch.stack([unit, aside]).T
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close((b.double() @ unit) * unit + (b.double() @ aside) * aside, b.double())
    assert not axes(a, 3 * a)[1].any()
    assert not axes(torch.zeros(30), b)[0].any()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("fang_trim", {"b": 1.0}, "fang_trim: b must be above 1 and finite, got 1.0"),
        ("fang_krum", {"halvings": 0}, "fang_krum: halvings must be at least 1, got 0"),
        ("optimised_ipm", {"evaluations": 0}, "optimised_ipm: evaluations must be at least 1, got 0"),
        ("optimised_alie", {"largest": 0.0}, "optimised_alie: largest must be above 0 and finite, got 0.0"),
        ("optimised_ipm", {"jitter": -1.0}, "jitter must be 0 or more"),
        ("feature_box", {"evaluations": -1}, "feature_box: evaluations must be at least 1, got -1"),
        ("policy_aware", {"largest": float("nan")}, "policy_aware: largest must be above 0 and finite, got nan"),
    ],
)
def test_a_parameter_out_of_range_is_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_attack(name, **options)
