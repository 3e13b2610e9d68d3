"""``reset=``: sequences that begin inside a row are sequences of their own."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import RNN, RNNCell

T, I, H = 9, 3, 8  # noqa: E741
BEGINS = {"none": [], "first": [0], "two": [4, 7], "last": [8], "every": list(range(T))}


def by_hand(
    rnn: RNN, input: Tensor, hx: Tensor, begins: list[int], reset_state: Tensor
) -> tuple[Tensor, Tensor]:
    """The pieces (1, n, I) of a row one by one, each with the states that it begins with."""
    edges = [0, *(t for t in begins if t > 0), T]
    directions = 2 if rnn.bidirectional else 1
    results = []
    for begin, end in itertools.pairwise(edges):
        ways = [begin == 0 and 0 not in begins, end == T][:directions]
        own = torch.tensor(ways * rnn.num_layers, device=input.device)
        state = torch.where(own.view(-1, 1, 1), hx, reset_state)
        results.append(rnn(input[:, begin:end], state))
    outputs, states = zip(*results, strict=True)
    ends = [states[-1][0::directions], states[0][1::directions]][:directions]
    return torch.cat(outputs, 1), torch.stack(ends, 1).flatten(0, 1)


@pytest.mark.parametrize("state", ["zeros", "reset_state"])
@pytest.mark.parametrize("begins", BEGINS.values(), ids=BEGINS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_stacked_layers_and_gradients_are_those_of_the_pieces(
    bidirectional: bool, begins: list[int], state: str, device: str
) -> None:
    options: Any = {"device": device, "dtype": torch.float64}
    rnn = RNN(I, H, 3, bidirectional=bidirectional, batch_first=True, **options)
    input = torch.randn(1, T, I, **options, requires_grad=True)
    states = 6 if bidirectional else 3
    hx = torch.randn(states, 1, H, **options, requires_grad=True)
    given = torch.randn(states, 1, H, **options, requires_grad=True)
    reset = torch.zeros(1, T, dtype=torch.bool, device=device)
    reset[0, begins] = True
    if state == "zeros":
        ours = rnn(input, hx, reset=reset)
        expected = by_hand(rnn, input, hx, begins, torch.zeros_like(hx))
        wanted = [input, hx, *rnn.parameters()]
    else:
        ours = rnn(input, hx, reset=reset, reset_state=given)
        expected = by_hand(rnn, input, hx, begins, given)
        wanted = [input, hx, given, *rnn.parameters()]
    torch.testing.assert_close(ours, expected)
    grads = [
        torch.autograd.grad(y.sin().sum() + h.cos().sum(), wanted, materialize_grads=True)
        for y, h in (ours, expected)
    ]
    for found, true in zip(*grads, strict=True):
        torch.testing.assert_close(found, true)


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_a_first_step_that_begins_a_sequence_drops_hx(bidirectional: bool, device: str) -> None:
    rnn = RNN(I, H, 2, bidirectional=bidirectional, device=device)
    x, lengths = torch.randn(T, 3, I, device=device), torch.tensor([T, 4, 0], device=device)
    hx = torch.randn(4 if bidirectional else 2, 3, H, device=device, requires_grad=True)
    reset = torch.zeros(T, 3, dtype=torch.bool, device=device)
    reset[0] = True
    output, hn = rnn(x, hx, lengths=lengths, reset=reset)
    dropped = hx.detach().clone()
    dropped.unflatten(0, (2, -1))[:, 0, :2] = 0  # the third row has no step: its hn is hx
    expected, expected_hn = rnn(x, dropped, lengths=lengths)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(hn, expected_hn)
    (grad,) = torch.autograd.grad(output.sum() + hn.sum(), hx)
    assert not grad.unflatten(0, (2, -1))[:, 0, :2].any()
    assert grad.unflatten(0, (2, -1))[:, 0, 2].all()


def test_no_gradient_passes_a_mark(device: str) -> None:
    rnn, input = RNN(3, 8, 2, device=device), torch.randn(6, 2, 3, device=device)
    reset = torch.zeros(6, 2, dtype=torch.bool, device=device)
    reset[4, 0] = True
    output, _ = rnn(input.requires_grad_(), reset=reset)
    (grad,) = torch.autograd.grad(output[4:].sum(), input)
    assert not grad[:4, 0].any()
    assert grad[:4, 1].all()


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_nan_stays_on_its_side_of_a_mark(bidirectional: bool, device: str) -> None:
    """Of what lies before a mark nothing reaches the other side, forward or back."""
    rnn = RNN(I, H, bidirectional=bidirectional, device=device)
    x = torch.randn(T, 2, I, device=device, requires_grad=True)
    reset = torch.zeros(T, 2, dtype=torch.bool, device=device)
    reset[4, 0] = True
    output, _ = rnn(x, reset=reset)
    for broken, clean in ((slice(0, 4), slice(4, T)), (slice(4, T), slice(0, 4))):
        given = x.detach().clone()
        given[broken, 0] = float("nan")
        found, _ = rnn(given, reset=reset)
        assert found[broken, 0].isnan().all()
        assert torch.equal(found[clean], output[clean])
        assert torch.equal(found[:, 1], output[:, 1])
        grad_output = torch.ones_like(output)
        (expected,) = torch.autograd.grad(output, x, grad_output, retain_graph=True)
        grad_output[broken, 0] = float("nan")
        (grad,) = torch.autograd.grad(output, x, grad_output, retain_graph=True)
        assert grad[broken, 0].isnan().all()
        assert torch.equal(grad[clean], expected[clean])
        assert torch.equal(grad[:, 1], expected[:, 1])


def marks(device: str) -> Tensor:
    return torch.rand(T, 2, device=device) < 0.3


FORMS = {
    "bool": lambda r: r,
    "uint8": lambda r: r.to(torch.uint8),
    "int64": lambda r: r.long(),
    "float32": lambda r: r.float(),
    "last dimension": lambda r: r.unsqueeze(-1),
    "floats, last dimension": lambda r: r.float().unsqueeze(-1),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms(form: Any, device: str) -> None:
    rnn, x, reset = RNN(I, H, device=device), torch.randn(T, 2, I, device=device), marks(device)
    first = RNN(I, H, batch_first=True, device=device)
    first.load_state_dict(rnn.state_dict())
    expected, hn = rnn(x, reset=reset)
    assert not torch.equal(expected, rnn(x)[0])
    for output, state in (
        rnn(x, reset=form(reset)),
        fastrnn.functional.rnn(x, None, list(rnn.parameters()), reset=form(reset)),
    ):
        assert torch.equal(output, expected)
        assert torch.equal(state, hn)
    output, _ = first(x.transpose(0, 1), reset=form(reset.t()))
    assert torch.equal(output.transpose(0, 1), expected)
    row, state = rnn(x[:, 0], reset=form(reset[:, 0]))
    torch.testing.assert_close(row, expected[:, 0])
    torch.testing.assert_close(state, hn[:, 0])


@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("state", ["zeros", "reset_state"])
@pytest.mark.parametrize("form", ["packed", "padded", "numbers"])
def test_packed(form: str, state: str, bidirectional: bool, device: str) -> None:
    rnn = RNN(I, H, 2, bidirectional=bidirectional, device=device)
    lengths = torch.tensor([4, T, 6])
    x, reset = torch.randn(T, 3, I, device=device), torch.rand(T, 3, device=device) < 0.4
    hx = torch.randn(4 if bidirectional else 2, 3, H, device=device)
    options = {} if state == "zeros" else {"reset_state": torch.randn_like(hx)}
    expected, expected_hn = rnn(x, hx, lengths=lengths.to(device), reset=reset, **options)

    def pack(x: Tensor) -> PackedSequence:
        return pack_padded_sequence(x, lengths, enforce_sorted=False)

    given = {"packed": pack(reset), "padded": reset, "numbers": pack(reset.float().unsqueeze(-1))}
    packed, hn = rnn(pack(x), hx, reset=given[form], **options)
    torch.testing.assert_close(packed.data, pack(expected).data)
    torch.testing.assert_close(hn, expected_hn)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("state", ["zeros", "reset_state"])
def test_steps_are_those_of_the_sequence(state: str, form: Any, device: str) -> None:
    """A rollout by steps, with an environment's ``done``, is the training pass over its rows."""
    rnn, cell = RNN(I, H, 2, device=device), RNNCell(I, H, device=device)
    one = RNN(I, H, device=device)
    one.load_state_dict({f"{name}_l0": w for name, w in cell.state_dict().items()})
    x, reset = torch.randn(T, 2, I, device=device), marks(device)
    hx = torch.randn(2, 2, H, device=device)
    options = {} if state == "zeros" else {"reset_state": torch.randn_like(hx)}
    of_cell = {name: value[0] for name, value in options.items()}
    expected, _ = rnn(x, hx, reset=reset, **options)
    expected_of_one, _ = one(x, hx[:1], reset=reset, **{k: v[:1] for k, v in options.items()})
    h, h_cell = hx, hx[0]
    for t in range(T):
        output, h = rnn.step(x[t], h, reset=form(reset[t]), **options)
        torch.testing.assert_close(output, expected[t])
        h_cell = cell(x[t], h_cell, reset=form(reset[t]), **of_cell)
        torch.testing.assert_close(h_cell, expected_of_one[t])
    begins = torch.ones((), device=device)
    torch.testing.assert_close(rnn.step(x[0, 0], hx[:, 0], reset=begins)[0], rnn.step(x[0, 0])[0])
    torch.testing.assert_close(cell(x[0, 0], hx[0, 0], reset=begins), cell(x[0, 0]))


