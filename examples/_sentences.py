"""Sentences with a tag for each word: of a small grammar, and of a treebank's files."""

from __future__ import annotations

import gzip
import itertools
import random
import zlib
from pathlib import Path

from _common import fail

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
