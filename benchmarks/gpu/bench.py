"""The benchmarks of `benchmarks.gpu.check`: a measuring process, watched row by row."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu.parts import ROOT, Record, Run, machine_of
from benchmarks.gpu.process import Child
from benchmarks.gpu.shapes import plan

FIRST_ROW_SECONDS, ROW_SECONDS = 60.0, 20.0  # after these a row counts as hung
MOST_ENDS = 4  # of the measuring process, before nn.RNN is measured alone
SAVE_SECONDS = 5.0


def bench(this: Run, limit: float) -> Record:
    """nn.RNN and fastrnn in interleaved rounds, eager and captured, row by row."""
    end = time.monotonic() + limit
    args, toy = this.args, this.args.device == "cpu"
    commit = machine_of(this.document).get("commit")
    known = {str(row) for row in plan(toy=toy)}
    old = this.document["parts"].get("bench", {}).get("rows", {})
    rows = {key: row for key, row in old.items() if key in known}
    todo = [str(row) for row in plan(args.quick, args.rows, toy)]
    if args.again:
        done = {k for k, row in rows.items() if "failed" not in row and row["commit"] == commit}
        todo = [key for key in todo if key not in done]
    found: Record = {"status": "cut off", "device": args.device, "wanted": len(todo)}
    found |= {"rows": rows, "ended": []}
    this.document["parts"]["bench"] = found
    measured: set[str] = set()

    def keep(key: str, row: Record) -> None:
        before = rows[key] if key in measured else {}
        rows[key] = {**row, "commit": commit, **({"failed": before["failed"]} if before else {})}
        measured.add(key)
        found["measured"] = len(measured)

    def measure(keys: list[str], theirs_only: bool) -> None:
        how = measure_rows(this, keys, keep, end, theirs_only)
        found["ended"] += [how] if how else []

    while time.monotonic() < end and (left := [key for key in todo if key not in measured]):
        measure(left, len(found["ended"]) >= MOST_ENDS)
        if len(found["ended"]) >= 2 * MOST_ENDS:
            break
    lost = [key for key in measured if "forms" not in rows[key]]
    if lost and time.monotonic() < end:
        measure(lost, True)  # what there is to beat is known at least
    failed = [key for key in measured if "failed" in rows[key]]
    found["failed"] = len(failed)
    if failed or found["ended"]:
        found["status"] = "failed"
    elif len(measured) == len(todo):
        found["status"] = "ok"
    return found


def measure_rows(
    this: Run, todo: list[str], keep: Callable[[str, Record], None], end: float, theirs_only: bool
) -> Record | None:
    """One measuring process: keep what it finds, and say how it ended, if badly."""
    with tempfile.TemporaryDirectory() as folder:
        keys, out = Path(folder) / "keys.json", Path(folder) / "rows.jsonl"
        keys.write_text(json.dumps(todo))
        out.touch()
        arguments = ["--rows", str(keys), "--out", str(out), "--budget", str(this.args.budget)]
        arguments += ["--theirs-only"] if theirs_only else []
        child = Child(this.worker("compare", *arguments), ROOT)
        begun, read, over = None, 0, False
        hung = time.monotonic() + FIRST_ROW_SECONDS
        save = time.monotonic() + SAVE_SECONDS
        try:
            while not over:
                over = child.wait(0.1) or time.monotonic() > min(hung, end)
                text = out.read_text()
                whole = text[read : text.rfind("\n") + 1]
                read += len(whole)
                for line in map(json.loads, whole.splitlines()):
                    hung = time.monotonic() + ROW_SECONDS
                    begun = line.get("begun")
                    if "row" in line:
                        keep(line.pop("row"), line)
                if time.monotonic() > save:
                    save = time.monotonic() + SAVE_SECONDS
                    this.save()
        finally:
            ended = child.stop()
    out_of_time = ended.status is None and time.monotonic() >= end
    if ended.status == 0 or out_of_time:
        return None
    why = "hung" if ended.status is None else f"the process ended with status {ended.status}"
    if begun is not None:
        keep(begun, {"failed": why})
    return {"row": begun, "why": why, "theirs_only": theirs_only, "output": ended.tail}
