"""The CUDA half on the CPU: its orchestration and its kernels' own source, against the reference.

What only a GPU can show (see test_on_gpu.py) is left: real memory, real tensor cores, speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import emulation
import pytest
import torch
from cases import CASES, Case, assert_as_accurate
from problems import Problem
from rows import CONFIGURATIONS, DTYPES, Row
from torch import Tensor

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


def marked(cases: Sequence[Case], *marks: str) -> list[Case]:
    """The cases as they are ("") and with these marks, and dropout where there are layers."""
    found = []
    for case in cases:
        dropout = case.num_layers > 1
        variants = {
            "": case,
            "packed": replace(case, packed=True, lengths=False, batch_first=False, dropout=dropout),
            "reset": replace(case, reset=True, dropout=dropout),
            "dropout": replace(case, dropout=dropout),
        }
        found += [variants[mark] for mark in marks]
    return found


VARIANTS = [
    Case(6, 3, 5, 7),
    Case(6, 3, 5, 7, hx=False, bias=False),
    Case(7, 4, 3, 9, num_layers=2, bidirectional=True, batch_first=True),
    Case(7, 4, 3, 9, num_layers=2, bidirectional=True, nonlinearity="relu", hx=False),
    Case(7, 5, 3, 9, num_layers=3, lengths=True, bidirectional=True),
]
BLOCK_CASES = [
    Case(1, 1, 1, 1),
    Case(5, 2, 3, 33, hx=False),
    Case(6, 9, 3, 64, bidirectional=True, num_layers=2, batch_first=True),
    Case(9, 5, 4, 65, bias=False),
    Case(4, 17, 4, 128, nonlinearity="relu"),
    Case(9, 11, 3, 40, lengths=True, bidirectional=True, nonlinearity="relu"),
    Case(5, 3, 4, 150),
    Case(3, 9, 4, 192, lengths=True),
]
WIDE_TILES = [Case(3, 9, 4, 193), Case(4, 2, 4, 256, lengths=True, bidirectional=True)]
CLUSTER_CASES = [
    Case(1, 1, 1, 1),
    Case(5, 3, 3, 193, hx=False, bidirectional=True, num_layers=2, batch_first=True),
    Case(4, 9, 4, 257, lengths=True, bidirectional=True),
    Case(6, 2, 4, 384, lengths=True, nonlinearity="relu", bias=False),
    Case(3, 2, 4, 509, hx=False),
    Case(5, 10, 4, 512),
]
WIDE_CLUSTERS = [
    Case(4, 9, 4, 513, lengths=True, bidirectional=True),
    Case(3, 2, 4, 1021),
    Case(2, 17, 4, 1000),
    Case(3, 3, 4, 1024, nonlinearity="relu"),
]
MARKS = ("", "packed", "reset")
ROWS = [
    *(Row(c, "step", d) for d in DTYPES for c in CASES),
    *(Row(c, "step", d) for d in DTYPES for c in marked(VARIANTS, "packed", "reset")),
    *(Row(c, "step", d) for d in DTYPES for c in marked(VARIANTS[2:], "dropout")),
    *(Row(c, "vector", torch.float32) for c in marked(BLOCK_CASES, *MARKS)),
    *(Row(c, "tile", d) for d in HALVES for c in [*marked(BLOCK_CASES, *MARKS), *WIDE_TILES]),
    # Of one term, float16 may be exact.
    *(Row(c, "tile", torch.float32, tf32=True) for c in marked(BLOCK_CASES[1:], *MARKS)),
    *(Row(c, "cluster", torch.float32) for c in marked(CLUSTER_CASES, *MARKS)),
    *(Row(c, "cluster", d) for d in HALVES for c in marked(CLUSTER_CASES, *MARKS)),
    *(Row(c, "cluster", d) for d in HALVES for c in WIDE_CLUSTERS),
    *(
        replace(r, case=replace(r.case, seq_len=3, bidirectional=False, lengths=marks, reset=marks))
        for marks in (False, True)
        for r in CONFIGURATIONS
    ),
]


def ours(cuda: Any, row: Row, problem: Problem, ways: str) -> dict[str, Tensor]:
    kernel = row.kernel + ways
    hx = problem.hx if row.case.hx else None
    arguments = tuple(problem.arguments(problem.x, hx, problem.weights))
    output, hn, saved = cuda.forward(kernel, row.tf32, arguments, True)
    alone, alone_hn, nothing = cuda.forward(kernel, row.tf32, arguments, False)
    assert nothing.numel() == 0
    torch.testing.assert_close(alone, output)  # MKL's sums vary with the place in memory
    torch.testing.assert_close(alone_hn, hn)
    grads = problem.grad_output, problem.grad_hn
    grad_input, grad_hx, grad_weights = cuda.backward(
        kernel, row.tf32, *grads, saved, arguments, True, hx is not None, True
    )
    found = {"output": output, "hn": hn, "input": grad_input}
    found |= {} if hx is None else {"hx": grad_hx}
    return found | dict(zip(problem.weights, grad_weights, strict=True))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_kernels(cuda: Any, row: Row) -> None:
    """With TF32 as accurate as the reference in float16, which has as many bits.

    Small calls take the gradients of weights in one launch; by steps, those of large ones as well.
    """
    problem = Problem(row.case, row.dtype)
    theirs = problem.by_reference(torch.float16 if row.tf32 else row.dtype)
    truth = problem.truth()
    for ways in ("", "+") if row.kernel == "step" else ("",):
        assert_as_accurate(ours(cuda, row, problem, ways), theirs, truth)


@pytest.fixture
def plant(cuda: Any) -> Iterator[Callable[..., None]]:
    yield cuda.plant
    cuda.plant()


APPROXIMATED = [
    Row(case, kernel, dtype, tf32)
    for case in (Case(9, 5, 4, 65), Case(20, 3, 4, 64, bidirectional=True))
    for kernel, dtype, tf32 in (
        ("vector", torch.float32, False),
        ("tile", torch.float16, False),
        ("tile", torch.bfloat16, False),
        ("tile", torch.float32, True),
        ("cluster", torch.float32, False),
    )
]


@pytest.mark.parametrize("ulps", [(-2, -2), (2, 2), (-2, 2)], ids=["less", "more", "either"])
@pytest.mark.parametrize("row", APPROXIMATED, ids=str)
def test_approximations(
    cuda: Any, plant: Callable[..., None], row: Row, ulps: tuple[int, int]
) -> None:
    """Powers of two and reciprocals, of which tanh is made, err on a GPU; so does its own tanh."""
    plant(ulps=ulps)
    test_kernels(cuda, row)


@pytest.mark.parametrize("row", APPROXIMATED[:5], ids=str)
def test_wrong_approximations(cuda: Any, plant: Callable[..., None], row: Row) -> None:
    """What is off by 2^-13, or by 2^-5 in 16 bits or TF32, is found."""
    ulps = 2**7 if row.dtype.itemsize == 2 else 2**18 if row.tf32 else 2**10
    plant(ulps=(ulps, ulps))
    with pytest.raises(AssertionError):
        test_kernels(cuda, row)
