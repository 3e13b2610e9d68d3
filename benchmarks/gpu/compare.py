"""Time nn.RNN and fastrnn on one GPU, row by row: a process that `benchmarks.gpu.visit` starts.

    python -m benchmarks.gpu.compare --rows KEYS.json --out ROWS.jsonl

A line says that a row has begun, another what was measured: should a kernel hang or end the
process, whoever started it knows in which row. fastrnn is imported only where it is measured.
Times are those of CUDA events around repetitions of the same step on the same tensors, so the L2
cache is as warm as within a training loop.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, timing
from benchmarks.contestants import FLOOR, Contestant, Problem, error, grad_mode, make_contestant
from benchmarks.gpu import model
from benchmarks.gpu.shapes import Row, Setting, plan

Record = dict[str, Any]
Step = Callable[[], object]

TF32_FLOOR = 1e-3  # as FLOOR, where products of float32 may round their factors to 11 bits
LEAST_ROUNDS, MOST_ROUNDS = 5, 40


class DeviceProblem(Problem):
    """A problem whose values are made where they are used. Lengths stay on the CPU."""

    def __init__(self, row: Row, device: str) -> None:
        self.device = torch.device(device)
        self.tf32 = row.setting.tf32
        with self.device:
            super().__init__(row.shape)
        if self.lengths is not None:
            self.lengths = self.lengths.cpu()

    def module(self, cls: type[Any], dtype: torch.dtype) -> torch.nn.RNNBase:
        with self.device:
            return super().module(cls, dtype)


def use(setting: Setting) -> None:
    """nn.RNN's own switch; fastrnn follows it."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if setting.tf32 else "ieee"


def kernel_of(problem: DeviceProblem, training: bool) -> str | None:
    """The kernel that fastrnn would take, or None where this build has none for the device."""
    import fastrnn

    rnn = problem.module(fastrnn.RNN, problem.dtype).train(training)
    input = problem.input if problem.lengths is None else problem.pack(problem.input)
    kernel: str = fastrnn.info(rnn, input)["kernel"]
    return kernel if kernel.startswith(problem.device.type + " ") else None


def compare_errors(
    problem: DeviceProblem, contestants: Sequence[Contestant], training: bool
) -> Record:
    """Both errors against float64, of the result in which ours is worst beside nn.RNN's."""
    truth = make_contestant("nn.RNN", problem, training, torch.float64).results()
    theirs, ours = (c.results() for c in contestants)
    found = []
    for key, exact in truth.items():
        floor = torch.finfo(theirs[key].dtype).eps / 4  # nn.RNN may happen to be exact
        allowed = TF32_FLOOR if problem.tf32 else FLOOR[theirs[key].dtype]
        bound = 2 * error(theirs[key], exact) + allowed
        lost = error(ours[key], exact)
        known = max(error(theirs[key], exact), floor)
        found.append(
            {
                "result": key,
                "nn.RNN": known,
                "fastrnn": lost,
                "ratio": lost / known,
                "wrong": not lost <= bound,
            }
        )
    return max(found, key=lambda x: (x["wrong"], x["ratio"]))


def captured(step: Step, training: bool) -> Step:
    """The step as a CUDA graph: call the result to replay it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    before, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
    with grad_mode(training):
        with torch.cuda.stream(side):
            step()
        before.wait_stream(side)
        try:
            with torch.cuda.graph(graph):
                step()
        finally:  # torch stays on the capturing stream where the capture fails
            torch.cuda.set_stream(before)
    return graph.replay


def event_seconds(step: Step, repetitions: int) -> float:
    """Seconds per step, from the GPU's own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in itertools.repeat(None, repetitions):
        step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / repetitions


def interleaved(steps: dict[str, Step], device: str, budget: float) -> timing.Row:
    """Rounds of one sample of each, in shuffled order, for about `budget` seconds."""
    seconds_of = event_seconds if device == "cuda" else timing.seconds_of
    repetitions = {}
    for name, step in steps.items():
        seconds_of(step, 1)
        estimate = min(seconds_of(step, 1) for _ in range(2))
        repetitions[name] = max(1, round(timing.SAMPLE_SECONDS / estimate))
    samples: dict[str, list[float]] = {name: [] for name in steps}
    order, start = list(steps), time.perf_counter()
    gc.disable()
    for done in range(MOST_ROUNDS):
        if done >= LEAST_ROUNDS and time.perf_counter() - start > budget:
            break
        random.shuffle(order)
        for name in order:
            samples[name].append(seconds_of(steps[name], repetitions[name]))
    gc.enable()
    return timing.Row(samples, repetitions, None, 1.0, 1, False)


def describe(timed: timing.Row, steps: int, bound: float | None) -> Record:
    """A form's times in plain values."""
    names = list(timed.samples)
    found: Record = {
        "microseconds": {n: timed.seconds(n) * 1e6 for n in names},
        "quartiles": {n: [x * 1e6 for x in timed.quartiles(n)] for n in names},
        "microseconds_per_step": {n: timed.seconds(n) * 1e6 / steps for n in names},
        "rounds": len(timed.samples[names[0]]),
    }
    if bound is not None:
        found["fraction_of_bound"] = {n: bound / timed.seconds(n) for n in names}
    if len(names) == 2:
        found["ratio"] = timed.ratio("fastrnn")
    return found


