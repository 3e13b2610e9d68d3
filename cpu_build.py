"""The CPU's kernels as a Python module, without torch, for their tests and their benchmarks."""

from __future__ import annotations

import functools
import os
import shlex
from pathlib import Path
from types import ModuleType

from torch.utils import cpp_extension

ROOT = Path(__file__).parent
BUILD = ROOT / "build/tests"
FLAGS = [
    "-std=c++20",
    "-O3",
    "-g0",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fopenmp",
]
MORE_FLAGS = shlex.split(os.environ.get("FASTRNN_FLAGS", ""))  # as in setup.py


@functools.cache
def kernels() -> ModuleType:
    """Compile what has changed since the last build, and load the module."""
    sources = [path for path in (ROOT / "csrc/cpu").glob("*.cpp") if path.name != "rnn_cpu.cpp"]
    BUILD.mkdir(parents=True, exist_ok=True)
    module: ModuleType = cpp_extension.load(
        "fastrnn_kernels",
        [str(ROOT / "tests/kernels_module.cpp"), *map(str, sorted(sources))],
        extra_cflags=FLAGS + MORE_FLAGS,
        extra_ldflags=["-fopenmp", *MORE_FLAGS],
        extra_include_paths=[str(ROOT / "csrc")],
        build_directory=str(BUILD),
    )
    return module
