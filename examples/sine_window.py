"""The next point of a sine from a window of it: sequence in, one number out.

An RNN with 64 hidden units reads 20 consecutive points of sin x, one point per time step. A linear
layer on its last hidden state predicts the point that comes next:

    h[t] = tanh(x[t] * w_ih + b_ih + h[t-1] @ w_hh.T + b_hh),   t = 0 .. 19,   h[-1] = 0
    next = h[19] @ w.T + b

    python examples/sine_window.py                     100 epochs, batches of 32, Adam
    python examples/sine_window.py --compare           against torch.nn.RNN: losses and speed

There are 1000 windows, cut from 1020 points over [0, 10 pi]. The first 800 are for training,
shuffled in each epoch; the last 200 are for testing. Writes sine_window.png to --out.
"""

from __future__ import annotations

import math
import statistics
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    COLORS,
    Comparison,
    Run,
    make_folder,
    make_parser,
    plot_losses,
    report,
    save_picture,
    tidy,
    train_each,
)
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

WINDOWS, WINDOW, TRAIN = 1000, 20, 800


class NextPoint(nn.Module):
    def __init__(self, rnn_class: type[nn.RNN]) -> None:
        super().__init__()
        self.rnn = rnn_class(1, 64, batch_first=True)
        self.linear = nn.Linear(64, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, time, 1) to the points after them (batch, 1)."""
        output, _ = self.rnn(windows)  # (batch, time, 64)
        return self.linear(output[:, -1])


def sine_windows() -> tuple[Tensor, Tensor]:
    """Windows (WINDOWS, WINDOW, 1), and the point after each (WINDOWS, 1)."""
    x = torch.linspace(0, 10 * math.pi, WINDOWS + WINDOW, dtype=torch.float64)
    sine = x.sin().float()
    return sine.unfold(0, WINDOW, 1)[:WINDOWS].unsqueeze(2), sine[WINDOW:].unsqueeze(1)


def train(model: nn.Module, windows: Tensor, points: Tensor, args: Namespace) -> list[float]:
    """Train `model` and return the loss of each step."""
    generator = torch.Generator().manual_seed(args.seed)
    dataset = TensorDataset(windows, points)
    loader = DataLoader(dataset, batch_size=32, shuffle=True, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    losses = []
    for epoch in range(1, args.epochs + 1):
        for x, target in loader:
            optimizer.zero_grad()
            prediction = model(x.to(args.device))
            loss = F.mse_loss(prediction, target.to(args.device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if epoch % max(1, args.epochs // 10) == 0:
            mean = statistics.fmean(losses[-len(loader) :])
            print(f"epoch {epoch:3}/{args.epochs}  loss {mean:.2e}")
    return losses


def draw(runs: list[Run], target: Tensor, prediction: Tensor) -> Figure:
    figure = Figure(figsize=(12, 4), layout="constrained")
    curve, errors, losses = figure.subplots(1, 3)
    color = COLORS[runs[0].name]
    curve.plot(target, color="0.7", linewidth=4, label="target")
    curve.plot(prediction, color=color, linewidth=1.2, label="prediction")
    curve.set(title="the next point, on the test set", xlabel="test window", ylabel="sin x")
    curve.legend(frameon=False)
    errors.plot(prediction - target, color=color)
    errors.axhline(0, color="0.6", linewidth=1)
    errors.set(title="error of the prediction", xlabel="test window", ylabel="prediction - target")
    tidy(curve)
    tidy(errors)
    plot_losses(losses, runs, log=True)
    return figure


@dataclass
class Results:
    runs: list[Run]  # of --impl, and with --compare of the other implementation
    test_error: float  # mean squared
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, epochs=100).parse_args(argv)
    make_folder(args.out)
    windows, points = sine_windows()
    print(f"windows of {WINDOW} points: {TRAIN} for training, {WINDOWS - TRAIN} for testing")

    runs = train_each(
        args,
        NextPoint,
        lambda model: train(model, windows[:TRAIN], points[:TRAIN], args),
        args.epochs,
    )

    target = points[TRAIN:]
    with torch.no_grad():
        predictions = [run.model(windows[TRAIN:].to(args.device)).cpu() for run in runs]
    errors = [F.mse_loss(prediction, target).item() for prediction in predictions]
    baseline = F.mse_loss(windows[TRAIN:, -1], target).item()
    print(f"test error (mean square) of repeating the last point: {baseline:.2e}")
    picture = save_picture(draw(runs, target, predictions[0]), args, "sine_window")
    comparison = report("sine_window", runs, [f"test error {error:.2e}" for error in errors])
    return Results(runs, errors[0], comparison, picture)


if __name__ == "__main__":
    main()
