"""nn.RNN and fastrnn in pairs: inference, and a training step of forward and backward.

For claims use `python -m benchmarks.compare`, which interleaves the two.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from benchmarks import machine
from benchmarks.contestants import MODULES, Contestant, grad_mode, make_pair
from benchmarks.shapes import SHAPES, Shape


@functools.lru_cache(maxsize=1)
def contestants(shape: Shape, training: bool) -> dict[str, Contestant]:
    return {c.name: c for c in make_pair(shape, training)}


def run(benchmark: Any, record: Any, shape: Shape, training: bool, threads: int, impl: str) -> None:
    mode = "training" if training else "inference"
    benchmark.group = f"{mode} cpu, threads {threads}, {shape}"
    step = contestants(shape, training)[impl].step
    with grad_mode(training):
        benchmark(step)
    gemm = machine.best_gemm_gflops(shape.dtype, threads)
    record(shape.gflop(training), {"gemm": gemm})


@pytest.mark.parametrize("impl", MODULES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inference(benchmark: Any, record: Any, shape: Shape, threads: int, impl: str) -> None:
    run(benchmark, record, shape, False, threads, impl)


@pytest.mark.parametrize("impl", MODULES)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_training_step(benchmark: Any, record: Any, shape: Shape, threads: int, impl: str) -> None:
    run(benchmark, record, shape, True, threads, impl)
