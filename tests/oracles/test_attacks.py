"""Attacks beside the libraries' own. Where a library has another formula, it is asked for the part that agrees."""

from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor

from fl_core.attacks import AdversaryView, make_attack
from fl_core.attacks.colluding import alie_z

CASES = 300
KINDS = ("normal", "shifted", "heavy-tailed", "long and short", "near zero")


def case(seed: int) -> tuple[Tensor, int]:
    """Updates (N, P) float32 and how many of them, the first, are malicious."""
    draw = np.random.default_rng(seed)
    n, size, kind = int(draw.integers(3, 20)), int(draw.integers(1, 200)), KINDS[seed % len(KINDS)]
    rows = draw.standard_normal((n, size))
    if kind == "shifted":
        rows += 5 * draw.standard_normal(size)
    elif kind == "heavy-tailed":
        rows = draw.standard_t(2, (n, size))
    elif kind == "long and short":
        rows *= 10.0 ** draw.uniform(-2, 2, (n, 1))
    elif kind == "near zero":
        rows *= 1e-4
    return torch.from_numpy(rows).float(), int(draw.integers(1, n - 1))


def sent_by(name: str, updates: Tensor, f: int, **options) -> Tensor:
    """What the first f clients send, (f, P)."""
    malicious = torch.arange(len(updates)) < f
    generator = torch.Generator().manual_seed(0)
    return make_attack(name, **options)(updates, malicious, AdversaryView(generator))[malicious]


def close(sent: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the longest coordinate: an absolute bound alone would be blind to updates near zero."""
    for row in sent:
        torch.testing.assert_close(row, expected.to(row), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("seed", range(CASES))
def test_alie_is_byzfls_for_the_same_deviation(byzfl, seed):
    updates, f = case(seed)
    honest = updates[f:]
    # byzfl adds tau deviations and divides by one client less.
    shrunk = np.sqrt((len(honest) - 1) / len(honest))
    z = alie_z(len(updates), f)
    close(sent_by("alie", updates, f), byzfl.ALittleIsEnough(float(-z * shrunk))(honest))


@pytest.mark.parametrize("seed", range(CASES))
def test_alie_is_byzpys_for_its_own_z(byzpy, seed):
    updates, f = case(seed)
    n = len(updates)
    z = NormalDist().inv_cdf((n - max(n // 2 + 1 - f, 1)) / n)
    close(sent_by("alie", updates, f, z=-z), byzpy["LittleAttack"](f).apply(honest_grads=list(updates[f:])))


@pytest.mark.parametrize("epsilon", [0.1, 2.0])
@pytest.mark.parametrize("seed", range(CASES))
def test_ipm_is_byzfls_and_byzpys(byzfl, byzpy, seed, epsilon):
    updates, f = case(seed)
    sent = sent_by("ipm", updates, f, epsilon=epsilon)
    close(sent, byzfl.InnerProductManipulation(epsilon)(updates[f:]))
    close(sent, byzpy["EmpireAttack"](scale=-epsilon).apply(honest_grads=list(updates[f:])))


@pytest.mark.parametrize("seed", range(CASES))
def test_mimic_is_byzfls_and_byzpys_for_the_client_that_it_chooses(byzfl, byzpy, seed):
    updates, f = case(seed)
    sent, honest = sent_by("mimic", updates, f), updates[f:]
    chosen = next(i for i, row in enumerate(honest) if torch.equal(row, sent[0]))
    for library in (byzfl.Mimic(chosen)(honest), byzpy["MimicAttack"](chosen).apply(honest_grads=list(honest))):
        assert all(torch.equal(row, library) for row in sent)


@pytest.mark.parametrize("seed", range(CASES))
def test_sign_flip_is_byzfls_of_one_client_and_byzpys(byzfl, byzpy, seed):
    updates, f = case(seed)
    for row, own in zip(sent_by("sign_flip", updates, f), updates, strict=False):
        assert torch.equal(row, byzfl.SignFlipping()(own[None]))
        assert torch.equal(row, byzpy["SignFlipAttack"]().apply(base_grad=own))


@pytest.mark.parametrize("seed", range(CASES))
def test_colluding_sign_flip_is_byzfls_of_the_malicious_clients(byzfl, seed):
    updates, f = case(seed)
    close(sent_by("sign_flip", updates, f, colluding=True), byzfl.SignFlipping()(updates[:f]))
