"""A language model of characters: from its formulas to the fused op, on one process or many.

For a batch of B texts the characters of step t are the rows of X[t], one-hot, (B, V) for a
vocabulary of V. The network reads them one after another and guesses the next one each time:

    H[t] = tanh(X[t] @ W_xh + H[t-1] @ W_hh + b_h)      hidden state, (B, 256)
    O[t] = H[t] @ W_hq + b_q                            scores of the next character, (B, V)

The lesson: these two lines as a loop over time; the same network with fastrnn.RNN, whose outputs
and gradients are compared with the loop's; two ways to cut a long text into batches; training
with clipped gradients, measured by perplexity; and text that the network writes.

    python examples/char_lm.py                             both ways to cut, 5 epochs each
    python examples/char_lm.py --sampling random --epochs 1
    torchrun --nproc-per-node 2 examples/char_lm.py        two processes share each batch

On several nodes the same command runs on each: torchrun --nnodes 2 --nproc-per-node 8
--rdzv-backend c10d --rdzv-endpoint HOST:29400 examples/char_lm.py. With --checkpoint DIR (a folder
that all nodes see) the last finished epoch is kept there, and --resume goes on from it, with any
number of processes.

It reads tinyshakespeare.txt from --data, $FASTRNN_DATA or data, else the help texts that come with
Python (pydoc_data.topics). It writes char_lm.png to --out.
"""

from __future__ import annotations

import argparse
import math
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    COLORS,
    RNN_CLASSES,
    Comparison,
    Run,
    fail,
    find_data_or,
    make_folder,
    make_parser,
    make_runs,
    positive_float,
    positive_int,
    summary_line,
    tidy,
    train_part,
)
from _parallel import (
    Checkpoints,
    is_first,
    mean_of_processes,
    number_of_processes,
    own_rows,
    parallel,
    processes,
)
from matplotlib.figure import Figure
from torch import Tensor, nn

# The text


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
            f"{name}: {len(train):,} characters to learn from are too few for a batch of "
            f"{args.batch_size} rows of {args.num_steps} characters"
        )
    if missing := dict.fromkeys(c for c in args.prefix if c not in index):  # each once, as typed
        fail(f"--prefix: {''.join(missing)!r} does not occur in {name}")
    return Text(name, vocabulary, train.to(args.device), held_out.to(args.device))


# From scratch: the formulas, one line of code each

Parameters = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def draw_parameters(vocabulary_size: int, hidden_size: int, seed: int) -> Parameters:
    """W_xh (V, H), W_hh (H, H), b_h (H), W_hq (H, V), b_q (V): normal(0, 0.01), biases 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.01

    return (
        normal(vocabulary_size, hidden_size),
        normal(hidden_size, hidden_size),
        torch.zeros(hidden_size),
        normal(hidden_size, vocabulary_size),
        torch.zeros(vocabulary_size),
    )


def rnn_from_scratch(X: Tensor, H: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """One-hot X (T, B, V) and the state H (B, H) before it; returns O (T, B, V) and the state."""
    W_xh, W_hh, b_h, W_hq, b_q = parameters
    outputs = []
    for X_t in X:
        H = torch.tanh(X_t @ W_xh + H @ W_hh + b_h)
        outputs.append(H @ W_hq + b_q)
    return torch.stack(outputs), H


# The same with the fused op


class CharModel(nn.Module):
    """Codes (B, T) and a state to the scores of the next characters (T, B, V) and the new state."""

    def __init__(self, rnn_class: type[nn.RNN], parameters: Parameters) -> None:
        super().__init__()
        W_xh, W_hh, b_h, W_hq, b_q = parameters
        self.vocabulary_size, hidden_size = W_xh.shape
        self.rnn = rnn_class(self.vocabulary_size, hidden_size)
        self.linear = nn.Linear(hidden_size, self.vocabulary_size)
        self.rnn.load_state_dict(
            {
                "weight_ih_l0": W_xh.T,
                "weight_hh_l0": W_hh.T,
                "bias_ih_l0": b_h,
                "bias_hh_l0": torch.zeros_like(b_h),  # torch's RNN has two biases: b_h is the sum
            }
        )
        self.linear.load_state_dict({"weight": W_hq.T, "bias": b_q})

    def forward(self, codes: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        X = one_hot(codes, self.vocabulary_size).type_as(self.linear.weight)
        output, hn = self.rnn(X, state)
        return self.linear(output), hn


def one_hot(codes: Tensor, vocabulary_size: int) -> Tensor:
    """Codes (B, T) as X (T, B, V)."""
    return F.one_hot(codes.T, vocabulary_size).float()


def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of scores (T, B, V) for the codes `targets` (B, T)."""
    return F.cross_entropy(scores.flatten(0, 1), targets.T.flatten())


