"""Fit the constants of the CUDA kernels' choice to measured times, and see what that is worth.

    build/gpu/kernels time > times.jsonl    # on the GPU; python -m benchmarks.gpu.prepare builds it
    python -m benchmarks.gpu.fit times.jsonl

csrc/cuda/choose.cpp estimates the time of a step from a few constants, StepTimes. This prints
measured and estimated times, the constants that fit best, the regret (the time of the
configuration that the model chooses over that of the best one) for each call of the benchmarks,
with the constants as they are and as fitted.
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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.shapes import Row, plan

ROOT = Path(__file__).parent.parent.parent
MULTIPROCESSORS = 132  # of an H100 SXM or an H200
PASSES = ("forward", "backward")
DIFFERENCE = 1e-4  # of a constant's logarithm
LARGEST_STEP = 1.0
DAMPINGS = 10.0 ** np.arange(-6, 3, 2)  # tried side by side
MOST_ITERATIONS = 60
SMALLEST_ERROR = 0.01  # relative, that a time is taken to have
UNCLEAR = 0.5  # relative error from which on a constant is not determined

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Time:
    """A line of `kernels time`."""

    name: str  # of a configuration
    dtype: str
    direction: str  # of PASSES
    groups: int
    at_once: int
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
            t = Time(x["name"], x["dtype"], x["pass"], x["groups"], x["at_once"], float(x["ns"]))
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
    """The program that evaluates the model."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        raise FileNotFoundError("no C++ compiler: expected g++ or c++")
    program = ROOT / "build/estimate"
    program.parent.mkdir(exist_ok=True)
    sources = [str(ROOT / "benchmarks/gpu/estimate.cpp"), str(ROOT / "csrc/cuda/choose.cpp")]
    command = [compiler, "-std=c++20", "-O1", f"-I{ROOT / 'csrc'}", "-o", str(program), *sources]
    subprocess.run(command, check=True)
    return program


def step_call(name: str, dtype: str, tf32: bool, direction: str, batch: int, size: int) -> str:
    """A question to the model: nanoseconds of a step."""
    return f"step {name} {dtype} {tf32:d} {direction} {batch} {size}"


class Model:
    """csrc/cuda/choose.cpp on one device."""

    def __init__(self, multiprocessors: int = MULTIPROCESSORS) -> None:
        self._program = build()
        listed = json.loads(self._run(["list"], ""))
        self.names: list[str] = list(listed["constants"])
        self.constants: Floats = np.array(list(listed["constants"].values()))
        self.configurations: dict[tuple[str, str], dict[str, Any]] = {
            (c["name"], c["dtype"]): c for c in listed["configurations"]
        }
        self._device = [f"multiprocessors {multiprocessors}"]

    def on_device_of(self, times: Iterable[Time]) -> None:
        """Take from `times` how many groups run at a time."""
        at_once = {(t.name, t.dtype): t.at_once for t in times}
        self._device += [f"at_once {name} {dtype} {n}" for (name, dtype), n in at_once.items()]

    def call(self, t: Time) -> str:
        c = self.configurations[t.name, t.dtype]
        return step_call(t.name, t.dtype, True, t.direction, t.groups * c["rows"], c["units"])

    def estimate(self, calls: Sequence[str], constants: Floats) -> Floats:
        """Nanoseconds with each set [..., names] of constants; nan where one cannot serve."""
        lines = [*self._device]
        for row in constants.reshape(-1, len(self.names)):
            lines += [" ".join(["constants", *map(repr, map(float, row))]), *calls]
        answers = self._run([], "\n".join(lines)).split()
        return np.array(answers, float).reshape(*constants.shape[:-1], len(calls))

    def choose(self, calls: Sequence[str]) -> list[str]:
        """What choose() takes for "DTYPE TF32 PASS B H"."""
        return self._run([], "\n".join([*self._device, *(f"choose {c}" for c in calls)])).split()

    def _run(self, words: list[str], text: str) -> str:
        command = [str(self._program), *words]
        ended = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
        return ended.stdout


