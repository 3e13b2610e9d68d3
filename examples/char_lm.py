"""A language model of characters: from its formulas to the fused op, on one process or many.

For a batch of B texts, the characters at time step t are the rows of X[t], one-hot, (B, V) for a
vocabulary of V characters. The network reads them one after another and predicts the next one:

    H[t] = tanh(X[t] @ W_xh + H[t-1] @ W_hh + b_h)      hidden state, (B, 256)
    O[t] = H[t] @ W_hq + b_q                            scores of the next character, (B, V)

The lesson: these two lines as a loop over time; the same network with fastrnn.RNN, whose outputs
and gradients are compared with the loop's; two ways to cut a long text into batches; training with
clipped gradients, measured by perplexity; and text that the network writes. With fastrnn.RNN,
X[t] @ W_xh is a look-up in W_xh; torch.nn.RNN multiplies, and the times of both include this.

    python examples/char_lm.py                             both ways to cut, 5 epochs each
    python examples/char_lm.py --sampling random --epochs 1
    torchrun --nproc-per-node 2 examples/char_lm.py        two processes share each batch

On several nodes, run the same command on each: torchrun --nnodes 2 --nproc-per-node 8
--rdzv-backend c10d --rdzv-endpoint HOST:29400 examples/char_lm.py. With --checkpoint DIR (a folder
that all nodes see) the program saves each finished epoch there, and --resume continues from the
last one, with any number of processes.

Reads tinyshakespeare.txt from --data, $FASTRNN_DATA or data, else the help texts that come with
Python (pydoc_data.topics). Writes char_lm.png to --out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _char_lm import Text, difference, draw, load_text, parse_options, settings
from _common import (
    CLASS_NAMES,
    RNN_CLASSES,
    Comparison,
    Run,
    fail,
    make_folder,
    save_picture,
    summary_line,
    time_in_turns,
    train_each,
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
from torch import Tensor, nn

from fastrnn import RNN

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
        self.held_out: list[float] = []  # the perplexity of the held-out text after each epoch
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
        if isinstance(self.rnn, RNN):
            # A product with one-hot characters picks rows of W_xh: look them up.
            igates = F.embedding(codes.T, self.rnn.weight_ih_l0.T)
            output, hn = self.rnn(None, state, igates=igates)
        else:  # torch.nn.RNN can only multiply
            X = one_hot(codes, self.vocabulary_size).type_as(self.linear.weight)
            output, hn = self.rnn(X, state)
        return self.linear(output), hn


def one_hot(codes: Tensor, vocabulary_size: int) -> Tensor:
    """Codes (B, T) as X (T, B, V)."""
    return F.one_hot(codes.T, vocabulary_size).float()


def loss_of(scores: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of scores (T, B, V) for the codes `targets` (B, T)."""
    return F.cross_entropy(scores.flatten(0, 1), targets.T.flatten())


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


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
) -> list[float]:
    """Train `model` on each of `batches` once, and return the loss of each."""
    losses, state = [], None
    for inputs, targets, goes_on in batches:
        inputs, targets = own_rows(inputs), own_rows(targets)
        optimizer.zero_grad()
        scores, hn = model(inputs, state if goes_on else None)
        state = hn.detach()  # its value is carried over, its gradient is not
        loss = loss_of(scores, targets)
        loss.backward()  # in several processes: the mean of their gradients
        nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
        optimizer.step()
        losses.append(mean_of_processes(loss.detach()).item())
    return losses


