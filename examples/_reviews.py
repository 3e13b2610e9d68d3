"""Sentences about films for sentiment.py, from files or made up, and as numbers."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from dataclasses import dataclass

import torch
from _common import fail, find_data_or
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
