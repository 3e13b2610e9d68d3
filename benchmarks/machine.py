"""What the measurements ran on, and the limits that they are held against."""

from __future__ import annotations

import datetime
import functools
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import torch
from torch.utils import cpp_extension

from benchmarks.timing import OTHERS_ALLOWED, Meter, seconds_of

ROOT = Path(__file__).parent.parent
GEMM_SIZES = [(512, 512, 512), (768, 256, 256), (1024, 1024, 1024)]  # rows, columns, depth


def cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", info.read_text(), re.MULTILINE))
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "csrc", "fastrnn", "*_build.py")
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def library() -> dict[str, Any]:
    """What this fastrnn is."""
    import fastrnn

    return {"fastrnn": fastrnn.__version__, "instruction_set": fastrnn.info()["cpu_kernels"]}


@functools.cache
def _fixed_facts() -> dict[str, Any]:
    return {
        "cpu": cpu_model(),
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
    }


def facts(with_library: bool = True) -> dict[str, Any]:
    """Machine, versions and commit, with the threads and the time of the call."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    ours = library() if with_library else {}
    return {**_fixed_facts(), **ours, "threads": torch.get_num_threads(), "date": now}


def _speed(gemm: Callable[[], object], flop: float) -> float:
    with torch.no_grad():
        gemm()
        repetitions = max(1, round(4e-3 / seconds_of(gemm, 1)))
        return flop / median(seconds_of(gemm, repetitions) for _ in range(9)) / 1e9


_gemms: dict[tuple[str, int], dict[str, float]] = {}


def measure_gemm(dtype: str, threads: int) -> dict[str, float]:
    """GFLOP/s of the best matrix products that torch offers, each at its best size.

    The best of this and all earlier calls, each repeated while something else uses the machine: a
    limit that was measured too low would make every share too high.
    """
    found = _gemms.setdefault((dtype, threads), {})
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for tries in range(3):
        if tries:
            time.sleep(1.0)
        meter = Meter()
        for rows, columns, depth in GEMM_SIZES:
            for name, gemm in _gemms_of(dtype, rows, columns, depth).items():
                speed = _speed(gemm, 2.0 * rows * columns * depth)
                found[name] = max(found.get(name, 0.0), speed)
        if (meter.stop()[1] or 0.0) <= OTHERS_ALLOWED:
            break
    torch.set_num_threads(before)
    return found


def _gemms_of(dtype: str, rows: int, columns: int, depth: int) -> dict[str, Callable[[], object]]:
    x = torch.randn(rows, depth, dtype=getattr(torch, dtype))
    w = torch.randn(columns, depth, dtype=x.dtype)
    gemms: dict[str, Callable[[], object]] = {"torch.mm": lambda: torch.mm(x, w.t())}
    if dtype != "float64" and torch.backends.mkldnn.is_available():
        linear = torch.ops.mkldnn._linear_pointwise
        gemms["oneDNN in torch"] = lambda: linear(x, w, None, "none", [], "")
    return gemms


def gemm_gflops(dtype: str, threads: int) -> dict[str, float]:
    """As measured so far, at least once."""
    return _gemms.get((dtype, threads)) or measure_gemm(dtype, threads)


def best_gemm_gflops(dtype: str, threads: int) -> float:
    return max(gemm_gflops(dtype, threads).values())


@functools.cache
def limits() -> ModuleType:
    """The compiled limits: multiply-adds, reading memory, a call that computes nothing."""
    build = ROOT / "build/benchmarks"
    build.mkdir(parents=True, exist_ok=True)
    module: ModuleType = cpp_extension.load(
        "fastrnn_limits",
        [str(Path(__file__).parent / "limits.cpp")],
        extra_cflags=["-std=c++20", "-O3", "-g0", "-ffp-contract=fast"],
        build_directory=str(build),
    )
    return module


@functools.cache
def fma_gflops(instruction_set: str) -> float:
    """Peak of float32 multiply-adds on one processor: chains in registers, no memory."""
    return max(limits().fma_gflops(instruction_set) for _ in range(9))


@functools.cache
def read_gbytes(instruction_set: str, size: int) -> float:
    """GB/s at which one processor reads the same `size` bytes again and again."""
    x = torch.randn(max(size // 4, 1024))
    return max(limits().read_gbytes(instruction_set, x) for _ in range(50))
