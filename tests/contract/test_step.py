"""RNN.step: one time step for input that comes step by step."""

from __future__ import annotations

import pytest
import torch
from cases import FLOOR
from torch import Tensor, nn
from torch.nn.utils import prune

from fastrnn import RNN

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
OPTIONS = [
    {},
    {"num_layers": 3},
    {"nonlinearity": "relu", "bias": False},
    {"num_layers": 2, "batch_first": True},
]


def walk(rnn: RNN, input: Tensor, hx: Tensor | None) -> tuple[Tensor, Tensor]:
    """Step over time-major input."""
    outputs = []
    for x in input:
        output, hx = rnn.step(x, hx)
        outputs.append(output)
    assert hx is not None
    return torch.stack(outputs), hx


def assert_near(ours: Tensor, theirs: Tensor, steps: int = 1) -> None:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    scale = max(1.0, theirs.abs().max().item())
    assert (ours - theirs).abs().max().item() / scale <= 2 * steps * FLOOR[ours.dtype]


# Of each dtype, options, whether a state is given, and rows (None: no batch).
WALKS = [
    *((dtype, options, True, 3) for dtype in DTYPES for options in OPTIONS),
    *((dtype, {}, False, None) for dtype in DTYPES),
    *(
        (torch.float32, options, given, batch)
        for options in OPTIONS
        for given, batch in [(False, 1), (False, 3), (True, None)]
    ),
]


@pytest.mark.parametrize(("dtype", "options", "given", "batch"), WALKS, ids=str)
def test_steps_are_the_sequence(
    dtype: torch.dtype, options: dict[str, object], given: bool, batch: int | None, device: str
) -> None:
    rnn = RNN(5, 7, **options, device=device, dtype=dtype)
    rows = () if batch is None else (batch,)
    input = torch.randn(6, *rows, 5, device=device, dtype=dtype)
    hx = torch.randn(rnn.num_layers, *rows, 7, device=device, dtype=dtype) if given else None
    output, hn = walk(rnn, input, hx)
    rnn.batch_first = False
    expected, state = rnn(input, hx)
    assert_near(output, expected, 6)
    assert_near(hn, state, 6)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradients_go_through_the_steps(options: dict[str, object], device: str) -> None:
    rnn = RNN(5, 7, **options, dtype=torch.float64, device=device)
    input = torch.randn(4, 3, 5, dtype=torch.float64, device=device, requires_grad=True)
    hx = torch.randn(rnn.num_layers, 3, 7, dtype=torch.float64, device=device, requires_grad=True)
    wanted = [input, hx, *rnn.parameters()]
    grads = []
    for run in (walk, lambda rnn, input, hx: rnn(input, hx)):
        output, hn = run(rnn, input, hx)
        grads.append(torch.autograd.grad(output.square().sum() + hn.sin().sum(), wanted))
        rnn.batch_first = False
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck() -> None:
    rnn = RNN(2, 3, 2).double()
    args = torch.randn(2, 2).double().requires_grad_(), torch.randn(2, 2, 3).double()
    assert torch.autograd.gradcheck(rnn.step, args)
    assert torch.autograd.gradgradcheck(rnn.step, args)


def test_results_are_the_callers_own() -> None:
    rnn = RNN(2, 3)
    x, hx = torch.randn(4, 2), torch.randn(1, 4, 3)
    kept = hx.clone()
    output, hn = rnn.step(x, hx)
    torch.testing.assert_close(hx, kept, rtol=0, atol=0)
    assert output.untyped_storage().data_ptr() != hn.untyped_storage().data_ptr()
    expected = torch.autograd.grad(rnn.step(x, hx)[0].sum(), rnn.weight_ih_l0)
    output.sum().backward(retain_graph=True)
    rnn.zero_grad()
    loss = output.sum()
    with torch.no_grad():
        output.mul_(0), hn.mul_(0)
    loss.backward()
    torch.testing.assert_close(rnn.weight_ih_l0.grad, expected[0])


def test_dropout_applies_in_training_only() -> None:
    rnn, x = RNN(2, 3, 2, dropout=1.0), torch.randn(4, 2)
    expected = torch.tanh(rnn.bias_ih_l1 + rnn.bias_hh_l1).expand(4, 3)
    torch.testing.assert_close(rnn.step(x)[0], expected)
    rnn.eval()
    torch.testing.assert_close(rnn.step(x)[0], rnn(x.unsqueeze(0))[0][0])


