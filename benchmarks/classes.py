"""The classes of shapes as a reader would name them, with their sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.markdown import span

Record = dict[str, Any]

# Kind: name, and whether its sizes say more than the name.
NAMES = {
    "tiny": ("tiny", True),
    "small": ("small", True),
    "cliff": ("small to medium", True),
    "medium": ("medium", True),
    "large": ("large", True),
    "wide": ("many rows", True),
    "long": ("long sequences", True),
    "few-rows": ("one row or one step", True),
    "packed": ("packed sequences", True),
    "DeepBench": ("sizes of DeepBench, ReLU", True),
    "stack": ("several layers or two directions", True),
    "short": ("few steps", True),
    "variant": ("ReLU, bidirectional, odd sizes, packed, other dtypes", False),
    "example": ("the RNNs of the examples", False),
}


def name_of(kind: str) -> str:
    return NAMES[kind][0] if kind in NAMES else kind


def describe(kind: str, sizes: Iterable[tuple[int, int, int]]) -> str:
    """Name and sizes, from batch, steps and hidden units of its rows."""
    name, with_sizes = NAMES.get(kind, (kind, True))
    if not with_sizes:
        return name
    batches, steps, units = zip(*sizes, strict=True)
    words = [f"{span(units)} units", f"batch {span(batches)}"]
    words.append(f"{span(steps)} step{'' if {*steps} == {1} else 's'}")
    return f"{name}: {', '.join(words)}"


def sizes_of(rows: Sequence[Record]) -> list[tuple[int, int, int]]:
    shapes = [r["shape"] for r in rows]
    return [(s["batch"], s["seq_len"], s["hidden_size"]) for s in shapes]


def kinds_of(rows: Sequence[Record]) -> dict[str, str]:
    """Of the rows of `benchmarks.compare`: each class, and how it is described."""
    found: dict[str, list[Record]] = {}
    for r in rows:
        found.setdefault(r["kind"], []).append(r)
    return {kind: describe(kind, sizes_of(of_kind)) for kind, of_kind in found.items()}
