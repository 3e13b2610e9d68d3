"""What the examples share: options, data, the training loop, plots.

Each example is a lesson of its own; here is only what would read the same in all of them.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import math
import os
import socket
import statistics
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn
from tqdm import tqdm

from fastrnn import RNN

RNN_CLASSES = {"fastrnn": RNN, "torch": nn.RNN}

CONNECT_SECONDS = 10.0
STEPS_PER_TURN = 100  # where several models train side by side


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


def no_connection(url: str) -> str | None:
    """Why `url` gives no answer within `CONNECT_SECONDS`, or None where it does."""
    outcome: list[str | None] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "torch.hub"})
        try:
            urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
            outcome.append(None)
        except (OSError, http.client.HTTPException) as error:
            outcome.append(str(getattr(error, "reason", error)) or type(error).__name__)

    # In a thread, because looking up a host name knows no time limit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    return outcome[0] if outcome else f"no answer in {CONNECT_SECONDS:.0f} seconds"


def download(sha256: Mapping[str, str], url: str, folder: Path) -> str | None:
    """Fetch the files named in `sha256` (name: checksum) from below `url` into `folder`.

    A file arrives whole or not at all. Returns why there is no connection, None when all is there.
    """
    if not sha256:
        return None
    reason = no_connection(url + next(iter(sha256)))
    if reason is not None:
        return reason
    make_folder(folder)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(CONNECT_SECONDS)  # torch.hub sets none: a stalled server would hang it
    try:
        for name, checksum in sha256.items():
            print(f"downloading {url + name} to {folder}")
            try:
                torch.hub.download_url_to_file(
                    url + name, str(folder / name), checksum, progress=sys.stderr.isatty()
                )
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                fail(f"{folder / name}: download failed: {error}")
    finally:
        socket.setdefaulttimeout(timeout)
    return None


# Training


@dataclass
class Run:
    """One model in training, and what came of it.

    `step` takes one batch, updates the model and returns the loss, a detached scalar on the
    device. A part is an epoch, or a tenth of the steps where there are no epochs.
    """

    name: str
    model: nn.Module
    step: Callable[..., Tensor]
    losses: list[float] = field(default_factory=list)  # the mean of each part
    step_losses: list[float] = field(default_factory=list)
    turn_seconds: list[float] = field(default_factory=list)
    part: str = "an epoch"

    @property
    def seconds(self) -> float:
        return sum(self.turn_seconds)


def make_runs(args: argparse.Namespace, make_run: Callable[[str], Run]) -> list[Run]:
    """`make_run(name)` for `--impl`, and with `--compare` for the other, from the same weights."""
    names = [args.impl]
    if args.compare:
        names += [name for name in RNN_CLASSES if name != args.impl]
    runs = [make_run(name) for name in names]
    for run in runs[1:]:
        run.model.load_state_dict(runs[0].model.state_dict())
    return runs


def train(
    runs: Sequence[Run],
    data: Sequence[Tensor],
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
    unit: str,
    every: int = 1,
) -> None:
    """Take all `runs` through the same shuffled batches of `data`, and print a line per epoch.

    The rows of the tensors in `data` belong together; `unit` says what a row is. With `every`,
    only epochs divisible by it have their line.
    """
    size = len(data[0])
    for epoch in range(1, epochs + 1):
        order = torch.randperm(size, generator=generator).to(data[0].device)
        train_part(
            runs,
            ([tensor[rows] for tensor in data] for rows in order.split(batch_size)),
            steps=math.ceil(size / batch_size),
            label=f"epoch {epoch:{len(str(epochs))}}/{epochs}",
            rate=(size, unit),
            quiet=epoch % every > 0,
        )


def train_steps(runs: Sequence[Run], batches: Iterable[Sequence[object]], steps: int) -> None:
    """Take all `runs` through the first `steps` of `batches`, and print a line per tenth of them.

    Each batch is what `step` takes: `step(*batch)`.
    """
    for run in runs:
        run.part = "a tenth of the steps"
    batches = iter(batches)
    ends = [steps * (tenth + 1) // 10 for tenth in range(10)]
    for start, end in itertools.pairwise([0, *ends]):
        if end > start:
            part = itertools.islice(batches, end - start)
            label = f"step {end:{len(str(steps))}}/{steps}"
            train_part(runs, part, steps=end - start, label=label)


def train_part(
    runs: Sequence[Run],
    batches: Iterable[Sequence[object]],
    *,
    steps: int,
    label: str,
    rate: tuple[int, str] | None = None,
    quiet: bool = False,
) -> None:
    """Take all `runs` through the same `steps` batches, and print a line for each run.

    Each batch is what `step` takes: `step(*batch)`. `rate` is what the batches hold together, a
    number and its unit: steps where None. Several runs take turns of `STEPS_PER_TURN` steps, in
    alternating order, so that whatever else the machine does falls on all of them alike.
    """
    batches = iter(batches)
    before = [(len(run.step_losses), run.seconds) for run in runs]
    hide = None if os.environ.get("RANK", "0") == "0" else True  # one of torchrun's processes shows
    with tqdm(total=steps, desc=label, unit=" steps", leave=False, disable=hide) as bar:
        for turn in itertools.count():
            some = list(itertools.islice(batches, STEPS_PER_TURN))
            if not some:
                break
            for run in runs if turn % 2 == 0 else runs[::-1]:
                start = time.perf_counter()
                losses = [run.step(*batch) for batch in some]
                run.step_losses += torch.stack(losses).tolist()  # waits for the device
                run.turn_seconds.append(time.perf_counter() - start)
            bar.update(len(some))
    amount, unit = rate or (steps, "steps")
    name_width = max(len(run.name) for run in runs)
    for run, (first_step, seconds_before) in zip(runs, before, strict=True):
        run.losses.append(statistics.fmean(run.step_losses[first_step:]))
        seconds = run.seconds - seconds_before
        if not quiet:
            print(
                f"{label}  {run.name:{name_width}}  loss {run.losses[-1]:<9.4g}"
                f"  {seconds:7.2f} s  {per_second(amount, seconds):>10} {unit}/s"
            )


@dataclass
class Comparison:
    """Two runs that took the same batches, side by side.

    Training is chaotic: one rounding of one weight grows until, after some thousand steps, the
    losses of single batches have nothing in common. So over the first steps two implementations
    agree as closely as they round; over epochs only as two seeds do.
    """

    first_steps: int  # of the first turn
    step_difference: float  # the largest between the two losses of a step of the first turn
    epoch_difference: float  # the largest between the two mean losses of a part
    speed_ratio: float  # torch's seconds by fastrnn's: the median turn's
    part: str

    @classmethod
    def of(cls, run: Run, other: Run) -> Comparison:
        def largest(a: Sequence[float], b: Sequence[float]) -> float:
            both = torch.tensor([a, b], dtype=torch.float64)
            return (both[0] - both[1]).abs().max().item()  # nan where one of them is

        first = slice(STEPS_PER_TURN)
        ours, theirs = (run, other) if run.name == "fastrnn" else (other, run)
        turns = zip(ours.turn_seconds, theirs.turn_seconds, strict=True)
        return cls(
            first_steps=min(STEPS_PER_TURN, len(run.step_losses)),
            step_difference=largest(run.step_losses[first], other.step_losses[first]),
            epoch_difference=largest(run.losses, other.losses),
            speed_ratio=statistics.median(b / a for a, b in turns),
            part=run.part,
        )

    def __str__(self) -> str:
        return (
            f"largest difference of the losses: {self.step_difference:.1e} in the first "
            f"{self.first_steps} steps, {self.epoch_difference:.1e} between "
            f"the means of {self.part}\n"
            f"fastrnn trains {self.speed_ratio:.2f} times as fast as torch"
        )


def report(program: str, runs: Sequence[Run], figures: Sequence[str]) -> Comparison | None:
    """Print how two runs compare, if there are two, and the summary line, last of all.

    `figures` are the final figure of each run with its name, as in "test accuracy 93.10 %".
    """
    comparison = Comparison.of(*runs) if len(runs) == 2 else None
    if comparison is not None:
        print(comparison)
        for run, figure in zip(runs, figures, strict=True):
            print(f"{run.name}: {figure}")
    print(summary_line(program, figures[0], runs[0].seconds, len(runs[0].step_losses)))
    return comparison


def summary_line(program: str, figure: str, seconds: float, steps: int) -> str:
    """The last line that each example prints; `figure` is its final figure with its name."""
    return f"{program}: {figure}, {seconds:.1f} s, {per_second(steps, seconds)} steps/s"


def per_second(amount: float, seconds: float) -> str:
    rate = amount / seconds
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2f}"


# Plots

COLORS = {"fastrnn": "#1f6f8b", "torch": "#e07a2f"}
RIGHT, WRONG = "#2e8b57", "#c0392b"


def plot_losses(axes: Axes, runs: Sequence[Run], unit: str = "epoch", log: bool = False) -> None:
    """The loss over epochs or, with `unit` "step", steps: a dot for the mean of each part.

    A thin line is the mean of each tenth of a part.
    """
    for i, run in enumerate(runs):
        color, dashes = COLORS[run.name], "--" if i else "-"
        steps = len(run.step_losses) // len(run.losses)
        scale = steps if unit == "step" else 1
        window = max(1, steps // 10)
        tenths = torch.tensor(run.step_losses).unfold(0, window, window).mean(1).tolist()
        ends = [(k + 1) * window / steps * scale for k in range(len(tenths))]
        axes.plot(ends, tenths, color=color, alpha=0.35, linewidth=1, linestyle=dashes)
        middles = [(part + 0.5) * scale for part in range(len(run.losses))]
        marker = "o" if len(middles) <= 30 else None
        style = {"color": color, "linestyle": dashes, "marker": marker}
        style["markersize"] = 6 - 3 * i  # the second run's lie within the first one's
        axes.plot(middles, run.losses, **style, label=run.name)
    axes.set(xlabel=unit, ylabel="training loss")
    axes.set_yscale("log") if log else axes.set_ylim(0, None)
    axes.set_xlim(0, len(runs[0].losses) * scale)
    axes.legend(frameon=False)
    tidy(axes)


def tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="0.9")
    axes.set_axisbelow(True)
