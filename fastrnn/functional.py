"""The RNN as a function of its input, state and weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from fastrnn import _C, _checks, _path
from fastrnn._checks import Options
from fastrnn._types import Lengths, Marks

__all__ = ["rnn"]

_Input = TypeVar("_Input", bound=Tensor | PackedSequence)


def rnn(
    input: _Input,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths | None = None,
    reset: Marks | PackedSequence | None = None,
    reset_state: Tensor | None = None,
) -> tuple[_Input, Tensor]:
    r"""Run a stack of Elman RNN layers over a sequence, all layers and time steps in one call.

    .. math:: h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \quad f = \tanh, \text{relu}

    With T = seq_len, B = batch, I = input_size, H = hidden_size, L = num_layers, D = 2 if
    bidirectional else 1:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) without a batch, or a
            ``PackedSequence``.
        hx: The initial state (L*D, B, H), (L*D, H) without a batch, or None for zeros.
        weights: For each layer and, within it, each direction: ``w_ih`` (H, I or D*H), ``w_hh``
            (H, H) and, with ``bias``, ``b_ih`` and ``b_hh`` (H).
        bias: Whether ``weights`` holds biases.
        num_layers: L.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bidirectional: Whether a second direction reads each layer's input from its end.
        batch_first: Whether the batch is the first dimension of ``input``, ``output`` and
            ``reset``.
        dropout: Probability of zeroing an element of the output of every layer but the last, if
            ``training``.
        training: Whether dropout applies.
        lengths: (B,) integers, in any order: the number of valid steps of each row of padded
            input, 0 to T. The output beyond them is zero, ``hn`` is the state after each row's
            last valid step, and the reverse direction starts there.
        reset: (T, B), or (B, T) with ``batch_first``, or (T) without a batch: true where a new
            sequence begins. Bool, or numbers, where any but 0 is true; a last dimension of 1 is
            allowed. For a ``PackedSequence``, another one packed alike or a padded tensor. The
            state before such a step, even the first, is zero, and no gradient passes. The reverse
            direction restarts at the step before, where the earlier sequence ends.
        reset_state: (L*D, B, H), or (L*D, H) without a batch: the state there, instead of zeros.
            Such calls take the reference path.

    Returns:
        ``output`` (T, B, D*H) in the layout of ``input``, and ``hn`` (L*D, B, H).

    Raises:
        ValueError: A wrong rank, dtype or dropout, an unknown nonlinearity, or ``reset_state``
            without ``reset``.
        TypeError: A wrong type.
        AttributeError: ``input`` or ``hx`` of a wrong type, as nn.RNN raises it.
        RuntimeError: A wrong size or device.

    Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990.

    Example:
        >>> import torch, fastrnn.functional
        >>> weights = [torch.eye(2), torch.zeros(2, 2)]
        >>> x = torch.tensor([[[1.0, -1.0]], [[2.0, -2.0]]])
        >>> output, hn = fastrnn.functional.rnn(x, None, weights, bias=False, nonlinearity="relu")
        >>> output.squeeze(1)
        tensor([[1., 0.],
                [2., 0.]])
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    if not (
        type(num_layers) is int
        and type(bias) is bool
        and type(bidirectional) is bool
        and type(batch_first) is bool
    ):
        _checks.check_types(  # to say which
            num_layers=num_layers, bias=bias, bidirectional=bidirectional, batch_first=batch_first
        )
    if num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if type(dropout) is not float or dropout:
        _checks.check_dropout(dropout)
    weights = _as_list(weights)
    _checks.check_count(weights, bias, num_layers, bidirectional)
    if not training:
        dropout = 0.0
    if dropout == 0.0 and reset_state is None and not is_dynamo_compiling():
        result: Any = _C.rnn(
            input,
            hx,
            weights,
            bias,
            num_layers,
            nonlinearity,
            bidirectional,
            batch_first,
            lengths,
            reset,
        )
        if result is not None:
            return result  # type: ignore[no-any-return]
    options = Options(
        lengths=lengths,
        reset=reset,
        has_biases=bias,
        num_layers=num_layers,
        nonlinearity=nonlinearity,
        bidirectional=bidirectional,
        batch_first=batch_first,
    )
    return rnn_in_python(input, hx, weights, options, dropout, reset_state)


def _as_list(weights: Any) -> list[Tensor]:
    if type(weights) is list:
        return weights
    if isinstance(weights, Tensor) or not isinstance(weights, Iterable):
        got = "one tensor" if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"rnn: expected a sequence of weights, got {got}")
    return list(weights)


