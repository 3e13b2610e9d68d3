"""The plots of the report: ratio by shape, time per step against H and T, scaling with B."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.compare import MODES, peer_names

matplotlib.use("Agg")

Record = dict[str, Any]
COLOURS = {"nn.RNN": "tab:gray", "fastrnn": "tab:blue", "JAX": "tab:orange"}
COLOURS |= {"ONNX Runtime": "tab:green", "oneDNN": "tab:red"}


def save(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path


def plain_ticks(axis: Axis) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def ratios(folder: Path, name: str, rows: Sequence[Record]) -> Path:
    """How many times as fast as nn.RNN (bars) and others (dots), by shape, mode and threads."""
    groups = sorted({(r["mode"], r["threads"]) for r in rows})
    ids = list(dict.fromkeys(r["id"] for r in rows))
    figure, axes = plt.subplots(
        1,
        len(groups),
        figsize=(2.2 + 2.6 * len(groups), 1.2 + 0.2 * len(ids)),
        sharey=True,
        squeeze=False,
    )
    for ax, (mode, threads) in zip(axes[0], groups, strict=True):
        group = {r["id"]: r for r in rows if (r["mode"], r["threads"]) == (mode, threads)}
        found = {i: r["ratio"] for i, r in group.items()}
        values = [found.get(i, float("nan")) for i in ids]
        colours = ["tab:blue" if value >= 1 else "tab:red" for value in values]
        ax.barh(range(len(ids)), [value - 1 for value in values], left=1, color=colours)
        ax.axvline(1, color="black", linewidth=0.8)
        for peer in peer_names([*group.values()]):
            times = {i: r["contestants"].get(peer) for i, r in group.items()}
            dots = [(c["ratio_to_fastrnn"], ids.index(i)) for i, c in times.items() if c]
            ax.scatter(*zip(*dots, strict=True), s=9, color=COLOURS[peer], label=peer, zorder=3)
            ax.legend(fontsize=7, loc="lower right")
        kinds = [r["kind"] for r in group.values()]
        for i in range(1, len(kinds)):
            if kinds[i] != kinds[i - 1]:
                ax.axhline(i - 0.5, color="0.8", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xlim(min(0.5, *found.values()), max(2.0, *found.values()) * 1.2)
        plain_ticks(ax.xaxis)
        ax.set_title(f"{mode}, threads: {threads}", fontsize=9)
        ax.set_xlabel("time by fastrnn's")
    axes[0, 0].set_yticks(range(len(ids)), ids, fontsize=7)
    axes[0, 0].set_ylim(len(ids) - 0.4, -0.6)
    return save(figure, folder, f"ratio-{name}")


def _lines(ax: Axes, rows: Sequence[Record], axis: str, per_step: bool) -> None:
    """A line of each contestant against a size; dashed for a batch of one among larger ones."""
    batches = sorted({r["shape"]["batch"] for r in rows}) if axis != "batch" else [0]
    for batch in batches:
        of_batch = [r for r in rows if axis == "batch" or r["shape"]["batch"] == batch]
        for contestant in dict.fromkeys(name for r in of_batch for name in r["contestants"]):
            points = sorted(
                (
                    r["shape"][axis],
                    r["contestants"][contestant]["microseconds"]
                    / (r["shape"]["seq_len"] if per_step else 1),
                )
                for r in of_batch
                if contestant in r["contestants"]
            )
            label = contestant if axis == "batch" else f"{contestant}, B={batch}"
            style = "--" if batch == 1 else "-"
            ax.plot(
                *zip(*points, strict=True),
                style,
                color=COLOURS.get(contestant),
                label=label,
                marker=".",
            )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    plain_ticks(ax.yaxis)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(alpha=0.3)


def sweeps(folder: Path, name: str, rows: Sequence[Record]) -> Iterator[tuple[str, Path]]:
    """A figure of each axis that was swept: title and file."""
    for kind, axis, label in [
        ("sweep-hidden", "hidden_size", "H = I"),
        ("sweep-length", "seq_len", "T"),
        ("sweep-batch", "batch", "B"),
    ]:
        swept = [r for r in rows if r["kind"] == kind]
        groups = sorted(
            {(r["threads"], r["mode"]) for r in swept}, key=lambda g: (g[0], MODES.index(g[1]))
        )
        if not groups:
            continue
        figure, axes = plt.subplots(
            1, len(groups), figsize=(4 * len(groups), 3.4), sharey=True, squeeze=False
        )
        for ax, (threads, mode) in zip(axes[0], groups, strict=True):
            _lines(
                ax, [r for r in swept if (r["threads"], r["mode"]) == (threads, mode)], axis, True
            )
            ax.set_title(f"{mode}, threads: {threads}", fontsize=9)
            ax.set_xlabel(label)
        axes[0, 0].set_ylabel("µs per step")
        axes[0, 0].legend(fontsize=7)
        yield (
            f"time per step against {label}",
            save(figure, folder, f"{name}-{kind.removeprefix('sweep-')}"),
        )
