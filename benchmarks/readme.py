"""The blocks of README.md that the report writes, each between its marks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.compare import MODES, peer_names
from benchmarks.gpu import report as gpu_report
from benchmarks.markdown import geometric_mean, listed, mean_and_least, reflow, span
from benchmarks.page import NOTHING, class_table, peer_counts
from benchmarks.provenance import capability, source
from benchmarks.results import Files, cpu_columns, of_kind, one_thread, with_avx512
from benchmarks.tables import peer_ratios, ratios_of


def headline(files: Files) -> str:
    """The range of the means of the classes, for the top of the page."""
    parts = []
    for d in cpu_columns(files):
        rows = one_thread(d)
        means = [
            geometric_mean(ratios_of(rows, kind=kind, mode=mode))
            for kind in {r["kind"] for r in rows}
            for mode in MODES
        ]
        parts.append(f"{span(means)} with {capability(d['machine'])}")
    if not parts:
        return NOTHING
    return f"Speedup over `torch.nn.RNN` on one CPU thread, class means: {listed(parts)}."


def peers_line(files: Files) -> Iterator[str]:
    """What the time of other libraries is, on one thread."""
    for document in of_kind(files, "peers").values():
        rows = document["rows"]
        if rows[0]["threads"] == 1:
            names = peer_names(rows)
            means = [f"{name} {mean_and_least(peer_ratios(rows, name))}" for name in names]
            ahead, cells = peer_counts(document)
            yield f"Over {listed(means)} in both;"
            yield f"they win {ahead} of {cells} comparisons."


def speed(files: Files) -> str:
    columns = cpu_columns(files)
    if not columns:
        return NOTHING
    title = (
        "Speedup on one CPU thread, geometric mean (and least); training is forward and backward "
        "alone:"
    )
    measured = dict.fromkeys(source(d["machine"]) for d in with_avx512(columns) or columns)
    words = "\n".join([*(f"Measured on {x}." for x in measured), *peers_line(files)])
    table = class_table(columns, with_capability=True)
    return reflow("\n\n".join([title, table, words])).rstrip()


def gpu(files: Files) -> str:
    lines = []
    for document in of_kind(files, "gpu").values():
        if words := gpu_report.readme_line(document):
            where = source(document["machine"])
            lines += [f"On a GPU, eager, over cuDNN: {words} ({where}).", ""]
    return reflow("\n".join(lines)).rstrip() if lines else "On a GPU nothing has been measured yet."


def replaced(text: str, name: str, block: str) -> str:
    """The text with another block between its two marks, wherever they stand."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected one {begin} and after it one {end}")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{block}\n{end}{after}"


def write(path: Path, files: Files) -> None:
    text = path.read_text()
    for name, block in [
        ("headline", headline(files)),
        ("speed", speed(files)),
        ("gpu-table", gpu(files)),
    ]:
        text = replaced(text, name, block)
    path.write_text(text)
