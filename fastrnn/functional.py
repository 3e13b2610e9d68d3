"""The RNN as a function of its input, state and weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from fastrnn import _C, _checks, _path
from fastrnn._checks import Options

__all__ = ["rnn"]

_WITHOUT_RESET = "{}: reset_state is the state where reset is true: expected reset too, got None"


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | PackedSequence | None = None,
    reset_state: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
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
        lengths: (B) integers, in any order: the number of valid steps of each row of padded
            input, 0 to T. The output beyond them is zero, ``hn`` is the state after each row's
            last valid step, and the reverse direction starts there.
        reset: (T, B), or (B, T) with ``batch_first``, or (T) without a batch: true where a new
            sequence begins. Bool, or numbers, of which 0 is false, with or without a last
            dimension of 1. With a ``PackedSequence``, one packed alike, or padded. The state
            before such a step, the first included, is zero, and no gradient passes. The reverse
            direction begins anew at the step before, where the sequence that comes earlier ends.
        reset_state: (L*D, B, H), or (L*D, H) without a batch: the state there instead of zeros.
            Takes the reference path.

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
        _checks.check_types(  # says which
            num_layers=num_layers, bias=bias, bidirectional=bidirectional, batch_first=batch_first
        )
    if num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if not isinstance(dropout, int | float):
        raise TypeError(f"dropout should be a number, got: {type(dropout).__name__}")
    if dropout and not 0 <= dropout <= 1:
        raise ValueError(f"dropout should be a probability between 0 and 1, got {dropout}")
    if type(weights) is not list:
        if isinstance(weights, Tensor) or not isinstance(weights, Iterable):
            got = "one tensor" if isinstance(weights, Tensor) else type(weights).__name__
            raise TypeError(f"rnn: expected a sequence of weights, got {got}")
        weights = list(weights)
    _checks.check_count(weights, bias, num_layers, bidirectional)
    return rnn_positional(
        input,
        hx,
        weights,
        bias,
        num_layers,
        nonlinearity,
        bidirectional,
        batch_first,
        dropout if training else 0.0,
        lengths,
        reset,
        reset_state,
    )


def rnn_positional(
    input: Any,
    hx: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    nonlinearity: str,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None,
    reset: Any,
    reset_state: Tensor | None,
) -> tuple[Any, Tensor]:
    """:func:`rnn` without its checks of the configuration: usually one call into C++."""
    if dropout == 0.0 and reset_state is None and not is_dynamo_compiling():
        result: tuple[Tensor, Tensor] | None = _C.rnn(
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
            return result
    return rnn_in_python(
        input,
        hx,
        weights,
        bias,
        num_layers,
        nonlinearity,
        bidirectional,
        batch_first,
        dropout,
        lengths,
        reset,
        reset_state,
    )


def rnn_in_python(
    input: Any,
    hx: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    nonlinearity: str,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None,
    reset: Any,
    reset_state: Tensor | None,
) -> tuple[Any, Tensor]:
    """What the direct entry leaves to Python: packed input, transforms, compilers, errors."""
    if reset_state is not None and reset is None:
        raise ValueError(_WITHOUT_RESET.format("rnn"))
    if type(num_layers) is not int or type(bidirectional) is not bool:
        _checks.check_types(num_layers=num_layers, bidirectional=bidirectional)
    packed = isinstance(input, PackedSequence)
    if not packed:
        tensors = (input, hx, *weights)
        if has_torch_function(tensors):
            given = (
                bias,
                num_layers,
                nonlinearity,
                bidirectional,
                batch_first,
                dropout,
                lengths,
                reset,
            )
            return handle_torch_function(
                rnn_positional, tensors, input, hx, weights, *given, reset_state
            )
        _checks.check_tensors(input, hx, reset_state)
    elif not isinstance(input.batch_sizes, Tensor):
        got = type(input.batch_sizes).__name__
        raise TypeError(
            f"RNN: expected batch_sizes of the PackedSequence to be a Tensor, got {got}"
        )
    _checks.check_count(weights, bias, num_layers, bidirectional)
    if not torch.compiler.is_compiling():
        _C.check_storages(
            weights,
            hx=hx,
            lengths=lengths,
            reset=reset.data if isinstance(reset, PackedSequence) else reset,
            reset_state=reset_state,
            **(input._asdict() if packed else {"input": input}),
        )
    options = Options(
        batch_sizes=input.batch_sizes.contiguous() if packed else None,
        lengths=lengths,
        has_biases=bias,
        num_layers=num_layers,
        nonlinearity=nonlinearity,
        bidirectional=bidirectional,
        batch_first=batch_first and not packed,
    )
    if packed:
        if reset is not None:
            options = options._replace(reset=_checks.packed_reset(reset, input, batch_first))
        return _rnn_packed(input, hx, weights, dropout, options, reset_state)
    _checks.check_rank(input, hx)
    _checks.check_layout(input, weights)
    reset = _checks.as_reset(reset, input.dim() - 1, input)
    if input.dim() == 3:
        lengths = _checks.as_lengths(lengths, input)
        options = options._replace(lengths=lengths, reset=reset)
        return _rnn_batched(input, hx, weights, dropout, options, reset_state)
    if lengths is not None:
        raise ValueError("rnn: lengths go with batched input, got 2-D input")
    if reset is not None:
        _checks.check_reset(reset, (input.size(0),), input)
        reset = reset.unsqueeze(1)
    output, hn = _rnn_batched(
        input.unsqueeze(1),
        None if hx is None else hx.unsqueeze(1),
        weights,
        dropout,
        options._replace(batch_first=False, reset=reset),
        None if reset_state is None else reset_state.unsqueeze(1),
    )
    return output.squeeze(1), hn.squeeze(1)


def rnn_step(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    bias: bool,
    num_layers: int,
    nonlinearity: str,
    dropout: float,
    reset: Tensor | None,
    reset_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One step of all layers: (B, I) or (I) and (L, B, H) or (L, H) to (B, H) or (H), and hn.

    For what the direct entry has not taken: with ``reset`` it is asked here.
    """
    if reset is not None or reset_state is not None:
        _checks.check_weights(weights)
        hx = _reset_rows(
            "RNN.step", input, hx, reset, reset_state, (num_layers, weights[1].size(-1))
        )
        if dropout == 0.0 and not is_dynamo_compiling():
            result = _C.rnn_step(input, hx, weights, bias, num_layers, nonlinearity)
            if result is not None:
                return result
    _checks.check_tensors(input, hx, op="RNN.step")
    dim = input.dim()
    if dim not in (1, 2):
        raise ValueError(f"RNN.step: expected input with 1 or 2 dimensions, got {dim}")
    if hx is not None and hx.dim() != dim + 1:
        raise RuntimeError(
            f"RNN.step: expected hx with {dim + 1} dimensions for input with {dim}, got {hx.dim()}"
        )
    sequence = input.unsqueeze(0)
    output, hn = rnn_in_python(
        sequence,
        hx,
        weights,
        bias,
        num_layers,
        nonlinearity,
        False,
        False,
        dropout,
        None,
        None,
        None,
    )
    return output.squeeze(0), hn


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    nonlinearity: str,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None,
    b_hh: Tensor | None,
    *,
    reset: Tensor | None,
    reset_state: Tensor | None,
) -> Tensor:
    """One step of one layer: (B, I) or (I) and (B, H) or (H) to (B, H) or (H).

    For what the direct entry has not taken: with ``reset`` it is asked here.
    """
    known = nonlinearity in ("tanh", "relu")
    _checks.check_tensors(input, hx, op="RNNCell")
    biases = [b for b in (b_ih, b_hh) if b is not None]
    _checks.check_weights([w_ih, w_hh, *biases], op="RNNCell")
    if len(biases) == 1:  # their order does not matter
        biases.append(torch.zeros_like(biases[0]))
    weights = [w_ih, w_hh, *biases]
    if reset is not None or reset_state is not None:
        hx = _reset_rows("RNNCell", input, hx, reset, reset_state, (w_hh.size(-1),))
        if known and not is_dynamo_compiling():
            result = _C.rnn_cell(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity)
            if result is not None:
                return result
    if not torch.compiler.is_compiling():
        _C.check_storages(weights, input=input, hx=hx)
    _checks.check_cell_rank(input, hx)
    if not known:
        raise RuntimeError(f"Unknown nonlinearity: {nonlinearity}")
    batched = input.dim() == 2
    if not batched:
        input = input.unsqueeze(0)
        hx = None if hx is None else hx.unsqueeze(0)
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        _checks.check_cell_sizes(input, hx, w_ih, w_hh)
    _checks.check_devices(input, hx, weights)
    _checks.check_dtypes(input, hx, weights, op="RNNCell")
    given = (input, hx, *weights)
    if _path.why_no_kernel(given) is not None and _path.why_only_reference(given) is None:
        if hx is None:
            size = (input.size(0), w_hh.size(0))  # strided, as nn.RNNCell's
            hx = torch.zeros(size, dtype=input.dtype, device=input.device)
        cell = torch.rnn_relu_cell if nonlinearity == "relu" else torch.rnn_tanh_cell
        h: Tensor = cell(input, hx, *weights)
        return h if batched else h.squeeze(0)
    state = None if hx is None else hx.unsqueeze(0)
    options = Options(has_biases=len(weights) == 4, nonlinearity=nonlinearity)
    output, _ = _path.run(input.unsqueeze(0), state, weights, options)
    # A trace would record the size.
    batch = -1 if torch.jit.is_tracing() else input.size(0)  # type: ignore[attr-defined, no-untyped-call]
    # No view, so that detach_() works as on nn.RNNCell's result; nothing else sees the memory.
    h = torch.ops.aten._unsafe_view(output, [batch, w_hh.size(0)])
    return h if batched else h.squeeze(0)


