"""Build, test, sanitize and measure on a machine with a GPU: one command, one results file.

    python -m benchmarks.gpu_check --quick
    python -m benchmarks.gpu_check --only bench --rows tiny H512 --again

Parts run one after the other, each within a time limit of its own, in processes of their own: what
hangs or crashes is ended and noted, and the rest goes on. The file is written after every part and
every few rows, and parts that a run leaves out keep what an earlier run found.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cuda_build
from benchmarks.gpu_process import Child, Ended, run, write_whole
from benchmarks.gpu_shapes import plan

ROOT = Path(__file__).parent.parent
Record = dict[str, Any]

TOTAL = 465.0  # seconds of all parts
KERNELS = ("step", "vector", "tile", "cluster", "grid")  # as FASTRNN_CUDA_KERNEL takes them
TOOLS = ("memcheck", "racecheck")
NOT_CHOSEN = 4  # exit status of benchmarks.gpu_sanitize
FIRST_ROW_SECONDS, ROW_SECONDS = 60.0, 20.0  # after these a row counts as hung
MOST_ENDS = 4  # of the measuring process, before nn.RNN is measured alone
QUICK_TESTS = ["tests/test_cuda_graphs.py", "tests/test_rnn.py"]
AT_ONCE = 4  # processes of tests or sanitizers that share the GPU


class CannotRun(Exception):
    """Why a part is left out."""


@dataclass
class Run:
    """What the parts share: the options, the results so far, and when time is up."""

    args: argparse.Namespace
    document: Record
    end: float
    capability: str = ""  # such as "9.0"; empty on the CPU
    limits: dict[str, float] = field(default_factory=dict)

    def save(self) -> None:
        write_whole(self.args.json, self.document)

    def worker(self, name: str, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            f"benchmarks.{name}",
            "--device",
            self.args.device,
            *arguments,
        ]


def outcome(ended: Ended) -> Record:
    status = "cut off" if ended.status is None else "ok" if ended.status == 0 else "failed"
    return {"status": status, **({} if status == "ok" else {"output": ended.tail})}


def build(this: Run, limit: float) -> Record:
    """The extension, by the project's own setup, for this GPU's architecture alone."""
    env = {}
    if this.capability and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        env["TORCH_CUDA_ARCH_LIST"] = this.capability + ("a" if this.capability == "9.0" else "")
    return outcome(run([sys.executable, "setup.py", "build_ext", "--inplace"], limit, ROOT, env))


def facts(this: Run, limit: float) -> Record:
    """The machine, versions, and the speed of memory and of matrix products."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "facts.jsonl"
        ended = run(this.worker("gpu_compare", "--out", str(out)), limit, ROOT)
        found = json.loads(out.read_text())["facts"] if ended.status == 0 else None
    if found is None:
        return outcome(ended)
    if this.args.commit:
        found["commit"] = this.args.commit
    return {"status": "ok", "machine": found}


def limits(this: Run, limit: float) -> Record:
    """The latencies and rates that the kernels' design rests on: benchmarks/gpu_limits.cu."""
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        raise CannotRun("no nvcc: set CUDA_HOME or put it on the PATH")
    if not this.capability:
        raise CannotRun("needs a GPU")
    arch = this.capability.replace(".", "") + ("a" if this.capability == "9.0" else "")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/gpu_limits"
        command = [
            nvcc,
            *cuda_build.FLAGS,
            f"-gencode=arch=compute_{arch},code=sm_{arch}",
            "-Icsrc",
        ]
        compiled = run([*command, "benchmarks/gpu_limits.cu", "-o", program], limit, ROOT)
        if compiled.status != 0:
            return outcome(compiled)
        ended = run([program], max(limit - compiled.seconds, 1), ROOT)
    # A line of JSON each, so that what was measured before an end is kept.
    lines = [json.loads(x) for x in ended.output.splitlines() if x.startswith("{")]
    return {**outcome(ended), "measured": lines}


def at_once(jobs: Sequence[Callable[[], Record]]) -> list[Record]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [job.result() for job in [pool.submit(job) for job in jobs]]


def worst(records: Sequence[Record]) -> str:
    found = {r["status"] for r in records}
    return next((s for s in ("failed", "cut off", "ok") if s in found), "skipped")


