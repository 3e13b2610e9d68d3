"""Handwritten digits, read row by row: an RNN that classifies sequences.

An image of 28 rows of 28 pixels is a sequence of 28 time steps. The network reads one row per step,
and from its last hidden state, which has seen the whole image, a linear layer scores the digits:

    h[t] = tanh(row[t] @ w_ih.T + b_ih + h[t-1] @ w_hh.T + b_hh),   t = 0 .. 27,   h[-1] = 0
    scores = h[27] @ w.T + b

    python examples/mnist_rows.py --download           10 epochs, batches of 8, Adam
    python examples/mnist_rows.py --recipe best        the same network, trained with more care
    python examples/mnist_rows.py --compare            against torch.nn.RNN: losses and speed
    python examples/mnist_rows.py --amp bfloat16       mixed precision: weights stay in float32

Reads the four MNIST files from --data, $FASTRNN_DATA/mnist or data/mnist; --download fetches those
that are missing. Without them it learns the digits of 8 x 8 pixels that come with scikit-learn.
Writes mnist_rows.png and mnist_rows.pt to --out.
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
    RIGHT,
    WRONG,
    Comparison,
    Run,
    make_folder,
    plot_losses,
    report,
    save_picture,
    tidy,
    train_each,
)
from _digits import Digits, load_digits
from _recipes import is_plain, mixed_precision, parse_options, start_weights, train_with_care
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class RowClassifier(nn.Module):
    def __init__(
        self,
        rnn_class: type[nn.RNN],
        columns: int,
        hidden_size: int = 64,
        layers: int = 1,
        nonlinearity: str = "tanh",
        bidirectional: bool = False,
    ) -> None:
        super().__init__()
        self.rnn = rnn_class(
            columns,
            hidden_size,
            layers,
            nonlinearity=nonlinearity,
            batch_first=True,
            bidirectional=bidirectional,
        )
        self.linear = nn.Linear(hidden_size * (2 if bidirectional else 1), 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images (batch, rows, columns) to scores of the digits (batch, 10)."""
        output, hn = self.rnn(images)  # output (batch, rows, hidden), hn (layers, batch, hidden)
        if self.rnn.bidirectional:  # each direction ends at its own end of the image
            return self.linear(torch.cat([hn[-2], hn[-1]], dim=1))
        return self.linear(output[:, -1])


def train(model: nn.Module, loader: DataLoader, args: Namespace) -> list[float]:
    """Train `model` and return the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, fused=True)
    losses = []
    for epoch in range(1, args.epochs + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            scores = model(images.to(args.device))
            loss = F.cross_entropy(scores, labels.to(args.device))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        mean = statistics.fmean(losses[-len(loader) :])
        print(f"epoch {epoch:2}/{args.epochs}  loss {mean:.4f}")
    return losses


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, args: Namespace) -> Tensor:
    with mixed_precision(args):
        parts = [model(part.to(args.device)).argmax(1).cpu() for part in images.split(1000)]
    return torch.cat(parts)


def percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


def draw(digits: Digits, runs: list[Run], predictions: Tensor) -> Figure:
    """The losses, the test accuracy of each digit, and some images read right and wrong."""
    labels = digits.test_labels
    right = predictions == labels
    figure = Figure(figsize=(11, 7), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2))
    losses, accuracy = upper.subplots(1, 2)
    plot_losses(losses, runs)

    present = [digit for digit in range(10) if (labels == digit).any()]
    percents = [percent(right[labels == digit]) for digit in present]
    bars = accuracy.bar(present, percents, color=COLORS[runs[0].name], alpha=0.8)
    accuracy.bar_label(bars, fmt="%.1f", fontsize=8, padding=1, annotation_clip=False)
    title = f"test accuracy of each digit; of all {len(labels):,}: {percent(right):.2f} %"
    accuracy.set_title(title, pad=16)  # above the labels of the bars
    accuracy.set(xlabel="digit", ylabel="accuracy, %", xticks=range(10), ylim=(0, 100))
    tidy(accuracy)

    lower.suptitle("test images read right (above) and wrong (below): the prediction of each")
    for row, chosen, color in zip(
        lower.subplots(2, 10), (right, ~right), (RIGHT, WRONG), strict=True
    ):
        for axes in row:
            axes.set_axis_off()
        for axes, i in zip(row, chosen.nonzero().flatten().tolist(), strict=False):
            axes.imshow(digits.test_images[i].numpy(), cmap="gray_r")
            title = f"{predictions[i]}" if right[i] else f"{predictions[i]}, not {labels[i]}"
            axes.set_title(title, color=color, fontsize=10)
    figure.suptitle(f"{digits.name}, read row by row", fontsize=14)
    return figure


@dataclass
class Results:
    data: str
    runs: list[Run]  # of --impl, and with --compare of the other implementation
    accuracy: float  # on the test images, in percent
    comparison: Comparison | None
    picture: Path
    checkpoint: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(__doc__, argv)
    digits = load_digits(args)
    make_folder(args.out)
    rows, columns = digits.train_images.shape[1:]
    print(
        f"{digits.name}: {len(digits.train_images):,} images of {rows} rows of {columns} pixels; "
        f"RNN({columns}, {args.hidden_size}), recipe {args.recipe}, on {args.device}"
        + (f", in {args.amp} and float32" if args.amp else "")
    )

    def make_model(rnn_class: type[nn.RNN]) -> RowClassifier:
        sizes = (columns, args.hidden_size, args.layers, args.nonlinearity, args.bidirectional)
        model = RowClassifier(rnn_class, *sizes)
        start_weights(model.rnn, args.start)
        return model

    def train_model(model: nn.Module) -> list[float]:
        dataset = TensorDataset(digits.train_images, digits.train_labels)
        generator = torch.Generator().manual_seed(args.seed)
        loader = DataLoader(dataset, args.batch_size, shuffle=True, generator=generator)
        return (train if is_plain(args) else train_with_care)(model, loader, args)

    runs = train_each(args, make_model, train_model, args.epochs)

    predictions = [predict(run.model, digits.test_images, args) for run in runs]
    accuracies = [percent(each == digits.test_labels) for each in predictions]
    picture = save_picture(draw(digits, runs, predictions[0]), args, "mnist_rows")
    checkpoint = args.out / "mnist_rows.pt"
    torch.save(runs[0].model.state_dict(), checkpoint)
    print(f"wrote {checkpoint}")
    figures = [f"test accuracy {accuracy:.2f} %" for accuracy in accuracies]
    comparison = report("mnist_rows", runs, figures)
    return Results(digits.name, runs, accuracies[0], comparison, picture, checkpoint)


if __name__ == "__main__":
    main()
