"""The CUDA half, compiled for the CPU by tests/gpu/on_cpu."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from torch.utils import cpp_extension

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests/gpu/on_cpu"
FLAGS = ["-std=c++20", "-O1", "-g0", "-Wall", "-Wextra", "-DFASTRNN_ON_CPU", "-ffp-contract=off"]
NEED_A_GPU = ("rnn_cuda.cpp", "devices.cpp", "torch_cuda.cpp")


@cache
def module() -> Any:
    """Build, or find built, the operators over CPU tensors."""
    build = ROOT / "build/cuda_on_cpu"
    build.mkdir(parents=True, exist_ok=True)
    sources = [ROOT / "csrc/arguments.cpp", ROOT / "csrc/extras.cpp", *HERE.glob("*.cpp")]
    sources += (ROOT / "csrc/cuda").glob("*.cpp")
    return cpp_extension.load(
        "fastrnn_cuda_on_cpu",
        sorted(str(path) for path in sources if path.name not in (*NEED_A_GPU, "race.cpp")),
        extra_cflags=FLAGS,
        extra_include_paths=[str(ROOT / "csrc"), str(HERE)],
        build_directory=str(build),
    )
