"""The DNA example: the hidden Markov model and its two algorithms, and the RNN against them."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
dna_tagging = importlib.import_module("dna_tagging")

SMALL = ("--length", "30", "--test-size", "20", "--batch-size", "4", "--hidden-size", "8")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def genes() -> dna_tagging.GeneModel:
    return dna_tagging.GeneModel()


def example(*options: str) -> dna_tagging.Results:
    return dna_tagging.main(["--device", "cpu", *SMALL, *options])


# The hidden Markov model


def test_transitions_are_probabilities(genes: dna_tagging.GeneModel) -> None:
    assert len(genes.states) == 4 + 3 + (4 + 16 + 61) + 6
    for probabilities in (*genes.transition, genes.initial):
        assert probabilities.min() >= 0
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)


def test_samples_are_genes_in_background(genes: dna_tagging.GeneModel) -> None:
    generator = torch.Generator().manual_seed(0)
    bases, labels = genes.sample(200, 300, generator)
    assert bases.shape == labels.shape == (200, 300)
    codon_counts = []
    for row, position, *inside in dna_tagging.find_genes(labels):
        letters = "".join("ACGT"[i] for i in bases[row, position : position + len(inside)])
        names = [dna_tagging.LABELS[label] for label in inside]
        whole = position + len(inside) < 300  # else the sequence ends inside the gene
        codons = len(inside) // 3 - 2 if whole else max(0, (len(inside) - 3 + 2) // 3)
        expected = ["start"] * 3 + ["phase 0", "phase 1", "phase 2"] * codons
        expected += ["stop"] * 3 if whole else []
        if whole:
            assert names == expected
            assert letters.startswith("ATG")
            assert letters[-3:] in ("TAA", "TAG", "TGA")
            within = [letters[i : i + 3] for i in range(3, len(letters) - 3, 3)]
            assert not {"TAA", "TAG", "TGA"} & set(within)
            codon_counts.append(codons)
    assert len(codon_counts) > 200
    assert min(codon_counts) >= 1
    outside = (labels == dna_tagging.OUTSIDE).double().mean().item()
    assert (
        0.4 < outside < 0.6
    )  # 60 of 60 + 3 + 90 + 3 bases in the long run, but the start is outside


def all_paths(genes: dna_tagging.GeneModel, bases: Tensor) -> dict[tuple[int, ...], float]:
    """The probability P(z, x) of each path of states z with the given bases x."""
    paths = {
        (z,): p for z, p in enumerate(genes.initial.tolist()) if p and genes.base[z] == bases[0]
    }
    for base in bases[1:]:
        paths = {
            (*path, z): p * genes.transition[path[-1], z].item()
            for path, p in paths.items()
            for z in ((genes.transition[path[-1]] > 0) & (genes.base == base))
            .nonzero()
            .flatten()
            .tolist()
        }
    return paths


@pytest.mark.parametrize("letters", ["A", "ATGCA", "CATGATGAAATAGTGAC", "TTATGCCCGGGTAATGA"])
def test_algorithms_against_all_paths(genes: dna_tagging.GeneModel, letters: str) -> None:
    bases = torch.tensor(["ACGT".index(letter) for letter in letters])
    paths = all_paths(genes, bases)
    total = sum(paths.values())

    found = genes.viterbi(bases.unsqueeze(0))[0]
    assert paths[tuple(found.tolist())] == pytest.approx(max(paths.values()), rel=1e-12)

    expected = torch.zeros(len(letters), len(dna_tagging.LABELS), dtype=torch.float64)
    for path, probability in paths.items():
        for t, z in enumerate(path):
            expected[t, genes.label[z]] += probability / total
    posterior = genes.posterior(bases.unsqueeze(0))[0]
    torch.testing.assert_close(posterior, expected, rtol=1e-12, atol=1e-14)


def test_rows_are_read_by_themselves(genes: dna_tagging.GeneModel) -> None:
    bases, _ = genes.sample(3, 50, torch.Generator().manual_seed(1))
    for whole, one in (
        (genes.viterbi(bases), genes.viterbi),
        (genes.posterior(bases), genes.posterior),
    ):
        for row in range(3):
            torch.testing.assert_close(whole[row], one(bases[row : row + 1])[0])


def test_posterior_says_how_often_it_is_right(genes: dna_tagging.GeneModel) -> None:
    """What it expects of its accuracy and loss is what the samples show: the two fit together."""
    bases, labels = genes.sample(1000, 120, torch.Generator().manual_seed(2))
    posterior = genes.posterior(bases)
    best, guess = posterior.max(2)
    difference = (guess == labels).double().mean(1) - best.mean(1)  # of each sequence: mean 0
    error = difference.std().item() / math.sqrt(1000)
    assert abs(difference.mean().item()) < 4 * error
    assert 4 * error < 0.02
    entropy = -(posterior * posterior.clamp(min=1e-300).log()).sum(2).mean(1)
    loss = -posterior.gather(2, labels.unsqueeze(2)).squeeze(2).log().mean(1)
    difference = loss - entropy
    error = difference.std().item() / math.sqrt(1000)
    assert abs(difference.mean().item()) < 4 * error

    viterbi = genes.label[genes.viterbi(bases[:100])]
    expected = posterior[:100].gather(2, viterbi.unsqueeze(2)).mean()
    assert best[:100].mean() >= expected > 0.9  # the optimum, and not far from it the best path


def test_find_genes() -> None:
    labels = torch.tensor([[0, 1, 1, 0, 2], [0, 0, 0, 0, 0], [5, 5, 5, 5, 5]])
    assert dna_tagging.find_genes(labels) == {(0, 1, 1, 1), (0, 4, 2), (2, 0, 5, 5, 5, 5, 5)}


# The RNN


@pytest.mark.parametrize("impl", ["fastrnn", "torch"])
def test_learns(impl: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--impl", impl, "--steps", "120", "--learning-rate", "0.01", "--batch-size", "16")
    results = example(*options)
    assert len(results.losses) == 10
    assert results.losses[-1] < 0.7 * results.losses[0]
    assert results.loss > results.lowest_loss
    assert results.comparison is None
    out, err = capsys.readouterr()
    for name in dna_tagging.LABELS:
        assert re.search(rf"^  {name} +\d+\.\d\d( +(\d+\.\d\d|-)){{3}}$", out, re.MULTILINE)
    figure = r"test accuracy \d+\.\d\d % \(\d+\.\d % of Viterbi's \d+\.\d\d %\)"
    assert re.fullmatch(rf"dna_tagging: {figure}, \S+ s, \S+ steps/s", out.splitlines()[-1])
    assert err == ""


def test_compare_trains_both_alike(capsys: pytest.CaptureFixture[str]) -> None:
    """A loss of up to 2 carries roundings of 2e-7, which 60 steps may let grow to 1e-5."""
    comparison = example("--compare", "--steps", "60").comparison
    assert comparison.step_difference <= 1e-5
    assert comparison.epoch_difference <= 1e-5
    out = capsys.readouterr().out
    assert out.count("test accuracy") == 3


def test_same_seed_same_result() -> None:
    first, again, other = (example("--steps", "5", "--seed", s).losses for s in ("3", "3", "4"))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    "options",
    [["--length", "1"], ["--length", "2", "--test-size", "1"], ["--batch-size", "1"]],
    ids=" ".join,
)
def test_smallest(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--steps", "1", *options)
    assert 0 <= results.accuracy <= 100
    assert "nan" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--length", "0"], "argument --length: expected a whole number of at least 1, got 0"),
        (["--layers", "two"], "argument --layers: expected a whole number of at least 1, got two"),
        (["--learning-rate", "-1"], "argument --learning-rate: expected a number above 0, got -1"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        dna_tagging.main(argv)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.slow
def test_comes_close_to_the_optimum() -> None:
    """The whole run: 98 % of the best possible accuracy, and a loss near the lowest, not below."""
    results = dna_tagging.main(["--device", "cpu"])
    assert results.accuracy >= 0.98 * results.viterbi
    assert results.accuracy >= 0.98 * results.optimum
    assert results.lowest_loss < results.loss < results.lowest_loss + 0.04
