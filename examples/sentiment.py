"""Sequence to class: is a sentence about a film praise or blame?

Words become vectors, an RNN in both directions reads them, and the mean of its outputs over the
words of the sentence is judged:

    x[t] = E[word[t]]                                      a row of the table E for each word
    h[t] = tanh(x[t] @ w_ih.T + b_ih + h[t-1] @ w_hh.T + b_hh)       and likewise from the end
    score = mean over t of (h[t], h_reverse[t]) @ w.T + b            above 0: praise

Sentences have different lengths. A batch of them is padded, and the RNN is told the lengths; or it
is packed, the only way that torch.nn.RNN knows. The program does both and compares the results. It
also compares with a logistic regression on counts of words, which knows no order.

    python examples/sentiment.py
    python examples/sentiment.py --sequences packed
    python examples/sentiment.py --compare             against torch.nn.RNN, loss and speed

It reads rt-polarity.pos and rt-polarity.neg, a sentence a line, from --data,
$FASTRNN_DATA/rt_polarity or data/rt_polarity, else it makes up sentences. A tenth of them is the
test; of the rest, a tenth chooses the epoch whose weights are kept. It writes sentiment.png to
--out.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
from collections import Counter
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
    plot_losses,
    positive_float,
    positive_int,
    report,
    tidy,
    train_part,
)
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

PADDING, UNKNOWN = 0, 1  # words have numbers from 2
BLAME, PRAISE = 0, 1  # labels

# Sentences


@dataclass
class Sentences:
    """Words of each sentence, and its label, 1 for praise."""

    words: list[list[str]]
    labels: list[int]

    def part(self, rows: list[int]) -> Sentences:
        return Sentences([self.words[i] for i in rows], [self.labels[i] for i in rows])


def load_sentences(args: argparse.Namespace) -> tuple[str, Sentences]:
    """The name of the data and all of them."""
    folder = find_data_or(args.data, "rt_polarity", "made-up sentences")
    if folder is None:
        return "made-up sentences", made_up_sentences(8000)
    sentences = Sentences([], [])
    for label, name in enumerate(("rt-polarity.neg", "rt-polarity.pos")):
        try:
            lines = (folder / name).read_text(encoding="latin-1").split("\n")
        except OSError as error:
            fail(f"{folder / name}: {error.strerror}")
        words = [line.lower().split() for line in lines if line.strip()]
        if not words:
            fail(f"{folder / name}: expected a sentence a line, got an empty file")
        sentences.words += words
        sentences.labels += [label] * len(words)
    return "film reviews", sentences


def made_up_sentences(count: int) -> Sentences:
    """Praise and blame with negations and concessions, which counts of words cannot tell apart.

    "the plot is not dull , although the music is hardly moving" is praise: the main clause decides,
    and the concession always says the opposite.
    """
    choose = random.Random(0).choice
    adjectives = (["dull", "flat", "silly", "tired"], ["clever", "moving", "funny", "fresh"])
    denials = ("is not", "is hardly", "is anything but", "is never")

    def clause(label: int) -> str:
        subject = choose(["the plot", "the acting", "the film", "the music", "this story"])
        denied = choose([True, False])
        verb = choose(denials) if denied else choose(["is", "is really", "stays"])
        return f"{subject} {verb} {choose(adjectives[label != denied])}"

    labels = [i % 2 for i in range(count)]
    texts = []
    for label in labels:
        main, concession = clause(label), f"although {clause(1 - label)}"
        orders = (main, f"{main} , {concession}", f"{concession} , {main}")
        texts.append(choose(orders))
    return Sentences([text.split() for text in texts], labels)


def split(sentences: Sentences, limit: int | None) -> tuple[Sentences, Sentences, Sentences]:
    """A tenth for the test, a tenth of the rest to choose by, and what is left to learn from."""
    generator = torch.Generator().manual_seed(0)  # whatever --seed: the test stays the same
    order = torch.randperm(len(sentences.words), generator=generator)[:limit].tolist()
    tenth = len(order) // 10
    held = (len(order) - tenth) // 10
    if held == 0:
        fail(f"expected at least 11 sentences, got {len(order)}")
    rows = order[:tenth], order[tenth : tenth + held], order[tenth + held :]
    test, validation, train = (sentences.part(part) for part in rows)
    return train, validation, test


# Sentences as tensors


def number_words(sentences: Sentences) -> dict[str, int]:
    """A number for each word that occurs at least twice."""
    counts = Counter(word for words in sentences.words for word in words)
    words = sorted(word for word, count in counts.items() if count > 1)
    if not words:
        fail("expected words that occur at least twice, got none")
    return {word: number for number, word in enumerate(words, start=2)}


Batch = tuple[Tensor, Tensor, Tensor]


def to_tensors(sentences: Sentences, numbers: dict[str, int], device: torch.device) -> Batch:
    """Padded numbers of words (N, T), int64, lengths (N), int64, and labels (N), float32."""
    rows = [
        torch.tensor([numbers.get(word, UNKNOWN) for word in words]) for words in sentences.words
    ]
    lengths = torch.tensor([len(row) for row in rows])
    padded = pad_sequence(rows, batch_first=True, padding_value=PADDING)
    return padded.to(device), lengths.to(device), torch.tensor(sentences.labels).float().to(device)


# The network


class SentimentModel(nn.Module):
    """Scores (B), above 0 for praise, of padded numbers of words (B, T) and lengths (B)."""

    def __init__(self, rnn_class: type[nn.RNN], vocabulary_size: int, args: argparse.Namespace):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, args.embedding_size, padding_idx=PADDING)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.rnn = rnn_class(
            args.embedding_size, args.hidden_size, batch_first=True, bidirectional=True
        )
        self.linear = nn.Linear(2 * args.hidden_size, 1)
        self.dropout = nn.Dropout(args.dropout)
        self.packed = args.sequences == "packed" or rnn_class is nn.RNN

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        words = words[:, : lengths.max()]
        input = self.dropout(self.embedding(words))
        if self.packed:
            packed = pack_padded_sequence(
                input, lengths.cpu(), batch_first=True, enforce_sorted=False
            )
            output, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True)
        else:
            output, _ = self.rnn(input, lengths=lengths)
        mean = output.sum(1) / lengths[:, None]  # outputs beyond a sentence's length are zero
        return self.linear(self.dropout(mean)).squeeze(1)


@dataclass(kw_only=True)
class SentimentRun(Run):
    """A run, its accuracy on the validation part after each epoch, and the best epoch's weights."""

    validation: list[float] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


