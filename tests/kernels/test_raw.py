"""The raw CPU kernels, without torch, in every instruction set that this machine has.

With FASTRNN_TEST_ON=aarch64 in an emulator's: `make test-aarch64`.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import on_aarch64
import pytest
import raw
import torch
from cases import CASES, Case, assert_as_accurate
from problems import Problem
from torch import Tensor

import cpu_build

EMULATED = os.environ.get("FASTRNN_TEST_ON") == "aarch64"
INSTRUCTION_SETS = ["baseline", "avx2", "avx512", "avx512_bf16"]
if EMULATED or platform.machine() in ("aarch64", "arm64"):
    INSTRUCTION_SETS = ["neon"]
# The last has kernels of its own for bfloat16 alone.
KERNELS = [
    pytest.param(isa, dtype, id=f"{isa}-{str(dtype).removeprefix('torch.')}")
    for isa in INSTRUCTION_SETS
    for dtype in raw.CODES
    if isa != "avx512_bf16" or dtype == torch.bfloat16
]


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    if EMULATED:
        emulated = on_aarch64.Kernels()
        yield emulated
        emulated.close()
    else:
        yield cpu_build.kernels()


@cache
def judged(case: Case, dtype: torch.dtype) -> tuple[Problem, dict[str, Tensor], dict[str, Tensor]]:
    """A problem, what nn.RNN makes of it, and the truth: one for all instruction sets."""
    torch.manual_seed(0)
    problem = Problem(replace(case, batch_first=False), dtype)
    problem.sort_lengths()
    return problem, problem.theirs(dtype), problem.truth()


@pytest.mark.parametrize(("isa", "dtype"), KERNELS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(kernels, case: Case, isa: str, dtype: torch.dtype) -> None:
    if not kernels.available(isa):
        pytest.skip(f"this machine has no {isa}")
    problem, theirs, truth = judged(case, dtype)
    for threads in (1, 2):
        found = raw.call(kernels, isa, {"threads": threads}, problem)
        assert_as_accurate(found, theirs, truth)


@pytest.mark.skipif(not EMULATED, reason="for make test-aarch64")
def test_large_steps_are_left_to_torch(kernels) -> None:
    """Until somebody has measured neon against torch's products."""
    assert kernels.leaves_large_steps


ULP = {"float32": 2.5, "float64": 2.7}  # what tanh may err


def tanh(kernels, isa: str, x: np.ndarray) -> np.ndarray:
    """Of one-step RNNs with one unit, whose weights are one and zero."""
    column = np.ascontiguousarray(x.reshape(1, -1, 1))
    output, hn = np.empty_like(column), np.empty_like(column)
    one, zero = np.ones((1, 1), x.dtype), np.zeros((1, 1), x.dtype)
    code = raw.CODES[getattr(torch, x.dtype.name)]
    kernels.forward(
        isa, {}, output, hn, None, column, [one, zero], None, [], code, False, False, 1, False
    )
    return output.reshape(-1)


def ulps(y: np.ndarray, x: np.ndarray) -> float:
    """The largest error of y = tanh(x)."""
    wide = {"float32": np.float64, "float64": np.longdouble}[x.dtype.name]
    with np.errstate(under="ignore"):
        right = np.tanh(x.astype(wide))
        ulp = np.spacing(right.astype(x.dtype)).astype(wide)
    return float((np.abs(y.astype(wide) - right) / ulp).max())


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", ULP)
def test_tanh(kernels, name: str, isa: str) -> None:
    """Odd, exact at zero and in saturation; NaN and infinity go through."""
    if not kernels.available(isa):
        pytest.skip(f"this machine has no {isa}")
    dtype = np.dtype(name)
    magnitudes = np.concatenate(
        [
            np.linspace(0, 25, 400_001),
            np.logspace(-44, 1.5, 400_001),
            [np.finfo(dtype).tiny, np.finfo(dtype).max, np.inf],
        ]
    ).astype(dtype)
    y = tanh(kernels, isa, magnitudes)
    assert ulps(y, magnitudes) <= ULP[name]
    np.testing.assert_array_equal(tanh(kernels, isa, -magnitudes), -y)
    assert y[magnitudes > 20].min() == 1.0
    assert np.isnan(tanh(kernels, isa, np.array([np.nan], dtype)))[0]
    assert y[0] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("isa", INSTRUCTION_SETS[:3])
@pytest.mark.parametrize("name", ULP)
def test_tanh_everywhere(kernels, name: str, isa: str) -> None:
    """Of every float32, and of two million float64 of each exponent that matters; -rP shows how
    much it errs."""
    if not kernels.available(isa):
        pytest.skip(f"this machine has no {isa}")
    rng = np.random.default_rng(0)
    largest = 0.0
    exponents = range(255) if name == "float32" else range(1023 - 30, 1023 + 6)
    for exponent in exponents:
        if name == "float32":
            x = (np.arange(2**23, dtype=np.uint32) + np.uint32(exponent << 23)).view(np.float32)
        else:
            x = np.ldexp(rng.uniform(1, 2, 2**21), exponent - 1023)
        largest = max(largest, ulps(tanh(kernels, isa, x), x))
    print(f"tanh of {name}, {isa}: at most {largest:.3f} ulp")
    assert largest <= ULP[name]


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_instruction_set_files_share_nothing(kernels) -> None:
    """A weak symbol compiled for AVX-512 could serve the whole program, and fail elsewhere."""
    objects = [cpu_build.BUILD / f"kernels_{isa}.o" for isa in INSTRUCTION_SETS]
    for path in objects:
        symbols = subprocess.run(
            ["nm", "-C", str(path)], capture_output=True, text=True, check=True
        ).stdout
        kinds = re.findall(r"^[0-9a-f]+ ([A-Za-z]) .*fastrnn", symbols, re.MULTILINE)
        assert kinds.count("T") <= 1, symbols  # the table's getter; the rest is local
        assert not {"W", "V", "u"} & set(kinds), symbols
        assert not re.search(r" [WVu] ", symbols), symbols


@pytest.mark.skipif(shutil.which("objdump") is None, reason="no objdump")
def test_no_mmx(kernels) -> None:
    """An MMX register used and not cleared breaks the x87 arithmetic of whoever called."""
    for path in cpu_build.BUILD.glob("kernels_*.o"):
        code = subprocess.run(
            ["objdump", "-d", str(path)], capture_output=True, text=True, check=True
        )
        assert not re.search(r"%mm[0-7]", code.stdout), path.name
