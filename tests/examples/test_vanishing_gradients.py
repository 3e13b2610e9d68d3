"""Vanishing gradients: the gradient of each state, its bound, clipping, and times."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
vanishing_gradients = importlib.import_module("vanishing_gradients")
Figure = importlib.import_module("matplotlib.figure").Figure


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def example(*options: str) -> vanishing_gradients.Results:
    return vanishing_gradients.main(["--device", "cpu", *options])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> vanishing_gradients.Results:
    """Of the program as it is, 300 steps for each network."""
    return example("--out", str(tmp_path_factory.mktemp("out")))


@pytest.mark.parametrize("impl", ["fastrnn", "torch"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_gradients_of_states(impl: str, nonlinearity: str) -> None:
    """One backward pass to the inputs gives what a graph of single steps gives for each state."""
    args = argparse.Namespace(seed=1, device=torch.device("cpu"))
    rnn = vanishing_gradients.make_free_rnn(impl, nonlinearity, 1.5, args).double()
    inputs = torch.randn(9, 3, 64, dtype=torch.float64)
    direction = torch.randn(3, 64, dtype=torch.float64)
    ours = vanishing_gradients.gradients_of_states(rnn, inputs, direction)

    states = []
    h = torch.zeros(3, 64, dtype=torch.float64)
    for x in inputs:
        h = getattr(torch, nonlinearity)(x + h @ rnn.weight_hh_l0.T)
        h.retain_grad()
        states.append(h)
    (h * direction).sum().backward()
    expected = torch.stack([state.grad for state in states])
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5])
def test_recurrence_scales_all_vectors_alike(radius: float) -> None:
    rnn = torch.nn.RNN(3, 64)
    vanishing_gradients.start_recurrence(rnn, radius)
    x = torch.randn(64, 20)
    expected = radius * x.norm(dim=0)
    torch.testing.assert_close((rnn.weight_hh_l0 @ x).norm(dim=0), expected, rtol=1e-5, atol=0)
    assert not rnn.bias_ih_l0.any()
    assert not rnn.bias_hh_l0.any()


def test_norms(results: vanishing_gradients.Results) -> None:
    """No norm is above radius^(T-t), but for roundings; how far below, the activations decide."""
    steps_back = torch.arange(63, -1, -1).double()
    for (nonlinearity, radius), norms in results.norms.items():
        assert norms.shape == (64,)
        assert norms[-1] == pytest.approx(1, rel=1e-6)
        assert (norms <= radius**steps_back * (1 + 1e-5)).all(), (nonlinearity, radius)
        assert (norms > 0).all()
    first = {case: norms[0].item() for case, norms in results.norms.items()}
    assert first["tanh", 0.5] < 1e-18
    assert first["tanh", 1.0] > 1e-3
    assert first["tanh", 1.5] > 10
    assert first["relu", 0.5] < 1e-25
    assert first["relu", 1.0] < 1e-6  # about half the units are off: a factor of sqrt(1/2) a step
    assert first["relu", 1.5] > 1


def test_clipping(results: vanishing_gradients.Results) -> None:
    """1/3 is the loss of who recalls nothing."""

    def finals(radius: float) -> tuple[float, float]:
        study = results.clipping[radius]
        return tuple(vanishing_gradients.final_loss(run) for run in (study.clipped, study.free))

    assert min(finals(0.5)) > 0.25
    assert max(finals(1.0)) < 0.01
    clipped, free = finals(1.5)
    assert clipped < 0.05
    assert not free < 1 / 3  # nan, or lost
    assert torch.stack(results.clipping[1.5].clipped.model.norms).max() > 10


@pytest.mark.parametrize("clip_norm", [1.0, math.inf])
def test_a_clipped_step_is_short(clip_norm: float) -> None:
    """Gradient descent at 0.1 moves the weights by 0.1 times the norm of what it is given."""
    args = argparse.Namespace(seed=0, steps=1, device=torch.device("cpu"))
    torch.manual_seed(0)
    model = vanishing_gradients.Recall(torch.nn.RNN, 1.5)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    vanishing_gradients.train(model, clip_norm, args)
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before
    norm = model.norms[0].item()
    assert norm > 2
    assert moved.norm().item() == pytest.approx(0.1 * min(norm, clip_norm), rel=1e-3)


def test_times(results: vanishing_gradients.Results) -> None:
    assert results.times.keys() == {"fastrnn", "linear"}
    for microseconds in results.times.values():
        assert len(microseconds) == len(vanishing_gradients.LENGTHS)
        assert all(0 < each < math.inf for each in microseconds)


def test_picture_says_which_run_leaves_it(results: vanishing_gradients.Results) -> None:
    axes = Figure().subplots()
    vanishing_gradients.draw_clipping(axes, results.clipping)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        *(f"radius {radius}, clipped" for radius in (0.5, 1.0, 1.5)),
        "radius 0.5, not clipped",
        "radius 1.0, not clipped",
        "radius 1.5, not clipped: leaves the picture",
    ]


def test_picture_names_times_in_plain_numbers() -> None:
    figure = Figure()
    axes = figure.subplots()
    vanishing_gradients.draw_times(axes, {"fastrnn": [30.0, 9.0, 3.0, 1.5, 1.2, 1.1]})
    figure.canvas.draw()
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["1", "4", "16", "64", "256", "1024"]
    low, high = axes.get_ylim()
    ticks = dict(zip(axes.get_yticks(), axes.get_yticklabels(), strict=True))
    shown = [text.get_text() for y, text in ticks.items() if low <= y <= high]
    assert shown == ["1", "2", "5", "10", "20"]


def test_same_seed_same_norms() -> None:
    def norms(seed: int) -> torch.Tensor:
        args = argparse.Namespace(seed=seed, device=torch.device("cpu"))
        return vanishing_gradients.gradient_norms("fastrnn", "tanh", 1.0, args)

    assert torch.equal(norms(3), norms(3))
    assert not torch.equal(norms(3), norms(4))
