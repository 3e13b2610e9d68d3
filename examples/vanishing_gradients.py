"""How far back a gradient reaches: vanishing, exploding, clipping, and one step after the other.

The loss at the last step T depends on an early state h[t] through every state between them, so its
gradient is a product of as many factors as there are steps:

    grad_h[t-1] = (grad_h[t] * f'(h[t])) @ w_hh,    |grad_h[t]| <= |w_hh|^(T-t)   as 0 <= f' <= 1

Here w_hh is orthogonal times a spectral radius of 0.5, 1.0 or 1.5: it scales all vectors alike, and
the bound is a straight line on a log plot (Pascanu, Mikolov and Bengio 2013).

1. Gradients. The norm of the gradient with respect to h[t] for all t, tanh and relu. One backward
   pass gives it: where w_ih is the identity, the gradient of input t is that of the pre-activation.
2. Clipping. A tanh network learns to recall its first input after 20 steps of noise, by plain
   gradient descent. Radius 0.5 learns nothing: its gradient vanishes. Radius 1.5 blows up, unless a
   gradient whose norm is above 1 is scaled back to 1.
3. Time. Step t waits for step t-1, so nothing makes a long sequence cheaper by the step; a linear
   layer, with as many weights, takes all steps at once.

    python examples/vanishing_gradients.py             300 steps of training for each network
    python examples/vanishing_gradients.py --compare   against torch.nn.RNN: losses and speed

Writes vanishing_gradients.png to --out.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    CLASS_NAMES,
    COLORS,
    RNN_CLASSES,
    Comparison,
    Run,
    implementations,
    make_folder,
    make_parser,
    save_picture,
    summary_line,
    tidy,
    time_in_turns,
    time_training,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor, nn

HIDDEN = 64
RADII = {0.5: "#2f6db3", 1.0: "#2e8b57", 1.5: "#c0392b"}  # with their colors
STEPS_BACK = 64
RECALL_STEPS, BATCH = 20, 32
CLIP_NORM = 1.0
LAST = 10  # the final loss is the mean of so many last steps
LENGTHS = (1, 4, 16, 64, 256, 1024)
LOSSES_DRAWN = (1e-4, 10.0)


def start_recurrence(rnn: nn.RNN, radius: float) -> None:
    """Make w_hh orthogonal times `radius`, and the biases zero."""
    with torch.no_grad():
        nn.init.orthogonal_(rnn.weight_hh_l0).mul_(radius)
        rnn.bias_ih_l0.zero_()
        rnn.bias_hh_l0.zero_()


# 1. Gradients


def make_free_rnn(impl: str, nonlinearity: str, radius: float, args: argparse.Namespace) -> nn.RNN:
    """An RNN of as many inputs as hidden units that adds its input to the pre-activation."""
    torch.manual_seed(args.seed)
    rnn = RNN_CLASSES[impl](HIDDEN, HIDDEN, nonlinearity=nonlinearity)
    start_recurrence(rnn, radius)
    nn.init.eye_(rnn.weight_ih_l0)
    return rnn.to(args.device)


def gradients_of_states(rnn: nn.RNN, inputs: Tensor, direction: Tensor) -> Tensor:
    """The gradient of sum(h[T] * direction) with respect to every state.

    Inputs (T, batch, HIDDEN) and direction (batch, HIDDEN) to h[1] .. h[T], (T, batch, HIDDEN).
    """
    inputs = inputs.detach().requires_grad_()
    output, _ = rnn(inputs)
    (grad_pre,) = torch.autograd.grad((output[-1] * direction).sum(), inputs)
    earlier = grad_pre[1:] @ rnn.weight_hh_l0.detach()  # grad_h[t-1] = grad_pre[t] @ w_hh
    return torch.cat([earlier, direction.unsqueeze(0)])


def gradient_norms(impl: str, nonlinearity: str, radius: float, args: argparse.Namespace) -> Tensor:
    """The norm of the gradient with respect to h[t], t = 1 .. STEPS_BACK, that is 1 at the end.

    Its median over a batch of random inputs from N(0, 0.1).
    """
    rnn = make_free_rnn(impl, nonlinearity, radius, args)
    generator = torch.Generator().manual_seed(args.seed)
    inputs = 0.1 * torch.randn(STEPS_BACK, BATCH, HIDDEN, generator=generator)
    direction = F.normalize(torch.randn(BATCH, HIDDEN, generator=generator), dim=1)
    gradients = gradients_of_states(rnn, inputs.to(args.device), direction.to(args.device))
    return gradients.double().norm(dim=2).cpu().median(dim=1).values  # squares may be 1e-58


def study_gradients(impls: list[str], args: argparse.Namespace) -> dict[tuple[str, float], Tensor]:
    """The norms by nonlinearity and radius; prints them and how the implementations differ."""
    print(f"gradient of h[{STEPS_BACK}], of norm 1, with respect to h[1]:")
    norms = {}
    for nonlinearity in ("tanh", "relu"):
        for radius in RADII:
            ours, *others = (gradient_norms(impl, nonlinearity, radius, args) for impl in impls)
            norms[nonlinearity, radius] = ours
            factor = (ours[0] / ours[-1]).item() ** (1 / (STEPS_BACK - 1))
            line = f"  {nonlinearity}, radius {radius}: norm {ours[0]:7.1e}, {factor:.2f} a step"
            for norm in others:
                line += f"; largest relative difference {((norm - ours) / ours).abs().max():.1e}"
            print(line)
    return norms


# 2. Clipping


class Recall(nn.Module):
    """The first input, from the state of an RNN with one input after the last."""

    def __init__(self, rnn_class: type[nn.RNN], radius: float) -> None:
        super().__init__()
        self.rnn = rnn_class(1, HIDDEN)
        self.linear = nn.Linear(HIDDEN, 1)
        start_recurrence(self.rnn, radius)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs (time, batch, 1) to recalled inputs (batch, 1)."""
        _, hn = self.rnn(inputs)  # (1, batch, HIDDEN)
        return self.linear(hn[0])