def _reset_rows(
    name: str,
    input: Tensor,
    hx: Tensor | None,
    reset: Any,
    reset_state: Tensor | None,
    size: Sequence[int],
) -> Tensor | None:
    """The state before a step: where ``reset`` (B), ``reset_state`` or zeros in place of ``hx``.

    ``size`` is that of a state without its batch: (L, H) or (H).
    """
    if reset is None:
        raise ValueError(_WITHOUT_RESET.format(name))
    _checks.check_tensors(input, hx, reset_state, op=name)
    if not torch.compiler.is_compiling():
        _C.check_storages([], hx=hx, reset=reset, reset_state=reset_state)
    reset = _checks.as_reset(reset, input.dim() - 1, input)
    _checks.check_reset(reset, tuple(input.shape[:-1]), input, op=name)
    for state in (hx, reset_state):
        expected = (*size[:-1], *reset.shape, size[-1])
        if state is not None and tuple(state.shape) != expected:
            raise RuntimeError(f"{name}: expected a state {expected}, got {tuple(state.shape)}")
    if reset_state is None:
        return None if hx is None else torch.where(reset.unsqueeze(-1), torch.zeros_like(hx), hx)
    return torch.where(
        reset.unsqueeze(-1), reset_state, torch.zeros_like(reset_state) if hx is None else hx
    )


