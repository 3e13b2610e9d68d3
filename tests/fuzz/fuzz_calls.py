"""Every way to call the library with the tensors of a random problem."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from fuzz_given import Given, Results
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn

OPERATORS = torch.ops.fastrnn


def named(g: Given, outputs: Iterable[Tensor]) -> Results:
    """The outputs of a call by name."""
    return dict(zip(("output", "hn", "layers")[: 3 if g.p.layers else 2], outputs, strict=False))


def gradients(
    g: Given, outputs: Results, leaves: dict[str, Tensor], like: Callable[..., Any]
) -> Results:
    """Of the leaves that are wanted, from the outputs' gradients as ``like`` converts them."""
    grads = {"output": g.grad_output, "hn": g.grad_hn, "layers": g.grad_layers}
    given = [(y, grads[name]) for name, y in outputs.items()]
    pairs = [(y, like(grad)) for y, grad in given if grad is not None]
    found = torch.autograd.grad(
        [y for y, _ in pairs],
        [leaves[name] for name in g.wanted],
        [grad for _, grad in pairs],
        materialize_grads=True,
    )
    return dict(zip(g.wanted, found, strict=True))


def arguments(g: Given) -> tuple[Any, ...]:
    """Of the operators."""
    p = g.p
    marks = (g.batch_sizes, g.lengths, g.reset, g.mask)
    options = (p.bias, p.num_layers, p.nonlinearity, p.bidirectional, p.batch_first)
    return g.input, g.hx, g.weights, *marks, *options


def extras(g: Given) -> tuple[Any, ...]:
    """Of the operators, the arguments that only the extended ones have."""
    p = g.p
    return g.gates, g.alpha, p.alpha if g.alpha is None else 1.0, p.form, p.layers


def module_of(g: Given, cls: type, **options: Any) -> Any:
    p = g.p
    options |= {"bias": p.bias, "nonlinearity": p.nonlinearity, "device": "meta"}
    module = cls(p.input_size, p.hidden_size, **options)
    for name, w in zip(g.names, g.weights, strict=True):
        setattr(module, name.removesuffix("_l0") if cls is fastrnn.RNNCell else name, w)
    return module


def call_steps(g: Given) -> tuple[Tensor, Tensor]:
    """RNN.step or RNNCell from step to step."""
    p, h, outputs = g.p, g.hx, []
    cell = p.entry == "RNNCell"
    if cell:
        module = module_of(g, fastrnn.RNNCell)
        h = None if h is None else h[0]
    else:
        module = module_of(g, fastrnn.RNN, num_layers=p.num_layers)
    if p.unbatched and h is not None:
        h = h.squeeze(-2)
    for t in range(p.seq_len):
        x, marks = g.input[t], None if g.reset is None else g.reset[t]
        if p.unbatched:
            x, marks = x.squeeze(0), None if marks is None else marks.squeeze(0)
        if cell:
            h = output = module(x, h, reset=marks)
        else:
            output, h = module.step(x, h, reset=marks)
        outputs.append(output)
    output = torch.stack(outputs)
    assert h is not None
    hn = h.unsqueeze(0) if cell else h
    return (output.unsqueeze(1), hn.unsqueeze(1)) if p.unbatched else (output, hn)


def like_the_input(g: Given, x: Tensor) -> Tensor:
    """Or back: tensors of all layers, which the operators take and return time-major."""
    return x.transpose(1, 2) if g.p.batch_first else x


def leaky(g: Given, packed: Callable[[Tensor], Any]) -> tuple[Any, dict[str, Any]]:
    """LeakyRNN's leak, and the arguments of its call that RNN does not have."""
    p = g.p
    options: dict[str, Any] = {"return_layers": p.layers}
    if g.gates is not None:
        gates = like_the_input(g, g.gates)
        gates = gates.squeeze(1 if p.batch_first else 2) if p.unbatched else gates
        options |= {"igates": packed(gates[0])} if p.gates == "first" else {"noise": gates}
    return p.alpha if g.alpha is None else g.alpha, options