def train(model: CharModel, sampling: str, args: argparse.Namespace, text: Text) -> list[float]:
    """Train `model` on batches cut by `sampling`, and return the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, fused=True)
    shared = parallel(model)
    losses: list[float] = []
    if args.checkpoint is not None:
        folder = args.checkpoint / sampling
        checkpoints = Checkpoints(folder, model, optimizer, settings(sampling, args, text))
        saved = checkpoints.begin(args.resume)
        losses, model.held_out = saved.get("losses", []), saved.get("held_out", [])
    for epoch in range(len(model.held_out) + 1, args.epochs + 1):
        # The batches depend only on the epoch's number, so a resumed run sees the same ones.
        generator = torch.Generator().manual_seed((args.seed + epoch) % 2**63)
        batches = list(SAMPLINGS[sampling](text.train, args.batch_size, args.num_steps, generator))
        losses += train_epoch(shared, batches, optimizer, args)
        model.held_out.append(perplexity(model, text.held_out))
        trained = math.exp(sum(losses[-len(batches) :]) / len(batches))
        print(
            f"{sampling} epoch {epoch}/{args.epochs}  perplexity {trained:.2f}, "
            f"held-out text {model.held_out[-1]:.2f}"
        )
        print(f"  {write(model, text, args.prefix, 60, args.seed)!r}")
        if args.checkpoint is not None:
            checkpoints.save(epoch, {"losses": losses, "held_out": model.held_out})
    return losses


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


def check_from_scratch(args: argparse.Namespace, text: Text, start: Parameters) -> dict[str, float]:
    """Compare the loop with the fused op, outputs and gradients, and time a training step of each.

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
    rnn, linear = model.rnn, model.linear
    theirs = [rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, linear.weight, linear.bias]
    gradients = max(difference(a.grad, b.grad.t()) for a, b in zip(parameters, theirs, strict=True))
    print(
        f"the loop and {CLASS_NAMES[args.impl]} at the same weights: outputs differ by at most "
        f"{outputs:.1e}, gradients by {gradients:.1e}, relative to the largest of each"
    )

    def multiplied() -> Tensor:
        """Run fastrnn.RNN as a model without the look-up would, on one-hot characters."""
        model = models["fastrnn"]
        output, _ = model.rnn(X)
        scores = model.linear(output)
        loss_of(scores, targets).backward()
        return scores

    steps = {"from scratch": loop}
    steps |= {name: lambda model=model: op(model) for name, model in models.items()}
    steps["fastrnn.RNN, one-hot"] = multiplied
    milliseconds = time_in_turns(steps, args.device)
    print("milliseconds, forward and backward")
    for name, value in milliseconds.items():
        ratio = milliseconds["from scratch"] / value
        print(f"  {CLASS_NAMES.get(name, name):22}{value:8.2f}   {ratio:5.1f} times as fast")
    return milliseconds


@dataclass
class Results:
    text: str  # the name of the text
    runs: dict[str, list[Run]]  # by sampling: of --impl, and with --compare of the other
    comparisons: dict[str, Comparison]
    milliseconds: dict[str, float]  # of forward and backward, from scratch and fused
    sample: str
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(__doc__, argv)
    with processes(args.device) as args.device:
        count = number_of_processes()
        if args.batch_size % count:
            fail(
                f"--batch-size {args.batch_size}: expected a multiple of the number of "
                f"processes, {count}"
            )
        return learn(args)


def learn(args: argparse.Namespace) -> Results:
    text = load_text(args)
    make_folder(args.out)
    size, count = len(text.vocabulary), number_of_processes()
    print(
        f"{text.name}: {len(text.train):,} characters for training, {len(text.held_out):,} held "
        f"out, vocabulary of {size}; RNN({size}, {args.hidden_size}) on {args.device}, "
        f"{count} process{'es' if count > 1 else ''}"
    )
    start = draw_parameters(size, args.hidden_size, args.seed)
    milliseconds = check_from_scratch(args, text, start)

    samplings = list(SAMPLINGS) if args.sampling == "both" else [args.sampling]
    runs, comparisons = {}, {}
    for sampling in samplings:
        runs[sampling] = train_each(
            args,
            lambda rnn_class: CharModel(rnn_class, start),
            lambda model, sampling=sampling: train(model, sampling, args, text),
        )
        for run in runs[sampling]:
            run.parts = len(run.model.held_out)
        if args.compare:
            comparisons[sampling] = Comparison.of(*runs[sampling])
            print(comparisons[sampling])
    firsts = [runs[sampling][0] for sampling in samplings]
    sample = write(firsts[-1].model, text, args.prefix, 700, args.seed)
    print(f"\n{sample}\n")

    picture = args.out / "char_lm.png"
    if is_first():
        picture = save_picture(draw(text.name, runs, milliseconds, sample), args, "char_lm")
    for sampling, both in runs.items():
        for run in both if args.compare else []:
            figure = f"{run.model.held_out[-1]:.2f} ({sampling})"
            print(f"{CLASS_NAMES[run.name]}: held-out perplexity {figure}")
    figures = [f"{runs[name][0].model.held_out[-1]:.2f} ({name})" for name in samplings]
    figure = f"held-out perplexity {' and '.join(figures)}"
    seconds, steps = (
        sum(run.seconds for run in firsts),
        sum(len(run.step_seconds) for run in firsts),
    )
    print(summary_line("char_lm", figure, seconds, steps))
    return Results(text.name, runs, comparisons, milliseconds, sample, picture)


if __name__ == "__main__":
    main()