def make_run(name: str, args: argparse.Namespace, vocabulary_size: int) -> SentimentRun:
    torch.manual_seed(args.seed)
    model = SentimentModel(RNN_CLASSES[name], vocabulary_size, args).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    steps = 0

    def step(words: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        torch.manual_seed(args.seed + steps)  # two runs drop the same elements
        loss = F.binary_cross_entropy_with_logits(model(words, lengths), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
        optimizer.step()
        return loss.detach()

    return SentimentRun(name, model, step)


def train(runs: list[SentimentRun], args: argparse.Namespace, data: Batch, chosen_by: Batch):
    """Train `runs` on the same batches, and leave in each the weights of its best epoch."""
    generator = torch.Generator().manual_seed(args.seed)
    size = len(data[0])
    for epoch in range(1, args.epochs + 1):
        order = torch.randperm(size, generator=generator).to(args.device)
        train_part(
            runs,
            ([tensor[rows] for tensor in data] for rows in order.split(args.batch_size)),
            steps=math.ceil(size / args.batch_size),
            label=f"epoch {epoch:{len(str(args.epochs))}}/{args.epochs}",
            rate=(size, "sentences"),
        )
        for run in runs:
            run.validation.append(accuracy(predict(run.model, chosen_by), chosen_by))
            print(f"  {run.name}: validation accuracy {run.validation[-1]:.2f} %")
            if run.validation[-1] == max(run.validation):
                run.best = copy.deepcopy(run.model.state_dict())
    for run in runs:
        run.model.load_state_dict(run.best)


@torch.no_grad()
def predict(model: SentimentModel, data: Batch) -> Tensor:
    """Scores (N) of the sentences."""
    model.eval()
    parts = zip(*(tensor.split(500) for tensor in data), strict=True)
    scores = torch.cat([model(words, lengths) for words, lengths, _ in parts])
    model.train()
    return scores


def accuracy(scores: Tensor, data: Batch) -> float:
    return 100 * ((scores > 0) == (data[2] == PRAISE)).double().mean().item()


def packed_difference(model: SentimentModel, data: Batch) -> float:
    """The largest between the scores of packed sentences and of padded ones with lengths."""
    scores = []
    way = model.packed
    for model.packed in (False, True):
        scores.append(predict(model, data))
    model.packed = way
    return (scores[0] - scores[1]).abs().max().item()


# Without order: a bag of words


def bag_of_words(train: Sentences, validation: Sentences, test: Sentences) -> list[bool]:
    """Whether logistic regression on counts of words is right about each test sentence.

    The strength of its penalty is the best one on the validation part.
    """
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError:
        fail("scikit-learn is not installed: pip install scikit-learn")
    models = []
    for strength in (0.03, 0.1, 0.3, 1.0, 3.0):
        counts = CountVectorizer(analyzer=lambda words: words)
        model = make_pipeline(counts, LogisticRegression(C=strength, max_iter=1000))
        models.append(model.fit(train.words, train.labels))
    best = max(models, key=lambda model: model.score(validation.words, validation.labels))
    return [a == b for a, b in zip(best.predict(test.words), test.labels, strict=True)]


# The program


@torch.no_grad()
def verdicts(model: SentimentModel, words: Tensor) -> list[float]:
    """The chance of praise after the first word, the first two, ... of one sentence (T).

    One batch: the same sentence in every row, of length 1, 2, .. T.
    """
    lengths = torch.arange(1, len(words) + 1, device=words.device)
    batch = words.expand(len(words), -1), lengths, lengths
    return torch.sigmoid(predict(model, batch)).tolist()


def turning_sentence(
    model: SentimentModel, sentences: Sentences, data: Batch, hits: list[bool], label: int
) -> tuple[list[str], list[float]]:
    """Of the rightly judged, not too long sentences with `label`, the one that surprises most.

    Returns its words and the chance of praise after each. Where there is none: the first sentence.
    """
    rows = [
        i
        for i, words in enumerate(sentences.words)
        if sentences.labels[i] == label and len(words) <= 16 and hits[i]
    ]
    read = [
        (sentences.words[i], verdicts(model, data[0][i, : len(sentences.words[i])]))
        for i in rows[:200] or [0]
    ]
    return max(read, key=lambda pair: max(pair[1]) - min(pair[1]))


def strongest_words(model: SentimentModel, numbers: dict[str, int], count: int) -> tuple[str, str]:
    """The words that blame most and praise most, each read as a sentence of its own."""
    device = model.linear.weight.device
    codes = torch.tensor([*numbers.values()], device=device)[:, None]
    order = predict(model, (codes, torch.ones_like(codes[:, 0]), codes)).argsort().tolist()
    words = list(numbers)
    return tuple(
        ", ".join(words[i] for i in part) for part in (order[:count], order[: -count - 1 : -1])
    )


def draw(
    path: Path,
    title: str,
    runs: list[SentimentRun],
    right: dict[str, list[bool]],
    test: Sentences,
    read: list[tuple[list[str], list[float]]],
) -> None:
    """Losses; accuracy by length of sentence, with and without order; verdicts word by word."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(4, 3))
    losses, bars = upper.subplots(1, 2)
    plot_losses(losses, runs)

    counts = torch.tensor([len(words) for words in test.words])
    groups = counts.argsort(stable=True).chunk(4)  # a quarter of the sentences each
    colors = (COLORS[runs[0].name], "0.7")
    for side, ((name, hits), color) in enumerate(zip(right.items(), colors, strict=True)):
        heights = [100 * torch.tensor(hits)[group].double().mean().item() for group in groups]
        places = [k + 0.4 * side - 0.2 for k in range(len(groups))]
        label = f"{name}: {percent(hits):.2f} %"
        patches = bars.bar(places, heights, 0.38, color=color, label=label)
        bars.bar_label(patches, fmt="%.0f", fontsize=8)
    spans = [f"{counts[group].min()}-{counts[group].max()}" for group in groups]
    bars.set(xlabel="words in the sentence", ylabel="test accuracy, %", ylim=(0, 118))
    bars.set_xticks(range(len(groups)), spans)
    bars.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    tidy(bars)

    for axes, (words, chances) in zip(lower.subplots(1, 2, sharey=True), read, strict=True):
        axes.axhline(0.5, color="0.6", linewidth=1)
        axes.plot(chances, "o-", color=colors[0], markersize=4)
        axes.set_xticks(range(len(words)), words, rotation=60, ha="right", fontsize=8)
        axes.set_ylim(0, 1)
        tidy(axes)
    lower.supylabel("chance of praise, so far", fontsize=9)
    figure.suptitle(f"{title}: praise or blame?", fontsize=13)
    figure.savefig(path, dpi=90)


def percent(hits: list[bool]) -> float:
    return 100 * sum(hits) / len(hits)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, epochs=6, data=True)
    add = parser.add_argument
    add("--limit", type=positive_int, metavar="N", help="only N of the sentences")
    ways = ("lengths", "packed")
    add("--sequences", choices=ways, default="lengths", help="for fastrnn's RNN (%(default)s)")
    add("--batch-size", type=positive_int, default=32, help="(%(default)s)")
    add("--embedding-size", type=positive_int, default=100, help="of a word (%(default)s)")
    add("--hidden-size", type=positive_int, default=64, help="of a direction (%(default)s)")
    add("--learning-rate", type=positive_float, default=1e-3, help="of Adam (%(default)s)")
    add("--clip-norm", type=positive_float, default=1.0, help="of all gradients (%(default)s)")
    add("--dropout", type=probability, default=0.5, help="of vectors and means (%(default)s)")
    return parser.parse_args(argv)


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text}")
    return value


@dataclass
class Results:
    data: str
    runs: list[SentimentRun]
    accuracies: list[float]  # of each run on the test sentences, in percent
    bag_of_words: float  # likewise
    packed_difference: float | None  # between scores of packed and of padded sentences
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(argv)
    name, sentences = load_sentences(args)
    learn_part, choose_part, test_part = split(sentences, args.limit)
    make_folder(args.out)
    numbers = number_words(learn_part)
    data, chosen_by, test = (
        to_tensors(part, numbers, args.device) for part in (learn_part, choose_part, test_part)
    )
    print(
        f"{name}: {len(data[0]):,} sentences to learn from, {len(chosen_by[0]):,} to choose the "
        f"epoch by, {len(test[0]):,} for the test; {len(numbers):,} words that occur at least "
        f"twice; RNN({args.embedding_size}, {args.hidden_size}, bidirectional=True) "
        f"on {args.device}"
    )
    baseline = bag_of_words(learn_part, choose_part, test_part)
    print(f"logistic regression on a bag of words: test accuracy {percent(baseline):.2f} %")
    runs = make_runs(args, lambda impl: make_run(impl, args, len(numbers) + 2))
    train(runs, args, data, chosen_by)

    model = runs[0].model
    scores = predict(model, test)
    accuracies = [accuracy(predict(run.model, test), test) for run in runs]
    difference = None
    if args.impl == "fastrnn":
        difference = packed_difference(model, test)
        print(f"packed or with lengths: test scores differ by at most {difference:.1e}")
    blame, praise = strongest_words(model, numbers, 8)
    print(f"most blame: {blame}\nmost praise: {praise}")
    hits = ((scores > 0) == (test[2] == PRAISE)).tolist()
    read = [turning_sentence(model, test_part, test, hits, label) for label in (PRAISE, BLAME)]
    right = {"RNN": hits, "bag of words": baseline}
    picture = args.out / "sentiment.png"
    draw(picture, name, runs, right, test_part, read)
    print(f"wrote {picture}")
    comparison = report("sentiment", runs, [f"test accuracy {value:.2f} %" for value in accuracies])
    return Results(
        data=name,
        runs=runs,
        accuracies=accuracies,
        bag_of_words=percent(baseline),
        packed_difference=difference,
        comparison=comparison,
        picture=picture,
    )


if __name__ == "__main__":
    main()
