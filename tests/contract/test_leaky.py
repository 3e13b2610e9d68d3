"""LeakyRNN: its equations, arguments, errors and state."""

from __future__ import annotations

import copy
import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    pad_packed_sequence,
)

import fastrnn
from fastrnn import RNN, LeakyRNN
from fastrnn.functional import leaky_rnn

T, B, I, H = 9, 4, 3, 8  # noqa: E741
FORMS = ["rate", "current"]


def by_hand(rnn: LeakyRNN, x: Tensor, state: Tensor, xi: Tensor) -> tuple[Tensor, Tensor]:
    """One layer, one direction, as written in the docstring: (T, B, I) and (B, H)."""
    w_ih, w_hh, b_ih, b_hh = rnn.all_weights[0]
    f = getattr(torch, rnn.nonlinearity)
    outputs = []
    for x_t, xi_t in zip(x, xi, strict=True):
        h = f(state) if rnn.form == "current" else state
        pre = x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh + xi_t
        step = pre if rnn.form == "current" else f(pre)
        state = (1 - rnn.alpha) * state + rnn.alpha * step
        outputs.append(f(state) if rnn.form == "current" else state)
    return torch.stack(outputs), state


def alphas() -> dict[str, Any]:
    per_unit = torch.linspace(0.05, 1, H, dtype=torch.float64)
    return {
        "number": 0.3,
        "tensor": torch.tensor(0.3, dtype=torch.float64),
        "per_unit": per_unit,
        "learned": nn.Parameter(per_unit),
    }


@pytest.mark.parametrize("kind", alphas())
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("form", FORMS)
def test_equations(form: Any, nonlinearity: Any, kind: str, device: str) -> None:
    alpha = alphas()[kind]
    if isinstance(alpha, Tensor):
        alpha = nn.Parameter(alpha.to(device)) if kind == "learned" else alpha.to(device)
    options: Any = {"device": device, "dtype": torch.float64}
    rnn = LeakyRNN(I, H, nonlinearity=nonlinearity, alpha=alpha, form=form, **options)
    x, hx = torch.randn(T, B, I, **options), torch.randn(1, B, H, **options)
    xi = torch.randn(1, T, B, H, **options, requires_grad=True)
    wanted = [x.requires_grad_(), hx.requires_grad_(), xi, *rnn.parameters()]
    output, hn = rnn(x, hx, noise=xi)
    expected, state = by_hand(rnn, x, hx[0], xi[0])
    torch.testing.assert_close((output, hn[0]), (expected, state))
    weights = torch.randn_like(output), torch.randn_like(state)
    results = [(output, hn[0]), (expected, state)]
    grads = [torch.autograd.grad(r, wanted, weights) for r in results]
    torch.testing.assert_close(*grads)


