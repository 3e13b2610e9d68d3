"""Trials of a perceptual decision, the best possible choices, and pictures of both."""

from __future__ import annotations

import torch
from _common import tidy
from matplotlib import colormaps
from matplotlib.axes import Axes
from torch import Tensor

DT = 20  # ms, of a time step
FIXATION, STIMULUS, DECISION = 200 // DT, 800 // DT, 200 // DT  # steps
GO = FIXATION + STIMULUS  # the first step of the decision
COHERENCES = (0.0, 0.032, 0.064, 0.128, 0.256, 0.512)
SIGMA = 1.0  # of the stimuli's noise, in each step


def signed_coherences() -> Tensor:
    """The coherences in favor of the second stimulus (negative) and of the first, in order."""
    return torch.tensor(sorted({*COHERENCES, *(-c for c in COHERENCES)}))


def make_trials(coherences: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Trials of signed coherences (batch): the first stimulus's mean minus the second's.

    Returns inputs (time, batch, 3), which are the fixation signal and the stimuli, and the right
    outputs (time, batch): 0 to fixate, 1 or 2 for a stimulus. Where the means are equal, the right
    one is drawn.
    """
    batch = len(coherences)
    inputs = torch.zeros(GO + DECISION, batch, 3)
    inputs[:GO, :, 0] = 1
    means = torch.stack([1 + coherences, 1 - coherences], dim=1) / 2
    noise = SIGMA * torch.randn(STIMULUS, batch, 2, generator=generator)
    inputs[FIXATION:GO, :, 1:] = means + noise
    drawn = torch.randint(2, (batch,), generator=generator)
    second = torch.where(coherences == 0, drawn, coherences < 0)
    targets = torch.zeros(GO + DECISION, batch, dtype=torch.long)
    targets[GO:] = 1 + second
    return inputs, targets


def best_possible(coherences: Tensor) -> Tensor:
    """The probability that the first stimulus has the larger sum.

    The sum of the differences is from N(steps * coherence, 2 * steps * sigma^2).
    """
    return torch.special.ndtr(coherences * (STIMULUS / 2) ** 0.5 / SIGMA)


def plot_choices(axes: Axes, first: Tensor, color: str) -> None:
    """The psychometric curve: how often the first stimulus is chosen, by signed coherence."""
    coherences = signed_coherences()
    fine = torch.linspace(coherences.min(), coherences.max(), 200)
    axes.plot(fine, best_possible(fine), color="0.6", label="best possible")
    axes.plot(coherences, first, "o", color=color, label="network")
    axes.set(xlabel="coherence, for the first (+) or the second (-)", ylim=(-0.03, 1.03))
    axes.set(ylabel="share of trials", title="the first stimulus is chosen")
    axes.legend(frameon=False)
    tidy(axes)


def principal_components(states: Tensor, count: int = 2) -> Tensor:
    """Project states (..., hidden) on the directions in which they vary most: (..., count)."""
    centered = states - states.flatten(0, -2).mean(0)
    _, _, vh = torch.linalg.svd(centered.flatten(0, -2), full_matrices=False)
    return centered @ vh[:count].T


def plot_trajectories(axes: Axes, means: Tensor) -> None:
    """The mean states (time, signed coherence, hidden), less what all coherences share.

    In the plane in which the rest varies most.
    """
    paths = principal_components(means - means.mean(dim=1, keepdim=True))
    coherences = signed_coherences().tolist()
    labels = {min(coherences): "second larger", 0.0: "equal", max(coherences): "first larger"}
    for i, coherence in enumerate(coherences):
        colors = colormaps["Greens" if coherence > 0 else "Purples"]
        color = colors(0.35 + 0.6 * abs(coherence) / max(coherences)) if coherence else "0.6"
        axes.plot(*paths[:, i].T, color=color, label=labels.get(coherence))
        axes.plot(*paths[GO - 1, i], "o", color=color)
    axes.set(xlabel="first principal component", ylabel="second principal component")
    axes.set_title("mean states by coherence; dot: stimulus off")
    axes.legend(frameon=False, loc=(0.45, 0.79))
    tidy(axes)
