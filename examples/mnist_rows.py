"""Handwritten digits, read row by row: an Elman RNN as a classifier of sequences.

An image of 28 rows of 28 pixels is a sequence of 28 steps. From h[-1] = 0 the network reads a row
a step, and its last state, which has seen the whole image, says which digit it was:

    h[t] = tanh(row[t] @ w_ih.T + b_ih + h[t-1] @ w_hh.T + b_hh),   t = 0 .. 27
    scores = h[27] @ w.T + b

    python examples/mnist_rows.py                      10 epochs, batches of 8, Adam
    python examples/mnist_rows.py --recipe best        the same network, trained with more care
    python examples/mnist_rows.py --compare            against torch.nn.RNN, loss and speed
    python examples/mnist_rows.py --amp bfloat16       mixed precision: weights stay in float32

It reads the four MNIST files from --data, $FASTRNN_DATA/mnist or data/mnist, or fetches them with
--download. Without them it learns the digits of 8 x 8 pixels that come with scikit-learn. It
writes mnist_rows.png and mnist_rows.pt to --out.
"""

from __future__ import annotations

import argparse
import gzip
import math
import struct
import zlib
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
    add_common_options,
    download,
    fail,
    find_data,
    make_folder,
    plot_losses,
    positive_float,
    positive_int,
    report,
    tidy,
    train,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

from fastrnn import RNN

RNN_CLASSES = {"fastrnn": RNN, "torch": nn.RNN}

# `document` is the plain recipe of a first lesson. `best` starts the recurrence at the identity, so
# that at first a relu network neither forgets nor explodes (Le, Jaitly and Hinton 2015), clips
# gradients (Pascanu et al. 2013), and raises and lowers the learning rate once (Smith 2018).
RECIPES = {
    "document": {
        "batch_size": 8,
        "learning_rate": 1e-3,
        "nonlinearity": "tanh",
        "start": "default",
        "clip_norm": math.inf,
        "schedule": "constant",
    },
    "best": {
        "batch_size": 64,
        "learning_rate": 3e-3,
        "nonlinearity": "relu",
        "start": "identity",
        "clip_norm": 1.0,
        "schedule": "one-cycle",
    },
}

MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
SHA256 = {  # of each file, packed as name.gz
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


class RowClassifier(nn.Module):
    """Scores of the ten digits from the RNN's state after the last row of an image."""

    def __init__(
        self,
        rnn_class: type[nn.RNN],
        columns: int,
        hidden_size: int,
        layers: int,
        nonlinearity: str,
        bidirectional: bool,
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
        """Images (batch, rows, columns) to scores (batch, 10)."""
        output, hn = self.rnn(images)  # output (batch, rows, hidden), hn (layers, batch, hidden)
        if self.rnn.bidirectional:  # each direction ends at its own end of the image
            return self.linear(torch.cat([hn[-2], hn[-1]], dim=1))
        return self.linear(output[:, -1])


def make_run(impl: str, args: argparse.Namespace, columns: int, steps: int) -> Run:
    """A new model with its optimizer: all that trains it for `steps` steps."""
    model = make_model(impl, args, columns)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, fused=True)
    scheduler = None
    if args.schedule == "one-cycle":
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, args.learning_rate, total_steps=steps
        )

    # Gradients of float16 are scaled, lest they vanish (Micikevicius et al. 2018).
    scaler = torch.amp.GradScaler(args.device.type, enabled=args.amp == "float16")

    def step(images: Tensor, labels: Tensor) -> Tensor:
        with mixed_precision(args):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        if args.clip_norm < math.inf:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if scheduler is not None:
            scheduler.step()
        return loss.detach()

    return Run(impl, model, step)


def make_model(impl: str, args: argparse.Namespace, columns: int) -> RowClassifier:
    """A model with the weights that `args.seed` and `args.start` give."""
    torch.manual_seed(args.seed)
    model = RowClassifier(
        RNN_CLASSES[impl],
        columns,
        args.hidden_size,
        args.layers,
        args.nonlinearity,
        args.bidirectional,
    )
    if args.start != "default":
        for name, weight in model.rnn.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.eye_(weight) if args.start == "identity" else nn.init.orthogonal_(weight)
            elif name.startswith("weight_ih"):
                nn.init.xavier_uniform_(weight)
            else:
                nn.init.zeros_(weight)
    return model.to(args.device)


def mixed_precision(args: argparse.Namespace) -> torch.autocast:
    """Where the matrix products are those of `args.amp`; weights and gradients stay in float32."""
    dtype = None if args.amp is None else getattr(torch, args.amp)
    return torch.autocast(args.device.type, dtype, enabled=args.amp is not None)


@torch.no_grad()
def predict(model: nn.Module, images: Tensor, args: argparse.Namespace) -> Tensor:
    with mixed_precision(args):
        return torch.cat([model(part).argmax(1) for part in images.split(1000)])


