"""Genes in DNA: an RNN labels each base, beside the best that any reader can do.

A sequence of bases comes in, a sequence of labels of the same length goes out. The sequences are
made by a hidden Markov model: random bases, and among them genes, each a start codon ATG, some
thirty codons, and a stop codon TAA, TAG or TGA. A hidden state z says which word the model is
writing, and how far it has come; the reader sees the bases x, and is to find the labels y:

    P(z[t] = j | z[t-1] = i) = transition[i, j],    x[t] = base[z[t]],    y[t] = label[z[t]]

ATG and the stop codons come up by chance, too, in the background and across the codons of a gene.
Only the whole of a gene gives it away: which codons it uses, and that no stop codon is in phase.
So the RNN reads from both ends (h from the left, g from the right), and has to count in threes:

    h[t] = relu(W x[t] + b + U h[t-1]),   g[t] = relu(W' x[t] + b' + U' g[t+1]),   in two layers
    scores of the six labels of base t = A h[t] + B g[t] + c

The RNN learns from labeled sequences alone. Two algorithms that know the model give the bound:
Viterbi's finds the most probable path of hidden states, forward-backward the probability of each
label of each base. Taking the most probable label of each base is optimal: no reader gets more
bases right on average, and none has a lower mean loss than the entropy of these probabilities.

    python examples/dna_tagging.py                 3,000 steps, no sequence seen twice
    python examples/dna_tagging.py --compare       against torch.nn.RNN: losses and speed

Writes dna_tagging.png to --out. Hidden Markov models: L. Rabiner, Proc. IEEE 77, 1989; for
genes: A. Krogh, I. S. Mian, D. Haussler, Nucleic Acids Research 22, 1994.
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
    CLASS_NAMES,
    COLORS,
    Comparison,
    Run,
    make_folder,
    make_parser,
    positive_float,
    positive_int,
    report,
    save_picture,
    tidy,
    train_each,
)
from _gene_model import BASES, LABELS, OUTSIDE, GeneModel
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from torch import Tensor, nn

LABEL_COLORS = ("#e6e6e6", "#2e8b57", "#123c69", "#5b8db8", "#b8d4e8", "#c0392b")

# The RNN


class BaseTagger(nn.Module):
    """Scores of the labels of each base."""

    def __init__(self, rnn_class: type[nn.RNN], hidden_size: int, layers: int) -> None:
        super().__init__()
        self.rnn = rnn_class(
            len(BASES), hidden_size, layers, "relu", batch_first=True, bidirectional=True
        )
        for name, weight in self.rnn.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(weight)  # a state neither fades nor explodes, at first
        self.linear = nn.Linear(2 * hidden_size, len(LABELS))

    def forward(self, bases: Tensor) -> Tensor:
        """Bases (batch, length) to scores (batch, length, labels)."""
        output, _ = self.rnn(F.one_hot(bases, len(BASES)).float())
        return self.linear(output)


def train(model: nn.Module, genes: GeneModel, args: argparse.Namespace) -> list[float]:
    """Train `model` on sequences that it sees once, and return the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, args.learning_rate, total_steps=args.steps
    )
    losses = []
    every = max(1, args.steps // 10)
    for bases, labels in itertools.islice(fresh_batches(genes, args), args.steps):
        optimizer.zero_grad()
        scores = model(bases)
        loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
        if len(losses) % every == 0:
            mean = statistics.fmean(losses[-every:])
            print(f"step {len(losses):4}/{args.steps}  loss {mean:.4f}")
    return losses


def fresh_batches(genes: GeneModel, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end, of sequences that have not been seen before."""
    generator = torch.Generator().manual_seed(args.seed)
    while True:  # sampled a hundred batches at a time, which is much faster than one by one
        sequences = genes.sample(100 * args.batch_size, args.length, generator)
        bases, labels = (part.to(args.device) for part in sequences)
        yield from zip(bases.split(args.batch_size), labels.split(args.batch_size), strict=True)


@torch.no_grad()
def predict(model: nn.Module, bases: Tensor, device: torch.device) -> Tensor:
    """Log-probabilities (rows, length, labels), float64, on the CPU."""
    parts = [model(part.to(device)).cpu() for part in bases.split(100)]
    return torch.cat(parts).double().log_softmax(2)


# Results


def percent(these: Tensor) -> float:
    return 100 * these.double().mean().item()


@dataclass
class Reading:
    """Labels that a reader gives to the bases of the test sequences, (rows, length)."""

    name: str
    color: str
    labels: Tensor
    log_probabilities: Tensor | None = None  # (rows, length, labels)

    def right(self, truth: Tensor, label: int | None = None) -> float:
        """Of all bases, or of those with `label`, in percent; NaN where there is none."""
        right = self.labels == truth
        return percent(right if label is None else right[truth == label])

    def loss(self, truth: Tensor) -> float | None:
        """The mean cross-entropy of a base, in nats."""
        if self.log_probabilities is None:
            return None
        return F.nll_loss(self.log_probabilities.flatten(0, 1), truth.flatten()).item()


def find_genes(labels: Tensor) -> set[tuple[object, ...]]:
    """(row, first base, its labels...) of each run of bases with labels other than outside."""
    found = set()
    for row, line in enumerate(labels.tolist()):
        position = 0
        for inside, run in itertools.groupby(line, key=lambda label: label != OUTSIDE):
            run_labels = list(run)
            if inside:
                found.add((row, position, *run_labels))
            position += len(run_labels)
    return found


def print_table(readings: list[Reading], truth: Tensor) -> None:
    """Accuracy per label, over all bases, loss and whole genes, a column for each reading."""

    def line(name: str, *cells: str) -> None:
        print(f"{name:20}" + "".join(f"{cell:>14}" for cell in cells))

    line("test bases right, %", "of all bases", *(reading.name for reading in readings))
    for i, name in enumerate(LABELS):
        cells = [percent(truth == i), *(reading.right(truth, i) for reading in readings)]
        line(f"  {name}", *("-" if math.isnan(cell) else f"{cell:.2f}" for cell in cells))
    line("  all", "100.00", *(f"{reading.right(truth):.2f}" for reading in readings))
    losses = [reading.loss(truth) for reading in readings]
    line("loss of a base, nats", "", *("-" if loss is None else f"{loss:.4f}" for loss in losses))
    genes = find_genes(truth)
    found = [find_genes(reading.labels) for reading in readings]
    line("genes, whole", f"{len(genes):,}", *(f"{len(f):,}" for f in found))
    line("  exactly right", "", *(f"{len(f & genes):,}" for f in found))


def draw(runs: list[Run], readings: list[Reading], truth: Tensor) -> Figure:
    """The loss and its bound, the errors per label, and one sequence, read by all."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1)
    loss_axes, label_axes = top.subplots(1, 2)

    for i, run in enumerate(runs):
        losses = torch.tensor(run.step_losses)
        window = max(1, len(losses) // 100)
        means = losses.unfold(0, window, window).mean(1).tolist()
        steps = [(k + 1) * window for k in range(len(means))]
        loss_axes.plot(
            steps, means, "--" if i else "-", color=COLORS[run.name], label=CLASS_NAMES[run.name]
        )
    bound = readings[-1].loss(truth)
    loss_axes.axhline(bound, color="0.2", linewidth=1, linestyle=":", label="the optimum")
    loss_axes.set(xlabel="step", ylabel="training loss, nats a base", yscale="log")
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2) if tick > 0.8 * bound]
    loss_axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    loss_axes.minorticks_off()
    loss_axes.legend(frameon=False)
    tidy(loss_axes)

    for i, reading in enumerate(readings):
        percents = [100 - reading.right(truth, k) for k in range(len(LABELS))]
        places = [k + 0.27 * (i - 1) for k in range(len(LABELS))]
        label_axes.bar(places, percents, width=0.25, color=reading.color, label=reading.name)
    label_axes.set_xticks(range(len(LABELS)), LABELS)
    label_axes.set(ylabel="test bases wrong, %")
    label_axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    tidy(label_axes)

    # A sequence with as many genes as possible.
    starts = [row.count(LABELS.index("start")) for row in truth.tolist()]
    draw_sequence(bottom.subplots(2, 1, sharex=True), starts.index(max(starts)), readings, truth)
    figure.suptitle("Genes in DNA, base by base", fontsize=13)
    return figure


def draw_sequence(axes: list[Axes], row: int, readings: list[Reading], truth: Tensor) -> None:
    """The labels of one test sequence by all readings, and the probability to be in a gene."""
    strips, lines = axes
    rows = [truth[row], *(reading.labels[row] for reading in readings)]
    strips.imshow(
        torch.stack(rows).numpy(),
        cmap=ListedColormap(LABEL_COLORS),
        vmin=-0.5,
        vmax=len(LABELS) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    strips.set_yticks(range(len(rows)), ["truth", *(reading.name for reading in readings)])
    strips.hlines([i + 0.5 for i in range(len(rows) - 1)], -0.5, truth.size(1) - 0.5, "w", lw=3)
    strips.tick_params(bottom=False, labelbottom=False)
    strips.spines[:].set_visible(False)
    for i, name in enumerate(LABELS):
        strips.plot([], [], "s", color=LABEL_COLORS[i], label=name)
    strips.legend(ncols=len(LABELS), frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1))
    for reading in (readings[-1], readings[0]):
        inside = 1 - reading.log_probabilities[row, :, OUTSIDE].exp()
        lines.plot(inside.numpy(), color=reading.color, label=reading.name)
    lines.set(xlabel="base of one test sequence", ylabel="P(in a gene)", ylim=(-0.03, 1.03))
    lines.legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.95))
    tidy(lines)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, steps=3000)
    add = parser.add_argument
    add("--batch-size", type=positive_int, default=32, help="(%(default)s)")
    add("--length", type=positive_int, default=240, help="bases of a sequence (%(default)s)")
    add("--test-size", type=positive_int, default=500, help="test sequences (%(default)s)")
    add("--hidden-size", type=positive_int, default=128, help="(%(default)s)")
    add("--layers", type=positive_int, default=2, help="(%(default)s)")
    add("--learning-rate", type=positive_float, default=2e-3, help="the highest (%(default)s)")
    return parser.parse_args(argv)


