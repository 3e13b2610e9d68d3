"""What a small call asks of the device and of torch: launches, operators and tensors, counted.

The numbers follow from the design: the input's product is one launch and a recurrence another; the
gradients of a layer's weights are one; lengths, or the steps of packed data, one more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import emulation
import pytest
import torch
from cases import Case
from problems import Problem
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VIEWS = {"slice", "select", "view", "transpose", "as_strided", "_unsafe_view", "detach"}


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


class Operators(TorchDispatchMode):
    """Counts the tensors that come with memory, and the operators of torch but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors, self.run = 0, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name.startswith("empty"):
            self.tensors += result.numel() > 0
        elif name not in VIEWS:
            self.run[name] += 1
        return result


@dataclass(frozen=True)
class Counts:
    launches: int
    tensors: int
    operators: dict[str, int] = field(default_factory=dict)


class Counted:
    """The passes of a case, in float32 or what the kernel computes in, and what each takes."""

    def __init__(self, cuda: Any, case: Case, kernel: str, dtype: torch.dtype) -> None:
        self.cuda, self.kernel = cuda, kernel
        problem = Problem(case, dtype)
        hx = problem.hx if case.hx else None
        self.arguments = tuple(problem.arguments(problem.x, hx, problem.weights))
        self.grads = problem.grad_output, problem.grad_hn
        self.has_hx = case.hx

    def of(self, run: Any) -> tuple[Counts, Any]:
        self.cuda.launches()
        with Operators() as operators:
            result = run()
        return Counts(self.cuda.launches(), operators.tensors, dict(operators.run)), result

    def forward(self, save: bool) -> tuple[Counts, Sequence[Tensor]]:
        return self.of(lambda: self.cuda.forward(self.kernel, False, self.arguments, save))

    def backward(self, want_input: bool) -> Counts:
        _, (_, _, saved) = self.forward(True)
        wanted = want_input, self.has_hx, True
        counts, _ = self.of(
            lambda: self.cuda.backward(
                self.kernel, False, *self.grads, saved, self.arguments, *wanted
            )
        )
        return counts


MNIST = Case(28, 8, 28, 64)
# A case, the kernel, and what is added to every pass: of lengths or of packed data one launch, and
# one tensor.
ROWS = [
    (MNIST, "", torch.float32, 0),
    (replace(MNIST, hx=False, bias=False), "", torch.float32, 0),
    (replace(MNIST, lengths=True), "", torch.float32, 1),
    (replace(MNIST, packed=True), "", torch.float32, 1),
    (replace(MNIST, reset=True, hx=False), "", torch.float32, 0),
    (replace(MNIST, lengths=True, batch_first=True), "tile", torch.bfloat16, 1),
    (Case(4, 64, 128, 64), "", torch.float32, 0),
    (Case(28, 32, 64, 32), "", torch.float32, 0),
]


@pytest.mark.parametrize(
    ("case", "kernel", "dtype", "more"), ROWS, ids=lambda x: str(x).replace("torch.", "") or "free"
)
def test_one_layer(cuda: Any, case: Case, kernel: str, dtype: torch.dtype, more: int) -> None:
    counted = Counted(cuda, case, kernel, dtype)
    inference, _ = counted.forward(save=False)
    training, _ = counted.forward(save=True)
    copies = {"clone": 1} if case.batch_first else {}  # of the input, as a product needs it
    assert inference == Counts(2 + more, 2 + more, copies)  # output, hn
    assert training == Counts(2 + more, 3 + more, copies)  # and h of every layer
    # grad_pre, two weights, two biases, and what else has a gradient.
    tensors = 1 + 2 + 2 * case.bias + case.hx + more
    assert counted.backward(want_input=False) == Counts(2 + more, tensors)
    counts = counted.backward(want_input=True)
    if case.packed:  # which may have rows behind the last step
        assert counts == Counts(3 + more, tensors + 2, {"copy_": 1, "zero_": 1})
    elif case.batch_first:
        assert counts == Counts(3 + more, tensors + 2, {"copy_": 1})
    else:
        assert counts == Counts(3 + more, tensors + 1)


def test_two_layers_in_two_directions(cuda: Any) -> None:
    case = Case(10, 8, 28, 64, num_layers=2, bidirectional=True)
    counted = Counted(cuda, case, "", torch.float32)
    # And the input's weights of both directions, one below the other.
    assert counted.forward(save=True)[0] == Counts(4, 3, {"cat": 2})
    # Two of each layer, and a product that hands the gradient down, of weights side by side. A
    # layer's grad_pre takes the place of what was handed to it.
    assert counted.backward(want_input=False) == Counts(5, 16 + 2 + 1, {"cat": 1})


def test_large_calls_take_products(cuda: Any) -> None:
    """Forward the input's; backward grad_w_ih, and grad_w_hh of two, with at::sum and a copy."""
    counted = Counted(cuda, Case(64, 64, 28, 64), "", torch.float32)
    assert counted.forward(save=False)[0].launches == 2
    counts = counted.backward(want_input=False)
    assert (counts.launches, counts.operators) == (4, {"sum": 1, "copy_": 1})


def test_more_lengths_are_sorted_by_torch(cuda: Any) -> None:
    counted = Counted(cuda, Case(2, 257, 3, 8, lengths=True), "tile", torch.float16)
    assert counted.forward(save=False)[0] == Counts(3, 3, {"sort": 1})


@pytest.mark.parametrize("seq_len", [1, 9])
def test_a_walk_by_steps_asks_once_for_cublas(cuda: Any, seq_len: int) -> None:
    """Once for the input's product and once for all steps, however many, in either direction."""
    case = Case(seq_len, 8, 28, 64, hx=True, bidirectional=True)
    counted = Counted(cuda, case, "step", torch.float32)
    cuda.handles()
    _, (_, _, saved) = counted.forward(save=True)
    assert cuda.handles() == 2
    cuda.backward("step", False, *counted.grads, saved, counted.arguments, False, True, False)
    assert cuda.handles() == 1
