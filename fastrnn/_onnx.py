"""The operator's translation to ONNX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from fastrnn import _path


def onnx_translation() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Give ``torch.onnx.export`` a translation of our operator to ONNX's operator RNN.

    Layers, directions, tanh and relu, the initial state, ``batch_first`` and ``lengths`` carry over
    (``lengths`` become ``sequence_lens``). ONNX's operator has no ``reset``, and ONNX no packed
    sequences: exporting them raises a ``ValueError`` that says what to do instead.

    Returns:
        A value for the argument ``custom_translation_table``.

    Raises:
        ImportError: onnxscript is missing, which ``torch.onnx.export`` needs too.

    Source: https://onnx.ai/onnx/operators/onnx__RNN.html

    Example:
        >>> import torch, fastrnn
        >>> program = torch.onnx.export(  # doctest: +SKIP
        ...     fastrnn.RNN(3, 4).eval(),
        ...     (torch.randn(5, 2, 3),),
        ...     dynamo=True,
        ...     custom_translation_table=fastrnn.onnx_translation(),
        ... )
    """
    import onnxscript  # here, because only an export needs it

    op: Any = onnxscript.opset18  # the version of torch's own translations

    def rnn(
        input: Any,
        hx: Any,
        weights: Sequence[Any],
        batch_sizes: Any,
        lengths: Any,
        reset: Any,
        dropout_mask: Any,
        has_biases: bool,
        num_layers: int,
        nonlinearity: str,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[Any, Any]:
        _check_standard(batch_sizes, reset)
        directions, per_direction = 2 if bidirectional else 1, 4 if has_biases else 2

        def stacked(layer: int, *parts: int) -> Any:
            """A kind of weight, or two concatenated, of each direction: (D, ...)."""
            first = layer * directions * per_direction
            starts = range(first, first + directions * per_direction, per_direction)
            rows = [_concat(op, [weights[start + part] for part in parts]) for start in starts]
            return _concat(op, [op.Unsqueeze(row, [0]) for row in rows])

        x = op.Transpose(input, perm=[1, 0, 2]) if batch_first else input
        sequence_lens = None if lengths is None else op.Cast(lengths, to=onnxscript.INT32.dtype)
        states = []
        for layer in range(num_layers):
            state = hx
            if hx is not None and num_layers > 1:
                state = op.Slice(hx, [layer * directions], [(layer + 1) * directions], [0])
            y, y_h = op.RNN(
                x,
                stacked(layer, 0),
                stacked(layer, 1),
                stacked(layer, 2, 3) if has_biases else None,
                sequence_lens,
                state,
                hidden_size=weights[1].shape[0],
                activations=[nonlinearity.capitalize()] * directions,
                direction="bidirectional" if bidirectional else "forward",
            )
            if lengths is not None and hx is not None:  # ONNX does not say what no step leaves
                y_h = op.Where(op.Unsqueeze(op.Equal(lengths, 0), [0, 2]), state, y_h)
            if bidirectional:  # (T, D, B, H) to (T, B, D*H)
                x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
            else:
                x = op.Squeeze(y, [1])
            if dropout_mask is not None and layer < num_layers - 1:
                x = op.Mul(x, op.Gather(dropout_mask, layer, axis=0))
            states.append(y_h)
        return op.Transpose(x, perm=[1, 0, 2]) if batch_first else x, _concat(op, states)

    return {torch.ops.fastrnn.rnn.default: rnn} if _path.HAS_OPERATORS else {}


def _check_standard(batch_sizes: Any, reset: Any) -> None:
    if batch_sizes is not None:
        raise ValueError(
            "fastrnn: ONNX has no packed sequences. Export the model with padded input and "
            "lengths=, and let pad_packed_sequence make them from packed ones"
        )
    if reset is not None:
        raise ValueError(
            "fastrnn: ONNX's operator RNN has no reset. Export the model without it, and split "
            "sequences where they begin anew"
        )


def _concat(op: Any, tensors: Sequence[Any]) -> Any:
    return tensors[0] if len(tensors) == 1 else op.Concat(*tensors, axis=0)
