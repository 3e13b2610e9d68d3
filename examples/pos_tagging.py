"""Parts of speech: an RNN that reads a sentence from both ends gives each word its tag.

A sequence of words comes in, a sequence of tags of the same length goes out. The tag of a word
depends on its neighbors ("can" in "the can" and "can see") and, for a word never seen before, on
its spelling. So one RNN reads the letters of each word in both directions, another one the words of
the sentence:

    s = [h, g]: the letter RNN's state after the last letter, and, from the right, at the first
    x[t] = [embedding of word t, s of word t]
    h[t] = tanh(W x[t] + b + U h[t-1]),   g[t] = tanh(W' x[t] + b' + U' g[t+1])
    scores of the tags of word t = A h[t] + B g[t] + c

Words and sentences differ in length: `rnn(x, lengths=lengths)` starts g at each row's own end.

    python examples/pos_tagging.py                 train, then tag the test sentences
    python examples/pos_tagging.py --validate      the same on a tenth of the training sentences
    python examples/pos_tagging.py --compare       against torch.nn.RNN: losses and speed

Reads Universal Dependencies' English Web Treebank from --data, $FASTRNN_DATA/ud_english_ewt or
data/ud_english_ewt: the files en_ewt-ud-dev.conllu, to train on, and en_ewt-ud-test.conllu, gzip or
not. Without them it learns sentences of a small grammar with invented words. Writes pos_tagging.png
to --out.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Sequence
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
    make_parser,
    plot_losses,
    positive_float,
    positive_int,
    report,
    save_picture,
    tidy,
    train_each,
)
from _sentences import (
    NO_TAG,
    PADDING,
    UNKNOWN,
    Encoder,
    Sentence,
    load_sentences,
    most_frequent_tags,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastrnn import RNN


class WordTagger(nn.Module):
    """Scores of the tags of each word, from its letters, itself, and its neighbours."""

    def __init__(self, rnn_class: type[nn.RNN], encoder: Encoder, args: argparse.Namespace) -> None:
        super().__init__()
        letters, words = (len(known) + 1 + UNKNOWN for known in (encoder.letters, encoder.words))
        self.letter_embedding = nn.Embedding(letters, args.letter_size, PADDING)
        self.word_embedding = nn.Embedding(words, args.embedding_size, PADDING)
        spelling = 2 * args.letter_hidden_size
        self.letter_rnn = rnn_class(
            args.letter_size, args.letter_hidden_size, batch_first=True, bidirectional=True
        )
        self.rnn = rnn_class(
            args.embedding_size + spelling, args.hidden_size, batch_first=True, bidirectional=True
        )
        for name, weight in self.named_parameters():
            if "weight_hh" in name:
                nn.init.orthogonal_(weight)
        self.dropout = nn.Dropout(args.dropout)
        self.linear = nn.Linear(2 * args.hidden_size, len(encoder.tags))

        # The test has words that the training has not. To learn what an unknown word is like, the
        # training takes a word seen n times for unknown with probability 1 / (1 + 4 n).
        counts = torch.tensor([math.inf, math.inf, *encoder.word_counts.values()])
        self.register_buffer("hide_probability", 1 / (1 + 4 * counts))

    def forward(self, words: Tensor, letters: Tensor) -> Tensor:
        """Words (B, T) and their letters (B, T, LETTERS) to scores (B, T, tags)."""
        if self.training:
            hidden = torch.rand(words.shape, device=words.device) < self.hide_probability[words]
            words = words.masked_fill(hidden, UNKNOWN)
        x = torch.cat([self.word_embedding(words), self.spell(letters)], dim=2)
        lengths = (words != PADDING).sum(1)
        output, _ = run_padded(self.rnn, self.dropout(x), lengths)
        output = output.contiguous()  # dropout draws in the order of memory
        return self.linear(self.dropout(output))

    def spell(self, letters: Tensor) -> Tensor:
        """Letters (B, T, LETTERS) to what the letter RNN makes of them, (B, T, features)."""
        spellings, places = letters.flatten(0, 1).unique(dim=0, return_inverse=True)
        lengths = (spellings != PADDING).sum(1).clamp(min=1)  # padding is a word of one such letter
        _, hn = run_padded(self.letter_rnn, self.letter_embedding(spellings), lengths)
        return torch.cat([hn[0], hn[1]], dim=1)[places].view(*letters.shape[:2], -1)


def run_padded(rnn: nn.Module, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`output` and `hn` of padded rows (B, T, features) with `lengths` (B) steps each."""
    if isinstance(rnn, RNN):
        return rnn(input, lengths=lengths)
    packed = pack_padded_sequence(input, lengths.cpu(), batch_first=True, enforce_sorted=False)
    output, hn = rnn(packed)  # nn.RNN knows lengths from packed input alone
    output, _ = pad_packed_sequence(output, batch_first=True, total_length=input.size(1))
    return output, hn


