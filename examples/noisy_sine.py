"""A noisy sine, one step ahead and many: an MLP and an RNN on windows of four points.

The series is x[i] = sin(0.01 i) + noise, i = 1 .. 1000, with noise from N(0, 0.2). An
autoregressive model of order tau = 4 predicts x[i] from x[i-4] .. x[i-1]. Two of them learn it from
the first 600 windows, in order, in batches of 32:

    MLP:  four inputs, ten units with ReLU, one output: each lag has weights of its own
    RNN:  a sequence of four steps, h[t] = tanh(x[t] * w_ih + b_ih + h[t-1] @ w_hh.T + b_hh), and a
          linear layer on the last state: one set of weights for all lags

To look k steps ahead, the model takes its own predictions for the points that it has not seen, and
errors add up: fed with themselves for long, both run into values that they then never leave.

    python examples/noisy_sine.py                      10 epochs of Adam
    python examples/noisy_sine.py --compare            against torch.nn.RNN, loss and speed

No model can have a one-step error (mean square) below the variance of the noise, 0.04. It writes
noisy_sine.png to --out.
"""

from __future__ import annotations

import argparse
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
    report,
    tidy,
    train_part,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

POINTS, TAU, TRAIN, BATCH = 1000, 4, 600, 32
STEPS_AHEAD = (1, 4, 16, 64)
MLP_COLOR = "#8e5ea2"


