"""Checks of a call's arguments, in torch's words where torch has the same check."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence


class Options(NamedTuple):
    """The operator's arguments after ``input``, ``hx`` and ``weights``, in its order."""

    batch_sizes: Tensor | None = None
    lengths: Any = None  # a tensor, or what the caller passed
    reset: Any = None
    dropout_mask: Tensor | None = None
    has_biases: bool = True
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bidirectional: bool = False
    batch_first: bool = False


def check_types(**given: Any) -> None:
    """Check the types of a module's or a call's configuration."""
    for name, value in given.items():
        whole = name == "num_layers"
        fits = isinstance(value, numbers.Integral) if whole else type(value) is bool
        if not fits or (whole and isinstance(value, bool)):
            expected, got = "int" if whole else "bool", type(value).__name__
            if got == expected:  # NumPy's
                got = f"{type(value).__module__}.{got}"
            raise TypeError(f"{name} should be of type {expected}, got: {got}")


# What csrc/python_modules.h reads from a module's __dict__.
READ = (
    "_parameters", "_buffers", "_flat_weights", "_flat_weights_names", "training", "mode", "bias",
    "num_layers", "bidirectional", "batch_first", "dropout", "input_size", "hidden_size",
    "proj_size", "alpha", "form", "noise", "nonlinearity", "weight_ih", "weight_hh", "bias_ih",
    "bias_hh",
)  # fmt: skip


def is_overridden(cls: type, base: type) -> bool:
    """Whether a subclass of ``base`` has attributes that a module's ``__dict__`` does not show."""
    names = (*READ, "__getattribute__")
    return any(getattr(cls, name, None) is not getattr(base, name, None) for name in names)


def check_index(name: str, value: Any) -> None:
    """Check that a size is an integer of any type."""
    if not hasattr(value, "__index__"):
        raise TypeError(f"{name} should be of type int, got: {type(value).__name__}")


def check_dropout(dropout: Any) -> None:
    """Check that it is a probability."""
    if not isinstance(dropout, int | float):
        raise TypeError(f"dropout should be a number, got: {type(dropout).__name__}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout should be a probability between 0 and 1, got {dropout}")


def check_tensors(input: Any, hx: Any, reset_state: Any = None, *, op: str = "RNN") -> None:
    """Check the types of a call's tensors; raise AttributeError for the first two, as nn.RNN."""
    if not isinstance(input, Tensor):
        what = "a Tensor or a PackedSequence" if op == "RNN" else "a Tensor"
        came = got(input, "input")
        if isinstance(input, tuple) and len(input) == 2:
            came = "a tuple. If it is another RNN's (output, hn), pass output alone"
        raise AttributeError(f"{op}: expected input to be {what}, got {came}")
    if hx is not None and not isinstance(hx, Tensor):
        if isinstance(hx, tuple) and len(hx) == 2:
            came = "a tuple. An LSTM's state is (h, c), an RNN's is h alone: pass hx[0]"
        else:
            came = got(hx, "hx")
        raise AttributeError(f"{op}: expected hx to be a Tensor or None, got {came}")
    if reset_state is not None and not isinstance(reset_state, Tensor):
        came = got(reset_state, "reset_state")
        raise TypeError(f"{op}: expected reset_state to be a Tensor, got {came}")


def check_reset_state(reset_state: Any, reset: Any, *, op: str = "rnn") -> None:
    """Check that ``reset_state`` comes with ``reset``."""
    if reset_state is not None and reset is None:
        raise ValueError(
            f"{op}: reset_state is the state where reset is true. Expected reset as well, got None"
        )


def got(x: Any, name: str) -> str:
    """The type of an argument, and how to make it a tensor."""
    kind = type(x).__name__
    if isinstance(x, type):
        return f"the class {x.__name__}"
    if isinstance(x, PackedSequence):
        return f"{kind}. Convert it with pad_packed_sequence({name})"
    if isinstance(x, list | tuple):
        if x and all(isinstance(part, Tensor) for part in x):
            return f"{kind}. If its tensors have the same shape, convert it: torch.stack({name})"
        return f"{kind}. If it holds numbers, convert it: torch.tensor({name})"
    return f"{kind}. Convert it: torch.as_tensor({name})" if hasattr(x, "__array__") else kind


def reorder(x: Tensor, indices: Tensor) -> Tensor:
    """Reorder the rows of a state; for indices on meta, torch itself would make up values."""
    if isinstance(indices, Tensor) and indices.device != x.device:
        raise RuntimeError(
            f"RNN: expected the indices of the PackedSequence on {x.device}, got {indices.device}"
        )
    return x.index_select(1, indices)


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


