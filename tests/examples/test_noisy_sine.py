"""The noisy sine: its data, forecasts that feed on themselves, and what is learnt."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
noisy_sine = importlib.import_module("noisy_sine")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def example(*options: str) -> noisy_sine.Results:
    return noisy_sine.main(["--device", "cpu", *options])


def test_series() -> None:
    """The noise has variance 0.04; its estimate from 1000 points is off by 5 percent (1 sigma)."""
    series = noisy_sine.make_series(0)
    noise = series - (0.01 * torch.arange(1, 1001)).sin()
    assert series.shape == (1000,)
    assert noise.mean().abs() < 0.03
    assert 0.032 < noise.var() < 0.048
    assert torch.equal(series, noisy_sine.make_series(0))
    assert not torch.equal(series, noisy_sine.make_series(1))


def test_forecast_feeds_on_itself() -> None:
    """A model that continues x[i] = x[i-1] + x[i-4] has the exact answer, in whole numbers."""

    class Recurrence(torch.nn.Module):
        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            return windows[:, -1:] + windows[:, :1]

    numbers = [[1.0, 1, 1, 1], [2, 0, -1, 3]]
    ahead = noisy_sine.forecast(Recurrence(), torch.tensor(numbers), 9)
    for row, got in zip(numbers, ahead.tolist(), strict=True):
        for _ in range(9):
            row.append(row[-1] + row[-4])
        assert got == row[4:]


def test_errors_are_of_the_right_points() -> None:
    """Predictions that are the series itself are right; those of a point too late are not."""
    series = noisy_sine.make_series(0)
    ends = torch.cat([series, torch.zeros(64)])
    perfect = ends[4:].unfold(0, 64, 1)[:996]  # of window i: x[i+4] .. x[i+67]
    assert noisy_sine.errors_ahead(perfect, series) == [0.0] * 64
    shifted = noisy_sine.errors_ahead(perfect.roll(-1, dims=0), series)
    assert min(shifted) > 0.03
    early = perfect.clone()
    early[:600] = 9  # the training windows do not count
    assert noisy_sine.errors_ahead(early, series)[0] == 0


@pytest.mark.parametrize("seed", ["0", "1"])
def test_learns_one_step_ahead_and_not_many(seed: str) -> None:
    """A perfect model's error is 0.04, that of repeating the last point 0.08 one step ahead."""
    results = example("--seed", seed)
    repeat = results.errors["repeat the last point"]
    for run in (results.mlp, *results.runs):
        assert len(run.losses) == 100
        assert len(run.step_losses) == 100 * 19
        errors = results.errors[run.name]
        assert 0.04 < errors[0] < 0.8 * repeat[0]
        assert errors[0] < errors[15] < errors[63]
        assert errors[63] > repeat[63]


def test_batches_are_in_the_order_of_time() -> None:
    """The first epoch, written out with nn.RNN: 19 steps of Adam at 1e-3 keep roundings small."""
    results = example("--epochs", "1", "--seed", "5")
    torch.manual_seed(5)
    model = noisy_sine.WindowRNN(torch.nn.RNN)
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    series = noisy_sine.make_series(5)
    for start in range(0, 600, 32):
        rows = range(start, min(start + 32, 600))
        windows = torch.stack([series[i : i + 4] for i in rows])
        points = torch.stack([series[i + 4 : i + 5] for i in rows])
        loss = ((model(windows) - points) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert abs(results.runs[0].step_losses[start // 32] - loss.item()) < 1e-5
