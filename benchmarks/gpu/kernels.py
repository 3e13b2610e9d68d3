"""The steps of a visit that need no torch: limits of the GPU, checks and times, sanitizers."""

from __future__ import annotations

import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from benchmarks.gpu.evidence import ROOT, Visit
from benchmarks.gpu.process import Ended, Job, Record, records, run, run_all

ROWS = ("whole", "packed", "lengths", "marks", "bare", "full")  # of a check, as it prints them
AT_ONCE = 8  # processes that share the GPU where nothing is timed
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")  # on what failed
# On all; but racecheck not on clusters: it does not know what the barriers of store_async order,
# and reports each read of the state beside the write of two steps later.
RUNS = [("memcheck", "marks"), ("racecheck", "whole"), ("synccheck", "whole")]
FOUND = 86  # exit status of a tool that has found something
UNABLE = re.compile(
    r"device not supported|internal sanitizer error|unable to find injection"
    r"|before first instrumented|no attachable process", re.IGNORECASE
)  # fmt: skip
LIMITS_SECONDS, LIST_SECONDS, TIME_SECONDS = 12, 20, 15


def limits(visit: Visit, end: float) -> str:
    """The latencies and rates that the kernels' design rests on: benchmarks/gpu/limits.cu."""
    program = visit.built / "limits"
    if not program.exists():
        return "not built"
    for r in visit.earlier("times.jsonl"):
        if r["hash"] == visit.program_hash and r.get("limit", {}).get("what") == "complete":
            return "measured before"
    count = 0

    def line(_: str, text: str) -> None:
        nonlocal count
        for record in records([text]):
            count += 1
            visit.keep("times.jsonl", {"limit": record, "hash": visit.program_hash})

    for _, ended in run_all([Job("", [str(program)], LIMITS_SECONDS)], 1, end, ROOT, line):
        if ended.status != 0:
            visit.fail(f"limits {ended.how}", ended.output)
    return f"{count} measurements"


def checks(visit: Visit, end: float) -> str:
    """A process for all rows of a kernel; then one for each row that has no right answer."""
    program = visit.built / "kernels"
    if not program.exists():
        visit.fail("the program `kernels` is not built")
        return "not built"
    listed = run([str(program), "list"], min(LIST_SECONDS, end - time.monotonic()), ROOT)
    visit.variants = [line for line in listed.output.splitlines() if len(line.split()) == 2]
    if listed.status != 0 or not visit.variants:
        visit.fail(f"kernels list {listed.how}", listed.output)
        return "no list"
    every = [f"{variant} {rows}" for variant in visit.variants for rows in ROWS]
    for r in visit.earlier("checks.jsonl"):
        if r["hash"] == visit.program_hash and r.get("right"):
            visit.checked[f"{variant_of(r)} {r['rows']}"] = True
    todo = [key for key in every if key not in visit.checked]
    texts: dict[str, str] = {}  # of what was wrong

    def check(keys: Sequence[str], at_once: int) -> None:
        limit = visit.args.check_limit
        jobs = [Job(key, [str(program), "check", *key.split()], limit) for key in keys]
        for key, ended in run_all(jobs, at_once, end, ROOT):
            for record in check_records(key, ended):
                record |= {"hash": visit.program_hash, "at_once": at_once}
                visit.keep("checks.jsonl", record)
                row = f"{variant_of(record)} {record['rows']}"
                visit.checked[row] = bool(record.get("right"))
                if not visit.checked[row]:
                    texts[row] = f"{ended.output}\n{what_is_wrong(record)}"

    check(list(dict.fromkeys(key.rsplit(" ", 1)[0] for key in todo)), AT_ONCE)
    check([key for key in every if key not in visit.checked], AT_ONCE)  # behind what failed
    check([key for key in every if not visit.checked.get(key)], 1)
    for key, text in texts.items():
        alone = ", but by itself it is right" if visit.checked[key] else ""
        visit.fail(f"check {key}{alone}", text)
    wrong = [key for key in every if visit.checked.get(key) is False]
    visit.bad |= {key.rsplit(" ", 1)[0] for key in wrong}
    lost = [key for key in every if key not in visit.checked]
    if lost:
        visit.fail(f"checks: {len(lost)} were not begun, the first {lost[0]}")
    visit.document["checks"] = {"of": len(every), "wrong": len(wrong), "not begun": len(lost)}
    families = Counter(re.split("[: ]", name)[0] for name in visit.bad)
    note = f"{len(todo) - len(lost)} of {len(every)} run, {len(wrong)} wrong or failed"
    return note + "".join(f", {family} {count}" for family, count in families.items())


def variant_of(record: Record) -> str:
    return f"{record['name']} {record['dtype']}"


