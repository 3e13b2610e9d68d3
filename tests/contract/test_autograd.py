"""Gradients of nn.RNN: every order, mode and transform, and what may be changed in place."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, Raised, T, assert_agree, assert_raise_alike, assert_same, outcome
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

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


def test_gradients_of_no_rows_are_zero() -> None:
    def run(cls: type) -> object:
        module, input = cls(I, H, 2, bidirectional=True), x(T, 0, I, requires_grad=True)
        output, hn = module(input)
        (output.sum() + hn.sum()).backward()
        return output, hn, input.grad, [w.grad for w in module.parameters()]

    *_, grads = assert_agree(run)
    assert all(g.eq(0).all() for g in grads)


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


# In-place changes between forward and backward.


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


# Tools around backward.


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


# Batches of gradients, forward mode, and torch.func.


def loss_of(module: nn.Module) -> Callable[..., Tensor]:
    def loss(weights: dict[str, Tensor], input: Tensor) -> Tensor:
        output, hn = torch.func.functional_call(module, weights, (input,))
        return output.square().sum() + hn.sin().sum()

    return loss


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in module.named_parameters()}


def batched_gradients(module: nn.Module, input: Tensor) -> object:
    input = input.requires_grad_()
    output, _ = module(input)
    grads = torch.eye(output.numel())[:4].view(4, *output.shape)
    return torch.autograd.grad(output, [input, *module.parameters()], grads, is_grads_batched=True)


def forward_mode(module: nn.Module, input: Tensor) -> object:
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(input, torch.ones_like(input))
        output, hn = module(dual)
        return [tuple(forward_ad.unpack_dual(y)) for y in (output, hn)]


def forward_mode_of_a_weight(module: nn.Module, input: Tensor) -> object:
    weight = module.weight_hh_l0.detach()
    del module.weight_hh_l0
    with forward_ad.dual_level():
        module.weight_hh_l0 = forward_ad.make_dual(weight, torch.ones_like(weight))
        return tuple(forward_ad.unpack_dual(module(input)[0]))


def forward_over_reverse(module: nn.Module, input: Tensor) -> object:
    input = input.requires_grad_()
    output, _ = module(input)
    with forward_ad.dual_level():
        grads = forward_ad.make_dual(torch.ones_like(output), torch.full_like(output, 2.0))
        (grad,) = torch.autograd.grad(output, input, grads)
        return tuple(forward_ad.unpack_dual(grad))


TRANSFORMS = {
    "is_grads_batched": batched_gradients,
    "jacobian": lambda m, x: torch.autograd.functional.jacobian(lambda x: m(x)[0], x),
    "jacobian, vectorized": lambda m, x: torch.autograd.functional.jacobian(
        lambda x: m(x)[0], x, vectorize=True
    ),
    "jacobian, forward mode": lambda m, x: torch.autograd.functional.jacobian(
        lambda x: m(x)[0], x, vectorize=True, strategy="forward-mode"
    ),
    "autograd.functional.hessian": lambda m, x: torch.autograd.functional.hessian(
        lambda x: m(x)[0].square().sum(), x
    ),
    "forward mode": forward_mode,
    "forward mode of a weight": forward_mode_of_a_weight,
    "forward mode in backward": forward_over_reverse,
    "grad": lambda m, x: torch.func.grad(loss_of(m), argnums=(0, 1))(weights_of(m), x),
    "vjp": lambda m, x: torch.func.vjp(m, x)[1]((torch.ones(T, B, H), torch.ones(2, B, H))),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (torch.ones_like(x),)),
    "jacrev": lambda m, x: torch.func.jacrev(lambda x: m(x)[0])(x),
    "jacfwd": lambda m, x: torch.func.jacfwd(lambda x: m(x)[0])(x),
    "hessian": lambda m, x: torch.func.hessian(loss_of(m), argnums=1)(weights_of(m), x),
    "grad of grad": lambda m, x: torch.func.grad(
        lambda x: torch.func.grad(loss_of(m), argnums=1)(weights_of(m), x).square().sum()
    )(x),
    "functionalize": lambda m, x: torch.func.functionalize(lambda x: m(x)[0].mul_(2))(x),
    "grad with kernels outside": lambda m, x: (m(x), torch.func.grad(loss_of(m))(weights_of(m), x)),
}


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    assert_agree(lambda rnn: TRANSFORMS[name](rnn(I, H, 2), x()), tolerance=1e-5)


def test_vmap_of_what_nn_rnn_cannot() -> None:
    module, inputs, hx = RNN(I, H, 2, bidirectional=True), x(3, T, B, I), x(4, B, H)
    output, hn = torch.vmap(module, (0, None))(inputs, hx)
    for i, input in enumerate(inputs):
        assert_same((output[i], hn[i]), module(input, hx))


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_with_dropout(randomness: str) -> None:
    module, inputs = RNN(I, H, 2, dropout=0.5), x(1, T, B, I).expand(3, T, B, I)
    output, _ = torch.vmap(module, randomness=randomness)(inputs)
    assert torch.equal(output[0], output[1]) == (randomness == "same")


# Autocast.

CASTS: dict[str, Callable[[type], Any]] = {
    "float32": lambda rnn: rnn(I, H, 2)(x()),
    "hx": lambda rnn: rnn(I, H)(x(), x(1, B, H)),
    "bfloat16 input": lambda rnn: rnn(I, H)(x().bfloat16()),
    "float16 input": lambda rnn: rnn(I, H)(x().half(), x(1, B, H)),
    "bfloat16 module": lambda rnn: rnn(I, H, dtype=torch.bfloat16)(x()),
    "float64 module": lambda rnn: rnn(I, H, **DOUBLE)(x(**DOUBLE)),
    "no batch": lambda rnn: rnn(I, H)(x(T, I)),
    "both directions": lambda rnn: rnn(I, H, bidirectional=True, batch_first=True)(x()),
    "dropout": lambda rnn: rnn(I, H, 2, dropout=0.5)(x()),
    "packed": lambda rnn: rnn(I, H, 2)(
        pack_padded_sequence(x(), torch.tensor([3, 5]), enforce_sorted=False)
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASTS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    def run(cls: type) -> object:
        modules = []

        def make(*args: Any, **options: Any) -> nn.Module:
            modules.append(cls(*args, **options))
            return modules[0]

        with torch.autocast("cpu", dtype):
            output, hn = CASTS[name](make)
        data = output.data if isinstance(output, PackedSequence) else output
        (data.float().square().sum() + hn.float().sum()).backward()
        return output, hn, {k: w.grad for k, w in modules[0].named_parameters()}

    _, _, grads = assert_agree(run, tolerance=5e-2)
    if name == "float32":
        assert all(g.dtype == torch.float32 for g in grads.values())


CAST_ERRORS = {
    "float64 input": lambda rnn: rnn(I, H)(x(**DOUBLE)),
    "float64 hx": lambda rnn: rnn(I, H)(x(), x(1, B, H, **DOUBLE)),
    "float32 input of a float64 module": lambda rnn: rnn(I, H, **DOUBLE)(x()),
}


@pytest.mark.parametrize("name", CAST_ERRORS)
def test_autocast_errors(name: str) -> None:
    def run(cls: type) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return CAST_ERRORS[name](cls)

    assert_raise_alike(run)


def test_autocast_of_another_device_lifts_the_check_of_dtypes() -> None:
    def run(cls: type) -> object:
        torch.set_autocast_enabled("cuda", True)
        try:
            return cls(I, H)(x().half())
        finally:
            torch.set_autocast_enabled("cuda", False)

    assert_raise_alike(run)


def test_autocast_keeps_cast_weights() -> None:
    module, input = RNN(I, H), x()
    with torch.autocast("cpu", torch.bfloat16):
        first, _ = module(input)
        with torch.autocast("cpu", enabled=False):
            second, _ = module(input)
        third, _ = module(input)
    assert (first.dtype, second.dtype, third.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    )
    (first.sum() + third.sum()).backward()
    assert module.weight_hh_l0.grad.dtype == torch.float32
