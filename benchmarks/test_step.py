"""One time step of a stream: RNN.step beside a call on one step, the cells, and one product."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn

SIZES = {"B1-I8-H32": (1, 8, 32), "B16-I8-H32": (16, 8, 32)}
FORMS = ["RNN.step", "RNN", "fastrnn.RNNCell", "nn.RNNCell", "one addmm"]

pytestmark = pytest.mark.benchmark(warmup=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sizes", SIZES)
def test_step(benchmark: Any, sizes: str, form: str) -> None:
    benchmark.group = f"one step, inference cpu, {sizes}"
    batch, input_size, hidden_size = SIZES[sizes]
    rnn = fastrnn.RNN(input_size, hidden_size)
    x, hx = torch.randn(batch, input_size), torch.randn(1, batch, hidden_size)
    state, sequence, transposed = hx[0], x.unsqueeze(0), rnn.weight_ih_l0.t()
    cells = {"fastrnn.RNNCell": fastrnn.RNNCell, "nn.RNNCell": torch.nn.RNNCell}
    if form in cells:
        cell = cells[form](input_size, hidden_size)
    calls = {
        "RNN.step": lambda: rnn.step(x, hx),
        "RNN": lambda: rnn(sequence, hx),
        "one addmm": lambda: torch.addmm(rnn.bias_ih_l0, x, transposed),
    }
    with torch.inference_mode():
        benchmark(calls.get(form, lambda: cell(x, state)))
