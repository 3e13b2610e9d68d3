"""LeakyRNN beside the loop that people write by hand, and beside our plain RNN."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import leaky, shapes
from benchmarks.contestants import grad_mode
from benchmarks.shapes import Shape

SHAPES = [
    s
    for s in shapes.select(list(leaky.KINDS), False, None)
    if (s.num_layers, s.dtype) == (1, "float32")
]

pytestmark = pytest.mark.benchmark(warmup=True, min_rounds=5)


@pytest.mark.parametrize("name", [*leaky.OTHERS, *leaky.OURS])
@pytest.mark.parametrize("mode", leaky.MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leaky(benchmark: Any, shape: Shape, mode: str, name: str) -> None:
    benchmark.group = f"leaky, {mode} cpu, {shape}"
    training = mode == "training"
    contestant = leaky.contestant(name, leaky.modules(shape)[name], shape, training)
    with grad_mode(training):
        benchmark(contestant.step)
