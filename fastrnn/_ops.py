"""What torch needs to know of the operators: checks, fake kernels, and when no kernel serves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils.flop_counter import register_flop_formula

from fastrnn import _C, reference

KERNEL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
AUTOCAST_DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # the others stay as they are
# Asked once: torch.compile of torch 2.11 cannot trace the question.
AUTOCAST_DEVICES = tuple(
    device for device in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(device)
)
WITH_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key("fastrnn::rnn", "CUDA")
# On meta the operators have shapes only.
KERNEL_DEVICES = ("cpu", "meta", "cuda") if WITH_CUDA else ("cpu", "meta")


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


def check_rank(input: Tensor, hx: Tensor | None) -> None:
    """Check the number of dimensions, in nn.RNN's words."""
    dim = input.dim()
    if dim not in (2, 3):
        raise ValueError(f"RNN: Expected input to be 2D or 3D, got {dim}D tensor instead")
    if hx is not None and hx.dim() != dim:
        kind = "unbatched" if dim == 2 else "batched"
        raise RuntimeError(
            f"For {kind} {dim}-D input, hx should also be {dim}-D but got {hx.dim()}-D tensor"
        )


def check_args(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    """Check batched or packed arguments, in nn.RNN's order and words where it has a check."""
    for w in weights:
        if not isinstance(w, Tensor):
            raise TypeError(f"rnn: expected weights that are tensors, got {type(w).__name__}")
    w_ih, w_hh = weights[0], weights[1]
    if input.dtype != w_ih.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({w_ih.dtype}). "
            f"Convert input: input.to({w_ih.dtype}), or convert model: model.to({input.dtype})"
        )
    expected_dim = 3 if batch_sizes is None else 2
    if input.dim() != expected_dim:
        raise RuntimeError(f"input must have {expected_dim} dimensions, got {input.dim()}")
    if input.size(-1) != w_ih.size(-1):
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {w_ih.size(-1)}, got {input.size(-1)}"
        )
    if batch_sizes is not None:
        if torch._C._functorch.is_batchedtensor(batch_sizes):
            raise RuntimeError(
                "rnn: vmap over the lengths of packed sequences is not supported: "
                "give padded input with lengths= instead"
            )
        if hx is not None and not torch.compiler.is_compiling():  # a compiler has no values
            check_state(hx, int(batch_sizes[0]), w_hh, num_layers, bidirectional)
    else:
        seq_len, batch = input.shape[:2][::-1] if batch_first else input.shape[:2]
        if hx is not None:
            check_state(hx, batch, w_hh, num_layers, bidirectional)
        if seq_len == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        check_marks("lengths", lengths, torch.int64, (batch,), input)
        check_marks("reset", reset, torch.bool, tuple(input.shape[:2]), input)
    check_devices(input, hx, weights)


def check_devices(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> None:
    """Check that all is where the input is, in nn.RNN's words."""
    for kind, other in [("hidden", hx), *[("parameter", w) for w in weights]]:
        if other is not None and other.device != input.device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, "
                f"found input tensor at {input.device} and {kind} tensor at {other.device}"
            )


def check_state(hx: Tensor, batch: int, w_hh: Tensor, num_layers: int, bidirectional: bool) -> None:
    """Check the size of the initial state, in nn.RNN's words."""
    expected = (num_layers * (2 if bidirectional else 1), batch, w_hh.size(-1))
    if tuple(hx.size()) != expected:
        raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.size())}")


def as_lengths(lengths: Any, input: Tensor) -> Any:
    """Integers of any type, or a list of them, as int64; all else as it is, for the checks."""
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32)
    if isinstance(lengths, Tensor):
        return lengths.to(torch.int64) if lengths.dtype in integers else lengths
    if isinstance(lengths, list | tuple) and all(isinstance(n, int) for n in lengths):
        return torch.tensor(lengths, dtype=torch.int64, device=input.device)
    return lengths


def check_marks(
    name: str, marks: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], input: Tensor
) -> None:
    """Check ``lengths`` or ``reset``."""
    if marks is None:
        return
    if not isinstance(marks, Tensor):
        raise TypeError(f"rnn: expected {name} to be a tensor, got {type(marks).__name__}")
    if marks.dtype != dtype or tuple(marks.shape) != shape:
        raise ValueError(
            f"rnn: expected {name} of dtype {dtype} and shape {shape}, "
            f"got {marks.dtype} and {tuple(marks.shape)}"
        )
    if marks.device != input.device:
        raise ValueError(f"rnn: expected {name} on {input.device}, got {marks.device}")


