"""The ways into fastrnn that malformed_calls.py lacks: leaks, gates from outside, all layers."""

from __future__ import annotations

from typing import Any

import malformed_calls
import torch
from malformed_calls import (
    ALL,
    FUNCTION,
    MODULE,
    ONE,
    OPERATOR,
    OPS,
    ROWS,
    STEP,
    STEPS,
    Call,
    Entry,
    Pool,
    double,
    half,
    operator,
    packed_of,
    run_private,
    state_of_zeros,
    truth_of_stack,
    with_weight,
)
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn import reference

EXTRAS = "gates alpha alpha_value form return_layers"


def of_operators(pool: Pool) -> dict[str, Any]:
    """Values of the arguments that the operators have besides."""
    rng, values = pool.rng, pool.values
    features = pool.D * pool.H
    swapped = values["batch_first"] and pool.form == "padded"
    rows = list(values["input"].shape[:-1])
    rows = rows[::-1] if swapped else rows
    count = rng.choice([1, pool.L])
    given = {
        "gates": pool.x(count, *rows, features) if rng.random() < 0.6 else None,
        "alpha": alpha_of(pool, (pool.L * pool.D, pool.H)) if rng.random() < 0.6 else None,
        "form": rng.choice(["rate", "current"]),
        "return_layers": rng.random() < 0.5,
    }
    given["alpha_value"] = 1.0 if given["alpha"] is not None else rng.choice([0.3, 1.0])
    return given


def alpha_of(pool: Pool, shape: tuple[int, ...], *others: torch.dtype) -> Tensor:
    exact = torch.float64 if pool.dtype == torch.float64 else torch.float32
    exact = pool.rng.choice([exact, exact, *others])
    alpha = 0.05 + 0.95 * torch.rand(shape, generator=pool.generator)
    pool.leaves.append(alpha.to(exact).requires_grad_(pool.grad))
    return pool.leaves[-1]


def of_modules(pool: Pool) -> dict[str, Any]:
    """The same of modules and functions; now and then there is no input."""
    rng, values, names = pool.rng, pool.values, pool.entry.names.split()
    features, rows = pool.D * pool.H, values["input"].shape[:-1]
    shapes: list[tuple[int, ...]] = [(), (pool.H,), (pool.L * pool.D, pool.H)]
    none = 0.0 if pool.entry.name == "functional.leaky_rnn" else None
    given = {
        "alpha": alpha_of(pool, rng.choice(shapes), torch.bfloat16, torch.float64)
        if rng.random() < 0.6
        else 0.3,
        "form": rng.choice(["rate", "current"]),
        "sigma": 0.0,
        "noise": pool.x(pool.L, *rows, features)
        if "noise" in names and rng.random() < 0.4
        else none,
        "igates": pool.x(*rows, features) if "igates" in names and rng.random() < 0.5 else None,
        "return_layers": rng.random() < 0.5,
    }
    if pool.form == "packed":
        if given["igates"] is not None and rng.random() < 0.7:
            indices = [values[n] for n in PackedSequence._fields[1:]]
            given["igates"] = PackedSequence(given["igates"], *indices)
    elif given["igates"] is not None and rng.random() < 0.3:
        given["input"] = None
    return given


# How each is called.


def detached(alpha: Any) -> Any:
    """The leak as the constructor takes it: what wants gradients is a parameter there."""
    return alpha.detach() if type(alpha) is Tensor else alpha


def run_module(call: Call, cls: Any) -> Any:
    given, valid = dict(call.given), call.valid
    step = call.entry.name in STEPS
    I, H = call.sizes[2:4]  # noqa: E741
    leaky = call.entry.name.startswith("LeakyRNN")
    names = ("num_layers", "bias", "batch_first", "bidirectional")
    options = {name: valid[name] for name in names if name in valid}
    if leaky:
        options |= {"alpha": detached(valid["alpha"]), "form": valid["form"]}
    relu = valid["mode"] == "RNN_RELU"
    module = cls(I, H, nonlinearity="relu" if relu else "tanh", **options)
    for name, w in zip([*module._flat_weights_names], given["weights"], strict=True):
        with_weight(module, name, w)
    if leaky:
        with_weight(module, "alpha", valid["alpha"])
    attributes = [*(STEP if step else MODULE).split()[5 if step else 6 :], "form", "alpha"]
    for name in attributes:
        if name in call.damage:
            with_weight(module, name, given[name])
    if "sigma" in call.damage:
        module.noise = given["sigma"]
    more = ("lengths", "reset", "reset_state", "noise", "igates", "return_layers")
    marks = {n: given[n] for n in more if given.get(n) is not None}
    if step:
        return module.step(given["input"], given["hx"], **marks)
    input = given["input"] if "input" in given else packed_of(given)
    return module(input, given["hx"], **marks)


