"""Parts of speech: an RNN that reads a sentence from both ends gives each word its tag.

A sequence of words comes in, a sequence of tags of the same length goes out. What a word is depends
on its neighbours ("can" in "the can" and "can see") and, for a word never seen before, on how it is
spelt. So one RNN reads the letters of each word from both ends, another the words of the sentence:

    s = [h, g]: the letter RNN's state after the last letter, and, from the right, at the first
    x[t] = [embedding of word t, s of word t]
    h[t] = tanh(W x[t] + b + U h[t-1]),   g[t] = tanh(W' x[t] + b' + U' g[t+1])
    scores of the tags of word t = A h[t] + B g[t] + c

Words and sentences differ in length: `rnn(x, lengths=lengths)` starts g at each row's own end.

    python examples/pos_tagging.py                 train, then tag the test sentences
    python examples/pos_tagging.py --validate      the same on a tenth of the training sentences
    python examples/pos_tagging.py --compare       against torch.nn.RNN, loss and speed

It reads Universal Dependencies' English Web Treebank from --data, $FASTRNN_DATA/ud_english_ewt or
data/ud_english_ewt: the files en_ewt-ud-dev.conllu, to train on, and en_ewt-ud-test.conllu, gzip or
not. Without them it learns sentences of a small grammar with invented words. It writes
pos_tagging.png to --out.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    COLORS,
    RIGHT,
    RNN_CLASSES,
    WRONG,
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
    train,
)
from _sentences import Sentence, generated_sentences, read_conllu
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastrnn import RNN

PADDING, UNKNOWN = 0, 1  # of words and of letters
NO_TAG = -100  # of padding, and of a tag that the training sentences do not have
LETTERS = 16  # of a word that are read; of a longer one, its first and last eight


# Sentences


def load_sentences(args: argparse.Namespace) -> tuple[str, list[Sentence], list[Sentence]]:
    """The name of the data, the sentences to train on, and those to test on."""
    folder = find_data_or(args.data, "ud_english_ewt", "sentences of a generated grammar")
    if folder is None:
        name, sentences, test = "generated grammar", generated_sentences(2000, seed=1), []
    else:
        name, sentences = "UD English EWT", read_conllu(folder, "en_ewt-ud-dev.conllu")
    if args.validate:
        if len(sentences) < 2:
            fail(f"--validate needs at least 2 training sentences, got {len(sentences)}")
        random.Random(0).shuffle(sentences)
        tenth = max(1, len(sentences) // 10)
        sentences, test = sentences[tenth:], sentences[:tenth]
    elif folder is None:
        test = generated_sentences(500, seed=2)
    else:
        test = read_conllu(folder, "en_ewt-ud-test.conllu")
    return name, sentences[: args.limit], test[: args.limit]


class Encoder:
    """Numbers for words, letters and tags: those of the training sentences."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        pairs = [pair for sentence in sentences for pair in sentence]
        self.word_counts = Counter(word.lower() for word, _ in pairs)
        self.words = number(self.word_counts)
        self.letters = number(sorted({letter for word, _ in pairs for letter in word}))
        self.tags = sorted({tag for _, tag in pairs})

    def __call__(self, sentences: Sequence[Sentence]) -> tuple[Tensor, Tensor, Tensor]:
        """Words (N, T), letters (N, T, LETTERS), tags (N, T), padded to the longest sentence."""
        longest = max(map(len, sentences))
        words = torch.full((len(sentences), longest), PADDING)
        letters = torch.full((len(sentences), longest, LETTERS), PADDING)
        tags = torch.full((len(sentences), longest), NO_TAG)
        tag_numbers = {tag: i for i, tag in enumerate(self.tags)}
        for i, sentence in enumerate(sentences):
            for t, (word, tag) in enumerate(sentence):
                words[i, t] = self.words.get(word.lower(), UNKNOWN)
                tags[i, t] = tag_numbers.get(tag, NO_TAG)
                if len(word) > LETTERS:
                    word = word[: LETTERS // 2] + word[-(LETTERS // 2) :]
                for k, letter in enumerate(word):
                    letters[i, t, k] = self.letters.get(letter, UNKNOWN)
        return words, letters, tags


def number(items: Sequence[str] | Counter[str]) -> dict[str, int]:
    """1 + UNKNOWN, 2 + UNKNOWN, ... in the order of `items`."""
    return {item: i for i, item in enumerate(items, start=1 + UNKNOWN)}


def most_frequent_tags(sentences: Sequence[Sentence], test: Sequence[Sentence]) -> list[list[str]]:
    """The baseline: for each word its commonest tag in `sentences`; for a new one, that of all."""
    counts: dict[str, Counter[str]] = {}
    for word, tag in itertools.chain.from_iterable(sentences):
        counts.setdefault(word.lower(), Counter())[tag] += 1
    commonest = {word: tags.most_common(1)[0][0] for word, tags in counts.items()}
    of_all = sum(counts.values(), Counter()).most_common(1)[0][0]
    return [[commonest.get(word.lower(), of_all) for word, _ in sentence] for sentence in test]


# The model


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


def make_run(impl: str, encoder: Encoder, sentences: int, args: argparse.Namespace) -> Run:
    torch.manual_seed(args.seed)
    model = WordTagger(RNN_CLASSES[impl], encoder, args).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.learning_rate, fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        args.learning_rate,
        total_steps=args.epochs * math.ceil(sentences / args.batch_size),
    )
    seeds = itertools.count(args.seed + 1)

    def step(words: Tensor, letters: Tensor, tags: Tensor) -> Tensor:
        torch.manual_seed(next(seeds))  # with --compare, both models drop the same
        longest = int((words != PADDING).sum(1).max())
        scores = model(words[:, :longest], letters[:, :longest])
        loss = F.cross_entropy(
            scores.flatten(0, 1), tags[:, :longest].flatten(), ignore_index=NO_TAG
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    return Run(impl, model, step)


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


# What came of it


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
    path: Path,
    name: str,
    runs: list[Run],
    scores: tuple[Score, Score],
    test: Sequence[Sentence],
    found: Sequence[Sequence[str]],
) -> None:
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
    figure.savefig(path, dpi=110)


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
    """What came of `--impl`, and with `--compare` how it stands to the other implementation."""

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

    runs = make_runs(args, lambda impl: make_run(impl, encoder, len(sentences), args))
    train(
        runs,
        data,
        epochs=args.epochs,
        batch_size=args.batch_size,
        generator=torch.Generator().manual_seed(args.seed),
        unit="sentences",
    )

    found = [predict(run.model, encoder, test) for run in runs]
    scores = [Score.of(test, tags, encoder) for tags in found]
    baseline = Score.of(test, most_frequent_tags(sentences, test), encoder)
    print_scores(scores[0], baseline, test)
    picture = args.out / "pos_tagging.png"
    draw(picture, name, runs, (scores[0], baseline), test, found[0])
    print(f"wrote {picture}")
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
