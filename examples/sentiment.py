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
    python examples/sentiment.py --compare             against torch.nn.RNN: losses and speed

Reads rt-polarity.pos and rt-polarity.neg, a sentence a line, from --data,
$FASTRNN_DATA/rt_polarity or data/rt_polarity, else it makes up sentences. A tenth of them is the
test; of the rest, a tenth chooses the epoch whose weights are kept. Writes sentiment.png to
--out.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    COLORS,
    Comparison,
    Run,
    make_folder,
    make_parser,
    plot_losses,
    positive_float,
    positive_int,
    report,
    save_picture,
    tidy,
    train_each,
)
from _reviews import (
    BLAME,
    PADDING,
    PRAISE,
    Batch,
    Sentences,
    bag_of_words,
    load_sentences,
    number_words,
    split,
    to_tensors,
)
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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
        self.validation: list[float] = []  # the accuracy after each epoch, in percent
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


# Training


def train(
    model: SentimentModel, data: Batch, validation: Batch, args: argparse.Namespace
) -> list[float]:
    """Train `model` and return the loss of each step; the weights are those of the best epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate)
    generator = torch.Generator().manual_seed(args.seed)
    losses = []
    for epoch in range(1, args.epochs + 1):
        order = torch.randperm(len(data[0]), generator=generator).to(args.device)
        batches = order.split(args.batch_size)
        for rows in batches:
            words, lengths, labels = (tensor[rows] for tensor in data)
            torch.manual_seed(args.seed + len(losses) + 1)  # with --compare, both drop the same
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(words, lengths), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), args.clip_norm)
            optimizer.step()
            losses.append(loss.item())
        model.validation.append(accuracy(predict(model, validation), validation))
        if model.validation[-1] == max(model.validation):
            best = copy.deepcopy(model.state_dict())
        mean = statistics.fmean(losses[-len(batches) :])
        right = f"validation accuracy {model.validation[-1]:.2f} %"
        print(f"epoch {epoch}/{args.epochs}  loss {mean:.4f}  {right}")
    model.load_state_dict(best)
    return losses


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
    title: str,
    runs: list[Run],
    right: dict[str, list[bool]],
    test: Sentences,
    read: list[tuple[list[str], list[float]]],
) -> Figure:
    """Losses; accuracy by length of sentence, with and without order; verdicts word by word."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
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
    bars.set_title("test accuracy by length of sentence")
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
    return figure


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
    runs: list[Run]
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
    runs = train_each(
        args,
        lambda rnn_class: SentimentModel(rnn_class, len(numbers) + 2, args),
        lambda model: train(model, data, chosen_by, args),
        args.epochs,
    )

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
    figure = draw(name, runs, right, test_part, read)
    picture = save_picture(figure, args, "sentiment")
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
