import re
from dataclasses import replace
from math import inf, nan

import numpy as np
import pytest
import torch

from fl_core.aggregation import ServerView, make_rule
from fl_core.aggregation.view import receive

P = 4


def test_messages_of_a_wrong_shape_or_type_become_rows_of_nan_and_the_others_stay():
    good = torch.arange(4.0)
    messages = [
        good,
        torch.zeros(P + 1),
        torch.zeros(1, P),
        torch.zeros(()),
        None,
        "x",
        good.double(),
        torch.ones(P, dtype=torch.int32),
    ]
    received = receive(messages, P)
    assert received.dtype == torch.float32
    assert received.shape == (len(messages), P)
    assert ServerView(received).rejected.tolist() == [False, True, True, True, True, True, False, False]
    assert torch.equal(received[[0, 6, 7]], torch.stack([good, good, torch.ones(P)]))


def test_a_matrix_of_the_wrong_width_rejects_everybody():
    received = receive(torch.zeros(3, P + 1), P)
    assert received.shape == (3, P)
    assert ServerView(received).rejected.all()


def test_what_is_received_is_float32_however_it_was_sent(normal):
    updates = normal(3, P)
    for sent in (updates.double(), list(updates.double())):
        received = receive(sent, P)
        assert received.dtype == torch.float32
        assert torch.equal(received, updates)


def test_a_complex_message_costs_its_sender_the_weight_and_not_the_round():
    received = receive([torch.ones(P), torch.ones(P, dtype=torch.complex64)], P)
    assert ServerView(received).rejected.tolist() == [False, True]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_a_message_that_is_no_ordinary_tensor_costs_its_sender_the_weight_and_not_the_round():
    sparse, nowhere = torch.ones(P).to_sparse(), torch.ones(P, device="meta")
    quantized = torch.quantize_per_tensor(torch.ones(P), 1.0, 0, torch.qint8)
    for messages in (
        [torch.ones(P), sparse, nowhere, quantized],
        [nowhere, torch.ones(P)],
        torch.ones(2, P).to_sparse(),
    ):
        received = receive(messages, P)
        assert received.device == torch.device("cpu")
        ordinary = [isinstance(m, torch.Tensor) and m.layout == torch.strided for m in messages]
        good = [o and not (m.is_meta or m.is_quantized) for o, m in zip(ordinary, messages, strict=True)]
        assert (~ServerView(received).rejected).tolist() == good


@pytest.mark.parametrize("messages", [[], torch.zeros(0, P)])
def test_no_message_at_all_is_an_error_in_words(messages):
    with pytest.raises(ValueError, match=r"no client has sent a message.*leave this round out"):
        receive(messages, P)


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        (torch.ones(P), rf"one Tensor of the shape \({P},\)"),
        (np.ones(P), rf"one ndarray of the shape \({P},\)"),
        (None, "one NoneType"),
        (iter([torch.ones(P)]), "one list_iterator"),
        ({3: torch.ones(P)}, "one dict"),
    ],
)
def test_what_is_no_list_of_messages_is_refused_and_not_taken_for_bad_clients(messages, found):
    with pytest.raises(ValueError, match=rf"messages must be N updates \(P,\), one a client; got {found}"):
        receive(messages, P)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_arrays_are_messages_too(dtype):
    sent = np.linspace(-1, 1, 2 * P, dtype=dtype).reshape(2, P)
    expected = torch.tensor(sent.astype(np.float32))
    fixed = np.frombuffer(sent.tobytes(), dtype=dtype).reshape(2, P)  # read only, as what came over a wire is
    for messages in (
        sent,
        list(sent),
        dict(enumerate(sent)).values(),
        list(fixed),
        [sent[0], sent[1, ::-1].copy()[::-1]],
    ):
        received = receive(messages, P)
        assert received.dtype == torch.float32
        assert torch.equal(received, expected)
    text = receive([sent[0], np.full(P, "a"), sent[1][:-1]], P)
    assert ServerView(text).rejected.tolist() == [False, True, True]


def test_a_number_too_large_for_float32_is_rejected():
    received = receive([torch.ones(P), torch.full((P,), 1e300, dtype=torch.float64)], P)
    assert ServerView(received).rejected.tolist() == [False, True]


