"""The steps of a visit that need no torch: limits of the GPU, checks and times, sanitizers."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections import Counter
from pathlib import Path

from benchmarks.gpu.evidence import ROOT, Visit
from benchmarks.gpu.process import Ended, Job, Record, records, run, run_all, shortened

ROWS = ("whole", "packed", "lengths", "marks")  # of a check
AT_ONCE = 8  # processes that share the GPU where nothing is timed
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# What the tools look for first: convergence after a wait, and a write after a read that only the
# order of data protects.
SUSPECTS = [
    ("synccheck", "cluster:512x8x8", "whole"),
    ("synccheck", "cluster:256x1x2", "whole"),
    ("racecheck", "cluster:384x4x4", "lengths"),
    ("racecheck", "cluster:512x8x8", "lengths"),
]
MOST_OUTPUT = 20_000  # characters of a tool's
LIMITS_SECONDS, LIST_SECONDS, TIME_SECONDS = 12, 20, 15


def limits(visit: Visit, end: float) -> str:
    """The latencies and rates that the kernels' design rests on: benchmarks/gpu/limits.cu."""
    program = visit.built / "limits"
    if not program.exists():
        return "not built"
    count = 0

    def line(_: str, text: str) -> None:
        nonlocal count
        for record in records([text]):
            count += 1
            visit.keep("times.jsonl", {"limit": record, "hash": visit.program_hash})

    for _, ended in run_all([Job("", [str(program)], LIMITS_SECONDS)], 1, end, ROOT, line):
        if ended.status not in (0, None):
            visit.fail(f"limits {ended.how}", ended.output)
    return f"{count} measurements"


def checks(visit: Visit, program: Path | None, end: float) -> str:
    """Every configuration in processes of its own; what fails once more, by itself."""
    if program is None:
        visit.fail("the program `kernels` is not built")
        return "not built"
    listed = run([str(program), "list"], min(LIST_SECONDS, end - time.monotonic()), ROOT)
    variants = [line for line in listed.output.splitlines() if len(line.split()) == 2]
    if listed.status != 0 or not variants:
        visit.fail(f"kernels list {listed.how}", listed.output)
        return "no list"
    every = [f"{variant} {rows}" for variant in variants for rows in ROWS]
    for r in visit.earlier("checks.jsonl"):
        if r["hash"] == visit.program_hash and r.get("right"):
            visit.checked[f"{r['name']} {r['dtype']} {r['rows']}"] = True
    todo = [key for key in every if key not in visit.checked]

    def check(keys: list[str], at_once: int) -> dict[str, str]:
        """Texts of those that are wrong."""
        texts = {}
        limit = visit.args.check_limit
        jobs = [Job(key, [str(program), "check", *key.split()], limit) for key in keys]
        for key, ended in run_all(jobs, at_once, end, ROOT):
            record = check_record(key, ended)
            record |= {"hash": visit.program_hash, "at_once": at_once}
            visit.keep("checks.jsonl", record)
            visit.checked[key] = bool(record.get("right"))
            if not visit.checked[key]:
                texts[key] = f"{ended.output}\n{what_is_wrong(record)}"
        return texts

    texts = check(todo, AT_ONCE)
    texts |= check(list(texts), 1)
    wrong = [key for key in texts if not visit.checked[key]]
    for key, text in texts.items():
        alone = ", but by itself it is right" if visit.checked[key] else ""
        visit.fail(f"check {key}{alone}", text)
    visit.bad |= {key.rsplit(" ", 1)[0] for key in wrong}
    lost = [key for key in todo if key not in visit.checked]
    if lost:
        visit.fail(f"checks: {len(lost)} were not begun, the first {lost[0]}")
    visit.document["checks"] = {"of": len(every), "wrong": len(wrong), "not begun": len(lost)}
    families = Counter(re.split("[: ]", name)[0] for name in visit.bad)
    note = f"{len(todo) - len(lost)} of {len(every)} run, {len(wrong)} wrong or failed"
    return note + "".join(f", {family} {count}" for family, count in families.items())


def check_record(key: str, ended: Ended) -> Record:
    name, dtype, rows = key.split()
    found = [r for r in records(ended.output.splitlines()) if "right" in r or "failed" in r]
    record = {"name": name, "dtype": dtype, "rows": rows, **(found[-1] if found else {})}
    if not found:
        record |= {"failed": ended.how, "output": shortened(ended.output, 2000)}
    elif ended.status != 0 and record.get("right"):
        record |= {"right": False, "failed": f"{ended.how} after a right result"}
    return record | {"seconds": round(ended.seconds, 2)}


def what_is_wrong(record: Record) -> str:
    if "failed" in record:
        return str(record["failed"])
    return f"error {record.get('error')}, allowed {record.get('allowed')}: {record.get('worst')}"


def variants_of(visit: Visit) -> list[str]:
    """What was checked, "NAME DTYPE"."""
    return list(dict.fromkeys(key.rsplit(" ", 1)[0] for key in visit.checked))


def times(visit: Visit, end: float) -> str:
    """Of the kernels that are right; in one process where all are."""
    program = str(visit.built / "kernels")
    good = [v for v in variants_of(visit) if v not in visit.bad]
    jobs = [Job(v, [program, "time", *v.split()], TIME_SECONDS) for v in good]
    if good and not visit.bad:
        jobs = [Job("all", [program, "time"], math.inf)]
    count = 0

    def line(_: str, text: str) -> None:
        nonlocal count
        for record in records([text]):
            count += 1
            visit.keep("times.jsonl", {**record, "hash": visit.program_hash})

    for key, ended in run_all(jobs, 1, end, ROOT, line):
        if ended.status != 0:
            visit.fail(f"time of {key} {ended.how}", ended.output)
    return f"{count} lines of {len(good)} kernels"


def sanitizers(visit: Visit, end: float) -> str:
    """Every tool on what failed, the suspects, then memcheck and racecheck of all."""
    name = "compute-sanitizer"
    tool = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if tool is None:
        return f"no {name}"
    failed = [key for key, right in visit.checked.items() if not right]
    variants = variants_of(visit)
    runs = [(t, key) for key in failed for t in TOOLS]
    runs += [(t, f"{v} {rows}") for t, n, rows in SUSPECTS for v in variants if v.split()[0] == n]
    for t, rows in (("memcheck", "marks"), ("racecheck", "packed")):
        runs += [(t, f"{v} {rows}") for v in variants]
    jobs = []
    for t, key in dict.fromkeys(runs):
        command = [tool, "--tool", t, "--error-exitcode", "86", "--print-limit", "20"]
        command += [str(visit.built / "kernels"), "check", *key.split()]
        jobs.append(Job((t, key), command, visit.args.sanitizer_limit))
    clean = bad = 0
    for (t, key), ended in run_all(jobs, AT_ONCE, end, ROOT):
        visit.append("sanitizer.txt", f"=== {t} {key}: {ended.how}\n")
        if ended.status == 0:
            clean += 1
            continue
        bad += 1
        visit.append("sanitizer.txt", shortened(ended.output, MOST_OUTPUT) + "\n")
        summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", ended.output)
        visit.fail(f"{t} of {key} {ended.how}; {' '.join(summary)}")
    visit.document["sanitizers"] = {"clean": clean, "bad": bad, "of": len(jobs)}
    return f"{clean} clean, {bad} not, {len(jobs) - clean - bad} not begun"
