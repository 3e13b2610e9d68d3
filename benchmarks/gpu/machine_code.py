"""What `make cuda-check` shows of the kernels' machine code on sm_90a: a table, and what in it has
changed since it was kept. For cuda_build.py; it needs no GPU, and of packages none."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.gpu import sass

ROOT = Path(__file__).parent.parent.parent
KEPT = ROOT / "benchmarks/results/cuda-check.json"
MEASURED = ROOT / "benchmarks/results/gpu-h200.json"
ARCH = "90a"

MISSING = (
    "no nvdisasm beside nvcc, on the PATH or among Python's packages: no report of\n"
    "the machine code. CUDA's toolkit has it, and `pip install nvidia-cuda-nvdisasm` brings it."
)

# A group's kernel, with its place in kConfigurations.
KERNEL = re.compile(
    r"(?P<pass>forward|backward)_block_kernel.*Configuration.*Li(?P<place>\d+)EE.*"
    r"\d(?P<walk>Whole|Any)(?:Forward|Backward)"
)
# What the table calls a dtype, and what torch does.
SHORT = {"float32": "f32", "TF32": "tf32", "half": "f16", "bfloat16": "bf16"}
LONG = {"f32": "float32", "tf32": "float32", "f16": "float16", "bf16": "bfloat16"}

COLUMNS = ("regs", "shared", "code", "step", "clocks", "lost", "alone", "full", "in the main loop")
LEGEND = """\
Of a time step of the main loop, step: its instructions; clocks: simulated, to compare builds of a
kernel, not for claims; lost: of these, in waits for LDC, S2R and global loads; alone, full:
measured on an H200, of one group and of all that run at once. In a turn of that loop, 2 or 4 steps,
drained: waits for all scoreboards; early: waits for a global load issued less than a step before;
local: LDL, STL."""

LIST = """#include <cstdio>
#include "cuda/configurations.h"
using namespace fastrnn::cuda;
int main() {
  for (const Configuration& c : kConfigurations)
    std::printf("%s %s %d %d\\n", name_of(c).c_str(),
                c.arithmetic == Arithmetic::kTF32 ? "TF32" : "float32",
                c.has_groups() ? c.shared_bytes() : 0, c.has_groups() ? c.threads() / 32 : 0);
}
"""


@dataclass(frozen=True)
class Configuration:
    name: str
    arithmetic: str  # of float32
    shared: int  # bytes of a block
    warps: int


@dataclass(frozen=True)
class Kernel:
    """A line of the table. Without a main loop, the last four are 0 and empty."""

    registers: int
    shared: int  # bytes of a block
    instructions: int
    step: int  # instructions of a time step
    clocks: int  # of a time step, as sass.Warp estimates them
    lost: int  # of them, in waits for constants, special registers and global loads
    found: str  # in the main loop, what had better not be there


Kernels = dict[str, Kernel]  # by "vector:64x1x1 f32 forward whole", or what the kernel is called


def find_nvdisasm(nvcc: str) -> str | None:
    """That of nvcc's toolkit, one on the PATH, or one that came with a package of Python's."""
    packages = Path(sysconfig.get_path("purelib"))
    beside = [Path(nvcc).parent, *packages.glob("nvidia/*/bin"),
              packages / "triton/backends/nvidia/bin"]  # fmt: skip
    path = os.pathsep.join(map(str, [beside[0], *os.get_exec_path(), *beside[1:]]))
    return shutil.which("nvdisasm", path=path)


def configurations(nvcc: str) -> list[Configuration]:
    """As csrc/cuda/configurations.h lists them, which a small program prints."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "list.cpp"), Path(folder, "list")
        source.write_text(LIST)
        flags = ["-std=c++20", "-cudart=none", f"-I{ROOT / 'csrc'}"]
        command: list[str | Path] = [nvcc, *flags, source, "-o", program]
        subprocess.run(command, check=True)
        lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in lines.splitlines())
    return [Configuration(row[0], row[1], int(row[2]), int(row[3])) for row in rows]


def disassembled(nvdisasm: str, cubin: Path) -> Iterator[tuple[str, sass.Code]]:
    """The kernels of a file, each as soon as it is there."""
    command, head = [nvdisasm, "-c", "-hex", "-ndf", str(cubin)], "\t.section"
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as run,
    ):
        assert run.stdout
        text = ""
        while block := run.stdout.read(1 << 22):
            *whole, text = (text + block).split(head)
            for part in whole:
                yield from sass.parse(head + part).items()
        yield from sass.parse(head + text).items()
        if run.wait():
            errors.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed:\n{errors.read()}")


