"""Run a problem with fastrnn and with the reference in float64, and say what is wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from cases import FLOOR, error
from fuzz_problem import NEVER, Problem
from guarded import Memory, contiguous_strides, strides_of
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn import reference

OPERATORS = torch.ops.fastrnn
Results = dict[str, Tensor]
NUDGED = 16
CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3}  # csrc/rnn.h


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
            if p.entry == "raw":  # which leaves to its caller what of hx does not matter
                hx[must_not_matter] = 0
                must_not_matter = None
            self.hx = self.put("hx", hx.abs() if relu else hx, p.hx_layout, must_not_matter)
        self.names, self.weights = [], []
        for name, values in self.weight_values():
            self.names.append(name)
            layout = "dense" if p.entry == "raw" else p.weights_layout
            self.weights.append(nn.Parameter(self.put(name, values, layout), False))
        if p.dropout:
            shape = [p.num_layers - 1, *(rows if packed else [T, B]), D * H]
            keep = (self.uniform(*shape) < 0.4) / 0.7
            of_mask = ~(valid_in if packed else valid)
            layout = "dense" if p.entry == "raw" else p.marks_layout
            self.mask = self.put(
                "dropout_mask", keep.double(), layout, of_mask.expand(p.num_layers - 1, *of_mask.shape)
            )  # fmt: skip
        out_rows = [self.valid_rows] if packed else rows
        self.grad_output = self.grad_hn = None
        if p.gradients != "hn":
            g = self.uniform(*out_rows, D * H)
            self.grad_output = self.put("grad_output", g, p.gradients_layout, ~self.valid)
        if p.gradients != "output":
            g = self.uniform(self.states, B, H)
            layout = "dense" if p.entry == "raw" else p.gradients_layout
            self.grad_hn = self.put("grad_hn", g, layout)
        named = {"input": self.input, "hx": self.hx, **dict(zip(self.names, self.weights, strict=True))}  # fmt: skip
        self.wanted = [
            name
            for i, (name, t) in enumerate(named.items())
            if t is not None and not p.frozen >> min(i, 13) & 1
        ]

    def uniform(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float64).uniform_(-1, 1, generator=self.generator)

    def put(
        self, name: str, values: Tensor, layout: str = "dense", garbage: Tensor | None = None
    ) -> Tensor:
        """Guarded; where ``garbage`` is true of the leading dimensions, NaN or infinity."""
        values = values.to(self.dtype) if values.is_floating_point() else values
        strides = strides_of(layout, values.shape)
        if strides is not None and self.p.entry == "raw" and name != "reset" and strides[-1] != 1:
            strides = None
        if garbage is not None and garbage.any():
            if layout == "windows" or layout.startswith("expanded"):
                strides = None  # the garbage would be in other rows, too
            values[garbage] = float(self.p.garbage)
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
                for kind, columns in (("ih", features), ("hh", H)):
                    w = self.uniform(H, columns)
                    w = w.abs() * signs / columns if relu else w * H**-0.5
                    yield f"weight_{kind}_l{layer}{suffix}", w * p.scale
                for kind in ("ih", "hh")[: 2 * p.bias]:
                    b = self.uniform(H) * max(1.0, p.scale)
                    yield f"bias_{kind}_l{layer}{suffix}", b.abs() * signs[:, 0] if relu else b


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


def other(g: Given, dtype: torch.dtype, of_torch: bool, nudge: float = 0.0) -> Results:
    """What the reference makes of it in a dtype, or torch's own operator.

    Of arguments that are moved by up to ``nudge``, relative to each element.
    """
    p = g.p

    def like(x: Tensor) -> Tensor:
        y = x.detach().double()
        if nudge:
            y = y * (1 + nudge * g.uniform(*y.shape))
        return y.to(dtype, copy=True, memory_format=torch.contiguous_format)

    leaves = {"input": like(g.input), **dict(zip(g.names, map(like, g.weights), strict=True))}
    if g.hx is not None:
        leaves["hx"] = like(g.hx)
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
            output, hn = operator(data, g.batch_sizes, state, weights, *config)
        else:
            output, hn = operator(leaves["input"], state, weights, *config, p.batch_first)
    else:
        mask = None if g.mask is None else like(g.mask)
        output, hn = reference.rnn(
            leaves["input"], hx, weights, g.batch_sizes, g.lengths, reset, mask, p.bias,
            p.num_layers, p.nonlinearity, p.bidirectional, p.batch_first,
        )  # fmt: skip
    if g.order is not None:
        hn = hn.index_select(1, g.order.argsort())
    results = {"output": output.detach(), "hn": hn.detach()}
    if g.wanted:
        results |= gradients(g, output, hn, leaves, like)
    return results


def arguments(g: Given) -> tuple[Any, ...]:
    """Of the operators."""
    p = g.p
    marks = (g.batch_sizes, g.lengths, g.reset, g.mask)
    options = (p.bias, p.num_layers, p.nonlinearity, p.bidirectional, p.batch_first)
    return g.input, g.hx, g.weights, *marks, *options


def module_of(g: Given, cls: type, **options: Any) -> Any:
    p = g.p
    module = cls(p.input_size, p.hidden_size, bias=p.bias, nonlinearity=p.nonlinearity, **options, device="meta")  # fmt: skip
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
    p, x, hx, reset = g.p, g.input, g.hx, g.reset
    if p.entry == "operator":
        output, hn = OPERATORS.rnn(*arguments(g))
        return output, hn
    if p.entry in ("RNNCell", "step"):
        return call_steps(g)
    options = {
        "num_layers": p.num_layers,
        "bidirectional": p.bidirectional,
        "batch_first": p.batch_first,
    }
    dim = 0 if p.batch_first else 1
    if p.unbatched:
        x, hx, reset = (None if t is None else t.squeeze(d) for t, d in ((x, dim), (hx, 1), (reset, dim)))  # fmt: skip
    elif g.batch_sizes is not None:
        order = g.order
        x = PackedSequence(x, g.batch_sizes, order, None if order is None else order.argsort())
    marks = {"lengths": g.lengths, "reset": reset}
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
    leaves = {"input": g.input, "hx": g.hx, **dict(zip(g.names, g.weights, strict=True))}
    for name in g.wanted:
        leaves[name].requires_grad_()
    output, hn = call(g)
    results = {"output": output.detach(), "hn": hn.detach()}
    if g.wanted:
        results |= gradients(g, output, hn, leaves, lambda x: x)
    for name in g.wanted:
        leaves[name].requires_grad_(False)
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
            grads = [self.result(n, list(w.shape)) if w.dim() == 2 else self.result(n, [1, *w.shape])
                     for n, w in zip(g.names, g.weights, strict=True)]  # fmt: skip
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
            found["input"] = torch.cat([found["input"], torch.zeros(p.extra_rows, p.input_size)])
        return {"output": found.pop("output"), "hn": found.pop("hn")} | {
            name: found[name] for name in g.wanted
        }


def same_bits(x: Tensor, y: Tensor) -> bool:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return x.shape == y.shape and torch.equal(
        x.contiguous().view(integers), y.contiguous().view(integers)
    )


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
            if p.entry == "kernels_of_operators":
                if with_grad:
                    return by_operators(g)
                output, hn, _ = OPERATORS.rnn_forward(*arguments(g), False)
                return {"output": output, "hn": hn}
            if with_grad:
                return by_autograd(g)
            with torch.no_grad():
                output, hn = call(g)
            return {"output": output, "hn": hn}

        ours = run(p.threads, True)
        faults = []
        for name, x in run(p.threads, False).items():
            if not same_bits(x, ours[name]):
                faults.append(f"{name} under no_grad differs from {name} with grad")
        large = p.batch * p.hidden_size**2 >= 400_000  # and so torch's own, on the baseline
        if p.threads > 1 and not (self.isa in ("baseline", "default") and large):
            for name, x in run(1, True).items():
                if not same_bits(x, ours[name]):
                    faults.append(f"{name} on 1 thread differs from {name} on {p.threads}")
        faults += [f"memory of or around {name} was written" for name in self.memory.written()]
        if raw is not None:
            faults += [f"memory around {name} was written" for name in raw.outside]
        torch.set_num_threads(1)
        return "; ".join(faults + self.inaccurate(g, ours))

    def inaccurate(self, g: Given, ours: Results) -> list[str]:
        """As assert_as_accurate, but that nn.RNN is asked several times, where that matters.

        Its error is a matter of luck where there are few numbers. So it is the largest of those
        with arguments as they are, and moved by a rounding.
        """
        truth = other(g, torch.float64, of_torch=False)
        floor = FLOOR[g.dtype]
        shapes = {name: list(x.shape) for name, x in truth.items()}
        found = {name: list(x.shape) for name, x in ours.items()}
        if found != shapes:
            return [f"shapes {found}, expected {shapes}"]
        wrong = {name for name, x in truth.items() if not error(ours[name], x) <= floor}
        self.closer += bool(wrong)
        bounds = dict.fromkeys(wrong, floor)
        plain = g.lengths is None and g.reset is None and g.mask is None
        for i in range(1 + NUDGED):
            if not wrong:
                break
            nudge = torch.finfo(g.dtype).eps if i else 0.0
            theirs = other(g, g.dtype, of_torch=plain, nudge=nudge)
            for name in list(wrong):
                bound = 2 * error(theirs[name], truth[name]) + floor
                if not bound < float("inf"):  # nor does nn.RNN have a finite value
                    self.without_bound += 1
                    wrong.remove(name)
                bounds[name] = max(bounds[name], bound)
                if error(ours[name], truth[name]) <= bound:
                    wrong.discard(name)
        return [difference(name, ours[name], truth[name], bounds[name]) for name in sorted(wrong)]
