"""The recurrence and its gradients in NumPy: the truth where float64 itself is judged.

All else is judged by fastrnn/reference.py in float64 (problems.py); torch has no long double.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from cases import Case
    from fuzz_problem import Problem


def outputs_and_gradients(
    case: Case | Problem,
    x: np.ndarray,
    hx: np.ndarray,
    weights: list[np.ndarray],
    lengths: list[int],
    grad_output: np.ndarray,
    grad_hn: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]:
    """Forward and backward as loops over steps, in the dtype of the arguments."""
    seq_len, batch, hidden = case.seq_len, case.batch, case.hidden_size
    directions = case.directions
    per = 4 if case.bias else 2
    valid = np.arange(seq_len)[:, None] < np.array(lengths)[None, :]
    grads = [np.zeros_like(w) for w in weights]
    hn, grad_hx = np.zeros_like(hx), np.zeros_like(hx)
    layers = [x]
    for layer in range(case.num_layers):
        output = np.zeros((seq_len, batch, directions * hidden), x.dtype)
        for d in range(directions):
            i = layer * directions + d
            w = weights[i * per : (i + 1) * per]
            h = hx[i]
            for t in range(seq_len) if d == 0 else reversed(range(seq_len)):
                z = layers[-1][t] @ w[0].T + h @ w[1].T + sum(w[2:])
                z = np.tanh(z) if case.nonlinearity == "tanh" else np.maximum(z, 0)
                h = np.where(valid[t][:, None], z, h)
                output[t, :, d * hidden : (d + 1) * hidden] = np.where(valid[t][:, None], z, 0)
            hn[i] = h
        layers.append(output)
    grad = grad_output
    for layer in reversed(range(case.num_layers)):
        below = np.zeros_like(layers[layer])
        for d in range(directions):
            i = layer * directions + d
            w, g = weights[i * per : (i + 1) * per], grads[i * per : (i + 1) * per]
            columns = slice(d * hidden, (d + 1) * hidden)
            output = layers[layer + 1][..., columns]
            carry = grad_hn[i].copy()
            for t in reversed(range(seq_len)) if d == 0 else range(seq_len):
                before = t - 1 if d == 0 else t + 1
                inside = 0 <= before < seq_len
                h_prev = output[before] if inside else hx[i]
                if inside:
                    h_prev = np.where(valid[before][:, None], h_prev, hx[i])
                slope = 1 - output[t] ** 2 if case.nonlinearity == "tanh" else output[t] > 0
                pre = np.where(valid[t][:, None], (grad[t][:, columns] + carry) * slope, 0)
                g[0][...] += pre.T @ layers[layer][t]
                g[1][...] += pre.T @ h_prev
                for b in g[2:]:
                    b += pre.sum(0)
                below[t] += pre @ w[0]
                carry = np.where(valid[t][:, None], pre @ w[1], carry)
            grad_hx[i] = carry
        grad = below
    return layers[-1], hn, grad, grad_hx, grads
