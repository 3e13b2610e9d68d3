"""A call's arguments, checked in torch's words where torch has a check."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


class Options(NamedTuple):
    """What the operator takes after ``input``, ``hx`` and ``weights``, in its order."""

    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None
    dropout_mask: Tensor | None = None
    has_biases: bool = True
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bidirectional: bool = False
    batch_first: bool = False


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


def check_count(
    weights: Sequence[Tensor], has_biases: bool, num_layers: int, bidirectional: bool
) -> None:
    """Check the number of weights."""
    expected = num_layers * (4 if has_biases else 2) * (2 if bidirectional else 1)
    if len(weights) != expected:
        raise RuntimeError(
            f"rnn: expected {expected} weights for num_layers={num_layers}, bias={has_biases}, "
            f"bidirectional={bidirectional}, got {len(weights)}"
        )


def check_args(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    options: Options,
    reset_state: Tensor | None = None,
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
    batch_sizes = options.batch_sizes
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
        given = hx is not None or options.reset is not None
        if given and not torch.compiler.is_compiling():  # a compiler has no values
            batch = int(batch_sizes[0])
            check_states(hx, reset_state, batch, w_hh, options)
            check_marks("reset", options.reset, torch.bool, (batch_sizes.numel(), batch), input)
    else:
        seq_len, batch = input.shape[:2][::-1] if options.batch_first else input.shape[:2]
        check_states(hx, reset_state, batch, w_hh, options)
        if seq_len == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        check_marks("lengths", options.lengths, torch.int64, (batch,), input)
        check_marks("reset", options.reset, torch.bool, tuple(input.shape[:2]), input)
    check_devices(input, hx, weights)


def check_devices(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> None:
    """Check that all is where the input is, in nn.RNN's words."""
    for kind, other in [("hidden", hx), *[("parameter", w) for w in weights]]:
        if other is not None and other.device != input.device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, "
                f"found input tensor at {input.device} and {kind} tensor at {other.device}"
            )


def check_states(
    hx: Tensor | None, reset_state: Tensor | None, batch: int, w_hh: Tensor, options: Options
) -> None:
    """Check the sizes of the states, in nn.RNN's words."""
    states = options.num_layers * (2 if options.bidirectional else 1)
    expected = (states, batch, w_hh.size(-1))
    for name, state in (("hidden", hx), ("reset_state", reset_state)):
        if state is not None and tuple(state.size()) != expected:
            raise RuntimeError(f"Expected {name} size {expected}, got {list(state.size())}")


def as_lengths(lengths: Any, input: Tensor) -> Any:
    """Integers of any type, or a list of them, as int64; all else as it is, for the checks."""
    integers = (torch.uint8, torch.int8, torch.int16, torch.int32)
    if isinstance(lengths, Tensor):
        return lengths.to(torch.int64) if lengths.dtype in integers else lengths
    if isinstance(lengths, list | tuple) and all(isinstance(n, int) for n in lengths):
        return torch.tensor(lengths, dtype=torch.int64, device=input.device)
    return lengths


def as_reset(reset: Any, dim: int) -> Any:
    """``reset`` as a bool tensor with ``dim`` dimensions, from numbers or with a last one of 1."""
    if not isinstance(reset, Tensor):
        return reset
    if reset.dim() == dim + 1 and reset.size(-1) == 1:
        reset = reset.squeeze(-1)
    return reset if reset.dtype == torch.bool else reset != 0


def packed_reset(reset: Any, packed: PackedSequence, batch_first: bool) -> Any:
    """``reset`` of a packed sequence as (T, B) bool, its rows sorted as those of the sequence."""
    if isinstance(reset, PackedSequence):
        for name in ("batch_sizes", "sorted_indices"):
            theirs, ours = getattr(reset, name), getattr(packed, name)
            same = theirs is ours is None or (
                theirs is not None and ours is not None and torch.equal(theirs, ours)
            )
            if not same:
                raise ValueError(f"rnn: expected reset packed like the input, got other {name}")
        data = as_reset(reset.data, 1)
        sequence = PackedSequence(data, packed.batch_sizes)
        return pad_packed_sequence(sequence)[0]
    reset = as_reset(reset, 2)
    if not isinstance(reset, Tensor):
        return reset
    if batch_first:
        reset = reset.transpose(0, 1)
    indices = packed.sorted_indices
    return reset if indices is None else reset.index_select(1, indices)


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
