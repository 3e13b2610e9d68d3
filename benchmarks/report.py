"""Turn benchmarks/results/*.json into docs/benchmarks.md, plots, and README's GPU table.

    python -m benchmarks.report

No measurement is typed by hand: a file of `benchmarks.compare` becomes a section of tables, or
plots if it is a sweep; a file of pytest-benchmark becomes the tables of the kernels and of the
overhead; a file of `benchmarks.gpu.visit` becomes tables and plots of a GPU.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.compare import MODES, geometric_mean, peer_names, scaling, verdict
from benchmarks.gpu import report as gpu_report
from benchmarks.machine import ROOT
from benchmarks.markdown import judged, number, table
from benchmarks.shapes import PEER_GOAL, PEER_MEAN_GOALS, SCALING_GOALS, Goal

Record = dict[str, Any]

INTRODUCTION = """\
# Benchmarks

`make bench-report` writes this page from the files in `benchmarks/results`.

- A row's id gives batch B, steps T, input size I, hidden size H and, where there is more than one,
  layers L. Values are random normal; weights are those that `torch.nn.RNN` starts with.
- Inference is a call without gradients. Training is forward and backward, to the gradients of the
  input, the initial state and every weight.
- Outputs and gradients of all contestants are compared with float64 before they are timed.
- Rounds are interleaved in one process and shuffled. Times are medians. A ratio is the median over
  rounds of the other's time by ours: above 1, fastrnn is faster.
- GFLOP/s count 2·T·B·H·(I+H) of each layer and direction, three times that in training. Their share
  is of the fastest matrix product that torch offers on the machine in the same dtype, measured in
  the same run. Weights GB/s count the weights once, in training three times: read, read, written.
- A goal is the least ratio to accept, the aim is where it should go. A row that is slower than
  `torch.nn.RNN` says `slower`.
- `share` in the last column judges a large row's share of the fastest matrix product against goals
  of 85 % in inference and 82 % in training (`met`), and 95 % and 93 % (`stretch`). Shares above
  100 % mean that torch has no fast product in that dtype, as in float64.
- Rows of class `example` are the RNNs of `examples/`, a training step and a prediction of each.
- `noisy` marks a row during which something else used the machine, in each of three tries.

```
make bench-full bench-peers      # measure
make gpu-check                   # measure on a machine with a GPU
make bench-report                # write this page
```
"""


PEERS = """\
What a call is: JAX's is one compiled function, in training the value and all gradients; ONNX
Runtime's is a session's run with bound inputs and outputs; oneDNN's are its two primitives, called
from C++ with weights transposed beforehand and memory for the gradients at hand. None of them
records a graph as it goes, as a training step of `torch.nn.RNN` or `fastrnn.RNN` does, which takes
most of the time of the smallest rows (see the table of call overhead: the empty module)."""

NEXT_GAINS = """\
Where the next gain would be:

- tiny: the call itself. A module that computes nothing takes most of that time, so it would have to
  be spared: many steps of a serving loop, or a whole training step, in one call.
- small: the activations, and in training torch's autograd, which costs the same at any size.
- medium: in training the weight gradients, whose products are short: fused into the time loop, they
  would read grad_pre while it is in the cache.
- large: the products stand near the fastest matrix product of the machine; what is left is memory,
  the first touch of pages of outputs and gradients that the allocator gave back to the system.
- long: a step's latency. With 64 units its product needs 128 cycles; the last sum, tanh and the way
  of h through memory take as many again.
- few rows: reading the weights, at the speed of the cache or memory that holds them; 16-bit weights
  halve it.
