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
    python examples/translation.py --compare        against torch.nn.RNN, loss and speed

Multi30k is train, val and test_2016_flickr, each .de and .en, .gz or not: in --data,
$FASTRNN_DATA/multi30k or data/multi30k. Without it, or with --dates, the program learns to read
dates. The epoch with the best validation score is the one that is tested. It writes
translation.png to --out.
"""

from __future__ import annotations

import argparse
import collections
import copy
import datetime
import gzip
import importlib.util
import itertools
import math
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    RNN_CLASSES,
    Comparison,
    Run,
    add_common_options,
    fail,
    find_data_or,
    make_folder,
    make_runs,
    plot_losses,
    positive_float,
    positive_int,
    report,
    tidy,
    train_part,
)
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence

from fastrnn import RNN

PADDING, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<padding>", "<begin>", "<end>", "<unknown>")

# `hidden_size` is the decoder's; each direction of the encoder has half of it.
DEFAULTS = {
    "dates": {
        "epochs": 10,
        "batch_size": 64,
        "learning_rate": 3e-3,
        "embedding_size": 64,
        "hidden_size": 256,
        "dropout": 0.0,
    },
    "Multi30k": {
        "epochs": 12,
        "batch_size": 64,
        "learning_rate": 1e-3,
        "embedding_size": 256,
        "hidden_size": 512,
        "dropout": 0.3,
    },
}


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
        there = following != PADDING  # the softmax over all words is most of the work
        return F.cross_entropy(self.output(vectors[there]), following[there])


# Writing


@torch.no_grad()
def greedy(
    model: Translator, source: Tensor, lengths: Tensor, longest: int
) -> tuple[Tensor, Tensor]:
    """The likeliest word at each step: words (B, T), and the attention's weights (B, T, S)."""
    states, h = model.encode(source, lengths)
    mask = source != PADDING
    word = torch.full_like(source[:, :1], BEGIN)
    ended = torch.zeros_like(word, dtype=torch.bool)
    words, weights = [], []
    while len(words) < longest and not ended.all():
        vectors, a, h = model.decode(word, h, states, mask)
        word = log_probabilities(model, vectors).argmax(-1).masked_fill(ended, PADDING)
        ended |= word == END
        words.append(word)
        weights.append(a)
    return torch.cat(words, dim=1), torch.cat(weights, dim=1)


