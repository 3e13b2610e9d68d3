"""The cosine from the sine: what each step sees, carries over and learns."""

from __future__ import annotations

import argparse
import importlib
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sin_to_cos = importlib.import_module("sin_to_cos")


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
    waves = sin_to_cos.half_waves(2, torch.device("cpu"))
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
    args = argparse.Namespace(seed=3, steps=300, device=torch.device("cpu"))
    run = sin_to_cos.make_run("fastrnn", args, network)
    rnn = torch.nn.RNN(inputs, 32, layers, batch_first=True)
    rnn.load_state_dict(run.model.rnn.state_dict())
    linear = torch.nn.Linear(32, 1)
    linear.load_state_dict(run.model.linear.state_dict())
    adam = torch.optim.Adam([*rnn.parameters(), *linear.parameters()], lr=0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.05, total_iters=300)
    state = torch.zeros(layers, 1, 32)
    waves = sin_to_cos.half_waves(inputs, args.device)
    for sines, cosines in itertools.islice(waves, 5):
        loss = run.step(sines, cosines)
        output, hn = rnn(sines, state)
        expected = linear(output)
        state = hn.data
        expected_loss = ((expected - cosines) ** 2).mean()
        adam.zero_grad()
        expected_loss.backward()
        adam.step()
        schedule.step()
        torch.testing.assert_close(run.predictions[-1], expected.detach(), rtol=0, atol=1e-5)
        torch.testing.assert_close(loss, expected_loss.detach(), rtol=0, atol=1e-5)
    assert state.abs().max() > 0.1


def train(network: str, inputs: int, seed: int, steps: int) -> sin_to_cos.CosineRun:
    args = argparse.Namespace(seed=seed, steps=steps, device=torch.device("cpu"))
    run = sin_to_cos.make_run("fastrnn", args, network)
    sin_to_cos.train_steps([run], sin_to_cos.half_waves(inputs, args.device), steps)
    return run


@each_network
def test_learns_the_cosine(network: str, inputs: int, layers: int) -> None:
    runs = [train(network, inputs, seed, 300) for seed in range(5)]
    assert max(sin_to_cos.final_loss(run) for run in runs) < 0.01


@each_network
def test_same_seed_same_losses(network: str, inputs: int, layers: int) -> None:
    first, again, other = (train(network, inputs, seed, 20).step_losses for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("steps", ["1", "7"])
def test_few_steps(steps: str, capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--steps", steps, "--impl", "torch", "--out", "new/folder")
    assert results.picture == Path("new/folder/sin_to_cos.png")
    assert results.picture.is_file()
    for run, *others in results.runs.values():
        assert (run.name, len(run.step_losses), others) == ("torch", int(steps), [])
    assert f"step {steps}/{steps}" in capsys.readouterr().out
