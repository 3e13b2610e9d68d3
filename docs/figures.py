"""Draw the diagrams of docs/rnn.md: unrolled.svg and sequence_forms.svg, in docs/images.

python docs/figures.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FORWARD, BACKWARD, INK = "#1f6f8b", "#e07a2f", "#333333"
LIGHT, DECODER = "#dcebf0", "#f7e3d0"  # of the boxes of states
BEND = "arc3,rad=-0.15"
STEPS = 4
X, H, Y = 0.0, 1.3, 2.6  # heights of the rows of inputs, states and outputs


def box(axes: Axes, x: float, y: float, text: str, color: str = "white") -> None:
    style = {"boxstyle": "round,pad=0.35", "ec": INK, "fc": color}
    axes.text(x, y, text, ha="center", va="center", fontsize=13, color=INK, bbox=style)


def both_ways(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], weight: str, grad: str
) -> None:
    """An arrow forward with the weight on it, and beside it the gradient's arrow back."""
    (x0, y0), (x1, y1) = start, end
    horizontal = y0 == y1
    shift = (0.0, 0.11) if horizontal else (-0.09, 0.0)
    trim = (0.36, 0.0) if horizontal else (0.0, 0.34)
    for sign, color, tail, head in (
        (1, FORWARD, (x0 + trim[0], y0 + trim[1]), (x1 - trim[0], y1 - trim[1])),
        (-1, BACKWARD, (x1 - trim[0], y1 - trim[1]), (x0 + trim[0], y0 + trim[1])),
    ):
        dx, dy = sign * shift[0], sign * shift[1]
        axes.annotate(
            "",
            xy=(head[0] + dx, head[1] + dy),
            xytext=(tail[0] + dx, tail[1] + dy),
            arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.6, "shrinkA": 0, "shrinkB": 0},
        )
    x, y = (x0 + x1) / 2, (y0 + y1) / 2
    if horizontal:
        axes.text(x, y + 0.2, weight, ha="center", va="bottom", fontsize=11, color=FORWARD)
        axes.text(x, y - 0.2, grad, ha="center", va="top", fontsize=11, color=BACKWARD)
    else:
        axes.text(x - 0.16, y, weight, ha="right", va="center", fontsize=11, color=FORWARD)
        axes.text(x + 0.16, y, grad, ha="left", va="center", fontsize=11, color=BACKWARD)


def unrolled() -> Figure:
    """Four steps of the network; what flows forward, and which gradient flows back."""
    figure = Figure(figsize=(9.5, 3.9), layout="constrained")
    axes = figure.add_subplot()
    gap = 2.1
    box(axes, 0, H, "hx")
    for t in range(STEPS):
        x = (t + 1) * gap
        box(axes, x, X, f"$x_{t}$")
        box(axes, x, H, f"$h_{t}$", LIGHT)
        box(axes, x, Y, f"output$_{t}$")
        grad = "grad_hx" if t == 0 else f"grad_pre$_{t}$ w_hh"
        both_ways(axes, (t * gap, H), (x, H), "w_hh", grad)
        both_ways(axes, (x, X), (x, H), "w_ih", f"grad_x$_{t}$")
        both_ways(axes, (x, H), (x, Y), "", f"grad_output$_{t}$")
    end = (STEPS + 1) * gap
    box(axes, end, H, "hn")
    both_ways(axes, (STEPS * gap, H), (end, H), "", "grad_hn")
    axes.set(xlim=(-0.5, end + 0.5), ylim=(X - 0.4, Y + 0.4))
    axes.axis("off")
    return figure


def arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    color: str = FORWARD,
    **style: Any,
) -> None:
    """From just outside one box to just outside another."""
    style |= {"arrowstyle": "-|>", "color": color, "lw": 1.6, "shrinkA": 15, "shrinkB": 15}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)


def states(axes: Axes, start: int, stop: int, name: str = "h", color: str = LIGHT) -> None:
    """The states of a network at steps start .. stop - 1, each after the one before it."""
    for n, x in enumerate(range(start, stop)):
        box(axes, x, H, f"${name}_{n}$", color)
        if x > 0:
            arrow(axes, (x - 1, H), (x, H))


def inputs(axes: Axes, steps: range) -> None:
    for t in steps:
        box(axes, t, X, f"$x_{t}$")
        arrow(axes, (t, X), (t, H))


def outputs(axes: Axes, start: int, numbers: range, fed_back: bool = False) -> None:
    """y, above the states from `start` on; `fed_back`: each is the next step's input."""
    for n in numbers:
        box(axes, start + n, Y, f"$y_{n}$")
        arrow(axes, (start + n, H), (start + n, Y))
        if fed_back and n > numbers[0]:
            arrow(axes, (start + n - 1, Y), (start + n, H), INK, ls="--", connectionstyle=BEND)


def sequence_forms() -> Figure:
    """Many to one, one to many, and the two forms of many to many."""
    figure = Figure(figsize=(9.5, 6.4), layout="constrained")
    (many_to_one, synchronous), (one_to_many, asynchronous) = figure.subplots(2, 2)
    for axes, title, steps in (
        (many_to_one, "many to one", 4),
        (synchronous, "many to many, synchronous", 4),
        (one_to_many, "one to many", 4),
        (asynchronous, "many to many, asynchronous", 6),
    ):
        middle = (steps - 1) / 2
        axes.set_title(title, fontsize=13, color=INK)
        axes.set(xlim=(middle - 2.9, middle + 2.9), ylim=(X - 0.45, Y + 0.45))
        axes.axis("off")

    inputs(many_to_one, range(4))
    states(many_to_one, 0, 4)
    outputs(many_to_one, 0, range(3, 4))

    inputs(synchronous, range(4))
    states(synchronous, 0, 4)
    outputs(synchronous, 0, range(4))

    inputs(one_to_many, range(1))
    states(one_to_many, 0, 4)
    outputs(one_to_many, 0, range(4), fed_back=True)

    inputs(asynchronous, range(3))
    states(asynchronous, 0, 3)
    states(asynchronous, 3, 6, "s", DECODER)
    outputs(asynchronous, 3, range(3), fed_back=True)
    for x, y, name in ((1, H + 0.45, "encoder"), (4, H - 0.45, "decoder")):
        asynchronous.text(x, y, name, ha="center", va="center", fontsize=11, color=INK)
    return figure


if __name__ == "__main__":
    images = Path(__file__).parent / "images"
    with mpl.rc_context({"svg.hashsalt": "fastrnn", "svg.fonttype": "path"}):
        for draw in (unrolled, sequence_forms):
            draw().savefig(images / f"{draw.__name__}.svg", metadata={"Date": None})