def test_wrong_arguments() -> None:
    rnn, cell, x = RNN(I, H), RNNCell(I, H), torch.randn(T, 2, I)
    by_rows = RNN(I, H, batch_first=True)
    reset, hx = torch.zeros(T, 2, dtype=torch.bool), torch.zeros(1, 2, H)
    lengths = torch.tensor([T, 4])
    packed = pack_padded_sequence(x, lengths)
    turned = pack_padded_sequence(x, lengths.flip(0), enforce_sorted=False)
    wrong: list[tuple[Any, type, str]] = [
        (lambda: rnn(x, reset=reset.t()), ValueError, r"reset of shape \(9, 2\), .* got"),
        (lambda: rnn(x, reset=reset.float().t()), ValueError,
         r"expected reset of shape \(9, 2\), the input's without its last dimension, got \(2, 9\)"),
        (lambda: rnn(x, reset=True), ValueError, r"reset of shape \(9, 2\), .* got \(\)"),
        (lambda: rnn(x, reset={}), TypeError, r"a tensor of shape \(9, 2\), bool or 0/1, got dict"),
        (lambda: rnn(x[:, 0], reset=reset), ValueError, r"reset of shape \(9,\), .* got \(9, 2\)"),
        (lambda: rnn(x, reset_state=hx), ValueError,
         "rnn: reset_state is the state where reset is true. Expected reset as well, got None"),
        (lambda: rnn(x, reset=reset, reset_state=(hx, hx)), TypeError, "reset_state to be a T"),
        (lambda: rnn(x, reset=reset, reset_state=hx.double()), RuntimeError,
         "expected reset_state of dtype torch.float32, .* got torch.float64"),
        (lambda: rnn(x, reset=reset, reset_state=hx[0]), RuntimeError, "reset_state size"),
        (lambda: rnn.step(x[0], reset_state=hx), ValueError, "RNN.step: reset_state is the state"),
        (lambda: rnn.step(x[0], (hx, hx), reset=reset[0]), AttributeError, "An LSTM's state"),
        (lambda: rnn.step(x[0].numpy(), reset=reset[0]), AttributeError, "got ndarray. Convert it"),
        (lambda: cell(x[0], (hx[0],) * 2, reset=reset[0]), AttributeError, "An LSTM's state"),
        (lambda: cell(x[0], reset="no"), TypeError, r"RNNCell: .* a tensor of shape \(2,\), bool"),
        (lambda: rnn.step(x[0], reset=reset), ValueError, r"reset of shape \(2,\), .* got"),
        (lambda: rnn.step(x[0], hx[:, :1], reset=reset[0]), RuntimeError, r"shape \(1, 2, 8\),"),
        (lambda: rnn.step(x[0], reset=reset[0], reset_state=hx[0]), RuntimeError, "a state"),
        (lambda: rnn.step(x[0], reset=reset[0], reset_state=hx[..., :1]), RuntimeError, "a state"),
        (lambda: cell(x[0], reset=reset[0], reset_state=hx[0, :, :1]), RuntimeError, "a state"),
        (lambda: cell(x[0], reset_state=hx[0]), ValueError, "RNNCell: reset_state is the state"),
        (lambda: rnn(packed, reset=reset[1:]), ValueError, r"reset of shape \(9, 2\), .* got"),
        (lambda: rnn(turned, reset=reset[:, :1]), ValueError, r"shape \(9, 2\), .* got \(9, 1\)"),
        (lambda: by_rows(packed, reset=reset), ValueError, r"shape \(2, 9\), .* got \(9, 2\)"),
        (lambda: rnn(packed, reset=pack_padded_sequence(reset, lengths - 1)), ValueError,
         "packed like the input"),
        (lambda: rnn(turned, reset=pack_padded_sequence(reset, lengths)), ValueError,
         "packed like the input, got different sorted_indices"),
    ]  # fmt: skip
    for call, error, message in wrong:
        with pytest.raises(error, match=message):
            call()


