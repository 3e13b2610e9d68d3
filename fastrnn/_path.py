"""Which way a call goes, through the operator or the reference, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import _C, _checks, reference
from fastrnn._checks import Options

KERNEL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
AUTOCAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # the others stay as they are
# Asked once: torch.compile of torch 2.11 cannot trace the question.
AUTOCAST_DEVICES = tuple(
    device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)
)
WITH_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key("fastrnn::rnn", "CUDA")
# On meta the operators have shapes only.
KERNEL_DEVICES = ("cpu", "meta", "cuda") if WITH_CUDA else ("cpu", "meta")


def run(
    input: Tensor, hx: Tensor | None, weights: list[Tensor], options: Options
) -> tuple[Any, Any]:
    """Call the operator, or the reference where the operator cannot serve."""
    if why_reference((input, hx, *weights)) is None:
        return torch.ops.fastrnn.rnn(input, hx, weights, *options)  # type: ignore[no-any-return]
    if options.lengths is not None:
        _checks.check_lengths(options.lengths, input.size(1 if options.batch_first else 0))
    device, given = input.device.type, (input, hx, options.dropout_mask, *weights)
    if not autocast_is_on(device) or any(
        x is not None and x.dtype not in AUTOCAST_DTYPES for x in given
    ):
        return reference.rnn(input, hx, weights, *options)
    # As the operator does it: cast all once, and no operator inside casts again.
    dtype = torch.get_autocast_dtype(device)
    input, hx, mask, *weights = (None if x is None else x.to(dtype) for x in given)  # type: ignore[assignment]
    with torch.autocast(device, enabled=False):
        return reference.rnn(input, hx, weights, *options._replace(dropout_mask=mask))


def why_reference(tensors: Iterable[Tensor | None]) -> str | None:
    """Say why a call with these tensors takes the reference path, or None if a kernel serves it."""
    if torch._C._are_functorch_transforms_active():
        return "a torch.func transform is active"
    given = [x for x in tensors if x is not None]
    if forward_ad._current_level >= 0 and any(
        forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
        for x in given
    ):
        return "an argument carries a forward-mode tangent"
    dtypes = {x.dtype for x in given}
    for dtype in dtypes:
        if dtype not in KERNEL_DTYPES:
            return f"no kernel for {dtype}"
    # A trace would record the size.
    if not torch.jit.is_tracing() and given[0].shape[-1:] == (0,):  # type: ignore[attr-defined, no-untyped-call]
        return "the input has no features"
    for x in given:
        if x.layout != torch.strided:
            return f"no kernel for {x.layout}"
    device = given[0].device.type
    if device not in KERNEL_DEVICES:
        return f"no kernel for {device} in this build"
    # Autocast leaves float64 as it is.
    if len(dtypes) > 1 and (torch.float64 in dtypes or not autocast_is_on(device)):
        return "the dtypes differ"  # an error, for which torch's own operators have the words
    return None


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a type of device."""
    return device in AUTOCAST_DEVICES and torch.is_autocast_enabled(device)


_C.set_reference_backward(reference.rnn_backward)
