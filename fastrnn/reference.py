"""The Elman recurrence as readable torch code, differentiable to any order.

The tests compare the kernels with it, and it serves the calls that neither the kernels nor torch's
own operator can: forward-mode differentiation, ``torch.func`` transforms, gradients of gradients,
``reset_state``, and ``lengths`` or ``reset`` where there is no kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import _C


def rnn_layer(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    activation: Callable[[Tensor], Tensor],
    *,
    reverse: bool = False,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reset_state: Tensor | None = None,
    states: Tensor | None = None,
    gates: Tensor | None = None,
    alpha: Tensor | float = 1.0,
    form: str = "rate",
) -> tuple[Tensor, Tensor]:
    r"""Run one layer in one direction.

    .. math:: h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    With ``alpha`` other than 1 the state leaks. In the rate form

    .. math:: h_t = (1 - \alpha) h_{t-1} + \alpha f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    and in the current form the state is a current :math:`v`, and the output :math:`f(v_t)`:

    .. math:: v_t = (1 - \alpha) v_{t-1} + \alpha (W_{ih} x_t + b_{ih} + W_{hh} f(v_{t-1}) + b_{hh})

    Args:
        input: (T, B, I).
        hx: (B, H), the state before the first step.
        weights: ``w_ih`` (H, I), ``w_hh`` (H, H) and, with biases, ``b_ih`` and ``b_hh`` (H).
        activation: f, applied to each element.
        reverse: Walk from the last step to the first.
        lengths: (B), the number of valid steps of each row; beyond them the state does not change
            and the output is zero.
        reset: (T, B) bool, true where a new sequence begins: the state before that step is
            ``reset_state``.
        reset_state: (B, H), zeros by default.
        states: (T, B, H), the output if it is known: then the other arguments matter only for
            derivatives. For plain layers only, without a leak.
        gates: (T, B, H), added to the input's projection.
        alpha: The leak, a number or (H).
        form: ``"rate"`` or ``"current"``.

    Returns:
        The output (T, B, H) and the state after each row's last step, (B, H).

    Sources: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990; for the leak, see
    :class:`fastrnn.LeakyRNN`.
    """
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    if lengths is not None:  # padding may be NaN, and a gradient of zero times NaN is NaN
        steps = torch.arange(input.size(0), device=input.device).unsqueeze(1)
        valid = steps < lengths  # (T, B)
        input = torch.where(valid.unsqueeze(-1), input, torch.zeros_like(input))
        reset = None if reset is None else reset & valid
        if states is not None:
            states = torch.where(valid.unsqueeze(-1), states, torch.zeros_like(states))
    projected = F.linear(input, w_ih, b_ih)
    if gates is not None:
        if lengths is not None:
            gates = torch.where(valid.unsqueeze(-1), gates, torch.zeros_like(gates))
        projected = projected + gates
    igates = projected.unbind(0)  # its gradient is one stack, not T zero tensors
    seq_len = input.size(0)
    if reset_state is None:
        reset_state = torch.zeros_like(hx)
    current = form == "current"
    leaks = current or isinstance(alpha, Tensor) or alpha != 1
    output: list[Tensor] = []
    # As in the kernels: in 16 bits a small alpha * f would round to nothing.
    wide = torch.float32 if leaks and input.dtype.itemsize == 2 else input.dtype
    state, reset_state = hx.to(wide), reset_state.to(wide)
    for t in reversed(range(seq_len)) if reverse else range(seq_len):
        previous = state
        # In reverse, a sequence is entered where the next one begins.
        boundary = t + 1 if reverse else t
        if reset is not None and boundary < seq_len:
            previous = torch.where(reset[boundary].unsqueeze(-1), reset_state, previous)
        h_prev = (activation(previous) if current else previous).to(w_hh.dtype)
        a_t = igates[t] + F.linear(h_prev, w_hh, b_hh)
        if states is not None:
            next_state = _C.known_activation(a_t, states[t], activation is torch.tanh)
        else:
            next_state = a_t.to(wide) if current else activation(a_t.to(wide))
        if leaks:
            next_state = (1 - alpha) * previous + alpha * next_state
        h_t = activation(next_state) if current else next_state
        if lengths is None:
            state = next_state
            output.append(h_t)
        else:
            here = valid[t].unsqueeze(-1)
            state = torch.where(here, next_state, state)
            output.append(torch.where(here, h_t, torch.zeros_like(h_t)))
    stacked = torch.stack(output[::-1] if reverse else output)
    return stacked.to(input.dtype), state.to(input.dtype)


class _Packing:
    """Packed rows as padded ones (T, B, ...) with lengths (B), and back."""

    def __init__(self, batch_sizes: Tensor, device: torch.device) -> None:
        batch = int(batch_sizes[0])
        valid = (torch.arange(batch) < batch_sizes.unsqueeze(1)).to(device)  # (T, B)
        self.shape = valid.shape
        self.lengths = valid.sum(0)
        self.places = valid.flatten().nonzero().squeeze(1)

    def pad(self, packed: Tensor) -> Tensor:
        zeros = packed.new_zeros(self.shape.numel(), packed.size(-1))
        rows = packed[: self.places.numel()]
        return zeros.index_copy(0, self.places, rows).view(*self.shape, packed.size(-1))

    def pack(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 1).index_select(0, self.places)


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    has_biases: bool = True,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    reset_state: Tensor | None = None,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run all layers and directions; the arguments are those of the operator ``fastrnn::rnn``.

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``, or the data of a packed sequence, (sum
            of lengths, I).
        hx: (L*D, B, H), or None for zeros.
        weights: For each layer and direction ``w_ih, w_hh[, b_ih, b_hh]``.
        batch_sizes: (T) int64 on the CPU, for packed data.
        lengths: (B), valid steps of each row of padded input.
        reset: (T, B) bool, or (B, T) with ``batch_first``: true where a new sequence begins.
            (T, B) for packed data too.
        dropout_mask: (L-1, *output.shape), time-major; multiplies the output of every layer but
            the last.
        reset_state: (L*D, B, H), the state where a new sequence begins, or None for zeros; the
            operator takes none.
        states: (L, rows of all steps, D*H), the output of every layer, if it is known.

    Returns:
        ``output``, like ``input`` with D*H features, and ``hn`` (L*D, B, H).
    """
    output, hn, _ = rnn_extended(
        input,
        hx,
        weights,
        batch_sizes,
        lengths,
        reset,
        dropout_mask,
        has_biases,
        num_layers,
        nonlinearity,
        bidirectional,
        batch_first,
        reset_state=reset_state,
        states=states,
    )
    return output, hn


