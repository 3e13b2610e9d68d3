"""Derivatives of every order and direction agree with one another and with the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, T
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp
from torch.nn.utils.rnn import PackedSequence

from fastrnn import RNN, reference

DOUBLE = {"dtype": torch.float64}

# Decompositions of torch's own, for forward mode, still use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def x(*sizes: int) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **DOUBLE)


LENGTHS = torch.tensor([2, 5])
RESET = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 1], [0, 0]]).bool()

# Options of the module, of the call, and of the reference.
CALLS: dict[str, tuple[dict[str, Any], dict[str, Tensor]]] = {
    "tanh": ({}, {}),
    "relu": ({"nonlinearity": "relu"}, {}),
    "layers, both directions": ({"num_layers": 2, "bidirectional": True}, {}),
    "no bias, batch_first": ({"bias": False, "batch_first": True}, {}),
    "lengths": ({"num_layers": 2, "bidirectional": True}, {"lengths": LENGTHS}),
    "reset": ({"num_layers": 2, "bidirectional": True}, {"reset": RESET}),
    "lengths and reset": ({}, {"lengths": LENGTHS, "reset": RESET}),
    "packed": ({"num_layers": 2, "bidirectional": True}, {}),
}

Loss = Callable[[dict[str, Tensor]], Tensor]


def losses(name: str) -> tuple[Loss, Loss, dict[str, Tensor]]:
    """The same function of all arguments by the module and by the reference, and arguments."""
    options, marks = CALLS[name]
    module = RNN(I, H, **options, **DOUBLE)
    states = module.num_layers * (2 if module.bidirectional else 1)
    weights = {k: w.detach().clone() for k, w in module.named_parameters()}
    sizes = (B, T, I) if module.batch_first else (T, B, I)
    packed_sizes = torch.tensor([2, 2, 1, 1, 1]) if name == "packed" else None
    input = x(int(packed_sizes.sum()), I) if packed_sizes is not None else x(*sizes)
    arguments = {"input": input, "hx": x(states, B, H), **weights}

    def loss(output: Tensor, hn: Tensor) -> Tensor:
        return output.sin().square().sum() + hn.exp().sum()

    def ours(a: dict[str, Tensor]) -> Tensor:
        data: Any = a["input"]
        if packed_sizes is not None:
            data = PackedSequence(data, packed_sizes)
        output, hn = functional_call(module, {k: a[k] for k in weights}, (data, a["hx"]), marks)
        return loss(output.data if packed_sizes is not None else output, hn)

    def truth(a: dict[str, Tensor]) -> Tensor:
        return loss(
            *reference.rnn(
                a["input"],
                a["hx"],
                [a[k] for k in weights],
                batch_sizes=packed_sizes,
                **marks,
                has_biases=module.bias,
                num_layers=module.num_layers,
                nonlinearity=module.nonlinearity,
                bidirectional=module.bidirectional,
                batch_first=module.batch_first,
            )
        )

    return ours, truth, arguments


def like(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.randn_like(y) for name, y in arguments.items()}


def gradients(loss: Loss, arguments: dict[str, Tensor], create_graph: bool = False) -> Any:
    leaves = {name: y.clone().requires_grad_() for name, y in arguments.items()}
    grads = torch.autograd.grad(loss(leaves), list(leaves.values()), create_graph=create_graph)
    return leaves, dict(zip(leaves, grads, strict=True))


def dot(a: dict[str, Tensor], b: dict[str, Tensor]) -> Tensor:
    return sum((a[name] * b[name]).sum() for name in a)  # type: ignore[return-value]


def close(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CALLS)
def test_first_order(name: str) -> None:
    """The kernels' gradient, torch.func's, and each direction's derivative."""
    ours, truth, arguments = losses(name)
    _, kernel = gradients(ours, arguments)
    _, expected = gradients(truth, arguments)
    close(kernel, expected)
    close(grad(ours)(arguments), expected)
    close(vjp(ours, arguments)[1](torch.ones((), **DOUBLE))[0], expected)
    tangent = like(arguments)
    value, directional = jvp(ours, (arguments,), (tangent,))
    close(value, truth(arguments))
    close(directional, dot(expected, tangent))
    with forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(y, tangent[k]) for k, y in arguments.items()}
        close(forward_ad.unpack_dual(ours(duals)).tangent, dot(expected, tangent))


@pytest.mark.parametrize("name", CALLS)
def test_second_order(name: str) -> None:
    """A Hessian times a vector: reverse or forward mode over reverse or forward mode."""
    ours, truth, arguments = losses(name)
    vector = like(arguments)

    def reverse_over_reverse(loss: Loss) -> Any:
        leaves, grads = gradients(loss, arguments, create_graph=True)
        return dict(
            zip(leaves, torch.autograd.grad(dot(grads, vector), list(leaves.values())), strict=True)
        )

    expected = reverse_over_reverse(truth)
    close(reverse_over_reverse(ours), expected)
    close(jvp(grad(ours), (arguments,), (vector,))[1], expected)
    close(grad(lambda a: jvp(ours, (a,), (vector,))[1])(arguments), expected)
    close(grad(lambda a: dot(grad(ours)(a), vector))(arguments), expected)


@pytest.mark.parametrize("name", ["tanh", "lengths and reset", "packed"])
def test_whole_hessian(name: str) -> None:
    ours, truth, arguments = losses(name)
    chosen = {k: arguments[k] for k in ("hx", "weight_hh_l0")}

    def of(loss: Loss) -> Callable[[dict[str, Tensor]], Tensor]:
        return lambda part: loss(arguments | part)

    expected = jacrev(jacrev(of(truth)))(chosen)
    close(hessian(of(ours))(chosen), expected)
    close(jacfwd(jacfwd(of(ours)))(chosen), expected)
    close(jacrev(jacrev(of(ours)))(chosen), expected)
    row = expected["weight_hh_l0"]["weight_hh_l0"].reshape(H * H, H * H)
    close(row, row.T)


def test_third_order_of_weights() -> None:
    results = []
    ours, truth, arguments = losses("layers, both directions")
    for loss in (ours, truth):
        leaves, grads = gradients(loss, arguments, create_graph=True)
        for _ in range(2):
            y = sum(g.square().sum() for g in grads.values())
            grads = dict(
                zip(
                    leaves,
                    torch.autograd.grad(y, list(leaves.values()), create_graph=True),
                    strict=True,
                )
            )
        results.append(grads)
    close(*results)


def test_gradient_penalty_trains() -> None:
    """Gulrajani et al. 2017: the norm of a critic's gradient, pulled to one."""
    torch.manual_seed(0)
    critic, linear = RNN(I, 16), torch.nn.Linear(16, 1)
    optimizer = torch.optim.Adam([*critic.parameters(), *linear.parameters()], lr=0.01)
    penalties = []
    for _ in range(60):
        input = torch.randn(T, 16, I, requires_grad=True)
        score = linear(critic(input)[1][-1]).sum()
        (g,) = torch.autograd.grad(score, input, create_graph=True)
        penalty = (g.square().sum((0, 2)).sqrt() - 1).square().mean()
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[-1] < 0.2 * penalties[0]