@dataclass(frozen=True)
class Fit:
    constants: Floats
    error: Floats  # relative, of each; inf where no time depends on it
    start: Floats

    def remark(self, i: int) -> str:
        if math.isinf(self.error[i]):
            kept = math.isclose(self.constants[i], self.start[i])
            return f"{'kept' if kept else 'a limit'}: no measured time depends on it"
        if self.error[i] > UNCLEAR:
            return "not determined: the times do not tell it from others"
        return f"± {100 * self.error[i]:.1f} %, before {self.start[i]:.4g}"


def fit(model: Model, times: Sequence[Time]) -> Fit:
    """Damped Gauss-Newton (Levenberg 1944) for the logarithms, so that relative errors count.

    The damping pulls towards where a step starts: what the times do not determine stays.
    """
    calls = [model.call(t) for t in times]
    measured = np.log([t.ns for t in times])
    n = len(model.names)

    def residuals(x: Floats) -> Floats:
        return measured - np.log(model.estimate(calls, np.exp(x)))

    x = start = np.log(model.constants)
    for _ in range(MOST_ITERATIONS):
        found = residuals(np.vstack([x, x + DIFFERENCE * np.eye(n)]))
        r, jacobian = found[0], (found[0] - found[1:]).T / DIFFERENCE  # of the estimates
        square = jacobian.T @ jacobian
        dampings = DAMPINGS * np.trace(square) / n
        steps = [np.linalg.solve(square + d * np.eye(n), jacobian.T @ r) for d in dampings]
        trials = x + np.clip(steps, -LARGEST_STEP, LARGEST_STEP)
        sums = (residuals(trials) ** 2).sum(1)
        best = int(sums.argmin())
        if sums[best] >= (r @ r) * (1 - 1e-7):
            break
        x = trials[best]
    depends = np.abs(jacobian).max(0) > 1e-6
    back = np.where(depends, x, start)  # what moved, and no longer counts
    if (residuals(back) ** 2).sum() <= (r @ r) * (1 + 1e-6):
        x = back
    variance = max((r @ r) / max(len(times) - int(depends.sum()), 1), SMALLEST_ERROR**2)
    # A little damping: where the times do not tell constants apart, errors are large, not endless.
    inverse = np.linalg.inv(square + 1e-9 * np.trace(square) / n * np.eye(n))
    error = np.where(depends, np.sqrt(variance * np.diag(inverse)), np.inf)
    return Fit(np.exp(x), error, model.constants)


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
    chosen: tuple[str, ...]  # with each set of constants
    times: tuple[float, ...]  # of chosen over best

    def __str__(self) -> str:
        dtype, tf32, direction, batch, size = self.call.split()
        setting = f"{dtype} TF32" if tf32 == "1" else dtype
        return f"B{batch} H{size} {setting} {direction}"


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


def regrets(
    model: Model, times: Sequence[Time], calls: Iterable[str], constants: Floats
) -> list[Regret]:
    """What a choice among the measured configurations costs each call that they can serve.

    With each set [sets, names] of constants. Loading w_hh is left out on both sides.
    """
    measured = gather(times)
    asked = []
    for call in calls:
        dtype, tf32, direction, batch, size = call.split()
        for name, *kind in measured:
            if kind == [dtype, direction]:
                question = step_call(name, dtype, tf32 == "1", direction, int(batch), int(size))
                asked.append((call, name, question))
    estimates = model.estimate([question for *_, question in asked], constants)
    serving: dict[str, list[int]] = {}
    for i, (call, *_) in enumerate(asked):
        if not np.isnan(estimates[0, i]):
            serving.setdefault(call, []).append(i)
    found = []
    for call, places in serving.items():
        dtype, _, direction, batch, _ = call.split()
        real = {}
        for i in places:
            name = asked[i][1]
            groups = math.ceil(int(batch) / model.configurations[name, dtype]["rows"])
            real[name] = measured[name, dtype, direction].at(groups)
        best = min(real, key=real.__getitem__)
        chosen = tuple(asked[min(places, key=row.__getitem__)][1] for row in estimates)
        found.append(Regret(call, best, chosen, tuple(real[c] / real[best] for c in chosen)))
    return found


