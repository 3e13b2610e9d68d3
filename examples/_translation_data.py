"""What the translation example learns: pairs of texts, as tokens, as numbers, as batches."""

from __future__ import annotations

import collections
import gzip
import importlib.util
import itertools
import random
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _common import fail
from _dates import make_dates
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PADDING, BEGIN, END, UNKNOWN = range(4)
SPECIAL = ("<padding>", "<begin>", "<end>", "<unknown>")


class Vocabulary:
    """The tokens that occur at least `least` times in `sentences`, numbered after `SPECIAL`."""

    def __init__(self, sentences: Iterable[Sequence[str]], least: int) -> None:
        counts = collections.Counter(itertools.chain.from_iterable(sentences))
        self.tokens = [*SPECIAL, *(token for token, n in counts.most_common() if n >= least)]
        self.numbers = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, sentence: Sequence[str]) -> list[int]:
        return [self.numbers.get(token, UNKNOWN) for token in sentence]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """The tokens before END."""
        return [self.tokens[n] for n in itertools.takewhile(lambda n: n != END, numbers)]


@dataclass
class Pairs:
    """Sources and targets as numbers, ready to be batched."""

    sources: list[Tensor]  # up to END
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
        """The rows of each batch: those of like lengths together, so that little is padding."""

        def key(row: int) -> tuple[int, float]:
            length = len(self.sources[row]) + len(self.targets[row])
            return length, shuffle.random() if shuffle else 0.0

        order = sorted(range(len(self.sources)), key=key)
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if shuffle:
            shuffle.shuffle(batches)
        return batches


class Task:
    """Pairs of source and target to learn from, to choose the epoch by, and to test.

    Its subclasses say what a token is, and how translations are marked: by a score of 0 to 100.
    """

    name: str
    measure: str  # what the score is called
    unit = ""
    least_counts = (1, 1)  # of a token in the sources, in the targets

    def __init__(self, *parts: list[tuple[str, str]]) -> None:
        self.train, self.validation, self.test = parts
        self.source_vocabulary, self.target_vocabulary = (
            Vocabulary((self.split(pair[side]) for pair in self.train), self.least_counts[side])
            for side in (0, 1)
        )

    def split(self, text: str) -> list[str]:
        raise NotImplementedError

    def join(self, tokens: list[str]) -> str:
        raise NotImplementedError

    def score(self, translations: list[str], references: list[str]) -> float:
        raise NotImplementedError

    def figure(self, score: float) -> str:
        return f"{self.measure} {score:.2f}{self.unit}"

    def encode(self, pairs: Sequence[tuple[str, str]], device: torch.device) -> Pairs:
        sources, targets = [], []
        for source, target in pairs:
            sources.append([*self.source_vocabulary.encode(self.split(source)), END])
            targets.append([BEGIN, *self.target_vocabulary.encode(self.split(target)), END])
        return Pairs([*map(torch.tensor, sources)], [*map(torch.tensor, targets)], device)


class Multi30k(Task):
    """German to English, descriptions of photographs (Elliott et al. 2016), by words.

    Translations are marked by BLEU (Papineni et al. 2002), as sacrebleu computes it.
    """

    name = "Multi30k"
    measure = "BLEU"
    least_counts = (2, 3)

    def __init__(self, folder: Path, limit: int | None) -> None:
        if importlib.util.find_spec("sacrebleu") is None:
            fail("BLEU needs sacrebleu, which is not installed: pip install sacrebleu")
        parts = ("train", "val", "test_2016_flickr")
        super().__init__(*(read_pairs(folder, part)[:limit] for part in parts))

    def split(self, text: str) -> list[str]:
        return re.findall(r"\w+(?:['’-]\w+)*|[^\w\s]", text)

    def join(self, tokens: list[str]) -> str:
        return re.sub(r" (?=[.,!?;:)])", "", " ".join(tokens))

    def score(self, translations: list[str], references: list[str]) -> float:
        from sacrebleu.metrics import BLEU

        return BLEU().corpus_score(translations, [references]).score


class Dates(Task):
    """Dates, from letters and digits as people write them to ISO 8601."""

    name = "dates"
    measure, unit = "exact match", " %"

    def __init__(self, limit: int | None) -> None:
        super().__init__(*(part[:limit] for part in make_dates(20_000, 1_000, 2_000)))

    def split(self, text: str) -> list[str]:
        return list(text)

    def join(self, tokens: list[str]) -> str:
        return "".join(tokens)

    def score(self, translations: list[str], references: list[str]) -> float:
        pairs = zip(translations, references, strict=True)
        return 100 * sum(ours == right for ours, right in pairs) / len(references)


def read_pairs(folder: Path, part: str) -> list[tuple[str, str]]:
    german, english = (read_lines(folder, f"{part}.{language}") for language in ("de", "en"))
    if len(german) != len(english):
        fail(f"{folder}: {len(german)} lines in {part}.de, {len(english)} in {part}.en")
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
        text = content.decode()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path}: damaged gzip file: {error}")
    except UnicodeDecodeError as error:
        fail(f"{path}: expected UTF-8: {error}")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    if not text.strip():
        fail(f"{path}: no text in it")
    return text.removesuffix("\n").split("\n")
