"""Gradients of nn.RNN: numerical checks, of every order, and of what requires them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_agree, assert_raise_alike
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import RNN

DOUBLE = {"dtype": torch.float64}

# Decompositions of torch's own, for forward mode, still use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


# Numerical checks, of first and second order. A call takes tensors and gives tensors.


def call_of(module: nn.Module, run: Callable[..., Any]) -> Callable[..., Any]:
    names = [name for name, _ in module.named_parameters()]

    def call(*tensors: Tensor) -> Any:
        weights = dict(zip(names, tensors[-len(names) :], strict=True))
        return torch.func.functional_call(module, weights, run(*tensors[: -len(names)]))

    return call


def dense(**options: Any) -> Any:
    module = RNN(2, 3, **options, **DOUBLE)
    states = module.num_layers * (2 if module.bidirectional else 1)
    tensors = x(3, 2, 2, **DOUBLE), x(states, 3 if module.batch_first else 2, 3, **DOUBLE)
    return call_of(module, lambda *args: args), (*tensors, *module.parameters())


def without_state() -> Any:
    module = RNN(2, 3, bias=False, **DOUBLE)
    return call_of(module, lambda *args: args), (x(3, 2, 2, **DOUBLE), *module.parameters())


def unbatched() -> Any:
    module = RNN(2, 3, **DOUBLE)
    tensors = x(3, 2, **DOUBLE), x(1, 3, **DOUBLE)
    return call_of(module, lambda *args: args), (*tensors, *module.parameters())


def packed_input() -> Any:
    module = RNN(2, 3, bidirectional=True, **DOUBLE)
    sizes, order = torch.tensor([3, 2, 1]), torch.tensor([2, 0, 1])

    def call(data: Tensor, hx: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        names = [name for name, _ in module.named_parameters()]
        arguments = PackedSequence(data, sizes, order, torch.argsort(order)), hx
        state = dict(zip(names, weights, strict=True))
        output, hn = torch.func.functional_call(module, state, arguments)
        return output.data, hn

    return call, (x(6, 2, **DOUBLE), x(2, 3, 3, **DOUBLE), *module.parameters())


def with_lengths() -> Any:
    module = RNN(2, 2, 2, bidirectional=True, **DOUBLE)
    lengths = torch.tensor([1, 3])

    def call(input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        return module(input, hx, lengths=lengths)

    return call, (x(3, 2, 2, **DOUBLE), x(4, 2, 2, **DOUBLE))


def with_reset() -> Any:
    module = RNN(2, 2, bidirectional=True, **DOUBLE)
    reset = torch.tensor([[False, True], [True, False], [False, True]])

    def call(input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        return module(input, hx, reset=reset)

    return call, (x(3, 2, 2, **DOUBLE), x(2, 2, 2, **DOUBLE))


def with_dropout() -> Any:
    module = RNN(2, 3, 2, dropout=0.5, **DOUBLE)

    def call(input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(1)
        return module(input, hx)

    return call, (x(3, 2, 2, **DOUBLE), x(2, 2, 3, **DOUBLE))


def strided() -> Any:
    module = RNN(2, 3, **DOUBLE)
    return module, (
        x(2, 2, 3, **DOUBLE).permute(2, 0, 1),
        x(1, 1, 3, **DOUBLE).expand(1, 2, 3).clone(),
    )


CHECKED = {
    "tanh": dense,
    "relu": lambda: dense(nonlinearity="relu"),
    "layers": lambda: dense(num_layers=2),
    "both directions": lambda: dense(bidirectional=True),
    "batch_first": lambda: dense(batch_first=True),
    "no state, no bias": without_state,
    "no batch": unbatched,
    "packed": packed_input,
    "lengths": with_lengths,
    "reset": with_reset,
    "dropout": with_dropout,
    "strided": strided,
}


@pytest.mark.parametrize("name", CHECKED)
def test_gradcheck(name: str) -> None:
    call, tensors = CHECKED[name]()
    tensors = [t.detach().requires_grad_() for t in tensors]
    assert gradcheck(call, tensors, check_batched_grad=True, fast_mode=False)
    assert gradcheck(call, tensors, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(call, tensors, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_complex_numbers(dtype: torch.dtype) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, 2, bidirectional=True, dtype=dtype)
        input, hx = x(dtype=dtype, requires_grad=True), x(4, B, H, dtype=dtype, requires_grad=True)
        output, hn = module(input, hx)
        (output.abs().sum() + hn.abs().sum()).backward()
        return output, hn, input.grad, hx.grad, [w.grad for w in module.parameters()]

    assert_agree(run, tolerance=1e-5)


def test_relu_of_complex_numbers_raises() -> None:
    assert_raise_alike(
        lambda rnn: rnn(I, H, nonlinearity="relu", dtype=torch.complex64)(x(dtype=torch.complex64))
    )


# Gradients of gradients.

PENALTIES = {
    "penalty": lambda module, input, hx: module(input, hx),
    "state from the input": lambda module, input, hx: module(
        input, input.mean((0, 2), True).expand_as(hx)
    ),
    "state from a call": lambda module, input, hx: module(input, module(input, hx)[1]),
    "no batch": lambda module, input, hx: module(input[:, 0], hx[:, 0]),
}


def tied(module: nn.Module) -> None:
    module.weight_hh_l1 = module.weight_hh_l0
    module.weight_ih_l1 = module.weight_hh_l0
    module.bias_hh_l0 = module.bias_ih_l0


def frozen(module: nn.Module) -> None:
    module.weight_hh_l0.requires_grad_(False)


SECOND_ORDER = {"": lambda module: None, "tied": tied, "frozen": frozen}


@pytest.mark.parametrize("change", SECOND_ORDER)
@pytest.mark.parametrize("name", PENALTIES)
def test_create_graph(name: str, change: str) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, 2)
        SECOND_ORDER[change](module)
        input, hx = x(requires_grad=True), x(2, B, H, requires_grad=True)
        output, hn = PENALTIES[name](module, input, hx)
        loss = output.square().sum() + hn.sum()
        wanted = [input, *(w for w in module.parameters() if w.requires_grad)]
        first = torch.autograd.grad(loss, wanted, create_graph=True)
        sum(g.square().sum() for g in first).backward()
        return first, input.grad, hx.grad, [w.grad for w in module.parameters()]

    assert_agree(run, tolerance=1e-5)


def test_third_order() -> None:
    def run(cls: type) -> object:
        module, input = cls(I, H), x(requires_grad=True)
        y = module(input)[0].sum()
        for _ in range(3):
            (grad,) = torch.autograd.grad(y, input, create_graph=True)
            y = grad.pow(3).sum()
        return y

    assert_agree(run, tolerance=1e-4)


def test_second_order_of_packed_input() -> None:
    def run(cls: type) -> object:
        module, input = cls(I, H, 2, bidirectional=True), x(5, 3, I, requires_grad=True)
        sequence = pack_padded_sequence(input, torch.tensor([2, 5, 3]), enforce_sorted=False)
        output, hn = module(sequence)
        loss = output.data.square().sum() + hn.sum()
        (grad,) = torch.autograd.grad(loss, input, create_graph=True)
        grad.square().sum().backward()
        return grad, input.grad, [w.grad for w in module.parameters()]

    assert_agree(run, tolerance=1e-5)


# Which tensors get a gradient, and when.

GRADIENTS = {
    "output": lambda output, hn: output.sum(),
    "one step": lambda output, hn: output[2].sum(),
    "hn": lambda output, hn: hn.sum(),
    "first layer of hn": lambda output, hn: hn[0].sum(),
    "last layer of hn": lambda output, hn: hn[-1].sum(),
    "both": lambda output, hn: output.sum() + hn.square().sum(),
    "one element": lambda output, hn: output[0, 0, 0],
    "expanded gradient": lambda output, hn: output.mean(),
    "transposed gradient": lambda output, hn: (output.transpose(0, 2) * torch.ones(H, B, 1)).sum(),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_partial_use(name: str) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, 3)
        input, hx = x(requires_grad=True), x(3, B, H, requires_grad=True)
        GRADIENTS[name](*module(input, hx)).backward()
        return input.grad, hx.grad, {k: w.grad for k, w in module.named_parameters()}

    *_, grads = assert_agree(run)
    assert all(g is not None for g in grads.values())
    if name == "first layer of hn":
        assert grads["weight_ih_l2"].eq(0).all()


WANTED = {
    "nothing": (),
    "input": ("input",),
    "hx": ("hx",),
    "one weight": ("weight_hh_l1",),
    "one bias": ("bias_ih_l0",),
    "input and a bias": ("input", "bias_hh_l1"),
    "weights": ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"),
}


@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("name", WANTED)
def test_gradients_of_what_requires_them(name: str, with_hx: bool) -> None:
    def run(cls: type) -> object:
        module, tensors = cls(I, H, 2), {"input": x(), "hx": x(2, B, H)}
        tensors |= dict(module.named_parameters())
        for key, tensor in tensors.items():
            tensor.requires_grad_(key in WANTED[name])
        output, hn = module(tensors["input"], tensors["hx"] if with_hx else None)
        if output.requires_grad:
            output.sum().backward()
        return output.requires_grad, hn.requires_grad, {k: t.grad for k, t in tensors.items()}

    required, _, grads = assert_agree(run)
    expected = {key for key in WANTED[name] if key != "hx" or with_hx}
    assert {key for key, g in grads.items() if g is not None} == expected
    assert required == bool(expected)


def test_backward_in_eval_mode() -> None:
    def run(cls: type) -> object:
        module = cls(I, H, 2, dropout=0.5).eval()
        module(x())[0].sum().backward()
        return [w.grad for w in module.parameters()]

    assert_agree(run)


def test_gradients_accumulate() -> None:
    def run(cls: type) -> object:
        module, input = cls(I, H), x()
        output, hn = module(input)
        output.sum().backward(retain_graph=True)
        hn.sum().backward(retain_graph=True)
        output.square().sum().backward()
        return [w.grad for w in module.parameters()]

    assert_agree(run)


def test_truncated_backpropagation() -> None:
    def run(cls: type) -> object:
        module, hx, losses = cls(I, H), torch.zeros(1, B, H), []
        for _ in range(3):
            output, hx = module(x(), hx)
            losses.append(output.square().sum())
            losses[-1].backward()
            hx.detach_()
        return hx, losses, [w.grad for w in module.parameters()]

    assert_agree(run)


def test_backward_twice_raises() -> None:
    def run(cls: type) -> object:
        loss = cls(I, H)(x())[0].sum()
        loss.backward()
        loss.backward()
        return None

    assert_raise_alike(run)