- packed: as medium."""


def facts_of(document: Record) -> str:
    facts = document["machine"]
    cells = [(name.replace("_", " "), str(value)) for name, value in facts.items()]
    cells.append(("command", f"`{document['command']}`"))
    for name, speeds in document["gemm_gflops"].items():
        best = ", ".join(f"{library} {speed:.0f}" for library, speed in speeds.items())
        cells.append((f"matrix products, {name}", f"{best} GFLOP/s"))
    return "\n".join(f"- {name}: {value}" for name, value in cells) + "\n"


def summary(rows: Sequence[Record]) -> str:
    """Geometric mean and least ratio of each class."""
    threads = sorted({r["threads"] for r in rows})
    columns = [(n, mode) for n in threads for mode in MODES]

    def cell(kind: str, n: int, mode: str) -> str:
        found = [r for r in rows if (r["kind"], r["threads"], r["mode"]) == (kind, n, mode)]
        ratios = [r["ratio"] for r in found]
        return f"{number(geometric_mean(ratios))} ({number(min(ratios))})" if ratios else ""

    header = ["class", *(f"{mode}, threads: {n}" for n, mode in columns)]
    kinds = dict.fromkeys(r["kind"] for r in rows)
    lines = [[kind, *(cell(kind, n, mode) for n, mode in columns)] for kind in kinds]
    noisy = sum(r["noisy"] for r in rows)
    title = f"Ratio to nn.RNN, geometric mean (and least). Noisy: {noisy} of {len(rows)} rows."
    return f"{title}\n\n{table(header, lines)}"


def peer_summary(rows: Sequence[Record]) -> str:
    lines = []
    for name in peer_names(rows):
        for mode in MODES:
            cells = [
                r["contestants"][name]["ratio_to_fastrnn"]
                for r in rows
                if r["mode"] == mode and name in r["contestants"]
            ]
            if not cells:
                continue
            mean, least = geometric_mean(cells), min(cells)
            both = [judged(mean, PEER_MEAN_GOALS[mode]), judged(least, PEER_GOAL)]
            line = [
                f"{name}, {mode}",
                str(len(cells)),
                number(mean),
                both[0],
                number(least),
                both[1],
            ]
            lines.append(line)
    if not lines:
        return ""
    header = ["against", "rows", "geometric mean", "", "least", ""]
    ahead = ", ".join(
        f"{r['id']} {r['mode']} ({name} {number(c['ratio_to_fastrnn'])})"
        for r in rows
        for name, c in r["contestants"].items()
        if name in peer_names(rows) and c["ratio_to_fastrnn"] < 1
    )
    ahead = f"\nRows in which one of them is ahead: {ahead}.\n" if ahead else ""
    return f"\nOther libraries' time by ours. {PEERS}\n\n{table(header, lines)}{ahead}"


def row_cells(r: Record, peers: Sequence[str]) -> list[str]:
    goal = Goal(**r["goal"])
    times = {name: c["microseconds"] for name, c in r["contestants"].items()}
    notes = [judged(r["ratio"], goal)]
    if r["share_goal"]:
        share = verdict(r["share_of_gemm"], Goal(**r["share_goal"]))
        notes.append(f"share {share}")
    if r["noisy"]:
        notes.append("noisy")
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
        number(goal.stretch),
        ", ".join(notes),
    ]


def comparison(name: str, document: Record, images: Path) -> str:
    """The section of a file of `benchmarks.compare`."""
    rows = document["rows"]
    parts = [f"## {name}\n", facts_of(document), summary(rows), peer_summary(rows)]
    parts.append(f"![ratio by shape](images/{plots.ratios(images, name, rows).name})\n")
    for threads in sorted({r["threads"] for r in rows}):
        for mode in MODES:
            group = [r for r in rows if (r["threads"], r["mode"]) == (threads, mode)]
            if not group:
                continue
            peers = peer_names(group)
            header = ["shape", "nn.RNN µs", "fastrnn µs", "nn.RNN / fastrnn"]
            header += [f"{peer} / fastrnn" for peer in peers]
            header += ["GFLOP/s", "share", "weights GB/s", "goal", "aim", ""]
            parts.append(f"### {name}: {mode}, threads: {threads}\n")
            parts.append(table(header, [row_cells(r, peers) for r in group]))
    faster = scaling(rows)
    if faster:
        kinds = {r["id"]: r["kind"] for r in rows}
        lines = []
        for (shape, mode), ratio in faster.items():
            goal = SCALING_GOALS.get(kinds[shape])
            lines.append([f"{shape}, {mode}", number(ratio), judged(ratio, goal) if goal else ""])
        parts.append(f"### {name}: one thread's time by two threads'\n")
        parts.append(table(["shape", "ratio", ""], lines))
    return "\n".join(parts)


def sweep(name: str, document: Record, images: Path) -> str:
    """The section of a file of `benchmarks.compare --sweep`."""
    parts = [f"## {name}\n", facts_of(document)]
    for title, path in plots.sweeps(images, name, document["rows"]):
        parts.append(f"![{title}](images/{path.name})\n")
    return "\n".join(parts)


def microbenchmarks(name: str, document: Record) -> str:
    """The section of a file of pytest-benchmark: kernels by instruction set, and overhead."""
    facts = {k: v for k, v in document["machine_info"].items() if k != "threads"}
    parts = [f"## {name}\n", "\n".join(f"- {k.replace('_', ' ')}: {v}" for k, v in facts.items())]
    kernels, overhead, derivatives = [], [], []
    for b in document["benchmarks"]:
        info, time = b["extra_info"], b["stats"]["median"] * 1e6
        if b["name"].startswith("test_kernels"):
            shares = [info.get(f"share_of_{limit}") for limit in ("fma", "gemm")]
            memory = [info.get("weight_gbytes"), info.get("read_gbytes")]
            kernels.append(
                [
                    f"{info['shape']}, {info['mode']}",
                    info["instruction_set"],
                    number(time),
                    number(info["gflops"]),
                    *("" if share is None else f"{share:.0%}" for share in shares),
                    *map(number, memory),
                ]
            )
        elif b["name"].startswith("test_overhead"):
            p = b["params"]
            overhead.append([f"{p['sizes']}, {p['mode']}", p["form"], number(time)])
        elif b["name"].startswith("test_step"):
            p = b["params"]
            overhead.append([f"one step, {p['sizes']}, inference", p["form"], number(time)])
        elif b["name"].startswith("test_derivatives"):
            p = b["params"]
            derivatives.append([f"{p['derivative']}, {p['sizes']}", p["cls"], number(time)])
    if kernels:
        header = ["kernels, one thread", "instructions", "µs", "GFLOP/s", "of multiply-adds"]
        header += ["of matrix product", "weights GB/s", "memory GB/s"]
        parts.append("\n" + table(header, kernels))
    if overhead:
        parts.append("\n" + table(["call overhead", "form", "µs"], overhead))
    if derivatives:
        parts.append("\n" + table(["derivatives", "class", "µs"], derivatives))
    return "\n".join(parts)


def profile(name: str, document: Record) -> str:
    """The section of a file of `benchmarks.profile`."""
    rows = document["profile"]
    names = [part for part in rows[0]["shares"] if any(r["shares"][part] for r in rows)]
    lines = [
        [f"{r['id']}, {r['mode']}", *(f"{r['shares'][part]:.0%}" for part in names)] for r in rows
    ]
    facts = [f"- {k.replace('_', ' ')}: {v}" for k, v in document["machine"].items()]
    facts.append(f"- command: `{document['command']}`")
    title = "Where the time goes: shares of perf's samples, one thread."
    return "\n".join(
        [f"## {name}\n", *facts, f"\n{title}\n", table(["call", *names], lines), NEXT_GAINS, ""]
    )


def section(path: Path, images: Path) -> str:
    document = json.loads(path.read_text())
    if "gpu_visit" in document:
        return gpu_report.section(path.stem, document, images)
    if "profile" in document:
        return profile(path.stem, document)
    if "benchmarks" in document:
        return microbenchmarks(path.stem, document)
    swept = all(r["kind"].startswith("sweep") for r in document["rows"])
    return (sweep if swept else comparison)(path.stem, document, images)


def write_readme(path: Path, documents: Sequence[Record]) -> None:
    """Replace what is between the marks of the GPU table."""
    begin, end = "<!-- gpu-table -->", "<!-- /gpu-table -->"
    before, _, rest = path.read_text().partition(begin)
    _, _, after = rest.partition(end)
    text = gpu_report.readme_table(documents)
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args(argv)
    files = sorted(args.results.glob("*.json"))
    if not files:
        parser.error(f"no results in {args.results}; run `make bench-full` first")
    images = args.docs / "images"
    images.mkdir(parents=True, exist_ok=True)
    text = "\n".join([INTRODUCTION, *(section(path, images) for path in files)])
    (args.docs / "benchmarks.md").write_text(text)
    print(args.docs / "benchmarks.md")
    write_readme(args.readme, [json.loads(p.read_text()) for p in files if p.match("gpu-*.json")])


if __name__ == "__main__":
    main()