@torch.no_grad()
def beam_search(
    model: Translator, source: Tensor, lengths: Tensor, longest: int, width: int
) -> Tensor:
    """Words (B, T) of the best of `width` sentences that are kept at each step.

    The best has the largest log-probability per word; the sum alone would favour short ones.
    """
    batch = len(source)
    states, h = model.encode(source, lengths)
    states, mask = (
        tensor.repeat_interleave(width, dim=0) for tensor in (states, source != PADDING)
    )
    h = h.repeat_interleave(width, dim=1)
    words = source.new_full((batch * width, 1), BEGIN)
    ended = torch.zeros_like(words, dtype=torch.bool)
    sums = states.new_full((batch, width), -math.inf)
    sums[:, 0] = 0  # at first all of a row's sentences are the same: let one of them go on
    first_row = torch.arange(0, batch * width, width, device=source.device).unsqueeze(1)
    for _ in range(longest):
        vectors, _, h = model.decode(words[:, -1:], h, states, mask)
        scores = log_probabilities(model, vectors).squeeze(1)
        scores = scores.masked_fill(ended, -math.inf)
        scores[:, PADDING].masked_fill_(ended.squeeze(1), 0)  # which is all that follows the end
        candidates = sums.view(-1, 1) + scores
        counts = (words != PADDING).sum(1, keepdim=True) + ~ended - 1  # without BEGIN
        best = (candidates / counts).view(batch, -1).topk(width).indices
        sums = candidates.view(batch, -1).gather(1, best)
        rows = (first_row + best // scores.size(1)).flatten()
        words = torch.cat([words[rows], (best % scores.size(1)).view(-1, 1)], dim=1)
        h, ended = h[:, rows], ended[rows] | (words[:, -1:] == END)
        if ended.all():
            break
    return words.view(batch, width, -1)[:, 0, 1:]  # topk has put the best first


def log_probabilities(model: Translator, vectors: Tensor) -> Tensor:
    """Of each word to be next; what is no word is never written."""
    scores = model.output(vectors)
    scores[..., [PADDING, BEGIN, UNKNOWN]] = -math.inf
    return scores.log_softmax(-1)


# Words and numbers


class Vocabulary:
    """The words that occur at least `least` times in `sentences`, numbered after `SPECIAL`."""

    def __init__(self, sentences: Iterable[Sequence[str]], least: int = 1) -> None:
        counts = collections.Counter(itertools.chain.from_iterable(sentences))
        self.words = [*SPECIAL, *(word for word, n in counts.most_common() if n >= least)]
        self.numbers = {word: number for number, word in enumerate(self.words)}

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: Sequence[str]) -> list[int]:
        return [self.numbers.get(word, UNKNOWN) for word in sentence]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The words before END."""
        return [self.words[n] for n in itertools.takewhile(lambda n: n != END, numbers)]


@dataclass
class Task:
    """What is translated, and how a translation is marked."""

    name: str
    train: list[tuple[str, str]]  # sources and targets
    validation: list[tuple[str, str]]
    test: list[tuple[str, str]]
    split: Callable[[str], list[str]]
    join: Callable[[list[str]], str]
    score: Callable[[list[str], list[str]], float]  # of translations by references, 0 to 100
    figure: str  # the score in words
    least_count: tuple[int, int]  # of a word of the source, of the target


@dataclass
class Pairs:
    """Sources and targets as numbers, ready to be batched."""

    sources: list[Tensor]
    targets: list[Tensor]  # from BEGIN to END
    device: torch.device

    def batch(self, rows: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Source (B, S), its lengths (B), and target (B, T) of `rows`."""
        source, target = (
            pad_sequence([numbers[row] for row in rows], batch_first=True, padding_value=PADDING)
            for numbers in (self.sources, self.targets)
        )
        lengths = torch.tensor([len(self.sources[row]) for row in rows])
        return source.to(self.device), lengths.to(self.device), target.to(self.device)

    def batches(self, size: int, shuffle: random.Random | None = None) -> list[list[int]]:
        """The rows of each batch, those of like lengths together, so that little is padding."""

        def key(row: int) -> tuple[int, float]:
            length = len(self.sources[row]) + len(self.targets[row])
            return length, shuffle.random() if shuffle else 0.0

        order = sorted(range(len(self.sources)), key=key)
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if shuffle:
            shuffle.shuffle(batches)
        return batches


@dataclass
class Words:
    """The vocabularies of a task."""

    source: Vocabulary
    target: Vocabulary
    task: Task

    @classmethod
    def of(cls, task: Task) -> Words:
        source, target = (
            Vocabulary((task.split(pair[side]) for pair in task.train), task.least_count[side])
            for side in (0, 1)
        )
        return cls(source, target, task)

    def encode(self, pairs: Sequence[tuple[str, str]], device: torch.device) -> Pairs:
        split = self.task.split
        sources = [self.source.encode(split(source)) or [UNKNOWN] for source, _ in pairs]
        targets = [[BEGIN, *self.target.encode(split(target)), END] for _, target in pairs]
        return Pairs([*map(torch.tensor, sources)], [*map(torch.tensor, targets)], device)

    def translate(self, model: Translator, pairs: Pairs, width: int = 1) -> list[str]:
        """The translations of the sources of `pairs`, in their order; `width` 1 is greedy."""
        model.eval()
        longest = max(map(len, pairs.targets)) + 10
        result = [""] * len(pairs.sources)
        for rows in pairs.batches(256):
            source, lengths, _ = pairs.batch(rows)
            if width == 1:
                words, _ = greedy(model, source, lengths, longest)
            else:
                words = beam_search(model, source, lengths, longest, width)
            for row, numbers in zip(rows, words.tolist(), strict=True):
                result[row] = self.task.join(self.target.decode(numbers))
        return result

    def score(self, model: Translator, pairs: Pairs, references: list[str], width: int = 1) -> float:
        return self.task.score(self.translate(model, pairs, width), references)


