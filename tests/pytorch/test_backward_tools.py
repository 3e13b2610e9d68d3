"""Tools around backward: checkpoints, hooks on what is saved and on tensors, anomaly mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_agree, assert_same
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

from fastrnn import RNN


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


def plainly(module: nn.Module, input: Tensor) -> Tensor:
    return module(input)[0].square().sum()


def checkpointed(reentrant: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def run(module: nn.Module, input: Tensor) -> Tensor:
        output, _ = checkpoint(module, input, use_reentrant=reentrant)
        return output.square().sum()

    return run


def saved_on_cpu(module: nn.Module, input: Tensor) -> Tensor:
    with torch.autograd.graph.save_on_cpu():
        return plainly(module, input)


def saved_through_numpy(module: nn.Module, input: Tensor) -> Tensor:
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.detach().numpy().copy(), torch.from_numpy
    ):
        return plainly(module, input)


def anomaly(module: nn.Module, input: Tensor) -> Tensor:
    with torch.autograd.detect_anomaly(check_nan=True):
        return plainly(module, input)


TOOLS = {
    "checkpoint": checkpointed(reentrant=False),
    "checkpoint, reentrant": checkpointed(reentrant=True),
    "save_on_cpu": saved_on_cpu,
    "saved tensor hooks": saved_through_numpy,
    "anomaly mode": anomaly,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", TOOLS)
def test_tools_around_backward(name: str) -> None:
    module = RNN(I, H, 3, dropout=0.5, bidirectional=True)
    results = []
    for run in (TOOLS[name], plainly):
        torch.manual_seed(1)
        module.zero_grad()
        input = x(requires_grad=True)
        run(module, input).backward()
        results.append([input.grad, *(w.grad for w in module.parameters())])
    assert_same(*results)


def test_saved_tensors_hooks_and_a_second_derivative() -> None:
    module, input = RNN(I, H), x(requires_grad=True)
    results = []
    for run in (saved_on_cpu, plainly):
        (grad,) = torch.autograd.grad(run(module, input), input, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), [input, *module.parameters()]))
    assert_same(*results)


LAYOUTS = {
    "last dimension first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "first dimension last": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0),
    "every other element": lambda t: torch.stack([t, t], -1)[..., 0],
    "an offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
}

CALLS_TO_SAVE = {
    "padded": lambda cls, input: cls(I, H, 2, batch_first=True, bidirectional=True)(input)[0],
    "packed": lambda cls, input: (
        cls(I, H, 2, bidirectional=True)(
            PackedSequence(input.flatten(0, 1), torch.tensor([4, 3, 2, 1]))
        )[0].data
    ),
    "dropout": lambda cls, input: cls(I, H, 2, dropout=0.5)(input)[0],
    "lengths": lambda cls, input: RNN(I, H, 2)(input, lengths=torch.tensor([3, 5]))[0],
    "reset": lambda cls, input: RNN(I, H, 2)(input, x(2, B, H), reset=torch.eye(T, B).bool())[0],
}


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("call", CALLS_TO_SAVE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_tensors_in_another_layout(layout: str, call: str, create_graph: bool) -> None:
    def run(pack: Callable[[Tensor], Tensor]) -> object:
        torch.manual_seed(0)
        input = x(requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            output = CALLS_TO_SAVE[call](RNN, input)
        (grad,) = torch.autograd.grad(output.square().sum(), input, create_graph=create_graph)
        if create_graph:
            return grad, torch.autograd.grad(grad.square().sum(), input)
        return grad

    packed: list[Tensor] = []
    expected = run(lambda t: t)

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return LAYOUTS[layout](t) if t.numel() else t

    torch.testing.assert_close(run(pack), expected)
    assert packed


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Error detected in")
def test_anomaly_mode_finds_the_nan() -> None:
    module, input = RNN(I, H), x(requires_grad=True)
    with torch.autograd.detect_anomaly():
        output, _ = module(input)
        with pytest.raises(RuntimeError, match="returned nan values"):
            output.backward(torch.full_like(output, float("nan")))


def test_hooks_on_tensors() -> None:
    def run(cls: type) -> object:
        module, seen = cls(I, H), []
        output, hn = module(x(requires_grad=True))
        output.register_hook(lambda g: seen.append(g) or 2 * g)
        hn.retain_grad()
        output.retain_grad()
        module.weight_hh_l0.register_post_accumulate_grad_hook(lambda w: seen.append(w.grad))
        (output.sum() + hn.square().sum()).backward()
        return seen, output.grad, hn.grad, [w.grad for w in module.parameters()]

    assert_agree(run)
