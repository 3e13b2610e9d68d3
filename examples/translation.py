"""Translation: an encoder reads one sequence, a decoder with attention writes another.

The lengths differ, so no step of the output belongs to a step of the input. One RNN reads the
source in both directions; a second one, which starts from the first one's last states, reads what
has been written so far, and attention looks up, for each of its states, where in the source to
look (global attention of Luong, Pham and Manning 2015):

    s[1..S]  = encoder(source)                            h[0] = its last states
    h[t]     = tanh(target[t-1] @ w_ih.T + b_ih + h[t-1] @ w_hh.T + b_hh)
    a[t]     = softmax over i of (h[t] @ w_a.T) . s[i]    the weights of the source's steps
    v[t]     = tanh([sum of a[t,i] s[i], h[t]] @ w_c.T)
    p(target[t] | what is before it) = softmax(v[t] @ embedding.T + b)

Training shows the decoder the right words so far (teacher forcing). Its RNN needs nothing from the
attention, so it runs over the whole target in one call, and attention and softmax follow for all
steps at once. Afterwards it reads its own words: the likeliest at each step (greedy), or the best
few sentences so far (beam search).

    python examples/translation.py                  dates, as written in many ways, to ISO 8601
    python examples/translation.py --data DIR       German to English: Multi30k in DIR
    python examples/translation.py --compare        against torch.nn.RNN: losses and speed

Multi30k is train, val and test_2016_flickr, each .de and .en, .gz or not: in --data,
$FASTRNN_DATA/multi30k or data/multi30k; sacrebleu marks the translations, and must be installed.
Without the data, or with --dates, the program learns to read dates. The epoch with the best
validation score is the one that is tested. Writes translation.png to --out.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    CLASS_NAMES,
    COLORS,
    Comparison,
    Run,
    find_data_or,
    make_folder,
    plot_losses,
    report,
    save_picture,
    tidy,
    train_each,
)
from _translation_data import BEGIN, END, PADDING, UNKNOWN, Dates, Multi30k, Pairs, Task
from _translation_options import DEFAULTS, parse_options
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastrnn import RNN

WARM_UP = {"dates": 0.3, "Multi30k": 0.1}  # the part of the steps over which the rate rises


# The network


class Translator(nn.Module):
    """Encoder, decoder and attention over the `source_size` and `target_size` words known."""

    def __init__(
        self,
        rnn_class: type[nn.RNN],
        source_size: int,
        target_size: int,
        embedding_size: int,
        hidden_size: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.source_embedding = nn.Embedding(source_size, embedding_size, PADDING)
        self.target_embedding = nn.Embedding(target_size, embedding_size, PADDING)
        self.encoder = rnn_class(
            embedding_size, hidden_size // 2, batch_first=True, bidirectional=True
        )
        self.decoder = rnn_class(embedding_size, hidden_size, batch_first=True)
        self.attention = nn.Linear(hidden_size, hidden_size, bias=False)
        self.combine = nn.Linear(2 * hidden_size, embedding_size, bias=False)
        self.output = nn.Linear(embedding_size, target_size)
        self.output.weight = self.target_embedding.weight  # Press and Wolf 2017
        self.dropout = nn.Dropout(dropout)
        for embedding in (self.source_embedding, self.target_embedding):
            nn.init.normal_(embedding.weight, std=0.1)
        for rnn in (self.encoder, self.decoder):
            for name, weight in rnn.named_parameters():
                if name.startswith("weight_hh"):
                    nn.init.orthogonal_(weight)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Source (B, S) to its states (B, S, H), and the decoder's first state (1, B, H)."""
        embedded = self.dropout(self.source_embedding(source))
        if isinstance(self.encoder, RNN):
            states, hn = self.encoder(embedded, lengths=lengths)
        else:  # nn.RNN takes rows of different lengths only when they are packed
            packed = pack_padded_sequence(embedded, lengths.cpu(), True, enforce_sorted=False)
            states, hn = self.encoder(packed)
            states, _ = pad_packed_sequence(states, batch_first=True)
        return states, torch.cat([hn[0], hn[1]], dim=1).unsqueeze(0)

    def decode(
        self, target: Tensor, hx: Tensor, states: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The words so far, target (B, T), to v (B, T, E), a (B, T, S) and the state (1, B, H).

        `mask` (B, S) is true where the source has a word.
        """
        h, hn = self.decoder(self.dropout(self.target_embedding(target)), hx)
        scores = self.attention(h) @ states.mT
        weights = scores.masked_fill(~mask.unsqueeze(1), -math.inf).softmax(-1)
        vectors = torch.tanh(self.combine(torch.cat([weights @ states, h], dim=-1)))
        return self.dropout(vectors), weights, hn

    def loss(self, source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Mean cross-entropy of a word of `target` (B, T), given those before it."""
        states, hx = self.encode(source, lengths)
        vectors, _, _ = self.decode(target[:, :-1], hx, states, source != PADDING)
        following = target[:, 1:]
        there = following != PADDING  # what is padding costs no softmax over all words
        return F.cross_entropy(self.output(vectors[there]), following[there])


# Writing


@torch.no_grad()
def greedy(model: Translator, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token at each step: tokens (B, T), and the attention's weights (B, T, S)."""
    states, h = model.encode(source, lengths)
    mask = source != PADDING
    token = torch.full_like(source[:, :1], BEGIN)
    ended = torch.zeros_like(token, dtype=torch.bool)
    tokens, weights = [], []
    while len(tokens) < longest(source) and not ended.all():
        vectors, a, h = model.decode(token, h, states, mask)
        token = log_probabilities(model, vectors).argmax(-1).masked_fill(ended, PADDING)
        ended |= token == END
        tokens.append(token)
        weights.append(a)
    return torch.cat(tokens, dim=1), torch.cat(weights, dim=1)


@torch.no_grad()
def beam_search(model: Translator, source: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Tokens (B, T) of the best of `width` sentences that are kept at each step.

    The best has the largest log-probability per token; the sum alone would favour short ones.
    """
    batch = len(source)
    states, h = model.encode(source, lengths)
    states, mask = (
        tensor.repeat_interleave(width, dim=0) for tensor in (states, source != PADDING)
    )
    h = h.repeat_interleave(width, dim=1)
    tokens = source.new_full((batch * width, 1), BEGIN)
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    sums = states.new_full((batch, width), -math.inf)
    sums[:, 0] = 0  # at first all of a row's sentences are the same: let one of them go on
    first_row = torch.arange(0, batch * width, width, device=source.device).unsqueeze(1)
    for _ in range(longest(source)):
        vectors, _, h = model.decode(tokens[:, -1:], h, states, mask)
        scores = log_probabilities(model, vectors).squeeze(1)
        scores = scores.masked_fill(ended, -math.inf)
        scores[:, PADDING].masked_fill_(ended.squeeze(1), 0)  # which is all that follows the end
        candidates = sums.view(-1, 1) + scores
        counts = (tokens != PADDING).sum(1, keepdim=True) + ~ended - 1  # without BEGIN
        best = (candidates / counts).view(batch, -1).topk(width).indices
        sums = candidates.view(batch, -1).gather(1, best)
        rows = (first_row + best // scores.size(1)).flatten()
        tokens = torch.cat([tokens[rows], (best % scores.size(1)).view(-1, 1)], dim=1)
        h, ended = h[:, rows], ended[rows] | (tokens[:, -1:] == END)
        if ended.all():
            break
    return tokens.view(batch, width, -1)[:, 0, 1:]  # topk has put the best first


def longest(source: Tensor) -> int:
    """Where writing stops if no end comes."""
    return 2 * source.size(1) + 10


def log_probabilities(model: Translator, vectors: Tensor) -> Tensor:
    """Of each token to be next; what stands for no text is never written."""
    scores = model.output(vectors)
    scores[..., [PADDING, BEGIN, UNKNOWN]] = -math.inf
    return scores.log_softmax(-1)


def translate(model: Translator, task: Task, pairs: Pairs, width: int = 1) -> list[str]:
    """The sources of `pairs`, in their order, in the target's language; greedy with `width` 1."""
    model.eval()
    translations = [""] * len(pairs.sources)
    for rows in pairs.batches(256):
        source, lengths, _ = pairs.batch(rows)
        if width == 1:
            written, _ = greedy(model, source, lengths)
        else:
            written = beam_search(model, source, lengths, width)
        for row, numbers in zip(rows, written.tolist(), strict=True):
            translations[row] = task.join(task.target_vocabulary.decode(numbers))
    return translations


# Training


@dataclass
class Choice:
    """The epoch whose model had the best validation score."""

    scores: list[float]
    epoch: int = 0
    state: dict[str, Tensor] | None = None

    def add(self, score: float, model: nn.Module) -> None:
        self.scores.append(score)
        if score > max(self.scores[:-1], default=-1.0):
            self.epoch = len(self.scores)
            self.state = copy.deepcopy(model.state_dict())


def train(model: Translator, choice: Choice, task: Task, args: argparse.Namespace) -> list[float]:
    """Train `model` and return the loss of each step; the weights are those of the best epoch."""
    pairs = task.encode(task.train, args.device)
    validation = task.encode(task.validation, args.device)
    references = [target for _, target in task.validation]
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    steps = args.epochs * math.ceil(len(task.train) / args.batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(  # Smith 2018; it cannot warm up in one step
        optimizer, args.learning_rate, max(steps, 20), pct_start=WARM_UP[task.name]
    )
    shuffle = random.Random(args.seed)
    losses = []
    for epoch in range(1, args.epochs + 1):
        model.train()
        batches = pairs.batches(args.batch_size, shuffle)
        for rows in batches:
            source, lengths, target = pairs.batch(rows)
            torch.manual_seed(args.seed + len(losses))  # with --compare, both drop the same
            optimizer.zero_grad()
            loss = model.loss(source, lengths, target)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        score = task.score(translate(model, task, validation), references)
        choice.add(score, model)
        mean = statistics.fmean(losses[-len(batches) :])
        print(f"epoch {epoch:2}/{args.epochs}  loss {mean:.3f}  validation {task.figure(score)}")
    model.load_state_dict(choice.state)
    return losses


# The program


def draw(task: Task, runs: list[Run], choices: list[Choice], test: Pairs) -> Figure:
    """The losses, the validation scores, and where the first run looked in two of the tests."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2, 3))
    loss_axes, score_axes = above.subplots(1, 2)
    plot_losses(loss_axes, runs)

    for run, choice in zip(runs, choices, strict=True):
        color, label = COLORS[run.name], f"{CLASS_NAMES[run.name]}, best in epoch {choice.epoch}"
        epochs = range(1, len(choice.scores) + 1)
        score_axes.plot(epochs, choice.scores, "o-", color=color, label=label)
    label = f"validation {task.measure}" + ("," + task.unit if task.unit else "")
    score_axes.set(xlabel="epoch", ylabel=label, ylim=(0, None))
    score_axes.xaxis.get_major_locator().set_params(integer=True)
    score_axes.legend(frameon=False)
    tidy(score_axes)

    for axes, row in zip(below.subplots(1, 2), range(len(task.test)), strict=False):
        draw_attention(axes, task, runs[0].model, test, row)
    below.suptitle(
        "greedy translation: weights of the tokens read (columns) for each token written (rows)"
    )
    figure.suptitle(f"{task.name}: encoder, decoder and attention", fontsize=13)
    return figure


def draw_attention(axes: Axes, task: Task, model: Translator, pairs: Pairs, row: int) -> None:
    source, lengths, _ = pairs.batch([row])
    numbers, weights = greedy(model, source, lengths)
    read = [*task.split(task.test[row][0]), "end"]
    written = [*task.target_vocabulary.decode(numbers[0].tolist()), "end"][: len(numbers[0])]
    axes.imshow(weights[0].cpu().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(read)), read, rotation=90 if max(map(len, read)) > 1 else 0)
    axes.set_yticks(range(len(written)), written)


@dataclass
class Results:
    """The results of `--impl`, and with `--compare` how the other implementation compares."""

    data: str
    losses: list[float]  # the mean of each epoch
    validation_scores: list[float]  # greedy, of each epoch
    greedy_score: float  # of the test, 0 to 100: BLEU, or percent
    beam_score: float
    seconds: float
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(__doc__, argv)
    folder = None if args.dates else find_data_or(args.data, "multi30k", "dates written out")
    task = Multi30k(folder, args.limit) if folder else Dates(args.limit)
    for option, value in DEFAULTS[task.name].items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    make_folder(args.out)
    print(
        f"{task.name}: {len(task.train):,} pairs to learn from, {len(task.validation):,} to choose "
        f"the epoch, {len(task.test):,} to test\n"
        f"{len(task.source_vocabulary):,} tokens to read, {len(task.target_vocabulary):,} to "
        f"write; encoder 2 x RNN({args.embedding_size}, {args.hidden_size // 2}), decoder "
        f"RNN({args.embedding_size}, {args.hidden_size}), on {args.device}"
    )

    def make_model(rnn_class: type[nn.RNN]) -> Translator:
        sizes = (len(task.source_vocabulary), len(task.target_vocabulary))
        return Translator(rnn_class, *sizes, args.embedding_size, args.hidden_size, args.dropout)

    def train_model(model: Translator) -> list[float]:
        choices.append(Choice([]))
        return train(model, choices[-1], task, args)

    choices: list[Choice] = []
    runs = train_each(args, make_model, train_model, args.epochs)

    test = task.encode(task.test, args.device)
    references = [target for _, target in task.test]
    scores = []
    for run, choice in zip(runs, choices, strict=True):
        by_greedy, by_beam = (translate(run.model, task, test, width) for width in (1, args.beam))
        scores.append((task.score(by_greedy, references), task.score(by_beam, references)))
        print(
            f"{run.name}, epoch {choice.epoch}: test {task.figure(scores[-1][0])} greedily, "
            f"{task.figure(scores[-1][1])} by a beam of {args.beam}"
        )
        if run is runs[0]:
            for (source, target), ours in zip(task.test[:5], by_beam, strict=False):
                print(f"  {source}\n    right: {target}\n    ours:  {ours}")
    picture = save_picture(draw(task, runs, choices, test), args, "translation")
    figures = [f"test {task.figure(by_beam)}" for _, by_beam in scores]
    return Results(
        data=task.name,
        losses=runs[0].losses,
        validation_scores=choices[0].scores,
        greedy_score=scores[0][0],
        beam_score=scores[0][1],
        seconds=runs[0].seconds,
        comparison=report("translation", runs, figures),
        picture=picture,
    )


if __name__ == "__main__":
    main()
