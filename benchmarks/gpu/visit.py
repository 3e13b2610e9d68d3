"""One command for a short time with a GPU: what is wrong first, then how fast the rest is.

    python -m benchmarks.gpu.prepare                                               (at home)
    python -m benchmarks.gpu.visit --prebuilt build/gpu --out DIR --budget 300     (on the machine)
    python -m benchmarks.gpu.visit --take DIR                                      (at home)

The steps run in order within the budget, in processes with time limits. It writes six files:
`gpu-CARD.json`, `failures.txt`, `log.txt`, `tests.jsonl`, `checks.jsonl` and `times.jsonl`. Each is
complete up to the moment the visit ends, however it ends.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from benchmarks.gpu import kernels
from benchmarks.gpu.bench import bench
from benchmarks.gpu.evidence import RESERVE, ROOT, Visit, gist, now, take
from benchmarks.gpu.prepare import PROGRAMS
from benchmarks.gpu.process import Child, run, stop_all
from benchmarks.gpu.shapes import plan
from benchmarks.gpu.tests import run_tests

RESULTS, PREBUILT = ROOT / "benchmarks/results", ROOT / "build/gpu"
BUILD_SECONDS, OWN_CHECK_SECONDS = 200.0, 30.0
CPU_ROWS = [
    "B64-T28-I28-H128", "B64-T50-I512-H512", "B32-T20-I1-H64", "B1-T512-I64-H64",
    "B1-T10-I1024-H1024",
]  # fmt: skip


class Library:
    """fastrnn and the programs as they were built before, or else built here beside other steps."""

    def __init__(self, visit: Visit) -> None:
        self.visit = visit
        self.folder = visit.built  # in which fastrnn is, or is being built
        self.doing: tuple[str, Child] | None = None  # "import" or "build" of fastrnn
        self.programs: Child | None = None  # their build
        self.may_build = True

    def begin(self) -> None:
        visit, there = self.visit, self.visit.built / "HASH"
        of = there.read_text().split() if there.exists() else []
        if of == [visit.hash, visit.program_hash]:
            for name in PROGRAMS:
                with contextlib.suppress(OSError):  # not there, or read-only
                    (visit.built / name).chmod(0o755)
            self.try_import()
            return
        if of:
            visit.fail(f"{visit.built} was built of other sources: make gpu-prepare")
        for path in (there, *(visit.built / name for name in PROGRAMS)):
            path.unlink(missing_ok=True)
        if of[:1] == [visit.hash]:
            self.programs = self.prepare("programs")
            self.try_import()
        else:
            self.programs = self.prepare("library", "programs")
            self.doing = "build", self.programs

    def try_import(self) -> None:
        """Import what is built, with the sources beside it, in a process of its own."""
        package, built = self.visit.scratch / "package/fastrnn", self.folder / "fastrnn"
        shutil.rmtree(package, ignore_errors=True)
        package.mkdir(parents=True)
        for path in [*(ROOT / "fastrnn").glob("*.py*"), *built.glob("*.so"), *built.glob("*.json")]:
            shutil.copy(path, package)
        words = "import torch, fastrnn; print(fastrnn.__path__, fastrnn.info())"
        command = [sys.executable, "-P", "-c", words]
        self.doing = "import", Child(command, self.visit.scratch, self.visit.env)

    def prepare(self, *parts: str) -> Child:
        self.may_build &= "library" not in parts
        gpu = self.visit.args.device == "cuda"
        known = self.visit.document["machine"].get("capability", "9.0" if gpu else "")
        arch = known.replace(".", "")
        command = [sys.executable, "-m", "benchmarks.gpu.prepare", "--here", "--parts", *parts]
        command += ["--out", str(self.folder), "--arch", "90a" if arch == "90" else arch]
        return Child(command, ROOT)

    def wait_for_programs(self, end: float) -> str:
        """Until both are there: each is put in its place once it is whole."""
        child, missing = self.programs, True
        while missing:
            over = child is None or child.wait(0.2) or time.monotonic() > end
            missing = not all((self.visit.built / name).exists() for name in PROGRAMS)
            if over:
                break
        if child and child.wait() and not (self.doing and self.doing[1] is child):
            ended, self.programs = child.stop(), None
            if ended.status != 0:
                self.visit.fail(f"build of the programs {ended.how}", ended.output)
        return "not built" if missing else "there"

    def wait(self, end: float) -> str:
        """Go on from the import to a build, and from the build to an import."""
        visit = self.visit
        while self.doing:
            what, child = self.doing
            if not child.wait(end - time.monotonic()):
                visit.fail(f"{what} of fastrnn: not done in time")
                break
            ended, self.doing = child.stop(), None
            self.programs = None if self.programs is child else self.programs
            if ended.status != 0:
                visit.fail(f"{what} of fastrnn {ended.how}", ended.output)
                if self.may_build:  # the programs that were built with it go on
                    self.folder = self.visit.scratch / "built"
                    self.doing = "build", self.prepare("library")
            elif what == "build":
                self.try_import()
            else:
                visit.loads = True
                visit.say(gist(ended.output), log_only=True)
        if not visit.loads:
            return "does not load: nn.RNN alone"
        return "loads" if visit.args.device == "cpu" else f"loads; {self.own_check()}"

    def own_check(self) -> str:
        """The library's own guard, as a user meets it."""
        visit, tool = self.visit, "python -m fastrnn check"
        for r in visit.earlier("checks.jsonl"):
            if (r.get("tool"), r["hash"], r.get("clean")) == (tool, visit.hash, True):
                return "checked before"
        limit = visit.left(OWN_CHECK_SECONDS)
        words = [sys.executable, "-P", "-m", "fastrnn", "check", "--device", "cuda"]
        env = {"PYTHONPATH": visit.env["PYTHONPATH"]}
        ended = run(words, limit, visit.scratch, env)
        visit.append("log.txt", ended.output)
        if ended.status is None and limit < OWN_CHECK_SECONDS:
            return "no time for its own check"
        clean = ended.status == 0
        visit.keep("checks.jsonl", {"tool": tool, "clean": clean, "hash": visit.hash})
        if not clean:
            visit.fail(f"{tool} {ended.how}", ended.output)
        return gist(ended.output)

    def stop(self) -> None:
        stop_all({child for child in (self.doing and self.doing[1], self.programs) if child})