def rnn_in_python(
    input: Any,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
) -> tuple[Any, Tensor]:
    """Run what ``_C.rnn`` declines: packed input, transforms, compilers, errors.

    ``options`` has lengths and reset as the caller passed them, and no ``batch_sizes``: those come
    from packed input.
    """
    _checks.check_reset_state(reset_state, options.reset)
    num_layers, bidirectional = options.num_layers, options.bidirectional
    if type(num_layers) is not int or type(bidirectional) is not bool:
        _checks.check_types(num_layers=num_layers, bidirectional=bidirectional)
    packed = isinstance(input, PackedSequence)
    if not packed:
        tensors = (input, hx, *weights)
        if has_torch_function(tensors) and not any(map(_is_expanded, weights)):
            return handle_torch_function(
                rnn,  # type: ignore[arg-type]
                tensors,
                input,
                hx,
                weights,
                bias=options.has_biases,
                num_layers=num_layers,
                nonlinearity=options.nonlinearity,
                bidirectional=bidirectional,
                batch_first=options.batch_first,
                dropout=float(dropout),
                training=dropout != 0.0,
                lengths=options.lengths,
                reset=options.reset,
                reset_state=reset_state,
            )
        _checks.check_tensors(input, hx, reset_state)
    elif not isinstance(input.batch_sizes, Tensor):
        got = type(input.batch_sizes).__name__
        raise TypeError(
            f"RNN: expected batch_sizes of the PackedSequence to be a Tensor, got {got}"
        )
    _checks.check_count(weights, options.has_biases, num_layers, bidirectional)
    if not torch.compiler.is_compiling():
        reset: Any = options.reset
        _C.check_storages(
            weights,
            hx=hx,
            lengths=options.lengths,
            reset=reset.data if isinstance(reset, PackedSequence) else reset,
            reset_state=reset_state,
            **(input._asdict() if packed else {"input": input}),
        )
    run = _rnn_packed if packed else _rnn_padded
    return run(input, hx, weights, options, dropout, reset_state)


def _rnn_padded(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _checks.check_rank(input, hx)
    _checks.check_layout(input, weights)
    reset = _checks.as_reset(options.reset, input.dim() - 1, input)
    if input.dim() == 3:
        lengths = _checks.as_lengths(options.lengths, input)
        options = options._replace(lengths=lengths, reset=reset)
        return _checked_rnn(input, hx, weights, options, dropout, reset_state)
    if options.lengths is not None:
        raise ValueError("rnn: lengths are for batched input, got 2-D input")
    if reset is not None:
        _checks.check_reset(reset, (input.size(0),), input)
        reset = reset.unsqueeze(1)
    output, hn = _checked_rnn(
        input.unsqueeze(1),
        None if hx is None else hx.unsqueeze(1),
        weights,
        options._replace(batch_first=False, reset=reset),
        dropout,
        None if reset_state is None else reset_state.unsqueeze(1),
    )
    return output.squeeze(1), hn.squeeze(1)


def _rnn_packed(
    packed: PackedSequence,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
) -> tuple[PackedSequence, Tensor]:
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    if options.lengths is not None:
        raise ValueError("rnn: lengths are for padded input, got a PackedSequence")
    reset = options.reset
    if reset is not None:
        reset = _checks.packed_reset(reset, packed, options.batch_first)
    options = options._replace(batch_sizes=batch_sizes.contiguous(), reset=reset, batch_first=False)
    _checks.check_tensors(data, hx, reset_state)
    if sorted_indices is not None:
        if hx is not None:
            hx = _checks.reorder(hx, sorted_indices)
        elif torch.compiler.is_compiling():  # tells a compiler the batch size; batch_sizes does not
            states = options.num_layers * (2 if options.bidirectional else 1)
            hx = data.new_zeros(states, sorted_indices.size(0), weights[1].size(-1))
        if reset_state is not None:
            reset_state = _checks.reorder(reset_state, sorted_indices)
    output, hn = _checked_rnn(data, hx, weights, options, dropout, reset_state)
    if unsorted_indices is not None:
        hn = _checks.reorder(hn, unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), hn


def _is_expanded(w: Any) -> bool:
    """Whether this is one of ``torch.nn.utils._expanded_weights``, for torch's operators only."""
    return type(w).__name__ == "ExpandedWeight"


def _checked_rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if has_torch_function(weights) and any(map(_is_expanded, weights)):
        if options.lengths is not None or options.reset is not None:
            raise ValueError("rnn: lengths and reset are not supported with expanded weights")
        plain = [w.orig_weight if _is_expanded(w) else w for w in weights]  # type: ignore[attr-defined]
        _checks.check_args(input, hx, plain, options, reset_state)
        return _path.run_torch(input, hx, weights, options, dropout)
    # A trace would record the sizes that the checks compare; the operator checks when it runs.
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        _checks.check_args(input, hx, weights, options, reset_state)
    return _path.run(input, hx, weights, options, dropout, reset_state)
