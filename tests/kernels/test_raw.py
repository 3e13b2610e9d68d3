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
from dataclasses import dataclass
from typing import Any

import numpy as np
import on_aarch64
import pytest
import torch
from cases import CASES, Case
from truth import truth

import cpu_build

EMULATED = os.environ.get("FASTRNN_TEST_ON") == "aarch64"
INSTRUCTION_SETS = ["baseline", "avx2", "avx512", "avx512_bf16"]
if EMULATED or platform.machine() in ("aarch64", "arm64"):
    INSTRUCTION_SETS = ["neon"]


@pytest.fixture(scope="module")
def kernels() -> Iterator[Any]:
    if EMULATED:
        emulated = on_aarch64.Kernels()
        yield emulated
        emulated.close()
    else:
        yield cpu_build.kernels()


@dataclass
class Format:
    """A storage type: its code in csrc/rnn.h, its NumPy type, and what float64 becomes in it."""

    code: int
    dtype: type
    eps: float

    def store(self, x: np.ndarray) -> np.ndarray:
        if self.code == 2:  # bfloat16: NumPy has none, so the bits
            return torch.from_numpy(x).bfloat16().view(torch.int16).numpy()
        return np.ascontiguousarray(x.astype(self.dtype))

    def read(self, x: np.ndarray) -> np.ndarray:
        if self.code == 2:
            return torch.from_numpy(x).view(torch.bfloat16).double().numpy()
        return x.astype(np.float64)

    def empty(self, *shape: int) -> np.ndarray:
        """NaN in every place, with a guard behind the end that must stay as it is."""
        size = int(np.prod(shape))
        memory = self.store(np.full(size + 64, np.nan))
        memory[size:] = self.store(np.full(64, 7.0))
        self.guards.append(memory[size:])
        return memory[:size].reshape(shape)

    def __post_init__(self) -> None:
        self.guards: list[np.ndarray] = []

    def check_guards(self) -> None:
        for guard in self.guards:
            assert (self.read(guard) == 7.0).all(), "written behind the end"


def formats() -> dict[str, Format]:
    return {
        "float32": Format(0, np.float32, 2.0**-23),
        "float64": Format(1, np.float64, 2.0**-52),
        "bfloat16": Format(2, np.int16, 2.0**-7),
        "float16": Format(3, np.float16, 2.0**-10),
    }


def weight_values(case: Case, inputs: int, numbers, form: Format):
    """Weights and biases of a layer.

    For relu a bias outweighs all else: rounding moves no sum across the kink.
    """
    relu, hidden = case.nonlinearity == "relu", case.hidden_size
    bound = 0.1 / hidden if relu else hidden**-0.5
    yield numbers(hidden, inputs, scale=min(bound, 0.5 / inputs) if relu else bound)
    yield numbers(hidden, hidden, scale=bound)
    if case.bias:
        b_ih = numbers(hidden)
        if relu:
            signs = np.where(b_ih[1] < 0, -4.0, 4.0)
            b_ih = form.store(signs), signs
        yield b_ih
        yield numbers(hidden, scale=0.5)


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
@pytest.mark.parametrize("name", formats())
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels(kernels, case: Case, name: str, isa: str) -> None:
    if not kernels.available(isa):
        pytest.skip(f"this machine has no {isa}")
    form = formats()[name]
    rng = np.random.default_rng(0)
    directions = 2 if case.bidirectional else 1
    features = directions * case.hidden_size

    def numbers(*shape: int, scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        stored = form.store(rng.uniform(-scale, scale, shape))
        return stored, form.read(stored)

    x, x64 = numbers(case.seq_len, case.batch, case.input_size)
    hx, hx64 = numbers(case.num_layers * directions, case.batch, case.hidden_size)
    weights, weights64 = [], []
    for layer in range(case.num_layers):
        inputs = case.input_size if layer == 0 else features
        for _ in range(directions):
            for w, w64 in weight_values(case, inputs, numbers, form):
                weights.append(w)
                weights64.append(w64)
    lengths = [case.seq_len] * case.batch
    if case.lengths:
        lengths = sorted(rng.integers(0, case.seq_len + 1, case.batch).tolist(), reverse=True)
    grad_output, grad_output64 = numbers(case.seq_len, case.batch, features)
    grad_hn, grad_hn64 = numbers(*hx.shape)
    expected = truth(case, x64, hx64, weights64, lengths, grad_output64, grad_hn64)

    for threads in (1, 2):
        tail = (
            x, weights, hx, lengths if case.lengths else [], form.code, case.nonlinearity == "relu",
            case.bias, case.num_layers, case.bidirectional,
        )  # fmt: skip
        output, hn = form.empty(case.seq_len, case.batch, features), form.empty(*hx.shape)
        saved = form.empty(case.num_layers, case.seq_len, case.batch, features)
        plan = {"threads": threads}
        kernels.forward(isa, plan, output, hn, saved, *tail)
        alone, alone_hn = form.empty(*output.shape), form.empty(*hx.shape)
        kernels.forward(isa, plan, alone, alone_hn, None, *tail)
        grad_input, grad_hx = form.empty(*x.shape), form.empty(*hx.shape)
        grads = [form.empty(*w.shape) for w in weights]
        kernels.backward(isa, plan, saved, grad_output, grad_hn, grad_input, grad_hx, grads, *tail)
        form.check_guards()

        valid = np.arange(case.seq_len)[:, None] < np.array(lengths)[None, :]
        assert np.isnan(form.read(output)[~valid]).all(), "written beyond a row's length"
        np.testing.assert_array_equal(output[valid], alone[valid])
        np.testing.assert_array_equal(hn, alone_hn)
        pairs = [(output[valid], expected[0][valid]), (hn, expected[1])]
        pairs += [(grad_input[valid], expected[2][valid]), (grad_hx, expected[3])]
        pairs += list(zip(grads, expected[4], strict=True))
        for ours, right in pairs:
            # Roundings of the terms of the longest sum, which grow by the depth of the network.
            scale = max(1.0, np.abs(right).max(initial=0.0))
            depth = 2 + 2 * case.num_layers
            np.testing.assert_allclose(
                form.read(ours), right, rtol=0, atol=depth * 4 * form.eps * scale
            )


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
    code = formats()[x.dtype.name].code
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
    dtype = formats()[name].dtype
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