def check_layout(input: Tensor, weights: Sequence[Any]) -> None:
    """Check that the input is dense; nn.RNN checks the dtype first."""
    if input.layout == torch.strided and not input.is_nested:
        return
    check_weights(weights)
    _check_input_dtype(input, weights[0])
    if input.is_nested:
        raise RuntimeError(
            "RNN: expected input to be a dense tensor, got a nested one. Pass sequences of "
            "different lengths as a padded tensor with lengths=, or as a PackedSequence"
        )
    raise RuntimeError(
        f"RNN: expected input to be a dense tensor, got {input.layout}. "
        "Convert it: input.to_dense()"
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


def check_weights(weights: Sequence[Any], *, op: str = "rnn") -> None:
    """Check that the weights are tensors."""
    for w in weights:
        if not isinstance(w, Tensor):
            raise TypeError(f"{op}: expected weights to be tensors, got {type(w).__name__}")


def _check_input_dtype(input: Tensor, w_ih: Tensor) -> None:
    if input.dtype != w_ih.dtype and not torch._C._is_any_autocast_enabled():
        advice = f", or convert model: model.to({input.dtype})"
        if not (input.is_floating_point() or input.is_complex()):
            advice = ". If it holds indices of words or classes, put an nn.Embedding before the RNN"
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({w_ih.dtype}). "
            f"Convert input: input.to({w_ih.dtype}){advice}"
        )


def check_args(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    options: Options,
    reset_state: Tensor | None = None,
) -> None:
    """Check batched or packed arguments, in nn.RNN's order and words where it has the check."""
    check_weights(weights)
    if options.num_layers > 0:
        check_count(weights, options.has_biases, options.num_layers, options.bidirectional)
    w_ih, w_hh = weights[0], weights[1]
    for i in (0, 1):
        if weights[i].dim() != 2:
            raise RuntimeError(
                f"rnn: expected weights[{i}] with 2 dimensions, got {weights[i].dim()}"
            )
    _check_input_dtype(input, w_ih)
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
                "pass padded input with lengths= instead"
            )
        given = hx is not None or reset_state is not None
        if given and not torch.compiler.is_compiling():  # a compiler has no values
            check_states(hx, reset_state, int(batch_sizes[0]), w_hh, options)
    else:
        seq_len, batch = input.shape[:2][::-1] if options.batch_first else input.shape[:2]
        check_states(hx, reset_state, batch, w_hh, options)
        if seq_len == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        check_lengths_given(options.lengths, batch, input)
        check_reset(options.reset, tuple(input.shape[:2]), input)
    check_devices(input, hx, weights)
    check_dtypes(input, hx, weights, reset_state)


def check_devices(input: Tensor, hx: Tensor | None, weights: Sequence[Tensor]) -> None:
    """Check that all tensors are on the input's device, in nn.RNN's words."""
    for kind, other in [("hidden", hx), *[("parameter", w) for w in weights]]:
        if other is not None and other.device != input.device:
            raise RuntimeError(
                f"Input and {kind} tensors are not at the same device, "
                f"found input tensor at {input.device} and {kind} tensor at {other.device}"
            )


def check_dtypes(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    reset_state: Tensor | None = None,
    *,
    op: str = "RNN",
) -> None:
    """Check that all tensors have the first weight's dtype, unless autocast casts them."""
    if torch._C._is_any_autocast_enabled():
        return
    dtype = weights[0].dtype
    for name, x in (("input", input), ("hx", hx), ("reset_state", reset_state)):
        if x is not None and x.dtype != dtype:
            raise RuntimeError(
                f"{op}: expected {name} of dtype {dtype}, like the weights, got {x.dtype}. "
                f"Convert it: {name}.to({dtype})"
            )
    for w in weights:
        if w.dtype != dtype:
            raise RuntimeError(f"{op}: expected weights of one dtype, got {dtype} and {w.dtype}")


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
    """Convert integers of any type, in a tensor, array or list, to int64; nothing else."""
    if isinstance(lengths, Tensor):
        dtype = lengths.dtype
        whole_numbers = not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool
        return lengths.to(torch.int64) if whole_numbers else lengths
    if hasattr(lengths, "__array__"):
        lengths = lengths.__array__().tolist()
    if isinstance(lengths, list | tuple):
        whole = [n if type(n) is int else _as_integer(n, lengths) for n in lengths]
        try:
            return torch.tensor(whole, dtype=torch.int64, device=input.device)
        except ValueError:  # beyond 64 bits
            most = max(whole, key=abs)
            raise ValueError(f"rnn: expected lengths between 0 and seq_len, got {most}") from None
    return lengths


def _as_integer(n: Any, lengths: Sequence[Any]) -> int:
    try:
        if not isinstance(n, bool):
            return operator.index(n)
    except TypeError:
        pass
    raise TypeError(f"rnn: expected integer lengths, got {n!r} in a {type(lengths).__name__}")