VALUES = {
    "list": lambda reset: reset.tolist(),
    "list of numbers": lambda reset: reset.int().tolist(),
    "array": lambda reset: reset.numpy(),
    "array of numbers": lambda reset: reset.double().numpy(),
    "numbers, all but 0 true": lambda reset: torch.where(reset, float("nan"), -0.0),
}


@pytest.mark.parametrize("form", VALUES.values(), ids=VALUES)
def test_lists_and_arrays(form: Any) -> None:
    rnn, cell, x, reset = RNN(I, H), RNNCell(I, H), torch.randn(T, 2, I), marks("cpu")
    hx = torch.randn(1, 2, H)
    lengths = torch.tensor([T, 4])
    packed = pack_padded_sequence(x, lengths)
    for call in (
        lambda reset: rnn(x, hx, reset=reset),
        lambda reset: rnn(packed, hx, reset=reset),
        lambda reset: fastrnn.functional.rnn(x, hx, list(rnn.parameters()), reset=reset),
    ):
        torch.testing.assert_close(call(form(reset)), call(reset), rtol=0, atol=0)
    for t in range(T):
        given = form(reset[t])
        assert torch.equal(
            rnn.step(x[t], hx, reset=given)[0], rnn.step(x[t], hx, reset=reset[t])[0]
        )
        assert torch.equal(cell(x[t], hx[0], reset=given), cell(x[t], hx[0], reset=reset[t]))
    assert torch.equal(rnn.step(x[0, 0], hx[:, 0], reset=True)[0], rnn.step(x[0, 0])[0])


