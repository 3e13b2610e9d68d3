"""A noisy sine, one step ahead and many: an MLP and an RNN on windows of four points.

The series is x[i] = sin(0.01 i) + noise, i = 1 .. 1000, with noise from N(0, 0.2). Two models
learn to predict x[i] from the four points before it, on the first 600 windows, in batches of 32:

    MLP:  four inputs, ten units with ReLU, one output: each point has its own weights
    RNN:  a sequence of four steps, h[t] = tanh(x[t] * w_ih + b_ih + h[t-1] @ w_hh.T + b_hh), and a
          linear layer on the last hidden state: all points share their weights

So the weights of the MLP grow with the window, and those of the RNN do not. One step ahead, both
models follow the clean sine; no error (mean square) can be below the variance of the noise, 0.04.

To look further ahead, a model reads its own predictions in place of the points it has not seen. It
soon loses the sine. Within four points the sine changes by at most 0.03 and the noise hides that,
so the window shows how high the sine is, but hardly whether it rises or falls.

    python examples/noisy_sine.py                      100 epochs of Adam
    python examples/noisy_sine.py --compare            against torch.nn.RNN: losses and speed

Writes noisy_sine.png to --out.
"""

from __future__ import annotations

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
    report,
    save_picture,
    tidy,
    time_training,
    train_each,
)
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

POINTS, TAU, TRAIN = 1000, 4, 600
AHEAD = (1, 4, 16, 64)
MLP_COLOR = "#8e5ea2"


class WindowRNN(nn.Module):
    def __init__(self, rnn_class: type[nn.RNN]) -> None:
        super().__init__()
        self.rnn = rnn_class(1, 32, batch_first=True)
        self.linear = nn.Linear(32, 1)

    def forward(self, windows: Tensor) -> Tensor:
        """Windows (batch, TAU) to the points after them (batch, 1)."""
        output, _ = self.rnn(windows.unsqueeze(2))  # (batch, TAU, 32)
        return self.linear(output[:, -1])


def make_mlp() -> nn.Module:
    """Windows (batch, TAU) to the points after them (batch, 1)."""
    mlp = nn.Sequential(nn.Linear(TAU, 10), nn.ReLU(), nn.Linear(10, 1))
    for layer in (mlp[0], mlp[2]):
        nn.init.xavier_uniform_(layer.weight)
    return mlp


def make_series(seed: int) -> Tensor:
    """x[1 .. POINTS], shape (POINTS)."""
    noise = torch.randn(POINTS, generator=torch.Generator().manual_seed(seed))
    return (0.01 * torch.arange(1, POINTS + 1)).sin() + 0.2 * noise


def train(model: nn.Module, windows: Tensor, points: Tensor, args: Namespace) -> list[float]:
    """Train `model` on the windows in order, and return the loss of each step."""
    loader = DataLoader(TensorDataset(windows, points), batch_size=32)
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
            print(f"epoch {epoch:3}/{args.epochs}  loss {mean:.4f}")
    return losses


@torch.no_grad()
def forecast(model: nn.Module, windows: Tensor, steps: int) -> Tensor:
    """Predict the next `steps` points after each window (N, TAU); returns (N, steps).

    Each prediction joins the window from which the next one is made.
    """
    predictions = []
    for _ in range(steps):
        predictions.append(model(windows))
        windows = torch.cat([windows[:, 1:], predictions[-1]], dim=1)
    return torch.cat(predictions, dim=1)


def errors_ahead(predictions: Tensor, series: Tensor) -> list[float]:
    """The mean square error 1, 2, 3, ... steps ahead, over the windows after the training data.

    `predictions` (N, steps) are those for the N windows of `series`.
    """
    errors = []
    for k in range(1, predictions.size(1) + 1):
        targets = series[TRAIN + TAU + k - 1 :]
        errors.append(F.mse_loss(predictions[TRAIN : TRAIN + len(targets), k - 1], targets).item())
    return errors