def run_tests_of(path: str, end: float) -> Record:
    """The GPU tests of one file, in a process of their own: an illegal access ends the others'."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", path, "-q", "-rfEs"]
        command += ["--tb=short", "-p", "no:cacheprovider", f"--junitxml={xml}"]
        # The tests ask torch for deterministic algorithms, and cuBLAS then wants this.
        env = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        ended = run(command, end - time.monotonic(), ROOT, env)
        counts = {}
        if xml.exists():
            suite = next(ElementTree.parse(xml).iter("testsuite"))
            counts = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    found = outcome(ended)
    if ended.status == 5:  # pytest's word for no tests
        found = {"status": "skipped"}
    return {"file": path, **counts, "seconds": round(ended.seconds, 1), **found}


def tests(this: Run, limit: float) -> Record:
    """`pytest -m gpu`, a process for each file."""
    if run([sys.executable, "-m", "pytest", "--version"], 30, ROOT).status != 0:
        raise CannotRun("no pytest in this environment")
    end = time.monotonic() + limit
    files = [f"tests/{p.name}" for p in sorted((ROOT / "tests").glob("test_*.py"))
             if re.search(r"\bgpu\b|\bdevice\b", p.read_text())]  # fmt: skip
    if this.args.quick:
        files = [f for f in files if f in QUICK_TESTS]
    results = at_once([lambda f=f: run_tests_of(f, end) for f in files])
    return {"status": worst(results), "files": results}


def sanitizer() -> str:
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    found = shutil.which("compute-sanitizer", path=places)
    if found is None:
        raise CannotRun("compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin")
    return found


def sanitize_one(this: Run, program: str, kernel: str, tool: str, end: float) -> Record:
    # Only our kernels: those of cuBLAS and cuDNN would take minutes.
    command = [program, "--tool", tool, "--error-exitcode", "86", "--kernel-regex", "kns=fastrnn"]
    command += this.worker("gpu_sanitize", *(["--quick"] if this.args.quick else []))
    # Every tensor an allocation of its own, so that an access beyond it is one.
    env = {"FASTRNN_CUDA_KERNEL": kernel, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    ended = run(command, end - time.monotonic(), ROOT, env)
    found = outcome(ended)
    if ended.status == NOT_CHOSEN:
        found = {"status": "skipped", "reason": "no small shape takes this kernel on this device"}
    summary = re.findall(r"=+ ((?:ERROR|RACECHECK) SUMMARY: .*)", ended.output)
    cases = re.findall(r"^cases: (\d+)", ended.output, re.MULTILINE)
    return {"kernel": kernel, "tool": tool, "cases": int(cases[-1]) if cases else None,
            "summary": summary[-1] if summary else None,
            "seconds": round(ended.seconds, 1), **found}  # fmt: skip


def sanitize(this: Run, limit: float) -> Record:
    """compute-sanitizer over each kernel on small shapes."""
    if this.args.device == "cpu":
        raise CannotRun("needs a GPU")
    if machine_of(this.document).get("cuda_kernels", "not built") == "not built":
        raise CannotRun("this build has no CUDA kernels")
    program, end = sanitizer(), time.monotonic() + limit
    tools = TOOLS[:1] if this.args.quick else TOOLS
    pairs = [(kernel, tool) for tool in tools for kernel in KERNELS]
    results = at_once([lambda p=p: sanitize_one(this, program, *p, end) for p in pairs])
    return {"status": worst(results), "runs": results}


def machine_of(document: Record) -> Record:
    found: Record = document["parts"].get("facts", {}).get("machine", {})
    return found


def earlier_rows(this: Run) -> dict[str, Record]:
    """With --again, the rows that an earlier run of the same code has measured to the end."""
    old = this.document["parts"].get("bench", {})
    if not this.args.again or old.get("commit") != machine_of(this.document).get("commit"):
        return {}
    return {key: row for key, row in old.get("rows", {}).items() if "failed" not in row}


def bench(this: Run, limit: float) -> Record:
    """nn.RNN and fastrnn in interleaved rounds, eager and captured, row by row."""
    end = time.monotonic() + limit
    args = this.args
    wanted = [str(row) for row in plan(args.quick, args.rows, toy=args.device == "cpu")]
    rows = {key: row for key, row in earlier_rows(this).items() if key in wanted}
    found: Record = {"status": "cut off", "wanted": len(wanted), "rows": rows, "ended": []}
    found["commit"] = machine_of(this.document).get("commit")
    this.document["parts"]["bench"] = found
    while (todo := [key for key in wanted if key not in rows]) and time.monotonic() < end:
        theirs_only = len(found["ended"]) >= MOST_ENDS
        if len(found["ended"]) > 2 * MOST_ENDS:
            found["status"] = "failed"
            break
        how = measure_rows(this, todo, rows, end, theirs_only)
        if how is not None:
            found["ended"].append(how)
    if all(key in rows for key in wanted):
        failed = any("failed" in row for row in rows.values())
        found["status"] = "failed" if failed or found["ended"] else "ok"
    return found


def measure_rows(
    this: Run, todo: list[str], rows: dict[str, Record], end: float, theirs_only: bool
) -> Record | None:
    """One measuring process: put what it finds into `rows`, and say how it ended, if badly."""
    with tempfile.TemporaryDirectory() as folder:
        keys, out = Path(folder) / "keys.json", Path(folder) / "rows.jsonl"
        keys.write_text(json.dumps(todo))
        out.touch()
        arguments = ["--rows", str(keys), "--out", str(out), "--budget", str(this.args.budget)]
        arguments += ["--theirs-only"] if theirs_only else []
        child = Child(this.worker("gpu_compare", *arguments), ROOT)
        begun, heard, saved, read = None, time.monotonic() + FIRST_ROW_SECONDS, time.monotonic(), 0
        alive = True
        while alive:
            alive = not child.wait(0.1)
            text = out.read_text()
            whole = text[read : text.rfind("\n") + 1]
            read += len(whole)
            for line in map(json.loads, whole.splitlines()):
                heard = time.monotonic() + ROW_SECONDS
                begun = line.get("begun")
                if "row" in line:
                    rows[line.pop("row")] = line
            if time.monotonic() - saved > 5:
                saved = time.monotonic()
                this.save()
            if time.monotonic() > min(heard, end):
                break
        timed_out = alive and time.monotonic() < end
        ended = child.stop()
    if ended.status == 0 or (alive and not timed_out):
        return None
    why = "hung" if timed_out else f"the process ended with status {ended.status}"
    if begun is not None:
        rows[begun] = {"failed": why}
    return {"row": begun, "why": why, "theirs_only": theirs_only, "output": ended.tail}


@dataclass(frozen=True)
class Part:
    run: Callable[[Run, float], Record]
    limit: float  # seconds; those of the last part are what is left of the total
    quick_limit: float


PARTS = {
    "build": Part(build, 180, 180),
    "facts": Part(facts, 40, 40),
    "limits": Part(limits, 60, 60),
    "tests": Part(tests, 100, 60),
    "sanitize": Part(sanitize, 75, 45),
    "bench": Part(bench, TOTAL, 60),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_check", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="few rows, few tests: a first try")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART",
                        help=f"of {', '.join(PARTS)}")  # fmt: skip
    parser.add_argument("--rows", nargs="+", default=[], metavar="CLASS|ID",
                        help="of the benchmarks: a class, or part of an id")  # fmt: skip
    parser.add_argument("--again", action="store_true", help="measure only rows that JSON lacks")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda",
                        help="cpu: toy sizes, to try this program itself")  # fmt: skip
    parser.add_argument("--json", type=Path, help="the results (benchmarks/results/gpu.json)")
    parser.add_argument("--budget", type=float, default=0.1, help="seconds of a row and form")
    parser.add_argument("--total", type=float, default=TOTAL, help="seconds of all parts")
    parser.add_argument("--commit", help="what to note where there is no git")
    args = parser.parse_args(argv)
    if args.device == "cpu" and args.json is None:
        parser.error("--device cpu: say with --json where the results go; they are no benchmarks")
    args.json = args.json or ROOT / "benchmarks/results/gpu.json"
    if args.total <= 0 or args.budget <= 0:
        parser.error("--total and --budget: expected more than 0 seconds")
    if args.rows and not plan(args.quick, args.rows, toy=args.device == "cpu"):
        parser.error(f"--rows: no row has {' or '.join(args.rows)} in its class or id")
    return args


def open_document(path: Path) -> Record:
    """What an earlier run has written, or an empty document."""
    if not path.exists():
        return {"gpu_check": 1, "parts": {}}
    try:
        document: Record = json.loads(path.read_text())
        if document.get("gpu_check") != 1:
            raise ValueError("it has no entry gpu_check: 1")
    except (ValueError, AttributeError) as e:
        sys.exit(
            f"gpu-check: {path} is no results file of this program ({e}); --json names another"
        )
    return document


def capability() -> str:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    if shutil.which(query[0]) is None:
        sys.exit("gpu-check: no GPU here: nvidia-smi is not found. To try the program itself:\n"
                 "  python -m benchmarks.gpu_check --device cpu --quick --json FILE")  # fmt: skip
    ended = run(query, 30, ROOT)
    found = re.match(r"\d+\.\d+$", ended.output.strip().split("\n")[0])
    if ended.status != 0 or not found:
        sys.exit(f"gpu-check: nvidia-smi names no GPU:\n{ended.tail}")
    return found[0]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    document = open_document(args.json)
    this = Run(args, document, time.monotonic() + args.total)
    if args.device == "cuda":
        this.capability = capability()
    for name in (n for n in PARTS if n in args.only):
        part, start = PARTS[name], time.monotonic()
        limit = min(part.quick_limit if args.quick else part.limit, this.end - start)
        try:
            found = part.run(this, limit) if limit > 1 else {"status": "cut off"}
        except CannotRun as e:
            found = {"status": "skipped", "reason": str(e)}
        found["seconds"] = round(time.monotonic() - start, 1)
        found["date"] = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
        found["command"] = " ".join(["python -m benchmarks.gpu_check", *words])
        document["parts"][name] = found
        this.save()
        print(
            f"{name:9} {found['status']:8} {found['seconds']:6.1f} s  {remark(found)}", flush=True
        )
    print(args.json)
    if any(document["parts"][n]["status"] == "failed" for n in args.only):
        sys.exit(1)


def remark(found: Record) -> str:
    """A line that says what matters in a part's record."""
    if "rows" in found:
        failed = sum("failed" in row for row in found["rows"].values())
        return f"{len(found['rows'])} of {found['wanted']} rows, {failed} failed"
    lines = [r for r in found.get("files", found.get("runs", [])) if r["status"] not in ("ok",)]
    if lines:
        return "; ".join(f"{r.get('file') or r['kernel'] + ' ' + r['tool']} {r['status']}"
                         for r in lines)  # fmt: skip
    return str(found.get("reason") or found.get("output", ""))[-2000:]


if __name__ == "__main__":
    main()