def comparison(model: Model, times: Sequence[Time], constants: Floats) -> list[str]:
    """A line for each configuration, dtype and direction: alone, and all that run at once."""
    estimated = model.estimate([model.call(t) for t in times], constants).T
    places = [(t.name, t.dtype, t.direction, t.groups) for t in times]
    estimates = dict(zip(places, estimated, strict=True))
    columns = ("groups", "measured", "before", "after", "ratio")
    lines = [f"{'ns a step':38}" + "".join(f"{c:>10}" for c in columns)]
    for key, measured in gather(times).items():
        full = measured.points.keys() & {measured.at_once}
        for groups in sorted({min(measured.points), *full}):
            ns, (old, new) = measured.points[groups], estimates[(*key, groups)]
            numbers = f"{groups:10}{ns:10.1f}{old:10.1f}{new:10.1f}{new / ns:10.2f}"
            lines.append(f"{' '.join(key):38}{numbers}")
    return lines


def initialiser(model: Model, fitted: Fit) -> list[str]:
    """The constants in C++."""
    values = [
        f".{name} = {round(x) if x >= 1000 else f'{x:.4g}'},"
        for name, x in zip(model.names, fitted.constants, strict=True)
    ]
    width = max(map(len, values))
    lines = [f"    {v:{width}}  // {fitted.remark(i)}" for i, v in enumerate(values)]
    return ["constexpr StepTimes kMeasured{", *lines, "};"]


def summary(found: Sequence[Regret]) -> list[str]:
    if not found:
        return ["no call of the benchmarks is served by what was measured"]
    lines = [f"{'chosen over best':20} {'mean':>6} {'worst':>6}   of {len(found)} calls"]
    for k, when in enumerate(("before", "after")):
        ratios = [r.times[k] for r in found]
        lines.append(f"{when:20} {statistics.mean(ratios):6.3f} {max(ratios):6.2f}")
    for k, when in enumerate(("before", "after")):
        lines += ["", f"worst {when}"]
        for r in sorted(found, key=lambda r: -r.times[k])[:5]:
            lines.append(f"  {r.times[k]:5.2f}  {r}: {r.chosen[k]}, best {r.best}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.fit", description=__doc__.split("\n")[0])
    parser.add_argument("times", nargs="+", type=Path, help="what `kernels time` has printed")
    parser.add_argument("--multiprocessors", type=int, default=MULTIPROCESSORS,
                        help=f"of the device ({MULTIPROCESSORS})")  # fmt: skip
    args = parser.parse_args(argv)
    try:
        lines = [line for path in args.times for line in path.read_text().splitlines()]
        times = parse(lines, ", ".join(map(str, args.times)))
        model = Model(args.multiprocessors)
    except (OSError, ValueError) as e:
        sys.exit(f"fit: {e}")
    if not times:
        sys.exit("fit: expected measurements, got none; `build/gpu/kernels time` prints them")
    if unknown := {(t.name, t.dtype) for t in times} - model.configurations.keys():
        names = ", ".join(sorted({" ".join(pair) for pair in unknown}))
        sys.exit(f"fit: expected configurations of these sources, got {names}")
    model.on_device_of(times)
    fitted = fit(model, times)
    both = np.vstack([model.constants, fitted.constants])
    calls = calls_of(plan())
    found = regrets(model, times, calls, both)
    print("\n".join(comparison(model, times, both)))
    errors = np.log(model.estimate([model.call(t) for t in times], both))
    errors -= np.log([t.ns for t in times])
    before, after = np.exp(np.sqrt((errors**2).mean(1)))
    print(f"\ntypical ratio of estimated to measured: {before:.3f} before, {after:.3f} after\n")
    print("\n".join(initialiser(model, fitted)), end="\n\n")
    print("\n".join(summary(found)))
    by_steps = sum(name == "step" for name in model.choose([r.call for r in found]))
    print(f"choose() takes step for {by_steps} of these calls, which has no times here")


if __name__ == "__main__":
    main()
