"""``igates=``, gates from outside, and ``return_layers=``, the output of every layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from fastrnn import RNN, LeakyRNN
from fastrnn.functional import leaky_rnn
from fastrnn.functional import rnn as rnn_function

T, B, I, H = 9, 4, 3, 8  # noqa: E741
MODULES = {
    "plain": lambda **options: RNN(I, H, **options),
    "leaky": lambda **options: LeakyRNN(I, H, alpha=0.3, form="current", **options),
}


def projected(rnn: RNN, x: Tensor) -> Tensor:
    """What the first layer makes of its input, without biases."""
    weights = [rnn.weight_ih_l0]
    if rnn.bidirectional:
        weights.append(rnn.weight_ih_l0_reverse)
    return x @ torch.cat(weights).T


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("kind", MODULES)
def test_gates_are_a_projected_input(
    kind: str, bidirectional: bool, batch_first: bool, device: str
) -> None:
    """In its place, and beside it: outputs and gradients."""
    options: Any = {"num_layers": 2, "bidirectional": bidirectional, "batch_first": batch_first}
    rnn = MODULES[kind](**options, device=device, dtype=torch.float64)
    sizes = (B, T) if batch_first else (T, B)
    x = torch.randn(*sizes, I, device=device, dtype=torch.float64, requires_grad=True)
    other = torch.randn_like(x, requires_grad=True)
    lengths = torch.tensor([9, 3, 5, 1], device=device)
    wanted = [x, *rnn.parameters()]
    calls = [rnn(x, lengths=lengths), rnn(None, igates=projected(rnn, x), lengths=lengths)]
    torch.testing.assert_close(*calls)
    weights = [torch.randn_like(y) for y in calls[0]]
    torch.testing.assert_close(*(torch.autograd.grad(c, wanted, weights) for c in calls))
    both = [rnn(x + other, lengths=lengths)]
    both.append(rnn(x, igates=projected(rnn, other), lengths=lengths))
    torch.testing.assert_close(*both)
    wanted = [x, other, *rnn.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(c, wanted, weights) for c in both))


@pytest.mark.parametrize("kind", MODULES)
def test_gates_of_packed_and_single_sequences(kind: str, device: str) -> None:
    rnn = MODULES[kind](device=device, dtype=torch.float64)
    x = torch.randn(T, B, I, device=device, dtype=torch.float64)
    lengths = torch.tensor([3, 9, 5, 1])

    def packed(x: Tensor) -> PackedSequence:
        return pack_padded_sequence(x, lengths, enforce_sorted=False)

    expected = rnn(packed(x))
    gates = packed(projected(rnn, x))
    for igates in (gates, gates.data):
        y, h = rnn(packed(torch.zeros_like(x)), igates=igates)
        torch.testing.assert_close((y.data, h), (expected[0].data, expected[1]))
    y, h = rnn(None, igates=gates)
    torch.testing.assert_close((y.data, h), (expected[0].data, expected[1]))
    torch.testing.assert_close(rnn(None, igates=projected(rnn, x[:, 0])), rnn(x[:, 0]))
    other = pack_padded_sequence(projected(rnn, x), lengths.flip(0), enforce_sorted=False)
    with pytest.raises(ValueError, match="different sorted_indices"):
        rnn(packed(x), igates=other)


def test_tokens_take_rows_of_a_table(device: str) -> None:
    rnn = RNN(5, H, device=device, dtype=torch.float64)
    tokens = torch.randint(0, 5, (T, B), device=device)
    one_hot = F.one_hot(tokens, 5).double()
    calls = [rnn(one_hot), rnn(None, igates=F.embedding(tokens, rnn.weight_ih_l0.T))]
    torch.testing.assert_close(*calls)
    grads = [torch.autograd.grad(y.sin().sum(), [*rnn.parameters()]) for y, _ in calls]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize("marks", ["", "lengths", "reset"])
@pytest.mark.parametrize("kind", MODULES)
def test_layers_are_those_of_shallower_stacks(
    kind: str, marks: str, batch_first: bool, device: str
) -> None:
    options: Any = {"bidirectional": True, "batch_first": batch_first}
    rnn = MODULES[kind](num_layers=3, **options, device=device, dtype=torch.float64)
    sizes = (B, T) if batch_first else (T, B)
    x = torch.randn(*sizes, I, device=device, dtype=torch.float64, requires_grad=True)
    given: Any = {"lengths": {"lengths": torch.tensor([9, 0, 5, 1], device=device)}}.get(marks, {})
    if marks == "reset":
        given = {"reset": torch.rand(sizes, device=device) < 0.3}
    output, _, layers = rnn(x, **given, return_layers=True)
    assert layers.shape == (3, *sizes, 2 * H)
    assert torch.equal(layers[-1], output)
    expected = []
    for depth in (1, 2, 3):
        part = MODULES[kind](num_layers=depth, **options, device=device, dtype=torch.float64)
        state = part.state_dict()
        own = {name: p for name, p in rnn.named_parameters() if name in state}
        expected.append(torch.func.functional_call(part, own, (x,), given)[0])
    torch.testing.assert_close(layers, torch.stack(expected))
    with torch.no_grad():
        assert torch.equal(rnn(x, **given, return_layers=True)[2], layers)
    weight = torch.randn_like(layers)
    wanted = [x, *rnn.parameters()]
    grads = [
        torch.autograd.grad((y * weight).sum(), wanted) for y in (layers, torch.stack(expected))
    ]
    torch.testing.assert_close(*grads)


def test_layers_of_packed_and_single_sequences(device: str) -> None:
    rnn = RNN(I, H, 2, device=device)
    x, lengths = torch.randn(T, B, I, device=device), torch.tensor([3, 9, 5, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, _, layers = rnn(packed, return_layers=True)
    assert isinstance(layers, list)
    assert torch.equal(layers[1].data, output.data)
    _, _, padded = rnn(x, lengths=lengths.to(device), return_layers=True)
    for layer, expected in zip(layers, padded, strict=True):
        torch.testing.assert_close(pad_packed_sequence(layer)[0], expected)
    _, _, alone = rnn(x[:, 1], return_layers=True)
    torch.testing.assert_close(alone, padded[:, :, 1])


def test_writing_to_a_result_does_not_change_gradients(device: str) -> None:
    rnn = RNN(I, H, 2, device=device)
    x = torch.randn(T, B, I, device=device)
    grads = []
    for write in (False, True):
        rnn.zero_grad()
        output, hn, layers = rnn(x, return_layers=True)
        loss = output.sum() + hn.sum() + layers.sum()
        if write:
            with torch.no_grad():
                for y in (output, hn, layers):
                    y.zero_()
        loss.backward()
        grads.append([p.grad.clone() for p in rnn.parameters()])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda r: r(None), AttributeError, "expected input to be a Tensor"),
        (lambda r: r(None, igates=[1.0]), TypeError, "expected igates to be a Tensor, got list"),
        (lambda r: r(torch.ones(T, B, I), igates=torch.ones(T, B)), ValueError, "igates of shape"),
        (lambda r: r(None, igates=torch.zeros(T, B, 7)), ValueError, "igates of shape"),
        (lambda r: r(None, igates=torch.zeros(T, B, H).half()), RuntimeError, "igates of dtype"),
        (lambda r: r(None, igates=torch.zeros(0, B, H)), RuntimeError, "larger than 0"),
        (lambda r: r(None, igates=torch.ones(H)), ValueError, "2 or 3 dimensions, got 1"),
        (lambda r: r(torch.ones(T, B, I), igates=torch.ones(T, B, H).to_sparse()), RuntimeError,
         r"Convert it: igates.to_dense\(\)"),
    ],
)  # fmt: skip
def test_errors(call: Any, error: Any, words: str) -> None:
    rnn = RNN(I, H)
    with pytest.raises(error, match=words):
        call(rnn)


def test_function(device: str) -> None:
    rnn = RNN(I, H, 2, device=device)
    x = torch.randn(T, B, I, device=device)
    weights = [*rnn.parameters()]
    gates = projected(rnn, x)
    found = rnn_function(None, None, weights, num_layers=2, igates=gates, return_layers=True)
    torch.testing.assert_close(found, rnn(x, return_layers=True))


@pytest.mark.parametrize("wrong", [2, "yes", None, np.True_])
def test_return_layers_of_another_type(wrong: Any) -> None:
    x, rnn = torch.ones(5, 2, 3), RNN(3, 4)
    weights = list(rnn.parameters())
    for call in (
        lambda: rnn(x, return_layers=wrong),
        lambda: LeakyRNN(3, 4)(x, return_layers=wrong),
        lambda: rnn_function(x, None, weights, return_layers=wrong),
        lambda: leaky_rnn(x, None, weights, 0.1, return_layers=wrong),
    ):
        with pytest.raises(TypeError, match="return_layers should be of type bool, got"):
            call()