def check_records(key: str, ended: Ended) -> Iterator[Record]:
    """Of each row that a process was asked for and has begun."""
    name, dtype, *one = key.split()
    printed = [r for r in records(ended.output.splitlines()) if "right" in r or "failed" in r]
    found = {r["rows"]: r for r in printed if "rows" in r}
    asked = one or ROWS
    if ended.status != 0 and all(found.get(rows, {}).get("right") for rows in asked):
        del found[asked[-1]]  # it came to no good end
    last = printed[-1] if printed else {}
    if "failed" not in last:
        last = {"failed": ended.how, "output": ended.output}
    for rows in asked:
        if rows not in found and "rows" in last:  # which ended the process
            return
        record = {"name": name, "dtype": dtype, **found.get(rows, last), "rows": rows}
        yield {**record, "seconds": round(ended.seconds, 2)}
        if rows not in found:
            return


def what_is_wrong(record: Record) -> str:
    if "failed" in record:
        return str(record["failed"])
    return f"error {record.get('error')}, allowed {record.get('allowed')}: {record.get('worst')}"


def times(visit: Visit, end: float) -> str:
    """Of the kernels that are right: in one process where all are, until it fails or hangs."""
    program = str(visit.built / "kernels")
    measured = {variant_of(r) for r in visit.earlier("times.jsonl")
                if r["hash"] == visit.program_hash and "ns" in r}  # fmt: skip
    good = [v for v in visit.variants if v not in visit.bad and not v.startswith("step ")]
    todo = [v for v in good if v not in measured]
    count, left = 0, todo

    def keep(record: Record) -> None:
        visit.keep("times.jsonl", {**record, "hash": visit.program_hash})

    def line(_: str, text: str) -> None:
        nonlocal count, left
        for record in records([text]):
            count += "ns" in record
            keep(record)
            if variant_of(record) in todo:
                left = todo[todo.index(variant_of(record)) + 1 :]

    if todo and not visit.bad and not measured:
        job = Job("", [program, "time"], math.inf, TIME_SECONDS)
        for _, ended in run_all([job], 1, end, ROOT, line):
            if ended.status != 0:
                visit.fail(f"times: {ended.how}, before {(*left, 'its end')[0]}", ended.output)
            else:
                left = []
    for key, ended in run_all(
        [Job(v, [program, "time", *v.split()], TIME_SECONDS) for v in left], 1, end, ROOT, line
    ):
        left = todo[todo.index(key) + 1 :]
        if ended.status != 0:
            name, dtype = key.split()
            keep({"name": name, "dtype": dtype, "failed": ended.how})
            visit.fail(f"time of {key} {ended.how}", ended.output)
    if left:
        visit.fail(f"times: no time for {len(left)} kernels, the first {left[0]}")
    return f"{count} lines, {len(todo) - len(left)} of {len(good)} kernels"


def sanitizers(visit: Visit, end: float) -> str:
    """Every tool on what failed; then some on all, clusters first."""
    name = "compute-sanitizer"
    tool = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if tool is None:
        return f"no {name}"
    runs = [(t, key) for key, right in visit.checked.items() if not right for t in TOOLS]
    for v in sorted(visit.variants, key=lambda v: not v.startswith("cluster")):
        known = [run for run in RUNS if run[0] != "racecheck" or not v.startswith("cluster")]
        runs += [(t, f"{v} {rows}") for t, rows in known]
    clean = {(r["tool"], f"{variant_of(r)} {r['rows']}") for r in visit.earlier("checks.jsonl")
             if r["hash"] == visit.program_hash and r.get("clean") and "rows" in r}  # fmt: skip
    jobs = []
    for t, key in dict.fromkeys(runs):
        command = [tool, "--tool", t, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        command += [str(visit.built / "kernels"), "check", *key.split()]
        if (t, key) not in clean:
            jobs.append(Job((t, key), command, visit.args.sanitizer_limit))
    counts: Counter[str] = Counter()
    for (t, key), ended in run_all(jobs, AT_ONCE, end, ROOT):
        if not counts["clean"] and UNABLE.search(ended.output):
            visit.fail(f"{name} does not work here", ended.output)
            return "does not work here"
        names = {0: "clean", FOUND: "with findings", None: "without an answer in time"}
        found = names.get(ended.status, "failed as without the tool")
        counts[found] += 1
        record = dict(zip(("name", "dtype", "rows"), key.split(), strict=True))
        record |= {"tool": t, "clean": ended.status == 0, "found": found}
        visit.keep("checks.jsonl", {**record, "hash": visit.program_hash})
        if ended.status == FOUND:
            visit.fail(f"{t} of {key}", ended.output)
    counts["not begun"] = len(jobs) - counts.total()
    visit.document["sanitizers"] = dict(counts)
    return ", ".join(f"{count} {found}" for found, count in counts.items())