@dataclass
class Digits:
    """Images (N, rows, columns), float32 in [0, 1], and their labels (N), int64 in 0 .. 9."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_digits(args: argparse.Namespace) -> Digits:
    """MNIST from its folder or its mirror; scikit-learn's digits where there is neither."""
    new = args.download and args.data is not None and not args.data.exists()
    folder = args.data if new else find_data(args.data, "mnist")
    reason = "no folder $FASTRNN_DATA/mnist or data/mnist, and no --download"
    if args.download:
        target = folder or Path("data/mnist")
        missing = {f"{name}.gz": SHA256[name] for name in SHA256 if not find_idx(target, name)}
        no_connection = download(missing, MIRROR, target)
        if no_connection is None:
            folder = target
        elif folder is None:
            reason = f"no connection to download MNIST ({no_connection})"
        else:
            fail(f"{folder}: no {', '.join(missing)}, and no connection ({no_connection})")
    if folder is None:
        print(f"{reason}: taking scikit-learn's digits of 8 x 8 pixels instead")
        return scikit_digits(args.limit, args.device)
    return mnist_digits(folder, args.limit, args.device)


def mnist_digits(folder: Path, limit: int | None, device: torch.device) -> Digits:
    images, labels = read_images_and_labels(folder, "train", limit, device)
    test_images, test_labels = read_images_and_labels(folder, "t10k", limit, device)
    if images.shape[1:] != test_images.shape[1:]:
        ours, theirs = list(images.shape[1:]), list(test_images.shape[1:])
        fail(f"{folder}: the training images have sizes {ours}, the test images {theirs}")
    return Digits("MNIST", images, labels, test_images, test_labels)


