"""From a sine to its cosine: a hidden state that is carried from step to step.

A point of a sine does not say what the cosine is there: sin = 0.5 goes with a cosine of +0.87 or
-0.87. Which, depends on whether the sine rises or falls, so the network must remember. Training
step k reads 10 points of one half wave, t in [k*pi, (k+1)*pi], and learns cos t from sin t:

    h[t] = tanh(sin(t) * w_ih + b_ih + h[t-1] @ w_hh.T + b_hh),    prediction[t] = h[t] @ w.T + b

The next step goes on in time, so it begins with the state that this one ended with. The state is
detached: its value is carried over, but no gradient flows into the past step (truncated
backpropagation through time, Williams and Peng 1990).

    python examples/sin_to_cos.py                      both networks, 300 steps of Adam
    python examples/sin_to_cos.py --compare            against torch.nn.RNN, loss and speed

Two networks learn it: RNN(1, 32), and RNN(2, 32, num_layers=2) that is fed (sin t, sin t). It
writes sin_to_cos.png to --out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
from collections.abc import Iterator
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
    summary_line,
    tidy,
    train_steps,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

POINTS = 10  # of each training step, both ends of the half wave included
LAST = 10  # the final loss is the mean of so many last steps
NETWORKS = {"RNN(1, 32)": (1, 1), "RNN(2, 32, num_layers=2)": (2, 2)}  # inputs, layers


class CosineFromSine(nn.Module):
    """An RNN with 32 hidden units and, at each time step, a linear layer on its state."""

    def __init__(self, rnn_class: type[nn.RNN], inputs: int, layers: int) -> None:
        super().__init__()
        self.rnn = rnn_class(inputs, 32, num_layers=layers, batch_first=True)
        self.linear = nn.Linear(32, 1)

    def forward(self, sines: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sines (batch, time, inputs) and the state before to cosines (batch, time, 1) and hn."""
        output, hn = self.rnn(sines, hx)  # output (batch, time, 32), hn (layers, batch, 32)
        return by_reshape(self.linear, output), hn


def by_loop(linear: nn.Linear, output: Tensor) -> Tensor:
    """The linear layer applied to one time step after the other."""
    return torch.stack([linear(output[:, t]) for t in range(output.size(1))], dim=1)


def by_reshape(linear: nn.Linear, output: Tensor) -> Tensor:
    """The same in one product: to a linear layer, time steps are rows like any other."""
    batch, time, hidden_size = output.shape
    return linear(output.reshape(batch * time, hidden_size)).view(batch, time, -1)


def half_waves(inputs: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """For k = 0, 1, ...: sines (1, POINTS, inputs), all inputs alike, and cosines (1, POINTS, 1).

    Computed in float64, so that late steps are as exact as early ones.
    """
    for k in itertools.count():
        t = torch.linspace(k * math.pi, (k + 1) * math.pi, POINTS, dtype=torch.float64)
        sines = t.sin().float().view(1, POINTS, 1).expand(-1, -1, inputs)
        yield sines.to(device), t.cos().float().view(1, POINTS, 1).to(device)


@dataclass
class CosineRun(Run):
    """A run that keeps what it predicted at each step, before the step's update."""

    predictions: list[Tensor] | None = None


def make_run(impl: str, args: argparse.Namespace, network: str) -> CosineRun:
    """A new model with its optimizer, and the state that it carries."""
    torch.manual_seed(args.seed)
    model = CosineFromSine(RNN_CLASSES[impl], *NETWORKS[network]).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)
    # At a rate that stays, the loss jumps up now and then until the end.
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=args.steps)
    state: Tensor | None = None  # before the first step: zeros
    predictions: list[Tensor] = []

    def step(sines: Tensor, cosines: Tensor) -> Tensor:
        nonlocal state
        prediction, hn = model(sines, state)
        state = hn.detach()
        loss = F.mse_loss(prediction, cosines)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        predictions.append(prediction.detach())
        return loss.detach()

    return CosineRun(impl, model, step, predictions=predictions)


def loop_against_reshape(model: CosineFromSine, device: torch.device) -> float:
    """The largest difference between the two ways to apply the linear layer."""
    sines, _ = next(half_waves(model.rnn.input_size, device))
    with torch.no_grad():
        output, _ = model.rnn(sines)
        difference = by_loop(model.linear, output) - by_reshape(model.linear, output)
    return difference.abs().max().item()


def final_loss(run: Run) -> float:
    return statistics.fmean(run.step_losses[-LAST:])


def draw(path: Path, runs: dict[str, list[CosineRun]]) -> None:
    """For each network: its first and last predictions against the cosine, and its losses."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    rows = figure.subplots(len(runs), 3, width_ratios=(3, 3, 2), squeeze=False)
    for (first_axes, last_axes, loss_axes), (network, both) in zip(rows, runs.items(), strict=True):
        run = both[0]
        steps = len(run.predictions)
        shown = min(steps, 8)
        for axes, start in ((first_axes, 0), (last_axes, steps - shown)):
            t = torch.linspace(start, start + shown, 400)
            axes.plot(t, (t * math.pi).cos(), color="0.6", label="cos t")
            for k in range(start, start + shown):
                points = torch.linspace(k, k + 1, POINTS)
                axes.plot(
                    points,
                    run.predictions[k].flatten().cpu(),
                    ".-",
                    color=COLORS[run.name],
                    linewidth=1,
                    label="predicted" if k == start else None,
                )
            axes.set(xlabel="t / π", xlim=(start, start + shown), ylim=(-2.3, 1.7))
            tidy(axes)
        first_axes.set_ylabel(network)
        first_axes.set_title(f"the first {shown} steps")
        last_axes.set_title(f"the last {shown} of {steps}")
        first_axes.legend(frameon=False, ncols=2, loc="lower right")
        plot_losses(loss_axes, both, unit="step", log=True)
    figure.savefig(path, dpi=75)


@dataclass
class Results:
    """For each network, what came of `--impl`, and with `--compare` how the two compare."""

    runs: dict[str, list[CosineRun]]
    final_losses: dict[str, float]
    comparisons: dict[str, Comparison]
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, steps=300).parse_args(argv)
    make_folder(args.out)

    runs: dict[str, list[CosineRun]] = {}
    comparisons: dict[str, Comparison] = {}
    for network, (inputs, _) in NETWORKS.items():
        print(f"{network} with a linear layer on each time step, on {args.device}")
        both = make_runs(args, lambda impl, network=network: make_run(impl, args, network))
        train_steps(both, half_waves(inputs, args.device), args.steps)
        difference = loop_against_reshape(both[0].model, args.device)
        print(f"linear layer in a loop over time against one reshape: differ by {difference:.1e}")
        if args.compare:
            comparisons[network] = Comparison.of(*both)
            print(comparisons[network])
            for run in both:
                print(f"{run.name}: loss of the last {LAST} steps {final_loss(run):.5f}")
        runs[network] = both

    picture = args.out / "sin_to_cos.png"
    draw(picture, runs)
    print(f"wrote {picture}")

    ours = {network: both[0] for network, both in runs.items()}
    final_losses = {network: final_loss(run) for network, run in ours.items()}
    figure = " and ".join(f"{loss:.5f} with {network}" for network, loss in final_losses.items())
    seconds = sum(run.seconds for run in ours.values())
    steps = sum(len(run.step_losses) for run in ours.values())
    print(summary_line("sin_to_cos", f"loss of the last {LAST} steps {figure}", seconds, steps))
    return Results(runs, final_losses, comparisons, picture)


if __name__ == "__main__":
    main()
