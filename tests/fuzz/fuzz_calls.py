"""Every way to call the library with the tensors of a random problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fuzz_given import Given, Results
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn

OPERATORS = torch.ops.fastrnn


def gradients(
    g: Given, output: Tensor, hn: Tensor, leaves: dict[str, Tensor], like: Callable[..., Any]
) -> Results:
    """Of the leaves that are wanted, from the outputs' gradients as ``like`` converts them."""
    given = [(output, g.grad_output), (hn, g.grad_hn)]
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


def call(g: Given) -> tuple[Tensor, Tensor]:
    p, hx, reset = g.p, g.hx, g.reset
    x: Any = g.input
    if p.entry == "operator":
        output, hn = OPERATORS.rnn(*arguments(g))
        return output, hn
    if p.entry in ("RNNCell", "step"):
        return call_steps(g)
    options: dict[str, Any] = {
        "num_layers": p.num_layers,
        "bidirectional": p.bidirectional,
        "batch_first": p.batch_first,
    }
    dim = 0 if p.batch_first else 1
    if p.unbatched:
        x = x.squeeze(dim)
        hx = None if hx is None else hx.squeeze(1)
        reset = None if reset is None else reset.squeeze(dim)
    elif g.batch_sizes is not None:
        order = g.order
        x = PackedSequence(x, g.batch_sizes, order, None if order is None else order.argsort())
    marks: dict[str, Any] = {"lengths": g.lengths, "reset": reset}
    if p.entry == "RNN":
        output, hn = module_of(g, fastrnn.RNN, **options)(x, hx, **marks)
    else:
        options |= {"bias": p.bias, "nonlinearity": p.nonlinearity}
        output, hn = fastrnn.functional.rnn(x, hx, g.weights, **options, **marks)
    if p.unbatched:
        return output.unsqueeze(dim), hn.unsqueeze(1)
    return output.data if isinstance(output, PackedSequence) else output, hn


def by_autograd(g: Given) -> Results:
    """With gradients of what wants them, through autograd."""
    for name in g.wanted:
        g.leaves[name].requires_grad_()
    output, hn = call(g)
    results = {"output": output.detach(), "hn": hn.detach()}
    if g.wanted:
        results |= gradients(g, output, hn, g.leaves, lambda x: x)
    for name in g.wanted:
        g.leaves[name].requires_grad_(False)
    return results


def by_operators(g: Given) -> Results:
    """rnn_forward and rnn_backward."""
    given = arguments(g)
    output, hn, saved = OPERATORS.rnn_forward(*given, True)
    results = {"output": output, "hn": hn}
    weights = any(name in g.wanted for name in g.names)
    if not g.wanted:
        return results
    kept = g.memory.put("saved", saved, None, g.rng)
    grad_input, grad_hx, grads = OPERATORS.rnn_backward(
        g.grad_output, g.grad_hn, kept, *given, "input" in g.wanted, "hx" in g.wanted, weights
    )
    found = {"input": grad_input, "hx": grad_hx}
    if weights:
        found |= dict(zip(g.names, grads, strict=True))
    return results | {name: found[name] for name in g.wanted}