def rnn_extended(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    dropout_mask: Tensor | None = None,
    has_biases: bool = True,
    num_layers: int = 1,
    nonlinearity: str = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    gates: Tensor | None = None,
    alpha: Tensor | None = None,
    alpha_value: float = 1.0,
    form: str = "rate",
    return_layers: bool = False,
    *,
    reset_state: Tensor | None = None,
    states: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run all layers and directions; the arguments are those of ``fastrnn::rnn_extended``.

    Args:
        input, hx, weights, batch_sizes, lengths, reset, dropout_mask, has_biases, num_layers,
            nonlinearity, bidirectional, batch_first, reset_state, states: As in :func:`rnn`.
        gates: (1 or L, T, B, D*H), or (1 or L, rows, D*H) for packed data: added to the projected
            input of the first layer or of every layer. Time-major.
        alpha: (L*D, H), the leak of each unit, or None for ``alpha_value``.
        alpha_value: The leak of every unit.
        form: ``"rate"`` or ``"current"``, see :func:`rnn_layer`.
        return_layers: Whether the third result is wanted.

    Returns:
        ``output`` and ``hn`` as :func:`rnn`, and the output of every layer, (L, T, B, D*H) or
        (L, rows, D*H), or nothing, (0).
    """
    packing = None if batch_sizes is None else _Packing(batch_sizes, input.device)
    if packing is not None:
        input, lengths, batch_first = packing.pad(input), packing.lengths, False
        if dropout_mask is not None:
            dropout_mask = torch.stack([packing.pad(mask) for mask in dropout_mask])
        if states is not None:
            states = torch.stack([packing.pad(layer) for layer in states])
        if gates is not None:
            gates = torch.stack([packing.pad(layer) for layer in gates])
    if batch_first:
        input = input.transpose(0, 1)
        reset = None if reset is None else reset.transpose(0, 1)
    num_directions = 2 if bidirectional else 1
    if hx is None:
        hidden_size = weights[1].size(-1)
        hx = input.new_zeros(num_layers * num_directions, input.size(1), hidden_size)
    if states is not None:
        states = states.view(num_layers, *input.shape[:2], states.size(-1))
    per_direction = 4 if has_biases else 2
    activation = {"tanh": torch.tanh, "relu": torch.relu}[nonlinearity]
    hn, layers = [], []
    for layer in range(num_layers):
        layer_gates = None
        if gates is not None and layer < gates.size(0):
            layer_gates = gates[layer].chunk(num_directions, -1)
        outputs = []
        for direction in range(num_directions):
            i = layer * num_directions + direction
            known = None if states is None else states[layer].chunk(num_directions, -1)[direction]
            output, h = rnn_layer(
                input,
                hx[i],
                weights[i * per_direction : (i + 1) * per_direction],
                activation,
                reverse=direction == 1,
                lengths=lengths,
                reset=reset,
                reset_state=None if reset_state is None else reset_state[i],
                states=known,
                gates=None if layer_gates is None else layer_gates[direction],
                alpha=alpha_value if alpha is None else alpha[i],
                form=form,
            )
            outputs.append(output)
            hn.append(h)
        input = torch.cat(outputs, -1) if bidirectional else outputs[0]
        layers.append(input)
        if dropout_mask is not None and layer < num_layers - 1:
            input = input * dropout_mask[layer]
    if packing is not None:
        layers = [packing.pack(output) for output in layers]
    output = layers[-1].transpose(0, 1) if batch_first else layers[-1]
    stacked = torch.stack(layers) if return_layers else output.new_empty(0)
    return output, torch.stack(hn), stacked


def rnn_backward(
    grad_output: Tensor | None,
    grad_hn: Tensor | None,
    saved: Tensor,
    wanted: Sequence[bool],
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *args: object,
) -> list[Tensor]:
    """Return the gradients of :func:`rnn`, which can be differentiated again.

    Args:
        grad_output: The gradient of ``output``, or None.
        grad_hn: The gradient of ``hn``, or None.
        saved: The output of every layer, (L, rows of all steps, D*H).
        wanted: For each of ``input, hx, *weights``, whether its gradient is wanted.
        input, hx, weights, args: The arguments of :func:`rnn`. Those that no gradient needs may
            hold anything.

    Returns:
        The gradients that are wanted, in this order.
    """

    def run(input: Tensor, hx: Tensor | None, *weights: Tensor) -> tuple[Tensor, Tensor]:
        return rnn(input, hx, weights, *args, states=saved)  # type: ignore[arg-type, misc]

    return _gradients(run, [input, hx, *weights], wanted, [grad_output, grad_hn])


def rnn_extended_backward(
    grads: Sequence[Tensor | None],
    wanted: Sequence[bool],
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *args: Any,
) -> list[Tensor]:
    """Return the gradients of :func:`rnn_extended`, which can be differentiated again.

    Args:
        grads: The gradients of its three results, or None for each.
        wanted: For each of ``input, hx, gates, alpha, *weights``, whether its gradient is wanted.
        input, hx, weights, args: Its arguments.

    Returns:
        The gradients that are wanted, in this order.
    """
    *options, gates, alpha, alpha_value, form, return_layers = args

    def run(
        input: Tensor,
        hx: Tensor | None,
        gates: Tensor | None,
        alpha: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        extras = (gates, alpha, alpha_value, form, return_layers)
        return rnn_extended(input, hx, weights, *options, *extras)  # type: ignore[call-arg]

    return _gradients(run, [input, hx, gates, alpha, *weights], wanted, grads)


def _gradients(
    run: Callable[..., tuple[Tensor, ...]],
    arguments: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor]:
    """The gradients of a function's arguments that are wanted, from those of its results."""
    create_graph = torch.is_grad_enabled()
    device = next(x for x in arguments if x is not None).device.type
    # Autocast has done its casts before the call; its state now is that of another call.
    as_called = (
        torch.autocast(device, enabled=False)
        if torch.amp.is_autocast_available(device)
        else contextlib.nullcontext()
    )
    with torch.enable_grad(), as_called:
        # An argument may be computed from another, or be passed twice: each gets its own tensor.
        own = [x if x is None else x.view_as(x) for x in arguments]
        results = run(*own)
        given = [(y, g) for y, g in zip(results, grads, strict=True) if g is not None]
        found = torch.autograd.grad(
            [y for y, _ in given],
            [x for x, want in zip(own, wanted, strict=True) if x is not None and want],
            [g for _, g in given],
            create_graph=create_graph,
            materialize_grads=True,
        )
    return list(found)