# German to English


def load_multi30k(folder: Path) -> Task:
    """Multi30k (Elliott et al. 2016), marked by BLEU (Papineni et al. 2002) as sacrebleu has it."""
    if importlib.util.find_spec("sacrebleu") is None:
        fail("sacrebleu is not installed, which computes BLEU: pip install sacrebleu")
    from sacrebleu.metrics import BLEU

    train, validation, test = (
        read_pairs(folder, part) for part in ("train", "val", "test_2016_flickr")
    )
    return Task(
        name="Multi30k",
        train=train,
        validation=validation,
        test=test,
        split=re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]").findall,
        join=lambda words: re.sub(r" (?=[.,!?;:)])", "", " ".join(words)),
        score=lambda translations, references: BLEU().corpus_score(translations, [references]).score,
        figure="BLEU",
        least_count=(2, 3),
    )


def read_pairs(folder: Path, part: str) -> list[tuple[str, str]]:
    german, english = (read_lines(folder, f"{part}.{language}") for language in ("de", "en"))
    if len(german) != len(english):
        fail(f"{folder}: {len(german)} lines in {part}.de, {len(english)} in {part}.en")
    if not german:
        fail(f"{folder}: {part}.de is empty")
    return list(zip(german, english, strict=True))


def read_lines(folder: Path, name: str) -> list[str]:
    """The lines of `name.gz` or `name`, whichever is there."""
    path = next((p for p in (folder / f"{name}.gz", folder / name) if p.exists()), None)
    if path is None:
        fail(f"{folder}: no file {name}.gz or {name}")
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return content.decode().splitlines()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path}: damaged gzip file: {error}")
    except UnicodeDecodeError as error:
        fail(f"{path}: expected UTF-8: {error}")
    except OSError as error:
        fail(f"{path}: {error.strerror}")


# Dates

FIRST_YEAR, YEARS = 1950, 100  # so that two digits say which year
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINAL_ENDS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}


def in_words(number: int) -> str:
    """Numbers from 0 to 99."""
    if number < 20:
        return SMALL[number]
    ten, one = divmod(number, 10)
    return f"{TENS[ten]}-{SMALL[one]}" if one else TENS[ten]


def ordinal_in_words(day: int) -> str:
    start, hyphen, end = in_words(day).rpartition("-")
    return start + hyphen + ORDINAL_ENDS.get(end, f"{end}th")


def year_in_words(year: int) -> str:
    if 2000 <= year < 2010:
        return "two thousand" + (f" and {in_words(year - 2000)}" if year > 2000 else "")
    return f"{in_words(year // 100)} {in_words(year % 100)}"


def ways_to_write(date: datetime.date) -> list[str]:
    """The date in English, each way that is used; dotted and slashed ones have the day first."""
    day, month, year = date.day, date.month, date.year
    end = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return [
        f"{day} {date:%B} {year}",
        f"{day} {date:%b} {year}",
        f"{date:%A}, {day} {date:%B} {year}",
        f"{date:%a} {day} {date:%b} {date:%y}",
        f"{date:%B} {day}, {year}",
        f"{date:%b}. {day}, {year}",
        f"{date:%A}, {date:%B} the {day}{end}, {year}",
        f"{day}{end} of {date:%B} {year}",
        f"{day}{end} {date:%b} '{date:%y}",
        f"{day}.{month}.{year}",
        f"{date:%d.%m.%y}",
        f"{date:%d/%m/%Y}",
        f"{day}-{date:%b}-{date:%y}".upper(),
        f"{year} {date:%B} {day}",
        f"the {ordinal_in_words(day)} of {date:%B}, {year}",
        f"{date:%B} the {ordinal_in_words(day)}, {year_in_words(year)}",
    ]


