"""The MNIST example, called as a program: what it learns, writes and refuses."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")
pytest.importorskip("sklearn", reason="the digits of the example come with scikit-learn")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
recipes = importlib.import_module("_recipes")
mnist_rows = importlib.import_module("mnist_rows")

REAL_DATA = Path(os.environ.get("FASTRNN_DATA", "/nowhere")).absolute() / "mnist"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


@pytest.fixture
def mnist() -> str:
    """The folder of the real MNIST."""
    if not REAL_DATA.is_dir():
        pytest.skip("no folder $FASTRNN_DATA/mnist")
    return str(REAL_DATA)


def parse_options(argv: list[str]) -> argparse.Namespace:
    return recipes.parse_options(mnist_rows.__doc__, argv)


def example(*options: str) -> mnist_rows.Results:
    return mnist_rows.main(["--device", "cpu", *options])


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having written nothing."""
    with pytest.raises(SystemExit) as exit_:
        mnist_rows.main(argv)
    assert exit_.value.code == 2
    assert not Path("out").exists()
    return capsys.readouterr().err


# What it learns and writes


def test_learns_mnist(mnist: str) -> None:
    results = example("--data", mnist, "--limit", "800", "--epochs", "3")
    assert results.data == "MNIST"
    assert len(results.runs[0].losses) == 3
    assert results.runs[0].losses[2] < 0.75 * results.runs[0].losses[0]
    assert results.accuracy > 30  # guessing gives 10


def test_best_recipe_learns_mnist_faster(mnist: str) -> None:
    options = ["--data", mnist, "--limit", "2000", "--epochs", "3", "--batch-size", "32"]
    plain = example(*options)
    best = example(*options, "--recipe", "best")
    assert best.runs[0].losses[-1] < plain.runs[0].losses[-1]
    assert best.accuracy > max(plain.accuracy, 70)


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ([], 85),
        (["--recipe", "best", "--epochs", "10"], 80),
        (["--layers", "2", "--bidirectional", "--nonlinearity", "relu"], 80),
        (["--impl", "torch"], 85),
        (["--start", "orthogonal", "--hidden-size", "33", "--batch-size", "7"], 85),
    ],
    ids=["document", "best", "L2-D2-relu", "torch", "H33-B7"],
)
def test_learns_digits(
    options: list[str], least: float, capsys: pytest.CaptureFixture[str]
) -> None:
    results = example("--epochs", "4", *options)
    assert results.data == "scikit-learn digits"
    assert results.accuracy > least
    out, err = capsys.readouterr()
    assert out.splitlines()[0].endswith("taking scikit-learn's digits of 8 x 8 pixels instead")
    assert out.count("epoch ") == len(results.runs[0].losses)
    assert re.search(r"mnist_rows: test accuracy \d+\.\d\d %, \S+ s, \S+ steps/s$", out)
    assert err == ""  # no progress bar where stderr is no terminal


def test_best_recipe_trains_both_alike() -> None:
    """Losses of up to 3 carry roundings of 2e-7; a few dozen steps may let them grow to 1e-5.

    Here with tanh: under relu a rounding that moves one unit across zero changes its gradient from
    0 to 1, and nn.RNN's own losses leave those of float64 by 1e-2 within 100 steps.
    """
    options = ["--recipe", "best", "--layers", "2", "--nonlinearity", "tanh", "--epochs", "2"]
    comparison = example("--compare", *options).comparison
    assert comparison.step_difference <= 1e-5
    assert comparison.epoch_difference <= 1e-5


@pytest.mark.parametrize("impl", ["fastrnn", "torch"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_learns_digits(
    dtype: str, impl: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--epochs", "4", "--impl", impl, "--batch-size", "32", "--learning-rate", "4e-3"]
    plain, mixed = example(*options), example(*options, "--amp", dtype)
    assert plain.runs[0].losses != mixed.runs[0].losses
    assert mixed.accuracy > plain.accuracy - 3
    assert f", in {dtype} and float32" in capsys.readouterr().out
    state = torch.load(mixed.checkpoint, weights_only=True)
    assert {w.dtype for w in state.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_reaches_the_accuracy_of_float32(mnist: str, dtype: str) -> None:
    options = ["--data", mnist, "--recipe", "best", "--epochs", "4"]
    plain, mixed = example(*options), example(*options, "--amp", dtype)
    assert plain.accuracy > 97
    assert mixed.accuracy > plain.accuracy - 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compare_on_cuda() -> None:
    options = ("--compare", "--limit", "800", "--epochs", "2", "--recipe", "best")
    results = mnist_rows.main(["--device", "cuda", *options])
    assert results.comparison.step_difference <= 1e-4
    assert results.runs[0].losses[1] < results.runs[0].losses[0]


def test_same_seed_same_result() -> None:
    first, again, other = (
        example("--limit", "200", "--epochs", "1", "--seed", seed).runs[0].losses
        for seed in ("3", "3", "4")
    )
    assert first == again
    assert first != other


def test_options_override_the_recipe() -> None:
    args = parse_options(["--recipe", "best", "--epochs", "3", "--clip-norm", "inf"])
    assert (args.epochs, args.clip_norm) == (3, float("inf"))
    assert (args.batch_size, args.nonlinearity, args.start) == (64, "relu", "identity")
    args = parse_options([])
    assert (args.batch_size, args.learning_rate, args.nonlinearity) == (8, 1e-3, "tanh")


def test_torch_loads_the_checkpoint() -> None:
    results = example("--limit", "100", "--epochs", "1")
    state = torch.load(results.checkpoint, weights_only=True)
    theirs = mnist_rows.RowClassifier(torch.nn.RNN, 8, 64, 1, "tanh", False)
    theirs.load_state_dict(state)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch-size", "-8"], "--batch-size: expected"),
        (["--hidden-size", "many"], "--hidden-size: expected a whole number"),
        (["--limit", "0"], "--limit: expected"),
        (["--learning-rate", "nan"], "--learning-rate: expected a number above 0, got nan"),
        (["--clip-norm", "0"], "--clip-norm: expected"),
        (["--nonlinearity", "gelu"], "--nonlinearity: invalid choice"),
        (["--recipe", "worst"], "--recipe: invalid choice"),
        (["--device", "meta"], "--device: cannot use device 'meta'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) < 3 else "",
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)
