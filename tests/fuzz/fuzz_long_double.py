"""Leaks, gates and every layer's output in long double: the truth where float64 itself is judged.

tests/long_double.py has the plain recurrence; csrc/rnn.h the equations.
"""

from __future__ import annotations

import numpy as np
from fuzz_problem import Problem

Arrays = dict[str, np.ndarray]


def outputs_and_gradients(
    p: Problem, given: Arrays, weights: list[np.ndarray], lengths: list[int], grads: Arrays
) -> tuple[Arrays, list[np.ndarray]]:
    """Results by name, and the gradients of the weights.

    Time-major, and zero beyond a row's length: of ``given`` input, hx, gates (L, T, B, D*H) and
    alpha (L*D, H), of ``grads`` output, hn and layers.
    """
    H, per, gates, alpha = p.hidden_size, 4 if p.bias else 2, given["gates"], given["alpha"]
    valid = (np.arange(p.seq_len)[:, None] < np.array(lengths))[..., None]  # (T, B, 1)
    current, is_tanh = p.form == "current", p.nonlinearity == "tanh"

    def f(x: np.ndarray) -> np.ndarray:
        return np.tanh(x) if is_tanh else np.maximum(x, 0)

    def slope(y: np.ndarray) -> np.ndarray:
        return 1 - y * y if is_tanh else y > 0

    def steps(d: int) -> range:
        return range(p.seq_len) if d == 0 else range(p.seq_len - 1, -1, -1)

    hn, layers = np.zeros_like(given["hx"]), [given["input"]]
    before, sums = np.zeros((2, p.num_layers, *gates.shape[1:]), gates.dtype)
    for layer in range(p.num_layers):
        output = np.zeros_like(gates[layer])
        for d in range(p.directions):
            i, of = layer * p.directions + d, slice(d * H, (d + 1) * H)
            w_ih, w_hh, *biases = weights[i * per : (i + 1) * per]
            h, a = given["hx"][i], alpha[i]
            for t in steps(d):
                before[layer, t, :, of] = h
                z = layers[-1][t] @ w_ih.T + (f(h) if current else h) @ w_hh.T + sum(biases)
                z = sums[layer, t, :, of] = z + gates[layer, t, :, of]
                new = (1 - a) * h + a * (z if current else f(z))
                h = np.where(valid[t], new, h)
                output[t, :, of] = np.where(valid[t], f(new) if current else new, 0)
            hn[i] = h
        layers.append(output)
    found = [np.zeros_like(w) for w in weights]
    grad_hx, grad_gates = np.zeros_like(hn), np.zeros_like(gates)
    grad_alpha, grad = np.zeros_like(alpha), grads["output"]
    for layer in reversed(range(p.num_layers)):
        grad = grad + grads["layers"][layer]
        below = np.zeros_like(layers[layer])
        for d in range(p.directions):
            i, of = layer * p.directions + d, slice(d * H, (d + 1) * H)
            w_ih, w_hh = weights[i * per : i * per + 2]
            g, a, carry = found[i * per : (i + 1) * per], alpha[i], grads["hn"][i]
            for t in reversed(steps(d)):
                h, z, y = (
                    before[layer, t, :, of],
                    sums[layer, t, :, of],
                    layers[layer + 1][t, :, of],
                )
                whole = np.where(valid[t], grad[t, :, of] * (slope(y) if current else 1) + carry, 0)
                pre = a * whole * (1 if current else slope(f(z)))
                grad_alpha[i] += (whole * ((z if current else f(z)) - h)).sum(0)
                grad_gates[layer, t, :, of] = pre
                g[0] += pre.T @ layers[layer][t]
                g[1] += pre.T @ (f(h) if current else h)
                for b in g[2:]:
                    b += pre.sum(0)
                below[t] += pre @ w_ih
                back = (pre @ w_hh) * (slope(f(h)) if current else 1)
                carry = np.where(valid[t], (1 - a) * whole + back, carry)
            grad_hx[i] = carry
        grad = below
    results = {"output": layers[-1], "hn": hn, "layers": np.stack(layers[1:]), "input": grad}
    return results | {"hx": grad_hx, "gates": grad_gates, "alpha": grad_alpha}, found
