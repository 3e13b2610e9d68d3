"""A decision from noisy evidence: a leaky RNN, as neuroscience trains it.

A trial has a fixation signal and two stimuli that are noisy around two means. While the signal is
on, the network has to fixate; when it goes off, the network has to choose the stimulus with the
larger mean. The difference of the means is the coherence: the smaller, the harder.

    h[t] = (1 - alpha) h[t-1] + alpha tanh(x[t] @ w_ih.T + b_ih + h[t-1] @ w_hh.T + b_hh + noise[t])
    scores[t] = h[t] @ w.T + b        to fixate, to choose the first, to choose the second

A time step is dt = 20 ms and the time constant of a unit tau = 100 ms, so alpha = dt / tau = 0.2. A
unit alone would forget the stimuli, which last 800 ms, so the recurrence has to keep them. w_hh
starts as the identity and the biases at zero (Le, Jaitly and Hinton 2015): then a unit whose state
is small adds up its input.

The best possible choice is that of the larger sum over the whole stimulus. It is right with the
probability Phi(coherence sqrt(steps / 2) / sigma), where sigma is the noise of each step.

    python examples/decision_making.py              400 steps of training
    python examples/decision_making.py --compare    against a loop over time: results and speed

Writes decision_making.png to --out.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    time_in_turns,
    train_each,
)
from _decisions import (
    COHERENCES,
    DT,
    best_possible,
    make_trials,
    plot_choices,
    plot_trajectories,
    signed_coherences,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastrnn import LeakyRNN

TAU = 100  # ms
HIDDEN, BATCH, TEST = 64, 64, 500  # TEST trials of each signed coherence
RATE_NOISE = 0.05


class LoopRNN(nn.RNN):
    """LeakyRNN as it is usually written, a loop over time; nn.RNN only holds the weights."""

    def __init__(self, *sizes: int, alpha: float, noise: float, nonlinearity: str) -> None:
        super().__init__(*sizes, nonlinearity=nonlinearity)
        self.alpha, self.noise = alpha, noise

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Input (T, B, I) to the states (T, B, H) and the last one (1, B, H)."""
        h = input.new_zeros(input.size(1), self.hidden_size)
        noise = torch.randn(len(input), *h.shape, dtype=h.dtype, device=h.device)
        noise = self.noise * (2 / self.alpha) ** 0.5 * noise
        states = []
        for x, noise_t in zip(input, noise, strict=True):
            gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0) + noise_t
            gates = gates + F.linear(h, self.weight_hh_l0, self.bias_hh_l0)
            h = (1 - self.alpha) * h + self.alpha * torch.tanh(gates)
            states.append(h)
        return torch.stack(states), h.unsqueeze(0)


RNN_CLASSES = {"fastrnn": LeakyRNN, "torch": LoopRNN}
TITLES = {"fastrnn": "fastrnn.LeakyRNN", "torch": "loop over time"}


