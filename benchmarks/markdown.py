"""Tables and numbers as the report shows them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from benchmarks.compare import geometric_mean, verdict
from benchmarks.shapes import Goal

WIDTH = 108  # of a line of text
AS_IT_IS = re.compile(r"[|#]|!\[|<!--")  # how a line begins that is not broken
WORD = re.compile(r"(?:`[^`]*`|\[[^\]]*\]\([^)]*\)|[^\s`])+")  # code and links are whole


def reflow(text: str) -> str:
    """Break the lines of paragraphs and lists anew."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = ["\n".join(_reflowed(part.split("\n"))) for part in parts[::2]]
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).rstrip() + "\n"


def _reflowed(lines: Sequence[str]) -> Iterator[str]:
    block: list[str] = []
    for line in lines:
        whole = AS_IT_IS.match(line) or not line.strip()
        if whole or line.startswith("- "):
            yield from _broken(block)
            block = []
        if whole:
            yield line
        else:
            block.append(line)
    yield from _broken(block)


def _broken(block: Sequence[str]) -> Iterator[str]:
    """The words of a paragraph, or of an item of a list, in lines."""
    if not block:
        return
    indent, line = "  " if block[0].startswith("- ") else "", ""
    for word in WORD.findall(" ".join(block)):
        if line not in ("", "-") and len(line) + 1 + len(word) > WIDTH:
            yield line
            line = indent + word
        else:
            line = f"{line} {word}" if line else word
    yield line


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def number(x: float | None) -> str:
    """About three digits."""
    if x is None:
        return ""
    return f"{x:.0f}" if abs(x) >= 100 else f"{x:.1f}" if abs(x) >= 10 else f"{x:.2f}"


def mean_and_least(ratios: Iterable[float | None]) -> str:
    """The geometric mean and, in brackets, the least."""
    known = [x for x in ratios if x is not None]
    return f"{number(geometric_mean(known))} ({number(min(known))})" if known else ""


def span(values: Iterable[float]) -> str:
    """The least and the greatest, or the one that they are."""
    least, greatest = min(found := list(values)), max(found)
    ends = [number(x) if isinstance(x, float) else str(x) for x in (least, greatest)]
    return "–".join(dict.fromkeys(ends))


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def judged(ratio: float, goal: Goal) -> str:
    """What is amiss with a ratio; nothing if it meets its goal."""
    words = ["slower"] if ratio < 1 else []
    words += ["below the goal"] if verdict(ratio, goal) == "below" else []
    return ", ".join(words)