def as_reset(reset: Any, dim: int, input: Tensor) -> Any:
    """Convert ``reset``, bool or numbers, to a bool tensor with ``dim`` dimensions.

    A last dimension of 1 is dropped. Lists and arrays become tensors; anything else is returned as
    it is, for the checks.
    """
    if not isinstance(reset, Tensor):
        values = isinstance(reset, list | tuple | int) and not isinstance(reset, PackedSequence)
        if not values and not hasattr(reset, "__array__"):
            return reset
        try:
            # A copy: the caller may overwrite the array before the backward pass.
            reset = torch.tensor(reset, device=input.device)
        except (TypeError, ValueError):  # a list of tensors, or of what are not numbers
            return reset
    if reset.dim() == dim + 1 and reset.size(-1) == 1:
        reset = reset.squeeze(-1)
    return reset if reset.dtype == torch.bool else reset != 0


def packed_reset(reset: Any, packed: PackedSequence, batch_first: bool) -> Any:
    """Convert ``reset`` of a packed sequence to (T, B) bool, its rows in the sequence's order."""
    data, batch_sizes, sorted_indices, _ = packed
    if isinstance(reset, PackedSequence):
        if not torch.equal(reset.batch_sizes, batch_sizes):
            raise ValueError("rnn: expected reset packed like the input, got different batch_sizes")
        if not same_order(reset.sorted_indices, sorted_indices):
            raise ValueError(
                "rnn: expected reset packed like the input, got different sorted_indices"
            )
        marks = as_reset(reset.data, 1, data)
        check_reset(marks, (reset.data.size(0),), data)
        return pad_packed_sequence(PackedSequence(marks, batch_sizes))[0]
    reset = as_reset(reset, 2, data)
    if not torch.compiler.is_compiling():  # a compiler has no values
        shape = (batch_sizes.numel(), int(batch_sizes[0]))
        check_reset(reset, shape[::-1] if batch_first else shape, data)
    if batch_first:
        reset = reset.transpose(0, 1)
    return reset if sorted_indices is None else reorder(reset, sorted_indices)


def same_order(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two packed sequences sort their rows alike; without indices they are not sorted."""
    if a is b:  # a compiler cannot compare values
        return True
    if a is None or b is None:
        given = b if a is None else a
        return given is None or torch.equal(
            given, torch.arange(given.numel(), dtype=given.dtype, device=given.device)
        )
    return torch.equal(a, b)


def check_lengths_given(lengths: Any, batch: int, input: Tensor) -> None:
    """Check the type, dtype, shape and device of ``lengths``."""
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        got = type(lengths).__name__
        raise TypeError(f"rnn: expected lengths to be a tensor or list of integers, got {got}")
    if lengths.dtype != torch.int64:
        convert = ". Convert them: lengths.long()" if lengths.is_floating_point() else ""
        raise ValueError(f"rnn: expected integer lengths, got {lengths.dtype}{convert}")
    if tuple(lengths.shape) != (batch,):
        raise ValueError(
            f"rnn: expected lengths of shape {(batch,)}, one for each row of the batch, "
            f"got {tuple(lengths.shape)}"
        )
    if lengths.device != input.device:
        raise ValueError(f"rnn: expected lengths on {input.device}, got {lengths.device}")


def check_reset(reset: Any, shape: tuple[int, ...], input: Tensor, *, op: str = "rnn") -> None:
    """Check the type, shape and device of ``reset``, after :func:`as_reset`."""
    if reset is None:
        return
    if not isinstance(reset, Tensor):
        came = got(reset, "reset") if isinstance(reset, list | tuple) else type(reset).__name__
        raise TypeError(
            f"{op}: expected reset to be a tensor of shape {shape}, bool or 0/1, got {came}"
        )
    if tuple(reset.shape) != shape:
        raise ValueError(
            f"{op}: expected reset of shape {shape}, the input's without its last dimension, "
            f"got {tuple(reset.shape)}"
        )
    if reset.device != input.device:
        raise ValueError(f"{op}: expected reset on {input.device}, got {reset.device}")


def check_lengths(lengths: Tensor, seq_len: int) -> None:
    """Check values on the CPU, as the kernels do, even inside a torch.func transform."""
    if torch.compiler.is_compiling() or lengths.device.type != "cpu":
        return
    while torch._C._functorch.is_functorch_wrapped_tensor(lengths):
        lengths = torch._C._functorch.get_unwrapped(lengths)
    if isinstance(lengths, FakeTensor):
        return
    for length in lengths.flatten().tolist():
        if not 0 <= length <= seq_len:
            raise ValueError(f"rnn: expected lengths between 0 and {seq_len}, got {length}")
