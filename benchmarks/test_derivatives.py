"""Derivatives that take the reference path, beside those of nn.RNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import fastrnn

SIZES = {  # T, B, I, H
    "T30-B16-I16-H32": (30, 16, 16, 32),
    "T100-B32-I16-H128": (100, 32, 16, 128),
}
CLASSES = {"fastrnn": fastrnn.RNN, "nn.RNN": nn.RNN}

pytestmark = pytest.mark.benchmark(warmup=True, min_rounds=5)


def gradient_penalty(rnn: nn.RNNBase, input: Tensor) -> Callable[[], Any]:
    """The gradient of the norm of the input's gradient."""
    input.requires_grad_()

    def run() -> None:
        rnn.zero_grad()
        (grad_input,) = torch.autograd.grad(rnn(input)[0].sum(), input, create_graph=True)
        grad_input.square().sum().backward()

    return run


def func_grad(rnn: nn.RNNBase, input: Tensor) -> Callable[[], Any]:
    """``torch.func.grad`` of all weights."""
    weights = {name: w.detach() for name, w in rnn.named_parameters()}
    return lambda: grad(lambda w: functional_call(rnn, w, (input,))[0].square().sum())(weights)


def gradients_of_samples(rnn: nn.RNNBase, input: Tensor) -> Callable[[], Any]:
    """The gradient of each row of the batch: by vmap, or, as nn.RNN has no vmap, in a loop."""
    weights = {name: w.detach() for name, w in rnn.named_parameters()}
    of_one = grad(lambda w, row: functional_call(rnn, w, (row,))[0].square().sum())
    rows = input.transpose(0, 1).contiguous()
    if isinstance(rnn, fastrnn.RNN):
        return lambda: vmap(of_one, (None, 0))(weights, rows)
    return lambda: [of_one(weights, row) for row in rows]


DERIVATIVES = {
    "gradient penalty": gradient_penalty,
    "torch.func.grad": func_grad,
    "gradients of samples": gradients_of_samples,
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives(benchmark: Any, derivative: str, sizes: str, cls: str) -> None:
    benchmark.group = f"{derivative} cpu, {sizes}"
    seq_len, batch, input_size, hidden_size = SIZES[sizes]
    rnn = CLASSES[cls](input_size, hidden_size)
    benchmark(DERIVATIVES[derivative](rnn, torch.randn(seq_len, batch, input_size)))