def run_functional(call: Call, cls: Any) -> Any:
    given = dict(call.given)
    positional = [given.pop(n) for n in ("hx", "weights", "alpha")]
    input = given.pop("input") if "input" in given else packed_of(given)
    return fastrnn.functional.leaky_rnn(input, *positional, **given)


def run_new(call: Call, cls: Any) -> Any:
    given = call.given
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = fastrnn.LeakyRNN(
            given["input_size"],
            given["hidden_size"],
            given["num_layers"],
            **{n: given[n] for n in ("bidirectional", "form")},
            alpha=detached(given["alpha"]),
            noise=given["sigma"],
        )
        repr(module)
        return [w.detach() for w in module.parameters()]


def extended(given: dict[str, Any]) -> list[Any]:
    return operator(given) + [given[name] for name in EXTRAS.split()]


def run_backward(call: Call, cls: Any) -> Any:
    given = call.given
    grads = [given[n] for n in ("grad_output", "grad_hn", "grad_layers", "saved")]
    want = [True, True, True, given["gates"] is not None, given["alpha"] is not None]
    grad_input, grad_hx, grad_weights, *more = OPS.rnn_extended_backward(
        *grads, *extended(given), *want
    )
    return grad_input, grad_hx, *grad_weights, *more


# What the truth is.


def truth_of_extended(call: Call) -> Any:
    """By the reference, with one set of gates for each layer that has any."""
    given = dict(call.given)
    assert call.damage.get("alpha") != "values", "a leak of any size"
    if call.entry.name.startswith("RNN"):
        given |= {"alpha": 1.0, "form": "rate"}
    assert given.get("sigma", 0) == 0, "noise is drawn"
    if isinstance(given.get("noise"), float | int):
        assert given["noise"] == 0, "noise is drawn"
        given["noise"] = None
    igates = given.get("igates")
    assert not isinstance(igates, PackedSequence), "another form"
    if igates is not None and given.get("input") is None and call.form != "packed":
        per = 4 if call.valid["bias"] else 2
        weights = [*given["weights"]]
        for i in range(0, (2 if call.valid.get("bidirectional") else 1) * per, per):
            weights[i] = weights[i].new_zeros(weights[i].size(0), 1)
        given |= {"input": igates.new_zeros(*igates.shape[:-1], 1), "weights": weights}

    def run(args: dict[str, Any], alone: bool, step: bool) -> Any:
        return with_extras(given, args, alone, step)

    return truth_of_stack(call, given, run)


def with_extras(given: dict[str, Any], args: dict[str, Any], alone: bool, step: bool) -> Any:
    swapped = args.get("batch_first", False)
    gates = double(given.get("gates"))
    igates, noise = double(given.get("igates")), double(given.get("noise"))
    if igates is not None:
        igates = igates.unsqueeze(1) if alone else igates.transpose(0, 1) if swapped else igates
        gates = igates.unsqueeze(0)
    if noise is not None:
        noise = noise.unsqueeze(1) if step else noise
        noise = noise.unsqueeze(2) if alone else noise.transpose(1, 2) if swapped else noise
        gates = noise if igates is None else torch.cat([noise[:1] + igates, noise[1:]])
    alpha = double(given["alpha"])
    if isinstance(alpha, Tensor):
        states = args["num_layers"] * (2 if args.get("bidirectional") else 1)
        alpha = alpha.expand(states, args["weights"][1].size(-1))
        leak = {"alpha": alpha}
    else:
        leak = {"alpha_value": given["alpha_value"] if alpha is None else alpha}
    layers = bool(given.get("return_layers"))
    results = reference.rnn_extended(
        **args, gates=gates, **leak, form=given["form"], return_layers=layers
    )
    output, hn, stacked = results
    if "alpha_value" in given:
        return output, hn, stacked
    if swapped:
        stacked = stacked.transpose(1, 2) if layers else stacked
    if alone:
        output, hn = output.squeeze(1), hn.squeeze(1)
        stacked = stacked.squeeze(2) if layers else stacked
    if step:
        output = output.squeeze(0)
    return (output, hn, stacked) if layers else (output, hn)