def test_no_leak_is_the_plain_rnn(device: str) -> None:
    leaky = LeakyRNN(I, H, 2, alpha=1.0, device=device)
    plain = RNN(I, H, 2, device=device)
    plain.load_state_dict(leaky.state_dict())
    x = torch.randn(T, B, I, device=device)
    for found, expected in zip(leaky(x), plain(x), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_steps_are_the_sequence(form: Any, device: str) -> None:
    rnn = LeakyRNN(I, H, 2, alpha=0.2, form=form, device=device, dtype=torch.float64)
    x = torch.randn(T, B, I, device=device, dtype=torch.float64)
    reset = torch.rand(T, B, device=device) < 0.3
    noise = torch.randn(2, T, B, H, device=device, dtype=torch.float64)
    output, hn = rnn(x, reset=reset, noise=noise)
    state, outputs = None, []
    for t in range(T):
        y, state = rnn.step(x[t], state, reset=reset[t], noise=noise[:, t])
        outputs.append(y)
    torch.testing.assert_close((torch.stack(outputs), state), (output, hn))
    alone, alone_hn = rnn(x[:, 0], reset=reset[:, 0], noise=noise[:, :, 0])
    torch.testing.assert_close((alone, alone_hn), (output[:, 0], hn[:, 0]))
    y, state = rnn.step(x[0, 0], noise=noise[:, 0, 0])
    torch.testing.assert_close(y, output[0, 0])


@pytest.mark.parametrize("form", FORMS)
def test_lengths_are_packing(form: Any, device: str) -> None:
    options: Any = {"alpha": 0.2, "form": form, "bidirectional": True, "device": device}
    rnn = LeakyRNN(I, H, 2, batch_first=True, dtype=torch.float64, **options)
    x = torch.randn(B, T, I, device=device, dtype=torch.float64)
    lengths = torch.tensor([3, 9, 1, 5])
    output, hn = rnn(x, lengths=lengths.to(device))
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, h = rnn(packed)
    assert isinstance(y, PackedSequence)
    torch.testing.assert_close((pad_packed_sequence(y, batch_first=True)[0], h), (output, hn))


@pytest.mark.parametrize("form", FORMS)
def test_noise(form: Any, device: str) -> None:
    """The same seed draws the same, on any number of threads; the scale is sqrt(2 / alpha)."""
    rnn = LeakyRNN(I, H, 2, alpha=0.5, form=form, noise=0.3, batch_first=True, device=device)
    x = torch.randn(B, T, I, device=device)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(1)
            results.append(rnn(x)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)
    assert not torch.equal(rnn(x)[0], results[0])
    torch.manual_seed(1)
    xi = 0.3 * 2 * torch.randn(2, T, B, H, device=device)
    torch.testing.assert_close(rnn(x, noise=xi.transpose(1, 2))[0], results[0])
    quiet = rnn(x, noise=0.0)[0]
    rnn.noise = 0.0
    assert torch.equal(rnn(x)[0], quiet)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_a_small_leak_loses_no_digits(form: Any, dtype: torch.dtype) -> None:
    """Gradients at alpha = 1e-3, alpha's too, err by a few roundings."""
    torch.manual_seed(0)
    alpha = nn.Parameter(torch.full((H,), 1e-3, dtype=torch.float64))
    exact = LeakyRNN(I, H, alpha=alpha, form=form, dtype=torch.float64)
    rnn = copy.deepcopy(exact).to(dtype)
    x = torch.randn(500, B, I, dtype=dtype)
    grads = []
    for module in (rnn, exact):
        output, _ = module(x.to(module.alpha.dtype))
        weight = torch.ones_like(output)
        weight[::2] = -0.5
        grads.append(torch.autograd.grad((output * weight).sum(), [*module.parameters()]))
    for found, expected in zip(*grads, strict=True):
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 50 * torch.finfo(dtype).eps


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_a_small_leak_moves_a_state_of_16_bits(form: Any, dtype: torch.dtype) -> None:
    """By the kernels and, with reset_state, by the reference; first-order gradients as well."""
    alpha = nn.Parameter(torch.full((H,), 2e-3))
    rnn = LeakyRNN(I, H, alpha=alpha, form=form)
    narrow = copy.deepcopy(rnn).to(dtype)
    x = torch.randn(1000, 1, I)
    hx = torch.ones(1, 1, H)
    _, expected = rnn(x, hx)
    grads = torch.autograd.grad(expected.sum(), rnn.weight_ih_l0)
    reset = torch.zeros(1000, 1).bool()
    marks: Any = {"reset": reset, "reset_state": torch.zeros(1, 1, H, dtype=dtype)}
    for given in ({}, marks):
        _, hn = narrow(x.to(dtype), hx.to(dtype), **given)
        torch.testing.assert_close(hn.float(), expected, rtol=0.05, atol=0.03)
        found = torch.autograd.grad(hn.sum(), narrow.weight_ih_l0)
        torch.testing.assert_close(found[0].float(), grads[0], rtol=0.1, atol=0.05)


def test_drawing_weights_anew_keeps_a_learned_leak() -> None:
    rnn = LeakyRNN(I, H, alpha=nn.Parameter(torch.full((H,), 0.2)))
    before = rnn.weight_hh_l0.detach().clone()
    torch.manual_seed(5)
    rnn.reset_parameters()
    assert torch.equal(rnn.alpha, torch.full((H,), 0.2))
    assert not torch.equal(rnn.weight_hh_l0, before)
    plain = RNN(I, H)
    torch.manual_seed(5)
    plain.reset_parameters()
    assert torch.equal(rnn.weight_hh_l0, plain.weight_hh_l0)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_forward_mode_of_the_leak_alone() -> None:
    x = torch.randn(T, B, I, dtype=torch.float64)
    weights = [*LeakyRNN(I, H, dtype=torch.float64).parameters()]
    alpha = torch.full((H,), 0.3, dtype=torch.float64)

    def call(alpha: Tensor) -> Tensor:
        output: Tensor = leaky_rnn(x, None, weights, alpha)[0].sum()
        return output

    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(alpha, torch.ones_like(alpha))
        tangent = torch.autograd.forward_ad.unpack_dual(call(dual)).tangent
    slope = (call(alpha + 1e-6) - call(alpha - 1e-6)) / 2e-6
    torch.testing.assert_close(tangent, slope, rtol=1e-6, atol=1e-6)


def test_module_state(device: str) -> None:
    """A learned leak is a parameter, a tensor a buffer, a number neither."""
    learned = LeakyRNN(I, H, alpha=nn.Parameter(torch.full((H,), 0.2)), device=device)
    fixed = LeakyRNN(I, H, alpha=torch.full((H,), 0.2), device=device)
    number = LeakyRNN(I, H, alpha=0.2, device=device)
    plain = {*RNN(I, H).state_dict()}
    assert {*learned.state_dict()} == plain | {"alpha"} == {*fixed.state_dict()}
    assert {*number.state_dict()} == plain
    assert "alpha" in dict(learned.named_parameters())
    assert "alpha" in dict(fixed.named_buffers())
    assert all(x.device.type == device for x in (*learned.parameters(), *fixed.buffers()))
    x = torch.randn(T, B, I, device=device)
    for module in (learned, fixed, number):
        copies = [copy.deepcopy(module)]
        with io.BytesIO() as file:
            torch.save(module, file)
            file.seek(0)
            copies.append(torch.load(file, weights_only=False))
        for other in copies:
            assert torch.equal(other(x)[0], module(x)[0])
            assert repr(other) == repr(module)
    assert "nonlinearity=tanh, alpha=0.2, form=rate" in repr(number)
    assert "alpha=tensor of shape (8,)" in repr(fixed)


def test_a_tensor_takes_the_modules_dtype_and_is_copied(device: str) -> None:
    alpha = torch.full((H,), 0.2)
    rnn = LeakyRNN(I, H, alpha=alpha, device=device, dtype=torch.float64)
    alpha.fill_(7.0)
    assert rnn.alpha.dtype == torch.float64
    assert rnn.alpha.device.type == device
    assert (rnn.alpha - 0.2).abs().max() < 1e-7
    learned = LeakyRNN(I, H, alpha=nn.Parameter(torch.full((H,), 0.2)), dtype=torch.float64)
    assert learned.alpha.dtype == torch.float64
    for given in (torch.full((H,), 0.2), nn.Parameter(torch.full((H,), 0.2), False)):
        meta = LeakyRNN(I, H, alpha=given, device="meta")
        assert type(meta.alpha) is type(given)
        assert not meta.alpha.requires_grad
        assert meta(torch.zeros(T, B, I, device="meta"))[0].shape == (T, B, H)


@pytest.mark.parametrize("form", FORMS)
def test_noise_of_a_learned_leak_has_its_gradient(form: Any) -> None:
    alpha = nn.Parameter(torch.full((H,), 0.3, dtype=torch.float64))
    rnn = LeakyRNN(I, H, alpha=alpha, form=form, noise=0.5, dtype=torch.float64)
    x, zeros = torch.randn(T, B, I).double(), torch.zeros(B, H).double()
    torch.manual_seed(1)
    output, _ = rnn(x)
    torch.manual_seed(1)
    xi = 0.5 * (2 / alpha).sqrt() * torch.randn(1, T, B, H, dtype=torch.float64)
    expected, _ = by_hand(rnn, x, zeros, xi[0])
    torch.testing.assert_close(output, expected)
    grads = [torch.autograd.grad(y.sin().sum(), alpha) for y in (output, expected)]
    torch.testing.assert_close(*grads)


def test_replace_leaves_it_alone() -> None:
    model = nn.Sequential(LeakyRNN(I, H), RNN(I, H))
    with pytest.warns(UserWarning, match="no leaky RNN"):
        fastrnn.restore(model)
    assert type(model[0]) is LeakyRNN
    assert type(model[1]) is nn.RNN
    with pytest.warns(UserWarning, match="no leaky RNN"), fastrnn.as_torch(model):
        assert type(model[0]) is LeakyRNN


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"alpha": 0.0}, ValueError, "alpha should be greater than 0 and at most 1, got 0.0"),
        ({"alpha": 1.5}, ValueError, "got 1.5"),
        ({"alpha": float("nan")}, ValueError, "got nan"),
        ({"alpha": [0.1]}, TypeError, r"got: list. Convert it: torch.as_tensor\(alpha\)"),
        ({"alpha": True}, TypeError, "a number or a tensor, got: bool"),
        ({"alpha": "0.1"}, TypeError, "got: str"),
        ({"alpha": torch.tensor([0.1, -0.1] * 4)}, ValueError, "got values from -0.1 to 0.1"),
        ({"alpha": torch.ones(8, dtype=torch.int64)}, TypeError, "floating-point"),
        ({"alpha": torch.ones(7)}, RuntimeError, r"expands to \(L\*D, H\) = \(1, 8\), got \(7,\)"),
        ({"form": "rates"}, ValueError, "Unknown form 'rates'"),
        ({"noise": -1.0}, ValueError, "at least 0, got -1.0"),
        ({"noise": "a"}, TypeError, "got: str"),
        ({"noise": torch.zeros(1)}, TypeError, "noise should be a number, got a tensor"),
        ({"noise": [0.1]}, TypeError, r"got: list. Convert it: torch.as_tensor\(noise\)"),
        ({"alpha": torch.full((H,), 0.5, requires_grad=True)}, ValueError, "is no Parameter"),
        (
            {"alpha": nn.Parameter(torch.ones(H)) * 0.5},
            ValueError,
            "is no Parameter.*use torch.nn.utils.parametrize",
        ),
        (
            {"alpha": torch.tensor(1e-9), "dtype": torch.float16},
            ValueError,
            "greater than 0 and at most 1, got values from 0 to 0",
        ),
        ({"nonlinearity": "gelu"}, ValueError, "Unknown nonlinearity 'gelu'"),
    ],
    ids=str,
)
def test_constructor_errors(arguments: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        LeakyRNN(I, H, **arguments)
    of_the_module = "values" in words or "Parameter" in words
    if not isinstance(arguments.get("noise"), Tensor) and not of_the_module:
        weights = [*LeakyRNN(I, H).parameters()]
        with pytest.raises(error, match=words):
            leaky_rnn(torch.zeros(T, B, I), None, weights, **{"alpha": 0.1, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"noise": torch.zeros(T, B, H)}, ValueError, r"noise of shape \(1, 9, 4, 8\)"),
        ({"noise": torch.tensor(0.1)}, ValueError, "standard deviation as a number"),
        ({"noise": torch.zeros(1, T, B, H).double()}, RuntimeError, "noise of dtype torch.float32"),
        ({"hx": torch.zeros(1, 3, H)}, RuntimeError, "Expected hidden size"),
        ({"lengths": [10, 1, 1, 1]}, ValueError, "lengths between 0 and 9, got 10"),
        ({"reset": torch.zeros(T, 3).bool()}, ValueError, "reset of shape"),
        ({"igates": torch.zeros(T, B, 7)}, ValueError, r"igates of shape \(9, 4, 8\)"),
    ],
    ids=str,
)
def test_call_errors(arguments: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        LeakyRNN(I, H)(torch.zeros(T, B, I), **arguments)


def test_errors_of_rnn_remain() -> None:
    rnn = LeakyRNN(I, H, bidirectional=True)
    with pytest.raises(RuntimeError, match=r"input\.size"):
        rnn(torch.zeros(T, B, I + 1))
    with pytest.raises(RuntimeError, match="unidirectional"):
        rnn.step(torch.zeros(B, I))
    with pytest.raises(ValueError, match=r"noise of shape \(1, 4, 8\), got \(4, 8\)"):
        LeakyRNN(I, H).step(torch.zeros(B, I), noise=torch.zeros(B, H))
    with pytest.raises(AttributeError, match="expected input to be a Tensor"):
        rnn([1.0])


def test_learned_leak_is_kept_in_bounds() -> None:
    class UnitInterval(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sigmoid()

        def right_inverse(self, alpha: Tensor) -> Tensor:
            return alpha.logit()

    rnn = LeakyRNN(I, H, alpha=nn.Parameter(torch.full((H,), 0.2)))
    parametrize.register_parametrization(rnn, "alpha", UnitInterval())
    optimizer = torch.optim.SGD(rnn.parameters(), lr=100.0)
    for _ in range(3):
        optimizer.zero_grad()
        rnn(torch.randn(T, B, I))[0].sum().backward()
        optimizer.step()
    assert ((rnn.alpha >= 0) & (rnn.alpha <= 1)).all()
    assert not torch.allclose(rnn.alpha, torch.tensor(0.2))


def test_noise_that_is_a_numpy_number() -> None:
    with np.errstate(all="raise"):
        for number in (np.float16(0.1), np.float32(0.1), np.float64(0.1)):
            rnn = LeakyRNN(I, H, noise=number)
            assert rnn(torch.zeros(T, B, I))[0].shape == (T, B, H)


def test_noise_in_another_container() -> None:
    rnn, x = LeakyRNN(I, H), torch.zeros(T, B, I)
    with pytest.raises(TypeError, match=r"got: ndarray. Convert it: torch.as_tensor\(noise\)"):
        rnn(x, noise=np.zeros((1, T, B, H)))
    packed = pack_sequence([x[:, 0], x[:3, 1]])
    with pytest.raises(TypeError, match=r"got: PackedSequence. Pass its data, \(L, rows, D\*H\)"):
        rnn(packed, noise=packed)