class Decider(nn.Module):
    def __init__(self, rnn_class: type[nn.RNN]) -> None:
        super().__init__()
        self.rnn = rnn_class(3, HIDDEN, nonlinearity="tanh", alpha=DT / TAU, noise=RATE_NOISE)
        self.linear = nn.Linear(HIDDEN, 3)
        nn.init.eye_(self.rnn.weight_hh_l0)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (time, batch, 3) to scores (time, batch, 3) and states (time, batch, HIDDEN)."""
        states, _ = self.rnn(inputs)
        return self.linear(states), states


def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of all steps."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def draw_batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """BATCH trials; all signed coherences are equally likely."""
    coherences = signed_coherences()
    drawn = torch.randint(len(coherences), (BATCH,), generator=generator)
    return make_trials(coherences[drawn], generator)


def train(model: Decider, args: Namespace) -> list[float]:
    """Train `model`, on new trials in each step, and return the losses."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, args.steps)  # down to 0
    generator = torch.Generator().manual_seed(args.seed)
    losses = []
    for step in range(1, args.steps + 1):
        inputs, targets = draw_batch(generator)
        optimizer.zero_grad()
        scores, _ = model(inputs.to(args.device))
        loss = loss_of(scores, targets.to(args.device))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % max(1, args.steps // 10) == 0:
            print(f"step {step:3}/{args.steps}  loss {losses[-1]:.4f}")
    return losses


class Agreement(NamedTuple):
    """How far the loop and LeakyRNN differ, relative to the largest value, and their times."""

    scores: float
    gradients: float
    milliseconds: dict[str, float]


def compare(args: Namespace) -> Agreement:
    """Run the loop and LeakyRNN on the same weights, trials and noise."""
    trials = draw_batch(torch.Generator().manual_seed(args.seed))
    torch.manual_seed(args.seed)
    inputs, targets = (each.to(args.device) for each in trials)
    models = {name: Decider(RNN_CLASSES[name]).to(args.device) for name in RNN_CLASSES}
    models["torch"].load_state_dict(models["fastrnn"].state_dict())

    def run(model: Decider) -> tuple[Tensor, Tensor]:
        torch.manual_seed(args.seed)  # of the noise
        model.zero_grad()
        scores, _ = model(inputs)
        loss_of(scores, targets).backward()
        return scores, nn.utils.parameters_to_vector(p.grad for p in model.parameters())

    pairs = zip(*(run(model) for model in models.values()), strict=True)
    scores, gradients = (((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
    print(
        f"the loop and LeakyRNN at the same weights and noise: scores differ by at most "
        f"{scores:.1e}, gradients by {gradients:.1e}, relative to the largest of each"
    )
    calls = {name: partial(run, model) for name, model in models.items()}
    milliseconds = time_in_turns(calls, args.device)
    print("milliseconds, forward and backward, measured in turns")
    for name, value in milliseconds.items():
        ratio = milliseconds["torch"] / value
        print(f"  {TITLES[name]:16}{value:8.2f}   {ratio:5.1f} times as fast")
    return Agreement(scores, gradients, milliseconds)


class Test(NamedTuple):
    """By signed coherence (S), the shares of trials, and the mean states (time, S, HIDDEN)."""

    first: Tensor  # the first stimulus is chosen
    right: Tensor
    states: Tensor

    def accuracies(self) -> list[float]:
        """The share of right choices at each of COHERENCES."""
        coherences = signed_coherences().abs()
        return [self.right[coherences == c].mean().item() for c in COHERENCES]


@torch.no_grad()
def test(model: Decider, args: Namespace) -> Test:
    """Let `model` choose in TEST new trials of each signed coherence; the last step counts."""
    torch.manual_seed(args.seed)  # of the noise
    generator = torch.Generator().manual_seed(args.seed + 1)
    inputs, targets = make_trials(signed_coherences().repeat_interleave(TEST), generator)
    scores, states = model(inputs.to(args.device))
    chosen = 1 + scores[-1, :, 1:].argmax(dim=1).cpu()
    return Test(
        first=(chosen == 1).view(-1, TEST).float().mean(dim=1),
        right=(chosen == targets[-1]).view(-1, TEST).float().mean(dim=1),
        states=states.unflatten(1, (-1, TEST)).mean(dim=2).cpu(),
    )


@dataclass
class Results:
    runs: list[Run]  # of --impl, and with --compare of the other one
    tests: list[Test]  # of each
    agreement: Agreement | None
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = make_parser(__doc__, steps=400).parse_args(argv)
    make_folder(args.out)
    agreement = compare(args) if args.compare else None
    runs = train_each(
        args, Decider, lambda model: train(model, args), classes=RNN_CLASSES, titles=TITLES
    )

    tests = [test(run.model, args) for run in runs]
    rows = {run.title: each.accuracies() for run, each in zip(runs, tests, strict=True)}
    rows["best possible"] = best_possible(torch.tensor(COHERENCES)).tolist()
    print("right choices, %, at coherence" + "".join(f"{c:8.3f}" for c in COHERENCES))
    for title, accuracies in rows.items():
        print(f"  {title:28}" + "".join(f"{100 * share:8.2f}" for share in accuracies))

    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    plot_losses(panels[0], runs, unit="step")
    plot_choices(panels[1], tests[0].first, COLORS[args.impl])
    plot_trajectories(panels[2], tests[0].states)
    picture = save_picture(figure, args, "decision_making")
    figures = [
        f"accuracy {100 * each.accuracies()[-1]:.2f} % at coherence {COHERENCES[-1]}"
        for each in tests
    ]
    comparison = report("decision_making", runs, figures)
    return Results(runs, tests, agreement, comparison, picture)


if __name__ == "__main__":
    main()