@pytest.mark.parametrize("dtype", [bool, np.float32])
def test_an_array_may_be_filled_again(dtype: type) -> None:
    """Before the backward pass, as buffers of rollouts are."""
    rnn, x = RNN(I, H), torch.randn(T, 2, I)
    grads, reset = [], marks("cpu")
    for again in (False, True):
        done = reset.numpy().astype(dtype)
        output, _ = rnn(x, reset=done)
        if again:
            done[:] = True
        grads.append(torch.autograd.grad(output.sum(), rnn.weight_hh_l0)[0])
    assert torch.equal(*grads)


@pytest.mark.parametrize("which", ["lengths", "reset"])
def test_marks_made_in_inference_mode(which: str) -> None:
    """Flags from a rollout, in training."""
    rnn, x = RNN(I, H), torch.randn(T, 2, I)
    with torch.inference_mode():
        given = {"lengths": torch.tensor([T, 4])} if which == "lengths" else {"reset": marks("cpu")}
    grads = [
        torch.autograd.grad(rnn(x, **marks)[0].sum(), rnn.weight_hh_l0)[0]
        for marks in (given, {name: torch.tensor(y.tolist()) for name, y in given.items()})
    ]
    assert torch.equal(*grads)


@pytest.mark.parametrize("which", ["input", "reset"])
def test_packed_in_order_with_indices_or_without(which: str) -> None:
    """No indices, and the indices of the order as it is, say the same."""
    rnn, x, reset = RNN(I, H, bidirectional=True), torch.randn(T, 2, I), marks("cpu")
    packed, packed_marks = (pack_padded_sequence(y, torch.tensor([T, 4])) for y in (x, reset))
    expected, hn = rnn(packed, reset=packed_marks)
    order = torch.arange(2)
    if which == "input":
        packed = PackedSequence(packed.data, packed.batch_sizes, order, order)
    else:
        packed_marks = PackedSequence(packed_marks.data, packed_marks.batch_sizes, order, order)
    output, state = rnn(packed, reset=packed_marks)
    assert torch.equal(output.data, expected.data)
    assert torch.equal(state, hn)
    turned = PackedSequence(packed.data, packed.batch_sizes, order.flip(0), order.flip(0))
    with pytest.raises(ValueError, match="got different sorted_indices"):
        rnn(turned, reset=packed_marks)
