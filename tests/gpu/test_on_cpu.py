"""The CUDA half on the CPU: its orchestration and its kernels' own source, against the reference.

What only a GPU can show (see test_on_gpu.py) is left: real memory, real tensor cores, speed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulation
import pytest
import torch
from cases import (
    CASES,
    CONFIGURATIONS,
    Case,
    Configuration,
    assert_as_accurate,
)
from emulation import HERE, ROOT
from problems import Problem
from torch import Tensor

from fastrnn import reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


def results(arguments: Sequence[Any], grads: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients of the reference."""
    with torch.enable_grad():
        x, hx, weights, *rest = arguments
        leaves = [t.detach().clone().requires_grad_() for t in (x, *weights)]
        state = None if hx is None else hx.detach().clone().requires_grad_()
        output, hn = reference.rnn(leaves[0], state, leaves[1:], *rest)
        wanted = [*leaves, *([] if state is None else [state])]
        found = torch.autograd.grad([output, hn], wanted, list(grads), allow_unused=True)
    names = ["grad_input", *(f"grad_weight_{i}" for i in range(len(weights))), "grad_hx"]
    named = {
        name: torch.zeros_like(leaf) if grad is None else grad
        for name, leaf, grad in zip(names, wanted, found, strict=False)
    }
    return {"output": output.detach(), "hn": hn.detach(), **named}


def ours(cuda: Any, kernel: str, arguments: Any, grads: tuple[Tensor, Tensor], tf32: bool) -> Any:
    hx, weights = arguments[1:3]
    output, hn, saved = cuda.forward(kernel, tf32, tuple(arguments), True)
    alone, alone_hn, nothing = cuda.forward(kernel, tf32, tuple(arguments), False)
    assert nothing.numel() == 0
    torch.testing.assert_close(alone, output)  # MKL's sums vary with the place in memory
    torch.testing.assert_close(alone_hn, hn)
    grad_input, grad_hx, grad_weights = cuda.backward(
        kernel, tf32, *grads, saved, tuple(arguments), True, hx is not None, True
    )
    names = [f"grad_weight_{i}" for i in range(len(weights))]
    found = {"output": output, "hn": hn, "grad_input": grad_input}
    found |= dict(zip(names, grad_weights, strict=True))
    return found | ({"grad_hx": grad_hx} if hx is not None else {})


