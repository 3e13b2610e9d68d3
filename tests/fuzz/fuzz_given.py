"""The tensors of a random problem, in guarded memory."""

from __future__ import annotations

import random
from typing import Any

import torch
from fuzz_problem import Problem
from guarded import Memory, strides_of
from torch import Tensor, nn

Results = dict[str, Tensor]


class Given:
    """The tensors of a problem, guarded, and what must not matter of them."""

    def __init__(self, p: Problem, memory: Memory) -> None:
        self.p, self.memory = p, memory
        self.dtype = getattr(torch, p.dtype)
        self.rng = random.Random(p.seed)
        self.generator = torch.Generator().manual_seed(p.seed)
        T, B, H, D = p.seq_len, p.batch, p.hidden_size, p.directions
        self.states = p.num_layers * D
        lengths = [self.rng.randint(p.rows == "packed", T) for _ in range(B)]
        if p.rows == "packed":
            lengths[0] = T
            lengths.sort(reverse=True)
        elif p.rows == "padded":
            lengths = [T] * B
        self.row_lengths = lengths
        active = [sum(n > t for n in lengths) for t in range(T)]
        packed = p.rows == "packed"
        steps = torch.arange(T)[:, None]
        valid = steps < torch.tensor(lengths)  # (T, B)
        if packed:
            self.valid_rows = sum(active)
            rows = [self.valid_rows + p.extra_rows]
            valid_in = torch.arange(rows[0]) < self.valid_rows
        else:
            rows = [B, T] if p.batch_first else [T, B]
            valid_in = valid.t() if p.batch_first else valid
        self.valid = valid_in[: self.valid_rows] if packed else valid_in  # of the output
        self.batch_sizes = self.lengths = self.reset = self.mask = self.order = None
        marks = p.marks_layout
        if packed:
            self.batch_sizes = self.put("batch_sizes", torch.tensor(active))
            self.active = active
            if p.unsorted:
                self.order = torch.tensor(self.rng.sample(range(B), B))
        elif p.rows == "lengths":
            self.lengths = self.put("lengths", torch.tensor(lengths), marks)
            self.active = active
        begun = torch.zeros(B, dtype=torch.bool)  # rows whose hx does not matter going forward
        if p.reset:
            reset = self.uniform(T, B) < -0.4
            self.reset = self.put("reset", reset.t() if p.batch_first else reset, marks)
            reset = self.reset.t() if p.batch_first else self.reset
            if self.order is not None:
                reset = reset[:, self.order]
            begun = reset[0] & valid[0]
        self.begun = begun

        relu = p.nonlinearity == "relu"
        x = self.uniform(*rows, p.input_size)
        x = x.abs() * 0.5 + 0.5 if relu else x * 2
        self.input = self.put("input", x, p.input_layout, ~valid_in)
        self.hx = None
        if p.hx:
            hx = self.uniform(self.states, B, H)
            must_not_matter = torch.zeros(self.states, B, dtype=torch.bool)
            place = begun if self.order is None else begun[self.order.argsort()]
            must_not_matter[::D] = place
            garbage = 0.0 if p.entry == "raw" else None  # the kernels leave it to their caller
            hx = hx.abs() if relu else hx
        self.names, self.weights, self.signs = [], [], []
        weights = [*self.weight_values()]
        if p.hx:
            if relu and p.form == "current":  # which would cross the kink
                hx = hx * torch.cat(self.signs).unsqueeze(1)
            self.hx = self.put("hx", hx, p.hx_layout, must_not_matter, garbage)
        for name, values in weights:
            self.names.append(name)
            layout = "dense" if p.entry == "raw" else p.weights_layout
            self.weights.append(nn.Parameter(self.put(name, values, layout), False))
        if p.dropout:
            shape = [p.num_layers - 1, *(rows if packed else [T, B]), D * H]
            keep = (self.uniform(*shape) < 0.4) / 0.7
            of_mask = ~(valid_in if packed else valid)
            of_mask = of_mask.expand(p.num_layers - 1, *of_mask.shape)
            layout = "dense" if p.entry == "raw" else p.marks_layout
            self.mask = self.put("dropout_mask", keep.double(), layout, of_mask)
        out_rows = [self.valid_rows] if packed else rows
        self.grad_output = self.grad_hn = None
        if p.gradients in ("both", "output"):
            g = self.uniform(*out_rows, D * H)
            self.grad_output = self.put("grad_output", g, p.gradients_layout, ~self.valid)
        if p.gradients in ("both", "hn"):
            g = self.uniform(self.states, B, H)
            layout = "dense" if p.entry == "raw" else p.gradients_layout
            self.grad_hn = self.put("grad_hn", g, layout)
        self.gates = self.alpha = self.grad_layers = None
        if p.extended:
            self.put_extras([*rows] if packed else [T, B], valid_in if packed else valid)
        self.leaves: dict[str, Any] = {"input": self.input, "hx": self.hx}
        self.leaves |= zip(self.names, self.weights, strict=True)
        self.leaves |= {"gates": self.gates, "alpha": self.alpha}
        self.wanted = [
            name
            for i, (name, x) in enumerate(self.leaves.items())
            if x is not None and not p.frozen >> i % 14 & 1
        ]

    def put_extras(self, rows: list[int], valid: Tensor) -> None:
        """The gates and the layers' gradient, of time-major rows, and the leak of each unit."""
        p = self.p
        features = p.directions * p.hidden_size
        if p.gates:
            count = 1 if p.gates == "first" else p.num_layers
            gates = self.uniform(count, *rows, features)
            if p.nonlinearity == "relu":
                signs = torch.cat(self.signs).view(p.num_layers, *[1] * len(rows), features)
                gates = gates.abs() * signs[:count] * 0.5
            outside = (~valid).expand(count, *valid.shape)
            self.gates = self.put("gates", gates, p.marks_layout, outside)
        if p.leak != "number":
            size = (p.hidden_size,) if p.leak == "shared" else (self.states, p.hidden_size)
            alpha = p.alpha ** self.uniform(*size).abs()
            exact = torch.float64 if self.dtype == torch.float64 else torch.float32
            self.alpha = self.put("alpha", alpha, p.hx_layout, dtype=exact)
            if p.leak == "parameter":
                self.alpha = nn.Parameter(self.alpha, False)
        if p.grad_layers:
            valid = valid[: self.valid_rows] if p.rows == "packed" else valid
            g = self.uniform(p.num_layers, *valid.shape, features)
            outside = (~valid).expand(p.num_layers, *valid.shape)
            self.grad_layers = self.put("grad_layers", g, p.gradients_layout, outside)

    def uniform(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=self.generator)

    def put(
        self,
        name: str,
        values: Tensor,
        layout: str = "dense",
        outside: Tensor | None = None,
        garbage: float | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Guarded; where ``outside`` is true of the leading dimensions, NaN or infinity."""
        values = values.to(dtype or self.dtype) if values.is_floating_point() else values
        strides = strides_of(layout, values.shape)
        if strides is not None and self.p.entry == "raw" and name != "reset" and strides[-1] != 1:
            strides = None
        if outside is not None and outside.any():
            if layout == "windows" or layout.startswith("expanded"):
                strides = None  # the garbage would be in other rows, too
            values[outside] = float(self.p.garbage) if garbage is None else garbage
        if strides is not None and layout.startswith("expanded"):
            over = int(layout[-1])
            if over < values.dim() - 1 and values.size(over) > 0:  # all are written to one place
                values = values.narrow(over, 0, 1).expand_as(values)
        return self.memory.put(name, values, strides, self.rng)

    def weight_values(self) -> Any:
        """For tanh of a few units' size; for relu one sign for each unit, as its kink wants.

        A sum of terms of one sign is not near zero, where rounding would decide which side of the
        kink it is on.
        """
        p = self.p
        relu, H = p.nonlinearity == "relu", p.hidden_size
        for layer in range(p.num_layers):
            features = p.input_size if layer == 0 else H * p.directions
            for suffix in ("", "_reverse")[: p.directions]:
                signs = torch.where(self.uniform(H, 1) < -0.3, -1.0, 1.0).double()
                self.signs.append(signs.view(1, H))
                for kind, columns in (("ih", features), ("hh", H)):
                    w = self.uniform(H, columns)
                    w = w.abs() * signs / columns if relu else w * H**-0.5
                    yield f"weight_{kind}_l{layer}{suffix}", w * p.scale
                for kind in ("ih", "hh")[: 2 * p.bias]:
                    b = self.uniform(H) * max(1.0, p.scale)
                    yield f"bias_{kind}_l{layer}{suffix}", b.abs() * signs[:, 0] if relu else b