def truth_of_backward(call: Call) -> Any:
    given = dict(call.given)
    assert "saved" not in call.damage, "it may hold anything"
    assert call.damage.get("alpha") != "values", "a leak of any size"
    rounded = half(call, [*given["weights"]])
    assert not (rounded and given["nonlinearity"] == "relu"), "its kink hangs on rounding"
    saved = OPS.rnn_extended_forward(*extended(given))[-1]
    torch.testing.assert_close(saved, given["saved"], msg="saved is another call's")
    given = {name: double(x) for name, x in given.items()}
    for name in ("nonlinearity", "form"):
        if isinstance(given[name], bytes):
            given[name] = given[name].decode()
    if given["hx"] is None:
        given["hx"] = state_of_zeros(given)
    names = ("input", "hx", "gates", "alpha")
    with torch.enable_grad():
        for name in names:
            if given[name] is not None:
                given[name] = given[name].detach().clone().requires_grad_()
        weights = [w.detach().clone().requires_grad_() for w in given["weights"]]
        given["weights"] = weights
        given["return_layers"] = True
        results = reference.rnn_extended(*extended(given))
    grads = ("grad_output", "grad_hn", "grad_layers")
    pairs = [(y, given[n]) for y, n in zip(results, grads, strict=True) if given[n] is not None]
    outputs, given_grads = zip(*pairs, strict=True)
    order = [given["input"], given["hx"], *weights, given["gates"], given["alpha"]]
    wanted = [x for x in order if x is not None]
    found = iter(torch.autograd.grad(outputs, wanted, given_grads, materialize_grads=True))
    return [torch.empty(0) if x is None else next(found) for x in order]


ENTRIES = [
    *malformed_calls.ENTRIES,
    Entry("LeakyRNN", f"{MODULE} alpha form sigma noise igates return_layers", run_module,
          None, truth_of_extended, ALL, share=20, cls=fastrnn.LeakyRNN, more=of_modules),
    Entry("LeakyRNN.step", f"{STEP} alpha form sigma noise", run_module, None, truth_of_extended,
          directions=ONE, share=6, cls=fastrnn.LeakyRNN, more=of_modules),
    Entry("LeakyRNN()", "input_size hidden_size num_layers bidirectional alpha form sigma",
          run_new, share=4, more=of_modules),
    Entry("functional.leaky_rnn", f"{FUNCTION} dropout training lengths reset reset_state alpha "
          "form noise igates return_layers", run_functional, None, truth_of_extended, ALL,
          share=12, more=of_modules),
    Entry("RNN(igates=)", f"{MODULE} igates return_layers", run_module, None, truth_of_extended,
          ALL, share=8, more=of_modules),
    Entry("ops.rnn_extended", f"{OPERATOR} {EXTRAS}",
          lambda call, cls: OPS.rnn_extended(*extended(call.given)), None, truth_of_extended, ROWS,
          share=12, more=of_operators),
    Entry("ops.rnn_extended_forward", f"{OPERATOR} {EXTRAS}",
          lambda call, cls: OPS.rnn_extended_forward(*extended(call.given))[:3], None,
          truth_of_extended, ROWS, share=5, more=of_operators),
    Entry("ops.rnn_extended_backward",
          f"grad_output grad_hn grad_layers saved {OPERATOR} {EXTRAS}", run_backward, None,
          truth_of_backward, ROWS, share=12, more=of_operators,
          forward=lambda given: OPS.rnn_extended_forward(*extended(given))),
    Entry("_C.rnn_extended", f"{FUNCTION} lengths reset alpha form return_layers",
          run_private("rnn_extended"), None, truth_of_extended, private=True, share=5,
          more=of_modules),
]  # fmt: skip
