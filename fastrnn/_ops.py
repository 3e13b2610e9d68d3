"""What torch needs to know about the operators: their checks, their fake kernels, and when the kernels cannot serve."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastrnn import _C, reference

KERNEL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def why_reference(tensors: Iterable[Tensor | None]) -> str | None:
    """Say why a call with these tensors takes the reference path, or None if a kernel serves it."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "a torch.func transform is active"
    given = [x for x in tensors if x is not None]
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(x).tangent is not None for x in given):
        return "an argument carries a forward-mode tangent"
    for x in given:
        if x.dtype not in KERNEL_DTYPES:
            return f"no kernel for {x.dtype}"
    return None


def check_rank(input: Tensor, hx: Tensor | None) -> None:
    """Check the number of dimensions, in nn.RNN's words."""
    if input.dim() not in (2, 3):
        raise ValueError(f"RNN: Expected input to be 2D or 3D, got {input.dim()}D tensor instead")
    if hx is not None and hx.dim() != input.dim():
        kind = "unbatched" if input.dim() == 2 else "batched"
        raise RuntimeError(
            f"For {kind} {input.dim()}-D input, hx should also be {input.dim()}-D but got {hx.dim()}-D tensor"
        )


def check_args(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> None:
    """Check batched or packed arguments, in nn.RNN's order and words where it has a check."""
    num_directions = 2 if bidirectional else 1
    w_ih, w_hh = weights[0], weights[1]
    hidden_size = w_hh.size(-1)
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
    batch = int(batch_sizes[0]) if batch_sizes is not None else input.size(0 if batch_first else 1)
    if hx is not None:
        expected = (num_layers * num_directions, batch, hidden_size)
        if tuple(hx.shape) != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(hx.shape)}")
        if hx.device != input.device:
            raise RuntimeError(
                "Input and hidden tensors are not at the same device, "
                f"found input tensor at {input.device} and hidden tensor at {hx.device}"
            )
        if hx.dtype != input.dtype and not torch._C._is_any_autocast_enabled():
            raise RuntimeError(
                f"RNN hx dtype ({hx.dtype}) does not match input dtype ({input.dtype}). Convert hx: hx.to({input.dtype})"
            )
    for w in weights:
        if w.device != input.device:
            raise RuntimeError(
                "Input and parameter tensors are not at the same device, "
                f"found input tensor at {input.device} and parameter tensor at {w.device}"
            )
    seq_len = batch_sizes.numel() if batch_sizes is not None else input.size(1 if batch_first else 0)
    if batch_sizes is None and seq_len == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if lengths is not None:
        if lengths.dtype != torch.int64 or tuple(lengths.shape) != (batch,):
            raise ValueError(
                f"rnn: expected lengths of dtype torch.int64 and shape ({batch},), "
                f"got {lengths.dtype} and {tuple(lengths.shape)}"
            )
        if lengths.device != input.device:
            raise ValueError(f"rnn: expected lengths on {input.device}, got {lengths.device}")
    if reset is not None:
        shape = (batch, seq_len) if batch_first else (seq_len, batch)
        if reset.dtype != torch.bool or tuple(reset.shape) != shape:
            raise ValueError(
                f"rnn: expected reset of dtype torch.bool and shape {shape}, got {reset.dtype} and {tuple(reset.shape)}"
            )
        if reset.device != input.device:
            raise ValueError(f"rnn: expected reset on {input.device}, got {reset.device}")


def _sizes(
    input: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    hx: Tensor | None,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[list[Any], list[Any]]:
    """Shapes of ``output``, time-major, and of ``hn``."""
    num_directions = 2 if bidirectional else 1
    hidden_size = weights[1].size(0)
    if batch_sizes is None:
        rows = [input.size(1), input.size(0)] if batch_first else [input.size(0), input.size(1)]
        batch = rows[1]
    else:
        rows = [input.size(0)]
        batch = hx.size(1) if hx is not None else torch.library.get_ctx().new_dynamic_size()
    return [*rows, num_directions * hidden_size], [num_layers * num_directions, batch, hidden_size]


@torch.library.register_fake("fastrnn::rnn_forward")
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
    shape, state = _sizes(input, weights, batch_sizes, hx, num_layers, bidirectional, batch_first)
    rows = input.size(0) if batch_sizes is not None else shape[0] * shape[1]
    output = input.new_empty(shape)
    saved = input.new_empty([num_layers if save else 0, rows, shape[-1]])
    return output.transpose(0, 1) if batch_first else output, input.new_empty(state), saved


@torch.library.register_fake("fastrnn::rnn")
def _rnn_fake(*args: Any) -> tuple[Tensor, Tensor]:
    output, hn, _ = _rnn_forward_fake(*args, save=False)
    return output, hn


@torch.library.register_fake("fastrnn::rnn_backward")
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
    _, state = _sizes(input, weights, batch_sizes, hx, num_layers, bidirectional, batch_first)
    return (
        input.new_empty(input.shape if want_input else [0]),
        input.new_empty(state if want_hx else [0]),
        [w.new_empty(w.shape) for w in weights] if want_weights else [],
    )


_C.set_reference_backward(reference.rnn_backward)
