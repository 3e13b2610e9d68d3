"""A problem to solve, the modules that solve it, and the check that they agree.

A training step is forward and backward, to the gradients of the input, hx and every weight.
Gradient mode is the caller's: time a step inside `grad_mode`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from benchmarks.shapes import Shape

Results = dict[str, Tensor]
MODULES = ("nn.RNN", "fastrnn")

# What may be lost where nn.RNN happens to be exact, as a share of the norm of the result.
FLOOR = {torch.float64: 1e-13, torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def module_class(name: str) -> type[Any]:
    """Of nn.RNN without importing fastrnn, so that it is measured where fastrnn does not load."""
    if name == "nn.RNN":
        return torch.nn.RNN
    import fastrnn

    return fastrnn.RNN


@dataclass(frozen=True)
class Contestant:
    name: str
    step: Callable[[], object]  # what is timed
    results: Callable[[], Results]  # a step's output and hn and, in training, gradients by name


class Problem:
    """The values of a row, the same for every contestant: input (T, B, I), hx and grad_output."""

    def __init__(self, shape: Shape, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.shape = shape
        self.dtype: torch.dtype = getattr(torch, shape.dtype)
        features = shape.num_directions * shape.hidden_size
        states = shape.num_layers * shape.num_directions
        self.input = torch.randn(shape.seq_len, shape.batch, shape.input_size, dtype=self.dtype)
        self.hx = torch.randn(states, shape.batch, shape.hidden_size, dtype=self.dtype)
        self.grad_output = torch.randn(shape.seq_len, shape.batch, features, dtype=self.dtype)
        self.lengths = None if shape.lengths is None else torch.tensor(shape.lengths)
        self.weights = self.module(torch.nn.RNN, self.dtype).state_dict()

    def module(self, cls: type[Any], dtype: torch.dtype) -> torch.nn.RNNBase:
        s = self.shape
        rnn: torch.nn.RNNBase = cls(
            s.input_size,
            s.hidden_size,
            s.num_layers,
            nonlinearity=s.nonlinearity,
            bidirectional=s.bidirectional,
            dtype=dtype,
        )
        if hasattr(self, "weights"):
            rnn.load_state_dict(self.weights)
        return rnn

    def pack(self, x: Tensor) -> PackedSequence:
        assert self.lengths is not None
        return pack_padded_sequence(x, self.lengths, enforce_sorted=False)

    def valid_rows(self, x: Tensor) -> Tensor:
        """Of (T, B, features), the rows within each length; all of them if lengths are equal."""
        return x if self.lengths is None else self.pack(x).data


def grad_mode(training: bool) -> torch.set_grad_enabled:
    return torch.set_grad_enabled(training)


def make_contestant(
    name: str, problem: Problem, training: bool, dtype: torch.dtype | None = None
) -> Contestant:
    """nn.RNN or fastrnn; a ragged row is packed for nn.RNN, whichever way fastrnn takes it."""
    dtype = dtype or problem.dtype
    rnn = problem.module(module_class(name), dtype).train(training)
    arguments: dict[str, Any] = {}
    input: Any = problem.input.to(dtype, copy=True)
    hx = problem.hx.to(dtype, copy=True)
    grad_output = problem.grad_output.to(dtype)
    packed = bool(problem.shape.ragged) and (name == "nn.RNN" or problem.shape.ragged == "packed")
    if packed:
        input, grad_output = problem.pack(input), problem.pack(grad_output).data
    elif problem.shape.ragged:
        arguments["lengths"] = problem.lengths
        padding = torch.arange(problem.shape.seq_len)[:, None] >= problem.lengths
        grad_output = grad_output.masked_fill(padding[..., None], 0)
    leaves = {"input": input.data if packed else input, "hx": hx, **dict(rnn.named_parameters())}
    for leaf in leaves.values():
        leaf.requires_grad_(training)

    def forward() -> tuple[Any, Tensor]:
        return rnn(input, hx, **arguments)

    def training_step() -> tuple[Any, Tensor]:
        for leaf in leaves.values():
            leaf.grad = None
        output, hn = rnn(input, hx, **arguments)
        (output.data if packed else output).backward(grad_output)
        return output, hn

    step = training_step if training else forward

    def results() -> Results:
        with grad_mode(training):
            output, hn = step()
        found = {"output": output.data if packed else problem.valid_rows(output), "hn": hn}
        if training:
            for leaf_name, leaf in leaves.items():
                grad = leaf.grad
                if leaf_name == "input" and not packed:
                    grad = problem.valid_rows(grad)
                found[f"grad_{leaf_name}"] = grad
        return {key: x.detach().clone() for key, x in found.items()}

    return Contestant(name, step, results)


def make_pair(shape: Shape, training: bool) -> list[Contestant]:
    """nn.RNN and fastrnn, which agree."""
    problem = Problem(shape)
    contestants = [make_contestant(name, problem, training) for name in MODULES]
    check(problem, contestants, training)
    return contestants


def error(x: Tensor, truth: Tensor) -> float:
    """Norm of the difference as a share of the norm."""
    return ((x.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def check(problem: Problem, contestants: Sequence[Contestant], training: bool) -> None:
    """Raise unless each result errs at most twice as much as nn.RNN's, or its dtype's floor.

    The truth is nn.RNN in float64. The first contestant is nn.RNN.
    """
    truth = make_contestant("nn.RNN", problem, training, torch.float64).results()
    allowed = {
        key: 2 * error(x, truth[key]) + FLOOR[x.dtype]
        for key, x in contestants[0].results().items()
    }
    for contestant in contestants[1:]:
        results = contestant.results()
        for key, bound in allowed.items():
            lost = error(results[key], truth[key])
            if not lost <= bound:
                where = f"{contestant.name}, {problem.shape}, {key}"
                raise AssertionError(f"{where}: error {lost:.2g}, allowed {bound:.2g}")