def to(arguments: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    def convert(x: Any) -> Any:
        if isinstance(x, list):
            return [convert(y) for y in x]
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return [convert(x) for x in arguments]


def check(
    cuda: Any, kernel: str, case: Case, dtype: torch.dtype, extra: str = "", tf32: bool = False
) -> None:
    """Our error is at most twice that of the reference in the same type, or the floor.

    With TF32, of the reference in float16, which has as many bits.
    """
    torch.manual_seed(0)
    if extra == "packed":
        case = replace(case, batch_first=False)
    problem = Problem(case)
    x, grad_output, grad_hn = problem.x, problem.grad_output, problem.grad_hn
    hx = problem.hx if case.hx else None
    lengths = reset = mask = sizes = None
    if extra == "packed":
        steps = problem.lengths.clamp(min=1).sort(descending=True).values
        valid = torch.arange(case.seq_len)[:, None] < steps
        x, grad_output, sizes = x[valid], grad_output[valid], valid.sum(1)
    elif case.lengths:
        lengths = problem.lengths
        beyond = torch.arange(case.seq_len)[:, None] >= lengths
        x[beyond.t() if case.batch_first else beyond] = 3.0
    if extra == "reset":
        reset = torch.rand(x.shape[:2]) < 0.3
    if extra and case.num_layers > 1:
        time_major = grad_output.transpose(0, 1) if case.batch_first else grad_output
        mask = torch.randint(0, 2, (case.num_layers - 1, *time_major.shape)).double() * 1.25
    flags = (case.bias, case.num_layers, case.nonlinearity, case.bidirectional)
    weights = [*problem.weights.values()]
    arguments = [x, hx, weights, sizes, lengths, reset, mask, *flags, case.batch_first]
    stored = to(to(arguments, dtype), torch.float64)
    grads = to(to((grad_output, grad_hn), dtype), torch.float64)
    truth = results(stored, (grads[0], grads[1]))
    narrow, rough = to(grads, dtype), to(grads, torch.float16 if tf32 else dtype)
    theirs = results(to(arguments, rough[0].dtype), (rough[0], rough[1]))
    found = ours(cuda, kernel, to(arguments, dtype), (narrow[0], narrow[1]), tf32)
    assert_as_accurate(found, theirs, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_step_kernels(cuda: Any, case: Case, dtype: torch.dtype) -> None:
    check(cuda, "step", case, dtype)


VARIANTS = [
    Case(6, 3, 5, 7),
    Case(6, 3, 5, 7, hx=False, bias=False),
    Case(7, 4, 3, 9, num_layers=2, bidirectional=True, batch_first=True),
    Case(7, 4, 3, 9, num_layers=2, bidirectional=True, nonlinearity="relu", hx=False),
    Case(7, 5, 3, 9, num_layers=3, lengths=True, bidirectional=True),
]


@pytest.mark.parametrize("extra", ["packed", "reset", "dropout"])
@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_step_kernels_variants(cuda: Any, case: Case, extra: str) -> None:
    for dtype in DTYPES:
        check(cuda, "step", case, dtype, extra)


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
WIDE_CASES = [Case(3, 9, 4, 193), Case(4, 2, 4, 256, lengths=True, bidirectional=True)]


@pytest.mark.parametrize("extra", ["", "packed", "reset"])
@pytest.mark.parametrize("case", BLOCK_CASES, ids=str)
def test_vector_kernels(cuda: Any, case: Case, extra: str) -> None:
    check(cuda, "vector", case, torch.float32, extra)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("extra", ["", "packed", "reset"])
@pytest.mark.parametrize("case", BLOCK_CASES, ids=str)
def test_tile_kernels(cuda: Any, case: Case, extra: str, dtype: torch.dtype) -> None:
    check(cuda, "tile", case, dtype, extra)


@pytest.mark.parametrize("case", WIDE_CASES, ids=str)
def test_wide_tile_kernels(cuda: Any, case: Case) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check(cuda, "tile", case, dtype, "dropout")


@pytest.mark.parametrize("extra", ["", "packed", "reset"])
@pytest.mark.parametrize("case", BLOCK_CASES[1:], ids=str)  # of one term, float16 may be exact
def test_tile_kernels_in_tf32(cuda: Any, case: Case, extra: str) -> None:
    """The state and w_hh have 11 bits in the recurrence's products, as in float16."""
    check(cuda, "tile", case, torch.float32, extra, tf32=True)


CLUSTER_CASES = [
    Case(1, 1, 1, 1),
    Case(5, 3, 3, 193, hx=False, bidirectional=True, num_layers=2, batch_first=True),
    Case(4, 9, 4, 257, lengths=True, bidirectional=True),
    Case(6, 2, 4, 384, lengths=True, nonlinearity="relu", bias=False),
    Case(3, 2, 4, 509, hx=False),
    Case(5, 10, 4, 512),
]
WIDE_CLUSTER_CASES = [
    Case(4, 9, 4, 513, lengths=True, bidirectional=True),
    Case(3, 2, 4, 1021),
    Case(2, 17, 4, 1000),
    Case(3, 3, 4, 1024, nonlinearity="relu"),
]


@pytest.mark.parametrize("extra", ["", "packed", "reset"])
@pytest.mark.parametrize("case", CLUSTER_CASES, ids=str)
def test_cluster_kernels(cuda: Any, case: Case, extra: str) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        check(cuda, "cluster", case, dtype, extra)


@pytest.mark.parametrize("case", WIDE_CLUSTER_CASES, ids=str)
def test_wide_cluster_kernels(cuda: Any, case: Case) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        check(cuda, "cluster", case, dtype)


@pytest.mark.parametrize("extra", ["", "reset"])
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_configurations(cuda: Any, configuration: Configuration, extra: str) -> None:
    case = replace(configuration.case, seq_len=3, bidirectional=False, lengths=extra == "reset")
    check(cuda, configuration.name, case, configuration.dtype, extra, configuration.tf32)


# capability, multiprocessors, shared memory of a block and of a multiprocessor, registers
DEVICES = {
    "T4": [75, 40, 64 << 10, 64 << 10, 65536],
    "A100": [80, 108, 163 << 10, 164 << 10, 65536],
    "A100 MIG 1g": [80, 14, 163 << 10, 164 << 10, 65536],
    "RTX 3090": [86, 82, 99 << 10, 100 << 10, 65536],
    "RTX 4090": [89, 128, 99 << 10, 100 << 10, 65536],
    "H200": [90, 132, 227 << 10, 228 << 10, 65536],
    "H200 MIG 1g": [90, 16, 227 << 10, 228 << 10, 65536],
    "B200": [100, 148, 227 << 10, 228 << 10, 65536],
    "RTX 5090": [120, 170, 99 << 10, 100 << 10, 65536],
}
FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)  # as in csrc/rnn.h, and as DTYPES


@pytest.mark.parametrize("device", DEVICES)
def test_choice_can_be_launched(cuda: Any, device: str) -> None:
    facts = DEVICES[device]
    for dtype in range(4):
        for batch in (1, 7, 64, 1000, 100_000, 2**31):
            for hidden in (1, 64, 65, 128, 192, 193, 256, 257, 512, 513, 1024, 1025):
                for forced in ("", "step", "vector", "tile", "cluster"):
                    for flags in range(4):
                        name, rows, threads, registers, shared, launches = cuda.choose(
                            dtype, flags & 1, flags & 2, 100, batch, hidden, 2, facts, forced
                        )
                        assert launches
                        if name == "step":
                            continue
                        assert forced in ("", name)
                        assert threads * registers <= facts[4]
                        assert registers <= 255
                        assert shared <= facts[2]
                        assert -(-batch // rows) <= 2**31 - 1
                        assert hidden <= (1024 if name == "cluster" else 256)
                        assert dtype != FLOAT64
                        if name == "tile":
                            assert facts[0] >= (75 if dtype == FLOAT16 else 80)
                            assert dtype != FLOAT32 or flags & 2
                        if name == "cluster":
                            assert facts[0] >= 90
                            assert hidden <= 512 or dtype != FLOAT32
                            assert dtype != FLOAT32 or flags & 2 or rows < 8


@pytest.mark.parametrize(
    ("dtype", "seq_len", "batch", "hidden", "expected"),
    [
        (FLOAT32, 512, 1, 64, ("vector", 1)),
        (FLOAT32, 512, 32, 64, ("vector", 1)),
        (FLOAT32, 512, 64, 128, ("vector", 1)),
        (BFLOAT16, 512, 64, 64, ("tile", 8)),
        (BFLOAT16, 512, 64, 256, ("tile", 8)),
        (FLOAT16, 512, 4096, 128, ("tile", 8)),
        (BFLOAT16, 512, 64, 257, ("cluster", 8)),
        (BFLOAT16, 512, 64, 1024, ("cluster", 8)),
        (BFLOAT16, 512, 64, 1025, ("step", 0)),
        (FLOAT32, 512, 32, 256, ("cluster", 1)),
        (FLOAT64, 512, 64, 64, ("step", 0)),
        # Of few steps, none pays for loading a large w_hh into registers.
        (BFLOAT16, 1, 64, 1024, ("step", 0)),
        (BFLOAT16, 8, 64, 1024, ("cluster", 8)),
        (BFLOAT16, 0, 64, 64, ("tile", 8)),
        (FLOAT32, 1, 32, 64, ("vector", 1)),
    ],
)
def test_choice_on_h200(
    cuda: Any, dtype: int, seq_len: int, batch: int, hidden: int, expected: tuple[str, int]
) -> None:
    choice = cuda.choose(dtype, False, False, seq_len, batch, hidden, 1, DEVICES["H200"], "")
    assert choice[:2] == expected


def test_the_driver_knows_how_many_groups_fit(tmp_path: Path) -> None:
    """Where the device has been asked, choose() goes by its answer for each configuration."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = tmp_path / "choose.cpp", tmp_path / "choose"
    source.write_text("""
        #include <cstdio>
        #include "cuda/choose.h"
        using namespace fastrnn::cuda;
        int main() {
          Device h200{90, 132, 227 << 10, 228 << 10, 65536};
          const auto all = configurations();
          std::vector<int> groups(kConfigurations.size());
          h200.groups_at_once = groups.data();
          const Problem problem{fastrnn::Dtype::kBFloat16, false, false, 512, 32, 512, 1};
          const auto taken = [&](const char* forced) {
            std::puts(name_of(choose(problem, h200, forced)).c_str());
          };
          taken(""), taken("cluster");
          for (const char* only : {"cluster:512x8x4", "cluster:512x16x4", "cluster:1024x8x8"}) {
            for (const Choice& c : all)
              groups[c.configuration] = name_of(c) == only ? 4 : 0;
            taken("");
          }
          for (int& count : groups) count = 8;
          taken("");
          for (const Choice& c : all)
            if (c.blocks == 8) groups[c.configuration] = 1;
          taken("");
        }
    """)
    sources = [source, ROOT / "csrc/cuda/choose.cpp"]
    subprocess.run(
        [compiler, "-std=c++20", f"-I{ROOT / 'csrc'}", *sources, "-o", program], check=True
    )
    run = subprocess.run([program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [
        "step", "step",  # no cluster fits
        "cluster:512x8x4", "cluster:512x16x4", "cluster:1024x8x8",  # one alone does
        "cluster:512x8x8", "cluster:512x8x4",  # the fastest; of eight blocks only one at a time
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "dtype", "hidden", "expected"),
    [
        # One of cuDNN's kernels stays on the GPU for all steps, and ours needs clusters for it.
        ("A100", FLOAT32, 256, "torch"),
        ("A100", FLOAT16, 384, "torch"),
        ("A100", FLOAT16, 1024, "torch"),
        # It has none.
        ("A100", FLOAT32, 257, "step"),
        ("A100", BFLOAT16, 512, "step"),
        ("A100", FLOAT16, 576, "step"),
        ("A100", FLOAT16, 1152, "step"),
        ("A100", FLOAT64, 64, "step"),
        # Ours is faster.
        ("A100", FLOAT32, 128, "vector"),
        ("A100", FLOAT16, 256, "tile"),
        ("H200", FLOAT32, 256, "cluster"),
        ("H200", FLOAT16, 1024, "cluster"),
        ("H200", FLOAT32, 1024, "step"),
    ],
)
def test_torchs_operator_is_a_choice(
    cuda: Any, device: str, dtype: int, hidden: int, expected: str
) -> None:
    """Where cuDNN is expected to be faster, and only for calls that it can serve."""
    call = (dtype, False, False, 512, 64, hidden, 1, DEVICES[device])
    assert cuda.choose(*call, "", True)[0] == expected
    assert cuda.choose(*call, "torch", True)[0] == "torch"
    assert cuda.choose(*call, "")[0] == ("step" if expected == "torch" else expected)
    assert cuda.choose(*call, "torch")[0] == "step"


def names_for(cuda: Any, *call: Any) -> set[str]:
    """The configurations that the error for an unknown name says can serve a call."""
    with pytest.raises(
        ValueError, match=r"expected FASTRNN_CUDA_KERNEL to be torch, .* got grid$"
    ) as e:
        cuda.choose(*call, "grid")
    return set(re.findall(r"\w+:\d+x\d+x\d+", str(e.value)))


@pytest.mark.parametrize(
    ("dtype", "tf32"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
        (torch.bfloat16, False),
    ],
    ids=str,
)
def test_every_configuration_is_tested(cuda: Any, dtype: torch.dtype, tf32: bool) -> None:
    """CONFIGURATIONS has all that there are, and choose() takes each for its own case."""
    code, h200 = DTYPES.index(dtype), DEVICES["H200"]
    tested = {c.name: c.case for c in CONFIGURATIONS if c.dtype == dtype and (tf32 or not c.tf32)}
    assert names_for(cuda, code, False, tf32, 5, 1, 1, 1, h200) == set(tested)
    for name, case in tested.items():
        choice = cuda.choose(code, False, tf32, 5, case.batch, case.hidden_size, 2, h200, name)
        assert choice[0] == name.split(":")[0]
        assert choice[1] == case.batch - 1


@pytest.mark.parametrize(
    ("dtype", "hidden", "device", "name"),
    [
        (FLOAT32, 1, "H200", "vector:64x3x1"),
        (FLOAT32, 1, "H200", "tile:64x8x1"),  # needs TF32
        (FLOAT32, 65, "H200", "vector:64x1x1"),
        (FLOAT64, 1, "H200", "vector:64x1x1"),
        (BFLOAT16, 1, "A100", "cluster:512x8x4"),
        (BFLOAT16, 1, "H200 MIG 1g", "cluster:512x8x16"),
        (BFLOAT16, 1000, "RTX 5090", "cluster:1024x8x8"),  # needs more shared memory
    ],
)
def test_a_configuration_that_cannot_serve(
    cuda: Any, dtype: int, hidden: int, device: str, name: str
) -> None:
    call = (dtype, False, False, 5, 1, hidden, 1, DEVICES[device])
    assert name not in names_for(cuda, *call)
    with pytest.raises(ValueError, match=rf"can serve this call .*, got {name}$"):
        cuda.choose(*call, name)


@pytest.fixture(scope="module")
def race_programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """race.cpp under ThreadSanitizer, which does not look into the fibers; and without barriers."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("race")
    sources = [HERE / "race.cpp", HERE / "kernels.cpp", ROOT / "csrc/cuda/choose.cpp"]

    def compile_one(name: str) -> Path:
        common = [compiler, "-std=c++20", "-O1", "-g1", "-DFASTRNN_ON_CPU", *flags[name]]
        common += [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
        fibers, program = folder / f"{name}.o", folder / name
        subprocess.run([*common, "-c", HERE / "fibers.cpp", "-o", fibers], check=True)
        subprocess.run(
            [*common, "-fsanitize=thread", *sources, fibers, "-o", program, "-pthread"], check=True
        )
        return program

    flags: dict[str, list[str]] = {"right": [], "bare": ["-DFASTRNN_WITHOUT_BARRIERS"]}
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(flags, pool.map(compile_one, flags), strict=True))


def test_races(race_programs: dict[str, Path]) -> None:
    """ThreadSanitizer finds nothing."""
    run = subprocess.run([race_programs["right"]], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr


def test_races_are_found(race_programs: dict[str, Path]) -> None:
    """ThreadSanitizer reports each kernel where the barriers are taken out."""
    program = race_programs["bare"]
    for kernel in ("vector", "tile", "cluster"):
        run = subprocess.run([program, kernel], capture_output=True, text=True, timeout=600)
        assert "data race" in run.stderr, kernel
