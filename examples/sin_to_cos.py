"""From a sine to its cosine: a hidden state that is carried from step to step.

One point of a sine does not determine the cosine: where sin t = 0.5, cos t is +0.87 or -0.87,
depending on whether the sine rises or falls. So the network has to remember. Training step k reads
10 points of one half wave, t in [k*pi, (k+1)*pi], and learns cos t from sin t:

    h[t] = tanh(sin(t) * w_ih + b_ih + h[t-1] @ w_hh.T + b_hh),    prediction[t] = h[t] @ w.T + b

The next training step continues in time, so it starts from the hidden state that this one ended
with. That state is detached: its value is carried over, but no gradient flows back into the step
before (truncated backpropagation through time, Williams and Peng 1990).

    python examples/sin_to_cos.py                      both networks, 300 steps of Adam
    python examples/sin_to_cos.py --compare            against torch.nn.RNN: losses and speed

Two networks learn it: RNN(1, 32), and RNN(2, 32, num_layers=2), whose two inputs are both sin t.
Writes sin_to_cos.png to --out.
"""

from __future__ import annotations

import itertools
import math
import statistics
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    CLASS_NAMES,
    COLORS,
    Comparison,
    Run,
    make_folder,
    make_parser,
    plot_losses,
    save_picture,
    summary_line,
    tidy,
    train_each,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

POINTS = 10  # of a half wave, both ends included
LAST = 10  # training steps over which the final loss is averaged
NETWORKS = {"RNN(1, 32)": (1, 1), "RNN(2, 32, num_layers=2)": (2, 2)}  # inputs, layers


class CosineFromSine(nn.Module):
    def __init__(self, rnn_class: type[nn.RNN], inputs: int, layers: int) -> None:
        super().__init__()
        self.rnn = rnn_class(inputs, 32, num_layers=layers, batch_first=True)
        self.linear = nn.Linear(32, 1)

    def forward(self, sines: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Sines (batch, time, inputs) and a hidden state to cosines (batch, time, 1) and hn."""
        output, hn = self.rnn(sines, hx)  # output (batch, time, 32), hn (layers, batch, 32)
        return by_reshape(self.linear, output), hn


def by_loop(linear: nn.Linear, output: Tensor) -> Tensor:
    """Apply the linear layer to one time step after another."""
    return torch.stack([linear(output[:, t]) for t in range(output.size(1))], dim=1)


def by_reshape(linear: nn.Linear, output: Tensor) -> Tensor:
    """The same in one product: to a linear layer, time steps are just more rows."""
    batch, time, hidden_size = output.shape
    return linear(output.reshape(batch * time, hidden_size)).view(batch, time, -1)


def half_waves(inputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """For k = 0, 1, ...: sines (1, POINTS, inputs) and cosines (1, POINTS, 1)."""
    for k in itertools.count():
        t = torch.linspace(k * math.pi, (k + 1) * math.pi, POINTS, dtype=torch.float64)
        yield t.sin().float().view(1, -1, 1).expand(-1, -1, inputs), t.cos().float().view(1, -1, 1)


def train(model: nn.Module, args: Namespace) -> list[float]:
    """Train `model`, keep what it predicts on the way, and return the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, fused=True)
    state = None  # zeros
    losses, model.predictions = [], []
    for k, (sines, cosines) in enumerate(half_waves(model.rnn.input_size)):
        if k == args.steps:
            break
        prediction, hn = model(sines.to(args.device), state)
        state = hn.detach()
        loss = F.mse_loss(prediction, cosines.to(args.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        model.predictions.append(prediction.detach().cpu())
        if (k + 1) % max(1, args.steps // 10) == 0:
            print(f"step {k + 1:3}/{args.steps}  loss {losses[-1]:.5f}")
    return losses


def draw(runs: dict[str, list[Run]]) -> Figure:
    """For each network: its first and its last predictions beside the cosine, and its losses."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    rows = figure.subplots(len(runs), 3, width_ratios=(3, 3, 2))
    for (first, last, losses), (network, both) in zip(rows, runs.items(), strict=True):
        run = both[0]
        predictions = run.model.predictions
        steps, shown = len(predictions), min(len(predictions), 8)
        for axes, start in ((first, 0), (last, steps - shown)):
            t = torch.linspace(start, start + shown, 400)
            axes.plot(t, (t * math.pi).cos(), color="0.7", linewidth=4, label="target: cos t")
            for k in range(start, start + shown):
                label = "prediction" if k == start else None
                x, y = torch.linspace(k, k + 1, POINTS), predictions[k].flatten()
                axes.plot(x, y, ".-", color=COLORS[run.name], linewidth=1, label=label)
            axes.set(xlabel="t / π", xlim=(start, start + shown), ylim=(-2.4, 1.6))
            tidy(axes)
        first.set_title(f"the first {shown} training steps")
        first.set_ylabel(network)
        last.set_title(f"the last {shown} of {steps} training steps")
        first.legend(frameon=False, ncols=2, loc="lower right")
        plot_losses(losses, both, unit="step", log=True)
    return figure


def loop_against_reshape(model: nn.Module, device: torch.device) -> float:
    """The largest difference between the two ways to apply the linear layer."""
    sines, _ = next(half_waves(model.rnn.input_size))
    with torch.no_grad():
        output, _ = model.rnn(sines.to(device))
        difference = by_loop(model.linear, output) - by_reshape(model.linear, output)
    return difference.abs().max().item()


def final_loss(run: Run) -> float:
    return statistics.fmean(run.step_losses[-LAST:])


@dataclass
class Results:
    runs: dict[str, list[Run]]  # of each network: of --impl, and with --compare of the other
    comparisons: dict[str, Comparison]
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, steps=300).parse_args(argv)
    make_folder(args.out)
    runs, comparisons = {}, {}
    for network, (inputs, layers) in NETWORKS.items():
        print(f"{network} and a linear layer on each time step")
        runs[network] = train_each(
            args,
            lambda rnn_class, size=(inputs, layers): CosineFromSine(rnn_class, *size),
            lambda model: train(model, args),
        )
        difference = loop_against_reshape(runs[network][0].model, args.device)
        print(
            f"linear layer step by step or on all steps at once: outputs differ by {difference:.1e}"
        )
        if args.compare:
            comparisons[network] = Comparison.of(*runs[network])
            print(comparisons[network])
    for network, both in runs.items():
        for run in both:
            figure = f"{final_loss(run):.5f} with {network}"
            print(f"{CLASS_NAMES[run.name]}: loss of the last {LAST} steps {figure}")

    picture = save_picture(draw(runs), args, "sin_to_cos")
    ours = [both[0] for both in runs.values()]
    figure = " and ".join(f"{final_loss(run):.5f}" for run in ours)
    seconds, steps = sum(run.seconds for run in ours), sum(len(run.step_losses) for run in ours)
    print(summary_line("sin_to_cos", f"loss of the last {LAST} steps {figure}", seconds, steps))
    return Results(runs, comparisons, picture)


if __name__ == "__main__":
    main()
