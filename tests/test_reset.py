"""``reset=``: sequences that begin inside a row are sequences of their own."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastrnn import RNN

BEGINS = {"none": [], "first": [0], "two": [4, 7], "last": [8], "every": list(range(9))}


@pytest.mark.parametrize("begins", BEGINS.values(), ids=BEGINS)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
def test_stacked_layers_and_gradients_are_those_of_the_pieces(
    bidirectional: bool, begins: list[int], device: str
) -> None:
    options = {"device": device, "dtype": torch.float64}
    rnn = RNN(3, 8, 3, bidirectional=bidirectional, batch_first=True, **options)
    input = torch.randn(1, 9, 3, **options, requires_grad=True)
    hx = torch.randn(6 if bidirectional else 3, 1, 8, **options, requires_grad=True)
    reset = torch.zeros(1, 9, dtype=torch.bool, device=device)
    reset[0, begins] = True
    edges = [0, *(t for t in begins if t > 0), 9]
    sizes = [end - begin for begin, end in itertools.pairwise(edges)]
    wanted = [input, hx, *rnn.parameters()]
    pieces = torch.cat([rnn(piece, hx)[0] for piece in input.split(sizes, 1)], 1)
    output, _ = rnn(input, hx, reset=reset)
    torch.testing.assert_close(output, pieces)
    grads = [torch.autograd.grad(y.sin().sum(), wanted) for y in (output, pieces)]
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected)


def test_no_gradient_passes_a_mark(device: str) -> None:
    rnn, input = RNN(3, 8, 2, device=device), torch.randn(6, 2, 3, device=device)
    reset = torch.zeros(6, 2, dtype=torch.bool, device=device)
    reset[4, 0] = True
    output, _ = rnn(input.requires_grad_(), reset=reset)
    (grad,) = torch.autograd.grad(output[4:].sum(), input)
    assert not grad[:4, 0].any()
    assert grad[:4, 1].all()