def test_weights_may_be_computed() -> None:
    rnn, x = RNN(2, 3).eval(), torch.randn(4, 2)
    nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")
    torch.testing.assert_close(rnn.step(x)[0], rnn(x.unsqueeze(0))[0][0])


HOOKS = {
    "prune": lambda rnn: prune.random_unstructured(rnn, "weight_hh_l0", 0.5),
    "weight_norm": lambda rnn: nn.utils.weight_norm(rnn, "weight_hh_l0"),
    "spectral_norm": lambda rnn: nn.utils.spectral_norm(rnn, "weight_hh_l0"),
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("name", HOOKS)
def test_weights_that_hooks_compute(name: str) -> None:
    """A step after an update, and one with gradients after another."""
    torch.manual_seed(0)
    rnn, x = RNN(2, 3), torch.randn(4, 2)
    HOOKS[name](rnn)
    rnn.eval()
    hx = torch.randn(1, 4, 3)
    for _ in range(2):
        output, _ = rnn.step(x, hx)
        torch.testing.assert_close(output, rnn(x.unsqueeze(0), hx)[0][0])
        output.sum().backward()
        (computed,) = [
            p for n, p in rnn.named_parameters() if n in ("weight_hh_l0_orig", "weight_hh_l0_v")
        ]
        assert computed.grad.abs().sum() > 0
        with torch.no_grad():
            computed.add_(0.5)


def test_under_autocast() -> None:
    rnn, x = RNN(2, 3, 2), torch.randn(4, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, hn = rnn.step(x)
        output, hn = rnn.step(x, hn)
    assert output.dtype == hn.dtype == torch.bfloat16


def test_under_vmap() -> None:
    rnn, x, hx = RNN(2, 3, 2), torch.randn(5, 4, 2), torch.randn(5, 2, 4, 3)
    outputs, states = torch.func.vmap(rnn.step)(x, hx)
    for i in range(5):
        output, state = rnn.step(x[i], hx[i])
        torch.testing.assert_close(outputs[i], output)
        torch.testing.assert_close(states[i], state)


WRONG = {
    "both directions": (
        lambda: RNN(2, 3, bidirectional=True).step(torch.ones(4, 2)),
        RuntimeError,
        "got bidirectional=True",
    ),
    "a sequence": (
        lambda: RNN(2, 3).step(torch.ones(5, 4, 2)),
        ValueError,
        "expected input with 1 or 2 dimensions, got 3",
    ),
    "a state without a batch": (
        lambda: RNN(2, 3).step(torch.ones(4, 2), torch.ones(1, 3)),
        RuntimeError,
        "expected hx with 3 dimensions for input with 2, got 2",
    ),
    "features": (
        lambda: RNN(2, 3).step(torch.ones(4, 5)),
        RuntimeError,
        "Expected 2, got 5",
    ),
    "a state of another batch": (
        lambda: RNN(2, 3).step(torch.ones(4, 2), torch.ones(1, 5, 3)),
        RuntimeError,
        r"Expected hidden size \(1, 4, 3\), got \[1, 5, 3\]",
    ),
    "dtype": (
        lambda: RNN(2, 3).step(torch.ones(4, 2).double()),
        ValueError,
        "does not match weight dtype",
    ),
    "an array": (
        lambda: RNN(2, 3).step(torch.ones(4, 2).numpy()),
        AttributeError,
        r"RNN.step: expected input to be a Tensor, got ndarray. Convert it: torch.as_tensor\(input",
    ),
    "the state of an LSTM": (
        lambda: RNN(2, 3).step(torch.ones(4, 2), (torch.ones(1, 4, 3),) * 2),
        AttributeError,
        r"RNN.step: expected hx to be a Tensor or None, got a tuple. An LSTM's state is \(h, c\)",
    ),
    "dtype of the state": (
        lambda: RNN(2, 3).step(torch.ones(4, 2), torch.ones(1, 4, 3).double()),
        RuntimeError,
        "expected hx of dtype torch.float32, .* got torch.float64",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name: str) -> None:
    call, error, words = WRONG[name]
    with pytest.raises(error, match=words):
        call()