def line_of(
    mangled: str, code: sass.Code, registers: int, known: Sequence[Configuration]
) -> tuple[str, Kernel]:
    """What the table calls the kernel, and its line."""
    name, own = mangled, Configuration("", "", 0, 1)
    if match := KERNEL.search(mangled):
        own = known[int(match["place"])]
        dtype = next((x for x in ("half", "bfloat16") if x in mangled), own.arithmetic)
        name = f"{own.name} {SHORT[dtype]} {match['pass']} {match['walk'].lower()}"
    while code and code[-1].opcode == "NOP":  # fills the last line of the cache
        code.pop()
    step, found = sass.Step(0, 0, 0, {}), ""
    try:
        step = sass.main_step(code, own.warps) or step
        found = ", ".join(f"{n} {what}" for what, n in step.found.items())
    except ValueError as error:
        found = str(error)
    return name, Kernel(
        registers, own.shared, len(code), step.instructions, step.clocks, step.lost, found
    )


def look(nvcc: str, nvdisasm: str, cubins: Sequence[Path], registers: Mapping[str, int]) -> Kernels:
    """A line for each kernel of the files. The registers are ptxas's, by mangled names."""
    known = configurations(nvcc)

    def lines(cubin: Path) -> list[tuple[str, Kernel]]:
        return [
            line_of(name, code, registers.get(name, 0), known)
            for name, code in disassembled(nvdisasm, cubin)
        ]

    largest_first = sorted(cubins, key=lambda path: -path.stat().st_size)
    with ThreadPoolExecutor() as pool:
        found = [line for part in pool.map(lines, largest_first) for line in part]
    names = Counter(name for name, _ in found)
    if twice := [name for name, count in names.items() if count > 1]:
        raise LookupError(f"two kernels have one name: {', '.join(twice)}")
    return dict(sorted(found))


# --- What was kept, and what was measured


def keep(kernels: Kernels, nvcc: str, sources: str, path: Path = KEPT) -> None:
    """Write the table, a line for each kernel."""
    head = f'"nvcc": "{nvcc}", "sources": "{sources}", "arch": "sm_{ARCH}"'
    lines = [f"{json.dumps(name)}: {json.dumps(asdict(x))}" for name, x in sorted(kernels.items())]
    path.write_text("{" + head + ', "kernels": {\n' + ",\n".join(lines) + "\n}}\n")


def changes(kernels: Kernels, nvcc: str, whole: bool, path: Path = KEPT) -> list[str]:
    """What differs from the table that was kept: of all kernels where this is the `whole` table."""
    where = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
    if not path.exists():
        return [f"there is no {where} to compare with"]
    kept = json.loads(path.read_text())
    if kept["nvcc"] != nvcc:
        return [f"not compared with {where}: that is of nvcc {kept['nvcc']}, this is {nvcc}"]
    lines = []
    for name, kernel in kernels.items():
        old, new = kept["kernels"].get(name), asdict(kernel)
        if old is None:
            lines.append(f"{name}: new")
            continue
        differing = [f"{what} {old.get(what) or '-'} -> {new[what] or '-'}"
                     for what in new if new[what] != old.get(what)]  # fmt: skip
        if differing:
            lines.append(f"{name}: {'; '.join(differing)}")
    if whole:
        lines += [f"{name}: gone" for name in kept["kernels"] if name not in kernels]
    return [f"against {where}, of sources {kept['sources']}:", *(lines or ["no differences"])]


@dataclass(frozen=True)
class Measured:
    """Clocks of a step, of one group alone and of as many as run at once."""

    alone: float
    full: float


def measured(path: Path = MEASURED) -> tuple[dict[str, Measured], str]:
    """By "vector:64x1x1 float32 forward"; and the hash of the kernels' sources."""
    if not path.exists():
        return {}, ""
    results: dict[str, Any] = json.loads(path.read_text())
    clocks_per_ns = float(results["machine"]["clock"].removesuffix(" MHz")) / 1000
    alone, full, sources = {}, {}, ""
    for x in results.get("times", []):
        name, sources = f"{x['name']} {x['dtype']} {x['pass']}", x["hash"]
        if x["groups"] == 1:
            alone[name] = x["ns"] * clocks_per_ns
        if x["groups"] == x["at_once"]:
            full[name] = x["ns"] * clocks_per_ns
    return {name: Measured(alone[name], full[name]) for name in alone if name in full}, sources


