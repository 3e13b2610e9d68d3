"""Which path a call takes, and why: our operator, torch's own, or the reference."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import _C, _checks, _onnx, reference
from fastrnn._checks import Options
from fastrnn._extras import OperatorExtras

KERNEL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
AUTOCAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # the others stay as they are
# Asked once, here: torch.compile in torch 2.11 cannot trace this function.
AUTOCAST_DEVICES = tuple(
    device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)
)
HAS_OPERATORS = hasattr(torch.ops.fastrnn, "rnn")  # else torch is newer than the wheel
WITH_CUDA = HAS_OPERATORS and torch._C._dispatch_has_kernel_for_dispatch_key("fastrnn::rnn", "CUDA")
# On meta the operators compute shapes only.
KERNEL_DEVICES = ("cpu", "meta", "cuda") if WITH_CUDA else ("cpu", "meta")


def run(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float = 0.0,
    reset_state: Tensor | None = None,
) -> tuple[Any, Any]:
    """Call our operator, or torch's if ours cannot serve, or the reference if neither can."""
    for_onnx = is_for_onnx()
    if for_onnx:
        _onnx.check(options, reset_state)
        if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return run_torch(input, hx, weights, options, dropout)
    tensors = (input, hx, *weights)
    no_kernel = why_no_kernel(tensors)
    marked = options.lengths is not None or options.reset is not None
    if no_kernel is not None and not marked and why_only_reference(tensors) is None:
        return run_torch(input, hx, weights, options, dropout)
    if dropout > 0.0 and options.num_layers > 1 and not for_onnx:
        options = options._replace(dropout_mask=_dropout_mask(input, weights, options, dropout))
    if no_kernel is None and reset_state is None and not for_onnx:
        return torch.ops.fastrnn.rnn(input, hx, weights, *options)  # type: ignore[no-any-return]
    if options.lengths is not None:
        _checks.check_lengths(options.lengths, input.size(1 if options.batch_first else 0))
    given = (input, hx, options.dropout_mask, reset_state, *weights)
    with cast_once(given) as (input, hx, mask, reset_state, *weights):  # type: ignore[assignment]
        options = options._replace(dropout_mask=mask)
        if for_onnx:
            return _onnx.rnn(input, hx, weights, *options, dropout=dropout)
        return reference.rnn(input, hx, weights, *options, reset_state=reset_state)


@contextlib.contextmanager
def cast_once(given: Sequence[Tensor | None]) -> Iterator[Sequence[Tensor | None]]:
    """Under autocast, cast everything once and turn it off inside, as the operator does."""
    device = next(x for x in given if x is not None).device.type
    if not autocast_is_on(device) or any(
        x is not None and x.dtype not in AUTOCAST_DTYPES for x in given
    ):
        yield given
        return
    dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        yield [None if x is None else x.to(dtype) for x in given]


def run_extended(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
    extras: OperatorExtras,
) -> tuple[Any, ...]:
    """Call the operator ``rnn_extended``, or the reference where it has no kernel."""
    if is_for_onnx():
        raise ValueError(
            "fastrnn: ONNX's RNN operator has no leak, no gates from outside, and returns the last "
            "layer's output only. Export a plain RNN without igates and return_layers"
        )
    tensors = (input, hx, *weights, extras.gates)
    if dropout > 0.0 and options.num_layers > 1:
        options = options._replace(dropout_mask=_dropout_mask(input, weights, options, dropout))
    # A float32 alpha beside 16 bits is no mixture of dtypes.
    by_kernel = why_no_kernel(tensors) is None and why_only_reference([extras.alpha]) is None
    if by_kernel and reset_state is None:
        output, hn, layers = torch.ops.fastrnn.rnn_extended(input, hx, weights, *options, *extras)
    else:
        if options.lengths is not None:
            _checks.check_lengths(options.lengths, input.size(1 if options.batch_first else 0))
        given = (input, hx, options.dropout_mask, reset_state, extras.gates, *weights)
        with cast_once(given) as (input, hx, mask, reset_state, gates, *weights):  # type: ignore[assignment]
            options, extras = options._replace(dropout_mask=mask), extras._replace(gates=gates)
            output, hn, layers = reference.rnn_extended(
                input, hx, weights, *options, *extras, reset_state=reset_state
            )
    if not extras.return_layers:
        return output, hn
    return output, hn, layers.transpose(1, 2) if options.batch_first else layers


