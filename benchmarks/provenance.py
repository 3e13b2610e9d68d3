"""Where and when a results file was measured, in words."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.prepare import hashes
from benchmarks.machine import ROOT
from benchmarks.markdown import number

Record = dict[str, Any]

UNKNOWN = "not recorded"
OLDER = "older than the current sources"
SETS = {"AVX512": "AVX-512", "AVX2": "AVX2", "DEFAULT": "neither AVX-512 nor AVX2"}

# AMD's generations: family, models, name.
GENERATIONS = [
    (25, range(0x00, 0x10), "Zen 3"),
    (25, range(0x20, 0x60), "Zen 3"),
    (25, range(0x10, 0x20), "Zen 4"),
    (25, range(0x60, 0xB0), "Zen 4"),
    (26, range(0x100), "Zen 5"),
]
GIT: Record = {"cwd": ROOT, "capture_output": True}
WITH_AVX512 = ("Zen 4", "Zen 5")


def generation(cpu: str) -> str:
    """Of the recorded name of an AMD processor, or nothing."""
    found = re.search(r"\(family (\d+), model (\d+)\)", cpu)
    if found is None or "AMD" not in cpu:
        return ""
    family, model = map(int, found.groups())
    names = [name for f, models, name in GENERATIONS if f == family and model in models]
    return names[0] if names else ""


def processor(machine: Record) -> str:
    """The recorded name, and its generation."""
    name = machine.get("cpu", UNKNOWN)
    return f"{name}, {known}" if (known := generation(name)) else name


def short_processor(machine: Record) -> str:
    name: str = machine.get("cpu", UNKNOWN)
    return generation(name) or name


def capability(machine: Record) -> str:
    name = machine.get("torch_capability", UNKNOWN)
    return SETS.get(name, name)


@functools.cache
def kernels_changed_since(commit: str) -> bool | None:
    """Whether the CPU kernels differ from those of a commit; None where git does not know it."""
    commit = commit.split()[0]  # "... and changes"
    try:
        if subprocess.run(["git", "cat-file", "-e", f"{commit}^{{commit}}"], **GIT).returncode:
            return None
        diff = ["git", "diff", "--quiet", commit, "--", "csrc/cpu"]
        return subprocess.run(diff, **GIT).returncode != 0
    except OSError:
        return None


def older(machine: Record) -> str:
    """The mark of a column whose kernels are not those of today, or nothing."""
    if "gpu" in machine or "hash" in machine:
        return OLDER if machine.get("hash") != hashes()[0] else ""
    return OLDER if kernels_changed_since(machine.get("commit", "unknown")) else ""


def version(machine: Record) -> str:
    if "commit" in machine:
        return f"commit {machine['commit']}"
    return f"source hash {machine['hash']}" if "hash" in machine else f"commit {UNKNOWN}"


def source(machine: Record) -> str:
    """One line: machine, torch, version, date."""
    where = machine["gpu"] if "gpu" in machine else f"{processor(machine)}, {capability(machine)}"
    parts = [
        where,
        f"PyTorch {machine.get('torch', UNKNOWN)}",
        version(machine),
        machine["date"].split(" ")[0] if "date" in machine else f"date {UNKNOWN}",
        older(machine),
    ]
    return "; ".join(filter(None, parts))


def facts(document: Record) -> str:
    """Everything that a file says of its machine, as a list."""
    return "\n".join(f"- {name}: {value}" for name, value in _facts(document)) + "\n"


def _facts(document: Record) -> Iterator[tuple[str, str]]:
    machine = document.get("machine") or document.get("machine_info") or {}
    # The threads of the process are not those of its rows.
    kept = {k: v for k, v in machine.items() if k != "threads"}
    for name in ("date", "commit", "torch", "cpu"):
        if name not in kept and not (name == "commit" and "hash" in kept):
            kept[name] = UNKNOWN
    for name, value in kept.items():
        if name == "cpu":
            value = processor(machine)
        elif name in ("commit", "hash") and (mark := older(machine)):
            value = f"{value} ({mark})"
        yield name.replace("_", " "), number(value) if isinstance(value, float) else str(value)
    if command := document.get("command"):
        yield "command", f"`{command}`"
    for name, speeds in document.get("gemm_gflops", {}).items():
        best = ", ".join(f"{library} {speed:.0f}" for library, speed in speeds.items())
        yield f"matrix products, {name}", f"{best} GFLOP/s"
