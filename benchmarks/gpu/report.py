"""The section of the report that results file of `benchmarks.gpu.visit` becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from benchmarks import plots
from benchmarks.compare import geometric_mean
from benchmarks.gpu.shapes import MODES, MUST_MEAN, SETTINGS, Row, plan
from benchmarks.markdown import judged, number, table
from benchmarks.shapes import NEVER_BELOW

Record = dict[str, Any]
FORMS = {"eager": "eager", "graph": "in a CUDA graph"}

EXPLANATION = """\
- Times are those of CUDA events: medians of interleaved rounds, each a repetition of the same step
  on the same tensors, so the L2 cache is warm. Both modules run eagerly, and captured in a CUDA
  graph that is replayed. µs/step is the whole time by steps and layers.
- "Of the bound" is the share of the least time that the recurrence can take, by the model in
  `benchmarks/gpu/model.py`, which is an estimate. Input products, weight gradients and launches
  come on top of it.
- Goals are for the eager ratio. Memory is the peak that a step adds, ours by nn.RNN's. Error is
  ours by nn.RNN's against float64, of the result in which that is largest.
- torch copies nn.RNN's weights at each call in bfloat16, and warns: `flatten_parameters` leaves
  that type out. The times are with it.
- TF32: products of float32 may round their factors, as in nn.RNN unless it is told otherwise.
"""


def measured_rows(document: Record) -> list[tuple[Row, Record]]:
    """In the plan's order, class by class."""
    found, rows = document["rows"], plan(toy=document["device"] == "cpu")
    kinds = list(dict.fromkeys(row.shape.kind for row in rows))
    pairs = [(row, found[str(row)]) for row in rows if str(row) in found]
    return sorted(pairs, key=lambda pair: kinds.index(pair[0].shape.kind))


def value_of(record: Record, form: str, what: str, name: str | None = None) -> Any:
    """A number of a form, or None where it was not measured."""
    found = record.get("forms", {}).get(form, {}).get(what)
    return found.get(name) if name and found else found


def ratio_of(record: Record, form: str) -> float | None:
    found: float | None = value_of(record, form, "ratio")
    return found


def facts(document: Record) -> str:
    machine = document["machine"]
    cells = [(k.replace("_", " "), v) for k, v in machine.items() if k != "threads"]
    cells.append(("command", f"`{document['command']}`"))
    shown = [(k, number(v) if isinstance(v, float) else v) for k, v in cells]
    return "\n".join(f"- {k}: {v}" for k, v in shown) + "\n"


def mean_and_least(ratios: Iterable[float | None]) -> str:
    known = [x for x in ratios if x is not None]
    return f"{number(geometric_mean(known))} ({number(min(known))})" if known else ""


def summary(rows: Sequence[tuple[Row, Record]]) -> str:
    """Geometric mean and least ratio of each class, and of all."""
    columns = [(mode, form) for mode in MODES for form in FORMS]
    kinds = dict.fromkeys(row.shape.kind for row, _ in rows)
    groups: list[tuple[str, Callable[[Row], bool]]] = [
        *((kind, lambda row, kind=kind: row.shape.kind == kind) for kind in kinds),
        *((str(s), lambda row, s=s: row.setting == s) for s in SETTINGS),
        ("all", lambda row: True),
    ]
    lines = [
        [name, *(mean_and_least(ratio_of(r, form) for row, r in rows
                                if chosen(row) and row.mode == mode)
                 for mode, form in columns)]
        for name, chosen in groups
    ]  # fmt: skip
    header = ["class", *(f"{mode}, {FORMS[form]}" for mode, form in columns)]
    ratios = [x for _, r in rows if (x := ratio_of(r, "eager")) is not None]
    if not ratios:
        return "fastrnn has no kernels for this device: what there is to beat.\n"
    below = sum(x < NEVER_BELOW.at_once for x in ratios)
    missed = sum(x < row.goal.at_once for row, r in rows if (x := ratio_of(r, "eager")) is not None)
    return (
        f"Ratio to nn.RNN, geometric mean (and least); the mean of all has to reach {MUST_MEAN}.\n"
        f"Of {len(ratios)} eager rows {below} are below {NEVER_BELOW.at_once}, {missed} below "
        f"their goals. Rows that failed: {sum('failed' in r for _, r in rows)}.\n\n"
        + table(header, lines)
    )


def readme_table(documents: Sequence[Record]) -> str:
    """Of each card: geometric mean and least of the eager ratios, by class and mode."""
    measured = [(document, measured_rows(document)) for document in documents]
    measured = [(d, rows) for d, rows in measured if any(ratio_of(r, "eager") for _, r in rows)]
    if not measured:
        return "On a GPU nothing has been measured yet."
    columns = [(d, rows, mode) for d, rows in measured for mode in MODES]
    header = ["class", *(f"{d['machine'].get('gpu', d['card'])}, {m}" for d, _, m in columns)]
    kinds = dict.fromkeys(row.shape.kind for _, rows, _ in columns for row, _ in rows)
    lines = [
        [kind, *(mean_and_least(ratio_of(r, "eager") for row, r in rows
                                if (row.shape.kind, row.mode) == (kind, mode))
                 for _, rows, mode in columns)]
        for kind in kinds
    ]  # fmt: skip
    title = (
        "How many times as fast as `torch.nn.RNN` (cuDNN) on a GPU, eager, in float32 (TF32 and "
        "exact),\nfloat16 and bfloat16: geometric mean of each class, and the least of it; "
        f"{sum(len(rows) for _, rows in measured)} rows in all."
    )
    return f"{title}\n\n{table(header, lines).rstrip()}"


