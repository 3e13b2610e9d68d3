"""The GPU tests, each with a time limit, in processes that are replaced when a test ruins them."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu.evidence import ROOT, Visit
from benchmarks.gpu.process import Record, Worker, work_through

# Slow, and they say least of the kernels.
LATE = ("test_compile.py", "test_examples.py", "test_char_lm.py", "test_mnist_rows.py",
        "test_sentiment.py", "test_parallel.py", "test_digits.py")  # fmt: skip
LATE_SECONDS = 40.0
SELECT = "gpu and not slow"  # pytest's -m
FIRST_TEST_SECONDS = 90.0  # imports and collection, of eight processes at once
ENV = {
    "OMP_NUM_THREADS": "2",  # eight processes share the cores
    "TORCHINDUCTOR_COMPILE_THREADS": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic algorithms ask for it
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "TORCH_SHOW_CPP_STACKTRACES": "1",
    "TORCH_DISABLE_ADDR2LINE": "1",  # reading debug data takes minutes
}


def run_tests(visit: Visit, end: float) -> str:
    """What has not passed before with the same kernels, package and file; slow files last."""
    if not visit.loads:
        return "fastrnn does not load"
    tests = Tests(visit)
    files = [
        path
        for path in sorted(visit.args.tests.rglob("test_*.py"))
        if re.search(r"mark\.gpu\b|\bdevice: str\b", path.read_text())
    ]
    late = [path for path in files if path.name in LATE]
    first = [path for path in files if path not in late]
    for_late = min(LATE_SECONDS, (end - time.monotonic()) / 3) if late else 0.0
    tests.run(first, visit.args.test_limit, end - for_late)
    tests.run(late, 2 * visit.args.test_limit, end)
    return tests.summary()


class Tests:
    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.hashes = hashes(visit.hash, visit.args.tests)
        self.outcomes: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.uncollected: set[str] = set()  # files
        self.begun: dict[tuple[Path, int], int] = {}  # tests of the first file's run and shard
        self.passed = [
            r["end"]
            for r in visit.earlier("tests.jsonl")
            if r.get("outcome") == "passed"  # what was skipped costs nothing
            and r["hash"] == self.hashes.get(file_of(r["end"]))
        ]

    def run(self, files: Sequence[Path], limit: float, end: float) -> None:
        if not files:
            return
        count, env = self.visit.args.shards, {**ENV, **self.visit.env}
        limits = (FIRST_TEST_SECONDS, limit)
        work_through(
            [
                Worker(f"shard {i}", partial(self.command, files, i, limit), ROOT, env, limits)
                for i in range(count)
            ],
            end,
            partial(self.keep, files[0]),
        )

    def command(
        self, files: Sequence[Path], shard: int, limit: float, worker: Worker, out: Path
    ) -> list[str]:
        done = self.visit.scratch / f"done-{shard}.json"
        done.write_text(json.dumps([*self.passed, *worker.done]))
        words = ["-P", "-m", "pytest", "-q", "-p", "benchmarks.gpu.plugin", "--tb=long"]
        words += ["--continue-on-collection-errors"]
        words += ["--deselect=tests/gpu/test_check.py::test_every_cuda_kernel"]  # done before
        # Tests of wrong kernels come last: each may cost a process.
        bad = {re.split("[: ]", name)[0] for name in self.visit.bad}
        words += [f"--late={' '.join(sorted(bad))}"]
        words += [f"--shard={shard}/{self.visit.args.shards}"]
        words += [f"--out-file={out}", f"--done-file={done}"]
        # A test that hangs prints where, before it is killed.
        words += ["-o", f"faulthandler_timeout={0.8 * limit}", "-p", "no:cacheprovider"]
        words += ["-m", SELECT, "-W", "default", *map(str, files)]
        return [sys.executable, *words]

    def keep(self, first: Path, record: Record) -> None:
        """A line of `benchmarks.gpu.plugin`, or of the worker about the process."""
        if "warning" in record:
            self.warnings[record["warning"]] += 1
        elif "shard" in record:
            self.begun.setdefault((first, record["shard"]), record["tests"])
        elif "end" in record:
            name = record["end"]
            outcome = record.setdefault("outcome", "failed")  # of the worker: hung or ended
            self.outcomes[outcome] += 1
            self.visit.keep("tests.jsonl", {**record, "hash": self.hashes.get(file_of(name))})
            if outcome not in ("passed", "skipped"):
                self.visit.fail(f"test {name} {record.get('failed', '')}".rstrip(),
                                record.get("report", ""))  # fmt: skip
        elif "stopped" in record:
            self.visit.fail(f"tests, {record['stopped']}: {record['failed']}", record["report"])
        elif "uncollected" in record and record["uncollected"] not in self.uncollected:
            self.uncollected.add(record["uncollected"])
            self.visit.fail(f"{record['uncollected']} is not collected", record["report"])
        elif "begin" in record or "synchronising" in record or record.get("cut"):
            self.visit.keep("tests.jsonl", record)
        elif "cut" in record:
            self.visit.fail(f"tests, {record['worker']}: no time for its first test")

    def summary(self) -> str:
        for text, count in self.warnings.most_common():
            self.visit.say(f"warning, {count} times: {text}", log_only=True)
        lost = sum(self.begun.values()) - self.outcomes.total()
        if lost:
            self.visit.fail(f"tests: {lost} were not run")
            self.outcomes["not run"] = lost
        if not self.outcomes["passed"] and not self.passed:
            self.visit.fail(f"tests: none of {self.outcomes.total()} passed")
        self.visit.document["tests"] = dict(self.outcomes)
        counts = [f"{count} {outcome}" for outcome, count in sorted(self.outcomes.items())]
        before = [f"{len(self.passed)} before"] if self.passed else []
        return ", ".join([*counts, *before, f"{len(self.warnings)} warnings"])


def file_of(test: str) -> str:
    return test.split("::")[0].rsplit("/", 1)[-1]


def hashes(kernels: str, folder: Path) -> dict[str, str]:
    """Of each file of tests, with all that it may use."""
    folders = [ROOT / "fastrnn", ROOT / "examples", folder]
    files = sorted(path for f in folders for path in f.rglob("*.py"))
    shared = [path.read_bytes() for path in files if not path.name.startswith("test_")]

    def digest(parts: Iterable[bytes]) -> str:
        found = hashlib.sha256(kernels.encode())
        for part in parts:
            found.update(part)
        return found.hexdigest()[:12]

    return {p.name: digest([*shared, p.read_bytes()]) for p in folder.rglob("test_*.py")}
