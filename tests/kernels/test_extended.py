"""The operator rnn_extended, with leaks, gates and every layer's output, against the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import Case, assert_as_accurate
from problems import Problem
from torch import Tensor

from fastrnn import reference


@dataclass(frozen=True)
class Row:
    """A case, and what a plain call does not have."""

    case: Case
    form: str = "rate"
    alpha: str = "value"  # or "tensor", or "plain": no leak
    gates: str = ""  # or "first", or "all"
    layers: bool = False

    def __str__(self) -> str:
        flags = [self.form, self.alpha, self.gates and f"gates_{self.gates}"]
        return "-".join(
            [str(self.case), *filter(None, flags), *(["layers"] if self.layers else [])]
        )


CASES = [
    Case(1, 1, 1, 1),
    Case(10, 1, 2, 32, num_layers=2),
    Case(2, 13, 3, 17, batch_first=True, bias=False),
    Case(7, 12, 3, 65, nonlinearity="relu", hx=False),
    Case(5, 7, 33, 63, num_layers=2, bidirectional=True, nonlinearity="relu"),
    Case(4, 97, 6, 49, bidirectional=True),
    Case(20, 1, 3, 101),
    Case(3, 5, 290, 257),
    Case(6, 2, 7, 513, hx=False),
    Case(2, 2, 5, 600),
    Case(9, 10, 3, 24, lengths=True, num_layers=2, dropout=True),
    Case(12, 110, 5, 18, lengths=True, bidirectional=True, num_layers=2, batch_first=True),
    Case(12, 9, 5, 31, packed=True, bidirectional=True, num_layers=2),
    Case(12, 9, 5, 31, reset=True, bidirectional=True, num_layers=2),
    Case(12, 9, 5, 31, reset=True, lengths=True, bidirectional=True),
]
ROWS = [
    *(Row(case, form, "tensor") for case in CASES for form in ("rate", "current")),
    *(Row(case, "rate", "value", "all", True) for case in CASES[4:]),
    *(Row(case, "current", "tensor", "first", True) for case in CASES[4:]),
    *(Row(case, "rate", "plain", "first", True) for case in CASES[1:]),
    *(Row(case, "rate", "plain", "all") for case in CASES[10:]),
]


class ExtendedProblem(Problem):
    """The same numbers, and those of the row."""

    def __init__(self, row: Row, dtype: torch.dtype, alpha: float | None = None) -> None:
        super().__init__(row.case, dtype)
        case, self.row = row.case, row
        features = case.hidden_size * case.directions
        rows = (len(self.x),) if case.packed else (case.seq_len, case.batch)
        count = {"": 0, "first": 1, "all": case.num_layers}[row.gates]
        self.gates = torch.randn(count, *rows, features, dtype=dtype) if count else None
        if case.nonlinearity == "relu":  # away from the kink, as the weights
            self.gates = None if self.gates is None else self.gates.clamp(-0.1, 0.1)
        self.alpha = 0.05 + 0.95 * torch.rand(case.num_layers * case.directions, case.hidden_size)
        if alpha is not None:
            self.alpha.fill_(alpha)
        self.grad_layers = torch.randn(case.num_layers, *rows, features, dtype=dtype)

    def results_of(self, run: Any, dtype: torch.dtype) -> dict[str, Tensor]:
        """Outputs and gradients by name, of the reference or the operator."""
        row, exact = self.row, torch.float64 if dtype == torch.float64 else torch.float32
        named = {"input": self.x, "hx": self.hx if self.case.hx else None, "gates": self.gates}
        named |= self.weights
        own = {
            name: None if x is None else x.to(dtype, copy=True).requires_grad_()
            for name, x in named.items()
        }
        own["alpha"] = None
        if row.alpha == "tensor":
            own["alpha"] = self.alpha.to(exact, copy=True).requires_grad_()
        weights = {name: own[name] for name in self.weights}
        value = 0.3 if row.alpha == "value" else 1.0
        extras = (own["gates"], own["alpha"], value, row.form, row.layers)
        output, hn, layers = run(*self.arguments(own["input"], own["hx"], weights), *extras)
        found = {"output": output, "hn": hn}
        grads = [self.grad_output.to(dtype), self.grad_hn.to(dtype)]
        if row.layers:
            found["layers"] = layers
            grads.append(self.grad_layers.to(dtype))
        torch.autograd.backward([*found.values()], grads)
        found |= {name + "'s gradient": x.grad for name, x in own.items() if x is not None}
        return {name: x.detach().to(dtype) for name, x in found.items()}  # alpha's is wider


def check(problem: ExtendedProblem, dtype: torch.dtype) -> None:
    theirs = problem.results_of(reference.rnn_extended, dtype)
    truth = problem.results_of(reference.rnn_extended, torch.float64)
    ours = problem.results_of(torch.ops.fastrnn.rnn_extended, dtype)
    assert_as_accurate(ours, theirs, truth)


@pytest.mark.parametrize("row", ROWS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_results(row: Row, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(ExtendedProblem(row, dtype), dtype)


@pytest.mark.parametrize("row", ROWS[::2], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(row: Row, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    check(ExtendedProblem(row, dtype), dtype)
