"""Decisions from noisy evidence: the trials, the loop beside LeakyRNN, and what is learned."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
decision_making = importlib.import_module("decision_making")
decisions = importlib.import_module("_decisions")


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def example(*options: str) -> decision_making.Results:
    return decision_making.main(["--device", "cpu", *options])


def trials(coherence: float, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return decisions.make_trials(torch.full((count,), coherence), generator)


def test_trials() -> None:
    """Fixate for 50 steps, then choose; the stimuli are noise around means 0.512 apart."""
    inputs, targets = trials(-0.512, 1000)
    assert inputs.shape == (60, 1000, 3)
    assert targets.shape == (60, 1000)
    assert (inputs[:50, :, 0] == 1).all()
    assert not inputs[50:].any()
    assert not inputs[:10, :, 1:].any()
    stimuli = inputs[10:50, :, 1:]
    means = torch.tensor([0.244, 0.756])
    torch.testing.assert_close(stimuli.mean((0, 1)), means, rtol=0, atol=0.025)  # 5 sigma
    assert stimuli.std() == pytest.approx((1 + 0.256**2) ** 0.5, rel=0.01)
    assert not targets[:50].any()
    assert (targets[50:] == 2).all()
    assert (trials(0.512, 10)[1][50:] == 1).all()


def test_right_choice_between_equal_means_is_drawn() -> None:
    _, targets = trials(0.0, 1000)
    assert (targets[50:] == targets[50]).all()
    assert 420 < (targets[50] == 1).sum() < 580  # 5 sigma


@pytest.mark.parametrize("coherence", [-0.256, 0.032, 0.512])
def test_best_possible_choice(coherence: float) -> None:
    """The larger sum wins as often as the formula says."""
    inputs, _ = trials(coherence, 4000)
    sums = inputs.sum(0)
    share = (sums[:, 1] > sums[:, 2]).float().mean().item()
    best = decisions.best_possible(torch.tensor(coherence)).item()
    assert share == pytest.approx(best, abs=0.04)  # 5 sigma


def test_principal_components() -> None:
    """Points on a line, up to noise, vary most along it."""
    line = torch.tensor([[2.0, -1.0, 2.0]]) / 3
    places = torch.linspace(-1, 1, 12).unsqueeze(1)
    noise = 1e-3 * torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    first = decisions.principal_components((places @ line + noise).unflatten(0, (3, 4)), 1)
    assert first.shape == (3, 4, 1)
    first = first.flatten() * first.flatten()[-1].sign()
    torch.testing.assert_close(first, places.flatten(), rtol=0, atol=0.01)


def test_loop_computes_the_same() -> None:
    """In float64, at the same weights and noise."""
    ours, loop = (
        rnn_class(3, 16, nonlinearity="tanh", alpha=0.2, noise=0.1).double()
        for rnn_class in (decision_making.LeakyRNN, decision_making.LoopRNN)
    )
    loop.load_state_dict(ours.state_dict())
    x = torch.randn(60, 4, 3, dtype=torch.float64)
    results = []
    for rnn in (ours, loop):
        torch.manual_seed(0)
        output, hn = rnn(x)
        output.square().sum().backward()
        results.append((output, hn, [w.grad for w in rnn.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)


def test_compare(capsys: pytest.CaptureFixture[str]) -> None:
    """Both learn alike, and their times stand side by side."""
    results = example("--compare", "--steps", "3")
    assert results.comparison.first_difference < 1e-6
    assert results.comparison.step_difference < 1e-4
    agreement = results.agreement
    assert agreement.scores < 1e-5
    assert agreement.gradients < 1e-4
    assert agreement.milliseconds.keys() == {"fastrnn", "torch"}
    assert all(value > 0 for value in agreement.milliseconds.values())
    out = capsys.readouterr().out
    assert "the loop and LeakyRNN at the same weights and noise: scores differ" in out
    for title in ("fastrnn.LeakyRNN", "loop over time"):
        assert f"training with {title}" in out
        assert f"\n{title}: " in out


def test_learns_to_choose() -> None:
    """No network is right more often than the best one, up to chance."""
    (results,) = example().tests
    accuracies = dict(zip(decisions.COHERENCES, results.accuracies(), strict=True))
    assert accuracies[0.512] >= 0.85
    assert accuracies[0.0] == pytest.approx(0.5, abs=0.1)
    for coherence, accuracy in accuracies.items():
        best = decisions.best_possible(torch.tensor(coherence)).item()
        assert accuracy < best + 0.08  # 3.5 sigma of 500 trials


def test_a_test_counts_choices_of_the_first() -> None:
    """Whoever compares the sums of the stimuli chooses as well as possible."""

    class Ideal(torch.nn.Module):
        def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return inputs.cumsum(0), inputs

    result = decision_making.test(Ideal(), Namespace(seed=0, device=torch.device("cpu")))
    coherences = decisions.signed_coherences()
    expected = decisions.best_possible(coherences)
    torch.testing.assert_close(result.first, expected, rtol=0, atol=0.1)  # 4 sigma
    assert torch.equal(result.right[coherences > 0], result.first[coherences > 0])
    torch.testing.assert_close(result.right[coherences < 0], 1 - result.first[coherences < 0])
    assert result.states.shape == (60, len(coherences), 3)