def train(model: WordTagger, data: Sequence[Tensor], args: argparse.Namespace) -> list[float]:
    """Train `model` on words, letters and tags, and return the loss of each step."""
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        args.learning_rate,
        total_steps=args.epochs * math.ceil(len(data[0]) / args.batch_size),
    )
    generator = torch.Generator().manual_seed(args.seed)
    losses = []
    for epoch in range(1, args.epochs + 1):
        order = torch.randperm(len(data[0]), generator=generator).to(args.device)
        batches = order.split(args.batch_size)
        for rows in batches:
            longest = int((data[0][rows] != PADDING).sum(1).max())
            words, letters, tags = (tensor[rows, :longest] for tensor in data)
            torch.manual_seed(args.seed + len(losses) + 1)  # with --compare, both drop the same
            optimizer.zero_grad()
            scores = model(words, letters)
            loss = F.cross_entropy(scores.flatten(0, 1), tags.flatten(), ignore_index=NO_TAG)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            scheduler.step()
            losses.append(loss.item())
        mean = statistics.fmean(losses[-len(batches) :])
        print(f"epoch {epoch:2}/{args.epochs}  loss {mean:.4g}")
    return losses


@torch.no_grad()
def predict(model: nn.Module, encoder: Encoder, sentences: Sequence[Sentence]) -> list[list[str]]:
    """The tags that `model` finds most probable."""
    model.eval()
    device = next(model.parameters()).device
    found = []
    for start in range(0, len(sentences), 100):
        part = sentences[start : start + 100]
        words, letters, _ = (tensor.to(device) for tensor in encoder(part))
        best = model(words, letters).argmax(2).tolist()
        found += [
            [encoder.tags[i] for i in row[: len(sentence)]]
            for row, sentence in zip(best, part, strict=True)
        ]
    model.train()
    return found


# Results


def percent(right: Sequence[bool]) -> float:
    return 100 * sum(right) / len(right) if right else math.nan


@dataclass
class Score:
    """What of the test words is tagged right, in percent."""

    all: float
    unknown: float  # words that are not among the training sentences
    by_tag: dict[str, float]

    @classmethod
    def of(
        cls, test: Sequence[Sentence], found: Sequence[Sequence[str]], encoder: Encoder
    ) -> Score:
        rows = [
            (word, tag, guess == tag)
            for sentence, guesses in zip(test, found, strict=True)
            for (word, tag), guess in zip(sentence, guesses, strict=True)
        ]
        return cls(
            all=percent([right for _, _, right in rows]),
            unknown=percent(
                [right for word, _, right in rows if word.lower() not in encoder.words]
            ),
            by_tag={
                tag: percent([right for _, truth, right in rows if truth == tag])
                for tag, _ in Counter(tag for _, tag, _ in rows).most_common()
            },
        )


def print_scores(score: Score, baseline: Score, test: Sequence[Sentence]) -> None:
    counts = Counter(tag for sentence in test for _, tag in sentence)
    print("test words right, %       words     RNN  most frequent tag")
    for tag, count in counts.most_common():
        print(f"  {tag:20}{count:9,}{score.by_tag[tag]:8.2f}{baseline.by_tag[tag]:19.2f}")
    print(f"  {'unknown words':29}{score.unknown:8.2f}{baseline.unknown:19.2f}")
    print(f"  {'all':20}{counts.total():9,}{score.all:8.2f}{baseline.all:19.2f}")


