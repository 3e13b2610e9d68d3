"""benchmarks/gpu/kernels.cpp, the program that checks and times the CUDA kernels without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rows import CONFIGURATIONS

import cuda_build

ROOT = Path(__file__).parents[2]
EMULATION = ROOT / "tests/gpu/on_cpu"
FLAGS = ["-std=c++20", "-DFASTRNN_ON_CPU", "-ffp-contract=off"]
INCLUDES = [f"-I{ROOT / 'csrc'}", f"-I{EMULATION}"]
# As the program lists them.
VARIANTS = [f"{c.kernel} {str(c.dtype).removeprefix('torch.')}" for c in CONFIGURATIONS]
VARIANTS += [f"step {dtype}" for dtype in ("float32", "float64", "float16", "bfloat16")]
QUICK = [
    "step float32", "step float64", "step float16", "step bfloat16",
    "vector:64x4x1 float32", "tile:64x8x1 float32", "tile:64x16x1 float16",
    "tile:256x8x1 bfloat16", "cluster:256x4x2 float32", "cluster:256x8x2 float32",
    "cluster:384x8x4 bfloat16", "cluster:512x8x8 float16",
]  # fmt: skip


def compile_program(folder: Path, kernels: list[Path]) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    program = folder / "kernels"
    sources = [ROOT / "benchmarks/gpu/kernels.cpp", ROOT / "csrc/cuda/choose.cpp", *kernels]
    objects = [folder / f"{i}.o" for i in range(len(sources))]

    def compile_one(source: Path, to: Path) -> None:
        command = [compiler, *FLAGS, "-O1", *INCLUDES, "-c", source, "-o", to]
        subprocess.run(command, check=True)

    with ThreadPoolExecutor() as pool:
        list(pool.map(compile_one, sources, objects))
    subprocess.run([compiler, *objects, "-o", program], check=True)
    return program


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    emulation = [EMULATION / f"{name}.cpp" for name in ("kernels", "check", "fibers", "banks")]
    return compile_program(tmp_path_factory.mktemp("kernels"), emulation)


def run(program: Path, *words: str) -> tuple[int, str]:
    ended = subprocess.run([program, *words], capture_output=True, text=True, timeout=300)
    return ended.returncode, ended.stdout


def results(program: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
    status, lines = run(program, *words)
    return status, [json.loads(line) for line in lines.splitlines()]


def test_list(program: Path) -> None:
    status, lines = run(program, "list")
    assert status == 0
    assert sorted(lines.splitlines()) == sorted(VARIANTS)


@pytest.mark.parametrize(
    "variant",
    [
        *QUICK,
        *(pytest.param(v, marks=pytest.mark.slow) for v in VARIANTS if v not in QUICK),
    ],
)
def test_check(program: Path, variant: str) -> None:
    status, found = results(program, "check", *variant.split())
    assert [line["rows"] for line in found] == [
        "whole",
        "packed",
        "lengths",
        "marks",
        "bare",
        "full",
    ]
    assert all(line["right"] for line in found), found
    assert status == 0


def test_time(program: Path) -> None:
    status, found = results(program, "time", "tile:64x8x1", "bfloat16")
    assert status == 0
    assert {line["pass"] for line in found} == {"forward", "backward"}
    assert len(found) == 8


def test_steps_are_not_timed(program: Path) -> None:
    """Their products are cuBLAS's, which the program does without."""
    assert results(program, "time", "step", "float32") == (0, [])


def test_unknown_words(program: Path) -> None:
    for words in (["check", "vector:64x3x1"], ["check", "vector:64x1x1", "float16"], ["sing"]):
        assert run(program, *words) == (1, "")


def test_what_is_wrong_is_found(tmp_path: Path) -> None:
    """Kernels that write nothing, and in float16 kernels that cannot be launched."""
    launchers = [
        f"cudaError_t launch_{kernel}_{direction}(const {direction.capitalize()}Recurrence& r, "
        "const Choice&, cudaStream_t) "
        "{ return r.dtype == Dtype::kFloat16 ? cudaErrorInvalidValue : cudaSuccess; }"
        for kernel in ("vector", "tile", "cluster")
        for direction in ("forward", "backward")
    ]
    source = tmp_path / "launchers.cpp"
    body = "\n".join(launchers)
    source.write_text(
        '#include "cuda/launchers.h"\n#include "cuda/grads.cu"\n#include "cuda/step.cu"\n'
        f"namespace fastrnn::cuda {{\n{body}\n}}\n"
    )
    broken = compile_program(
        tmp_path, [source, *(EMULATION / f for f in ("check.cpp", "fibers.cpp", "banks.cpp"))]
    )
    status, (line,) = results(broken, "check", "tile:64x8x1", "bfloat16", "whole")
    assert (status, line["right"]) == (1, False)
    status, (line,) = results(broken, "check", "tile:64x8x1", "float16", "whole")
    assert (status, line["failed"]) == (1, "invalid argument")


def test_names_of_compiled_kernels() -> None:
    """Of a configuration, hidden units x rows x blocks, as everywhere else."""
    if shutil.which("c++filt") is None:
        pytest.skip("no c++filt")
    vector = "NS0_11VectorGroupIXtlNS0_13ConfigurationELNS0_6KernelE2ELNS0_10ArithmeticE0E"
    vector += "Li192ELi2ELi1ELi16ELi4ELi586ELi589EEEEE"
    mangled = f"_ZN7fastrnn4cuda21backward_block_kernelI{vector}NS0_11AnyBackwardIS6_Li4EEEEE"
    mangled += "vNS0_10RecurrenceINS0_17BackwardDirectionEEE"
    group = "VectorGroup<192x2x1>"
    (name,) = cuda_build.demangled([mangled])
    assert name == f"backward_block_kernel<{group}, AnyBackward<{group}, 4> >"


def test_compiles_for_the_gpu(tmp_path: Path) -> None:
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc")
    command = [nvcc, *cuda_build.FLAGS, f"-I{ROOT / 'csrc'}", "-c"]
    command += [str(ROOT / "benchmarks/gpu/kernels.cpp"), "-o", str(tmp_path / "kernels.o")]
    subprocess.run(command, check=True)
