"""The parts of `benchmarks.gpu.check` but the benchmarks: each runs in processes of its own."""

from __future__ import annotations

import argparse
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cuda_build
from benchmarks.gpu.process import Ended, run, write_whole

ROOT = Path(__file__).parent.parent.parent
Record = dict[str, Any]

KERNELS = ("step", "vector", "tile", "cluster")  # as FASTRNN_CUDA_KERNEL takes them
TOOLS = ("memcheck", "racecheck")
NOT_CHOSEN = 4  # exit status of benchmarks.gpu.sanitize
KERNEL_TESTS = "tests/test_cuda.py"
QUICK_TESTS = [KERNEL_TESTS, "tests/test_cuda_graphs.py", "tests/test_rnn.py"]
MOST_FAILURES = 50  # of a file, that are kept by name
AT_ONCE = 6  # processes of tests or sanitizers that share the GPU


class CannotRun(Exception):
    """Why a part is left out."""


@dataclass
class Run:
    """What the parts share: the options, the results so far, and when time is up."""

    args: argparse.Namespace
    document: Record
    end: float
    capability: str = ""  # such as "9.0"; empty on the CPU

    def save(self) -> None:
        write_whole(self.args.json, self.document)

    def worker(self, name: str, *arguments: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            f"benchmarks.gpu.{name}",
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
        ended = run(this.worker("compare", "--out", str(out)), limit, ROOT)
        found = json.loads(out.read_text())["facts"] if ended.status == 0 else None
    if found is None:
        return outcome(ended)
    if this.args.commit:
        found["commit"] = this.args.commit
    return {"status": "ok", "machine": found}


def limits(this: Run, limit: float) -> Record:
    """The latencies and rates that the kernels' design rests on: benchmarks/gpu/limits.cu."""
    nvcc = cuda_build.find_nvcc()
    if nvcc is None:
        raise CannotRun("no nvcc: set CUDA_HOME or put it on the PATH")
    if not this.capability:
        raise CannotRun("needs a GPU")
    arch = this.capability.replace(".", "") + ("a" if this.capability == "9.0" else "")
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/limits"
        command = [
            nvcc,
            *cuda_build.FLAGS,
            f"-gencode=arch=compute_{arch},code=sm_{arch}",
            "-Icsrc",
        ]
        compiled = run([*command, "benchmarks/gpu/limits.cu", "-o", program], limit, ROOT)
        if compiled.status != 0:
            return outcome(compiled)
        ended = run([program], max(limit - compiled.seconds, 1), ROOT)
    # A line of JSON each, so that what was measured before an end is kept.
    lines = [json.loads(x) for x in ended.output.splitlines() if re.match(r"\{.*\}$", x)]
    return {**outcome(ended), "measured": lines}


def at_once(jobs: Sequence[Callable[[], Record]]) -> list[Record]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return [job.result() for job in [pool.submit(job) for job in jobs]]


def worst(records: Sequence[Record]) -> str:
    found = {r["status"] for r in records}
    return next((s for s in ("failed", "cut off", "ok") if s in found), "skipped")


def failures_in(suite: ElementTree.Element) -> list[str]:
    """The name of each failed test with the first line of its message."""
    found = [(case.get("name", ""), case.find(kind)) for case in suite.iter("testcase")
             for kind in ("failure", "error")]  # fmt: skip
    return [f"{name}: {(bad.get('message') or '').split(chr(10))[0]}"
            for name, bad in found if bad is not None][:MOST_FAILURES]  # fmt: skip


def run_tests_of(path: str, select: str, end: float) -> Record:
    """GPU tests of one file, in a process of their own: an illegal access ends the others'."""
    with tempfile.TemporaryDirectory() as folder:
        xml = Path(folder) / "results.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu and not slow", path, "-k", select]
        # The last name is that of a test that hangs, with a traceback after half a minute.
        command += ["-v", "-rfE", "-o", "faulthandler_timeout=30"]
        command += ["--tb=short", "-p", "no:cacheprovider", f"--junitxml={xml}"]
        # The tests ask torch for deterministic algorithms, and cuBLAS then wants this.
        env = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        ended = run(command, end - time.monotonic(), ROOT, env)
        counts: Record = {}
        if xml.exists():
            suite = next(ElementTree.parse(xml).iter("testsuite"))
            counts = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
            counts |= {"failed": failed} if (failed := failures_in(suite)) else {}
    found = outcome(ended)
    if ended.status == 5 or (counts and counts["tests"] == counts["skipped"]):  # 5: no tests
        found = {"status": "skipped"}
    name = f"{path} -k {select}" if select else path
    return {"file": name, **counts, "seconds": round(ended.seconds, 1), **found}


def tests(this: Run, limit: float) -> Record:
    """`pytest -m gpu`, a process for each file."""
    if run([sys.executable, "-m", "pytest", "--version"], 30, ROOT).status != 0:
        raise CannotRun("no pytest in this environment")
    end = time.monotonic() + limit
    files = [f"tests/{p.name}" for p in sorted((ROOT / "tests").glob("test_*.py"))
             if re.search(r"mark\.gpu\b|\bdevice: str\b", p.read_text())]  # fmt: skip
    if this.args.quick:
        files = [f for f in files if f in QUICK_TESTS]
    # Each kernel's own tests in a process of their own: the most telling, so first.
    jobs = [(KERNEL_TESTS, kernel) for kernel in (*KERNELS, f"not ({' or '.join(KERNELS)})")]
    jobs += [(f, "") for f in files if f != KERNEL_TESTS]
    results = at_once([lambda j=j: run_tests_of(*j, end) for j in jobs])
    return {"status": worst(results), "files": results}


def count_tests(part: Record) -> str:
    """The sums over all files, such as "tests: 40, skipped: 2"; empty if there are no files."""
    files = part.get("files", [])
    sums = {k: sum(f.get(k, 0) for f in files) for k in ("tests", "failures", "errors", "skipped")}
    return ", ".join(f"{k}: {n}" for k, n in sums.items()) if files else ""


def sanitizer() -> str:
    places = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    found = shutil.which("compute-sanitizer", path=places)
    if found is None:
        raise CannotRun("compute-sanitizer is neither on the PATH nor in /usr/local/cuda/bin")
    return found


def sanitize_one(this: Run, program: str, kernel: str, tool: str, end: float) -> Record:
    # Only our kernels: those of cuBLAS and cuDNN would take minutes.
    command = [program, "--tool", tool, "--error-exitcode", "86", "--kernel-regex", "kns=fastrnn"]
    # Torch asks the driver for functions that it does not have; our launches check themselves.
    command += ["--report-api-errors", "no"]
    command += this.worker("sanitize", *(["--quick"] if this.args.quick else []))
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
    if machine_of(this.document).get("cuda_kernels") == "not built":
        raise CannotRun("this build has no CUDA kernels")
    program, end = sanitizer(), time.monotonic() + limit
    tools = TOOLS[:1] if this.args.quick else TOOLS
    pairs = [(kernel, tool) for tool in tools for kernel in KERNELS]
    results = at_once([lambda p=p: sanitize_one(this, program, *p, end) for p in pairs])
    return {"status": worst(results), "runs": results}


def machine_of(document: Record) -> Record:
    found: Record = document["parts"].get("facts", {}).get("machine", {})
    return found