def test_received_updates_carry_no_gradient():
    assert not receive([torch.ones(P, requires_grad=True)], P).requires_grad


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_a_view_rejects_the_rows_that_are_not_finite_and_keeps_the_order_of_the_others(normal, value):
    updates = normal(5, P)
    updates[1, 2] = updates[3, 0] = value
    seen = ServerView(updates)
    assert seen.rejected.tolist() == [False, True, False, True, False]
    assert torch.equal(seen.accepted, updates[[0, 2, 4]])


@pytest.mark.parametrize("shape", [(3,), (0, 3), (3, 0), (2, 3, 4)])
def test_a_view_needs_a_matrix_of_updates(shape):
    with pytest.raises(ValueError, match=r"updates must have shape \(N, P\)"):
        ServerView(torch.zeros(shape))


@pytest.mark.parametrize("name", ["global_model", "reference"])
def test_the_servers_own_vectors_must_be_as_long_as_an_update(name):
    with pytest.raises(ValueError, match=rf"{name} must have shape \(4,\) like an update, got \(5,\)"):
        ServerView(torch.zeros(3, P), **{name: torch.zeros(P + 1)})


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.complex64])
def test_updates_that_no_rule_could_average_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"updates must be float32 or float64, got {dtype}"):
        ServerView(torch.ones(3, P).to(dtype))


def test_a_view_takes_no_gradient_along():
    updates = torch.randn(5, P, generator=torch.Generator().manual_seed(0))
    expected = make_rule("median")(ServerView(updates)).update
    with torch.enable_grad():
        assert torch.equal(make_rule("median")(ServerView(updates.clone().requires_grad_())).update, expected)


@pytest.mark.parametrize("layers", [(1, 2), (P, 0), (P + 1, -1)])
def test_layers_must_be_those_of_an_update(layers):
    with pytest.raises(ValueError, match=rf"add up to the {P} parameters of an update; got {re.escape(str(layers))}"):
        ServerView(torch.ones(3, P), layers=layers)


def test_what_a_rule_returns_is_the_callers_and_not_the_servers_own_reference(federation):
    view = federation().local_round().view
    before = view.reference.clone()
    for name in ("root_only", "fltrust", "foolsgold"):
        make_rule(name)(replace(view, updates=-view.reference.expand_as(view.updates))).update.zero_()
    assert torch.equal(view.reference, before)


def test_a_fingerprint_needs_root_data():
    with pytest.raises(ValueError, match="fingerprint needs root data"):
        ServerView(torch.zeros(3, P)).fingerprint  # noqa: B018


@pytest.mark.parametrize(
    ("clients", "told"),
    [
        ([4, 7], r"got \[4, 7\]"),
        (torch.tensor([4.0, 7.0]), r"got torch.float32 of shape \(2,\)"),
        (torch.tensor([4, 7, 9]), r"got torch.int64 of shape \(3,\)"),
        (torch.tensor([4, 4]), r"different numbers from 0 up, one a row of the updates; got \[4, 4\]"),
        (torch.tensor([-1, 1]), r"different numbers from 0 up, one a row of the updates; got \[-1, 1\]"),
    ],
)
def test_a_view_needs_a_number_of_its_own_for_every_row(clients, told):
    with pytest.raises(ValueError, match=rf"clients must be 2 .*{told}"):
        ServerView(torch.ones(2, 3), clients=clients)


def test_a_view_holds_nothing_of_the_truth(federation):
    view = federation().local_round().view
    assert set(vars(view)) == {
        "updates",
        "global_model",
        "reference",
        "server_local",
        "round",
        "fingerprinter",
        "clients",
        "layers",
    }
    assert view.clients is None


def test_messages_bring_no_gradient_along_in_whatever_form_they_come():
    messages = torch.ones(3, 5, requires_grad=True)
    for form in (messages, list(messages), [2 * row for row in messages]):
        assert not receive(form, 5).requires_grad


class Shouts(torch.Tensor):
    """A message whose methods run wherever the matrix is used that it is a row of."""


@pytest.mark.parametrize("message", [torch.zeros(P).as_subclass(Shouts), torch.empty(P, dtype=torch.uint16)])
def test_a_message_of_another_class_or_kind_costs_its_sender_the_weight(message):
    received = receive([torch.ones(P), message], P)
    assert type(received) is torch.Tensor
    assert ServerView(received).rejected.tolist() == [False, True]