def peak_bytes(step: Step) -> int:
    """Memory that a step takes beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(
    row: Row, device: str, budget: float, theirs_only: bool = False, avoid: Sequence[str] = ()
) -> Record:
    """Time one row. Without a kernel of ours, nn.RNN alone: what there is to beat.

    `avoid` has kernels that are wrong, such as "cluster:512x8x8 float16".
    """
    training = row.mode == "training"
    use(row.setting)
    problem = DeviceProblem(row, device)
    kernel = None if theirs_only else kernel_of(problem, training)
    record: Record = {"kernel": kernel, "theirs_only": theirs_only, "forms": {}}
    if kernel and any(is_taken(name, kernel, row.setting) for name in avoid):
        record |= {"kernel": None, "avoided": kernel}
        kernel = None
    names = ["nn.RNN", "fastrnn"] if kernel else ["nn.RNN"]
    contestants = [make_contestant(name, problem, training) for name in names]
    if kernel:
        record["error"] = compare_errors(problem, contestants, training)
        if record["error"]["wrong"]:
            del contestants[1]
    steps = {c.name: c.step for c in contestants}
    count = row.shape.seq_len * row.shape.num_layers
    bound = None
    if device == "cuda" and torch.cuda.get_device_capability() == (9, 0):
        bound = model.seconds(row.shape, row.setting.tf32, training)
    record["bound_microseconds"] = bound and bound * 1e6
    with grad_mode(training):
        record["forms"]["eager"] = describe(interleaved(steps, device, budget), count, bound)
        if device == "cuda":
            record["peak_bytes"] = {name: peak_bytes(step) for name, step in steps.items()}
    if device == "cuda":
        graphs, refused = {}, {}
        for name, step in steps.items():
            try:
                graphs[name] = captured(step, training)
            except RuntimeError as e:
                refused[name] = first_line(e)
        timed = describe(interleaved(graphs, device, budget), count, bound) if graphs else {}
        record["forms"]["graph"] = {**timed, **({"refused": refused} if refused else {})}
    return record


def is_taken(name: str, kernel: str, setting: Setting) -> bool:
    """Whether a kernel, named with its dtype, is among those of `fastrnn.info`."""
    configuration, dtype = name.split()
    return configuration in re.split(r"[ ,]+", kernel) and dtype == setting.dtype


def first_line(e: BaseException) -> str:
    return f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"


def plain(x: Any) -> Any:
    """Numbers with five digits, more would say nothing; what JSON has no number for as text."""
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    if isinstance(x, list):
        return [plain(v) for v in x]
    if isinstance(x, float):
        return float(f"{x:.5g}") if math.isfinite(x) else str(x)
    return x


def facts(device: str, theirs_only: bool) -> Record:
    """The machine, and two ceilings: copying memory, and products of matrices."""
    found = machine.facts(with_library=not theirs_only)
    del found["commit"]  # the hash of the sources says more, and is known without git
    if device != "cuda":
        return found
    p = torch.cuda.get_device_properties(0)
    found |= {
        "gpu": p.name,
        "capability": f"{p.major}.{p.minor}",
        "multiprocessors": p.multi_processor_count,
        "L2_MB": p.L2_cache_size / 2**20,
        "memory_GB": p.total_memory / 1e9,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
    block = torch.randn(1 << 28, device=device)
    other = torch.empty_like(block)
    copy = median(event_seconds(partial(other.copy_, block), 3) for _ in range(5))
    found["copy_GB_per_s"] = 2 * block.nbytes / copy / 1e9
    del block, other
    a, b = (torch.randn(8192, 8192, device=device) for _ in range(2))
    for name, dtype, tf32 in [
        ("float32", torch.float32, False),
        ("TF32", torch.float32, True),
        ("bfloat16", torch.bfloat16, False),
    ]:
        torch.backends.cuda.matmul.fp32_precision = "tf32" if tf32 else "ieee"
        product: Callable[[], Tensor] = partial(torch.mm, a.to(dtype), b.to(dtype))
        event_seconds(product, 1)
        seconds = median(event_seconds(product, 2) for _ in range(5))
        found[f"mm_{name}_TFLOP_per_s"] = 2 * 8192**3 / seconds / 1e12
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.compare")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--rows", type=Path, required=True, help="JSON list of the rows' keys")
    parser.add_argument("--out", type=Path, required=True, help="append a line of JSON for each")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds of a row and form")
    parser.add_argument("--theirs-only", action="store_true", help="measure nn.RNN alone")
    parser.add_argument("--facts", action="store_true", help="the machine's too, before the rows")
    parser.add_argument("--avoid", nargs="*", default=[], metavar="'KERNEL DTYPE'",
                        help="measure nn.RNN alone where fastrnn would take it")  # fmt: skip
    args = parser.parse_args(argv)
    with args.out.open("a") as out:

        def write(record: Record) -> None:
            out.write(json.dumps(plain(record)) + "\n")
            out.flush()

        if args.facts:
            write({"facts": facts(args.device, args.theirs_only)})
        rows = {str(row): row for row in plan(toy=args.device == "cpu")}
        for key in json.loads(args.rows.read_text()):
            write({"begin": key})
            try:
                found = measure(rows[key], args.device, args.budget, args.theirs_only, args.avoid)
            except Exception as e:
                found = {"failed": first_line(e)}
                if not args.theirs_only:  # ends the process where the device serves no more
                    found |= measure(rows[key], args.device, args.budget, theirs_only=True)
            write({"end": key, **found})
        write({"finished": True})


if __name__ == "__main__":
    main()