def _rnn_packed(
    packed: PackedSequence,
    hx: Tensor | None,
    weights: list[Tensor],
    dropout: float,
    options: Options,
    reset_state: Tensor | None,
) -> tuple[PackedSequence, Tensor]:
    if options.lengths is not None:
        raise ValueError("rnn: lengths go with padded input, got a PackedSequence")
    data, batch_sizes, sorted_indices, unsorted_indices = packed
    _checks.check_tensors(data, hx, reset_state)
    if sorted_indices is not None:
        if hx is not None:
            hx = _checks.reorder(hx, sorted_indices)
        elif torch.compiler.is_compiling():  # tells a compiler the batch, which batch_sizes do not
            states = options.num_layers * (2 if options.bidirectional else 1)
            hx = data.new_zeros(states, sorted_indices.size(0), weights[1].size(-1))
        if reset_state is not None:
            reset_state = _checks.reorder(reset_state, sorted_indices)
    output, hn = _rnn_batched(data, hx, weights, dropout, options, reset_state)
    if unsorted_indices is not None:
        hn = _checks.reorder(hn, unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), hn


def _rnn_batched(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    dropout: float,
    options: Options,
    reset_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    # A trace would record the sizes that the checks compare; the operator checks when it runs.
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        _checks.check_args(input, hx, weights, options, reset_state)
    elif torch.onnx.is_in_onnx_export():
        raise RuntimeError(
            "fastrnn: torch.onnx.export(dynamo=False) does not know fastrnn's operator. Export "
            "with dynamo=True, custom_translation_table=fastrnn.onnx_translation()"
        )
    return _path.run(input, hx, weights, options, dropout, reset_state)