def draw(
    series: Tensor, predictions: dict[str, Tensor], errors: dict[str, list[float]], rnn: str
) -> Figure:
    """What both models predict 1, 16 and 64 steps ahead, and their errors by steps ahead."""
    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplot_mosaic("AAA;BCD")
    colors = {"MLP": MLP_COLOR, rnn: COLORS[rnn]}
    time = torch.arange(1, POINTS + 1)
    for letter, k in (("A", 1), ("B", 16), ("C", 64)):
        axes = panels[letter]
        axes.plot(time, series, ".", color="0.8", markersize=3, label="noisy data")
        axes.plot(time, (0.01 * time).sin(), color="0.3", linewidth=1, label="clean sine")
        for name, color in colors.items():
            known = predictions[name][: POINTS - TAU - k + 1, k - 1]
            label = "MLP" if name == "MLP" else "RNN"
            axes.plot(time[TAU + k - 1 :], known, color=color, linewidth=1, label=label)
        axes.axvline(TRAIN + TAU, color="0.4", linewidth=1, linestyle=":")
        axes.set(xlabel="i", ylabel="x[i]", ylim=(-2, 2), title=f"{k} step{'s' * (k > 1)} ahead")
        tidy(axes)
    panels["A"].legend(frameon=False, ncols=4, loc="lower left")
    panels["A"].text(TRAIN + TAU + 5, 1.6, "test")
    for name, color in {**colors, "repeat the last point": "0.5"}.items():
        label = "RNN" if name == rnn else name
        panels["D"].plot(range(1, len(errors[name]) + 1), errors[name], color=color, label=label)
    panels["D"].axhline(
        0.04, color="0.5", linewidth=1, linestyle=":", label="variance of the noise"
    )
    panels["D"].set(
        title="test error (mean square)", xlabel="steps ahead", xscale="log", yscale="log"
    )
    panels["D"].set_xticks(AHEAD, [str(k) for k in AHEAD])
    panels["D"].set_yticks((0.05, 0.1, 0.2, 0.5, 1, 2), ["0.05", "0.1", "0.2", "0.5", "1", "2"])
    panels["D"].minorticks_off()
    panels["D"].legend(frameon=False)
    tidy(panels["D"])
    return figure


@dataclass
class Results:
    mlp: Run
    runs: list[Run]  # of --impl's RNN, and with --compare of the other one
    errors: dict[str, list[float]]  # of each model, 1, 2, 3, ... steps ahead
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, epochs=100).parse_args(argv)
    make_folder(args.out)
    series = make_series(args.seed)
    windows = series.unfold(0, TAU, 1)[:-1]  # (POINTS - TAU, TAU)
    x, target = windows[:TRAIN], series[TAU : TAU + TRAIN, None]
    print(f"windows of {TAU} points: {TRAIN} for training, {len(windows) - TRAIN} for testing")

    print("training the MLP")
    torch.manual_seed(args.seed)
    mlp = make_mlp().to(args.device)
    mlp = time_training("MLP", mlp, lambda model: train(model, x, target, args), args.epochs)
    runs = train_each(args, WindowRNN, lambda model: train(model, x, target, args), args.epochs)

    models = {run.name: run.model for run in (mlp, *runs)}
    for name, model in models.items():
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters")
    inputs = windows.to(args.device)
    predictions = {name: forecast(model, inputs, AHEAD[-1]).cpu() for name, model in models.items()}
    repeated = windows[:, -1:].expand(-1, AHEAD[-1])
    errors = {
        name: errors_ahead(each, series)
        for name, each in {**predictions, "repeat the last point": repeated}.items()
    }
    print("test error (mean square)" + "".join(f"{k:6} ahead" for k in AHEAD))
    for name, each in errors.items():
        print(f"{name:24}" + "".join(f"{each[k - 1]:12.4f}" for k in AHEAD))
    picture = save_picture(draw(series, predictions, errors, args.impl), args, "noisy_sine")
    figures = [f"one-step test error {errors[run.name][0]:.4f}" for run in runs]
    comparison = report("noisy_sine", runs, figures)
    return Results(mlp, runs, errors, comparison, picture)


if __name__ == "__main__":
    main()
