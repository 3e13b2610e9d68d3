"""Long sums, the caller's floating-point mode, NaN and infinity in the weights."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from cases import FLOOR, Case
from long_double import outputs_and_gradients
from problems import Problem
from torch import Tensor, nn

import fastrnn
from fastrnn import RNN


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(1, 2**20), (2000, 256)], ids=["rows", "steps"])
def test_sums_of_half_a_million_terms(
    sizes: tuple[int, int], nonlinearity: str, dtype: torch.dtype
) -> None:
    """Gradients of weights and biases of terms of one sign, where every rounding adds up."""
    torch.manual_seed(0)
    x, hx = torch.rand(*sizes, 3).to(dtype), torch.rand(1, sizes[1], 4).to(dtype)
    each = torch.tensor(1e-2 if dtype == torch.float16 else 0.1).to(dtype)  # no sum overflows

    def gradients(cls: type, computed: torch.dtype) -> dict[str, Tensor]:
        torch.manual_seed(1)
        rnn = cls(3, 4, nonlinearity=nonlinearity)
        with torch.no_grad():
            rnn.weight_hh_l0.mul_(0.2)
            if nonlinearity == "relu":
                rnn.bias_ih_l0.fill_(5.0)
        rnn.to(dtype).to(computed)
        output, _ = rnn(x.to(computed), hx.to(computed))
        output.backward(torch.full_like(output, each))
        return {name: p.grad.double() for name, p in rnn.named_parameters()}

    right = gradients(RNN, torch.float64)
    ours, theirs = gradients(RNN, dtype), gradients(nn.RNN, dtype)
    for name, expected in right.items():
        error, allowed = [((y[name] - expected) / expected).abs().max() for y in (ours, theirs)]
        assert error <= 2 * allowed + FLOOR[dtype], name


def test_flushed_denormals_on_every_thread() -> None:
    """The workers take the caller's mode, and their own again: another caller may have another."""
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush denormals")
    rnn = RNN(64, 64, nonlinearity="relu", bias=False)
    x = (torch.rand(40, 16, 64) * 1e-38).requires_grad_()
    threads = torch.get_num_threads()

    def results(n: int, flush: bool) -> list[Tensor]:
        torch.set_num_threads(n)
        torch.set_flush_denormal(flush)
        output, hn = rnn(x)
        grads = torch.autograd.grad(output, [x, *rnn.parameters()], torch.ones_like(output) * 1e-36)
        return [output, hn, *grads]

    try:
        runs = {(n, flush): results(n, flush) for flush in (True, False) for n in (1, 2, 3)}
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    for (n, flush), ys in runs.items():
        for y, alone in zip(ys, runs[1, flush], strict=True):
            assert torch.equal(y, alone), (n, flush)
    for flushed, kept in zip(runs[1, True][:3], runs[1, False][:3], strict=True):
        assert not torch.equal(flushed, kept)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_weights_that_are_not_finite_show_at_the_first_step(
    value: float, nonlinearity: str
) -> None:
    """0 * NaN and 0 * inf, as in nn.RNN.

    With so many rows that the weights are packed: with few, the first step leaves the product out.
    """
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
    for dtype, seq_len, hidden in itertools.product(dtypes, (1, 3), (7, 130)):
        x = torch.randn(seq_len, 60, 5, dtype=dtype)
        for row, column in ((hidden - 1, hidden - 1), (hidden // 2, 3)):
            torch.manual_seed(0)
            theirs = nn.RNN(5, hidden, 2, nonlinearity, bidirectional=True, dtype=dtype)
            with torch.no_grad():
                theirs.weight_hh_l1_reverse[row, column] = value
            ours = RNN(5, hidden, 2, nonlinearity, bidirectional=True, dtype=dtype)
            ours.load_state_dict(theirs.state_dict())
            if "torch" in fastrnn.info(ours, x)["kernel"]:
                continue
            with torch.no_grad():
                (y, hn), (expected, expected_hn) = ours(x), theirs(x)
            assert expected.isnan().any()
            assert torch.equal(y.isnan(), expected.isnan())
            assert torch.equal(hn.isnan(), expected_hn.isnan())


@pytest.mark.skipif(
    np.finfo(np.longdouble).eps == np.finfo(np.float64).eps, reason="long double is double"
)
def test_float64_errs_as_nn_rnn() -> None:
    """With weights of any size, judged in long double: float64 is what nn.RNN itself computes.

    Large weights amplify roundings, so that one problem says little: the mean ratio of the errors
    over many does.
    """
    rng = np.random.default_rng(0)
    ratios: dict[str, list[float]] = {}
    for _ in range(150):
        sizes = [int(rng.integers(1, n)) for n in (12, 9, 20, 200)]
        case = Case(*sizes, bidirectional=bool(rng.integers(2)))
        problem = Problem(case)
        scale = 10 ** rng.uniform(-3, 1.5)
        problem.weights = {name: w * scale for name, w in problem.weights.items()}
        given = [problem.x, problem.hx, problem.grad_output, problem.grad_hn]
        x, hx, *grads = [y.numpy().astype(np.longdouble) for y in given]
        weights = [w.numpy().astype(np.longdouble) for w in problem.weights.values()]
        lengths = [case.seq_len] * case.batch
        results = outputs_and_gradients(case, x, hx, weights, lengths, *grads)
        names = ["output", "hn", "input", "hx", *problem.weights]
        right = dict(zip(names, [*results[:4], *results[4]], strict=True))
        ours, theirs = problem.ours(torch.float64), problem.theirs(torch.float64)
        for name, y in right.items():
            errors = [np.abs(z[name].numpy() - y).max() for z in (ours, theirs)]
            unit = np.finfo(np.float64).eps * np.abs(y).max()
            ratio = (errors[0] + unit) / (errors[1] + unit)
            ratios.setdefault(name.split("_l0")[0], []).append(ratio)
    for name, values in ratios.items():
        logs = np.log(np.array(values, np.float64))
        mean, high = np.exp([logs.mean(), np.quantile(logs, 0.95)])
        print(f"{name}: {mean:.2f} in the geometric mean, 95 of 100 below {high:.1f}")
        assert mean < 1.5, name
        assert high < 4, name