def run_torch(
    input: Tensor, hx: Tensor | None, weights: list[Tensor], options: Options, dropout: float
) -> tuple[Any, Any]:
    """Call the operator behind ``torch.nn.RNN`` (on CUDA, cuDNN), as csrc/by_torch.cpp does."""
    batch_sizes = options.batch_sizes
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if hx is None:
        states = options.num_layers * (2 if options.bidirectional else 1)
        batch: Any = input.size(0 if options.batch_first else 1)
        if batch_sizes is not None:
            batch = batch_sizes[0] if tracing else int(batch_sizes[0])
        hx = input.new_zeros(states, batch, weights[1].shape[-1])
    hx = hx.contiguous()  # else cuDNN refuses it
    operator = torch.rnn_relu if options.nonlinearity == "relu" else torch.rnn_tanh
    # In eval mode cuDNN would refuse a backward pass; without dropout the modes do not differ.
    config = (options.has_biases, options.num_layers, dropout, True, options.bidirectional)
    if batch_sizes is not None:
        # Rows beyond these would count as the last step's. A trace would record the number.
        data = input if tracing else input[: int(batch_sizes.sum())]
        return operator(data, batch_sizes, hx, weights, *config)
    return operator(input, hx, weights, *config, options.batch_first)


def _dropout_mask(input: Tensor, weights: list[Tensor], options: Options, p: float) -> Tensor:
    """Draw as nn.RNN does, once for each layer but the last, so a seed gives the same masks."""
    rows = input.transpose(0, 1) if options.batch_first else input
    features = weights[1].size(-1) * (2 if options.bidirectional else 1)
    ones = input.new_ones(*rows.shape[:-1], features)
    return torch.stack(
        [torch.nn.functional.dropout(ones, p) for _ in range(options.num_layers - 1)]
    )


def why_only_reference(tensors: Iterable[Tensor | None]) -> str | None:
    """Say why not even torch's own operator can serve a call; None if it can."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
        for x in tensors
        if x is not None
    ):
        return "an argument carries a forward-mode tangent"
    return None


def why_no_kernel(tensors: Iterable[Tensor | None]) -> str | None:
    """Say why none of our kernels can serve a call with these tensors; None if one can."""
    given = [x for x in tensors if x is not None]
    why = why_only_reference(given)
    if why is not None:
        return why
    if not HAS_OPERATORS:
        return f"this wheel has no library for torch {torch.__version__}"
    dtypes = {x.dtype for x in given}
    for dtype in dtypes:
        if dtype not in KERNEL_DTYPES:
            return f"no kernel for {dtype}"
    # A trace would record the sizes.
    if not torch.jit.is_tracing() and any(x.shape[-1:] == (0,) for x in given):  # type: ignore[attr-defined, no-untyped-call]
        return "the input or the state has no features"
    for x in given:
        if x.layout != torch.strided:
            return f"no kernel for {x.layout}"
    device = given[0].device.type
    if device not in KERNEL_DEVICES:
        return f"no kernel for {device} in this build"
    if device == "cuda":
        why_not: str = _why_no_cuda_kernels(given[0].get_device())
        if why_not:
            return why_not
    # Autocast leaves float64 as it is.
    if len(dtypes) > 1 and (torch.float64 in dtypes or not autocast_is_on(device)):
        return "the dtypes differ"  # an error, which torch's own operators raise in their words
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_for_onnx() -> bool:
    """Whether ``torch.onnx.export`` makes this call; its own flag is shared by all threads."""
    if not torch.onnx.is_in_onnx_export():
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("torch.onnx."):
        frame = frame.f_back
    return frame is not None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _why_no_cuda_kernels(device: int) -> str:
    # Without a GPU, a CUDA tensor comes from a compiler and only has a shape.
    return _C.cuda_why_no_kernels(device) if torch.cuda.is_available() else ""


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a device type."""
    return device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


_C.set_reference_backward(reference.rnn_backward)
_C.set_extended_reference_backward(reference.rnn_extended_backward)
