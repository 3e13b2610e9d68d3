"""The Elman recurrence as readable torch code, differentiable to any order.

The tests compare the kernels with it, and it serves the calls that neither the kernels nor torch's
own operator can: forward-mode differentiation, ``torch.func`` transforms, gradients of gradients,
``reset_state``, and ``lengths`` or ``reset`` where there is no kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

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
) -> tuple[Tensor, Tensor]:
    """Run one layer in one direction.

    .. math:: h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

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
            derivatives.

    Returns:
        The output (T, B, H) and the state after each row's last step, (B, H).

    Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990.
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
    igates = F.linear(input, w_ih, b_ih).unbind(0)  # its gradient is one stack, not T zero tensors
    seq_len = input.size(0)
    if reset_state is None:
        reset_state = torch.zeros_like(hx)
    output: list[Tensor] = []
    h = hx
    for t in reversed(range(seq_len)) if reverse else range(seq_len):
        h_prev = h
        # In reverse, a sequence is entered where the next one begins.
        boundary = t + 1 if reverse else t
        if reset is not None and boundary < seq_len:
            h_prev = torch.where(reset[boundary].unsqueeze(-1), reset_state, h_prev)
        a_t = igates[t] + F.linear(h_prev, w_hh, b_hh)
        if states is None:
            h_t = activation(a_t)
        else:
            h_t = _C.known_activation(a_t, states[t], activation is torch.tanh)
        if lengths is None:
            h = h_t
            output.append(h_t)
        else:
            here = valid[t].unsqueeze(-1)
            h = torch.where(here, h_t, h)
            output.append(torch.where(here, h_t, torch.zeros_like(h_t)))
    return torch.stack(output[::-1] if reverse else output), h


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
    packing = None if batch_sizes is None else _Packing(batch_sizes, input.device)
    if packing is not None:
        input, lengths, batch_first = packing.pad(input), packing.lengths, False
        if dropout_mask is not None:
            dropout_mask = torch.stack([packing.pad(mask) for mask in dropout_mask])
        if states is not None:
            states = torch.stack([packing.pad(layer) for layer in states])
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
    hn = []
    for layer in range(num_layers):
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
            )
            outputs.append(output)
            hn.append(h)
        input = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout_mask is not None and layer < num_layers - 1:
            input = input * dropout_mask[layer]
    if packing is not None:
        input = packing.pack(input)
    return input.transpose(0, 1) if batch_first else input, torch.stack(hn)


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
    create_graph = torch.is_grad_enabled()
    arguments = [input, hx, *weights]
    device = input.device.type
    # Autocast has done its casts before the call; its state now is that of another call.
    as_called = (
        torch.autocast(device, enabled=False)
        if torch.amp.is_autocast_available(device)
        else contextlib.nullcontext()
    )
    with torch.enable_grad(), as_called:
        # An argument may be computed from another, or be passed twice: each gets its own tensor.
        own = [x if x is None else x.view_as(x) for x in arguments]
        results = rnn(own[0], own[1], own[2:], *args, states=saved)  # type: ignore[arg-type, misc]
        given = [
            (y, g) for y, g in zip(results, (grad_output, grad_hn), strict=True) if g is not None
        ]
        grads = torch.autograd.grad(
            [y for y, _ in given],
            [x for x, want in zip(own, wanted, strict=True) if x is not None and want],
            [g for _, g in given],
            create_graph=create_graph,
            materialize_grads=True,
        )
    return list(grads)
