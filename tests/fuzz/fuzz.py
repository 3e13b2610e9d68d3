"""Random problems against the reference: ``make fuzz SECONDS=60 SEED=0``; ``--help`` says more.

Problems are drawn here and run in another process, which may crash. A failure shrinks, and is
printed as one line that repeats it.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import platform
import signal
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from fuzz_problem import ENTRIES, Problem, problems
from hypothesis import HealthCheck, Phase, given, seed, settings

ROOT = Path(__file__).parents[2]
X86 = {"baseline": "default", "avx2": "avx2", "avx512": None, "avx512_bf16": None}
ISAS: dict[str, str | None] = X86 if platform.machine() == "x86_64" else {"neon": None}
SIZES = ("seq_len", "batch", "input_size", "hidden_size")
BATCH = 400  # problems drawn by one run of hypothesis
LONGEST = 120.0  # seconds that a problem may take
SHRINKING = 40.0  # seconds


def kernels(path: str | None) -> ModuleType:
    """The raw kernels: those of a file, or built."""
    if path is None:
        import cpu_build

        return cpu_build.kernels()
    spec = importlib.util.spec_from_file_location("fastrnn_kernels", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def serve(pipe: Connection, isa: str, path: str | None, raw: bool, fake: str | None) -> None:
    """In the other process: answer each problem with what is wrong."""
    from fuzz_check import Check

    module = kernels(path) if raw or path else None
    if module is not None and not module.available(isa):
        pipe.send(f"this machine has no {isa}")
        return
    check = Check(isa, module)
    pipe.send("")
    while (problem := pipe.recv()) is not None:
        if fake is not None:
            pipe.send("as asked" if eval(fake, vars(problem).copy()) else "")
            continue
        try:
            pipe.send(check(problem))
        except Exception as e:
            pipe.send(f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
    pipe.send((check.closer, check.without_bound))


class Worker:
    """The other process, started again after a crash."""

    def __init__(self, isa: str, path: str | None, raw: bool, fake: str | None = None) -> None:
        self.of = isa, path, raw, fake
        self.process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        capability = ISAS[self.of[0]]
        os.environ.pop("ATEN_CPU_CAPABILITY", None)
        if capability is not None:
            os.environ["ATEN_CPU_CAPABILITY"] = capability
        os.environ["OMP_WAIT_POLICY"] = "passive"  # more threads than processors may run
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *self.of), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(1200):  # it may build the kernels first
            raise SystemExit("fuzz: the process that runs the problems does not start")
        try:
            refused = self.pipe.recv()
        except EOFError:
            raise SystemExit("fuzz: the process that runs the problems does not start") from None
        if refused:
            raise SystemExit(f"fuzz: {refused}")

    def __call__(self, problem: Problem) -> str:
        if self.process is None:
            self.start()
        try:
            self.pipe.send(problem)
            if self.pipe.poll(LONGEST):
                answer: str = self.pipe.recv()
                return answer
            return self.end(f"no result within {LONGEST:g} seconds")
        except (EOFError, ConnectionError):
            return self.end("")

    def end(self, why: str) -> str:
        assert self.process is not None
        if why:
            self.process.kill()
        self.process.join()
        code = self.process.exitcode or 0
        self.process = None
        return why or f"crashed: {signal.Signals(-code).name if code < 0 else f'exit {code}'}"

    def close(self) -> tuple[int, int]:
        if self.process is None:
            return 0, 0
        self.pipe.send(None)
        counts: tuple[int, int] = self.pipe.recv()
        self.process.join()
        self.process = None
        return counts


@dataclass
class Run:
    """What has run with an instruction set."""

    isa: str
    worker: Worker
    entries: tuple[str, ...]
    shrink: bool = True
    listed: bool = False
    ran: Counter[str] = field(default_factory=Counter)
    sizes: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in SIZES})
    seconds: float = 0.0

    def batch(self, number: int, until: float, most: int) -> tuple[Problem, str] | None:
        """Draw problems from a seed, until one fails; that, shrunk, and what is wrong with it."""
        failed: dict[Problem, str] = {}
        last: list[Problem] = []
        seen: set[Problem] = set()
        deadline = [until]

        @seed(number)
        @settings(
            max_examples=most,
            database=None,
            deadline=None,
            phases=[Phase.generate, Phase.shrink] if self.shrink else [Phase.generate],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(problem=problems(self.entries, self.isa))
        def check(problem: Problem) -> None:
            if problem not in failed:
                if problem in seen or time.monotonic() > deadline[0]:
                    return
                seen.add(problem)
                if not failed:
                    self.note(problem)
                wrong = self.worker(problem)
                if not wrong:
                    return
                if not failed:
                    deadline[0] = time.monotonic() + SHRINKING
                failed[problem] = wrong
            last[:] = [problem]
            raise AssertionError

        try:
            check()
        except AssertionError:
            return last[0], failed[last[0]]
        return None

    def note(self, problem: Problem) -> None:
        if self.listed:
            print(problem)
        self.ran[problem.entry] += 1
        for name, values in self.sizes.items():
            values.append(getattr(problem, name))

    def summary(self) -> str:
        total = sum(self.ran.values())
        lines = [f"{self.isa}: {total:,} problems in {self.seconds:.0f} s"]
        lines += [f"  {self.ran[entry]:9,} {entry}" for entry in self.entries]
        for name, values in self.sizes.items():
            if len(values) > 1:
                middle = statistics.quantiles(values, n=4, method="inclusive")
                quartiles = " ".join(f"{v:g}" for v in (min(values), *middle, max(values)))
                lines.append(f"  {name}: {quartiles} (min, quartiles, max)")
        return "\n".join(lines)


def repeat_line(isa: str, problem: Problem, options: argparse.Namespace) -> str:
    path = f" --kernels {options.kernels}" if options.kernels else ""
    return f'python tests/fuzz/fuzz.py --isa {isa}{path} --repeat "{problem!r}"'


def available() -> list[str]:
    """The instruction sets that this machine has."""
    module = kernels(None)
    return [isa for isa in ISAS if module.available(isa)]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="the same problems in the same order")
    parser.add_argument("--problems", type=int, help="so many, in place of seconds")
    parser.add_argument("--isa", choices=ISAS, help="one instruction set; else each in turn")
    parser.add_argument("--entries", nargs="+", choices=ENTRIES, default=list(ENTRIES))
    parser.add_argument("--kernels", metavar="FILE", help="the raw kernels' module, built before")
    parser.add_argument("--no-shrink", action="store_true", help="print the first failure as it is")
    parser.add_argument("--keep-going", action="store_true", help="after a failure")
    parser.add_argument("--list", action="store_true", help="print each problem before it runs")
    parser.add_argument("--repeat", metavar="PROBLEM", help="run this problem alone")
    parser.add_argument("--fake", metavar="CONDITION", help="let problems fail where this is true")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    entries = tuple(options.entries)
    if options.repeat:
        problem = eval(options.repeat, {"Problem": Problem})
        isa = options.isa or available()[-1]
        worker = Worker(isa, options.kernels, problem.entry == "raw", options.fake)
        wrong = worker(problem)
        print(wrong or "nothing wrong")
        worker.close()
        return 1 if wrong else 0
    isas = [options.isa] if options.isa else available()
    failures = 0
    for isa in isas:
        worker = Worker(isa, options.kernels, "raw" in entries, options.fake)
        worker.start()
        run = Run(isa, worker, entries, not options.no_shrink, options.list)
        begin = time.monotonic()
        until = begin + (1e9 if options.problems else options.seconds / len(isas))
        left, batch = options.problems or 10**9, 0
        while left > 0 and time.monotonic() < until:
            before = sum(run.ran.values())
            failure = run.batch(options.seed * 1_000_003 + batch, until, min(BATCH, left))
            left -= max(1, sum(run.ran.values()) - before)
            batch += 1
            if failure is not None:
                failures += 1
                print(f"{repeat_line(isa, failure[0], options)}\n  {failure[1]}", flush=True)
                if not options.keep_going:
                    break
        run.seconds = time.monotonic() - begin
        closer, without_bound = worker.close()
        print(run.summary())
        print(f"  {closer:,} judged by nn.RNN's own error")
        print(f"  {without_bound:,} results of which nn.RNN has no right digit")
        sys.stdout.flush()
        if failures and not options.keep_going:
            break
    return 1 if failures else 0


if __name__ == "__main__":
    sys.path += [str(ROOT), str(ROOT / "tests")]  # the worker's, too
    sys.exit(main())