def machine(visit: Visit) -> None:
    """The card, which every record and the results are named after."""
    found = {"date": now(), "hash": visit.hash}
    if visit.args.device == "cuda":
        names = ["gpu", "capability", "driver", "clock", "memory_clock"]
        query = "name,compute_cap,driver_version,clocks.max.sm,clocks.max.mem"
        command = f"nvidia-smi --query-gpu={query} --format=csv,noheader"
        ended = run(["sh", "-c", command], 20, ROOT)
        fields = [x.strip() for x in ended.output.strip().split("\n")[0].split(",")]
        if ended.status == 0 and len(fields) == len(names):
            found |= dict(zip(names, fields, strict=True))
        else:
            visit.fail(f"nvidia-smi {ended.how}", ended.output)
        visit.card = card_of(found.get("gpu", "gpu"))
    words = ["DIR" if word == str(visit.out) else word for word in visit.args.words]
    command = " ".join(["python -m benchmarks.gpu.visit", *words])
    visit.document = {"gpu_visit": 1, "card": visit.card, "device": visit.args.device}
    visit.document |= {"command": command, "machine": found, "steps": {}}
    visit.document["rows"] = visit.earlier_rows()
    visit.say(f"{found.get('gpu', 'no GPU')}, sources {visit.hash}, {visit.args.budget:.0f} s")


def card_of(name: str) -> str:
    """Of "NVIDIA H100 80GB HBM3" h100."""
    found = re.search(r"[A-Za-z]*\d+[A-Za-z]*", name)
    return re.sub(r"[^a-z0-9]+", "-", found[0].lower() if found else name.lower())


def step(visit: Visit, name: str, limit: float, body: Callable[[float], str]) -> None:
    """A step until a time; one that fails does not keep the others from running."""
    start, limit, note = time.monotonic(), visit.left(limit), "no time was left"
    if limit > 1:
        try:
            note = body(start + limit)
        except Exception:
            note = "failed"
            visit.fail(f"{name}: the step itself", traceback.format_exc())
    seconds = round(time.monotonic() - start, 1)
    visit.document["steps"][name] = {"note": note, "seconds": seconds, "date": now()}
    visit.say(f"{name:10} {seconds:5.1f} s  {note}")
    visit.save()


def rows(visit: Visit, quick: bool, end: float) -> str:
    toy = visit.args.device == "cpu"
    return bench(visit, [str(row) for row in plan(quick, visit.args.rows, toy)], end)