def draw(
    name: str,
    runs: list[Run],
    scores: tuple[Score, Score],
    test: Sequence[Sentence],
    found: Sequence[Sequence[str]],
) -> Figure:
    """The losses, the accuracy per tag beside the baseline's, and some tagged sentences."""
    figure = Figure(figsize=(10, 7), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
    loss_axes, tag_axes = top.subplots(1, 2, width_ratios=(2, 3))
    plot_losses(loss_axes, runs)

    score, baseline = scores
    for shift, each, color, label in (
        (-0.2, score, COLORS[runs[0].name], f"RNN ({score.all:.2f} % of all)"),
        (0.2, baseline, "0.7", f"most frequent tag ({baseline.all:.2f} %)"),
    ):
        places = [i + shift for i in range(len(each.by_tag))]
        tag_axes.bar(places, each.by_tag.values(), width=0.4, color=color, label=label)
    tag_axes.set_xticks(range(len(score.by_tag)), score.by_tag, rotation=60)
    tag_axes.set(ylabel="test words right, %", ylim=(0, 100))
    tag_axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
    tidy(tag_axes)

    fitting = [
        (sentence, tags)
        for sentence, tags in zip(test, found, strict=True)
        if len(sentence) >= 6 and sum(map(cell_width, sentence)) <= 105
    ]
    draw_sentences(bottom.subplots(), fitting[:4])
    figure.suptitle(f"{name}: parts of speech", fontsize=13)
    return figure


def cell_width(pair: tuple[str, str]) -> int:
    return max(len(pair[0]), 5) + 2


def draw_sentences(axes: Axes, tagged: Sequence[tuple[Sentence, Sequence[str]]]) -> None:
    """Words, and below each the tag found: green where right, red where wrong."""
    axes.set_axis_off()
    axes.set(xlim=(0, 105), ylim=(4, 0), title="the first test sentences that fit in here")
    for row, (sentence, tags) in enumerate(tagged):
        x = 0
        for pair, guess in zip(sentence, tags, strict=True):
            word, tag = pair
            axes.text(x, row + 0.3, word, fontsize=9.5, family="monospace")
            shown, color = (tag, RIGHT) if guess == tag else (guess, WRONG)
            axes.text(x, row + 0.65, shown, fontsize=7, family="monospace", color=color)
            x += cell_width(pair)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    parser = make_parser(__doc__, epochs=30, data=True)
    add = parser.add_argument
    add(
        "--validate",
        action="store_true",
        help="hold a tenth of the training sentences out to test on",
    )
    add("--limit", type=positive_int, metavar="N", help="only N sentences, also of the test")
    add("--batch-size", type=positive_int, default=16, help="sentences (%(default)s)")
    add("--hidden-size", type=positive_int, default=128, help="(%(default)s)")
    add("--embedding-size", type=positive_int, default=64, help="of a word (%(default)s)")
    add("--letter-size", type=positive_int, default=32, help="of a letter (%(default)s)")
    add("--letter-hidden-size", type=positive_int, default=64, help="(%(default)s)")
    add("--dropout", type=probability, default=0.3, help="(%(default)s)")
    add("--learning-rate", type=positive_float, default=4e-3, help="the highest (%(default)s)")
    return parser.parse_args(argv)


def probability(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text}")
    return value


@dataclass
class Results:
    """The results of `--impl`, and with `--compare` how the other implementation compares."""

    data: str
    losses: list[float]  # the mean of each epoch
    score: Score
    baseline: Score
    comparison: Comparison | None
    picture: Path


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(argv)
    name, sentences, test = load_sentences(args)
    make_folder(args.out)
    encoder = Encoder(sentences)
    data = [tensor.to(args.device) for tensor in encoder(sentences)]
    print(
        f"{name}: {len(sentences):,} sentences with {sum(map(len, sentences)):,} words to learn "
        f"from, {len(test):,} with {sum(map(len, test)):,} to test; {len(encoder.tags)} tags; "
        f"RNN({args.letter_size}, {args.letter_hidden_size}) over letters, "
        f"RNN({args.embedding_size + 2 * args.letter_hidden_size}, {args.hidden_size}) over words, "
        f"both bidirectional, on {args.device}"
    )

    runs = train_each(
        args,
        lambda rnn_class: WordTagger(rnn_class, encoder, args),
        lambda model: train(model, data, args),
        args.epochs,
    )

    found = [predict(run.model, encoder, test) for run in runs]
    scores = [Score.of(test, tags, encoder) for tags in found]
    baseline = Score.of(test, most_frequent_tags(sentences, test), encoder)
    print_scores(scores[0], baseline, test)
    figure = draw(name, runs, (scores[0], baseline), test, found[0])
    picture = save_picture(figure, args, "pos_tagging")
    which = "validation" if args.validate else "test"
    comparison = report(
        "pos_tagging", runs, [f"{which} accuracy {score.all:.2f} %" for score in scores]
    )
    return Results(
        data=name,
        losses=runs[0].losses,
        score=scores[0],
        baseline=baseline,
        comparison=comparison,
        picture=picture,
    )


if __name__ == "__main__":
    main()
