"""torch.func over every kind of call: vmap, ensembles, gradients of samples, functional_call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_same
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, stack_module_state, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import RNN, RNNCell

N = 3  # of inputs, states or models


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in module.named_parameters()}


# What vmap maps over; a call is compared with a loop. The numbers are the mapped dimensions.

LENGTHS = torch.tensor([[1, 2], [5, 3], [0, 4]])
RESET = torch.rand(N, T, B, generator=torch.Generator().manual_seed(1)) < 0.3

MAPPED: dict[str, tuple[Callable[..., Any], tuple[int | None, ...], Callable[[], Any]]] = {
    "input": (lambda m, x: m(x), (0,), lambda: (x(N, T, B, I),)),
    "input, inner dimension": (lambda m, x: m(x), (2,), lambda: (x(T, B, N, I),)),
    "hx": (lambda m, x, h: m(x, h), (None, 0), lambda: (x(), x(N, 4, B, H))),
    "input and hx": (lambda m, x, h: m(x, h), (1, 3), lambda: (x(T, N, B, I), x(4, B, H, N))),
    "no batch": (lambda m, x: m(x), (0,), lambda: (x(N, T, I),)),
    "lengths": (lambda m, x, n: m(x, lengths=n), (0, 0), lambda: (x(N, T, B, I), LENGTHS)),
    "lengths alone": (lambda m, x, n: m(x, lengths=n), (None, 0), lambda: (x(), LENGTHS)),
    "same lengths": (lambda m, x: m(x, lengths=LENGTHS[0]), (0,), lambda: (x(N, T, B, I),)),
    "reset": (
        lambda m, x, h, r: m(x, h, reset=r),
        (0, None, 0),
        lambda: (x(N, T, B, I), x(4, B, H), RESET),
    ),
    "lengths and reset": (
        lambda m, x, n, r: m(x, lengths=n, reset=r),
        (0, 0, None),
        lambda: (x(N, T, B, I), LENGTHS, RESET[0]),
    ),
    "packed data": (
        lambda m, data: (lambda y, hn: (y.data, hn))(
            *m(PackedSequence(data, torch.tensor([2, 2, 1])))
        ),
        (0,),
        lambda: (x(N, 5, I),),
    ),
}


@pytest.mark.parametrize("num_layers", [2, 4], ids=["both directions", "one direction"])
@pytest.mark.parametrize("name", MAPPED)
def test_vmap_is_a_loop(name: str, num_layers: int) -> None:
    call, dims, make = MAPPED[name]
    module, tensors = RNN(I, H, num_layers, bidirectional=num_layers == 2), make()
    ours = vmap(lambda *args: call(module, *args), dims)(*tensors)
    loop = [
        call(
            module,
            *(y if d is None else y.select(d, i) for y, d in zip(tensors, dims, strict=True)),
        )
        for i in range(N)
    ]
    for mapped, each in zip(ours, zip(*loop, strict=True), strict=True):
        torch.testing.assert_close(mapped, torch.stack(each))


def test_vmap_in_vmap_and_out_dims_and_chunks() -> None:
    module, inputs = RNN(I, H), x(2, N, T, B, I)
    output, hn = vmap(vmap(module))(inputs)
    expected = torch.stack([torch.stack([module(y)[0] for y in row]) for row in inputs])
    torch.testing.assert_close(output, expected)
    assert hn.shape == (2, N, 1, B, H)
    moved, _ = vmap(module, out_dims=(2, 0))(inputs[0])
    torch.testing.assert_close(moved, output[0].movedim(0, 2))
    chunked, _ = vmap(module, chunk_size=2)(inputs[0])
    torch.testing.assert_close(chunked, output[0])


def test_vmap_over_cells() -> None:
    cell, inputs, hx = RNNCell(I, H), x(N, B, I), x(N, B, H)
    expected = torch.stack([cell(a, b) for a, b in zip(inputs, hx, strict=True)])
    torch.testing.assert_close(vmap(cell)(inputs, hx), expected)


# Many sets of weights at once.


@pytest.mark.parametrize("marks", ["", "lengths", "reset"])
@pytest.mark.parametrize("own_input", [False, True], ids=["one input", "an input each"])
def test_ensemble(own_input: bool, marks: str) -> None:
    models = [RNN(I, H, 2, bidirectional=True) for _ in range(N)]
    weights, buffers = stack_module_state(models)
    assert not buffers
    input = x(N, T, B, I) if own_input else x()
    options = {"lengths": LENGTHS[1]} if marks == "lengths" else {}
    if marks == "reset":
        options = {"reset": RESET[0]}
    output, hn = vmap(
        lambda w, y: functional_call(models[0], w, (y,), options), (0, 0 if own_input else None)
    )(weights, input)
    for i, model in enumerate(models):
        torch.testing.assert_close(
            (output[i], hn[i]), model(input[i] if own_input else input, **options)
        )


def test_ensemble_trains_as_its_members() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.linear = RNN(I, H, 2), nn.Linear(H, 1)

        def forward(self, input: Tensor) -> Tensor:
            return self.linear(self.rnn(input)[1][-1])

    models = [Model() for _ in range(N)]
    weights, _ = stack_module_state(models)
    input, target = x(), x(B, 1)

    def loss(weights: dict[str, Tensor]) -> Tensor:
        return (functional_call(models[0], weights, (input,)) - target).square().mean()

    for _ in range(3):
        grads, losses = vmap(grad_and_value(loss))(weights)
        weights = {name: (w - 0.1 * grads[name]).detach() for name, w in weights.items()}
        for i, model in enumerate(models):
            alone = (model(input) - target).square().mean()
            torch.testing.assert_close(losses[i], alone.detach())
            model.zero_grad()
            alone.backward()
            with torch.no_grad():
                for w in model.parameters():
                    w -= 0.1 * w.grad
    for i, model in enumerate(models):
        torch.testing.assert_close({k: w[i] for k, w in weights.items()}, weights_of(model))


# Gradients of each sample.


@pytest.mark.parametrize(
    "kind", ["batch", "batch_first", "lengths", "reset", "hx", "relu, no bias"]
)
def test_gradients_of_samples_are_a_loop(kind: str) -> None:
    options: dict[str, Any] = {"batch_first": kind == "batch_first"}
    if kind == "relu, no bias":
        options |= {"nonlinearity": "relu", "bias": False}
    module, samples = RNN(I, H, 2, bidirectional=True, **options), 6
    weights = weights_of(module)
    input, hx = x(samples, T, I), x(samples, 4, 1, H)
    lengths, reset = torch.tensor([5, 1, 3, 0, 2, 5]), torch.rand(samples, T) < 0.3

    def loss(w: dict[str, Tensor], x: Tensor, h: Tensor, n: Tensor, r: Tensor) -> Tensor:
        row = x.unsqueeze(0 if options["batch_first"] else 1)
        marks: dict[str, Tensor] = {"lengths": n.unsqueeze(0)} if kind == "lengths" else {}
        if kind == "reset":
            marks = {"reset": r.unsqueeze(1)}
        output, hn = functional_call(module, w, (row, h if kind == "hx" else None), marks)
        return output.square().sum() + hn.sin().sum()

    per_sample = vmap(grad(loss), (None, 0, 0, 0, 0))(weights, input, hx, lengths, reset)
    for i in range(samples):
        module.zero_grad()
        own = dict(module.named_parameters())
        loss(own, input[i], hx[i], lengths[i], reset[i]).backward()
        for name, w in own.items():
            torch.testing.assert_close(per_sample[name][i], w.grad, msg=f"{name} of sample {i}")
    module.zero_grad()
    total = {name: g.sum(0) for name, g in per_sample.items()}
    own = dict(module.named_parameters())
    sum(loss(own, *row) for row in zip(input, hx, lengths, reset, strict=True)).backward()
    torch.testing.assert_close(total, {name: w.grad for name, w in own.items()})


def test_functional_call_with_tied_and_with_changed_weights() -> None:
    module, input = RNN(I, I, 2), x()
    module.weight_hh_l1 = module.weight_hh_l0
    weights = weights_of(module)
    assert "weight_hh_l1" not in weights
    changed = {"weight_hh_l0": 2 * weights["weight_hh_l0"]}
    output, hn = functional_call(module, changed, (input,))
    before = module.weight_hh_l0.detach().clone()
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    assert_same((output.detach(), hn.detach()), tuple(y.detach() for y in module(input)))
    with torch.no_grad():
        module.weight_hh_l0.copy_(before)
    gradient = grad(lambda w: functional_call(module, w, (input,))[0].sum())(changed)
    assert gradient["weight_hh_l0"].abs().sum() > 0


# What cannot work says so.


def test_lengths_are_checked_under_transforms() -> None:
    module, bad = RNN(I, H, 2), torch.tensor([[1, 2], [5, 3], [0, T + 1]])
    with pytest.raises(ValueError, match=r"expected lengths between 0 and 5, got 6"):
        vmap(lambda y, n: module(y, lengths=n))(x(N, T, B, I), bad)
    with pytest.raises(ValueError, match=r"expected lengths between 0 and 5, got -1"):
        grad(lambda y: module(y, lengths=torch.tensor([-1, 2]))[0].sum())(x())
    with pytest.raises(ValueError, match=r"expected integer lengths, got torch.float32"):
        vmap(lambda y, n: module(y, lengths=n))(x(N, T, B, I), LENGTHS.float())


def test_vmap_over_lengths_of_packed_sequences_says_what_to_do() -> None:
    module, sizes = RNN(I, H), torch.tensor([[2, 2, 1]] * N)
    message = r"vmap over the lengths of packed sequences is not supported: .* lengths= instead"
    for hx in (None, x(1, 2, H)):
        with pytest.raises(RuntimeError, match=message):
            vmap(lambda d, s, hx=hx: module(PackedSequence(d, s), hx)[1])(x(N, 5, I), sizes)


@pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet")
def test_packing_under_vmap_says_what_to_do() -> None:
    module = RNN(I, H)
    with pytest.raises(RuntimeError, match="lengths= instead"):
        vmap(lambda y: module(pack_padded_sequence(y, torch.tensor([5, 3])))[1])(x(N, T, B, I))


def test_dropout_under_vmap_asks_for_randomness() -> None:
    module = RNN(I, H, 2, dropout=0.5)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(module)(x(N, T, B, I))


def test_sizes_are_checked_under_vmap() -> None:
    module = RNN(I, H)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        vmap(module)(x(N, T, B, I + 1))
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \[1, 2, 5\]"):
        vmap(module)(x(N, T, B, I), x(N, 1, B, H + 1))
