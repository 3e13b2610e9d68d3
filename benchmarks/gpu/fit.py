"""Hold the CUDA kernels' choice against measured times: the table's, and what a choice costs.

    build/gpu/kernels time > times.jsonl    # on the GPU; python -m benchmarks.gpu.prepare builds it
    python -m benchmarks.gpu.fit times.jsonl

csrc/cuda/choose.cpp estimates the time of a step from the table csrc/cuda/times.h.
This prints these columns as measured and as they stand, and for the calls of the benchmarks the
regret: the time of the configuration that is chosen over that of the best one.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.gpu.shapes import Row, plan

ROOT = Path(__file__).parent.parent.parent
PASSES = ("forward", "backward")


@dataclass(frozen=True)
class Time:
    """A line of `kernels time`."""

    name: str  # of a configuration
    dtype: str
    direction: str  # of PASSES
    groups: int
    at_once: int  # by the driver
    estimated_at_once: int  # by the sizes
    ns: float  # of a step


def parse(lines: Iterable[str], path: object = "times") -> list[Time]:
    """The measurements in lines of JSON: of one build, on one device."""
    found: list[Time] = []
    builds, at_once = set(), {}
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        try:
            x = json.loads(line)
            if "ns" not in x:  # a limit of the device, or what failed
                continue
            t = Time(x["name"], x["dtype"], x["pass"], x["groups"], x["at_once"],
                     x["estimated_at_once"], float(x["ns"]))  # fmt: skip
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"{where}: expected what `kernels time` prints, got {line}") from None
        builds.add(x.get("hash"))
        if len(builds) > 1:
            raise ValueError(f'{where}: expected one build, "hash" as before, got {line}')
        if at_once.setdefault((t.name, t.dtype), t.at_once) != t.at_once:
            raise ValueError(f'{where}: expected one device, "at_once" as before, got {line}')
        found.append(t)
    return found


@cache
def build() -> Path:
    """The program that asks choose()."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: expected g++ or c++")
    program = ROOT / "build/estimate"
    program.parent.mkdir(exist_ok=True)
    sources = [str(ROOT / "benchmarks/gpu/estimate.cpp"), str(ROOT / "csrc/cuda/choose.cpp")]
    command = [compiler, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", "-o", str(program), *sources]
    subprocess.run(command, check=True)
    return program


@dataclass(frozen=True)
class Configuration:
    """A row of csrc/cuda/times.h, and how many groups run at once on an H200."""

    name: str
    dtypes: list[str]
    units: int
    rows: int
    alone: int  # nanoseconds of a step of one group
    full: int  # and of all that run at once
    at_once: int  # by the sizes


@dataclass(frozen=True)
class Answer:
    chosen: str
    ns: dict[str, float]  # of a step, estimated, of each that can serve


class Choice:
    """csrc/cuda/choose.cpp on an H200."""

    def __init__(self) -> None:
        self._program = build()
        self._at_once: list[str] = []
        self.table = [Configuration(**json.loads(line)) for line in self._run("list")]
        self.configurations = {(c.name, dtype): c for c in self.table for dtype in c.dtypes}

    def on_device_of(self, times: Iterable[Time]) -> None:
        """Take from `times` how many groups run at a time."""
        at_once = {(t.name, t.dtype): t.at_once for t in times}
        self._at_once = [f"at_once {name} {dtype} {n}" for (name, dtype), n in at_once.items()]

    def of(self, calls: Iterable[str]) -> list[Answer]:
        """Of each "DTYPE TF32 PASS B H", with very many steps."""
        lines = self._run(text="\n".join([*self._at_once, *calls]))
        return [Answer(**json.loads(line)) for line in lines]

    def _run(self, *words: str, text: str = "") -> list[str]:
        command = [str(self._program), *words]
        ended = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
        return ended.stdout.splitlines()


@dataclass
class Measured:
    """Times of a configuration in a dtype and a direction, by groups."""

    at_once: int
    points: dict[int, float] = field(default_factory=dict)

    def at(self, groups: int) -> float:
        """Nanoseconds of a step: measured, or between what was.

        More groups than run at a time come in waves, one after the other.
        """
        if groups in self.points:
            return self.points[groups]
        most = max(self.points)
        wave = self.points[most] / math.ceil(most / self.at_once)
        first = {g: ns for g, ns in sorted(self.points.items()) if g <= self.at_once}
        first = first or {self.at_once: wave}
        waves, rest = divmod(groups, self.at_once)
        last = float(np.interp(rest, [*first], [*first.values()])) if rest else 0.0
        return waves * wave + last


def gather(times: Iterable[Time]) -> dict[tuple[str, str, str], Measured]:
    """By name, dtype and direction; of times of the same groups the median."""
    all_: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    at_once = {}
    for t in times:
        key = (t.name, t.dtype, t.direction)
        all_.setdefault(key, {}).setdefault(t.groups, []).append(t.ns)
        at_once[key] = t.at_once
    return {
        key: Measured(at_once[key], {g: statistics.median(ns) for g, ns in points.items()})
        for key, points in all_.items()
    }


@dataclass(frozen=True)
class Regret:
    call: str  # "DTYPE TF32 PASS B H"
    best: str
    chosen: str
    ratio: float  # of times, chosen over best

    def __str__(self) -> str:
        dtype, tf32, direction, batch, size = self.call.split()
        setting = f"{dtype} TF32" if tf32 == "1" else dtype
        call = f"B{batch} H{size} {setting} {direction}"
        return f"{self.ratio:5.2f}  {call}: {self.chosen}, best {self.best}"


def calls_of(rows: Iterable[Row]) -> list[str]:
    """Distinct calls of rows with a single layer and direction, as "DTYPE TF32 PASS B H"."""
    found = {
        f"{row.setting.dtype} {row.setting.tf32:d} {direction} {row.shape.batch} "
        f"{row.shape.hidden_size}": None
        for row in rows
        if row.shape.num_layers == 1 and not row.shape.bidirectional
        for direction in PASSES[: 2 if row.mode == "training" else 1]
    }
    return list(found)


def regrets(choice: Choice, times: Iterable[Time], calls: Sequence[str]) -> list[Regret]:
    """What a choice among the measured configurations costs each call that they can serve."""
    measured = gather(times)
    found = []
    for call, answer in zip(calls, choice.of(calls), strict=True):
        dtype, _, direction, batch, _ = call.split()
        real = {
            name: measured[name, dtype, direction].at(
                math.ceil(int(batch) / choice.configurations[name, dtype].rows)
            )
            for name in answer.ns
            if (name, dtype, direction) in measured
        }
        if real:
            best = min(real, key=real.__getitem__)
            chosen = min(real, key=answer.ns.__getitem__)
            found.append(Regret(call, best, chosen, real[chosen] / real[best]))
    return found


def columns(table: Iterable[Configuration], times: Sequence[Time]) -> list[str]:
    """A line for each row of the table: alone and full, as measured and as they stand."""
    lines = [f"{'name':18} {'dtypes':16} {'measured':>12} {'in the table':>14}  differs"]
    for c in table:
        of_row = [t for t in times if t.name == c.name and t.dtype in c.dtypes]
        alone = [t.ns for t in of_row if t.groups == 1]
        full = [t.ns for t in of_row if t.groups == t.at_once]
        if not alone or not full:
            continue
        means = round(statistics.mean(alone)), round(statistics.mean(full))
        differs = max(abs(c.alone / means[0] - 1), abs(c.full / means[1] - 1))
        line = f"{c.name:18} {' '.join(c.dtypes):16} {'{}, {}'.format(*means):>12} "
        line += f"{f'{c.alone}, {c.full}':>14} {100 * differs:6.1f} %"
        if {t.estimated_at_once for t in of_row} != {c.at_once}:
            line += f"  {of_row[0].estimated_at_once} groups at once, now {c.at_once}"
        lines.append(line)
    return lines


def summary(found: Sequence[Regret]) -> list[str]:
    if not found:
        return ["no call of the benchmarks is served by what was measured"]
    ratios = [r.ratio for r in found]
    return [
        f"chosen over best: mean {statistics.mean(ratios):.3f}, worst {max(ratios):.2f}, "
        f"of {len(found)} calls",
        *(f"  {r}" for r in sorted(found, key=lambda r: -r.ratio)[:5]),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.fit", description=__doc__.split("\n")[0])
    parser.add_argument("times", nargs="+", type=Path, help="what `kernels time` has printed")
    args = parser.parse_args(argv)
    try:
        lines = [line for path in args.times for line in path.read_text().splitlines()]
        times = parse(lines, ", ".join(map(str, args.times)))
        choice = Choice()
    except (OSError, ValueError) as e:
        sys.exit(f"fit: {e}")
    if not times:
        sys.exit("fit: expected measurements, got none; `build/gpu/kernels time` prints them")
    if unknown := {(t.name, t.dtype) for t in times} - choice.configurations.keys():
        names = ", ".join(sorted({" ".join(pair) for pair in unknown}))
        sys.exit(f"fit: expected configurations of these sources, got {names}")
    choice.on_device_of(times)
    print("\n".join(columns(choice.table, times)), end="\n\n")
    found = regrets(choice, times, calls_of(plan()))
    print("\n".join(summary(found)))
    by_steps = sum(answer.chosen == "step" for answer in choice.of([r.call for r in found]))
    print(f"choose() takes step for {by_steps} of these calls, which has no times here")


if __name__ == "__main__":
    main()
