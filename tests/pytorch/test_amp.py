"""Mixed precision: which dtype computes, where weights and gradients stay, and what they learn."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_same
from cases import Case, assert_as_accurate
from problems import Problem
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import RNN

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)

# Decompositions of torch's own, for forward mode, still use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


@HALVES
@pytest.mark.parametrize(
    "case",
    [
        Case(9, 5, 3, 24, num_layers=2, bidirectional=True),
        Case(12, 4, 5, 31, lengths=True, batch_first=True, hx=False),
        Case(8, 6, 4, 20, nonlinearity="relu", bias=False),
    ],
    ids=str,
)
def test_outputs_and_gradients(case: Case, dtype: torch.dtype, device: str) -> None:
    """As accurate as nn.RNN under the same autocast, in float32 outside of it."""
    problem = Problem(case, torch.float32, device)

    def under_autocast(cls: type) -> Callable[..., tuple[Tensor, Tensor]]:
        module = case.module(cls, torch.float32, device)

        def run(x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> Any:
            options = {}
            if case.lengths and cls is RNN:
                options["lengths"] = problem.lengths.to(device)
            elif case.lengths:
                x = pack_padded_sequence(
                    x, problem.lengths.clamp(1), case.batch_first, enforce_sorted=False
                )
            with torch.autocast(device, dtype):
                output, hn = torch.func.functional_call(module, weights, (x, hx), options)
            if isinstance(output, PackedSequence):
                output, _ = nn.utils.rnn.pad_packed_sequence(
                    output, case.batch_first, total_length=case.seq_len
                )
            # On CUDA torch casts nn.RNN to float16, whatever autocast asks for.
            given = torch.float16 if cls is nn.RNN and device == "cuda" else dtype
            assert (output.dtype, hn.dtype) == (given, given)
            return output.float(), hn.float()

        return run

    problem.lengths.clamp_(1)
    ours = problem.results(under_autocast(RNN), torch.float32)
    theirs = problem.results(under_autocast(nn.RNN), torch.float32)
    truth = problem.truth()
    assert all(y.dtype == torch.float32 for y in ours.values())
    for results in (ours, theirs, truth):  # judged at the precision that was asked for
        results.update({name: y.to(dtype) for name, y in results.items() if results is not truth})
    assert_as_accurate(ours, theirs, truth)


MARKS: dict[str, Callable[[nn.Module], Any]] = {
    "batch": lambda m: m(x()),
    "hx": lambda m: m(x(), x(4, B, H)),
    "lengths": lambda m: m(x(), lengths=torch.tensor([3, 5])),
    "lengths, hx": lambda m: m(x(), x(4, B, H), lengths=torch.tensor([3, 5])),
    "reset": lambda m: m(x(), x(4, B, H), reset=torch.eye(T, B).bool()),
    "dropout": lambda m: m.train()(x()),
    "mixed": lambda m: m(x(), x(4, B, H).half()),
    "no batch": lambda m: m(x(T, I)),
}

TRANSFORMS: dict[str, Callable[[Callable[[Tensor], Any]], Any]] = {
    "none": lambda run: run(torch.zeros(())),
    "jvp": lambda run: torch.func.jvp(run, (torch.zeros(()),), (torch.ones(()),))[0],
    "vmap": lambda run: [y[0] for y in torch.vmap(run, randomness="same")(torch.zeros(1))],
    "grad": lambda run: torch.func.vjp(run, torch.zeros(()))[0],
}


@HALVES
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", MARKS)
def test_every_path_gives_the_dtype_asked_for(
    name: str, transform: str, dtype: torch.dtype
) -> None:
    """The kernels and, under a transform, the reference: the same dtypes, the same values."""
    module = RNN(I, H, 2, bidirectional=True, dropout=0.5).eval()
    bias = module.bias_ih_l0.detach()

    def run(shift: Tensor) -> Any:
        torch.manual_seed(2)
        with torch.autocast("cpu", dtype):
            weights = {"bias_ih_l0": bias + shift}
            with torch.nn.utils.stateless._reparametrize_module(module, weights):
                return MARKS[name](module)

    output, hn = TRANSFORMS[transform](run)
    assert (output.dtype, hn.dtype) == (dtype, dtype)
    expected = run(torch.zeros(()))
    assert_same([output.detach(), hn.detach()], [y.detach() for y in expected])


@HALVES
def test_functional_transforms_keep_weights_and_gradients_in_float32(dtype: torch.dtype) -> None:
    module, input = RNN(I, H, 2), x()
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def loss(weights: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", dtype):
            output, _ = torch.func.functional_call(module, weights, (input,))
        return output.float().square().mean()

    grads = torch.func.grad(loss)(weights)
    assert {g.dtype for g in grads.values()} == {torch.float32}
    with torch.autocast("cpu", dtype):
        output, _ = module(input)
    output.float().square().mean().backward()
    assert_same(
        {k: g.to(dtype) for k, g in grads.items()},
        {k: w.grad.to(dtype) for k, w in module.named_parameters()},
    )


@pytest.mark.parametrize("where", ["forward", "forward and gradient", "gradient"])
def test_gradients_of_gradients(where: str) -> None:
    """What was called in float32 is differentiated in float32, whatever is on by then."""

    def run(dtype: torch.dtype | None) -> list[Tensor]:
        torch.manual_seed(1)
        module, input = RNN(I, H, 2), x(requires_grad=True)
        enabled = dtype is not None
        with torch.autocast("cpu", dtype, enabled=enabled and "forward" in where):
            output, _ = module(input)
        loss = output.float().square().sum()
        with torch.autocast("cpu", dtype, enabled=enabled and "gradient" in where):
            (grad,) = torch.autograd.grad(loss, input, create_graph=True)
        grad.square().sum().backward()
        return [grad, input.grad, *(w.grad for w in module.parameters())]

    ours, exact = run(torch.bfloat16), run(None)
    bound = 2e-2 if "forward" in where else 1e-6
    for y, expected in zip(ours, exact, strict=True):
        assert y.dtype == torch.float32
        y, expected = y.detach(), expected.detach()
        torch.testing.assert_close(
            y, expected, rtol=bound, atol=bound * expected.abs().max().item()
        )


def train(module: nn.Module, device: str, dtype: torch.dtype | None, steps: int) -> list[Tensor]:
    """Losses of predicting the sum of a sequence, the weights kept in float32."""
    torch.manual_seed(1)
    model = nn.ModuleDict({"rnn": module, "linear": nn.Linear(16, 1)}).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16, init_scale=2.0**12)
    losses = []
    for _ in range(steps):
        input = x(8, 32, 2).to(device)
        with torch.autocast(device, dtype, enabled=dtype is not None):
            _, hn = model["rnn"](input)
            prediction = model["linear"](hn[-1])
        loss = (prediction.float() - input.sum((0, 2)).unsqueeze(1) / 4).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.detach())
    assert {w.dtype for w in model.parameters()} == {torch.float32}
    assert {w.grad.dtype for w in model.parameters()} == {torch.float32}
    return losses


@HALVES
def test_learns_as_in_float32(dtype: torch.dtype, device: str) -> None:
    """On average: what a single training ends with varies by a third from seed to seed."""
    final: dict[torch.dtype | None, list[float]] = {None: [], dtype: []}
    for seed in range(4):
        for used, ends in final.items():
            torch.manual_seed(seed)
            losses = train(RNN(2, 16), device, used, steps=150)
            ends.append(torch.stack(losses[-20:]).mean().item())
            assert ends[-1] < 0.1 * losses[0].item()
    assert mean(final[dtype]) < 1.5 * mean(final[None])


def test_grad_scaler_skips_a_step_with_inf(device: str) -> None:
    module = RNN(I, H).to(device)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    before = [w.detach().clone() for w in module.parameters()]
    with torch.autocast(device, torch.float16):
        output, _ = module(x().to(device))
    scaler.scale(output.float().sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    assert_same([w.detach() for w in module.parameters()], before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_compiled(dtype: torch.dtype) -> None:
    torch.compiler.reset()
    module, input = RNN(I, H, 2), x()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    results = []
    for run in (module, compiled):
        module.zero_grad()
        with torch.autocast("cpu", dtype):
            output, hn = run(input)
        (output.float().sum() + hn.float().sum()).backward()
        results.append([output, hn, [w.grad for w in module.parameters()]])
    assert results[1][0].dtype == dtype
    assert_same(*reversed(results))
