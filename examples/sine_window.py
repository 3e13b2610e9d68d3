"""The next point of a sine from a window of it: sequence in, one number out.

From 20 points of sin x in a row, an Elman RNN of 64 units that reads one point a time step says
which comes next. Only the state after the last point is used:

    h[t] = tanh(x[t] * w_ih + b_ih + h[t-1] @ w_hh.T + b_hh),   t = 0 .. 19
    next = h[19] @ w.T + b

    python examples/sine_window.py                     100 epochs, batches of 32, Adam
    python examples/sine_window.py --compare           against torch.nn.RNN, loss and speed

The 1000 windows begin at the first 1000 of 1020 points over [0, 10 pi]. The first 800 are for
training, in a new order each epoch; the last 200, the last periods, are for the test. It writes
sine_window.png to --out.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    COLORS,
    RNN_CLASSES,
    Comparison,
    Run,
    make_folder,
    make_parser,
    make_runs,
    plot_losses,
    report,
    tidy,
    train,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

WINDOWS, WINDOW, TRAIN = 1000, 20, 800
SHOWN = 50  # test windows in the picture


class NextPoint(nn.Module):
    """The point after a window, from the RNN's state at its end."""

    def __init__(self, rnn_class: type[nn.RNN]) -> None:
        super().__init__()
        self.rnn = rnn_class(1, 64, batch_first=True)
        self.linear = nn.Linear(64, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, time, 1) to points (batch, 1)."""
        output, _ = self.rnn(windows)  # (batch, time, 64)
        return self.linear(output[:, -1])


def sine_windows() -> tuple[Tensor, Tensor]:
    """Windows (WINDOWS, WINDOW, 1), and the point after each (WINDOWS, 1)."""
    x = torch.linspace(0, 10 * math.pi, WINDOWS + WINDOW, dtype=torch.float64)
    sine = x.sin().float()
    return sine.unfold(0, WINDOW, 1)[:WINDOWS].unsqueeze(2), sine[WINDOW:].unsqueeze(1)


def make_run(impl: str, args: argparse.Namespace) -> Run:
    """A new model with its optimizer."""
    torch.manual_seed(args.seed)
    model = NextPoint(RNN_CLASSES[impl]).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(windows: Tensor, points: Tensor) -> Tensor:
        loss = F.mse_loss(model(windows), points)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Run(impl, model, step)


@torch.no_grad()
def predict(model: nn.Module, windows: Tensor) -> Tensor:
    return model(windows).cpu()


def draw(path: Path, runs: list[Run], points: Tensor, predictions: Tensor) -> None:
    """The first test points with what is predicted for them, how far it is off, and the losses."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes, error_axes, loss_axes = figure.subplots(1, 3, width_ratios=(4, 3, 3))
    color = COLORS[runs[0].name]
    axes.plot(points[:SHOWN], color="0.6", linewidth=3, label="actual")
    axes.plot(predictions[:SHOWN], ".", color=color, label="predicted")
    axes.set(xlabel="test window", ylabel="the point after it")
    axes.legend(frameon=False)
    error_axes.plot(predictions - points, color=color)
    error_axes.axhline(0, color="0.6", linewidth=1)
    error_axes.set(xlabel="test window", ylabel="predicted - actual")
    tidy(axes)
    tidy(error_axes)
    plot_losses(loss_axes, runs, log=True)
    figure.savefig(path, dpi=90)


@dataclass
class Results:
    """What came of `--impl`, and with `--compare` how it stands to the other implementation."""

    runs: list[Run]
    test_error: float  # mean squared
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, epochs=100).parse_args(argv)
    make_folder(args.out)

    windows, points = (tensor.to(args.device) for tensor in sine_windows())
    print(
        f"{TRAIN} windows of {WINDOW} points of a sine to train on, {WINDOWS - TRAIN} for the "
        f"test; RNN(1, 64) and a linear layer on its last state, on {args.device}"
    )
    runs = make_runs(args, lambda impl: make_run(impl, args))
    train(
        runs,
        (windows[:TRAIN], points[:TRAIN]),
        epochs=args.epochs,
        batch_size=32,
        generator=torch.Generator().manual_seed(args.seed),
        unit="windows",
        every=max(1, args.epochs // 10),
    )

    test_points = points[TRAIN:].cpu()
    predictions = [predict(run.model, windows[TRAIN:]) for run in runs]
    errors = [F.mse_loss(prediction, test_points).item() for prediction in predictions]
    last = F.mse_loss(windows[TRAIN:, -1].cpu(), test_points).item()
    print(f"to say that the last point comes again has a test error of {last:.1e} (mean square)")
    picture = args.out / "sine_window.png"
    draw(picture, runs, test_points, predictions[0])
    print(f"wrote {picture}")
    comparison = report("sine_window", runs, [f"test error {error:.2e}" for error in errors])
    return Results(runs, errors[0], comparison, picture)


if __name__ == "__main__":
    main()
