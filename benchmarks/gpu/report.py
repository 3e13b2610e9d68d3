"""The page of the report that a results file of `benchmarks.gpu.visit` becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.classes import describe
from benchmarks.gpu.shapes import MODES, MUST_MEAN, SETTINGS, Row, plan
from benchmarks.markdown import judged, listed, mean_and_least, number, table
from benchmarks.provenance import facts
from benchmarks.shapes import NEVER_BELOW

Record = dict[str, Any]
Rows = Sequence[tuple[Row, Record]]

FORMS = {"eager": "eager", "graph": "in a CUDA graph"}
SETTINGS_WORDS = "float32 (TF32 and exact), float16 and bfloat16"

EXPLANATION = """\
- Times are those of CUDA events: medians of interleaved rounds. Each round repeats the same step on
  the same tensors, so the L2 cache is warm. Both modules run eagerly, and captured in a CUDA graph
  that is replayed. µs/step is the whole time divided by steps and layers.
- "Of the bound" is the share of the least time that the recurrence can take, which the model in
  `benchmarks/gpu/model.py` estimates. Input products, weight gradients and launches come on top.
- Goals are for the eager ratio. Memory is the peak that a step adds, divided by that of nn.RNN.
  Error is the error against float64 divided by that of nn.RNN, of the result in which it is
  largest.
- In bfloat16, torch copies nn.RNN's weights at each call, and warns: `flatten_parameters` leaves
  that type out. Its times include the copy.
- TF32: products of float32 may round their factors, as nn.RNN's do by default.
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


def kinds_of(rows: Rows) -> dict[str, str]:
    """Each class, and how it is described."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for row, _ in rows:
        s = row.shape
        found.setdefault(s.kind, []).append((s.batch, s.seq_len, s.hidden_size))
    return {kind: describe(kind, sizes) for kind, sizes in found.items()}


def class_table(rows: Rows, forms: Sequence[str]) -> str:
    """Geometric mean and least ratio of each class, of each setting, and of all."""
    columns = [(mode, form) for mode in MODES for form in forms]
    groups = [
        *((words, [p for p in rows if p[0].shape.kind == kind])
          for kind, words in kinds_of(rows).items()),
        *((str(s), [p for p in rows if p[0].setting == s]) for s in SETTINGS),
        ("all", rows),
    ]  # fmt: skip
    lines = [
        [name, *(mean_and_least(ratios_of(chosen, form, mode)) for mode, form in columns)]
        for name, chosen in groups
    ]
    title = [f"{mode}, {FORMS[form]}" if len(forms) > 1 else mode for mode, form in columns]
    return table(["class", *title], lines)


def ratios_of(rows: Rows, form: str, mode: str) -> list[float | None]:
    return [ratio_of(r, form) for row, r in rows if row.mode == mode]


def slower(rows: Rows) -> str:
    """Which rows are slower than nn.RNN, in each form."""
    lines = []
    for form, words in FORMS.items():
        known = [(row, x) for row, r in rows if (x := ratio_of(r, form)) is not None]
        below = [f"`{row}` ({number(x)})" for row, x in known if x < 1]
        where = words[0].upper() + words[1:]
        if below:
            lines.append(f"- {where}, slower than `torch.nn.RNN`: {listed(below)}.")
        elif known:
            lines.append(f"- {where}, none of {len(known)} rows is slower than `torch.nn.RNN`.")
    return "\n".join(lines) + "\n"


def summary(rows: Rows) -> str:
    eager = [(row, x) for row, r in rows if (x := ratio_of(r, "eager")) is not None]
    if not eager:
        return "fastrnn has no kernels for this device: what there is to beat.\n"
    below = sum(x < NEVER_BELOW.at_once for _, x in eager)
    missed = sum(x < row.goal.at_once for row, x in eager)
    failed = sum("failed" in r for _, r in rows)
    return (
        "Ratio to `torch.nn.RNN`: geometric mean, and the least in brackets. The mean of all has "
        f"to reach {MUST_MEAN}. Of {len(eager)} eager rows {below} are below "
        f"{NEVER_BELOW.at_once}, {missed} below their goals. Rows that failed: {failed}.\n\n"
        + class_table(rows, list(FORMS))
    )


def readme_line(document: Record) -> str:
    """The geometric mean and the least of the eager ratios; nothing if there are none."""
    rows = measured_rows(document)
    words = [
        f"{cell} in {mode}"
        for mode in MODES
        if (cell := mean_and_least(ratios_of(rows, "eager", mode)))
    ]
    return f"{listed(words)}, over {len(rows)} rows" if words else ""


def quotient(record: Record | None) -> str:
    """Of two numbers by name, ours by nn.RNN's."""
    if not record or not record.get("nn.RNN") or "fastrnn" not in record:
        return ""
    return number(record["fastrnn"] / record["nn.RNN"])


def notes_of(row: Row, record: Record, sources: str) -> str:
    notes = []
    ratio = ratio_of(record, "eager")
    if ratio is not None:
        notes += filter(None, [judged(ratio, row.goal)])
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
        cells.append(number(row.goal.at_once))
        cells.append((record.get("kernel") or "").removeprefix("cuda "))
    return [*cells, notes_of(row, record, sources)]


def row_tables(document: Record, rows: Rows) -> Iterator[str]:
    ours = any(record.get("kernel") for _, record in rows)
    header = ["shape"]
    for form in FORMS:
        header += [f"nn.RNN µs, {form}"]
        header += [f"fastrnn µs, {form}", "ratio"] if ours else []
    header += [f"µs/step, {form}" for form in FORMS] + ["of the bound, graph"]
    header += ["memory", "error", "goal", "kernel"] if ours else []
    for mode in MODES:
        chosen = [pair for pair in rows if pair[0].mode == mode]
        if chosen:
            yield f"## {mode.capitalize()}\n"
            cells = [row_cells(*pair, ours, document["machine"]["hash"]) for pair in chosen]
            yield table([*header, ""], cells)


def plot_ratios(folder: Path, name: str, rows: Rows) -> Path | None:
    """A point for each row: how many times faster than nn.RNN, by class and dtype."""
    kinds = list(kinds_of(rows))
    panels = {
        f"{mode}, {FORMS[form]}": {
            str(setting): points
            for setting in SETTINGS
            if (points := [(kinds.index(row.shape.kind), x) for row, r in rows
                           if (row.mode, row.setting) == (mode, setting)
                           and (x := ratio_of(r, form)) is not None])
        }
        for mode in MODES
        for form in FORMS
    }  # fmt: skip
    panels = {title: series for title, series in panels.items() if series}
    if not panels:
        return None
    return plots.strips(folder, f"ratio-{name}", panels, kinds, "times as fast as torch.nn.RNN")


def section(name: str, document: Record, images: Path) -> str:
    rows = measured_rows(document)
    sections = [facts(document)]
    if rows:
        sections += [EXPLANATION, summary(rows)]
    path = plot_ratios(images, name, rows)
    if path is not None:
        sections.append(f"![Ratio of each shape, by class](../images/{path.name})\n")
    sections += row_tables(document, rows)
    return "\n".join(sections)