def quotient(record: Record | None) -> str:
    """Of two numbers by name, ours by nn.RNN's."""
    if not record or not record.get("nn.RNN") or "fastrnn" not in record:
        return ""
    return number(record["fastrnn"] / record["nn.RNN"])


def notes_of(row: Row, record: Record, sources: str) -> str:
    notes = []
    ratio = ratio_of(record, "eager")
    if ratio is not None:
        notes.append(judged(ratio, row.goal))
    if "failed" in record:
        notes.append(f"failed: {record['failed']}")
    if record.get("error", {}).get("wrong"):
        notes.append(f"wrong: {record['error']['result']}")
    for name, why in (value_of(record, "graph", "refused") or {}).items():
        notes.append(f"{name} not captured: {why}")
    if record["hash"] != sources:
        notes.append(f"of other sources, {record['hash']}")
    return "; ".join(notes).replace("|", "/")


def row_cells(row: Row, record: Record, ours: bool, sources: str) -> list[str]:
    cells = [str(row).split(" ", 1)[1].removesuffix(f" {row.mode}")]
    for form in FORMS:
        cells.append(number(value_of(record, form, "microseconds", "nn.RNN")))
        if ours:
            cells.append(number(value_of(record, form, "microseconds", "fastrnn")))
            ratio = ratio_of(record, form)
            cells.append("" if ratio is None else f"**{number(ratio)}**")
    name = "fastrnn" if ours else "nn.RNN"
    for form in FORMS:
        cells.append(number(value_of(record, form, "microseconds_per_step", name)))
    share = value_of(record, "graph", "fraction_of_bound", name)
    cells.append("" if share is None else f"{share:.0%}")
    if ours:
        error = record.get("error", {}).get("ratio")
        cells += [
            quotient(record.get("peak_bytes")),
            error if isinstance(error, str) else number(error),
        ]
        cells += [number(row.goal.at_once), number(row.goal.stretch)]
        cells.append((record.get("kernel") or "").removeprefix("cuda "))
    return [*cells, notes_of(row, record, sources)]


def row_tables(name: str, document: Record, rows: Sequence[tuple[Row, Record]]) -> Iterator[str]:
    ours = any(record.get("kernel") for _, record in rows)
    header = ["shape"]
    for form in FORMS:
        header += [f"nn.RNN µs, {form}"]
        header += [f"fastrnn µs, {form}", "ratio"] if ours else []
    header += [f"µs/step, {form}" for form in FORMS] + ["of the bound, graph"]
    header += ["memory", "error", "goal", "aim", "kernel"] if ours else []
    for mode in MODES:
        for kind in dict.fromkeys(row.shape.kind for row, _ in rows):
            chosen = [p for p in rows if (p[0].mode, p[0].shape.kind) == (mode, kind)]
            if chosen:
                yield f"### {name}: {kind}, {mode}\n"
                yield table(
                    [*header, ""],
                    [row_cells(*pair, ours, document["machine"]["hash"]) for pair in chosen],
                )


def plot_ratios(folder: Path, name: str, rows: Sequence[tuple[Row, Record]]) -> Path | None:
    """A point for each row: how many times faster than nn.RNN, by class and dtype."""
    panels = [(m, f) for m in MODES for f in FORMS
              if any(ratio_of(r, f) for row, r in rows if row.mode == m)]  # fmt: skip
    if not panels:
        return None
    kinds = list(dict.fromkeys(row.shape.kind for row, _ in rows))
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2 + 2.8 * len(panels), 1.2 + 0.4 * len(kinds)), sharey=True,
        squeeze=False,
    )  # fmt: skip
    for ax, (mode, form) in zip(axes[0], panels, strict=True):
        for i, setting in enumerate(SETTINGS):
            points = [(ratio, kinds.index(row.shape.kind) + 0.15 * (i - 1.5)) for row, r in rows
                      if row.mode == mode and row.setting == setting
                      and (ratio := ratio_of(r, form)) is not None]  # fmt: skip
            x, y = zip(*points, strict=True) if points else ((), ())
            ax.plot(x, y, ".", color=f"C{i}", label=str(setting), markersize=5)
        ax.axvline(1, color="black", linewidth=0.8)
        ax.set_xscale("log")
        plots.plain_ticks(ax.xaxis)
        ax.grid(axis="x", alpha=0.3)
        ax.set_title(f"{mode}, {FORMS[form]}", fontsize=9)
        ax.set_xlabel("nn.RNN / fastrnn")
    axes[0, 0].set_yticks(range(len(kinds)), kinds)
    axes[0, 0].set_ylim(len(kinds) - 0.4, -0.6)
    axes[0, 0].legend(fontsize=7)
    return plots.save(figure, folder, f"ratio-{name}")


def section(name: str, document: Record, images: Path) -> str:
    rows = measured_rows(document)
    sections = [f"## {name}\n", facts(document)]
    if rows:
        sections += [EXPLANATION, summary(rows)]
    path = plot_ratios(images, name, rows)
    if path is not None:
        sections.append(f"![ratio by class](images/{path.name})\n")
    sections += row_tables(name, document, rows)
    return "\n".join(sections)
