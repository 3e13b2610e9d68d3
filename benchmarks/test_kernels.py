"""The raw CPU kernels on NumPy arrays, without torch around them, in every instruction set."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import machine
from benchmarks.contestants import Problem, error, make_contestant
from benchmarks.shapes import SHAPES, Shape
from cpu_build import kernels

ARM = platform.machine() in ("aarch64", "arm64")
INSTRUCTION_SETS = ["neon"] if ARM else ["baseline", "avx2", "avx512"]
DTYPES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}  # the codes of csrc/rnn.h
TOLERANCE = {"float32": 1e-5, "float64": 1e-13, "bfloat16": 5e-2, "float16": 1e-2}
ROWS = [shape for shape in SHAPES if not shape.ragged and shape.nonlinearity == "tanh"]


def array(x: Tensor) -> np.ndarray:
    """The tensor's memory; of bfloat16, which NumPy has not, the bits."""
    x = x.detach()
    return x.view(torch.int16).numpy() if x.dtype == torch.bfloat16 else x.numpy()


class Call:
    """The kernels' arguments for a problem, and room for their results."""

    def __init__(self, problem: Problem, instruction_set: str, threads: int) -> None:
        shape = problem.shape
        self.head = (instruction_set, {"threads": threads})
        weights = list(problem.weights.values())
        self.tail = (
            array(problem.input),
            [array(w) for w in weights],
            array(problem.hx),
            [],
            DTYPES[shape.dtype],
            False,
            True,
            shape.num_layers,
            shape.bidirectional,
        )
        self.output = torch.empty_like(problem.grad_output)
        self.hn = torch.empty_like(problem.hx)
        self.saved = array(torch.stack([self.output] * shape.num_layers))
        self.grad_output = array(problem.grad_output)
        self.grad_hn = array(torch.zeros_like(problem.hx))
        self.grad_input = torch.empty_like(problem.input)
        self.grad_hx = torch.empty_like(problem.hx)
        self.grads = {name: torch.empty_like(w) for name, w in problem.weights.items()}
        self.results_of_forward = (array(self.output), array(self.hn))
        self.results_of_backward = (array(self.grad_input), array(self.grad_hx))
        self.results_of_backward += ([array(g) for g in self.grads.values()],)

    def forward(self, save: bool = False) -> None:
        saved = self.saved if save else None
        kernels().forward(*self.head, *self.results_of_forward, saved, *self.tail)

    def training(self) -> None:
        self.forward(save=True)
        incoming = (self.saved, self.grad_output, self.grad_hn)
        kernels().backward(*self.head, *incoming, *self.results_of_backward, *self.tail)

    def check(self, problem: Problem) -> None:
        """Compare with nn.RNN in float64."""
        truth = make_contestant("nn.RNN", problem, True, torch.float64).results()
        found = {"output": self.output, "hn": self.hn}
        found |= {"grad_input": self.grad_input, "grad_hx": self.grad_hx}
        found |= {f"grad_{name}": grad for name, grad in self.grads.items()}
        for name, x in found.items():
            assert error(x, truth[name]) <= TOLERANCE[problem.shape.dtype], name


@pytest.mark.parametrize("instruction_set", INSTRUCTION_SETS)
@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("shape", ROWS, ids=str)
def test_kernels(
    benchmark: Any, record: Any, shape: Shape, mode: str, instruction_set: str, threads: int
) -> None:
    if not kernels().available(instruction_set):
        pytest.skip(f"this machine has no {instruction_set}")
    benchmark.group = f"kernels {mode} cpu, {shape}"
    problem = Problem(shape)
    call = Call(problem, instruction_set, threads)
    call.training()
    call.check(problem)
    benchmark(call.training if mode == "training" else call.forward)

    limits = {"gemm": machine.best_gemm_gflops(shape.dtype, threads)}
    if shape.dtype == "float32":
        limits["fma"] = machine.fma_gflops(instruction_set)
    benchmark.extra_info.update(shape=str(shape), mode=mode, instruction_set=instruction_set)
    record(shape.gflop(mode == "training"), limits)
    if shape.kind == "few-rows" and benchmark.stats is not None:  # bound by reading the weights
        size = shape.weight_bytes(mode == "training")
        reached = size / benchmark.stats.stats.median / 1e9
        limit = machine.read_gbytes(instruction_set, shape.weight_bytes(False))
        benchmark.extra_info.update(weight_gbytes=reached, read_gbytes=limit)
