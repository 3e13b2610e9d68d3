"""Tables, numbers and verdicts as the report shows them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.compare import verdict
from benchmarks.shapes import Goal


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def number(x: float | None) -> str:
    """About three digits."""
    if x is None:
        return ""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def judged(ratio: float, goal: Goal) -> str:
    words = {"below": "below the goal", "met": "goal met", "stretch": "aim met"}
    return ("slower, " if ratio < 1 else "") + words[verdict(ratio, goal)]
