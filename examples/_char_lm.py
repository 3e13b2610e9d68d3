"""What surrounds the lesson of char_lm.py: its options, its text, and its picture."""

from __future__ import annotations

import argparse
import math
import textwrap
from dataclasses import dataclass
from pathlib import Path

import torch
from _common import (
    CLASS_NAMES,
    COLORS,
    Run,
    fail,
    find_data_or,
    make_parser,
    positive_float,
    positive_int,
    tidy,
)
from matplotlib.figure import Figure
from torch import Tensor

SAMPLINGS = ("random", "sequential")


def parse_options(doc: str | None, argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(doc, epochs=5, data=True)
    add = parser.add_argument
    add("--sampling", choices=("both", *SAMPLINGS), default="both", help="(%(default)s)")
    add("--limit", type=positive_int, metavar="N", help="only the first N characters of the text")
    add("--batch-size", type=positive_int, default=32, help="rows, of all processes (%(default)s)")
    add("--num-steps", type=positive_int, default=35, help="characters of a row (%(default)s)")
    add("--hidden-size", type=positive_int, default=256, help="(%(default)s)")
    add("--learning-rate", type=positive_float, default=2e-3, help="of Adam (%(default)s)")
    add("--clip-norm", type=positive_float, default=1.0, help="of all gradients (%(default)s)")
    add("--prefix", default="the ", help="what the generated text begins with (%(default)r)")
    add("--checkpoint", type=Path, metavar="DIR", help="keep the last epoch there")
    add("--resume", action="store_true", help="go on from what --checkpoint holds, if any")
    args = parser.parse_args(argv)
    if not args.prefix:
        parser.error("argument --prefix: expected at least one character")
    if args.resume and args.checkpoint is None:
        parser.error("argument --resume: needs --checkpoint DIR")
    if args.checkpoint is not None and args.compare:
        parser.error("argument --checkpoint: keeps one training, and --compare makes two")
    return args


@dataclass
class Text:
    """A text as numbers: `codes` (N), int64, index its sorted characters, `vocabulary`."""

    name: str
    vocabulary: str
    train: Tensor
    held_out: Tensor  # the last twentieth

    def encode(self, characters: str) -> Tensor:
        return torch.tensor([self.vocabulary.index(character) for character in characters])


def load_text(args: argparse.Namespace) -> Text:
    path = find_data_or(args.data, "tinyshakespeare.txt", "the help texts of Python")
    if path is None:
        from pydoc_data.topics import topics

        name, characters = "Python's help texts", "\n".join(topics[key] for key in sorted(topics))
    else:
        path = path / "tinyshakespeare.txt" if path.is_dir() else path
        try:
            name, characters = path.name, path.read_text(encoding="utf-8")
        except OSError as error:
            fail(f"{path}: {error.strerror}")
        except UnicodeDecodeError as error:
            fail(f"{path}: {error}")
    characters = characters[: args.limit]
    vocabulary = "".join(sorted(set(characters)))
    index = {character: i for i, character in enumerate(vocabulary)}
    codes = torch.tensor([index[character] for character in characters])
    train, held_out = codes.split([len(codes) - len(codes) // 20, len(codes) // 20])
    if len(held_out) < 2 or len(train) <= args.num_steps * (args.batch_size + 1):
        fail(
            f"{name}: {len(train):,} training characters are too few for a batch of "
            f"{args.batch_size} rows of {args.num_steps} characters"
        )
    if missing := dict.fromkeys(c for c in args.prefix if c not in index):  # each once, as typed
        fail(f"--prefix: {''.join(missing)!r} does not occur in {name}")
    return Text(name, vocabulary, train.to(args.device), held_out.to(args.device))


def settings(sampling: str, args: argparse.Namespace, text: Text) -> dict[str, object]:
    """What must be as it was for a training to go on: all that shapes it but its length."""
    names = ("batch_size", "num_steps", "hidden_size", "learning_rate", "clip_norm", "seed")
    return {
        "sampling": sampling,
        "vocabulary": text.vocabulary,
        "characters": len(text.train) + len(text.held_out),
        **{name: getattr(args, name) for name in names},
    }


def difference(a: Tensor, b: Tensor) -> float:
    """The largest between elements of `a` and `b`, as a part of the largest element of `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()


def draw(
    title: str, runs: dict[str, list[Run]], milliseconds: dict[str, float], sample: str
) -> Figure:
    """Perplexity over the epochs, a training step from scratch and fused, and a written text."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2))
    curves, bars = upper.subplots(1, 2, width_ratios=(3, 2))
    for sampling, marker in (("random", "o"), ("sequential", "s")):
        for i, run in enumerate(runs.get(sampling, [])):
            epochs = range(1, len(run.losses) + 1)
            color = COLORS[run.name]
            fill = "white" if sampling == "random" else color
            style = {"color": color, "marker": marker, "markerfacecolor": fill}
            style["markersize"] = 6 - 3 * i  # the second run's lie within the first one's
            trained = [math.exp(loss) for loss in run.losses]
            label = f"{sampling} sampling" + (f", {CLASS_NAMES[run.name]}" if i else "")
            curves.plot(epochs, trained, alpha=0.45, label=f"{label}: training", **style)
            curves.plot(epochs, run.model.held_out, "--", label=f"{label}: held-out text", **style)
    curves.set(title="perplexity", xlabel="epoch", ylabel="perplexity", xticks=epochs)
    curves.legend(frameon=False, fontsize=8)
    colors = [COLORS.get(name, "0.55") for name in milliseconds]
    names = [CLASS_NAMES.get(name, name) for name in milliseconds]
    patches = bars.barh(names, list(milliseconds.values()), color=colors)
    bars.bar_label(patches, fmt="%.1f", padding=3)
    bars.set(title="time of a training step", xlabel="milliseconds, forward and backward")
    bars.invert_yaxis()
    bars.margins(x=0.15)
    tidy(curves)
    tidy(bars)
    bars.grid(visible=False)
    page = lower.subplots()
    page.set_axis_off()
    page.set_title("text that the network wrote", loc="left")
    lines = [part for line in sample.splitlines() for part in textwrap.wrap(line, 120) or [""]]
    style = {"family": "monospace", "fontsize": 9, "va": "top", "parse_math": False}
    page.text(0, 1, "\n".join(lines[:15]), **style)
    figure.suptitle(f"{title}: which character comes next?", fontsize=14)
    return figure
