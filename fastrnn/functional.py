"""The RNN as a function of its input, state and weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from fastrnn import _C, _ops, reference


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
    reset: Tensor | None = None,
) -> tuple[Tensor | PackedSequence, Tensor]:
    r"""Run a stack of Elman RNN layers over a sequence, all layers, directions and time steps in one call.

    .. math:: h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \qquad f = \tanh \text{ or } \mathrm{relu}

    With T = seq_len, B = batch, I = input_size, H = hidden_size, L = num_layers, D = 2 if bidirectional else 1:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) without a batch, or a ``PackedSequence``.
        hx: The initial state (L*D, B, H), (L*D, H) without a batch, or None for zeros.
        weights: For each layer and, within it, each direction: ``w_ih`` (H, I or D*H), ``w_hh`` (H, H) and, with
            ``bias``, ``b_ih`` (H) and ``b_hh`` (H).
        bias: Whether ``weights`` holds biases.
        num_layers: L.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bidirectional: Whether a second direction reads each layer's input from its end.
        batch_first: Whether the batch is the first dimension of ``input``, ``output`` and ``reset``.
        dropout: Probability of zeroing an element of the output of every layer but the last, if ``training``.
        training: Whether dropout applies.
        lengths: (B) int64, in any order: the number of valid steps of each row of padded input, 0 to T. The output
            beyond them is zero, ``hn`` is the state after each row's last valid step, and the reverse direction
            starts there.
        reset: (T, B) bool, or (B, T) with ``batch_first``: true where a new sequence begins. The state before that
            step is ``hx`` again, and no gradient passes.

    Returns:
        ``output`` (T, B, D*H) in the layout of ``input``, and ``hn`` (L*D, B, H).

    Raises:
        ValueError: A wrong rank or dtype, or an unknown nonlinearity.
        RuntimeError: A wrong size or device.

    Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990.

    Example:
        >>> import torch, fastrnn.functional
        >>> w_ih, w_hh = torch.eye(2), torch.zeros(2, 2)
        >>> x = torch.tensor([[[1.0, -1.0]], [[2.0, -2.0]]])
        >>> output, hn = fastrnn.functional.rnn(x, None, [w_ih, w_hh], bias=False, nonlinearity="relu")
        >>> output.squeeze(1)
        tensor([[1., 0.],
                [2., 0.]])
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    per_layer = (4 if bias else 2) * (2 if bidirectional else 1)
    if len(weights) != num_layers * per_layer:
        raise RuntimeError(
            f"rnn: expected {num_layers * per_layer} weights for num_layers={num_layers}, bias={bias}, "
            f"bidirectional={bidirectional}, got {len(weights)}"
        )
    return rnn_positional(
        input,
        hx,
        weights,
        bias,
        num_layers,
        nonlinearity == "relu",
        bidirectional,
        batch_first,
        dropout if training else 0.0,
        lengths,
        reset,
    )


def rnn_positional(
    input: Any,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    bias: bool,
    num_layers: int,
    relu: bool,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Any, Tensor]:
    """:func:`rnn` without its checks of the configuration: one call into C++ where nothing is out of the ordinary."""
    if dropout == 0.0 and not torch.compiler.is_compiling():
        result = _C.rnn(
            input, hx, weights, bias, num_layers, relu, bidirectional, batch_first, lengths, reset
        )
        if result is not None:
            return result
    config = (bias, num_layers, relu, bidirectional, batch_first, dropout, lengths, reset)
    if isinstance(input, PackedSequence):
        return _rnn_packed(input, hx, weights, *config)
    tensors = (input, hx, *weights)
    if has_torch_function(tensors):
        return handle_torch_function(rnn_positional, tensors, input, hx, weights, *config)  # type: ignore[no-any-return]
    _ops.check_rank(input, hx)
    if input.dim() == 2:
        config = (*config[:4], False, *config[5:])
        output, hn = _rnn_batched(
            input.unsqueeze(1), None if hx is None else hx.unsqueeze(1), weights, None, *config
        )
        return output.squeeze(1), hn.squeeze(1)
    return _rnn_batched(input, hx, weights, None, *config)


def _rnn_packed(
    packed: PackedSequence, hx: Tensor | None, weights: Sequence[Tensor], *config: Any
) -> tuple[PackedSequence, Tensor]:
    input, batch_sizes, sorted_indices, unsorted_indices = packed
    if config[-2] is not None or config[-1] is not None:
        raise ValueError("rnn: lengths and reset go with padded input, got a PackedSequence")
    if hx is not None and sorted_indices is not None:
        hx = hx.index_select(1, sorted_indices)
    output, hn = _rnn_batched(input, hx, weights, batch_sizes.contiguous(), *config[:4], False, *config[5:])
    if unsorted_indices is not None:
        hn = hn.index_select(1, unsorted_indices)
    return PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices), hn


def _rnn_batched(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    bias: bool,
    num_layers: int,
    relu: bool,
    bidirectional: bool,
    batch_first: bool,
    dropout: float,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> tuple[Tensor, Tensor]:
    _ops.check_args(
        input, hx, weights, batch_sizes, lengths, reset, bias, num_layers, bidirectional, batch_first
    )
    mask = None
    if dropout > 0.0 and num_layers > 1:
        features = weights[1].size(-1) * (2 if bidirectional else 1)
        rows = input.transpose(0, 1) if batch_first else input
        mask = _dropout_mask((num_layers - 1, *rows.shape[:-1], features), dropout, input)
    args = (
        input, hx, weights, batch_sizes, lengths, reset, mask, bias, num_layers, relu, bidirectional, batch_first
    )  # fmt: skip
    if _ops.why_reference((input, hx, *weights)) is not None:
        return reference.rnn(*args)
    return torch.ops.fastrnn.rnn(*args)  # type: ignore[no-any-return]


def _dropout_mask(shape: tuple[int, ...], p: float, like: Tensor) -> Tensor:
    """Draw as ``torch.nn.functional.dropout`` does, a draw for each layer: the same seed gives nn.RNN's masks."""
    mask = torch.empty(shape, dtype=like.dtype, device=like.device)
    if p == 1.0:
        return mask.zero_()
    for layer in mask.unbind(0):
        layer.bernoulli_(1.0 - p)
    return mask.div_(1.0 - p)