def cpu(visit: Visit, end: float) -> str:
    """nn.RNN and fastrnn on the processor beside the GPU, on one to sixteen of its cores."""
    command = [sys.executable, "-P", "-m", "benchmarks.compare", "--budget", "2"]
    command += ["--only", *CPU_ROWS, "--threads", *visit.args.threads]
    command += ["--json", str(visit.scratch / "cpu.json")]
    ended = run(command, end - time.monotonic(), ROOT, visit.env)
    if (visit.scratch / "cpu.json").exists():
        visit.document["cpu"] = json.loads((visit.scratch / "cpu.json").read_text())
    if ended.status not in (0, None):
        visit.fail(f"the rows of the CPU {ended.how}", ended.output)
    return ended.how


def run_steps(visit: Visit, library: Library) -> None:
    step(visit, "programs", BUILD_SECONDS, library.wait_for_programs)
    step(visit, "limits", 15, partial(kernels.limits, visit))
    step(visit, "checks", 60, partial(kernels.checks, visit))
    step(visit, "times", 30, partial(kernels.times, visit))
    step(visit, "fastrnn", BUILD_SECONDS, library.wait)
    step(visit, "first rows", 90, partial(rows, visit, True))
    if visit.bad:
        step(visit, "sanitizers", 60, partial(kernels.sanitizers, visit))
    step(visit, "tests", 120, partial(run_tests, visit))
    if not visit.bad:
        step(visit, "sanitizers", 20, partial(kernels.sanitizers, visit))
    if visit.bad or not visit.checked or not visit.loads:
        visit.say("the other rows wait until fastrnn loads and every kernel is right")
        return
    step(visit, "rows", visit.left(), partial(rows, visit, False))
    if visit.args.device == "cuda":
        step(visit, "cpu", 240, partial(cpu, visit))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu.visit",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--prebuilt", type=Path, default=PREBUILT, metavar="DIR",
        help="of benchmarks.gpu.prepare (build/gpu); what it lacks is built here")  # fmt: skip
    add("--out", type=Path, default=ROOT / "build/gpu-visit", metavar="DIR",
        help="the evidence (build/gpu-visit)")  # fmt: skip
    add("--budget", type=float, default=480, help="seconds of the whole visit (480)")
    add("--skip", type=Path, nargs="+", default=[], metavar="DIR",
        help="evidence of earlier visits: what passed is left out")  # fmt: skip
    add("--take", type=Path, metavar="DIR", help="only merge this evidence into --results")
    add("--results", type=Path, default=RESULTS, metavar="DIR", help="(benchmarks/results)")
    add("--rows", nargs="+", default=[], metavar="CLASS|ID", help="a class, or part of an id")
    add("--device", choices=["cuda", "cpu"], default="cuda",
        help="cpu: toy sizes, to try this program itself")  # fmt: skip
    add("--check-limit", type=float, default=25, help="seconds of a kernel's checks (25)")
    add("--sanitizer-limit", type=float, default=30, help="seconds of a check under a tool (30)")
    add("--test-limit", type=float, default=20, help="seconds of a test (20)")
    add("--row-budget", type=float, default=0.1, help="seconds of a row and form")
    add("--tests", type=Path, default=ROOT / "tests", metavar="DIR", help="(tests)")
    add("--shards", type=int, default=8, help="processes of tests")
    add("--threads", nargs="+", default=["1", "16", "4", "8", "2"], help="of the CPU's rows")
    args = parser.parse_args(argv)
    args.words = sys.argv[1:] if argv is None else list(argv)
    if args.budget <= RESERVE:
        parser.error(f"--budget: expected more than {RESERVE} seconds, got {args.budget}")
    if args.rows and not plan(only=args.rows):
        parser.error(f"--rows: no row has {' or '.join(args.rows)} in its class or id")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.take:
        merged = take(args.take, args.results)
        if not merged:
            sys.exit(f"visit: no gpu-*.json in {args.take}: nothing is taken")
        print(*merged, sep="\n")
        return
    if args.prebuilt != PREBUILT and not args.prebuilt.is_dir():
        sys.exit(f"visit: no folder {args.prebuilt}: make gpu-prepare makes build/gpu")
    signs = [shutil.which("nvidia-smi"), *Path("/dev").glob("nvidia*")]
    if args.device == "cuda" and not any(signs):
        sys.exit("visit: expected a GPU, found none (no nvidia-smi, no /dev/nvidia*); "
                 "--device cpu tries the program itself")  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as if time were up
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        visit = Visit(args, Path(folder))
        library = Library(visit)
        try:
            machine(visit)
            library.begin()
            run_steps(visit, library)
        except Exception:
            visit.fail("the visit itself", traceback.format_exc())
        finally:
            library.stop()
            visit.save()
            visit.last_words()
    if visit.failures:
        sys.exit(1)


if __name__ == "__main__":
    main()
