"""The RNN in ONNX's operators, and in ATen's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import reference
from fastrnn._checks import Options


def decompositions(*, onnx: bool = False) -> dict[Any, Callable[..., Any]]:
    """Return a decomposition of fastrnn's operator for ``ExportedProgram.run_decompositions``.

    For an exported program that goes on to a tool without ``fastrnn::rnn``. (``torch.onnx.export``
    of a module needs none.)

    Args:
        onnx: Whether that tool is ``torch.onnx.export``. If so, the result is ONNX's operator RNN,
            one for each layer, which ONNX's runtimes can run and PyTorch cannot. If not, it is core
            ATen, unrolled over time, so the length cannot be dynamic.

    Returns:
        A table to add to ``torch.export.default_decompositions()``.

    Raises:
        ValueError: When applied to a program with packed sequences or a dynamic length or, if
            ``onnx``, with packed sequences or ``reset``, which ONNX cannot express.

    Example:
        >>> import torch, fastrnn
        >>> rnn = fastrnn.RNN(3, 4).eval()
        >>> program = torch.export.export(rnn, (torch.randn(5, 2, 3),))
        >>> table = torch.export.default_decompositions()
        >>> table.update(fastrnn.decompositions())
        >>> "fastrnn" in str(program.run_decompositions(table).graph)
        False
    """
    if not hasattr(torch.ops.fastrnn, "rnn"):  # torch is newer than the wheel: there is no operator
        return {}
    return {torch.ops.fastrnn.rnn.default: _to_onnx if onnx else _to_aten}


def _to_onnx(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], *args: Any
) -> tuple[Tensor, Tensor]:
    check(Options(*args))
    return rnn(input, hx, weights, *args)


def _to_aten(
    input: Tensor, hx: Tensor | None, weights: Sequence[Tensor], *args: Any
) -> tuple[Tensor, Tensor]:
    options = Options(*args)
    if options.batch_sizes is not None:
        raise ValueError("fastrnn.decompositions: expected padded input, got packed sequences")
    if type(input.size(1 if options.batch_first else 0)) is not int:
        raise ValueError(
            "fastrnn.decompositions unrolls the RNN over time: expected a program of static "
            "length, got a dynamic one. Export it with a static length"
        )
    return reference.rnn(input, hx, weights, *args)


def check(options: Options, reset_state: Tensor | None = None) -> None:
    """Check that ONNX can express a call."""
    older = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if options.reset is not None or reset_state is not None:
        raise ValueError(
            "fastrnn: ONNX's RNN operator has no reset. Export the model without it, and split "
            "the input where a new sequence begins"
        )
    if options.batch_sizes is not None and not older:
        raise ValueError(
            "fastrnn: ONNX has no packed sequences. Export the model with padded input and "
            "lengths=; pad_packed_sequence gives both"
        )
    if options.lengths is not None and older:
        raise ValueError(
            "fastrnn: torch.onnx.export(dynamo=False) cannot express lengths. Use dynamo=True"
        )


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
    dropout_mask: Tensor | None,
    has_biases: bool,
    num_layers: int,
    nonlinearity: str,
    bidirectional: bool,
    batch_first: bool,
    *,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Create nodes of ONNX's operator RNN, one for each layer, for ``torch.onnx.export``.

    The arguments are those of the operator ``fastrnn::rnn`` and have passed :func:`check`. Without
    a ``dropout_mask``, ``dropout`` is exported as an operator of its own.

    Source: https://onnx.ai/onnx/operators/onnx__RNN.html
    """
    directions, per_direction = 2 if bidirectional else 1, 4 if has_biases else 2
    x = input.transpose(0, 1) if batch_first else input
    (seq_len, batch), hidden_size = x.shape[:2], weights[1].size(0)
    sequence_lens = None if lengths is None else lengths.to(torch.int32)
    states = []
    for layer in range(num_layers):
        first = layer * directions
        parts = [
            weights[i * per_direction : (i + 1) * per_direction]
            for i in range(first, first + directions)
        ]
        w_ih, w_hh = (torch.stack([part[k] for part in parts]) for k in (0, 1))
        biases = torch.stack([torch.cat([*part[2:]]) for part in parts]) if has_biases else None
        state = None if hx is None else hx[first : first + directions]
        y, y_h = torch.onnx.ops.symbolic_multi_out(
            "RNN",
            (x, w_ih, w_hh, biases, sequence_lens, state),
            {
                "hidden_size": hidden_size,
                "activations": [nonlinearity.capitalize()] * directions,
                "direction": "bidirectional" if bidirectional else "forward",
            },
            dtypes=(x.dtype, x.dtype),
            shapes=((seq_len, directions, batch, hidden_size), (directions, batch, hidden_size)),
        )
        if (
            lengths is not None and state is not None
        ):  # ONNX leaves the state of a row without steps open
            y_h = torch.where((lengths == 0).view(1, -1, 1), state, y_h)
        x = y.transpose(1, 2).flatten(2) if bidirectional else y.squeeze(1)  # (T, B, D*H)
        if layer < num_layers - 1:
            x = F.dropout(x, dropout) if dropout_mask is None else x * dropout_mask[layer]
        states.append(y_h)
    return x.transpose(0, 1) if batch_first else x, torch.cat(states)
