"""The full tables behind docs/benchmarks.md, a page for each results file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.classes import kinds_of, name_of
from benchmarks.compare import MODES, peer_names, scaling, verdict
from benchmarks.markdown import judged, mean_and_least, number, table
from benchmarks.provenance import facts
from benchmarks.shapes import SCALING_GOALS, SGEMM_GOALS, Goal

Record = dict[str, Any]

COLUMNS = f"""\
- A row's name gives batch B, time steps T, input size I, hidden size H and, where there is more
  than one, layers L.
- A ratio is another library's time divided by ours: above 1, fastrnn is faster.
- GFLOP/s count 2·T·B·H·(I+H) of each layer and direction, three times that in training.
- "Of matmul" is their share of the fastest matrix product that torch offers on the machine in the
  same dtype, measured in the same run. Above 100% torch has no fast product in that dtype.
- "Weights GB/s" counts the weights once, in training three times: read, read, written.
- The goal is the least ratio that we accept. The last column says where a row misses it, and where
  a large row misses {SGEMM_GOALS["inference"].at_once:.0%} (inference) or
  {SGEMM_GOALS["training"].at_once:.0%} (training) of the matrix product. `noisy` marks a row
  during which something else used the machine, in each of three tries.
"""


def summary(rows: Sequence[Record]) -> str:
    """Geometric mean and least ratio to nn.RNN of each class."""
    columns = [(n, mode) for n in sorted({r["threads"] for r in rows}) for mode in MODES]
    header = ["class", *(f"{mode}, {threads_of(n)}" for n, mode in columns)]
    lines = [
        [
            words,
            *(mean_and_least(ratios_of(rows, kind=kind, threads=n, mode=m)) for n, m in columns),
        ]
        for kind, words in kinds_of(rows).items()
    ]
    noisy = sum(r["noisy"] for r in rows)
    title = "Ratio to `torch.nn.RNN`: geometric mean of each class, and the least in brackets."
    return f"{title}\nNoisy: {noisy} of {len(rows)} rows.\n\n{table(header, lines)}"


def threads_of(n: int) -> str:
    return "one thread" if n == 1 else f"{n} threads"


def chosen(rows: Iterable[Record], **wanted: Any) -> list[Record]:
    return [r for r in rows if all(r[k] == v for k, v in wanted.items())]


def ratios_of(rows: Iterable[Record], **wanted: Any) -> list[float]:
    return [r["ratio"] for r in chosen(rows, **wanted)]


def peer_ratios(rows: Iterable[Record], name: str, **wanted: Any) -> list[float]:
    found = chosen(rows, **wanted)
    return [c["ratio_to_fastrnn"] for r in found if (c := r["contestants"].get(name))]


def row_cells(r: Record, peers: Sequence[str]) -> list[str]:
    goal = Goal(**r["goal"])
    times = {name: c["microseconds"] for name, c in r["contestants"].items()}
    notes = [judged(r["ratio"], goal), "noisy" if r["noisy"] else ""]
    if r["share_goal"] and verdict(r["share_of_gemm"], Goal(**r["share_goal"])) == "below":
        notes.append("share below the goal")
    ratios = [r["contestants"].get(name, {}).get("ratio_to_fastrnn") for name in peers]
    return [
        r["id"],
        number(times["nn.RNN"]),
        number(times["fastrnn"]),
        f"**{number(r['ratio'])}**",
        *map(number, ratios),
        number(r["gflops"]),
        f"{r['share_of_gemm']:.0%}",
        number(r["weight_gbytes"]) if r["kind"] == "few-rows" else "",
        number(goal.at_once),
        ", ".join(filter(None, notes)),
    ]


def row_tables(rows: Sequence[Record]) -> Iterator[str]:
    for threads in sorted({r["threads"] for r in rows}):
        for mode in MODES:
            group = chosen(rows, threads=threads, mode=mode)
            if not group:
                continue
            peers = peer_names(group)
            header = ["shape", "nn.RNN µs", "fastrnn µs", "nn.RNN / fastrnn"]
            header += [f"{peer} / fastrnn" for peer in peers]
            header += ["GFLOP/s", "of matmul", "weights GB/s", "goal", ""]
            yield f"## {mode.capitalize()}, {threads_of(threads)}\n"
            yield table(header, [row_cells(r, peers) for r in group])


def scaling_table(rows: Sequence[Record]) -> Iterator[str]:
    faster = scaling(rows)
    if faster:
        kinds = {r["id"]: r["kind"] for r in rows}
        lines = []
        for (shape, mode), ratio in faster.items():
            goal = SCALING_GOALS.get(kinds[shape])
            lines.append([f"{shape}, {mode}", number(ratio), judged(ratio, goal) if goal else ""])
        yield "## One thread's time divided by that of two\n"
        yield table(["shape", "ratio", ""], lines)


def comparison(name: str, document: Record, images: Path) -> str:
    """The page of a file of `benchmarks.compare`, with other libraries or without."""
    rows = document["rows"]
    parts = [facts(document), COLUMNS, summary(rows)]
    others = peer_names(rows)
    draw = plots.peers if others else plots.ratios
    shown = "other libraries" if others else "torch.nn.RNN"
    path = draw(images, name, rows)
    parts.append(f"![Ratio to {shown}, by class](../images/{path.name})\n")
    return "\n".join([*parts, *row_tables(rows), *scaling_table(rows)])


def sweep(name: str, document: Record, images: Path) -> str:
    """The page of a file of `benchmarks.compare --sweep`."""
    rows, parts = document["rows"], [facts(document)]
    for title, path in plots.sweeps(images, name, rows):
        parts.append(f"![{title}](../images/{path.name})\n")
    for kind in dict.fromkeys(r["kind"] for r in rows):
        swept = kind.removeprefix("sweep-").replace("hidden", "hidden size")
        parts += [f"## By {swept}\n", "Microseconds per time step.\n"]
        parts.append(
            table(
                ["shape", "nn.RNN", "fastrnn", "nn.RNN / fastrnn"],
                [
                    [
                        f"{r['id']}, {r['mode']}",
                        *(per_step(r, contestant) for contestant in ("nn.RNN", "fastrnn")),
                        f"**{number(r['ratio'])}**",
                    ]
                    for r in chosen(rows, kind=kind)
                ],
            )
        )
    return "\n".join(parts)


def per_step(r: Record, contestant: str) -> str:
    return number(r["contestants"][contestant]["microseconds"] / r["shape"]["seq_len"])


# Of pytest-benchmark: the test's name, title, header.
KERNELS_HEADER = ["call", "instructions", "µs", "GFLOP/s", "of multiply-adds", "of matmul"]
MICRO = {
    "test_kernels": (
        "Kernels by instruction set",
        [*KERNELS_HEADER, "weights GB/s", "memory GB/s"],
    ),
    "test_overhead": ("Calls", ["call", "form", "µs"]),
    "test_step": ("Single time steps", ["step", "form", "µs"]),
    "test_derivatives": ("Derivatives without a kernel", ["derivative", "class", "µs"]),
}


def micro_titles(document: Record) -> list[str]:
    """What a file of pytest-benchmark has."""
    names = {b["name"].partition("[")[0] for b in document["benchmarks"]}
    return [title for test, (title, _) in MICRO.items() if test in names]


def micro_cells(b: Record) -> list[str]:
    info, p, time = b["extra_info"], b["params"], number(b["stats"]["median"] * 1e6)
    match b["name"].partition("[")[0]:
        case "test_kernels":
            shares = [info.get(f"share_of_{limit}") for limit in ("fma", "gemm")]
            memory = [info.get("weight_gbytes"), info.get("read_gbytes")]
            return [
                f"{info['shape']}, {info['mode']}",
                info["instruction_set"],
                time,
                number(info["gflops"]),
                *("" if share is None else f"{share:.0%}" for share in shares),
                *map(number, memory),
            ]
        case "test_overhead":
            return [f"{p['sizes']}, {p['mode']}", p["form"], time]
        case "test_step":
            return [f"{p['sizes']}, inference", p["form"], time]
        case _:
            return [f"{p['derivative']}, {p['sizes']}", p["cls"], time]


def microbenchmarks(document: Record) -> str:
    """The page of a file of pytest-benchmark: kernels by instruction set, calls, derivatives."""
    parts = [facts(document)]
    for test, (title, header) in MICRO.items():
        found = [b for b in document["benchmarks"] if b["name"].partition("[")[0] == test]
        if found:
            parts += [f"## {title}\n", table(header, map(micro_cells, found))]
    return "\n".join(parts)


def profile(document: Record) -> str:
    """The page of a file of `benchmarks.profile`."""
    rows = document["profile"]
    names = [part for part in rows[0]["shares"] if any(r["shares"][part] for r in rows)]
    lines = [
        [f"{r['id']}, {r['mode']}", *(f"{r['shares'][part]:.0%}" for part in names)] for r in rows
    ]
    title = "Shares of the samples that Linux's perf took of our calls, on one thread."
    return "\n".join([facts(document), f"{title}\n", table(["call", *names], lines)])


def leaky_classes(document: Record) -> str:
    """By class: the ratios of the rate form, geometric mean and least."""
    rows = document["rows"]
    columns = [(other, mode) for other in ("RNN", "loop") for mode in MODES]
    header = ["class", *(f"over the {other}, {mode}" for other, mode in columns)]
    header = [title.replace("the RNN", "`RNN`") for title in header]
    lines = [
        [
            name_of(kind),
            *(
                mean_and_least(
                    [
                        r["ratios"]["rate"][other]
                        for r in rows
                        if (r["kind"], r["mode"]) == (kind, mode)
                    ]
                )
                for other, mode in columns
            ),
        ]
        for kind in dict.fromkeys(r["kind"] for r in rows)
    ]
    return table(header, lines)


def leaky(document: Record) -> str:
    """Every shape, every form."""
    rows = document["rows"]
    forms = [*rows[0]["ratios"]]
    header = ["shape", "mode", "rate, µs"]
    header += [f"{form}: over `RNN`" for form in forms] + [
        f"{form}: over the loop" for form in forms
    ]
    lines = [
        [
            f"`{r['id']}`",
            r["mode"],
            number(r["microseconds"]["rate"]),
            *(number(r["ratios"][form][other]) for other in ("RNN", "loop") for form in forms),
        ]
        for r in rows
    ]
    words = (
        "Each ratio is the other's time divided by ours: above 1, `LeakyRNN` is faster. Rate and "
        "current are the two forms with one fixed leak; with a learned one, its gradient is "
        "computed too."
    )
    return f"{words}\n\n{table(header, lines)}"