def train(model: Recall, clip_norm: float, args: argparse.Namespace) -> list[float]:
    """Train `model`, keep the norm of each gradient before clipping, and return the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, model.norms = [], []
    for inputs in recall_batches(args):
        optimizer.zero_grad()
        loss = F.mse_loss(model(inputs), inputs[0])
        loss.backward()
        model.norms.append(nn.utils.clip_grad_norm_(model.parameters(), clip_norm))
        optimizer.step()
        losses.append(loss.item())
    return losses


def recall_batches(args: argparse.Namespace) -> Iterator[Tensor]:
    """Inputs (RECALL_STEPS, BATCH, 1): the first is uniform in [-1, 1], the others N(0, 0.1)."""
    generator = torch.Generator().manual_seed(args.seed)
    for _ in range(args.steps):
        inputs = 0.1 * torch.randn(RECALL_STEPS, BATCH, 1, generator=generator)
        inputs[0].uniform_(-1, 1, generator=generator)
        yield inputs.to(args.device)


def train_recall(name: str, radius: float, clip_norm: float, args: argparse.Namespace) -> Run:
    torch.manual_seed(args.seed)
    model = Recall(RNN_CLASSES[name], radius).to(args.device)
    return time_training(name, model, lambda model: train(model, clip_norm, args), parts=10)


def final_loss(run: Run) -> float:
    return statistics.fmean(run.step_losses[-LAST:])


@dataclass
class Clipping:
    """Training at one radius: without clipping, with it, and with it by both implementations."""

    free: Run
    clipped: Run
    comparison: Comparison | None


def study_clipping(args: argparse.Namespace) -> dict[float, Clipping]:
    """Train at each radius; prints the final losses."""
    print(f"recalling the first of {RECALL_STEPS} inputs, loss of the last {LAST} steps:")
    print("  (1/3 is the variance of the input: nothing is recalled)")
    studies = {}
    for radius in RADII:
        runs = [train_recall(name, radius, CLIP_NORM, args) for name in implementations(args)]
        free = train_recall(args.impl, radius, math.inf, args)
        clipped_loss, free_loss = final_loss(runs[0]), final_loss(free)
        print(f"  radius {radius}: {clipped_loss:.4g} clipped, {free_loss:.4g} not clipped")
        comparison = Comparison.of(*runs) if args.compare else None
        if comparison is not None:
            print(comparison)
            for run in runs:
                print(
                    f"{CLASS_NAMES[run.name]}: loss of the last {LAST} steps {final_loss(run):.4g}"
                )
        studies[radius] = Clipping(free, runs[0], comparison)
    return studies


# 3. Time


def study_time(impls: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    """Microseconds a time step of a training call, by model and length; prints them."""
    torch.manual_seed(args.seed)
    models: dict[str, nn.Module] = {
        impl: RNN_CLASSES[impl](HIDDEN, HIDDEN).to(args.device) for impl in impls
    }
    models["linear"] = nn.Linear(HIDDEN, HIDDEN).to(args.device)

    def train_on(model: nn.Module, inputs: Tensor) -> None:
        output = model(inputs)
        (output if isinstance(output, Tensor) else output[0]).sum().backward()

    times: dict[str, list[float]] = {name: [] for name in models}
    for length in LENGTHS:
        inputs = torch.randn(length, 8, HIDDEN, device=args.device)
        calls = {name: partial(train_on, model, inputs) for name, model in models.items()}
        for name, milliseconds in time_in_turns(calls, args.device).items():
            times[name].append(1e3 * milliseconds / length)
    print("microseconds a time step, forward and backward, batch 8:")
    print("  length  " + "".join(f"{length:8}" for length in LENGTHS))
    for name, microseconds in times.items():
        print(f"  {name:8}" + "".join(f"{each:8.2f}" for each in microseconds))
    return times


# The picture


def draw_norms(axes: Axes, nonlinearity: str, norms: dict[tuple[str, float], Tensor]) -> None:
    t = torch.arange(1, STEPS_BACK + 1)
    for radius, color in RADII.items():
        axes.plot(t, norms[nonlinearity, radius], color=color, label=f"radius {radius}")
        axes.plot(t, radius ** (STEPS_BACK - t.double()), color=color, linewidth=1, linestyle=":")
    axes.set(xlabel="t", ylabel=f"norm of the gradient at h[t] (T = {STEPS_BACK})", yscale="log")
    axes.set_title(f"{nonlinearity}; dotted: radius^(T-t)")
    axes.invert_xaxis()  # the gradient's way, from the last step to the first
    axes.legend(frameon=False)
    tidy(axes)


def draw_clipping(axes: Axes, studies: dict[float, Clipping]) -> None:
    low, high = LOSSES_DRAWN
    for kind, dashes, how in (("clipped", "-", "clipped"), ("free", ":", "not clipped")):
        for radius, color in RADII.items():
            steps = torch.tensor(getattr(studies[radius], kind).step_losses)
            smooth = steps.unfold(0, min(LAST, len(steps)), 1).mean(1)
            stays = ((smooth >= low) & (smooth <= high)).all()  # nan does not
            label = f"radius {radius}, {how}" + ("" if stays else ": leaves the picture")
            axes.plot(smooth, dashes, color=color, label=label)
    axes.set(xlabel="training step", ylabel=f"loss, mean of {LAST} steps", yscale="log")
    axes.set_ylim(low, high)
    axes.set_title("recalling the first input")
    axes.legend(frameon=False, ncols=2, fontsize=8)
    tidy(axes)


def draw_times(axes: Axes, times: dict[str, list[float]]) -> None:
    for name, microseconds in times.items():
        color = COLORS.get(name, "0.5")
        label = "linear layer, all steps at once" if name == "linear" else f"RNN ({name})"
        axes.plot(LENGTHS, microseconds, "o-", color=color, label=label)
    axes.set(xlabel="sequence length T", ylabel="µs a time step", xscale="log", yscale="log")
    axes.set_xticks(LENGTHS, [str(length) for length in LENGTHS])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=50))
    axes.yaxis.set_major_formatter("{x:g}")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
    axes.set_title("time of a training call, by time steps")
    axes.legend(frameon=False)
    tidy(axes)


@dataclass
class Results:
    """The results of `--impl`: norms by nonlinearity and radius, training by radius, times."""

    norms: dict[tuple[str, float], Tensor]
    clipping: dict[float, Clipping]
    times: dict[str, list[float]]  # microseconds a time step, by the lengths
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, steps=300).parse_args(argv)
    make_folder(args.out)
    impls = implementations(args)

    norms = study_gradients(impls, args)
    studies = study_clipping(args)
    times = study_time(impls, args)

    figure = Figure(figsize=(10.5, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    draw_norms(panels[0, 0], "tanh", norms)
    draw_norms(panels[0, 1], "relu", norms)
    draw_clipping(panels[1, 0], studies)
    draw_times(panels[1, 1], times)
    picture = save_picture(figure, args, "vanishing_gradients")

    exploding = studies[1.5]
    runs = [run for study in studies.values() for run in (study.clipped, study.free)]
    print(
        summary_line(
            "vanishing_gradients",
            f"loss at radius 1.5 {final_loss(exploding.clipped):.4g} clipped and "
            f"{final_loss(exploding.free):.4g} not clipped",
            sum(run.seconds for run in runs),
            sum(len(run.step_losses) for run in runs),
        )
    )
    return Results(norms, studies, times, picture)


if __name__ == "__main__":
    main()
