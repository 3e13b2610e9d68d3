"""Modes and transforms of torch that look at operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_agree, assert_raise_alike, assert_same
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastrnn import RNN


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_dispatch_mode_sees_the_operators() -> None:
    module, input = RNN(I, H), x()
    with Names() as names:
        output, _ = module(input)
        output.sum().backward()
    assert "fastrnn::rnn_forward" in names.seen
    assert "fastrnn::rnn_backward" in names.seen
    with torch.no_grad(), Names() as names:
        module(input)
    assert names.seen == ["fastrnn::rnn"]


def test_function_mode_sees_the_call() -> None:
    from torch.overrides import TorchFunctionMode

    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    module, input = RNN(I, H), x()
    expected = module(input)
    with Mode():
        result = module(input)
    assert_same(result, expected)
    assert any("rnn" in name for name in seen)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=str)
def test_fake_tensors_forward_and_backward(options: dict[str, bool]) -> None:
    def run(cls: type) -> object:
        with FakeTensorMode():
            module, input = cls(I, H, 2, **options), x(requires_grad=True)
            output, hn = module(input)
            (output.sum() + hn.sum()).backward()
            tensors = [output, hn, input.grad, *(w.grad for w in module.parameters())]
            return [(tuple(y.shape), y.stride(), y.dtype, y.device) for y in tensors]

    assert_agree(run)


def test_fake_packed_input() -> None:
    with FakeTensorMode() as mode:
        module, data, hx = RNN(I, H), x(8, I, requires_grad=True), x(1, 2, H)
        sizes = mode.from_tensor(torch.tensor([2, 2, 2, 1, 1]))
        output, hn, _ = torch.ops.fastrnn.rnn_forward(
            data,
            hx,
            module._flat_weights,
            sizes,
            None,
            None,
            None,
            True,
            1,
            "tanh",
            False,
            False,
            True,
        )
    assert output.shape == (8, H)
    assert hn.shape == (1, 2, H)


def test_make_fx() -> None:
    module, input = RNN(I, H, 2), x()
    graph = make_fx(lambda x: module(x)[0], tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        input
    )
    assert "fastrnn" in graph.code
    assert graph(x(9, 4, I)).shape == (9, 4, H)


# nn.RNN's reverse direction takes products of rows of packed sequences that have not begun.
@pytest.mark.parametrize(
    ("options", "packed"),
    [({}, False), ({}, True), ({"bidirectional": True, "bias": False}, False)],
    ids=["forward", "packed", "bidirectional"],
)
@pytest.mark.parametrize("wanted", ["", "weights", "weights input", "input hx", "weights input hx"])
def test_flops_are_counted_as_for_nn_rnn(
    wanted: str, options: dict[str, bool], packed: bool
) -> None:
    def run(cls: type) -> int:
        module = cls(I, H, 2, **options).requires_grad_("weights" in wanted)
        data = x(requires_grad="input" in wanted)
        input = pack_padded_sequence(data, torch.tensor([T, T - 2])) if packed else data
        hx = x(2 * (2 if options else 1), B, H, requires_grad=True) if "hx" in wanted else None
        with FlopCounterMode(display=False) as mode:
            output, _ = module(input, hx)
            if wanted:
                (output.data if packed else output).sum().backward()
        return mode.get_total_flops()

    assert assert_agree(run) > 0


def test_flops_of_a_frozen_weight() -> None:
    """The kernels make the gradients of all weights or of none, of a frozen w_ih one column."""
    module = RNN(I, H)
    module.weight_ih_l0.requires_grad_(False)
    output, _ = module(x())
    with FlopCounterMode(display=False) as mode:
        output.sum().backward()
    weights, states = 2 * T * B * H * (1 + H), 2 * (T - 1) * B * H * H
    assert mode.get_total_flops() == weights + states


def test_expanded_weights() -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    def run(cls: type) -> Any:
        module = cls(I, H, 2, batch_first=True, bidirectional=True)
        output, hn = call_for_per_sample_grads(module)(x(B, T, I))
        (output.square().sum() + hn.sum()).backward()
        return output, hn, {name: w.grad_sample for name, w in module.named_parameters()}

    assert_agree(run)


def test_expanded_weights_of_packed_sequences() -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    def run(cls: type) -> Any:
        module = cls(I, H, batch_first=True)
        lengths = torch.tensor([T, T - 2])
        input = pack_padded_sequence(x(B, T, I), lengths, batch_first=True)
        output, _ = call_for_per_sample_grads(module, batch_size=B)(input)
        output.data.square().sum().backward()
        return output, {name: w.grad_sample for name, w in module.named_parameters()}

    assert_agree(run)


def test_expanded_weights_have_the_checks_of_a_call() -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    def run(cls: type) -> Any:
        module = cls(I, H, batch_first=True)
        return call_for_per_sample_grads(module, batch_size=B)(x(B, T, I), x(3, B, H))

    assert_raise_alike(run)


def test_expanded_weights_take_no_lengths() -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    call = call_for_per_sample_grads(RNN(I, H, batch_first=True), batch_size=B)
    with pytest.raises(ValueError, match="lengths and reset are not supported with exp"):
        call(x(B, T, I), lengths=[T, T - 1])
