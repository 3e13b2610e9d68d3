"""The rows of a visit: a measuring process, watched row by row."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.evidence import ROOT, Visit
from benchmarks.gpu.process import Record, Worker, work_through

FIRST_ROW_SECONDS = 60.0  # imports, and the machine's own speed
ROW_SECONDS = 8.0
MOST_ENDS = 4  # of the measuring process, before nn.RNN is measured alone


def bench(visit: Visit, wanted: Sequence[str], end: float) -> str:
    """Measure the rows that this hash lacks, and nn.RNN alone where ours cannot be measured."""
    rows: dict[str, Record] = visit.document["rows"]

    def right(key: str) -> bool:
        row = rows.get(key, {})
        known = row.get("hash") == visit.hash and "failed" not in row and "forms" in row
        return known and not (row["theirs_only"] and visit.loads)

    todo = [key for key in wanted if not right(key)]
    measured: set[str] = set()

    def keep(record: Record) -> None:
        if "facts" in record:
            visit.document["machine"] |= record["facts"]
        elif "end" in record:
            key = record.pop("end")
            report = record.pop("report", "")
            before = rows[key] if key in measured else {}
            failed = {"failed": before["failed"]} if "failed" in before else {}
            rows[key] = {**record, **failed, "hash": visit.hash}
            measured.add(key)
            if "failed" in record:
                visit.fail(f"row {key}", f"{report}\n{record['failed']}")
            elif record.get("error", {}).get("wrong"):
                visit.fail(f"row {key}: wrong", json.dumps(record["error"]))
        elif "stopped" in record:
            visit.fail(f"rows: {record['failed']}", record["report"])
        visit.save(now=False)

    def measure(keys: Sequence[str], theirs_only: bool) -> None:
        def command(worker: Worker, out: Path) -> list[str]:
            left = visit.scratch / "rows.json"
            left.write_text(json.dumps([key for key in keys if key not in worker.done]))
            words = ["-P", "-m", "benchmarks.gpu.compare", "--device", visit.args.device]
            words += ["--rows", str(left), "--out", str(out), "--avoid", *sorted(visit.bad)]
            words += ["--budget", str(visit.args.row_budget)]
            if "copy_GB_per_s" not in visit.document["machine"] and not worker.bad_ends:
                words.append("--facts")
            if theirs_only or worker.bad_ends >= MOST_ENDS:
                words.append("--theirs-only")
            return [sys.executable, *words]

        limits = FIRST_ROW_SECONDS, ROW_SECONDS
        worker = Worker("rows", command, ROOT, visit.env, limits)
        work_through([worker], end, keep)

    if todo:
        measure(todo, not visit.loads)
    lost = [key for key in measured if "forms" not in rows[key]]
    if lost:
        measure(lost, True)  # what there is to beat is known at least
    failed = sum("failed" in rows[key] for key in measured)
    return f"{len(measured)} of {len(todo)} rows, {failed} failed, {len(wanted) - len(todo)} before"
