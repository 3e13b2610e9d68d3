"""Every way into fastrnn: a valid call of each, how it runs, and what it is to return."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from malformed_values import TENSORS, unwrapped
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import _C, reference

OPS = torch.ops.fastrnn
# seq_len, batch, input_size, hidden_size
SIZES = [(3, 2, 4, 5), (1, 1, 1, 1), (1, 2, 3, 4), (2, 3, 7, 17), (4, 20, 3, 40)]


@dataclass
class Call:
    entry: Entry
    given: dict[str, Any]
    leaves: list[Tensor]
    valid: dict[str, Any]
    sizes: tuple[int, ...]
    form: str
    autocast: bool
    damage: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        options = {n: v for n, v in self.valid.items() if not isinstance(v, Tensor | list)}
        return f"{self.entry.name} of {self.form} {self.sizes} {options}, damaged {self.damage}"

    @property
    def marked(self) -> bool:
        return any(self.given.get(name) is not None for name in ("lengths", "reset", "reset_state"))


def flat(x: Any, inner: bool = True) -> Iterator[Any]:
    """The tensors of a result; a packed sequence may hold arrays."""
    if isinstance(x, list | tuple):
        for y in x:
            yield from flat(y, inner)
    elif isinstance(x, nn.UninitializedParameter) or getattr(x, "is_nested", False):
        return  # indices, handed back
    elif isinstance(x, Tensor | np.ndarray):
        yield torch.as_tensor(unwrapped(x)) if inner else x


def half(call: Call, results: Any) -> bool:
    """Whether anything was rounded to 16 bits, or is then cast from them."""
    halves = (torch.float16, torch.bfloat16)
    return call.autocast or any(getattr(y, "dtype", None) in halves for y in flat(results))


@dataclass
class Pool:
    """What a valid call is made of."""

    entry: Entry
    rng: random.Random
    generator: torch.Generator
    dtype: torch.dtype
    grad: bool
    form: str
    L: int
    D: int
    H: int
    leaves: list[Tensor]
    values: dict[str, Any] = field(default_factory=dict)

    def x(self, *sizes: int, scale: float = 1.0) -> Tensor:
        """A new leaf."""
        values = scale * torch.randn(sizes, generator=self.generator)
        self.leaves.append(values.to(self.dtype).requires_grad_(self.grad))
        return self.leaves[-1]


def run_rnn_forward(given: dict[str, Any]) -> tuple[Tensor, ...]:
    results: tuple[Tensor, ...] = OPS.rnn_forward(*operator(given), True)
    return results


@dataclass(frozen=True)
class Entry:
    name: str
    names: str  # of its arguments
    run: Callable[[Call, Any], Any]
    theirs: type | None = None  # torch's class, where it has the call
    truth: Callable[[Call], Any] | None = None
    forms: tuple[str, ...] = ("padded", "no batch")
    directions: tuple[bool, ...] = (False, True)
    private: bool = False  # not for users: its words may be pybind11's
    share: float = 1.0  # of the calls, to those of the others
    cls: type = fastrnn.RNN  # ours, where torch has no such call
    more: Callable[[Pool], dict[str, Any]] | None = (
        None  # values of arguments, also in place of some
    )
    forward: Callable[[dict[str, Any]], tuple[Tensor, ...]] = run_rnn_forward  # makes `saved`


def build(entry: Entry, rng: random.Random) -> Call:
    """A valid call, without damage."""
    T, B, I, H = rng.choice(SIZES)  # noqa: E741
    L, bidirectional = rng.choice([1, 1, 2]), rng.choice(entry.directions)
    dtype = rng.choice([torch.float32] * 4 + [torch.float64, torch.bfloat16])
    form, autocast, grad = rng.choice(entry.forms), rng.random() < 0.1, rng.random() < 0.5
    bias, batch_first = rng.random() < 0.8, rng.random() < 0.3
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    D = 2 if bidirectional else 1
    if "weights" not in entry.names:
        L = 1
    made = Pool(entry, rng, generator, dtype, grad, form, L, D, H, [])
    leaves, x = made.leaves, made.x
    rows = {"padded": (B,), "no batch": (), "packed": (B,)}[form]
    steps = () if entry.name in STEPS else (T,)
    first = batch_first and form == "padded" and steps
    shape = (*rows, *steps) if first else (*steps, *rows)
    weights = [
        x(*size, scale=size[-1] ** -0.5 / 2)
        for layer in range(L)
        for _ in range(D)
        for size in [(H, D * H if layer else I), (H, H), *[(H,), (H,)][: 2 * bias]]
    ]
    input, states = x(*shape, I), () if "w_ih" in entry.names else (L * D,)
    lengths = torch.tensor([T, *(rng.randint(1, T) for _ in range(B - 1))])
    some = rng.random
    pool: dict[str, Any] = {
        "input": input,
        "hx": x(*states, *rows, H) if some() < 0.7 else None,
        "weights": weights,
        "value": torch.rand(input.shape, generator=generator).to(dtype),
        "function": reference.rnn_backward,
        "batch_sizes": None,
        "lengths": lengths if some() < 0.2 and rows and form == "padded" else None,
        "reset": torch.rand(shape, generator=generator) < 0.3 if some() < 0.2 else None,
        "reset_state": None,
        "dropout_mask": None,
        "has_biases": bias,
        "bias": bias,
        "num_layers": L,
        "nonlinearity": rng.choice(["tanh", "relu"]),
        "bidirectional": bidirectional,
        "batch_first": batch_first and (form == "padded" or not entry.name.startswith("ops")),
        "dropout": 0.0,
        "training": True,
        "input_size": I,
        "hidden_size": H,
        "proj_size": 0,
        **dict(zip(["w_ih", "w_hh", "b_ih", "b_hh"], [*weights, None, None], strict=False)),
    }
    pool["mode"] = f"RNN_{pool['nonlinearity'].upper()}"
    if pool["reset"] is not None and some() < 0.3:
        pool["reset_state"] = x(*states, *rows, H)
    if form == "packed":
        pool["reset"] = pool["reset_state"] = None
        ordered = lengths.sort(descending=True).values if entry.name.startswith("ops") else lengths
        with torch.no_grad():
            padded = torch.randn(T, B, I, generator=generator).to(dtype)
            sequence = pack_padded_sequence(padded, ordered, enforce_sorted=False)
        pool |= sequence._asdict()
        leaves.append(sequence.data.requires_grad_(grad))
        pool["input"] = pool["data"] = leaves[-1]
    if entry.name.startswith("ops") and L > 1 and some() < 0.3:
        mask = (L - 1, T, B, D * H) if form == "padded" else (1, pool["input"].size(0), D * H)
        pool["dropout_mask"] = torch.ones(mask, dtype=dtype)
    if entry.name == "autograd":
        pool["grad_output"] = torch.ones(T, B, D * H)
        pool["grad_hn"] = torch.ones(L * D, B, H)
        pool |= {"create_graph": some() < 0.5, "unpacked": rng.choice([*TENSORS])}
        pool |= {"freed": rng.randrange(20), "which": rng.randint(1, 4 + 4 * L * D)}
    if entry.more is not None:
        made.values = pool
        pool |= entry.more(made)
    names = entry.names.split()
    if form == "packed" and "batch_sizes" not in names:
        names = ["data", "batch_sizes", "sorted_indices", "unsorted_indices", *names[1:]]
    given = {name: list(pool[name]) if name == "weights" else pool.get(name) for name in names}
    call = Call(entry, given, leaves, dict(given), (T, B, I, H, L), form, autocast)
    if "saved" in given:
        with torch.no_grad():
            *results, given["saved"] = entry.forward(given)
        for name, y in zip(("grad_output", "grad_hn", "grad_layers"), results, strict=False):
            grad = torch.randn(y.shape, generator=generator).to(dtype)
            given[name] = None if name == "grad_layers" and not given["return_layers"] else grad
        call.valid |= given
    return call


# The entries: how each is called, and what the truth is.


def with_weight(module: Any, name: str, w: Any) -> None:
    delattr(module, name)
    setattr(module, name, w)


def packed_of(given: dict[str, Any]) -> PackedSequence:
    """Past the checks of its constructor, as ``_replace`` goes."""
    return PackedSequence._make(given.pop(name) for name in PackedSequence._fields)


def run_rnn(call: Call, cls: Any) -> Any:
    given, valid = dict(call.given), call.valid
    I, H = call.sizes[2:4]  # noqa: E741
    options = {n: valid[n] for n in ("num_layers", "bias", "batch_first", "bidirectional")}
    relu = valid["mode"] == "RNN_RELU"
    module = cls(I, H, nonlinearity="relu" if relu else "tanh", **options)
    for name, w in zip([*module._flat_weights_names], given["weights"], strict=True):
        with_weight(module, name, w)
    for name in MODULE.split()[6:]:
        if name in call.damage:
            setattr(module, name, given[name])
    input = given["input"] if "input" in given else packed_of(given)
    marks = {n: given[n] for n in ("lengths", "reset", "reset_state") if given[n] is not None}
    return module(input, given["hx"], **marks)


def run_step(call: Call, cls: Any) -> Any:
    given = call.given
    I, H, L = call.sizes[2:]  # noqa: E741
    relu = call.valid["mode"] == "RNN_RELU"
    module = cls(I, H, L, nonlinearity="relu" if relu else "tanh", bias=call.valid["bias"])
    for name, w in zip([*module._flat_weights_names], given["weights"], strict=True):
        with_weight(module, name, w)
    for name in ("num_layers", "bias", "bidirectional", "dropout", "mode", "input_size"):
        if name in call.damage:
            setattr(module, name, given[name])
    return module.step(given["input"], given["hx"], **marks_of(given))


def run_cell(call: Call, cls: Any) -> Any:
    given = call.given
    cell = cls(*call.sizes[2:4], bias=call.valid["b_ih"] is not None)
    for name in ("ih", "hh"):
        with_weight(cell, f"weight_{name}", given[f"w_{name}"])
        with_weight(cell, f"bias_{name}", given[f"b_{name}"])
    cell.nonlinearity, cell.hidden_size = given["nonlinearity"], given["hidden_size"]
    return cell(given["input"], given["hx"], **marks_of(given))


def run_new(call: Call, cls: Any) -> Any:
    given = call.given
    names = ["input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first",
             "dropout", "bidirectional"]  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return [w.detach() for w in cls(*(given[n] for n in names)).parameters()]


def run_new_cell(call: Call, cls: Any) -> Any:
    given = call.given
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cell = cls(*(given[n] for n in ("input_size", "hidden_size", "bias")))
        return [w.detach() for w in cell.parameters()]


def marks_of(given: dict[str, Any]) -> dict[str, Any]:
    return {n: given[n] for n in ("reset", "reset_state") if given[n] is not None}


def run_functional(call: Call, cls: Any) -> Any:
    given = dict(call.given)
    positional = [given.pop(n) for n in ("hx", "weights")]
    input = given.pop("input") if "input" in given else packed_of(given)
    return fastrnn.functional.rnn(input, *positional, **given)


def operator(given: dict[str, Any]) -> list[Any]:
    return [given[name] for name in OPERATOR.split()]


def run_forward(call: Call, cls: Any) -> Any:
    return OPS.rnn_forward(*operator(call.given), True)[:2]


def run_backward(call: Call, cls: Any) -> Any:
    given = call.given
    grads = [given[n] for n in ("grad_output", "grad_hn", "saved")]
    grad_input, grad_hx, grad_weights = OPS.rnn_backward(*grads, *operator(given), True, True, True)
    return grad_input, grad_hx, *grad_weights


def run_gradients(call: Call, cls: Any) -> Any:
    """Through autograd: a gradient, a saved tensor, or an argument after the call is damaged."""
    given = call.given
    T, B, I, H, L = call.sizes  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    module = cls(I, H, L, bidirectional=given["bidirectional"])
    input = torch.randn(T, B, I, generator=generator, requires_grad=True)
    with torch.no_grad():
        for w in module.parameters():
            w.copy_(torch.randn(w.shape, generator=generator) / 8)
    rng, count = random.Random(str(call.valid)), 0

    def unpack(x: Tensor) -> Any:
        nonlocal count
        count += 1
        return TENSORS[given["unpacked"]](x, rng) if count == given["which"] else x

    damages_saved = "unpacked" in call.damage and cls is RNN  # torch's modules save other tensors
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack)
    with hooks if damages_saved else nullcontext():
        results = module(input)
    wanted = [input, *module.parameters()]
    if "freed" in call.damage and cls is RNN:
        wanted[given["freed"] % len(wanted)].untyped_storage().resize_(0)
    names = ("grad_output", "grad_hn")
    grads = [given[n] if n in call.damage else torch.ones_like(y)
             for n, y in zip(names, results, strict=True)]  # fmt: skip
    return torch.autograd.grad(results, wanted, grads, create_graph=given["create_graph"])


def double(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return [double(y) for y in x]
    x = unwrapped(x)
    if isinstance(x, Tensor) and x.layout != torch.strided:
        x = x.to_dense()
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def rnn_of_reference(args: dict[str, Any], alone: bool, step: bool) -> Any:
    output, hn = reference.rnn(**args)
    if alone:
        output, hn = output.squeeze(1), hn.squeeze(1)
    return output.squeeze(0) if step else output, hn


def truth_of_stack(
    call: Call,
    given: dict[str, Any] | None = None,
    run: Callable[[dict[str, Any], bool, bool], Any] = rnn_of_reference,
) -> Any:
    given = dict(call.given if given is None else given)
    for other, name in (("data", "input"), ("bias", "has_biases")):
        if other in given:
            given[name] = given.pop(other)
    if given.get("has_biases") is None and "w_ih" not in given:
        raise AssertionError("no biases, or all")
    assert "dropout" not in call.damage, "there is no mask to compare with"
    if "mode" in given:
        given["nonlinearity"] = given["mode"].removeprefix("RNN_").lower()
    step = call.entry.name in STEPS
    if "w_ih" in given:
        given["weights"] = [
            given[n] for n in ("w_ih", "w_hh", "b_ih", "b_hh") if given[n] is not None
        ]
        if len(given["weights"]) == 3:  # one bias
            given["weights"].append(torch.zeros_like(given["weights"][2]))
        given |= {"has_biases": len(given["weights"]) == 4, "num_layers": 1}
    given["weights"] = [*given["weights"]]
    assert call.form != "packed" or call.entry.name.startswith("ops"), "rows may be sorted"
    assert not isinstance(given["input"], PackedSequence), "another form"
    if isinstance(given["nonlinearity"], bytes):  # pybind11 and the dispatcher take them
        given["nonlinearity"] = given["nonlinearity"].decode()
    names = [*OPERATOR.split(), "reset_state"]
    args: dict[str, Any] = {n: double(given[n]) for n in names if given.get(n) is not None}
    args.setdefault("hx", None)
    input = args["input"]
    if "lengths" in args:
        args["lengths"] = torch.as_tensor(args["lengths"]).long()
    if "reset" in args:
        reset = torch.as_tensor(args["reset"]) != 0
        args["reset"] = reset.squeeze(-1) if reset.dim() == input.dim() else reset
    alone = call.form != "packed" and input.dim() == (1 if step else 2)
    if step:
        for name in ("input", "reset"):
            if name in args:
                args[name] = args[name].unsqueeze(0)
    for name in ("input", "hx", "reset", "reset_state"):
        if alone and args.get(name) is not None:
            dim = 0 if name in ("hx", "reset_state") and "w_ih" in given else 1
            args[name] = args[name].unsqueeze(dim)
        if "w_ih" in given and name in ("hx", "reset_state") and args.get(name) is not None:
            args[name] = args[name].unsqueeze(0)
    args["num_layers"], args["has_biases"] = int(args["num_layers"]), bool(args["has_biases"])
    if alone or step:
        args["batch_first"] = False
    results = run(args, alone, step)
    return results[0] if "w_ih" in given else results


def state_of_zeros(given: dict[str, Any]) -> Tensor:
    """In float64, to ask for its gradient where there is no hx."""
    _, hn = reference.rnn(*(double(x) for x in operator(given)))
    return torch.zeros_like(hn)


def truth_of_backward(call: Call) -> Any:
    assert "saved" not in call.damage, "it may hold anything"
    rounded = half(call, [*call.given["weights"]])
    assert not (rounded and call.given["nonlinearity"] == "relu"), "its kink hangs on rounding"
    given = call.given
    args = [double(x) for x in operator(given)]
    args[9] = args[9].decode() if isinstance(args[9], bytes) else args[9]
    saved = OPS.rnn_forward(*operator(given), True)[2]
    torch.testing.assert_close(saved, given["saved"], msg="saved is another call's")
    if args[1] is None:
        args[1] = state_of_zeros(given)
    wanted = [args[0], args[1], *args[2]]
    with torch.enable_grad():
        wanted = [x.detach().clone().requires_grad_() for x in wanted]
        args[:3] = wanted[0], wanted[1], wanted[2:]
        results = reference.rnn(*args)
    pairs = [(y, double(given[n])) for y, n in zip(results, ("grad_output", "grad_hn"), strict=True)
             if given[n] is not None]  # fmt: skip
    outputs, given_grads = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, wanted, given_grads)


OPERATOR = ("input hx weights batch_sizes lengths reset dropout_mask has_biases num_layers "
            "nonlinearity bidirectional batch_first")  # fmt: skip
MODULE = ("input hx weights lengths reset reset_state bias num_layers mode bidirectional "
          "batch_first dropout training input_size hidden_size proj_size")  # fmt: skip
STEP = "input hx weights reset reset_state bias num_layers mode bidirectional dropout input_size"
CELL = "input hx nonlinearity w_ih w_hh b_ih b_hh"
ONE = (False,)
STEPS = ("RNN.step", "LeakyRNN.step", "RNNCell", "_C.rnn_step", "_C.rnn_cell")
RNN, Cell, known = fastrnn.RNN, fastrnn.RNNCell, truth_of_stack


def run_private(name: str) -> Callable[[Call, Any], Any]:
    return lambda call, cls: getattr(_C, name)(*call.given.values())


def run_storages(call: Call, cls: Any) -> Any:
    return _C.check_storages(call.given["weights"], x=call.given["input"], y=call.given["hx"])


def run_set_reference(call: Call, cls: Any) -> Any:
    """A function that is none shows when it is called."""
    _C.set_reference_backward(call.given["function"])
    try:
        x = torch.ones(2, 1, 1, requires_grad=True)
        y, _ = fastrnn.RNN(1, 1)(x)
        return torch.autograd.grad(y.sum(), x, create_graph=True)
    finally:
        _C.set_reference_backward(reference.rnn_backward)


ALL, ROWS = ("padded", "no batch", "packed"), ("padded", "packed")
FUNCTION = MODULE[: MODULE.index("lengths")]
FUNCTION += "bias num_layers nonlinearity bidirectional batch_first"
ENTRIES = [
    Entry("RNN", MODULE, run_rnn, RNN, known, ALL, share=30),
    Entry("RNN.step", STEP, run_step, None, known, directions=ONE, share=10),
    Entry("RNNCell", f"{CELL} reset reset_state hidden_size", run_cell, Cell, known,
          directions=ONE, share=12),
    Entry("RNN()", "input_size hidden_size num_layers nonlinearity bias batch_first dropout "
          "bidirectional", run_new, RNN, share=4),
    Entry("RNNCell()", "input_size hidden_size bias", run_new_cell, Cell),
    Entry("functional.rnn", f"{FUNCTION} dropout training lengths reset reset_state",
          run_functional, None, known, ALL, share=15),
    Entry("ops.rnn", OPERATOR, lambda call, cls: OPS.rnn(*operator(call.given)), None, known, ROWS,
          share=12),
    Entry("ops.rnn_forward", OPERATOR, run_forward, None, known, ROWS, share=4),
    Entry("ops.rnn_backward", f"grad_output grad_hn saved {OPERATOR}", run_backward, None,
          truth_of_backward, ROWS, share=10),
    Entry("autograd", "bidirectional create_graph grad_output grad_hn unpacked freed which",
          run_gradients, RNN, forms=("padded",), share=6),
    Entry("_C.rnn", f"{FUNCTION} lengths reset", run_private("rnn"), None, known, private=True,
          share=6),
    Entry("_C.rnn_step", "input hx weights bias num_layers nonlinearity", run_private("rnn_step"),
          None, known, directions=ONE, private=True, share=3),
    Entry("_C.rnn_cell", "input hx w_ih w_hh b_ih b_hh nonlinearity", run_private("rnn_cell"), None,
          known, directions=ONE, private=True, share=3),
    Entry("_C.check_storages", "input hx weights", run_storages, private=True),
    Entry("_C.known_activation", "input value bias", run_private("known_activation"), private=True),
    Entry("_C.cpu_prefers_torch", "num_layers hidden_size", run_private("cpu_prefers_torch"),
          private=True, share=0.3),
    Entry("_C.set_reference_backward", "function", run_set_reference, private=True, share=0.3),
]  # fmt: skip
