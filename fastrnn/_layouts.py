"""A call's input as the operators take it: padded, packed, without a batch, or none at all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import has_torch_function

from fastrnn import _checks, _extras, _path
from fastrnn._checks import Options
from fastrnn._extras import Extras


def rnn_padded(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
    extras: Extras | None,
) -> Any:
    _checks.check_rank(input, hx)
    _checks.check_layout(input, weights)
    reset = _checks.as_reset(options.reset, input.dim() - 1, input)
    if input.dim() == 3:
        lengths = _checks.as_lengths(options.lengths, input)
        options = options._replace(lengths=lengths, reset=reset)
        return _checked_rnn(input, hx, weights, options, dropout, reset_state, extras)
    if options.lengths is not None:
        raise ValueError("rnn: lengths are for batched input, got 2-D input")
    if reset is not None:
        _checks.check_reset(reset, (input.size(0),), input)
        reset = reset.unsqueeze(1)
    output, hn, *layers = _checked_rnn(
        input.unsqueeze(1),
        None if hx is None else hx.unsqueeze(1),
        weights,
        options._replace(batch_first=False, reset=reset),
        dropout,
        None if reset_state is None else reset_state.unsqueeze(1),
        None if extras is None else extras.unsqueezed(),
    )
    return output.squeeze(1), hn.squeeze(1), *(x.squeeze(2) for x in layers)


def rnn_packed(
    packed: PackedSequence,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
    extras: Extras | None,
) -> Any:
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
    if extras is not None:
        extras = extras.unpacked(packed)
    output, hn, *layers = _checked_rnn(data, hx, weights, options, dropout, reset_state, extras)
    if unsorted_indices is not None:
        hn = _checks.reorder(hn, unsorted_indices)

    def as_packed(x: Tensor) -> PackedSequence:
        return PackedSequence(x, batch_sizes, sorted_indices, unsorted_indices)

    return as_packed(output), hn, *([as_packed(x) for x in stack] for stack in layers)


def without_input(igates: Any, weights: list[Tensor], options: Options) -> tuple[Any, list[Tensor]]:
    """An input of zeros in place of none, and weights of the first layer that fit it."""
    data = igates.data if isinstance(igates, PackedSequence) else igates
    if not isinstance(data, Tensor):
        came = _checks.got(igates, "igates")
        raise TypeError(f"rnn: expected igates to be a Tensor, got {came}")
    _checks.check_count(weights, options.has_biases, options.num_layers, options.bidirectional)
    _checks.check_weights(weights)
    dtype = weights[0].dtype
    if data.layout != torch.strided:
        raise ValueError(f"rnn: expected igates to be a dense tensor, got {data.layout}")
    packed = isinstance(igates, PackedSequence)
    if data.dim() not in ((2,) if packed else (2, 3)):
        expected = "2 dimensions in packed igates" if packed else "igates with 2 or 3 dimensions"
        raise ValueError(f"rnn: expected {expected}, got {data.dim()}")
    if data.dtype != dtype and not _extras.is_cast(data, weights[0]):
        raise RuntimeError(
            f"rnn: expected igates of dtype {dtype}, like the weights, got {data.dtype}. "
            f"Convert them: igates.to({dtype})"
        )
    weights, per_direction = [*weights], 4 if options.has_biases else 2
    for i in range(0, (2 if options.bidirectional else 1) * per_direction, per_direction):
        weights[i] = weights[i].new_zeros(weights[i + 1].size(0), 1)
    zeros: Any = data.new_zeros(*data.shape[:-1], 1)
    if isinstance(igates, PackedSequence):
        zeros = igates._replace(data=zeros)
    return zeros, weights


def is_expanded(w: Any) -> bool:
    """Whether this is one of ``torch.nn.utils._expanded_weights``, for torch's operators only."""
    return type(w).__name__ == "ExpandedWeight"


def _checked_rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
    extras: Extras | None,
) -> Any:
    if has_torch_function(weights) and any(map(is_expanded, weights)):
        if options.lengths is not None or options.reset is not None:
            raise ValueError("rnn: lengths and reset are not supported with expanded weights")
        if extras is not None:
            raise ValueError(
                "rnn: a leak, igates and return_layers are not supported with expanded weights"
            )
        plain = [w.orig_weight if is_expanded(w) else w for w in weights]  # type: ignore[attr-defined]
        _checks.check_args(input, hx, plain, options, reset_state)
        return _path.run_torch(input, hx, weights, options, dropout)
    # A trace would record the sizes that the checks compare; the operator checks when it runs.
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        _checks.check_args(input, hx, weights, options, reset_state)
    if extras is not None and (extras.igates is not None or extras.return_layers or extras.leaks()):
        prepared = _extras.prepare(extras, input, weights, options)
        return _path.run_extended(input, hx, weights, options, dropout, reset_state, prepared)
    return _path.run(input, hx, weights, options, dropout, reset_state)
