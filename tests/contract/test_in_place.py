"""What may be changed in place between the forward and the backward pass of nn.RNN."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, Raised, T, assert_agree, assert_raise_alike, assert_same, outcome
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import RNN

DOUBLE = {"dtype": torch.float64}


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


RESULTS_CHANGED = {
    "output.mul_": lambda output, hn: output.mul_(2),
    "output.relu_": lambda output, hn: torch.relu_(output),
    "output[0] = 0": lambda output, hn: output[0].zero_(),
    "output[:, 1] =": lambda output, hn: output[:, 1].copy_(torch.ones(())),
    "output.zero_": lambda output, hn: output.zero_(),
    "output.tanh_": lambda output, hn: output.tanh_(),
    "output.transpose.add_": lambda output, hn: output.transpose(0, 1).add_(1),
    "output.detach.zero_": lambda output, hn: output.detach().zero_(),
    "hn.add_": lambda output, hn: hn.add_(1),
    "hn.mul_": lambda output, hn: hn.mul_(3),
    "hn[0] = 0": lambda output, hn: hn[0].zero_(),
    "output += hn": lambda output, hn: output.add_(hn[-1:]),
    "both": lambda output, hn: (output.mul_(2), hn.mul_(3)),
}

CALLS = {
    "batch": lambda cls: (cls(I, H, 2), x()),
    "one step": lambda cls: (cls(I, H), x(1, B, I)),
    "batch_first": lambda cls: (cls(I, H, batch_first=True), x(T, T, I)),
    "relu": lambda cls: (cls(I, H, nonlinearity="relu"), x()),
    "no batch": lambda cls: (cls(I, H, 2), x(T, I)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", RESULTS_CHANGED)
def test_results_may_be_changed_before_backward(name: str, call: str) -> None:
    def run(cls: type) -> object:
        module, input = CALLS[call](cls)
        input.requires_grad_()
        output, hn = module(input)
        RESULTS_CHANGED[name](output, hn)
        (output.square().sum() + hn.square().sum()).backward()
        return output, hn, input.grad, [w.grad for w in module.parameters()]

    assert_same(outcome(run, RNN), outcome(run, nn.RNN), tolerance=1e-5)


def test_packed_results_may_be_changed_before_backward() -> None:
    def run(cls: type) -> object:
        module, input = cls(I, H, 2), x(requires_grad=True)
        output, hn = module(pack_padded_sequence(input, torch.tensor([3, 5]), enforce_sorted=False))
        output.data.mul_(2), hn.add_(1)
        (output.data.square().sum() + hn.square().sum()).backward()
        return output, hn, input.grad, [w.grad for w in module.parameters()]

    assert_agree(run)


# The arguments: what no gradient needs may be changed, and all else is missed.

WEIGHTS = [name for name, _ in nn.RNN(I, H, 2).named_parameters()]
TRAINED = {
    "all": ("input", "hx", *WEIGHTS),
    "weights": tuple(WEIGHTS),
    "biases": tuple(name for name in WEIGHTS if "bias" in name),
    "w_ih": ("weight_ih_l0", "weight_ih_l1"),
    "upper layer": tuple(name for name in WEIGHTS if "l1" in name),
    "upper w_ih": ("weight_ih_l1",),
    "upper w_hh": ("weight_hh_l1",),
    "lower w_hh": ("weight_hh_l0",),
    "lower bias": ("bias_hh_l0",),
    "input": ("input",),
    "hx": ("hx",),
    "input, hx": ("input", "hx"),
}


def grad_of(y: Tensor, wanted: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, wanted, materialize_grads=True, **options)


def first_derivative(output: Tensor, wanted: list[Tensor], change: Callable[[], None]) -> object:
    change()
    return grad_of(output.square().sum(), wanted)


def second_derivative(output: Tensor, wanted: list[Tensor], change: Callable[[], None]) -> object:
    change()
    first = grad_of(output.square().sum(), wanted, create_graph=True)
    return first, grad_of(sum(g.square().sum() for g in first), wanted)


def change_between(output: Tensor, wanted: list[Tensor], change: Callable[[], None]) -> object:
    first = grad_of(output.square().sum(), wanted, create_graph=True)
    change()
    return first, grad_of(sum(g.square().sum() for g in first), wanted)


ORDERS = {
    "first": first_derivative,
    "second": second_derivative,
    "second, changed after the first": change_between,
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("steps", [1, T])
@pytest.mark.parametrize("trained", TRAINED)
def test_arguments_changed_before_backward(trained: str, steps: int, order: str) -> None:
    """Each argument in turn: the gradients of nn.RNN, or its error."""

    def run(cls: type, changed: str | None) -> object:
        module = cls(I, H, 2, **DOUBLE)
        tensors = {"input": x(steps, B, I, **DOUBLE), "hx": x(2, B, H, **DOUBLE)}
        tensors |= dict(module.named_parameters())
        for name, tensor in tensors.items():
            tensor.requires_grad_(name in TRAINED[trained])
        wanted = [tensors[name] for name in TRAINED[trained]]
        output, _ = module(tensors["input"], tensors["hx"])

        def change() -> None:
            if changed is not None:
                with torch.no_grad():
                    tensors[changed].fill_(9)

        return ORDERS[order](output, wanted, change)

    untouched = outcome(lambda cls: run(cls, None), RNN)
    for changed in ("input", "hx", *WEIGHTS):
        theirs = outcome(lambda cls, name=changed: run(cls, name), nn.RNN)
        ours = outcome(lambda cls, name=changed: run(cls, name), RNN)
        if isinstance(theirs, Raised):
            assert re.search("has been modified (by an )?inplace", theirs.text)
            assert isinstance(ours, Raised), f"{changed}: nothing raised"
            assert "has been modified by an inplace operation" in ours.text
        else:
            assert_same(ours, theirs, changed)
            assert_same(ours, untouched, changed)


@pytest.mark.parametrize("trained", ["all", "upper layer", "lower w_hh", "hx"])
def test_frozen_arguments_of_both_directions(trained: str) -> None:
    """NaN in everything that nn.RNN does not need."""

    def run(cls: type) -> object:
        module = cls(I, H, 2, bidirectional=True, **DOUBLE)
        tensors = {"input": x(**DOUBLE), "hx": x(4, B, H, **DOUBLE)}
        tensors |= dict(module.named_parameters())
        for name, tensor in tensors.items():
            tensor.requires_grad_(name.removesuffix("_reverse") in TRAINED[trained])
        wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
        output, hn = module(tensors["input"], tensors["hx"])
        biases = [w for name, w in tensors.items() if "bias" in name]
        lower = {
            "all": [],
            "upper layer": [
                *(w for name, w in tensors.items() if "l0" in name or "weight_ih_l1" in name),
                tensors["input"],
            ],
            "lower w_hh": [tensors["input"], tensors["weight_ih_l0"]],
            "hx": [tensors["input"], tensors["hx"], tensors["weight_ih_l0"]],
        }[trained]
        with torch.no_grad():
            for tensor in (*biases, *lower):
                tensor.fill_(float("nan"))
        loss = output.square().sum() + hn.sum()
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        return first, grad_of(sum(g.square().sum() for g in first), wanted)

    assert_agree(run)


def test_batch_sizes_changed_before_backward() -> None:
    def run(cls: type) -> object:
        module, sizes = cls(I, H, 2, bidirectional=True), torch.tensor([3, 2, 1])
        output, _ = module(PackedSequence(x(6, I), sizes))
        sizes.fill_(3)
        output.data.sum().backward()
        return [w.grad for w in module.parameters()]

    assert_agree(run)


@pytest.mark.parametrize("marks", ["lengths", "reset"])
def test_marks_must_not_be_changed_before_backward(marks: str) -> None:
    tensor = torch.ones(B, dtype=torch.int64) if marks == "lengths" else torch.zeros(T, B).bool()
    output, _ = RNN(I, H)(x(), **{marks: tensor})
    tensor.fill_(True)
    with pytest.raises(RuntimeError, match="has been modified by an inplace operation"):
        output.sum().backward()


@pytest.mark.parametrize("order", ORDERS)
def test_state_detached_before_backward(order: str) -> None:
    def run(cls: type) -> object:
        module, input, start = cls(I, H, **DOUBLE), x(**DOUBLE), x(1, B, H, **DOUBLE)
        hx = start.requires_grad_().exp()
        output, _ = module(input, hx)
        return ORDERS[order](output, [start, *module.parameters()], lambda: hx.detach_())

    assert_agree(run)


@pytest.mark.parametrize("create_graph", [False, True])
def test_frozen_after_the_call(create_graph: bool) -> None:
    def run(cls: type) -> object:
        module = cls(I, H)
        module.weight_ih_l0.requires_grad_(False)
        output, _ = module(x())
        module.weight_ih_l0.requires_grad_()
        wanted = [module.weight_hh_l0, module.bias_hh_l0]
        return torch.autograd.grad(output.square().sum(), wanted, create_graph=create_graph)

    assert_agree(run)


def test_weights_trained_in_turn() -> None:
    """Two losses of one module, and a step of the optimizer between their backward passes."""

    def run(cls: type) -> object:
        module = cls(I, H)
        for name, w in module.named_parameters():
            w.requires_grad_("bias" in name)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        losses = [module(x())[0].sum() for _ in range(2)]
        for loss in losses:
            loss.backward()
            optimizer.step()
        return list(module.parameters())

    assert_agree(run)


@pytest.mark.parametrize("name", ["weight_ih_l0", "bias_ih_l0", "bias_hh_l0", "input", "hx"])
def test_inference_tensors(name: str) -> None:
    def run(cls: type) -> object:
        module, tensors = cls(I, H), {"input": x(), "hx": x(1, B, H)}
        with torch.inference_mode():
            clone = {**tensors, **module._parameters}[name].detach().clone()
        if name in tensors:
            tensors[name] = clone
        else:
            module._parameters[name] = clone
            module._flat_weights = list(module._parameters.values())
        module(tensors["input"], tensors["hx"])[0].sum().backward()
        return [w.grad for w in module.parameters() if w.requires_grad]

    if name in ("input", "hx"):
        assert_raise_alike(run)
    else:
        assert_agree(run)
