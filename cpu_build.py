"""How the CPU half is compiled: for torch_build.py and wheels.py, tests and benchmarks.

Its kernels never see torch: this file also builds them as a Python module of their own.
"""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent
BUILD = ROOT / "build/tests"

# What the kernels are linked to: torch's OpenMP. On other systems they run on one thread.
LIBRARIES = ["-lgomp"] if sys.platform == "linux" else []
FLAGS = [
    "-std=c++20",
    "-O3",
    "-DNDEBUG",  # else torch's headers check their own arguments at every call
    "-g0",  # Python's own flags ask for -g, which makes the library fifty times larger
    "-fno-math-errno",  # sqrt, exp and their kin need not set errno, so loops over them vectorize
    "-fno-trapping-math",  # nobody reads the exception flags, so both sides of a select may run
    "-ffp-contract=fast",  # a * b + c may be one fused multiply-add: faster, and rounded once
]
# No -march=native: a wheel runs on other machines too; kernels choose instructions at run time.
# No -ffast-math: it ignores NaN and infinity, reorders sums, and makes the whole process flush
# denormals to zero.

# For compiler and linker, after all others: tests/fuzz/sanitize.py builds with them.
MORE_FLAGS = shlex.split(os.environ.get("FASTRNN_FLAGS", ""))


def kernel_sources() -> list[Path]:
    """The sources that do not use torch."""
    return sorted(path for path in (ROOT / "csrc/cpu").glob("*.cpp") if path.name != "rnn_cpu.cpp")


def find_compiler() -> str:
    """The C++ compiler that CXX names, or the first that is found."""
    compilers = [os.environ["CXX"]] if "CXX" in os.environ else ["c++", "g++", "clang++"]
    for name in compilers:
        if shutil.which(shlex.split(name)[0]):
            return name
    sys.exit(
        f"fastrnn: no C++ compiler found (tried {', '.join(compilers)}). Install one:\n"
        "  Debian, Ubuntu  apt install g++       (or clang)\n"
        "  Fedora          dnf install gcc-c++   (or clang)\n"
        "  macOS           xcode-select --install\n"
        "or name one in the environment variable CXX."
    )


def find_python(version: str) -> str | None:
    """A Python of this version, such as "3.12", on the PATH or among pyenv's."""
    pyenv = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python{version}"))
    for path in [shutil.which(f"python{version}"), *map(str, reversed(pyenv))]:
        # pyenv's shim is on the PATH even if there is no such Python.
        if path and subprocess.run([path, "-V"], capture_output=True).returncode == 0:
            return path
    return None


@functools.cache
def kernels() -> ModuleType:
    """Compile what has changed since the last build, and load the module."""
    from torch.utils import cpp_extension

    BUILD.mkdir(parents=True, exist_ok=True)
    module: ModuleType = cpp_extension.load(
        "fastrnn_kernels",
        [str(ROOT / "tests/kernels/kernels_module.cpp"), *map(str, kernel_sources())],
        extra_cflags=FLAGS + MORE_FLAGS,
        extra_ldflags=[*LIBRARIES, *MORE_FLAGS],
        extra_include_paths=[str(ROOT / "csrc")],
        build_directory=str(BUILD),
    )
    return module
