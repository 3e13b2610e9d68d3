"""What a call costs beside its arithmetic: each form of it, and one that computes nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from benchmarks import machine
from benchmarks.contestants import grad_mode

SIZES = {  # T, B, I, H, L
    "B1-T1-I1-H1": (1, 1, 1, 1, 1),
    "B1-T10-I1-H32": (10, 1, 1, 32, 1),
    "B1-T10-I2-H32-L2": (10, 1, 2, 32, 2),
}


class Empty(torch.nn.RNN):
    """A module with nn.RNN's arguments, results and gradients, whose operator computes nothing."""

    def forward(self, input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        return machine.limits().empty(input, hx, self._flat_weights)


def make_forward(form: str, rnn: torch.nn.RNNBase) -> Callable[..., Any]:
    weights = list(rnn._flat_weights)
    match form:
        case "functional":
            return lambda x, hx: fastrnn.functional.rnn(x, hx, weights, num_layers=rnn.num_layers)
        case "torch.ops":
            op = torch.ops.fastrnn.rnn
            options = (None, None, None, None, True, rnn.num_layers, "tanh", False, False)
            return lambda x, hx: op(x, hx, weights, *options)
        case "module without hx":
            return lambda x, hx: rnn(x)
        case _:
            return rnn


# The first calls are slow: allocator, autograd engine.
pytestmark = pytest.mark.benchmark(warmup=True)
FORMS = ["empty module", "module", "module without hx", "functional", "torch.ops", "nn.RNN"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_overhead(benchmark: Any, mode: str, sizes: str, form: str) -> None:
    benchmark.group = f"overhead {mode} cpu, {sizes}"
    seq_len, batch, input_size, hidden_size, layers = SIZES[sizes]
    training = mode == "training"
    cls = {"nn.RNN": torch.nn.RNN, "empty module": Empty}.get(form, fastrnn.RNN)
    rnn = cls(input_size, hidden_size, layers)
    forward = make_forward(form, rnn)
    input = torch.randn(seq_len, batch, input_size, requires_grad=training)
    hx = torch.randn(layers, batch, hidden_size, requires_grad=training)
    grad_output = torch.randn(seq_len, batch, hidden_size)
    leaves = [input, hx, *rnn.parameters()]

    def training_step() -> None:
        for leaf in leaves:
            leaf.grad = None
        output, _ = forward(input, hx)
        output.backward(grad_output)

    with grad_mode(training):
        benchmark(training_step if training else lambda: forward(input, hx))