def check_from_scratch(args: argparse.Namespace, text: Text, start: Parameters) -> dict[str, float]:
    """Compare the loop's outputs and gradients with the op's, and time a training step of each.

    Returns the milliseconds of each.
    """
    batch = text.train[: args.batch_size * args.num_steps + 1]
    inputs, targets = (part.view(args.batch_size, -1) for part in (batch[:-1], batch[1:]))
    X = one_hot(inputs, len(text.vocabulary))
    H = torch.zeros(args.batch_size, args.hidden_size, device=args.device)
    parameters = tuple(p.to(args.device, copy=True).requires_grad_() for p in start)
    models = {name: CharModel(RNN_CLASSES[name], start).to(args.device) for name in RNN_CLASSES}

    def loop() -> Tensor:
        scores, _ = rnn_from_scratch(X, H, parameters)
        loss_of(scores, targets).backward()
        return scores

    def op(model: nn.Module) -> Tensor:
        scores, _ = model(inputs)
        loss_of(scores, targets).backward()
        return scores

    model = models[args.impl]
    outputs = difference(loop(), op(model))
    gradients = [parameter.grad for parameter in parameters]
    rnn, linear = model.rnn, model.linear
    theirs = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, linear.weight, linear.bias]
    largest = max(difference(a, b.grad.t()) for a, b in zip(gradients, theirs, strict=True))
    print(
        f"from scratch and {args.impl}, the same weights: outputs differ by at most {outputs:.1e}, "
        f"gradients by {largest:.1e}, of the largest of each"
    )
    steps = {"from scratch": loop} | {
        name: lambda model=model: op(model) for name, model in models.items()
    }
    seconds = time_in_turns(steps, args.device)
    scratch = seconds["from scratch"]
    times = [
        f"{name} {1e3 * seconds[name]:.1f} ms, {scratch / seconds[name]:.1f} times as fast"
        for name in models
    ]
    print(f"forward and backward: from scratch {1e3 * scratch:.1f} ms; {'; '.join(times)}")
    return {name: 1e3 * value for name, value in seconds.items()}


def difference(a: Tensor, b: Tensor) -> float:
    """The largest between elements of `a` and `b`, as a part of the largest element of `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()


def time_in_turns(steps: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """The median seconds of each of `steps`, called in turns so that all meet the same machine."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(11):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


# Two ways to cut a text into batches of inputs and targets, (B, T) each: the targets are the inputs
# moved on by one character. Both begin at a random character, so that each epoch cuts elsewhere.
# The third item says whether the rows go on where those of the batch before ended.

Batch = tuple[Tensor, Tensor, bool]