def call(g: Given) -> Results:
    p = g.p
    if p.entry == "operator":
        return named(g, OPERATORS.rnn(*arguments(g)))
    if p.entry in ("extended", "kernels_of_extended"):
        return named(g, OPERATORS.rnn_extended(*arguments(g), *extras(g)))
    return named(g, call_steps(g) if p.entry in ("RNNCell", "step") else call_sequence(g))


def call_sequence(g: Given) -> tuple[Tensor, ...]:
    """A module, or functional.rnn."""
    p, hx, reset = g.p, g.hx, g.reset
    x: Any = g.input
    options: dict[str, Any] = {
        "num_layers": p.num_layers,
        "bidirectional": p.bidirectional,
        "batch_first": p.batch_first,
    }
    dim = 0 if p.batch_first else 1

    def packed(x: Tensor) -> Any:
        if g.batch_sizes is None:
            return x
        order = g.order
        return PackedSequence(x, g.batch_sizes, order, None if order is None else order.argsort())

    if p.unbatched:
        x = x.squeeze(dim)
        hx = None if hx is None else hx.squeeze(1)
        reset = None if reset is None else reset.squeeze(dim)
    x = packed(x)
    marks: dict[str, Any] = {"lengths": g.lengths, "reset": reset}
    layers: Any = ()
    if p.entry == "RNN":
        output, hn = module_of(g, fastrnn.RNN, **options)(x, hx, **marks)
    elif p.entry == "LeakyRNN":
        alpha, more = leaky(g, packed)
        of_new = alpha.detach() if type(alpha) is Tensor else alpha  # which may want gradients
        module = module_of(g, fastrnn.LeakyRNN, alpha=of_new, form=p.form, **options)
        module.alpha = alpha  # in guarded memory, as the weights
        output, hn, *layers = module(x, hx, **marks, **more)
    else:
        options |= {"bias": p.bias, "nonlinearity": p.nonlinearity}
        output, hn = fastrnn.functional.rnn(x, hx, g.weights, **options, **marks)
    if p.unbatched:
        output, hn = output.unsqueeze(dim), hn.unsqueeze(1)
        layers = [y.unsqueeze(dim + 1) for y in layers]
    if isinstance(output, PackedSequence):
        return output.data, hn, *(torch.stack([y.data for y in stack]) for stack in layers)
    return output, hn, *(like_the_input(g, y) for y in layers)


def by_autograd(g: Given) -> Results:
    """With gradients of what wants them, through autograd."""
    for name in g.wanted:
        g.leaves[name].requires_grad_()
    outputs = call(g)
    results = {name: y.detach() for name, y in outputs.items()}
    if g.wanted:
        results |= gradients(g, outputs, g.leaves, lambda x: x)
    for name in g.wanted:
        g.leaves[name].requires_grad_(False)
    return results


def by_operators(g: Given) -> Results:
    """rnn_forward and rnn_backward, or those of rnn_extended."""
    given, extended = arguments(g), g.p.extended
    grads = [g.grad_output, g.grad_hn]
    weights = any(name in g.wanted for name in g.names)
    want = ["input" in g.wanted, "hx" in g.wanted, weights]
    if extended:
        given += extras(g)
        *outputs, saved = OPERATORS.rnn_extended_forward(*given)
        grads.append(g.grad_layers)
        want += ["gates" in g.wanted, "alpha" in g.wanted]
    else:
        *outputs, saved = OPERATORS.rnn_forward(*given, True)
    results = named(g, outputs)
    if not g.wanted:
        return results
    kept = g.memory.put("saved", saved, None, g.rng)
    backward = OPERATORS.rnn_extended_backward if extended else OPERATORS.rnn_backward
    grad_input, grad_hx, grad_weights, *more = backward(*grads, kept, *given, *want)
    found = {
        "input": grad_input,
        "hx": grad_hx,
        **dict(zip(("gates", "alpha"), more, strict=False)),
    }
    if weights:
        found |= dict(zip(g.names, grad_weights, strict=True))
    return results | {name: found[name] for name in g.wanted}