class WindowRNN(nn.Module):
    """The point after a window, from the state of an RNN with 32 units at its end."""

    def __init__(self, rnn_class: type[nn.RNN]) -> None:
        super().__init__()
        self.rnn = rnn_class(1, 32, batch_first=True)
        self.linear = nn.Linear(32, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, TAU) to points (batch, 1)."""
        output, _ = self.rnn(windows.unsqueeze(2))  # (batch, TAU, 32)
        return self.linear(output[:, -1])


def make_mlp() -> nn.Module:
    """Windows (batch, TAU) to points (batch, 1), with weights as Glorot and Bengio start them."""
    mlp = nn.Sequential(nn.Linear(TAU, 10), nn.ReLU(), nn.Linear(10, 1))
    for layer in (mlp[0], mlp[2]):
        nn.init.xavier_uniform_(layer.weight)
    return mlp


def make_series(seed: int) -> Tensor:
    """x[1 .. POINTS], shape (POINTS)."""
    noise = torch.randn(POINTS, generator=torch.Generator().manual_seed(seed))
    return (0.01 * torch.arange(1, POINTS + 1)).sin() + 0.2 * noise


def make_run(name: str, args: argparse.Namespace) -> Run:
    """A new model with its optimizer; `name` is "MLP" or whose RNN."""
    torch.manual_seed(args.seed)
    model = (make_mlp() if name == "MLP" else WindowRNN(RNN_CLASSES[name])).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(windows: Tensor, points: Tensor) -> Tensor:
        loss = F.mse_loss(model(windows), points)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return Run(name, model, step)


@torch.no_grad()
def forecast(model: nn.Module, windows: Tensor, steps: int) -> Tensor:
    """What the model says for each of the next `steps` points after each window (N, TAU).

    Each prediction joins the window from which the next is made. Returns (N, steps).
    """
    predictions = []
    for _ in range(steps):
        predictions.append(model(windows))
        windows = torch.cat([windows[:, 1:], predictions[-1]], dim=1)
    return torch.cat(predictions, dim=1)


def errors_ahead(predictions: Tensor, series: Tensor) -> dict[int, float]:
    """The mean square error so many steps ahead, of windows that lie behind the training data.

    `predictions` (N, steps) are for the N windows of `series` from its start.
    """
    errors = {}
    for k in STEPS_AHEAD:
        targets = series[TRAIN + TAU + k - 1 :]
        errors[k] = F.mse_loss(predictions[TRAIN : TRAIN + len(targets), k - 1], targets).item()
    return errors


def draw(path: Path, series: Tensor, runs: list[Run], predictions: list[Tensor]) -> None:
    """The data with what `runs`, an MLP and an RNN, predict, 1 and 16 and 64 steps ahead."""
    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    panels = figure.subplot_mosaic("AAA;BCD", height_ratios=(1, 1))
    colors = [MLP_COLOR, COLORS[runs[1].name]]
    names = ["MLP", f"RNN ({runs[1].name})"]

    def panel(letter: str, k: int) -> None:
        axes = panels[letter]
        axes.plot(range(1, POINTS + 1), series, ".", color="0.8", markersize=3, label="data")
        for color, name, prediction in zip(colors, names, predictions, strict=True):
            count = POINTS - TAU - k + 1  # of windows whose point k steps ahead is in the series
            time = range(TAU + k, TAU + k + count)
            axes.plot(time, prediction[:count, k - 1], color=color, linewidth=1, label=name)
        axes.axvline(TRAIN + TAU, color="0.4", linewidth=1, linestyle=":")
        axes.set(xlabel="i", ylim=(-1.8, 1.8))
        axes.set_title(f"{k} step{'s' * (k > 1)} ahead")
        tidy(axes)

    panel("A", 1)
    panels["A"].legend(frameon=False, ncols=3, loc="lower left")
    panels["A"].text(TRAIN + TAU + 5, 1.5, "test")
    panel("B", 16)
    panel("C", 64)
    for color, name, run in zip(colors, names, runs, strict=True):
        epochs = range(1, len(run.losses) + 1)
        panels["D"].plot(epochs, run.losses, "o-", color=color, label=name)
    panels["D"].axhline(0.04, color="0.4", linewidth=1, linestyle="--", label="noise")
    panels["D"].set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    panels["D"].legend(frameon=False)
    tidy(panels["D"])
    figure.savefig(path, dpi=80)


@dataclass
class Results:
    """What came of the MLP and of `--impl`'s RNN, and how this stands to the other RNN."""

    mlp: Run
    runs: list[Run]
    errors: dict[str, dict[int, float]]  # of each model, by how many steps ahead, mean squared
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, epochs=10).parse_args(argv)
    make_folder(args.out)

    series = make_series(args.seed)
    windows = series.unfold(0, TAU, 1)[:-1].to(args.device)  # (POINTS - TAU, TAU)
    points = series[TAU:].unsqueeze(1).to(args.device)
    print(
        f"{TRAIN} windows of {TAU} points to train on, {len(windows) - TRAIN} for the test; "
        f"MLP({TAU}-10-1) and RNN(1, 32), on {args.device}"
    )
    mlp = make_run("MLP", args)
    runs = make_runs(args, lambda impl: make_run(impl, args))
    parts = [tensor[:TRAIN].split(BATCH) for tensor in (windows, points)]
    batches = list(zip(*parts, strict=True))  # in the order of time, in each epoch
    for epoch in range(1, args.epochs + 1):
        label = f"epoch {epoch:{len(str(args.epochs))}}/{args.epochs}"
        train_part([mlp, *runs], batches, steps=len(batches), label=label)

    models = [mlp, *runs]
    predictions = [forecast(run.model, windows, max(STEPS_AHEAD)).cpu() for run in models]
    errors = {
        run.name: errors_ahead(prediction, series)
        for run, prediction in zip(models, predictions, strict=True)
    }
    print("test error (mean square)  " + "".join(f"{k:4} ahead" for k in STEPS_AHEAD))
    last = errors_ahead(windows[:, -1:].expand(-1, max(STEPS_AHEAD)).cpu(), series)
    for name, by_steps in {**errors, "the last point again": last}.items():
        print(f"{name:26}" + "".join(f"{error:10.4f}" for error in by_steps.values()))

    picture = args.out / "noisy_sine.png"
    draw(picture, series, models[:2], predictions[:2])
    print(f"wrote {picture}")
    figures = [f"one-step test error {errors[run.name][1]:.4f}" for run in runs]
    comparison = report("noisy_sine", runs, figures)
    return Results(mlp, runs, errors, comparison, picture)


if __name__ == "__main__":
    main()
