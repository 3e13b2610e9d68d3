"""The plots of the report: ratios by class of shape, and time per step against the sizes."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.classes import kinds_of, name_of
from benchmarks.compare import MODES, geometric_mean, peer_names
from benchmarks.markdown import number

matplotlib.use("Agg")

Record = dict[str, Any]
Points = Sequence[tuple[int, float]]  # class, ratio

COLOURS = {"nn.RNN": "tab:gray", "fastrnn": "tab:blue", "JAX": "tab:orange"}
COLOURS |= {"ONNX Runtime": "tab:green", "oneDNN": "tab:red"}
WIDTH = 7.5  # inches, at 110 dots each
NAME_WIDTH = 22  # characters of a line of a class's name


def save(figure: Figure, folder: Path, name: str) -> Path:
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return path


def plain_ticks(axis: Axis, subs: Sequence[int] = (1, 2, 5)) -> None:
    """1, 2, 5, 10, ... on a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def times_axis(ax: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis of ratios, with a line where both are as fast."""
    ax.set_xscale("log")
    ax.set_xlim(min(0.8, 0.9 * min(values)), max(2.0, 1.15 * max(values)))
    plain_ticks(ax.xaxis)
    ax.xaxis.set_major_formatter("{x:g}×")
    ax.grid(axis="x", alpha=0.3)
    ax.axvline(1, color="black", linewidth=1)


def class_axis(ax: Axes, kinds: Sequence[str]) -> None:
    names = [textwrap.fill(name_of(kind), NAME_WIDTH) for kind in kinds]
    ax.set_yticks(range(len(kinds)), names)
    ax.set_ylim(len(kinds) - 0.4, -0.6)


def strips(
    folder: Path,
    name: str,
    panels: Mapping[str, Mapping[str, Points]],
    kinds: Sequence[str],
    label: str,
) -> Path:
    """Panels of a dot for each shape, by class (up and down) and by series (colour)."""
    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(
        lines, min(2, len(panels)), sharey=True, squeeze=False, layout="constrained",
        figsize=(WIDTH, lines * (1.3 + 0.36 * len(kinds))),
    )  # fmt: skip
    for ax in axes.flat[len(panels) :]:
        ax.set_visible(False)
    names = list(dict.fromkeys(series for panel in panels.values() for series in panel))
    handles = {}
    for ax, (title, panel) in zip(axes.flat, panels.items(), strict=False):
        for series, points in panel.items():
            i = names.index(series)
            shift = 0.5 * (i - (len(names) - 1) / 2) / len(names)
            x, y = [r for _, r in points], [kind + shift for kind, _ in points]
            style = {"color": COLOURS.get(series, f"C{i}"), "alpha": 0.75, "markersize": 7}
            [handles[series]] = ax.plot(x, y, ".", label=series, **style)
        times_axis(ax, [r for points in panel.values() for _, r in points])
        ax.set_title(title, fontsize=12)
        ax.set_xlabel(label)
    class_axis(axes[0, 0], kinds)
    if len(handles) > 1:
        legend = figure.legend(
            handles.values(), handles, loc="outside lower center", ncols=len(handles)
        )
        for handle in legend.legend_handles:
            handle.set_markersize(12)  # type: ignore[union-attr]
    return save(figure, folder, name)


def ratios(folder: Path, name: str, rows: Sequence[Record]) -> Path:
    """How many times as fast as nn.RNN every shape is, by class, mode and threads."""
    kinds = list(kinds_of(rows))
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for r in rows:
        threads = "one thread" if r["threads"] == 1 else f"{r['threads']} threads"
        series = panels.setdefault(r["mode"], {}).setdefault(threads, [])
        series.append((kinds.index(r["kind"]), r["ratio"]))
    return strips(folder, f"ratio-{name}", panels, kinds, "times as fast as torch.nn.RNN")


def peers(folder: Path, name: str, rows: Sequence[Record]) -> Path:
    """Other libraries' time by ours of every shape, by class and mode."""
    names, kinds = peer_names(rows), list(kinds_of(rows))
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for r in rows:
        for peer in names:
            if found := r["contestants"].get(peer):
                series = panels.setdefault(r["mode"], {}).setdefault(peer, [])
                series.append((kinds.index(r["kind"]), found["ratio_to_fastrnn"]))
    return strips(folder, f"ratio-{name}", panels, kinds, "their time divided by ours")


def speed(folder: Path, rows: Sequence[Record], subtitle: str) -> Path:
    """A bar of each class and mode: the geometric mean; a tick where the least shape is."""
    kinds = list(kinds_of(rows))
    figure, ax = plt.subplots(figsize=(8, 1.6 + 0.45 * len(kinds)), layout="constrained")
    values = []
    for i, (mode, colour) in enumerate(zip(MODES, ("tab:blue", "tab:orange"), strict=True)):
        for y, kind in enumerate(kinds):
            found = [r["ratio"] for r in rows if (r["kind"], r["mode"]) == (kind, mode)]
            if not found:
                continue
            mean, place = geometric_mean(found), y + 0.4 * (i - 0.5)
            label = mode if y == 0 else None
            ax.barh(place, mean - 1, left=1, height=0.36, color=colour, label=label)
            ax.plot([min(found)] * 2, [place - 0.18, place + 0.18], color="black", linewidth=1.5)
            ax.annotate(f"{number(mean)}×", (mean, place), (4, 0), textcoords="offset points",
                        va="center", fontsize=11)  # fmt: skip
            values += [mean, min(found)]
    times_axis(ax, values)
    ax.set_xlim(right=2.2 * max(values))
    class_axis(ax, kinds)
    ax.set_ylim(top=-0.95)
    ax.text(1.03, -0.82, "torch.nn.RNN = 1×", fontsize=12, va="center_baseline")
    ax.tick_params(labelsize=11)
    ax.set_xlabel("bar: geometric mean; tick: the shape that gains least", fontsize=12)
    ax.legend(fontsize=13, loc="lower right")
    figure.suptitle(f"fastrnn: speedup over torch.nn.RNN\n{subtitle}", fontsize=12)
    return save(figure, folder, "speed")


def _lines(ax: Axes, rows: Sequence[Record], axis: str) -> None:
    """A line of each contestant against a size; dashed for a batch of one among larger ones."""
    batches = sorted({r["shape"]["batch"] for r in rows}) if axis != "batch" else [0]
    for batch in batches:
        of_batch = [r for r in rows if axis == "batch" or r["shape"]["batch"] == batch]
        for contestant in dict.fromkeys(name for r in of_batch for name in r["contestants"]):
            points = sorted(
                (
                    r["shape"][axis],
                    r["contestants"][contestant]["microseconds"] / r["shape"]["seq_len"],
                )
                for r in of_batch
                if contestant in r["contestants"]
            )
            ax.plot(
                *zip(*points, strict=True),
                "--" if batch == 1 else "-",
                color=COLOURS.get(contestant),
                label=contestant if axis == "batch" else f"{contestant}, batch {batch}",
                marker=".",
            )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    plain_ticks(ax.yaxis, (1,))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.grid(alpha=0.3)


def sweeps(folder: Path, name: str, rows: Sequence[Record]) -> Iterator[tuple[str, Path]]:
    """A figure of each axis that was swept: title and file."""
    for kind, axis, label in [
        ("sweep-hidden", "hidden_size", "hidden size = input size"),
        ("sweep-length", "seq_len", "time steps"),
        ("sweep-batch", "batch", "batch"),
    ]:
        swept = [r for r in rows if r["kind"] == kind]
        groups = sorted(
            {(r["threads"], r["mode"]) for r in swept}, key=lambda g: (g[0], MODES.index(g[1]))
        )
        if not groups:
            continue
        figure, axes = plt.subplots(
            1, len(groups), figsize=(WIDTH, 4.2), sharey=True, squeeze=False, layout="constrained"
        )
        for ax, (threads, mode) in zip(axes[0], groups, strict=True):
            _lines(ax, [r for r in swept if (r["threads"], r["mode"]) == (threads, mode)], axis)
            words = "one thread" if threads == 1 else f"{threads} threads"
            ax.set_title(f"{mode}, {words}", fontsize=12)
            ax.set_xlabel(label, fontsize=11)
        axes[0, 0].set_ylabel("µs per time step", fontsize=11)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=11)
        yield (
            f"Time per step against {label}",
            save(figure, folder, f"{name}-{kind.removeprefix('sweep-')}"),
        )
