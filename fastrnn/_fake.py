"""Shapes of the operators' results, for torch.compile and torch.export, and their FLOPs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from fastrnn import _checks
from fastrnn._checks import Options
from fastrnn._extras import OperatorExtras


def _sizes(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], options: Options
) -> tuple[list[Any], list[Any]]:
    """Shapes of ``output``, time-major, and of ``hn``."""
    _checks.check_count(weights, options.has_biases, options.num_layers, options.bidirectional)
    batch_sizes, num_directions = options.batch_sizes, 2 if options.bidirectional else 1
    hidden_size = weights[1].size(0)
    batch: Any
    if batch_sizes is None:
        rows = list(input.shape[:2])
        if options.batch_first:
            rows.reverse()
        batch = rows[1]
    elif isinstance(batch_sizes, FakeTensor):
        rows = [input.size(0)]
        batch = hx.size(1) if hx is not None else torch.library.get_ctx().new_dynamic_size()
    else:
        rows = [int(batch_sizes.sum())]
        batch = int(batch_sizes[0])
    states = options.num_layers * num_directions
    return [*rows, num_directions * hidden_size], [states, batch, hidden_size]


def _check_devices(options: Options, input: Tensor, *others: Tensor | None) -> None:
    """Check that all are on the input's device: a single tensor on meta brings the call here."""
    sizes = options.batch_sizes
    if sizes is not None and sizes.device.type == "cpu":
        sizes = None
    for x in (*others, sizes, options.lengths, options.reset, options.dropout_mask):
        if x is not None and x.device != input.device:
            raise RuntimeError(
                f"rnn: expected all tensors on {input.device}, got one on {x.device}"
            )


@torch.library.register_fake("fastrnn::rnn_forward", allow_override=True)  # type: ignore[untyped-decorator]
def _rnn_forward_fake(
    input: Tensor, hx: Tensor | None, weights: list[Tensor], *args: Any
) -> tuple[Tensor, Tensor, Tensor]:
    options, save = Options(*args[:-1]), args[-1]
    _check_devices(options, input, hx, *weights)
    shape, state = _sizes(input, hx, weights, options)
    output = input.new_empty(shape)
    saved = input.new_empty([options.num_layers if save else 0, math.prod(shape[:-1]), shape[-1]])
    return output.transpose(0, 1) if options.batch_first else output, input.new_empty(state), saved


@torch.library.register_fake("fastrnn::rnn", allow_override=True)  # type: ignore[untyped-decorator]
def _rnn_fake(*args: Any) -> tuple[Tensor, Tensor]:
    output, hn, _ = _rnn_forward_fake(*args, False)
    return output, hn


