"""The two blocks of README.md that the report writes, each between its marks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.compare import peer_names
from benchmarks.gpu import report as gpu_report
from benchmarks.markdown import listed, mean_and_least, reflow
from benchmarks.page import NOTHING, class_table, peer_counts
from benchmarks.provenance import source
from benchmarks.results import Files, cpu_columns, of_kind, with_avx512
from benchmarks.tables import peer_ratios

PLACE = "https://github.com/fastrnn/fastrnn"  # the README is shown outside the repository too
PAGE = f"{PLACE}/blob/main/docs/benchmarks.md"
PICTURE = f"{PLACE}/raw/main/docs/images/speed.png"


def peers_line(files: Files) -> Iterator[str]:
    """What the time of other libraries is, on one thread."""
    for document in of_kind(files, "peers").values():
        rows = document["rows"]
        if rows[0]["threads"] == 1:
            names = peer_names(rows)
            means = [f"{name} {mean_and_least(peer_ratios(rows, name))}" for name in names]
            ahead, cells = peer_counts(document)
            yield f"Other libraries' time divided by ours: {listed(means)}. They are ahead in"
            yield f"{ahead} of {cells} cells, which [the benchmarks]({PAGE}) name."


def speed(files: Files) -> str:
    documents = with_avx512(cpu_columns(files)) or cpu_columns(files)
    if not documents:
        return NOTHING
    title = (
        "How many times as fast as `torch.nn.RNN` in float32, on one thread of a CPU: geometric "
        "mean (and least) of each class. Training is forward and backward of the RNN alone."
    )
    where = [f"{source(d['machine'])}: `{d['command']}`." for d in documents]
    picture = f"![Speed relative to torch.nn.RNN, by class]({PICTURE})"
    words = "\n".join([*where, *peers_line(files)])
    table = class_table(documents, with_capability=False)
    return reflow("\n\n".join([title, table, words, picture])).rstrip()


def gpu(files: Files) -> str:
    lines = []
    for document in of_kind(files, "gpu").values():
        if words := gpu_report.readme_line(document):
            where = source(document["machine"])
            lines += [f"On a GPU, beside cuDNN: {words} ({where}).", ""]
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
    for name, block in [("speed", speed(files)), ("gpu-table", gpu(files))]:
        text = replaced(text, name, block)
    path.write_text(text)