def random_batches(
    codes: Tensor, batch_size: int, num_steps: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Pieces of the text in random order: the state starts from zero in each batch."""
    first = int(torch.randint(num_steps, (1,), generator=generator))
    pieces = torch.randperm((len(codes) - 1 - first) // num_steps, generator=generator)
    starts = (first + num_steps * pieces).to(codes.device)
    for rows in starts[: len(starts) // batch_size * batch_size].split(batch_size):
        index = rows[:, None] + torch.arange(num_steps, device=codes.device)
        yield codes[index], codes[index + 1], False


def sequential_batches(
    codes: Tensor, batch_size: int, num_steps: int, generator: torch.Generator
) -> Iterator[Batch]:
    """Each row reads its own part of the text from end to end: the state is carried along."""
    first = int(torch.randint(num_steps, (1,), generator=generator))
    length = (len(codes) - 1 - first) // batch_size // num_steps * num_steps
    inputs, targets = (
        codes[begin : begin + batch_size * length].view(batch_size, length).split(num_steps, dim=1)
        for begin in (first, first + 1)
    )
    for i, (x, y) in enumerate(zip(inputs, targets, strict=True)):
        yield x, y, i > 0


SAMPLINGS = {"random": random_batches, "sequential": sequential_batches}

# Training


@dataclass(kw_only=True)
class LanguageRun(Run):
    """A run with its optimizer, and the perplexity of the held-out text after each epoch."""

    optimizer: torch.optim.Optimizer
    held_out: list[float] = field(default_factory=list)


FIGURES = ("losses", "step_losses", "turn_seconds", "held_out")  # of a run, kept with checkpoints


def make_run(name: str, args: argparse.Namespace, start: Parameters) -> LanguageRun:
    model = CharModel(RNN_CLASSES[name], start).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    shared = parallel(model)
    state = None

    def step(inputs: Tensor, targets: Tensor, goes_on: bool) -> Tensor:
        nonlocal state
        inputs, targets = own_rows(inputs), own_rows(targets)
        scores, hn = shared(inputs, state if goes_on else None)
        state = hn.detach()  # carried on, but no gradient goes back into the batch before
        loss = loss_of(scores, targets)
        optimizer.zero_grad()
        loss.backward()  # in several processes: the mean of their gradients
        nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
        optimizer.step()
        return mean_of_processes(loss.detach())

    return LanguageRun(name, model, step, optimizer=optimizer)


def train_model(sampling: str, args: argparse.Namespace, text: Text) -> list[LanguageRun]:
    """Train the model of `--impl`, with `--compare` both, on batches cut by `sampling`."""
    start = draw_parameters(len(text.vocabulary), args.hidden_size, args.seed)
    runs = make_runs(args, lambda name: make_run(name, args, start))
    checkpoints = None
    if args.checkpoint is not None:
        run = runs[0]
        checkpoints = Checkpoints(
            args.checkpoint / sampling, run.model, run.optimizer, settings(sampling, args, text)
        )
        vars(run).update(checkpoints.begin(args.resume))
    for epoch in range(len(runs[0].losses) + 1, args.epochs + 1):
        # The batches of an epoch follow from its number alone: a resumed run sees the same ones.
        generator = torch.Generator().manual_seed((args.seed + epoch) % 2**63)
        batches = list(SAMPLINGS[sampling](text.train, args.batch_size, args.num_steps, generator))
        characters = len(batches) * args.batch_size * args.num_steps
        label = f"{sampling} epoch {epoch:{len(str(args.epochs))}}/{args.epochs}"
        rate = (characters, "characters")
        train_part(runs, batches, steps=len(batches), label=label, rate=rate)
        for run in runs:
            run.held_out.append(perplexity(run.model, text.held_out))
            print(
                f"{label}  {run.name}  perplexity {math.exp(run.losses[-1]):.2f}, "
                f"held-out text {run.held_out[-1]:.2f}"
            )
        print(f"  {write(runs[0].model, text, args.prefix, 60, args.seed)!r}")
        if checkpoints is not None:
            checkpoints.save(epoch, {name: getattr(run, name) for name in FIGURES})
    return runs


def settings(sampling: str, args: argparse.Namespace, text: Text) -> dict[str, object]:
    """What must be as it was for a training to go on: all that shapes it but its length."""
    names = ("batch_size", "num_steps", "hidden_size", "learning_rate", "clip_norm", "seed")
    return {
        "sampling": sampling,
        "vocabulary": text.vocabulary,
        "characters": len(text.train) + len(text.held_out),
        **{name: getattr(args, name) for name in names},
    }


@torch.no_grad()
def perplexity(model: CharModel, codes: Tensor) -> float:
    """e to the mean cross-entropy, the text read in one piece: 1 is certainty, V is ignorance."""
    scores, _ = model(codes[None, :-1])
    return math.exp(loss_of(scores, codes[None, 1:]))


@torch.no_grad()
def write(model: CharModel, text: Text, prefix: str, length: int, seed: int) -> str:
    """`prefix`, and `length` characters drawn one after another from what the model expects."""
    generator = torch.Generator().manual_seed(seed)
    device = text.train.device
    codes, state = text.encode(prefix), None
    for _ in range(length):
        unread = codes if state is None else codes[-1:]
        scores, state = model(unread[None].to(device), state)
        chances = torch.softmax(scores[-1, 0].double().cpu() / 0.7, dim=0)  # below 1: bolder
        codes = torch.cat([codes, torch.multinomial(chances, 1, generator=generator)])
    return "".join(text.vocabulary[code] for code in codes.tolist())


# The program


def draw(
    path: Path,
    title: str,
    runs: dict[str, list[LanguageRun]],
    milliseconds: dict[str, float],
    sample: str,
) -> None:
    """Perplexity over the epochs, a training step from scratch and fused, and what was written."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2))
    curves, bars = upper.subplots(1, 2, width_ratios=(3, 2))
    for sampling, marker in (("random", "o"), ("sequential", "s")):
        for i, run in enumerate(runs.get(sampling, [])):
            epochs = range(1, len(run.losses) + 1)
            fill = {"random": "white", "sequential": COLORS[run.name]}[sampling]
            style = {"color": COLORS[run.name], "marker": marker, "markerfacecolor": fill}
            style["markersize"] = 6 - 3 * i  # the second run's lie within the first one's
            trained = [math.exp(loss) for loss in run.losses]
            label = f"{run.name}, {sampling}"
            curves.plot(epochs, trained, alpha=0.45, label=f"{label}: training", **style)
            curves.plot(epochs, run.held_out, "--", label=f"{label}: held-out text", **style)
    curves.set(xlabel="epoch", ylabel="perplexity", xticks=epochs)
    curves.legend(frameon=False, fontsize=8)
    colors = [COLORS.get(name, "0.55") for name in milliseconds]
    patches = bars.barh(list(milliseconds), list(milliseconds.values()), color=colors)
    bars.bar_label(patches, fmt="%.1f", padding=3)
    bars.set(xlabel="milliseconds forward and backward")
    bars.invert_yaxis()
    bars.margins(x=0.15)
    for axes in (curves, bars):
        tidy(axes)
    bars.grid(visible=False)
    page = lower.subplots()
    page.set_axis_off()
    lines = [part for line in sample.splitlines() for part in textwrap.wrap(line, 120) or [""]]
    page.text(
        0, 1, "\n".join(lines[:15]), family="monospace", fontsize=9, va="top", parse_math=False
    )
    figure.suptitle(f"{title}: what comes after each character?", fontsize=13)
    figure.savefig(path, dpi=90)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, epochs=5, data=True)
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
class Results:
    text: str  # the name of the text
    runs: dict[str, list[LanguageRun]]  # by sampling: of --impl, and with --compare of the other
    comparisons: dict[str, Comparison]
    milliseconds: dict[str, float]  # of forward and backward, from scratch and fused
    sample: str
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(argv)
    with processes(args.device) as args.device:
        if args.batch_size % number_of_processes():
            fail(
                f"--batch-size {args.batch_size}: expected a multiple of the number of processes, "
                f"{number_of_processes()}"
            )
        return learn(args)