def check_lengths(lengths: Tensor, seq_len: int) -> None:
    """Check values on the CPU as the kernels do, also those that a transform has wrapped."""
    if torch.compiler.is_compiling() or lengths.device.type != "cpu":
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        lengths = torch._C._functorch.get_unwrapped(lengths)
    if isinstance(lengths, FakeTensor):
        return
    for length in lengths.flatten().tolist():
        if not 0 <= length <= seq_len:
            raise ValueError(f"rnn: expected lengths between 0 and {seq_len}, got {length}")


def check_cell_rank(input: Tensor, hx: Tensor | None) -> None:
    """Check the number of dimensions, in nn.RNNCell's words."""
    if input.dim() not in (1, 2):
        raise ValueError(f"RNNCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is not None and hx.dim() not in (1, 2):
        raise ValueError(f"RNNCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")


def check_cell_sizes(input: Tensor, hx: Tensor | None, w_ih: Tensor, w_hh: Tensor) -> None:
    """Check the sizes of (B, I) and (B, H), in nn.RNNCell's words."""
    if input.size(1) != w_ih.size(1):
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(1)} expected {w_ih.size(1)}"
        )
    if hx is None:
        return
    if input.size(0) != hx.size(0):
        raise RuntimeError(
            f"Input batch size {input.size(0)} doesn't match hidden0 batch size {hx.size(0)}"
        )
    if hx.size(1) != w_hh.size(1):
        raise RuntimeError(
            f"hidden0 has inconsistent hidden_size: got {hx.size(1)}, expected {w_hh.size(1)}"
        )


def _sizes(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[list[Any], list[Any]]:
    """Shapes of ``output``, time-major, and of ``hn``."""
    num_directions = 2 if bidirectional else 1
    hidden_size = weights[1].size(0)
    batch: Any
    if batch_sizes is None:
        rows = list(input.shape[:2])
        if batch_first:
            rows.reverse()
        batch = rows[1]
    elif isinstance(batch_sizes, FakeTensor):
        rows = [input.size(0)]
        batch = hx.size(1) if hx is not None else torch.library.get_ctx().new_dynamic_size()
    else:
        rows = [int(batch_sizes.sum())]
        batch = int(batch_sizes[0])
    return [*rows, num_directions * hidden_size], [num_layers * num_directions, batch, hidden_size]


@torch.library.register_fake("fastrnn::rnn_forward")  # type: ignore[untyped-decorator]
def _rnn_forward_fake(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    has_biases: bool,
    num_layers: int,
    relu: bool,
    bidirectional: bool,
    batch_first: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape, state = _sizes(input, hx, weights, batch_sizes, num_layers, bidirectional, batch_first)
    output = input.new_empty(shape)
    rows = shape[0] if batch_sizes is not None else shape[0] * shape[1]
    saved = input.new_empty([num_layers if save else 0, rows, shape[-1]])
    return output.transpose(0, 1) if batch_first else output, input.new_empty(state), saved


@torch.library.register_fake("fastrnn::rnn")  # type: ignore[untyped-decorator]
def _rnn_fake(*args: Any) -> tuple[Tensor, Tensor]:
    output, hn, _ = _rnn_forward_fake(*args, save=False)
    return output, hn


@torch.library.register_fake("fastrnn::rnn_backward")  # type: ignore[untyped-decorator]
def _rnn_backward_fake(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    saved: Tensor,
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    has_biases: bool,
    num_layers: int,
    relu: bool,
    bidirectional: bool,
    batch_first: bool,
    want_input: bool,
    want_hx: bool,
    want_weights: bool,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    return (
        input.new_empty(input.shape if want_input else [0]),
        input.new_empty(hx.shape if want_hx and hx is not None else [0]),
        [w.new_empty(w.shape) for w in weights] if want_weights else [],
    )


@register_flop_formula([torch.ops.fastrnn.rnn, torch.ops.fastrnn.rnn_forward])
def _rnn_forward_flops(
    input: Sequence[int], hx: Any, weights: Sequence[Sequence[int]], *args: Any, **kwargs: Any
) -> int:
    """Two operations for each element of a weight and each row of the input."""
    return sum(2 * math.prod([*input[:-1], *w]) for w in weights if len(w) == 2)


@register_flop_formula([torch.ops.fastrnn.rnn_backward])
def _rnn_backward_flops(
    grad_output: Any,
    grad_hn: Any,
    saved: Any,
    input: Sequence[int],
    hx: Any,
    weights: Sequence[Sequence[int]],
    *args: Any,
    **kwargs: Any,
) -> int:
    return 2 * _rnn_forward_flops(input, hx, weights)


_C.set_reference_backward(reference.rnn_backward)
