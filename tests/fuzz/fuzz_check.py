"""Run a problem with fastrnn and with the reference in float64, and say what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from cases import FLOOR
from fuzz_calls import (
    OPERATORS,
    arguments,
    by_autograd,
    by_operators,
    call,
    extras,
    gradients,
    named,
)
from fuzz_given import Given, Results
from fuzz_long_double import outputs_and_gradients as long_double_extended
from fuzz_problem import Problem
from fuzz_raw import Raw
from guarded import Memory
from long_double import outputs_and_gradients
from torch import Tensor

from fastrnn import reference

NUDGED = 12  # times that the reference runs with roundings, where nn.RNN itself errs less
CHAIN = 256  # rows of all steps whose gradients of the weights are summed one after the other

tanh, relu, linear = torch.tanh, torch.relu, torch.nn.functional.linear


def error(x: Tensor, truth: Tensor) -> float:
    """As of the tests' cases, but relative to the largest value even where all are small."""
    if truth.numel() == 0:
        return 0.0
    info = torch.finfo(x.dtype)
    scale = max(info.tiny / info.eps, truth.abs().max().item())
    return (x.double() - truth).abs().max().item() / scale


Noise = Callable[..., Tensor]


def noise_of(way: int) -> Noise:
    """How roundings fall: at random, or (1, -1) all up or down, as where all values are alike."""

    def noise(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Up to a rounding of one."""
        eps = torch.finfo(dtype or x.dtype).eps
        if way == 0:
            return eps * torch.empty_like(x).uniform_(-1, 1)
        return torch.full_like(x, way * eps / 2)

    return noise


def rounded_linear(noise: Noise) -> Callable[..., Tensor]:
    """Sums of n terms, one after the other, are off by about sqrt(n) / 2 roundings of what they
    are on the way: of terms of any sign the root of their squares' sum, of one sign the sum.
    """

    def rounded(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        y = linear(input, weight, bias)
        with torch.no_grad():
            size = linear(input.double() ** 2, weight.double() ** 2).sqrt() + y.abs()
            off = (input.size(-1) ** 0.5 / 2 * size).to(y.dtype) * noise(y)
        return y + off

    return rounded


def rounded(
    activation: Callable[[Tensor], Tensor], dtype: torch.dtype, rows: int, noise: Noise
) -> Callable[[Tensor], Tensor]:
    """An activation and its derivative stored in a dtype; the derivative is that of the value.

    The derivative is off by what a sum of so many rows of it is off by, too.
    """
    terms = min(rows, CHAIN) ** 0.5 / 2

    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            h = activation(x)
            h = h * (1 + noise(h, dtype))
            subnormal = h.abs() < torch.finfo(dtype).tiny
            h = torch.where(subnormal, h.to(dtype).to(h.dtype), h)
            ctx.save_for_backward(h)
            return h

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            (h,) = ctx.saved_tensors
            slope: Tensor = 1 - h * h if activation is tanh else h > 0
            return grads[0] * slope * (1 + noise(h, dtype) + terms * noise(h))

    return Rounded.apply


@contextmanager
def roundings(dtype: torch.dtype, rows: int, way: int) -> Iterator[None]:
    """The reference rounds sums, and states to a dtype."""
    noise = noise_of(way)
    with (
        patch("torch.tanh", rounded(tanh, dtype, rows, noise)),
        patch("torch.relu", rounded(relu, dtype, rows, noise)),
        patch("torch.nn.functional.linear", rounded_linear(noise)),
    ):
        yield


def other(
    g: Given, dtype: torch.dtype, of_torch: bool, nudged: bool = False, way: int = 0
) -> Results:
    """What the reference makes of it in a dtype, or torch's own operator.

    If nudged, arguments and sums are moved by roundings of this dtype, states by those of the
    problem's; sums and states as noise_of says.
    """
    p = g.p
    nudge = torch.finfo(dtype).eps if nudged else 0.0

    def like(x: Tensor, dtype: torch.dtype = dtype) -> Tensor:
        y = x.detach().double()
        if nudge:
            y = y * (1 + nudge * g.uniform(*y.shape))
        return y.to(dtype, copy=True, memory_format=torch.contiguous_format)

    leaves = {"input": like(g.input), **dict(zip(g.names, map(like, g.weights), strict=True))}
    if g.hx is not None:
        leaves["hx"] = like(g.hx)
    if g.gates is not None:
        leaves["gates"] = like(g.gates)
    if g.alpha is not None:  # wider than the others
        exact = torch.float64 if dtype == torch.float64 else torch.float32
        leaves["alpha"] = like(g.alpha, exact)
    for name in g.wanted:
        leaves[name].requires_grad_()
    hx, reset = leaves.get("hx"), g.reset
    weights = [leaves[name] for name in g.names]
    if g.order is not None:
        hx = None if hx is None else hx.index_select(1, g.order)
        reset = None if reset is None else reset.index_select(1, g.order)
    if of_torch:
        operator = torch.rnn_relu if p.nonlinearity == "relu" else torch.rnn_tanh
        state = hx
        if state is None:
            state = torch.zeros(g.states, p.batch, p.hidden_size, dtype=dtype)
        config = (p.bias, p.num_layers, 0.0, True, p.bidirectional)
        if g.batch_sizes is not None:
            data = leaves["input"][: g.valid_rows]
            output, hn, *layers = operator(data, g.batch_sizes, state, weights, *config)
        else:
            output, hn, *layers = operator(leaves["input"], state, weights, *config, p.batch_first)
    else:
        mask = None if g.mask is None else like(g.mask)
        given = leaves["input"], hx, weights, g.batch_sizes, g.lengths, reset, mask
        options = p.bias, p.num_layers, p.nonlinearity, p.bidirectional, p.batch_first
        gates, alpha, *of_leak = extras(g)
        gates = None if gates is None else leaves["gates"]
        alpha = None if alpha is None else leaves["alpha"].expand(g.states, p.hidden_size)
        with roundings(g.dtype, int(g.valid.sum()), way) if nudged else nullcontext():
            output, hn, *layers = reference.rnn_extended(*given, *options, gates, alpha, *of_leak)
    if g.order is not None:
        hn = hn.index_select(1, g.order.argsort())
    outputs = named(g, [output, hn, *layers])
    results = {name: y.detach() for name, y in outputs.items()}
    if g.wanted:
        results |= gradients(g, outputs, leaves, like)
    return results


def same_bits(x: Tensor, y: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.shape == y.shape and torch.equal(
        x.contiguous().view(integers), y.contiguous().view(integers)
    )


def in_long_double(g: Given) -> dict[str, np.ndarray]:
    """Where float64 is no truth: what another loop makes of a plain problem, or nothing."""
    p = g.p
    if p.rows == "packed" or g.reset is not None or g.mask is not None:
        return {}

    def wide(x: Tensor | None, *sizes: int) -> np.ndarray:
        if x is None:
            return np.zeros(sizes, np.longdouble)
        return x.detach().numpy().astype(np.longdouble)

    def rows(x: Tensor | None, features: int) -> np.ndarray:
        """Time-major, zero beyond a row's length."""
        if x is None:
            return wide(None, p.seq_len, p.batch, features)
        x = x.detach().masked_fill(~g.valid.unsqueeze(-1), 0)
        return wide(x.transpose(0, 1) if p.batch_first else x)

    if p.extended:
        return extended_in_long_double(g, wide, rows)
    state = g.states, p.batch, p.hidden_size
    features = p.hidden_size * p.directions
    output, hn, grad_input, grad_hx, grads = outputs_and_gradients(
        p,
        rows(g.input, p.input_size),
        wide(g.hx, *state),
        [wide(w) for w in g.weights],
        g.row_lengths,
        rows(g.grad_output, features),
        wide(g.grad_hn, *state),
    )
    if p.batch_first:
        output, grad_input = output.swapaxes(0, 1), grad_input.swapaxes(0, 1)
    found = {"output": output, "hn": hn, "input": grad_input, "hx": grad_hx}
    return found | dict(zip(g.names, grads, strict=True))


def extended_in_long_double(
    g: Given, wide: Callable[..., np.ndarray], rows: Callable[..., np.ndarray]
) -> dict[str, np.ndarray]:
    p, features = g.p, g.p.hidden_size * g.p.directions
    valid = (g.valid.t() if p.batch_first else g.valid).unsqueeze(-1)
    states, all_rows = (g.states, p.batch, p.hidden_size), (p.seq_len, p.batch, features)
    gates, alpha = wide(None, p.num_layers, *all_rows), np.longdouble(p.alpha)
    if g.gates is not None:
        gates[: len(g.gates)] = wide(g.gates.detach().masked_fill(~valid, 0))
    if g.alpha is not None:
        alpha = wide(g.alpha.expand(g.states, p.hidden_size))
    grad_layers = wide(None, *gates.shape)
    if g.grad_layers is not None:
        grad_layers = wide(g.grad_layers.masked_fill(~valid, 0))
    given = {"input": rows(g.input, p.input_size), "hx": wide(g.hx, *states), "gates": gates}
    given["alpha"] = np.broadcast_to(alpha, (g.states, p.hidden_size))
    grads = {"output": rows(g.grad_output, features), "hn": wide(g.grad_hn, *states)}
    grads["layers"] = grad_layers
    weights = [wide(w) for w in g.weights]
    found, of_weights = long_double_extended(p, given, weights, g.row_lengths, grads)
    if p.batch_first:
        found |= {name: found[name].swapaxes(0, 1) for name in ("output", "input")}
    if g.gates is not None:
        found["gates"] = found["gates"][: len(g.gates)]
    if p.leak == "shared":
        found["alpha"] = found["alpha"].sum(0)
    return found | dict(zip(g.names, of_weights, strict=True))


def relative(x: Tensor, exact: np.ndarray) -> float:
    """As error does."""
    return float(np.abs(x.numpy() - exact).max() / np.abs(exact).max())


def twins(name: str) -> list[str]:
    """Both biases of a layer have one gradient, which nn.RNN sums in two ways."""
    kind, layer = name[:7], name[7:]
    return [f"bias_ih{layer}", f"bias_hh{layer}"] if kind in ("bias_ih", "bias_hh") else [name]


def difference(name: str, ours: Tensor, truth: Tensor, bound: float) -> str:
    """Where a result is the most wrong."""
    x, y = ours.double().flatten(), truth.flatten()
    wrong = (x - y).abs().nan_to_num(float("inf"))
    i = int(wrong.argmax())
    where = [int(k) for k in torch.unravel_index(torch.tensor(i), ours.shape)]
    return (
        f"{name}{where} = {x[i].item():.9g}, expected {y[i].item():.9g}: "
        f"error {error(ours, truth):.3g}, at most {bound:.3g}"
    )


class Check:
    """Checks one problem after the other, in memory that is used again."""

    def __init__(self, isa: str, kernels: ModuleType | None) -> None:
        self.isa, self.kernels, self.memory = isa, kernels, Memory()
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = True
        self.closer = self.without_bound = 0

    def __call__(self, p: Problem) -> str:
        """What is wrong, or nothing."""
        try:
            return self.check(p)
        finally:
            self.memory.reset()

    def check(self, p: Problem) -> str:
        g = Given(p, self.memory)
        raw = Raw(self.kernels, self.isa, g) if p.entry == "raw" and self.kernels else None

        def run(threads: int, with_grad: bool) -> Results:
            if raw is not None:
                return raw.run(threads, with_grad)
            torch.set_num_threads(threads)
            if with_grad:
                return by_operators(g) if p.entry.startswith("kernels") else by_autograd(g)
            if p.entry == "kernels_of_operators":
                return named(g, OPERATORS.rnn_forward(*arguments(g), False))
            with torch.no_grad():
                return call(g)

        ours = run(p.threads, True)
        faults = []
        for name, x in run(p.threads, False).items():
            if not same_bits(x, ours[name]):
                faults.append(f"{name} under no_grad differs from {name} with grad")
        large = p.batch * p.hidden_size**2 >= 400_000
        plain = raw is None and not p.extended
        torchs = plain and self.isa == "baseline" and large  # its products hang on threads
        if p.threads > 1 and not torchs:
            for name, x in run(1, True).items():
                if not same_bits(x, ours[name]):
                    faults.append(f"{name} on 1 thread differs from {name} on {p.threads}")
        faults += [f"memory of or around {name} was written" for name in self.memory.written()]
        if raw is not None:
            faults += [f"memory around {name} was written" for name in raw.outside]
        torch.set_num_threads(1)
        return "; ".join(faults + self.inaccurate(g, ours))

    def inaccurate(self, g: Given, ours: Results) -> list[str]:
        """As assert_as_accurate, but that luck counts for less.

        Of few numbers, nn.RNN may hit some exactly; and in float64 it takes the very steps of the
        truth. So its error is the largest of its own, and of those of the reference whose arguments
        and states are moved by a rounding. Where float64 is no truth for itself, long double is.
        """
        right = other(g, torch.float64, of_torch=False)
        shapes = {name: list(x.shape) for name, x in right.items()}
        found = {name: list(x.shape) for name, x in ours.items()}
        if found != shapes:
            return [f"shapes {found}, expected {shapes}"]
        wide = torch.float64 if g.dtype == torch.float64 else torch.float32  # sums are in this
        # A sum of terms that are alike is off by the same in each: up to a quarter of a rounding.
        alike = min(int(g.valid.sum()), CHAIN) / 4 * torch.finfo(wide).eps
        sums = (*g.names, "alpha")
        floors = {name: FLOOR[g.dtype] + alike * (name in sums) for name in right}
        wrong = {name for name, x in right.items() if not error(ours[name], x) <= floors[name]}
        self.closer += bool(wrong)
        bounds = {name: [floors[name]] for name in wrong}
        plain = not (g.p.extended or g.lengths is not None or g.reset is not None)
        plain = plain and g.mask is None
        for i in range(1 + NUDGED):
            if not wrong:
                return []
            judged = set(wrong)
            if i == 0 and g.p.leaks and wide != g.dtype:
                # In 16 bits its state would not move by a small alpha, but ours must. Only alpha's
                # gradient is a sum of what is stored in 16 bits.
                judged &= {"alpha"}
            if i == 0:
                theirs = other(g, g.dtype, of_torch=plain)
            else:
                theirs = other(g, wide, of_torch=False, nudged=True, way={1: 1, 2: -1}.get(i, 0))
            for name in judged:
                errors = [error(theirs[n], right[n]) for n in twins(name) if n in right]
                bound = 2 * max(errors) + floors[name]
                bounds[name].append(bound)
                if (i == 0 or bound < 0.5) and error(ours[name], right[name]) <= bound:
                    wrong.remove(name)
        exact = in_long_double(g) if wrong and g.dtype == torch.float64 else {}
        for name in wrong & exact.keys():
            mine, off = (relative(x[name], exact[name]) for x in (ours, right))
            if mine <= 2 * off + floors[name]:  # it is the truth that was off
                wrong.remove(name)
        for name in list(wrong):
            # No bound where many of theirs have no right digit; but what is finite stays so.
            without = sum(not bound < 0.5 for bound in bounds[name]) > NUDGED / 4
            finite = right[name].abs() <= torch.finfo(g.dtype).max
            if without and bool(ours[name][finite].isfinite().all()):
                self.without_bound += 1
                wrong.remove(name)
        return [
            difference(name, ours[name], right[name], max(bounds[name])) for name in sorted(wrong)
        ]
