"""The raw CPU kernels with the tensors of a random problem, by the plan that it says."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from fuzz_given import Given, Results
from fuzz_problem import NEVER
from guarded import strides_of
from torch import Tensor

CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}  # csrc/rnn.h


class Raw:
    """The kernels without torch, by any plan; their results are guarded as well."""

    def __init__(self, kernels: ModuleType, isa: str, g: Given) -> None:
        self.kernels, self.isa, self.g = kernels, isa, g
        self.outside: list[str] = []

    def forced(self, threads: int) -> dict[str, Any]:
        p = self.g.p
        plan = dict(p.plan)
        if plan.get("form") == "packed" and self.isa == "avx512_bf16" and p.dtype == "bfloat16":
            plan["form"] = "packed pairs"
        # Where the order of sums hangs on them, they must not hang on the number of threads.
        if "form" in plan or "split" in plan or "fused_rows" in plan or "fused_rows_above" in plan:
            free = plan.get("form", "as they came") != "as they came" and plan.get("split") is False
            for name in ("fused_rows", "fused_rows_above"):
                if not free and plan.get(name) != 0:
                    plan[name] = NEVER
        if p.dtype in ("bfloat16", "float16"):
            plan |= {"share_columns": False, "fetch_rows": False}
        if p.rows == "packed":
            plan["fetch_rows"] = False
        if plan:
            plan["threads"] = threads
        return plan

    def result(
        self, name: str, shape: list[int], written: Tensor | None = None, layout: str = "dense"
    ) -> Tensor:
        """A place for a result, of which the rows where ``written`` is true are to be written."""
        g = self.g
        strides = strides_of(layout, shape) if layout in ("swapped", "sliced") else None
        if strides is not None and strides[-1] != 1:
            strides = None
        x = g.memory.empty(name, shape, g.dtype, strides, g.rng)
        self.results.append((name, x, written))
        return x

    def taken(self) -> Results:
        """The results, zero where nothing was to be written."""
        found = {}
        for name, x, written in self.results:
            everywhere = torch.ones(x.shape[:-1], dtype=torch.bool)
            where = everywhere if written is None else written
            if self.g.memory.written_outside(x, where):
                self.outside.append(name)
            y = x.clone(memory_format=torch.contiguous_format)
            y[~where] = 0
            found[name] = y
        return found

    def sequence(self, x: Tensor | None) -> Any:
        if x is None:
            return None
        first, second = (0, 1) if self.g.p.batch_first is False else (1, 0)
        if x.dim() == 2:
            return x.data_ptr(), 0, x.stride(0)
        return x.data_ptr(), x.stride(first), x.stride(second)

    def described(self, threads: int) -> dict[str, Any]:
        g, p = self.g, self.g.p
        call: dict[str, Any] = dict.fromkeys(("start", "active", "order", "reset", "dropout_mask"))
        call |= {
            "dtype": CODES[p.dtype],
            "relu": p.nonlinearity == "relu",
            "bias": p.bias,
            "num_layers": p.num_layers,
            "num_directions": p.directions,
            "input_size": p.input_size,
            "hidden_size": p.hidden_size,
            "seq_len": p.seq_len,
            "batch": p.batch,
            "threads": threads,
            "input": self.sequence(g.input),
            "hx": None if g.hx is None else (g.hx.data_ptr(), g.hx.stride(0), g.hx.stride(1)),
            "weights": [w.data_ptr() for w in g.weights],
        }
        if p.rows == "packed":
            call["active"] = g.active
            call["start"] = [sum(g.active[:t]) for t in range(p.seq_len)]
        elif p.rows == "lengths":
            call["active"] = g.active
            call["order"] = sorted(range(p.batch), key=lambda b: -g.row_lengths[b])
        if g.reset is not None:
            first, second = (1, 0) if p.batch_first else (0, 1)
            call["reset"] = g.reset.data_ptr(), g.reset.stride(first), g.reset.stride(second)
        if g.mask is not None:
            mask = g.mask
            if p.rows == "packed" and p.extra_rows:
                mask = g.memory.put("rows of dropout_mask", mask[:, : g.valid_rows].contiguous())
            call["dropout_mask"] = mask.data_ptr(), 0, 0
        return call

    def run(self, threads: int, save: bool) -> Results:
        g, p = self.g, self.g.p
        features = p.directions * p.hidden_size
        forced, call = self.forced(threads), self.described(threads)
        self.results: list[tuple[str, Tensor, Tensor | None]] = []
        output = self.result("output", [*g.valid.shape, features], g.valid, p.gradients_layout)
        hn = self.result("hn", [g.states, p.batch, p.hidden_size])
        call |= {"output": self.sequence(output), "hn": (hn.data_ptr(), 0, 0), "saved": None}
        saved = None
        if save:  # (L, rows, D*H), time-major
            valid = g.valid.t() if p.batch_first else g.valid
            written = valid.flatten().expand(p.num_layers, valid.numel())
            saved = g.memory.empty("saved", [*written.shape, features], g.dtype, None, g.rng)
            call["saved"] = saved.data_ptr(), 0, 0
        self.kernels.run_forward(self.isa, forced, call)
        if saved is None:
            return self.taken()
        if g.memory.written_outside(saved, written):
            self.outside.append("saved")
        g.memory.seal(next(x for x in g.memory.placed if x.tensor is saved))
        if not g.wanted:
            return self.taken()
        grad_input = grad_hx = None
        weights = [w for w in g.names if w in g.wanted]
        if "input" in g.wanted:
            shape = [*g.valid.shape, p.input_size]
            grad_input = self.result("input", shape, g.valid, p.gradients_layout)
        if "hx" in g.wanted:
            grad_hx = self.result("hx", [g.states, p.batch, p.hidden_size])
        grads = None
        if weights:
            shapes = [[1, *w.shape] if w.dim() == 1 else [*w.shape] for w in g.weights]
            grads = [self.result(n, shape) for n, shape in zip(g.names, shapes, strict=True)]
        call |= {
            "grad_output": self.sequence(g.grad_output),
            "grad_hn": None if g.grad_hn is None else (g.grad_hn.data_ptr(), 0, 0),
            "grad_input": self.sequence(grad_input),
            "grad_hx": None if grad_hx is None else (grad_hx.data_ptr(), 0, 0),
            "grad_weights": None if grads is None else [x.data_ptr() for x in grads],
        }
        self.kernels.run_backward(self.isa, forced, call)
        found = self.taken()
        for name in g.names:
            if name in found and name.startswith("bias"):
                found[name] = found[name][0]
        if "hx" in found:  # which leaves to its caller where no gradient passes
            found["hx"][:: p.directions][:, g.begun] = 0
        if "input" in found and p.extra_rows:
            rows = found["input"].new_zeros(p.extra_rows, p.input_size)
            found["input"] = torch.cat([found["input"], rows])
        return {"output": found.pop("output"), "hn": found.pop("hn")} | {
            name: found[name] for name in g.wanted
        }