@dataclass
class Results:
    """The results of `--impl`, and with `--compare` how the other implementation compares."""

    losses: list[float]
    accuracy: float  # of the test bases, in percent
    viterbi: float
    optimum: float
    loss: float  # on the test sequences, nats a base
    lowest_loss: float
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(argv)
    make_folder(args.out)
    genes = GeneModel()
    bases, truth = genes.sample(
        args.test_size, args.length, torch.Generator().manual_seed(args.seed + 1)
    )
    print(
        f"generated DNA: a new batch of {args.batch_size} sequences of {args.length} bases each "
        f"step, {args.test_size} for the test; RNN({len(BASES)}, {args.hidden_size}, "
        f"{args.layers}, bidirectional), on {args.device}"
    )

    runs = train_each(
        args,
        lambda rnn_class: BaseTagger(rnn_class, args.hidden_size, args.layers),
        lambda model: train(model, genes, args),
    )

    log_probabilities = [predict(run.model, bases, args.device) for run in runs]
    rnns = [
        Reading(f"RNN ({run.name})", COLORS[run.name], p.argmax(2), p)
        for run, p in zip(runs, log_probabilities, strict=True)
    ]
    posterior = genes.posterior(bases)
    viterbi = Reading("Viterbi", "#e0b040", genes.label[genes.viterbi(bases)])
    optimum = Reading("optimum", "0.35", posterior.argmax(2), posterior.log())
    readings = [rnns[0], viterbi, optimum]
    print_table(readings, truth)
    picture = save_picture(draw(runs, readings, truth), args, "dna_tagging")

    def figure(rnn: Reading) -> str:
        accuracy, best = rnn.right(truth), viterbi.right(truth)
        share = 100 * accuracy / best
        return f"test accuracy {accuracy:.2f} % ({share:.1f} % of Viterbi's {best:.2f} %)"

    comparison = report("dna_tagging", runs, [figure(rnn) for rnn in rnns])
    return Results(
        losses=runs[0].losses,
        accuracy=rnns[0].right(truth),
        viterbi=viterbi.right(truth),
        optimum=optimum.right(truth),
        loss=rnns[0].loss(truth),
        lowest_loss=optimum.loss(truth),
        comparison=comparison,
        picture=picture,
    )


if __name__ == "__main__":
    main()
