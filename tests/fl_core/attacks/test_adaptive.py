import numpy as np
import pytest
import torch

from fl_core import Scenario
from fl_core.aggregation import TrustWeighting, make_rule
from fl_core.attacks import make_attack
from fl_core.fingerprint import FEATURES


def furthest_outside(features: np.ndarray, malicious: np.ndarray) -> float:
    """Largest distance of a malicious client's feature from the honest clients' 5 to 95 % range."""
    low, high = np.percentile(features[~malicious], [5, 95], axis=0)
    sent = features[malicious]
    return float(np.maximum(low - sent, sent - high).max())


def test_in_a_federation_all_six_features_of_a_feature_box_are_inside_the_honest_range(federation):
    built = federation(Scenario("feature_box", 0.3, alpha=0.5), entropy=100, num_clients=12)
    inside, progress = [], []
    for _ in range(6):
        round_ = built.local_round()
        view, malicious = round_.view, round_.malicious
        observed = view.fingerprint.observation.double().numpy()
        assert observed.shape == (12, len(FEATURES))
        inside.append(furthest_outside(observed, malicious.numpy()) < 1e-6)
        mean = view.updates[~malicious].mean(dim=0)
        progress.append(float(view.updates[malicious][0] @ mean / mean.square().sum()))
        built.apply(mean)
    assert np.mean(inside) >= 0.8  # in some rounds the box is so small that the budget does not find it
    assert np.mean(progress) < -0.3  # honest clients are at about +1


@pytest.mark.parametrize("f", [1, 3, 5])
def test_a_feature_box_is_inside_the_honest_range_and_goes_further_back_than_any_honest_client(
    white_box, reference, normal, f
):
    size = 400
    updates = normal(12, size) + reference(size)
    malicious = torch.arange(12) % 2 == 1
    malicious &= malicious.cumsum(dim=0) <= f
    adversary = white_box(size, make_rule("fedavg"))
    sent = make_attack("feature_box", evaluations=150)(updates, malicious, adversary)
    features = adversary.server_view("test", sent).fingerprint.observation.double().numpy()
    assert furthest_outside(features, malicious.numpy()) < 1e-6
    mean = updates[~malicious].mean(dim=0)
    along = updates @ mean
    assert float(sent[malicious][0] @ mean) < float(along[~malicious].min())


@pytest.mark.parametrize("evaluations", [1, 2, 7, 40])
def test_a_feature_box_computes_as_many_fingerprints_as_it_may(white_box, reference, normal, evaluations):
    adversary = white_box(30, make_rule("fedavg"))
    counted = []
    spying = type(adversary)(adversary.generator, server=lambda u: counted.append(1) or adversary.server(u))
    updates = normal(10, 30) + reference(30)
    make_attack("feature_box", evaluations=evaluations)(updates, torch.arange(10) < 3, spying)
    assert evaluations <= len(counted) <= evaluations + 2


def cosine(rows: np.ndarray, vector: np.ndarray) -> np.ndarray:
    return rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector)


@pytest.mark.parametrize("f", [1, 4, 8])
def test_reference_orthogonal_has_an_honest_length_and_cosine_and_points_against_the_rest(
    white_box, reference, normal, f
):
    size = 300
    updates, malicious = normal(9, size) + reference(size), torch.arange(9) < f
    sent = make_attack("reference_orthogonal")(updates, malicious, white_box(size, make_rule("fedavg")))
    rows, root = sent.double().numpy(), reference(size).double().numpy()
    honest = updates[~malicious].double().numpy()
    assert np.linalg.norm(rows[0]) == pytest.approx(np.median(np.linalg.norm(honest, axis=1)), rel=1e-4)
    assert cosine(rows[:1], root)[0] == pytest.approx(np.median(cosine(honest, root)), abs=1e-4)
    mean, unit = honest.mean(axis=0), root / np.linalg.norm(root)
    rest = [v - (v @ unit) * unit for v in (rows[0], mean)]
    assert cosine(rest[0][None], rest[1])[0] == pytest.approx(-1, abs=1e-5)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("rule", ["fedavg", "fltrust", "median", "krum"])
def test_policy_aware_undoes_more_than_the_attacks_that_do_not_ask_the_rule(white_box, reference, normal, rule, apart):
    size = 200
    updates, malicious = normal(10, size) + reference(size), torch.arange(10) < 3
    adversary = white_box(size, make_rule(rule))
    mean = updates[~malicious].mean(dim=0)

    def progress(name: str, **options: bool) -> float:
        sent = make_attack(name, **options)(updates, malicious, adversary)
        return float(adversary.aggregate("test", sent) @ mean)

    reached = progress("policy_aware", apart=apart)
    assert reached < progress("none")
    assert reached <= progress("reference_orthogonal") + 1e-4 * abs(progress("none"))
    if rule != "krum":  # which takes one update or none of them
        assert reached <= progress("ipm") + 1e-4 * abs(progress("none"))