def served(kernels: Kernels, times: Mapping[str, Measured]) -> dict[str, Measured]:
    """By the kernel that was measured: for whole rows, where a configuration has one."""
    found = {}
    for name in kernels:
        group, _, walk = name.rpartition(" ")
        if walk != "whole" and f"{group} whole" in kernels:
            continue
        words = group.split(" ")
        time = times.get(" ".join(LONG.get(word, word) for word in words))
        if time:
            found[name] = time
    return found


# --- As text


def table(kernels: Kernels, times: Mapping[str, Measured]) -> list[str]:
    """Lines of at most 100 columns: kernels with a main loop by pass and walk, then the others."""
    row = "{:<24} {:>4} {:>6} {:>5} {:>5} {:>6} {:>4} {:>5} {:>5}  {}".format
    lines = []
    for walk, direction in product(("whole", "any"), ("forward", "backward")):
        end = f" {direction} {walk}"
        part = {name: x for name, x in kernels.items() if name.endswith(end) and x.step}
        if part:
            lines += ["", row(f"{direction}, {walk} rows", *COLUMNS)]
        for name, x in sorted(part.items(), key=lambda item: natural(item[0])):
            time = times.get(name)
            alone, full = (round(time.alone), round(time.full)) if time else ("-", "-")
            shared = f"{x.shared / 1024:.0f}K"
            lines.append(row(
                name.removesuffix(end), x.registers, shared, x.instructions, x.step, x.clocks,
                x.lost, alone, full, x.found,
            ).rstrip())  # fmt: skip
    others = {name: x for name, x in kernels.items() if not x.step}
    if others:
        lines += ["", f"{'without a main loop':<70} {'regs':>4} {'code':>5}"]
    for name, x in others.items():
        lines.append(f"{name:<70} {x.registers:>4} {x.instructions:>5}  {x.found}".rstrip())
    return lines


def natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def comparison(kernels: Kernels, times: Mapping[str, Measured]) -> list[str]:
    """How far the simulated clocks are from the measured ones, by the kernels' families."""
    lines = []
    for family in ("vector", "tile", "cluster"):
        ratios = [time.alone / kernels[name].clocks for name, time in times.items()
                  if name.startswith(family) and kernels[name].clocks]  # fmt: skip
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            lines.append(f"{family}: {mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return lines


def show(kernels: Kernels, sources: str) -> None:
    """Print the table, and how it compares with measured times."""
    all_times, measured_sources = measured()
    times = served(kernels, all_times)
    print("\n".join(table(kernels, times)))
    print(f"\n{LEGEND}")
    if lines := comparison(kernels, times):
        other = f", measured on other sources ({measured_sources})"
        other = "" if measured_sources == sources else other
        print(f"alone / clocks, geometric mean and range{other}:\n  {'; '.join(lines)}")


def report(
    nvcc: str, version: str, sources: str, cubins: Sequence[Path], registers: Mapping[str, int],
    readable: Callable[[list[str]], list[str]], whole: bool, keeps: bool,
) -> None:  # fmt: skip
    """Print what the files hold, and what has changed; or keep it.

    Args:
        nvcc, version: Where it is, and which.
        sources: The hash of what the kernels are made of.
        cubins: Compiled for ARCH.
        registers: Of each kernel, by its mangled name.
        readable: Other names for mangled ones.
        whole: Whether these are all files.
        keeps: Whether to write the table for git.
    """
    nvdisasm = find_nvdisasm(nvcc)
    why = MISSING
    kernels: Kernels = {}
    if nvdisasm:
        try:
            kernels = look(nvcc, nvdisasm, cubins, registers)
        except (OSError, RuntimeError, LookupError, subprocess.CalledProcessError) as error:
            why = f"no report of the machine code: {error}"
    if not kernels:
        sys.exit(f"cuda-check: {why}") if keeps else print(f"cuda-check: {why}")
        return
    plain = [name for name in kernels if name in registers]
    kernels |= zip(readable(plain), [kernels.pop(name) for name in plain], strict=True)
    print(f"\nMachine code of sm_{ARCH}, of sources {sources}, by nvcc {version}")
    show(kernels, sources)
    if keeps:
        keep(kernels, version, sources)
        print(f"\nkept as {KEPT.relative_to(ROOT)}")
    else:
        print("\n" + "\n".join(changes(kernels, version, whole)))