@torch.library.register_fake("fastrnn::rnn_backward", allow_override=True)  # type: ignore[untyped-decorator]
def _rnn_backward_fake(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    saved: Tensor,
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    *args: Any,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    options, (want_input, want_hx, want_weights) = Options(*args[:-3]), args[-3:]
    _check_devices(options, input, grad_output, grad_hn, saved, hx, *weights)
    _checks.check_count(weights, options.has_biases, options.num_layers, options.bidirectional)
    return (
        input.new_empty(input.shape if want_input else [0]),
        input.new_empty(_sizes(input, hx, weights, options)[1] if want_hx else [0]),
        [w.new_empty(w.shape) for w in weights] if want_weights else [],
    )


_EXTRAS = len(OperatorExtras._fields)


@torch.library.register_fake("fastrnn::rnn_extended_forward", allow_override=True)  # type: ignore[untyped-decorator]
def _rnn_extended_forward_fake(
    input: Tensor, hx: Tensor | None, weights: list[Tensor], *args: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    options, extras = Options(*args[:-_EXTRAS]), OperatorExtras(*args[-_EXTRAS:])
    _check_devices(options, input, extras.gates, extras.alpha)
    output, hn, saved = _rnn_forward_fake(input, hx, weights, *options, True)
    rows = output.transpose(0, 1) if options.batch_first else output
    layers = [options.num_layers, *rows.shape] if extras.return_layers else [0]
    if extras.keeps():
        saved = saved.new_empty([2 * options.num_layers, *saved.shape[1:]])
    return output, hn, input.new_empty(layers), saved


@torch.library.register_fake("fastrnn::rnn_extended", allow_override=True)  # type: ignore[untyped-decorator]
def _rnn_extended_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    output, hn, layers, _ = _rnn_extended_forward_fake(*args)
    return output, hn, layers


@torch.library.register_fake("fastrnn::rnn_extended_backward", allow_override=True)  # type: ignore[untyped-decorator]
def _rnn_extended_backward_fake(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    grad_layers: Tensor | None,
    saved: Tensor,
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    *args: Any,
) -> tuple[Tensor, Tensor, list[Tensor], Tensor, Tensor]:
    args, wanted = args[:-5], args[-5:]
    options, extras = args[:-_EXTRAS], OperatorExtras(*args[-_EXTRAS:])
    _check_devices(Options(*options), input, grad_layers, extras.gates, extras.alpha)
    found = _rnn_backward_fake(
        grad_output, grad_hn, saved, input, hx, weights, *options, *wanted[:3]
    )
    gates, alpha = (
        input.new_empty([0]) if x is None or not want else x.new_empty(x.shape)
        for x, want in zip((extras.gates, extras.alpha), wanted[3:], strict=True)
    )
    return *found, gates, alpha


def _forward_flops(
    input: Sequence[int], hx: Any, weights: Sequence[Sequence[int]], *args: Any, **kwargs: Any
) -> int:
    """Two operations for each element of a weight and each row of the input."""
    return sum(2 * math.prod([*input[:-1], *w]) for w in weights if len(w) == 2)


def _backward_flops(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    saved: Tensor,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *args: Any,
    out_val: Any = None,
) -> int:
    """As many as forward for the weights, and again for the states and inputs that need it."""
    options, (want_input, want_hx, want_weights) = Options(*args[:-3]), args[-3:]
    matrices = [w for w in weights if w.dim() == 2]  # w_ih, w_hh, w_ih, ...
    rows = math.prod(input.shape[:-1])
    sizes = options.batch_sizes
    if sizes is None:
        batch = input.size(0 if options.batch_first else 1)
    else:  # a compiler has no values
        batch = 0 if isinstance(sizes, FakeTensor) else int(sizes[0])
    lowest = 2 if options.bidirectional else 1
    flops = 0
    for i, (w_ih, w_hh) in enumerate(zip(matrices[::2], matrices[1::2], strict=True)):
        if want_weights:
            flops += 2 * rows * (w_ih.numel() + w_hh.numel())
        flops += 2 * (rows if want_hx else rows - batch) * w_hh.numel()
        if i >= lowest or want_input:
            flops += 2 * rows * w_ih.numel()
    return flops


def _extended_backward_flops(
    grad_output: Any, grad_hn: Any, grad_layers: Any, *args: Any, out_val: Any = None
) -> int:
    """Of the products, as a plain call's."""
    options, wanted = args[: -5 - _EXTRAS], args[-5:-2]
    return _backward_flops(grad_output, grad_hn, *options, *wanted)


def _register_flops(name: str, formula: Callable[..., int], get_raw: bool = False) -> None:
    operator = getattr(torch.ops.fastrnn, name)
    flop_registry.pop(operator, None)  # from before this module was reloaded
    register_flop_formula([operator], get_raw=get_raw)(formula)


_register_flops("rnn", _forward_flops)
_register_flops("rnn_forward", _forward_flops)
_register_flops("rnn_backward", _backward_flops, get_raw=True)
_register_flops("rnn_extended", _forward_flops)
_register_flops("rnn_extended_forward", _forward_flops)
_register_flops("rnn_extended_backward", _extended_backward_flops, get_raw=True)
