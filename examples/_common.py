"""What the examples share: options, data, the comparison of two implementations, pictures.

Each example is a lesson of its own, with its own training loop. Here is what surrounds the lesson.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from fastrnn import RNN

RNN_CLASSES = {"fastrnn": RNN, "torch": nn.RNN}
CLASS_NAMES = {"fastrnn": "fastrnn.RNN", "torch": "torch.nn.RNN"}

FIRST_STEPS = 100  # over which two trainings are compared step by step
DPI = 150  # of the pictures


def fail(message: str) -> NoReturn:
    """End the program with one line that says what is wrong, and exit status 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# Options


def number(
    parse: Callable[[str], float], holds: Callable[[float], bool], words: str
) -> Callable[[str], Any]:
    """An argparse type: numbers for which `holds` is true, `words` in the message for others."""

    def read(text: str) -> float:
        try:
            value = parse(text)
        except ValueError:
            value = math.nan
        if not holds(value):
            raise argparse.ArgumentTypeError(f"expected {words}, got {text}")
        return value

    return read


positive_int = number(int, lambda n: n >= 1, "a whole number of at least 1")
positive_float = number(float, lambda x: x > 0, "a number above 0")
seed = number(int, lambda n: 0 <= n < 2**63, "a whole number from 0 to 2**63 - 1")


def usable_device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"cannot use device {text!r}: {reason}") from error
    return device


def make_parser(
    doc: str | None, *, epochs: int | None = None, steps: int | None = None, data: bool = False
) -> argparse.ArgumentParser:
    """A parser whose help is the program's docstring, with the options that all examples have.

    `epochs` or `steps` is the default of the option of that name; `data` asks for `--data`.
    """
    text, _, rest = (doc or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=text, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser, data=data)
    for option, default in (("--epochs", epochs), ("--steps", steps)):
        if default is not None:
            parser.add_argument(option, type=positive_int, default=default, help="(%(default)s)")
    return parser


def add_common_options(parser: argparse.ArgumentParser, data: bool = True) -> None:
    """The options that mean the same in every example."""
    parser.add_argument(
        "--impl", choices=RNN_CLASSES, default="fastrnn", help="whose RNN (%(default)s)"
    )
    parser.add_argument(
        "--compare", action="store_true", help="train both, on the same weights and batches"
    )
    parser.add_argument(
        "--device",
        type=usable_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="cpu, cuda, cuda:1, ... (%(default)s)",
    )
    parser.add_argument("--seed", type=seed, default=0, help="of weights and batches (%(default)s)")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), metavar="DIR", help="for the results (%(default)s)"
    )
    if data:
        parser.add_argument(
            "--data",
            type=Path,
            metavar="DIR",
            help="folder of the data set ($FASTRNN_DATA/..., data/...)",
        )


# Data


def find_data(given: Path | None, name: str) -> Path | None:
    """The folder or file of data set `name`: `given`, else `$FASTRNN_DATA/name`, else `data/name`.

    `given` may also be the folder that holds `name`. None where there is nothing of that name.
    """
    if given is not None:
        if not given.is_dir():
            fail(f"--data {given}: no such folder")
        return given / name if (given / name).exists() else given
    roots = [os.environ.get("FASTRNN_DATA"), "data"]
    paths = [Path(root) / name for root in roots if root]
    return next((path for path in paths if path.exists()), None)


def find_data_or(given: Path | None, name: str, default: str) -> Path | None:
    """The path that `find_data` finds, or None for the program's own data, named by `default`.

    Prints which of the two it is.
    """
    path = find_data(given, name)
    if path is None:
        kind = "file" if Path(name).suffix else "folder"
        print(f"no {kind} $FASTRNN_DATA/{name} or data/{name}: taking {default} instead")
    else:
        print(f"data from {path}")
    return path


