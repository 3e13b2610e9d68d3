"""Draw the figure of the unrolled network that docs/rnn.md shows: docs/images/unrolled.svg."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FORWARD, BACKWARD, INK = "#1f6f8b", "#e07a2f", "#333333"
STEPS = 4
X, H, Y = 0.0, 1.3, 2.6  # heights of the rows of inputs, states and outputs


def box(axes: Axes, x: float, y: float, text: str, filled: bool = False) -> None:
    style = {"boxstyle": "round,pad=0.35", "ec": INK, "fc": "#dcebf0" if filled else "white"}
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
        box(axes, x, H, f"$h_{t}$", filled=True)
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


if __name__ == "__main__":
    with mpl.rc_context({"svg.hashsalt": "fastrnn", "svg.fonttype": "path"}):
        path = Path(__file__).parent / "images/unrolled.svg"
        unrolled().savefig(path, metadata={"Date": None})
