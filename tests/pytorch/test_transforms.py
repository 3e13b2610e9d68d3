"""Batches of gradients, forward mode, and torch.func: as nn.RNN has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_agree, assert_same
from torch import Tensor, nn
from torch.autograd import forward_ad

from fastrnn import RNN

# Decompositions of torch's own, for forward mode, still use it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


def loss_of(module: nn.Module) -> Callable[..., Tensor]:
    def loss(weights: dict[str, Tensor], input: Tensor) -> Tensor:
        output, hn = torch.func.functional_call(module, weights, (input,))
        return output.square().sum() + hn.sin().sum()

    return loss


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: w.detach() for name, w in module.named_parameters()}


def batched_gradients(module: nn.Module, input: Tensor) -> object:
    input = input.requires_grad_()
    output, _ = module(input)
    grads = torch.eye(output.numel())[:4].view(4, *output.shape)
    return torch.autograd.grad(output, [input, *module.parameters()], grads, is_grads_batched=True)


def forward_mode_of_a_weight(module: nn.Module, input: Tensor) -> object:
    weight = module.weight_hh_l0.detach()
    del module.weight_hh_l0
    with forward_ad.dual_level():
        module.weight_hh_l0 = forward_ad.make_dual(weight, torch.ones_like(weight))
        return tuple(forward_ad.unpack_dual(module(input)[0]))


def forward_over_reverse(module: nn.Module, input: Tensor) -> object:
    input = input.requires_grad_()
    output, _ = module(input)
    with forward_ad.dual_level():
        grads = forward_ad.make_dual(torch.ones_like(output), torch.full_like(output, 2.0))
        (grad,) = torch.autograd.grad(output, input, grads)
        return tuple(forward_ad.unpack_dual(grad))


TRANSFORMS = {
    "is_grads_batched": batched_gradients,
    "jacobian": lambda m, x: torch.autograd.functional.jacobian(lambda x: m(x)[0], x),
    "jacobian, vectorized": lambda m, x: torch.autograd.functional.jacobian(
        lambda x: m(x)[0], x, vectorize=True
    ),
    "jacobian, forward mode": lambda m, x: torch.autograd.functional.jacobian(
        lambda x: m(x)[0], x, vectorize=True, strategy="forward-mode"
    ),
    "autograd.functional.hessian": lambda m, x: torch.autograd.functional.hessian(
        lambda x: m(x)[0].square().sum(), x
    ),
    "forward mode of a weight": forward_mode_of_a_weight,
    "forward mode in backward": forward_over_reverse,
    "functionalize": lambda m, x: torch.func.functionalize(lambda x: m(x)[0].mul_(2))(x),
    "grad with kernels outside": lambda m, x: (m(x), torch.func.grad(loss_of(m))(weights_of(m), x)),
}


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms(name: str) -> None:
    assert_agree(lambda rnn: TRANSFORMS[name](rnn(I, H, 2), x()), tolerance=1e-5)


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_with_dropout(randomness: str) -> None:
    module, inputs = RNN(I, H, 2, dropout=0.5), x(1, T, B, I).expand(3, T, B, I)
    output, _ = torch.vmap(module, randomness=randomness)(inputs)
    assert torch.equal(output[0], output[1]) == (randomness == "same")


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_linearize() -> None:
    module, input, tangent = RNN(I, H, 2), x(), x()
    result, push = torch.func.linearize(module, input)
    expected, tangents = torch.func.jvp(module, (input,), (tangent,))
    assert_same([y.detach() for y in result], [y.detach() for y in expected])
    torch.testing.assert_close(push(tangent), tangents)
