"""What a visit to a GPU knows, writes and prints, and how what it brings home is merged."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu import prepare
from benchmarks.gpu.process import Record, read_records, shortened, write_whole

ROOT = Path(__file__).parent.parent.parent
RESERVE = 4.0  # seconds for the last words
SAVE_SECONDS = 1.0
KEY = ("name", "dtype", "pass", "groups", "hash")  # of a time
MOST_FILE = 15 << 20  # bytes of a file of evidence
MOST_PRINTED = 11_000  # characters


class Visit:
    """The options, the time that is left, and the evidence so far."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        self.args, self.scratch = args, scratch
        self.out: Path = args.out
        self.start = time.monotonic()
        self.end: float = self.start + args.budget - RESERVE
        self.out.mkdir(parents=True, exist_ok=True)
        self.hash, self.program_hash = prepare.hashes()
        self.built: Path = args.prebuilt.absolute()
        self.loads = False  # fastrnn
        self.variants: list[str] = []  # "NAME DTYPE" of every kernel
        self.checked: dict[str, bool] = {}  # "NAME DTYPE ROWS": whether right
        self.bad: set[str] = set()  # "NAME DTYPE" of kernels that are wrong
        self.failures: list[tuple[str, str]] = []  # what, and the gist of why
        self.room = MOST_PRINTED  # what may still be printed
        self.saved = 0.0
        self.card = "cpu"
        self.document: Record = {}
        paths = [str(scratch / "package"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        self.env = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "FASTRNN_CHECK": "0",  # what is named is what runs
        }

    def left(self, limit: float = 1e9) -> float:
        """Seconds, at most so many."""
        return max(min(limit, self.end - time.monotonic()), 0.0)

    def say(self, text: str, log_only: bool = False) -> None:
        """A line for the log, and to see; half of what may be printed is kept for failures."""
        line = f"[{time.monotonic() - self.start:5.1f} s] {text}"
        self.append("log.txt", line + "\n")
        if not log_only and self.room > len(line) + MOST_PRINTED // 2:
            self.room -= len(line) + 1
            print(line, flush=True)

    def append(self, name: str, text: str) -> None:
        """What no longer fits into a file that has to come home is left out."""
        with (self.out / name).open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size + len(text.encode()) > MOST_FILE:
                return
            if size:
                file.seek(size - 1)
                if file.read(1) != b"\n":  # torn by the end of an earlier visit
                    text = "\n" + text
            file.write(text.encode())

    def keep(self, name: str, record: Record) -> None:
        self.append(name, json.dumps({**record, "card": self.card}) + "\n")

    def fail(self, what: str, text: str = "") -> None:
        self.failures.append((what, gist(text)))
        self.append("failures.txt", f"=== {what}\n{shortened(text)}\n\n")

    def save(self, now: bool = True) -> None:
        if now or time.monotonic() > self.saved + SAVE_SECONDS:
            self.saved = time.monotonic()
            write_whole(self.out / f"gpu-{self.card}.json", self.document)

    def last_words(self) -> None:
        """Failures last: what is printed may be cut at its beginning."""
        total = f"{len(self.failures)} failures; {self.out}"
        alike: dict[str, list[str]] = {}
        for what, why in self.failures:
            alike.setdefault(why or what, []).append(what)
        room, shown = self.room - len(total) - 1, []
        for why, whats in alike.items():
            line = whats[0] if why == whats[0] else f"{whats[0]}: {why}"
            line = line[:300] + (f" (and {len(whats) - 1} more)" if whats[1:] else "")
            room -= len(line) + 1
            if room < 0:
                break
            shown.append(line)
        print(*shown, total, sep="\n", flush=True)

    def earlier(self, name: str) -> Iterator[Record]:
        """Evidence of this card, from earlier visits and from this one."""
        for folder in (*self.args.skip, self.out):
            found = read_records(folder / name)
            yield from (r for r in found if r.get("card") == self.card)

    def earlier_rows(self) -> dict[str, Record]:
        rows: dict[str, Record] = {}
        for folder in (*self.args.skip, self.out):
            path = folder / f"gpu-{self.card}.json"
            if path.exists():
                rows |= json.loads(path.read_text())["rows"]
        return rows


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def gist(text: str) -> str:
    """The line that says most, or else the last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern in (
        r'File ".*/test_\w+\.py", line \d+ in test_',  # where a test hung
        r".*: (fatal )?error: ",
        r"========= (?!COMPUTE-SANITIZER)\w",
        r"E  ",
        r"[\w.]*(Error|Exception)\b",
    ):
        found = [line for line in lines if re.match(pattern, line)]
        if found:
            return found[0]
    return lines[-1] if lines else ""


def take(folder: Path, results: Path) -> list[Path]:
    """Merge what a visit has brought home into the results of its card."""
    merged = []
    for path in sorted(folder.glob("gpu-*.json")):
        new, home = json.loads(path.read_text()), results / path.name
        old = json.loads(home.read_text()) if home.exists() else {"rows": {}}
        rows = {key: better(old["rows"].get(key), row) for key, row in new["rows"].items()}
        found = [r for r in read_records(folder / "times.jsonl") if r["card"] == new["card"]]
        new["rows"] = {**old["rows"], **rows}
        for name in ("machine", "steps"):
            new[name] = {**old.get(name, {}), **new[name]}
        new["limits"] = [r["limit"] for r in found if "limit" in r] or old.get("limits", [])
        times = [r for r in found if "ns" in r]
        builds = {r["hash"] for r in times[-1:]}  # what was measured before was left out
        times += [r for r in old.get("times", []) if r["hash"] in builds or not builds]
        new["times"] = list({tuple(map(r.get, KEY)): r for r in reversed(times)}.values())[::-1]
        of_cpu = new.pop("cpu", None)
        write_whole(home, {**old, **new})
        merged.append(home)
        if of_cpu:
            merged.append(results / "cpu16.json")
            write_whole(merged[-1], of_cpu)
    return merged


def better(old: Record | None, new: Record) -> Record:
    """The new row, unless it failed where the same kernels were measured before."""
    if old and old["hash"] == new["hash"] and "failed" in new and "failed" not in old:
        return old
    return new
