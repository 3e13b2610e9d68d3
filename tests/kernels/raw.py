"""Calls of the raw CPU kernels with a problem's numbers, in arrays that show a wrong write."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from problems import Problem
from torch import Tensor

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # csrc/rnn.h
GUARD = 7.0


def array(x: Tensor) -> np.ndarray:
    """The same memory; of bfloat16, which NumPy has not, the bits."""
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


class Results:
    """Arrays full of NaN; behind the end of each a guard, which must stay as it is."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.guards = dtype, []

    def empty(self, shape: torch.Size | tuple[int, ...]) -> tuple[np.ndarray, Tensor]:
        size = math.prod(shape)
        memory = torch.full((size + 64,), torch.nan, dtype=self.dtype)
        memory[size:] = GUARD
        self.guards.append(memory[size:])
        return array(memory)[:size].reshape(shape), memory[:size].view(shape)

    def check_guards(self) -> None:
        assert all((guard == GUARD).all() for guard in self.guards), "written behind the end"


def call(kernels: Any, isa: str, plan: dict[str, Any], problem: Problem) -> dict[str, Tensor]:
    """Outputs and gradients by name, in the dtype that the problem is stored in.

    Sequences are time-major, their lengths sorted.
    """
    case, dtype = problem.case, problem.x.dtype
    assert not case.batch_first
    valid = problem.valid() if case.lengths else torch.ones(case.seq_len, case.batch).bool()
    lengths = problem.lengths.tolist() if case.lengths else []
    weights = [array(w) for w in problem.weights.values()]
    tail = (
        array(problem.x), weights, array(problem.hx) if case.hx else None, lengths, CODES[dtype],
        case.nonlinearity == "relu", case.bias, case.num_layers, case.bidirectional,
    )  # fmt: skip
    results = Results(dtype)
    shape = problem.grad_output.shape
    (output, y), (hn, h) = results.empty(shape), results.empty(problem.hx.shape)
    saved, _ = results.empty((case.num_layers, *shape))
    kernels.forward(isa, plan, output, hn, saved, *tail)

    (alone, alone_y), (alone_hn, alone_h) = results.empty(shape), results.empty(problem.hx.shape)
    kernels.forward(isa, plan, alone, alone_hn, None, *tail)
    for x, other in ((y[valid], alone_y[valid]), (h, alone_h)):  # saving or not, bit for bit
        torch.testing.assert_close(x, other, rtol=0, atol=0, equal_nan=True)

    (grad_input, grad_x), (grad_hx, grad_h) = map(results.empty, (problem.x.shape, h.shape))
    grads = [results.empty(w.shape) for w in weights]
    kernels.backward(
        isa, plan, saved, array(problem.grad_output), array(problem.grad_hn), grad_input, grad_hx,
        [to for to, _ in grads], *tail,
    )  # fmt: skip
    results.check_guards()
    for x in (y, alone_y, grad_x):
        assert x[~valid].isnan().all(), "written beyond a row's length"
        x[~valid] = 0
    found = {"output": y, "hn": h, "input": grad_x} | ({"hx": grad_h} if case.hx else {})
    return found | dict(zip(problem.weights, (g for _, g in grads), strict=True))