def read_images_and_labels(
    folder: Path, part: str, limit: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The first `limit` images and labels of `part`: "train" or "t10k" (the test set)."""
    paths = []
    for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
        path = find_idx(folder, name)
        if path is None:
            fail(f"{folder}: no file {name}.gz or {name}")
        paths.append(path)
    images, labels = read_idx(paths[0], dimensions=3), read_idx(paths[1], dimensions=1)
    if len(images) != len(labels):
        fail(f"{paths[1]}: {len(labels)} labels for the {len(images)} images of {paths[0].name}")
    if labels.max() > 9:
        fail(f"{paths[1]}: expected labels 0 to 9, got {labels.max()}")
    return images[:limit].to(device) / 255, labels[:limit].to(device, torch.int64)


def find_idx(folder: Path, name: str) -> Path | None:
    """The file `name.gz` or `name`, whichever is there."""
    paths = (folder / f"{name}.gz", folder / name)
    return next((path for path in paths if path.exists()), None)


def read_idx(path: Path, dimensions: int) -> Tensor:
    """The bytes of an IDX file, gzip or not, as a uint8 tensor.

    Big-endian: two zeros, 8 for unsigned bytes, the number of dimensions; each size in four bytes;
    the data.
    """
    try:
        content = path.read_bytes()
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path}: damaged gzip file: {error}")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    magic = bytes([0, 0, 8, dimensions])
    header = 4 + 4 * dimensions
    if content[:4] != magic:
        fail(f"{path}: not IDX: expected {magic.hex()} at the start, got {content[:4].hex()!r}")
    if len(content) < header:
        fail(f"{path}: truncated: {len(content)} bytes, and the header alone has {header}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    expected = header + math.prod(shape)
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "too long"
        fail(f"{path}: {what}: expected {expected} bytes for sizes {shape}, got {len(content)}")
    if expected == header:
        fail(f"{path}: empty: sizes {shape}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=header).view(shape)


def scikit_digits(limit: int | None, device: torch.device) -> Digits:
    """The 1,797 digits of scikit-learn, a fifth of them for the test."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        fail("scikit-learn is not installed: pip install scikit-learn, or give --data")
    digits = load()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = (torch.from_numpy(digits.images).float() / 16)[order].to(device)
    labels = torch.from_numpy(digits.target).long()[order].to(device)
    test = len(order) // 5
    return Digits(
        "scikit-learn digits",
        images[test:][:limit],
        labels[test:][:limit],
        images[:test][:limit],
        labels[:test][:limit],
    )


def draw(path: Path, digits: Digits, runs: list[Run], predictions: Tensor) -> None:
    """The losses, and how the first run does on the test images: per digit, and on some of them."""
    labels, predictions = digits.test_labels.cpu(), predictions.cpu()
    right = predictions == labels
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    curves, strip = figure.subfigures(2, 1, height_ratios=(3, 2))
    loss_axes, digit_axes = curves.subplots(1, 2)

    plot_losses(loss_axes, runs)

    present = [digit for digit in range(10) if (labels == digit).any()]
    percents = [percent(right[labels == digit]) for digit in present]
    bars = digit_axes.bar(present, percents, color=COLORS[runs[0].name], alpha=0.8)
    digit_axes.bar_label(bars, fmt="%.1f", fontsize=8, padding=1, annotation_clip=False)
    title = f"{percent(right):.2f} % of {len(labels):,} test images read right"
    digit_axes.set_title(title, pad=16)  # above the labels of the bars
    digit_axes.set(xlabel="digit", ylabel="test accuracy, %", xticks=range(10))
    digit_axes.set_ylim(0, 100)
    tidy(digit_axes)

    rows = zip(strip.subplots(2, 10), (right, ~right), (RIGHT, WRONG), strict=True)
    for axes_row, chosen, color in rows:
        for axes in axes_row:
            axes.set_axis_off()
        for axes, i in zip(axes_row, chosen.nonzero().flatten().tolist(), strict=False):
            axes.imshow(digits.test_images[i].cpu().numpy(), cmap="gray_r")
            title = f"{predictions[i]}" if right[i] else f"{predictions[i]} (is {labels[i]})"
            axes.set_title(title, color=color, fontsize=10)

    figure.suptitle(f"{digits.name}, read row by row", fontsize=13)
    figure.savefig(path, dpi=120)


def percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    text, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=text, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    add = parser.add_argument
    add("--download", action="store_true", help="fetch the MNIST files that are not there")
    add("--limit", type=positive_int, metavar="N", help="only the first N images, also of the test")
    add("--epochs", type=positive_int, default=10, help="(%(default)s)")
    add("--hidden-size", type=positive_int, default=64, help="(%(default)s)")
    add("--layers", type=positive_int, default=1, help="(%(default)s)")
    add("--bidirectional", action="store_true", help="read from the last row, too")
    add("--amp", choices=("float16", "bfloat16"), help="train and predict in mixed precision")
    add("--recipe", choices=RECIPES, default="document", help="sets the next six (%(default)s)")

    def by_recipe(option: str) -> str:
        values = ", ".join(f"{name}: {recipe[option]}" for name, recipe in RECIPES.items())
        return f"({values})"

    add("--batch-size", type=positive_int, help=by_recipe("batch_size"))
    add("--learning-rate", type=positive_float, help=by_recipe("learning_rate"))
    add("--nonlinearity", choices=("tanh", "relu"), help=by_recipe("nonlinearity"))
    starts = ("default", "orthogonal", "identity")
    add("--start", choices=starts, help=f"w_hh before training {by_recipe('start')}")
    add("--clip-norm", type=positive_float, help=f"of all gradients {by_recipe('clip_norm')}")
    add("--schedule", choices=("constant", "one-cycle"), help=by_recipe("schedule"))

    recipe = parser.parse_known_args(argv)[0].recipe
    parser.set_defaults(**RECIPES[recipe])
    return parser.parse_args(argv)


@dataclass
class Results:
    """What came of `--impl`, and with `--compare` how it stands to the other implementation."""

    data: str
    losses: list[float]  # the mean of each epoch
    accuracy: float  # of the test images, in percent
    seconds: float
    images_per_second: float
    comparison: Comparison | None
    picture: Path
    checkpoint: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(argv)
    digits = load_digits(args)
    make_folder(args.out)

    images, labels = digits.train_images, digits.train_labels
    rows, columns = images.shape[1:]
    print(
        f"{digits.name}: {len(images):,} images of {rows} rows of {columns} pixels; "
        f"RNN({columns}, {args.hidden_size}), --recipe {args.recipe}, on {args.device}"
        + (f", in {args.amp} and float32" if args.amp else "")
    )
    names = [args.impl]
    if args.compare:
        names += [name for name in RNN_CLASSES if name != args.impl]
    steps = args.epochs * math.ceil(len(images) / args.batch_size)
    runs = [make_run(name, args, columns, steps) for name in names]
    for run in runs[1:]:
        run.model.load_state_dict(runs[0].model.state_dict())

    train(
        runs,
        (images, labels),
        epochs=args.epochs,
        batch_size=args.batch_size,
        generator=torch.Generator().manual_seed(args.seed),
        unit="images",
    )

    checkpoint = args.out / "mnist_rows.pt"
    torch.save(runs[0].model.state_dict(), checkpoint)
    model = make_model(args.impl, args, columns)  # a fresh one: what was trained is in the file
    model.load_state_dict(torch.load(checkpoint, map_location=args.device, weights_only=True))
    predictions = predict(model, digits.test_images, args)
    accuracies = [percent(predictions == digits.test_labels)]
    for run in runs[1:]:
        other = predict(run.model, digits.test_images, args)
        accuracies.append(percent(other == digits.test_labels))
    picture = args.out / "mnist_rows.png"
    draw(picture, digits, runs, predictions)
    print(f"wrote {picture} and {checkpoint}")

    figures = [f"test accuracy {accuracy:.2f} %" for accuracy in accuracies]
    comparison = report("mnist_rows", runs, figures)
    return Results(
        data=digits.name,
        losses=runs[0].losses,
        accuracy=accuracies[0],
        seconds=runs[0].seconds,
        images_per_second=args.epochs * len(images) / runs[0].seconds,
        comparison=comparison,
        picture=picture,
        checkpoint=checkpoint,
    )


if __name__ == "__main__":
    main()
