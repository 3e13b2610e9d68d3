"""Sentences with a tag for each word, from a treebank or a small grammar, and as numbers."""

from __future__ import annotations

import argparse
import gzip
import itertools
import random
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from _common import fail, find_data_or
from torch import Tensor

PADDING, UNKNOWN = 0, 1  # of words and of letters
NO_TAG = -100  # of padding, and of a tag that the training sentences do not have
LETTERS = 16  # of a word that are read; of a longer one, its first and last eight

Sentence = list[tuple[str, str]]  # words and their tags

# A line is a phrase and, between bars, what it may consist of: other phrases and word/TAG, where
# the star is an invented stem. "*s" may be a noun or a verb, "*ed" a verb or an adjective.
GRAMMAR = """
SENTENCE  CLAUSE ./PUNCT | CLAUSE ,/PUNCT and/CCONJ CLAUSE ./PUNCT | *ly/ADV ,/PUNCT CLAUSE ./PUNCT
CLAUSE    ONE DOES | MANY DO | THING DID | ONE AUX DO | MANY AUX DO
THING     ONE | MANY
ONE       the/DET NOUN | that/DET NOUN | that/PRON | it/PRON | the/DET can/NOUN | the/DET will/NOUN
MANY      the/DET NOUNS | NOUNS | those/DET NOUNS | those/PRON
NOUN      */NOUN | ADJ */NOUN | */NOUN WHERE
NOUNS     *s/NOUN | ADJ *s/NOUN | *s/NOUN WHERE
ADJ       *y/ADJ | *ed/ADJ | */ADJ
AUX       can/AUX | will/AUX
DOES      *s/VERB HOW | *s/VERB THING | *s/VERB to/PART DO | *s/VERB that/SCONJ CLAUSE
DO        */VERB HOW | */VERB THING
DID       *ed/VERB HOW | *ed/VERB THING | *ed/VERB to/PART DO
HOW       *ly/ADV | WHERE | up/ADV
WHERE     to/ADP THING | in/ADP THING
"""


def generated_sentences(count: int, seed: int) -> list[Sentence]:
    """Sentences of `GRAMMAR`. Of the stems, a few are frequent and many are rare."""
    rules = {
        phrase: [choice.split() for choice in choices.split("|")]
        for phrase, choices in (line.split(maxsplit=1) for line in GRAMMAR.strip().splitlines())
    }
    syllables = [a + b + c for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "lk")]
    generator = random.Random(0)
    stems = ["".join(generator.choices(syllables, k=2)) for _ in range(5000)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(stems) + 1)))
    generator.seed(seed)

    def expand(symbol: str) -> Sentence:
        if symbol in rules:
            return [pair for part in generator.choice(rules[symbol]) for pair in expand(part)]
        word, tag = symbol.rsplit("/", 1)
        stem = generator.choices(stems, cum_weights=weights)[0]
        return [(word.replace("*", stem), tag)]

    return [expand("SENTENCE") for _ in range(count)]


def read_conllu(folder: Path, name: str) -> list[Sentence]:
    """The words and universal tags (columns 2 and 4) of the CoNLL-U file `name`, or `name`.gz."""
    paths = (folder / f"{name}.gz", folder / name)
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        fail(f"{folder}: no file {name} or {name}.gz")
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        fail(f"{path}: damaged gzip file: {error}")
    except UnicodeDecodeError as error:
        fail(f"{path}: not UTF-8: {error}")
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    sentences: list[Sentence] = [[]]
    for number, line in enumerate(text.splitlines(), start=1):
        columns = line.split("\t")
        if not line.strip():
            sentences.append([])
        elif line.startswith("#"):
            continue
        elif len(columns) != 10:
            fail(f"{path}, line {number}: expected 10 columns, got {len(columns)}")
        elif columns[0].isdecimal():  # not 3-4, a contraction of words, nor 3.1, an omitted word
            sentences[-1].append((columns[1], columns[3]))
    sentences = [sentence for sentence in sentences if sentence]
    if not sentences:
        fail(f"{path}: no sentences")
    return sentences


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
