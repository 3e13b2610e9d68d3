"""One step: the calls that C++ declines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastrnn import _C, _checks, _path
from fastrnn._checks import Options
from fastrnn._extras import Extras
from fastrnn._types import Marks
from fastrnn.functional import rnn_in_python


def rnn_step(
    input: Tensor,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
    extras: Extras | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one step of all layers: input (B, I) and hx (L, B, H) to output (B, H) and hn (L, B, H).

    Or all without B. With ``reset``, replace the states that it drops, and try ``_C.rnn_step``
    again.
    """
    if options.reset is not None or reset_state is not None:
        _checks.check_weights(weights)
        size = (options.num_layers, weights[1].size(-1))
        hx = _reset_rows("RNN.step", input, hx, options.reset, reset_state, size)
        options = options._replace(reset=None)
        if extras is None and dropout == 0.0 and not is_dynamo_compiling():
            result = _C.rnn_step(
                input, hx, weights, options.has_biases, options.num_layers, options.nonlinearity
            )
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
    output, hn = rnn_in_python(input.unsqueeze(0), hx, weights, options, dropout, None, extras)
    return output.squeeze(0), hn


def rnn_cell(
    input: Tensor,
    hx: Tensor | None,
    cell_weights: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    nonlinearity: str,
    reset: Marks | None,
    reset_state: Tensor | None,
) -> Tensor:
    """Run one step of one layer: input (B, I) and hx (B, H) to h (B, H), or all without B.

    ``reset`` is applied as in :func:`rnn_step`.
    """
    known = nonlinearity in ("tanh", "relu")
    _checks.check_tensors(input, hx, op="RNNCell")
    w_ih, w_hh, b_ih, b_hh = cell_weights
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
    _check_cell_rank(input, hx)
    if not known:
        raise RuntimeError(f"Unknown nonlinearity: {nonlinearity}")
    batched = input.dim() == 2
    if not batched:
        input = input.unsqueeze(0)
        hx = None if hx is None else hx.unsqueeze(0)
    if not torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        _check_cell_sizes(input, hx, w_ih, w_hh)
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
    output: Tensor = _path.run(input.unsqueeze(0), state, weights, options)[0]
    if _path.is_for_onnx():  # which lacks the operator below
        h = output.squeeze(0)
        return h if batched else h.squeeze(0)
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
    """The state before a step: ``hx``, but ``reset_state`` or zeros where ``reset`` (B) is true.

    ``size`` is the size of a state without its batch: (L, H) or (H).
    """
    _checks.check_reset_state(reset_state, reset, op=name)
    _checks.check_tensors(input, hx, reset_state, op=name)
    if not torch.compiler.is_compiling():
        _C.check_storages([], hx=hx, reset=reset, reset_state=reset_state)
    reset = _checks.as_reset(reset, input.dim() - 1, input)
    _checks.check_reset(reset, tuple(input.shape[:-1]), input, op=name)
    for state in (hx, reset_state):
        expected = (*size[:-1], *reset.shape, size[-1])
        if state is not None and tuple(state.shape) != expected:
            raise RuntimeError(
                f"{name}: expected a state of shape {expected}, got {tuple(state.shape)}"
            )
    if reset_state is None:
        return None if hx is None else torch.where(reset.unsqueeze(-1), torch.zeros_like(hx), hx)
    return torch.where(
        reset.unsqueeze(-1), reset_state, torch.zeros_like(reset_state) if hx is None else hx
    )


def _check_cell_rank(input: Tensor, hx: Tensor | None) -> None:
    """Check the number of dimensions, in nn.RNNCell's words."""
    if input.dim() not in (1, 2):
        raise ValueError(f"RNNCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is not None and hx.dim() not in (1, 2):
        raise ValueError(f"RNNCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")


def _check_cell_sizes(input: Tensor, hx: Tensor | None, w_ih: Tensor, w_hh: Tensor) -> None:
    """Check the sizes of (B, I) and (B, H), in nn.RNNCell's words."""
    for name, w in (("weight_ih", w_ih), ("weight_hh", w_hh)):
        if w.dim() != 2:
            raise RuntimeError(f"RNNCell: expected {name} with 2 dimensions, got {w.dim()}")
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