def learn(args: argparse.Namespace) -> Results:
    text = load_text(args)
    make_folder(args.out)
    count = number_of_processes()
    print(
        f"{text.name}: {len(text.train):,} characters to learn from, {len(text.held_out):,} held "
        f"out, {len(text.vocabulary)} different ones; RNN({len(text.vocabulary)}, "
        f"{args.hidden_size}) on {args.device}, {count} process{'es' if count > 1 else ''}"
    )
    start = draw_parameters(len(text.vocabulary), args.hidden_size, args.seed)
    milliseconds = check_from_scratch(args, text, start)

    samplings = list(SAMPLINGS) if args.sampling == "both" else [args.sampling]
    runs = {sampling: train_model(sampling, args, text) for sampling in samplings}
    sample = write(runs[samplings[-1]][0].model, text, args.prefix, 700, args.seed)
    print(f"\n{sample}\n")

    picture = args.out / "char_lm.png"
    if is_first():
        draw(picture, text.name, runs, milliseconds, sample)
        print(f"wrote {picture}")
    comparisons = {}
    for sampling in samplings:
        if args.compare:
            comparisons[sampling] = Comparison.of(*runs[sampling])
            print(f"{sampling} sampling: {comparisons[sampling]}")
            for run in runs[sampling]:
                print(f"{run.name}: held-out perplexity {run.held_out[-1]:.2f}")
    firsts = [runs[sampling][0] for sampling in samplings]
    figure = " and ".join(
        f"{run.held_out[-1]:.2f} ({sampling})"
        for sampling, run in zip(samplings, firsts, strict=True)
    )
    seconds = sum(run.seconds for run in firsts)
    steps = sum(len(run.step_losses) for run in firsts)
    print(summary_line("char_lm", f"held-out perplexity {figure}", seconds, steps))
    return Results(text.name, runs, comparisons, milliseconds, sample, picture)


if __name__ == "__main__":
    main()
