"""The results files by what they hold, and the cells that the pages say something of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.compare import peer_names
from benchmarks.provenance import capability, short_processor

Record = dict[str, Any]
Files = dict[str, Record]  # by name, without the suffix


def kind_of(document: Record) -> str:
    """cpu, peers, sweep, leaky, gpu, kernels or profile; "" of a file without measured times."""
    marks = {"gpu_visit": "gpu", "profile": "profile", "benchmarks": "kernels", "leaky": "leaky"}
    for name, kind in marks.items():
        if name in document:
            return kind
    rows = document.get("rows", [])
    if not rows:
        return ""
    if all(r["kind"].startswith("sweep") for r in rows):
        return "sweep"
    return "peers" if peer_names(rows) else "cpu"


def load(folder: Path) -> Files:
    documents = {p.stem: json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))}
    return {name: document for name, document in documents.items() if kind_of(document)}


def of_kind(files: Files, kind: str) -> Files:
    return {name: document for name, document in files.items() if kind_of(document) == kind}


def page_of(name: str, document: Record) -> str:
    """The page of a file: its name, and of cpu.json the instruction set, too."""
    machine = document.get("machine", {})
    return f"cpu-{machine['torch_capability'].lower()}.md" if name == "cpu" else f"{name}.md"


def date_of(document: Record) -> str:
    date: str = (document.get("machine") or document.get("machine_info") or {}).get("date", "")
    return date


def cpu_columns(files: Files) -> list[Record]:
    """The newest results of each processor and instruction set, AVX-512 first."""
    found: dict[tuple[str, str], Record] = {}
    for document in sorted(of_kind(files, "cpu").values(), key=date_of):
        machine = document["machine"]
        found[capability(machine), short_processor(machine)] = document
    newest = sorted(found.items(), key=lambda pair: date_of(pair[1]), reverse=True)
    return [document for _, document in sorted(newest, key=lambda pair: pair[0][0] != "AVX-512")]


def with_avx512(documents: Sequence[Record]) -> list[Record]:
    return [d for d in documents if capability(d["machine"]) == "AVX-512"]


def one_thread(document: Record) -> list[Record]:
    return [r for r in document["rows"] if r["threads"] == 1]


def lost(document: Record) -> Iterator[tuple[Record, str, float]]:
    """Rows in which another library is ahead, with its name and ratio."""
    for name in peer_names(document["rows"]):
        for r in document["rows"]:
            contestant = r["contestants"].get(name)
            if contestant and contestant["ratio_to_fastrnn"] < 1:
                yield r, name, contestant["ratio_to_fastrnn"]


def call_microseconds(files: Files) -> dict[tuple[str, str, str], float]:
    """Of the calls that were timed: sizes, mode and form to microseconds."""
    return {
        (p["sizes"], p["mode"], p["form"]): b["stats"]["median"] * 1e6
        for document in of_kind(files, "kernels").values()
        for b in document["benchmarks"]
        if b["name"].startswith("test_overhead") and (p := b["params"])
    }
