"""Build, test, sanitize and measure on a machine with a GPU: one command, one results file.

    python -m benchmarks.gpu.check --quick
    python -m benchmarks.gpu.check --only bench --rows tiny H512 --again

Parts run one after the other, each within a time limit of its own, in processes of their own: what
hangs or crashes is ended and noted, and the rest goes on. The file is written after every part and
every few rows, and parts and rows that a run leaves out keep what an earlier run found.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import parts
from benchmarks.gpu.bench import bench
from benchmarks.gpu.parts import ROOT, CannotRun, Record, Run
from benchmarks.gpu.process import run
from benchmarks.gpu.shapes import plan

TOTAL = 465.0  # seconds of all parts


@dataclass(frozen=True)
class Part:
    run: Callable[[Run, float], Record]
    limit: float  # seconds; those of the last part are what is left of the total
    quick_limit: float


PARTS = {
    "build": Part(parts.build, 180, 180),
    "facts": Part(parts.facts, 40, 40),
    "limits": Part(parts.limits, 60, 60),
    "tests": Part(parts.tests, 100, 60),
    "sanitize": Part(parts.sanitize, 75, 45),
    "bench": Part(bench, TOTAL, 60),
}


EPILOG = f"""\
The plan has {len(plan())} rows, the most telling first, and a call measures 150 to 250 of them. Go
on until none is left, with the same JSON; on a machine without the extension, build it first:

    python -m benchmarks.gpu.check --only build bench --again
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu.check",
        description=__doc__.split("\n")[0],
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    if {"sanitize", "bench"} & set(args.only):  # the results are those of this build
        args.only = ["facts", *args.only]
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
                 "  python -m benchmarks.gpu.check --device cpu --quick --json FILE")  # fmt: skip
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
        start = time.monotonic()
        limit = min(PARTS[name].quick_limit if args.quick else PARTS[name].limit, this.end - start)
        before = document["parts"].get(name, {})
        try:
            if limit < 1:
                raise CannotRun("no time was left")
            found = PARTS[name].run(this, limit)
        except CannotRun as e:
            found = {**before, "status": "skipped", "reason": str(e)}
        except Exception as e:  # the other parts go on
            found = {**document["parts"].get(name, {}), "status": "failed", "reason": repr(e)}
        found["seconds"] = round(time.monotonic() - start, 1)
        found["date"] = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
        found["command"] = " ".join(["python -m benchmarks.gpu.check", *words])
        document["parts"][name] = found
        this.save()
        heading = f"{name:9} {found['status']:8} {found['seconds']:6.1f} s"
        print(f"{heading}  {remark(found)}", flush=True)
    print(args.json)
    if any(document["parts"][n]["status"] == "failed" for n in args.only):
        sys.exit(1)


def remark(found: Record) -> str:
    """A line that says what matters in a part's record."""
    if "reason" in found:
        return str(found["reason"])
    if "rows" in found:
        return f"{found.get('measured', 0)} of {found['wanted']} rows, {found['failed']} failed"
    if "measured" in found:
        return f"{len(found['measured'])} measurements"
    items = found.get("files", []) + found.get("runs", [])
    bad = [item for item in items if item["status"] not in ("ok", "skipped")]
    names = [item.get("file") or f"{item['kernel']} under {item['tool']}" for item in bad]
    if items:
        counts = parts.count_tests(found) or f"{len(items)} runs"
        return "; ".join([counts, *(f"{n} {i['status']}" for n, i in zip(names, bad, strict=True))])
    return str(found.get("output", ""))[-2000:]


if __name__ == "__main__":
    main()
