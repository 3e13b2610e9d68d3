"""The next point of a sine window: its data, and how well it is learnt."""

from __future__ import annotations

import importlib
import math
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sine_window = importlib.import_module("sine_window")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def example(*options: str) -> sine_window.Results:
    return sine_window.main(["--device", "cpu", *options])


def test_windows() -> None:
    """1020 points over [0, 10 pi]; computed in float64, so off by a rounding of float32 at most."""
    windows, points = sine_window.sine_windows()
    assert windows.shape == (1000, 20, 1)
    assert points.shape == (1000, 1)
    sine = [math.sin(10 * math.pi * i / 1019) for i in range(1020)]
    for i in (0, 1, 799, 999):
        torch.testing.assert_close(
            windows[i, :, 0], torch.tensor(sine[i : i + 20]), atol=1e-7, rtol=0
        )
        torch.testing.assert_close(points[i, 0], torch.tensor(sine[i + 20]), atol=1e-7, rtol=0)


@pytest.mark.parametrize("seed", ["0", "1"])
def test_learns_the_sine(seed: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--seed", seed)
    assert results.test_error < 5e-5
    (run,) = results.runs
    assert len(run.losses) == 100
    assert len(run.step_losses) == 100 * 25
    epochs = re.findall(r"^epoch +(\d+)/100", capsys.readouterr().out, re.M)
    assert [int(epoch) for epoch in epochs] == [*range(10, 101, 10)]


def test_same_seed_same_losses() -> None:
    first, again, other = (
        example("--epochs", "2", "--seed", seed).runs[0].step_losses for seed in ("3", "3", "4")
    )
    assert first == again
    assert first != other


def test_few_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--epochs", "3", "--impl", "torch", "--out", "new/folder")
    assert results.runs[0].name == "torch"
    assert results.comparison is None
    assert results.picture.is_file()
    assert len(re.findall(r"^epoch +\d/3", capsys.readouterr().out, re.M)) == 3