def make_folder(folder: Path) -> None:
    """Make sure that `folder` is there and can be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{folder}: {error.strerror}")
    if not os.access(folder, os.W_OK):
        fail(f"{folder}: no permission to write there")


# Training and comparing


@dataclass
class Run:
    """One training: whose RNN, the trained model, and the loss and the time of each step."""

    name: str
    model: nn.Module
    step_losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    parts: int = 0  # epochs, or tenths of the steps
    seconds: float = 0.0  # of the whole training
    title: str = ""  # of its RNN, where that is not the one of CLASS_NAMES

    def __post_init__(self) -> None:
        self.title = self.title or CLASS_NAMES.get(self.name, self.name)

    @property
    def losses(self) -> list[float]:
        """The mean loss of each part."""
        steps = len(self.step_losses)
        ends = [steps * part // self.parts for part in range(self.parts + 1)]
        parts = [self.step_losses[start:end] for start, end in itertools.pairwise(ends)]
        return [statistics.fmean(part) for part in parts if part]


def implementations(args: argparse.Namespace) -> list[str]:
    """`--impl`, and with `--compare` the other one after it."""
    others = [name for name in RNN_CLASSES if name != args.impl]
    return [args.impl, *(others if args.compare else [])]


def train_each(
    args: argparse.Namespace,
    make_model: Callable[[type[nn.RNN]], nn.Module],
    train: Callable[[nn.Module], list[float]],
    parts: int = 10,
    classes: Mapping[str, type[nn.RNN]] = RNN_CLASSES,
    titles: Mapping[str, str] = CLASS_NAMES,
) -> list[Run]:
    """Train a model with the RNN of `--impl`, and with `--compare` one with the other RNN.

    `train(model)` returns the loss of each step. The weights are the same at the start, and so
    are the batches, if `train` draws them from `--seed`. `classes` and `titles` are those of the
    two implementations.
    """
    runs: list[Run] = []
    for name in implementations(args):
        print(f"training with {titles[name]}")
        torch.manual_seed(args.seed)
        model = make_model(classes[name]).to(args.device)
        runs.append(time_training(name, model, train, parts, titles[name]))
    return runs


def time_training(
    name: str,
    model: nn.Module,
    train: Callable[[nn.Module], list[float]],
    parts: int,
    title: str = "",
) -> Run:
    """Call `train(model)`, and note when each step of its optimizer ends."""
    times = [time.perf_counter()]
    hook = register_optimizer_step_post_hook(lambda *_: times.append(time.perf_counter()))
    try:
        losses = train(model)
    finally:
        hook.remove()
    seconds = time.perf_counter() - times[0]
    step_seconds = [end - start for start, end in itertools.pairwise(times)]
    return Run(name, model, losses, step_seconds, parts, seconds, title)


def time_in_turns(steps: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The median milliseconds of each of `steps`, in turns: load slows them all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(11):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(values[1:]) for name, values in seconds.items()}


@dataclass
class Comparison:
    """Two trainings on the same batches, from the same weights, side by side."""

    runs: tuple[Run, Run]
    first_difference: float  # between the two losses of the first step: rounding
    step_difference: float  # the largest between two losses of the first FIRST_STEPS steps
    epoch_difference: float  # the largest between the two mean losses of a part
    speed_ratio: float  # the median step with torch, divided by that with fastrnn

    @classmethod
    def of(cls, run: Run, other: Run) -> Comparison:
        def largest(a: Sequence[float], b: Sequence[float]) -> float:
            both = torch.tensor([a, b], dtype=torch.float64)
            return (both[0] - both[1]).abs().max().item()  # nan where one of them is

        def first(steps: int) -> float:
            return largest(run.step_losses[:steps], other.step_losses[:steps])

        seconds = {each.name: statistics.median(each.step_seconds) for each in (run, other)}
        return cls(
            runs=(run, other),
            first_difference=first(1),
            step_difference=first(FIRST_STEPS),
            epoch_difference=largest(run.losses, other.losses),
            speed_ratio=seconds["torch"] / seconds["fastrnn"],
        )

    def __str__(self) -> str:
        width = max(14, *(len(run.title) for run in self.runs))
        lines = [f"{'':{width}}{'first loss':>12}{'final loss':>12}{'ms/step':>10}{'ratio':>8}"]
        for run in self.runs:
            milliseconds = 1e3 * statistics.median(run.step_seconds)
            ratio = self.speed_ratio if run.name == "torch" else 1.0
            lines.append(
                f"{run.title:{width}}{run.step_losses[0]:12.4g}{run.losses[-1]:12.4g}"
                f"{milliseconds:10.3f}{ratio:8.2f}"
            )
        steps = min(FIRST_STEPS, len(self.runs[0].step_losses))
        return "\n".join(
            [
                *lines,
                f"the losses differ by {self.first_difference:.1e} in the first step, and by at "
                f"most {self.step_difference:.1e} in the first {steps}: each step rounds, and "
                "training amplifies rounding errors, so two correct implementations drift apart",
                "one trained after the other, so the ratio also shows if the machine was busier "
                "during one of them; `python -m benchmarks.compare` times both in turns",
            ]
        )


def report(program: str, runs: Sequence[Run], figures: Sequence[str]) -> Comparison | None:
    """Print how two runs compare, if there are two, and the summary line, last of all.

    `figures` are the final figure of each run with its name, as in "test accuracy 93.10 %".
    """
    comparison = Comparison.of(*runs) if len(runs) == 2 else None
    if comparison is not None:
        print(comparison)
        for run, figure in zip(runs, figures, strict=True):
            print(f"{run.title}: {figure}")
    print(summary_line(program, figures[0], runs[0].seconds, len(runs[0].step_seconds)))
    return comparison


def summary_line(program: str, figure: str, seconds: float, steps: int) -> str:
    """The last line that each example prints; `figure` is its final figure with its name."""
    return f"{program}: {figure}, {seconds:.1f} s, {per_second(steps, seconds)} steps/s"


def per_second(amount: float, seconds: float) -> str:
    rate = amount / seconds
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


# Pictures

COLORS = {"fastrnn": "#1f6f8b", "torch": "#e07a2f"}
RIGHT, WRONG = "#2e8b57", "#c0392b"


def plot_losses(axes: Axes, runs: Sequence[Run], unit: str = "epoch", log: bool = False) -> None:
    """The mean training loss of each epoch or, with `unit` "step", of every few steps."""
    for i, run in enumerate(runs):
        if unit == "epoch":
            losses = run.losses
            x = range(1, len(losses) + 1)
        else:
            window = max(1, len(run.step_losses) // 100)
            losses = torch.tensor(run.step_losses).unfold(0, window, window).mean(1)
            x = window * torch.arange(1, len(losses) + 1)
        style = {"color": COLORS[run.name], "linestyle": "--" if i else "-"}
        marker = "o" if len(losses) <= 30 else None
        style |= {"marker": marker, "markersize": 6 - 3 * i}  # the second one's lie on the first's
        axes.plot(x, losses, **style, label=run.title)
    axes.set(xlabel=unit, ylabel="training loss", title="training loss")
    axes.set_yscale("log") if log else axes.set_ylim(0, None)
    axes.legend(frameon=False)
    tidy(axes)


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)


def save_picture(figure: Figure, args: argparse.Namespace, program: str) -> Path:
    """Write `figure` to the folder `--out`, and say so."""
    path = args.out / f"{program}.png"
    figure.savefig(path, dpi=DPI)
    print(f"wrote {path}")
    return path
