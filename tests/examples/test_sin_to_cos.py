"""The cosine from the sine: what each step sees, carries over and learns."""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import re
import statistics
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sin_to_cos = importlib.import_module("sin_to_cos")
FastRNN = importlib.import_module("_common").RNN_CLASSES["fastrnn"]


each_network = pytest.mark.parametrize(
    ("network", "inputs", "layers"),
    [("RNN(1, 32)", 1, 1), ("RNN(2, 32, num_layers=2)", 2, 2)],
    ids=["L1", "L2"],
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def example(*options: str) -> sin_to_cos.Results:
    return sin_to_cos.main(["--device", "cpu", *options])


def test_half_waves() -> None:
    """Ten points of each half wave, the last of one step at the time of the first of the next."""
    waves = sin_to_cos.half_waves(2)
    steps = [next(waves) for _ in range(300)]
    for k, (sines, cosines) in enumerate(steps):
        t = torch.arange(10, dtype=torch.float64).mul(math.pi / 9).add(k * math.pi).view(1, 10, 1)
        assert sines.shape == (1, 10, 2)
        torch.testing.assert_close(sines, t.sin().float().expand(-1, -1, 2), rtol=0, atol=2e-7)
        torch.testing.assert_close(cosines, t.cos().float(), rtol=0, atol=2e-7)
    for (sines, _), (later, _) in itertools.pairwise(steps):
        torch.testing.assert_close(later[:, 0], sines[:, -1], rtol=0, atol=1e-6)


def test_linear_layer_in_a_loop_and_by_reshape() -> None:
    """Sums of 32 products below 1 each, in whatever order: within 1e-6 of each other."""
    linear = torch.nn.Linear(32, 3)
    output = 2 * torch.rand(4, 7, 32) - 1
    loop, reshaped = sin_to_cos.by_loop(linear, output), sin_to_cos.by_reshape(linear, output)
    assert loop.shape == reshaped.shape == (4, 7, 3)
    torch.testing.assert_close(loop, reshaped, rtol=0, atol=1e-6)
    torch.testing.assert_close(loop, linear(output), rtol=0, atol=1e-6)


@each_network
def test_carries_the_state_and_detaches_it(network: str, inputs: int, layers: int) -> None:
    """The same steps written with nn.RNN alone, whose backward pass would fail on a state that is
    not detached. Five steps of Adam let roundings of 1e-7 grow to 1e-5 at most."""
    model = sin_to_cos.CosineFromSine(FastRNN, inputs, layers)
    rnn = torch.nn.RNN(inputs, 32, layers, batch_first=True)
    rnn.load_state_dict(model.rnn.state_dict())
    linear = torch.nn.Linear(32, 1)
    linear.load_state_dict(model.linear.state_dict())
    losses = sin_to_cos.train(model, argparse.Namespace(steps=5, device=torch.device("cpu")))

    adam = torch.optim.Adam([*rnn.parameters(), *linear.parameters()], lr=0.02)
    state = torch.zeros(layers, 1, 32)
    waves = itertools.islice(sin_to_cos.half_waves(inputs), 5)
    for k, (sines, cosines) in enumerate(waves):
        output, hn = rnn(sines, state)
        expected = linear(output)
        state = hn.data
        loss = ((expected - cosines) ** 2).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        torch.testing.assert_close(model.predictions[k], expected.detach(), rtol=0, atol=1e-5)
        assert losses[k] == pytest.approx(loss.item(), abs=1e-5)
    assert state.abs().max() > 0.1


def train(inputs: int, layers: int, seed: int, steps: int) -> list[float]:
    torch.manual_seed(seed)
    model = sin_to_cos.CosineFromSine(FastRNN, inputs, layers)
    return sin_to_cos.train(model, argparse.Namespace(steps=steps, device=torch.device("cpu")))


@each_network
def test_learns_the_cosine(network: str, inputs: int, layers: int) -> None:
    """A network that remembers nothing ends above 0.5, the mean of the squared cosine.

    At a constant learning rate the loss jumps up now and then, so the median of five seeds counts.
    """
    finals = [statistics.fmean(train(inputs, layers, seed, 300)[-10:]) for seed in range(5)]
    assert statistics.median(finals) < 0.02


@each_network
def test_same_seed_same_losses(network: str, inputs: int, layers: int) -> None:
    first, again, other = (train(inputs, layers, seed, 20) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("steps", ["1", "7"])
def test_few_steps(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--steps", steps, "--impl", "torch", "--out", "new/folder")
    assert results.picture == Path("new/folder/sin_to_cos.png")
    assert results.picture.is_file()
    for run, *others in results.runs.values():
        assert (run.name, len(run.step_losses), others) == ("torch", int(steps), [])
    assert re.search(rf"step +{steps}/{steps} ", capsys.readouterr().out)