def make_dates() -> Task:
    """Dates in words and figures, to ISO 8601. No date of one part occurs in another, written in
    whatever way.
    """
    first = datetime.date(FIRST_YEAR, 1, 1)
    days = (datetime.date(FIRST_YEAR + YEARS, 1, 1) - first).days
    choose = random.Random(0)
    dates = [
        first + datetime.timedelta(days=day)
        for day in choose.sample(range(days), sum(DATE_COUNTS))
    ]
    pairs = iter([(choose.choice(ways_to_write(date)), date.isoformat()) for date in dates])
    train, validation, test = (list(itertools.islice(pairs, count)) for count in DATE_COUNTS)
    return Task(
        name="dates",
        train=train,
        validation=validation,
        test=test,
        split=list,
        join="".join,
        score=lambda ours, right: 100 * sum(map(str.__eq__, ours, right)) / len(right),
        figure="exact matches in percent",
        least_count=(1, 1),
    )


DATE_COUNTS = (20_000, 1_000, 2_000)  # to train, to choose the epoch, to test


# Training


def make_run(impl: str, args: argparse.Namespace, words: Words, steps: int) -> Run:
    """A new model with its optimizer: all that trains it for `steps` steps."""
    torch.manual_seed(args.seed)
    model = Translator(
        RNN_CLASSES[impl],
        len(words.source),
        len(words.target),
        args.embedding_size,
        args.hidden_size,
        args.dropout,
    ).to(args.device)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, steps)
    seeds = itertools.count(args.seed)

    def step(source: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        torch.manual_seed(next(seeds))  # both implementations drop the same elements
        loss = model.loss(source, lengths, target)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        return loss.detach()

    return Run(impl, model, step)


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


def train(runs: list[Run], words: Words, args: argparse.Namespace) -> list[Choice]:
    """Train all `runs` on the same batches and leave each with the weights of its best epoch."""
    pairs = words.encode(words.task.train, args.device)
    validation = words.encode(words.task.validation, args.device)
    references = [target for _, target in words.task.validation]
    choices = [Choice([]) for _ in runs]
    shuffle = random.Random(args.seed)
    for epoch in range(1, args.epochs + 1):
        batches = pairs.batches(args.batch_size, shuffle)
        for run in runs:
            run.model.train()
        train_part(
            runs,
            map(pairs.batch, batches),
            steps=len(batches),
            label=f"epoch {epoch:{len(str(args.epochs))}}/{args.epochs}",
            rate=(len(words.task.train), "pairs"),
        )
        for run, choice in zip(runs, choices, strict=True):
            choice.add(words.score(run.model, validation, references), run.model)
            print(f"  validation, {run.name}: {choice.scores[-1]:.2f} {words.task.figure}")
    for run, choice in zip(runs, choices, strict=True):
        run.model.load_state_dict(choice.state)
    return choices


# The program


def draw(path: Path, words: Words, runs: list[Run], choices: list[Choice], test: Pairs) -> None:
    """The losses, the validation scores, and where the first run looked for two of the tests."""
    figure = Figure(figsize=(11, 9), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(2, 3))
    loss_axes, score_axes = above.subplots(1, 2)
    plot_losses(loss_axes, runs)
    for run, choice in zip(runs, choices, strict=True):
        epochs = range(1, len(choice.scores) + 1)
        score_axes.plot(epochs, choice.scores, "o-", label=f"{run.name}, best: {choice.epoch}")
    score_axes.set(xlabel="epoch", ylabel=f"validation: {words.task.figure}", ylim=(0, None))
    score_axes.legend(frameon=False)
    tidy(score_axes)
    for axes, row in zip(below.subplots(1, 2), (0, 1), strict=True):
        draw_attention(axes, words, runs[0].model, test, row)
    figure.suptitle(f"{words.task.name}: encoder, decoder and attention", fontsize=13)
    figure.savefig(path, dpi=80)


def draw_attention(axes: Axes, words: Words, model: Translator, pairs: Pairs, row: int) -> None:
    """The weight of each word of the source (columns) for each word that was written (rows)."""
    source, lengths, _ = pairs.batch([row])
    numbers, weights = greedy(model, source, lengths, longest=60)
    ours = words.target.decode(numbers[0].tolist())
    theirs = words.task.split(words.task.test[row][0])
    axes.imshow(weights[0, : len(ours)].cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(theirs)), theirs, rotation=90 if max(map(len, theirs)) > 1 else 0)
    axes.set_yticks(range(len(ours)), ours)
    axes.set_title("the weights of attention", fontsize=10)


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    text, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=text, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_options(parser)
    add = parser.add_argument
    add("--dates", action="store_true", help="learn dates, even where Multi30k is there")
    add("--limit", type=positive_int, metavar="N", help="only the first N pairs of each part")
    add("--beam", type=positive_int, default=5, help="sentences kept at each step (%(default)s)")

    def by_task(option: str) -> str:
        return ", ".join(f"{name}: {values[option]}" for name, values in DEFAULTS.items())

    for option, kind in (
        ("epochs", positive_int),
        ("batch_size", positive_int),
        ("learning_rate", positive_float),
        ("embedding_size", positive_int),
        ("hidden_size", positive_int),
        ("dropout", fraction),
    ):
        add(f"--{option.replace('_', '-')}", type=kind, help=f"({by_task(option)})")
    args = parser.parse_args(argv)
    if args.hidden_size is not None and args.hidden_size % 2:
        parser.error(f"argument --hidden-size: expected an even number, got {args.hidden_size}")
    return args


def fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to below 1, got {text}")
    return value


@dataclass
class Results:
    """What came of `--impl`, and with `--compare` how it stands to the other implementation."""

    data: str
    losses: list[float]  # the mean of each epoch
    validation_scores: list[float]  # greedy, of each epoch
    greedy_score: float  # of the test, 0 to 100: BLEU, or percent
    beam_score: float
    seconds: float
    comparison: Comparison | None
    picture: Path


def load_task(args: argparse.Namespace) -> Task:
    folder = None
    if not args.dates:
        folder = find_data_or(args.data, "multi30k", "dates written out")
    task = make_dates() if folder is None else load_multi30k(folder)
    for name in ("train", "validation", "test"):
        setattr(task, name, getattr(task, name)[: args.limit])
    for option, value in DEFAULTS[task.name].items():
        if getattr(args, option) is None:
            setattr(args, option, value)
    return task


def main(argv: list[str] | None = None) -> Results:
    args = parse_options(argv)
    task = load_task(args)
    make_folder(args.out)
    words = Words.of(task)
    print(
        f"{task.name}: {len(task.train):,} pairs to learn from, {len(task.validation):,} to choose "
        f"the epoch, {len(task.test):,} to test\n"
        f"{len(words.source):,} words read, {len(words.target):,} written; encoder "
        f"2 x RNN({args.embedding_size}, {args.hidden_size // 2}), decoder "
        f"RNN({args.embedding_size}, {args.hidden_size}), on {args.device}"
    )
    steps = args.epochs * math.ceil(len(task.train) / args.batch_size)
    runs = make_runs(args, lambda impl: make_run(impl, args, words, steps))
    choices = train(runs, words, args)

    test = words.encode(task.test, args.device)
    references = [target for _, target in task.test]
    scores = []
    for run, choice in zip(runs, choices, strict=True):
        translations = [words.translate(run.model, test, width) for width in (1, args.beam)]
        scores.append([task.score(ours, references) for ours in translations])
        print(
            f"{run.name}, epoch {choice.epoch}: {scores[-1][0]:.2f} {task.figure} by greedy "
            f"decoding, {scores[-1][1]:.2f} by a beam of {args.beam}"
        )
        if run is runs[0]:
            for (source, target), ours in zip(task.test[:5], translations[1], strict=False):
                print(f"  {source}\n    right: {target}\n    ours:  {ours}")
    picture = args.out / "translation.png"
    draw(picture, words, runs, choices, test)
    print(f"wrote {picture}")
    comparison = report("translation", runs, [f"test {task.figure} {s[1]:.2f}" for s in scores])
    return Results(
        data=task.name,
        losses=runs[0].losses,
        validation_scores=choices[0].scores,
        greedy_score=scores[0][0],
        beam_score=scores[0][1],
        seconds=runs[0].seconds,
        comparison=comparison,
        picture=picture,
    )


if __name__ == "__main__":
    main()
