"""The language model of characters: formulas, batches, training, text and errors."""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import os
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
parts = importlib.import_module("_char_lm")
char_lm = importlib.import_module("char_lm")
RNN_CLASSES = importlib.import_module("_common").RNN_CLASSES


def parse_options(argv: list[str]) -> argparse.Namespace:
    return parts.parse_options(char_lm.__doc__, argv)


REAL_TEXT = Path(os.environ.get("FASTRNN_DATA", "/nowhere")).absolute() / "tinyshakespeare.txt"
SMALL = ("--limit", "12000", "--hidden-size", "32", "--batch-size", "8", "--num-steps", "20")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


def example(*options: str) -> char_lm.Results:
    return char_lm.main(["--device", "cpu", *SMALL, *options])


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having drawn nothing."""
    with pytest.raises(SystemExit) as exit_:
        char_lm.main(["--device", "cpu", *argv])
    assert exit_.value.code == 2
    assert not list(Path().glob("out/*"))
    return capsys.readouterr().err


# The formulas


def double_parameters(vocabulary_size: int, hidden_size: int) -> char_lm.Parameters:
    """Weights large enough for every part of the network to matter, in float64."""
    parameters = char_lm.draw_parameters(vocabulary_size, hidden_size, seed=0)
    return tuple((50 * p + 0.1 * torch.randn_like(p)).double() for p in parameters)


@pytest.mark.parametrize("impl", ["fastrnn", "torch"])
def test_from_scratch_equals_the_module(impl: str) -> None:
    start = double_parameters(7, 5)
    model = char_lm.CharModel(RNN_CLASSES[impl], start).double()
    model.load_state_dict(char_lm.CharModel(RNN_CLASSES[impl], start).state_dict())
    codes, targets, state = torch.randint(7, (3, 6)), torch.randint(7, (3, 6)), torch.randn(3, 5)
    state = state.double()
    parameters = tuple(
        p.detach().clone().requires_grad_()
        for p in (
            model.rnn.weight_ih_l0.T,
            model.rnn.weight_hh_l0.T,
            model.rnn.bias_ih_l0,
            model.linear.weight.T,
            model.linear.bias,
        )
    )
    X = char_lm.one_hot(codes, 7).double()
    scores, last = char_lm.rnn_from_scratch(X, state, parameters)
    ours, hn = model(codes, state[None])
    assert scores.shape == (6, 3, 7)
    torch.testing.assert_close(ours, scores, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hn[0], last, rtol=1e-12, atol=1e-12)

    char_lm.loss_of(scores, targets).backward()
    char_lm.loss_of(ours, targets).backward()
    for name, parameter in zip(
        ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "linear.weight", "linear.bias"),
        parameters,
        strict=True,
    ):
        grad = model.get_parameter(name).grad.t()
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_perplexity_of_an_untrained_model_is_the_vocabulary() -> None:
    """Weights of zero give every character the same chance."""
    zeros = tuple(torch.zeros_like(p) for p in char_lm.draw_parameters(23, 4, seed=0))
    model = char_lm.CharModel(RNN_CLASSES["fastrnn"], zeros)
    assert char_lm.perplexity(model, torch.randint(23, (50,))) == pytest.approx(23, rel=1e-5)


# The batches

CODES = torch.arange(1000)


def batches_of(sampling: str, seed: int = 0) -> list[char_lm.Batch]:
    generator = torch.Generator().manual_seed(seed)
    return list(char_lm.SAMPLINGS[sampling](CODES, 4, 7, generator))


@pytest.mark.parametrize("sampling", ["random", "sequential"])
def test_batches_cut_the_text(sampling: str) -> None:
    batches = batches_of(sampling)
    for inputs, targets, _ in batches:
        assert inputs.shape == targets.shape == (4, 7)
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))
    seen = torch.cat([inputs.flatten() for inputs, _, _ in batches])
    assert len(seen.unique()) == len(seen)  # each character at most once
    assert len(seen) > 1000 - 2 * 4 * 7  # and hardly one is left out
    assert not torch.equal(batches[0][0], batches_of(sampling, seed=1)[0][0])
    assert torch.equal(batches[0][0], batches_of(sampling)[0][0])


def test_random_batches_stand_alone() -> None:
    batches = batches_of("random")
    assert not any(goes_on for _, _, goes_on in batches)
    starts = torch.cat([inputs[:, 0] for inputs, _, _ in batches])
    assert not torch.equal(starts, starts.sort().values)


def test_sequential_batches_go_on() -> None:
    batches = batches_of("sequential")
    assert [goes_on for _, _, goes_on in batches] == [False] + [True] * (len(batches) - 1)
    for before, after in itertools.pairwise(batches):
        assert torch.equal(after[0][:, 0], before[0][:, -1] + 1)


def test_state_is_carried_in_sequential_sampling() -> None:
    """The loss of a batch depends on the batch before just where the rows go on."""
    args = parse_options(["--device", "cpu"])
    start = tuple(p.float() for p in double_parameters(9, 6))
    inputs, other, targets = (torch.randint(9, (2, 5)) for _ in range(3))

    def loss_after(first: torch.Tensor, goes_on: bool) -> float:
        model = char_lm.CharModel(RNN_CLASSES["fastrnn"], start)
        standstill = torch.optim.SGD(model.parameters(), lr=0.0)  # the state moves, no weight does
        batches = [(first, targets, False), (inputs, targets, goes_on)]
        return char_lm.train_epoch(model, batches, standstill, args)[1]

    assert loss_after(inputs, True) != loss_after(other, True)
    assert loss_after(inputs, False) == loss_after(other, False)


# Training


def test_learns_python_help(capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--limit", "40000", "--epochs", "4", "--learning-rate", "0.01")
    assert results.text == "Python's help texts"
    for sampling in ("random", "sequential"):
        (run,) = results.runs[sampling]
        assert len(run.losses) == len(run.model.held_out) == 4
        assert run.losses == sorted(run.losses, reverse=True)
        assert math.exp(run.losses[-1]) < 15  # of some 80 characters
        assert run.model.held_out[-1] < 15
    assert len(results.sample) == len("the ") + 700
    assert results.sample.startswith("the ")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("no file $FASTRNN_DATA/tinyshakespeare.txt")
    assert sum("held-out text" in line for line in lines) == 8
    assert re.fullmatch(
        r"char_lm: held-out perplexity \S+ \(random\) and \S+ \(sequential\), \S+ s, \S+ steps/s",
        lines[-1],
    )


def test_from_scratch_and_fused_agree_in_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """float32 sums of a few hundred terms: some tens of its epsilon, 1.2e-7, at the most."""
    results = example("--epochs", "1", "--sampling", "random")
    found = re.search(
        r"outputs differ by at most (\S+), gradients by (\S+),", capsys.readouterr().out
    )
    assert float(found[1]) < 5e-6
    assert float(found[2]) < 5e-6
    assert list(results.milliseconds) == [
        "from scratch",
        "fastrnn",
        "torch",
        "fastrnn.RNN, one-hot",
    ]
    assert all(value > 0 for value in results.milliseconds.values())


def test_writes_the_same_text_for_the_same_seed() -> None:
    args = parse_options(["--device", "cpu", *SMALL])
    text = parts.load_text(args)
    start = char_lm.draw_parameters(len(text.vocabulary), 16, seed=0)
    model = char_lm.CharModel(RNN_CLASSES["fastrnn"], start)
    first, again, other = (char_lm.write(model, text, "for ", 30, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 34
    assert first.startswith("for ")


@pytest.mark.slow
def test_beats_pairs_of_characters_on_shakespeare() -> None:
    """After one epoch, better than knowing how often each character follows each other one."""
    if not REAL_TEXT.is_file():
        pytest.skip("no file $FASTRNN_DATA/tinyshakespeare.txt")
    results = char_lm.main(["--device", "cpu", "--data", str(REAL_TEXT.parent), "--epochs", "1"])
    text = parts.load_text(parse_options(["--data", str(REAL_TEXT.parent)]))
    size = len(text.vocabulary)
    counts = torch.ones(size, size)  # one more than seen: no pair is impossible
    counts.index_put_((text.train[:-1], text.train[1:]), torch.tensor(1.0), accumulate=True)
    chances = (counts / counts.sum(1, keepdim=True))[text.held_out[:-1], text.held_out[1:]]
    pairs = math.exp(-chances.log().mean())
    assert 8 < pairs < 16
    for run, *_ in results.runs.values():
        assert run.model.held_out[-1] < 0.8 * pairs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compare_on_cuda() -> None:
    results = char_lm.main(["--device", "cuda", *SMALL, "--compare", "--epochs", "1"])
    for comparison in results.comparisons.values():
        assert comparison.step_difference <= 1e-4


# What it refuses


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "."], "tinyshakespeare.txt: No such file"),
        (["--limit", "500"], "475 training characters are too few for a batch of 32 rows"),
        (["--prefix", ""], "--prefix: expected at least one character"),
        (["--prefix", "☃ the ☀☃"], "--prefix: '☃☀' does not occur in Python's help texts"),
        (["--resume"], "--resume: needs --checkpoint DIR"),
        (["--compare", "--checkpoint", "kept"], "--checkpoint: keeps one training"),
        (["--clip-norm", "0"], "--clip-norm: expected a number above 0, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)


def test_reads_a_text_of_any_language(tmp_path: Path) -> None:
    text = "Füße und Blumen, 花。\n" * 400
    (tmp_path / "tinyshakespeare.txt").write_text(text, encoding="utf-8")
    args = parse_options([*SMALL, "--data", str(tmp_path), "--prefix", "花"])
    read = parts.load_text(args)
    assert Counter(read.vocabulary) == Counter(set(text))
    codes = torch.cat([read.train, read.held_out]).tolist()
    assert "".join(read.vocabulary[code] for code in codes) == text


def test_text_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tinyshakespeare.txt").write_bytes(b"\xff" * 5000)
    assert "tinyshakespeare.txt: 'utf-8' codec can't decode" in refused(["--data", "."], capsys)