def test_apart_colluders_keep_their_votes_where_sybils_share_them(federation):
    rule = make_rule("shapley", weighting=TrustWeighting(sybil_exponent=2.0))

    def progress(**options: bool) -> float:
        built = federation(Scenario("policy_aware", 0.3, alpha=0.5, attack_options=options), entropy=100)
        made = []
        for _ in range(4):
            round_ = built.local_round(rule)
            update, mean = rule(round_.view).update, round_.view.updates[~round_.malicious].mean(dim=0)
            made.append(float(update @ mean / (mean @ mean)))
            built.apply(update)
        return sum(made) / len(made)

    assert progress(apart=True) < progress() - 0.05


def test_what_was_tried_out_is_what_is_sent_noise_included(white_box, normal):
    seen = []

    class Seeing(type(make_rule("fedavg"))):
        def aggregate(self, view):
            seen.append(view.updates.clone())
            return super().aggregate(view)

    for name in ("policy_aware", "policy_aware apart", "optimised_ipm", "optimised_alie"):
        seen.clear()
        options = {"apart": True} if name.endswith("apart") else {}
        attack = make_attack(name.split()[0], jitter=0.5, evaluations=20, **options)
        sent = attack(normal(10, 30), torch.arange(10) < 3, white_box(30, Seeing()))
        assert any(torch.equal(sent, tried) for tried in seen), name
        assert len({tuple(row.tolist()) for row in sent[:3]}) == 3, name


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("evaluations", [1, 5, 30])
def test_policy_aware_asks_the_rule_as_often_as_it_may(white_box, normal, evaluations, apart):
    asked = []

    class Counting(type(make_rule("fedavg"))):
        def aggregate(self, view):
            asked.append(view)
            return super().aggregate(view)

    make_attack("policy_aware", evaluations=evaluations, apart=apart)(
        normal(10, 30), torch.arange(10) < 3, white_box(30, Counting())
    )
    assert len(asked) == evaluations


def accuracy(federation, attack: str, rule_name: str, rounds: int = 12) -> float:
    built, rule = federation(Scenario(attack, 0.3, alpha=0.5), entropy=100), make_rule(rule_name)
    for _ in range(rounds):
        built.apply(rule(built.local_round(rule).view).update)
    return float(built.evaluate(torch.zeros(1, built.layout.num_shared), "validation").accuracy[0])


@pytest.mark.parametrize(
    ("attack", "rule", "points"),
    [
        ("optimised_alie", "fedavg", 50),
        ("optimised_ipm", "fedavg", 50),
        ("policy_aware", "fedavg", 50),
        ("reference_orthogonal", "fedavg", 4),
        ("fltrust_adaptive", "fltrust", 8),
        ("policy_aware", "fltrust", 8),
        ("reference_orthogonal", "fltrust", 4),
        ("fang_trim", "trimmed_mean", 10),
        ("fang_krum", "krum", 10),
    ],
)
def test_an_attack_bites_the_rule_it_is_made_against(federation, attack, rule, points):
    assert accuracy(federation, attack, rule) < accuracy(federation, "none", rule) - points / 100


def test_in_a_federation_an_attack_on_the_deployed_rule_needs_one(federation):
    built = federation(Scenario("optimised_ipm", 0.3, onset=1), entropy=100)
    built.apply(built.local_round().view.updates.mean(dim=0))  # before its onset it asks nothing
    with pytest.raises(ValueError, match="give the rule to Federation"):
        built.local_round()


def test_in_a_federation_an_attack_on_the_deployed_rule_depends_on_which_it_is(federation):
    sent = {}
    for name in ("fedavg", "median"):
        built = federation(Scenario("optimised_alie", 0.3), entropy=100)
        round_ = built.local_round(make_rule(name))
        sent[name] = round_.view.updates[round_.malicious]
    assert sent["fedavg"].norm() > 2 * sent["median"].norm()


def test_knowing_the_fingerprint_leaves_no_trace_in_what_the_server_sees(federation):
    quiet, curious = (federation(Scenario("none", 0.3), entropy=5) for _ in range(2))
    one = quiet.local_round().view
    curious.attack = make_attack("feature_box", evaluations=3)
    other = curious.local_round()
    honest = ~other.malicious
    assert torch.equal(one.updates[honest], other.view.updates[honest])
    again = type(other.view)(
        one.updates, one.global_model, one.reference, one.server_local, one.round, other.view.fingerprinter
    )
    assert torch.equal(again.fingerprint.raw, one.fingerprint.raw)
