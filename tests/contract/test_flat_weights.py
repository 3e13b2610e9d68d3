"""The list of weights that public subclasses of nn.RNN swap for the time of a call."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from both import B, H, I, T, assert_agree
from torch import Tensor, nn
from torch.func import functional_call

import fastrnn


def drop_connect(cls: Any) -> Any:
    """A subclass that drops recurrent weights, as public parsers write it."""

    class DropConnect(cls):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
            kept = self._flat_weights
            self._flat_weights = [
                F.dropout(w, 0.5) if "weight_hh" in name else w
                for w, name in zip(kept, self._flat_weights_names, strict=True)
            ]
            try:
                return super().forward(input, hx)
            finally:
                self._flat_weights = kept

    return DropConnect


def results(module: nn.Module, input: Tensor) -> list[Any]:
    module.zero_grad()
    output, hn = module(input)
    output.square().sum().backward()
    return [output, hn, {name: w.grad for name, w in module.named_parameters()}]


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
def test_swapped_weights(options: dict[str, Any]) -> None:
    def run(cls: type) -> Any:
        module = drop_connect(cls)(I, H, **options)
        input = torch.randn(T, B, I)
        dropped = results(module, input)
        plain = cls.forward(module, input)[0]
        assert not torch.allclose(dropped[0], plain)
        return *dropped, plain

    assert_agree(run)


def test_weights_of_a_cell_put_into_the_list() -> None:
    def run(cls: type) -> Any:
        module, cell, input = cls(I, H), nn.RNNCell(I, H), torch.randn(T, B, I)
        for i, name in enumerate(("weight_ih", "weight_hh", "bias_ih", "bias_hh")):
            module._flat_weights[i] = getattr(cell, name)
        state = torch.zeros(B, H)
        for step in input:
            state = cell(step, state)
        output, hn = module(input)
        torch.testing.assert_close(hn[0], state)
        output.sum().backward()
        return output, hn, cell.weight_hh.grad, module.weight_hh_l0.grad

    assert_agree(run)


def functional(module: nn.Module, input: Tensor) -> Tensor:
    weights = {name: 2 * w.detach() for name, w in module.named_parameters()}
    return functional_call(module, weights, (input,))[0]


def assigned(module: nn.Module, input: Tensor) -> Tensor:
    module.weight_hh_l0 = nn.Parameter(torch.ones(H, H))
    return module(input)[0]


def put_into_the_dict(module: nn.Module, input: Tensor) -> Tensor:
    module._parameters["weight_hh_l0"] = nn.Parameter(torch.ones(H, H))
    return module(input)[0]


def swapped_and_assigned(module: nn.Module, input: Tensor) -> Tensor:
    module._flat_weights = [torch.zeros_like(w) for w in module._flat_weights]
    module.weight_ih_l0 = nn.Parameter(torch.ones(H, I))
    return module(input)[0]


def swapped_and_copied(module: nn.Module, input: Tensor) -> Tensor:
    module._flat_weights = [torch.zeros_like(w) for w in module._flat_weights]
    return copy.deepcopy(module)(input)[0]


def swapped_and_converted(module: nn.Module, input: Tensor) -> Tensor:
    module._flat_weights = [torch.zeros_like(w) for w in module._flat_weights]
    return module.double()(input.double())[0]


def with_another_parameter(module: nn.Module, input: Tensor) -> Tensor:
    module.scale = nn.Parameter(torch.ones(()))
    module._flat_weights = [torch.zeros_like(w) for w in module._flat_weights]
    return module(input)[0]


def swapped_after_an_assignment(module: nn.Module, input: Tensor) -> Tensor:
    """nn.RNN's first call after it takes the new weight, the next ones what is swapped."""
    module.weight_hh_l0 = nn.Parameter(torch.ones(H, H))
    return calls_with_zeros(module, input)


def swapped_after_a_load(module: nn.Module, input: Tensor) -> Tensor:
    state = {name: 2 * w.detach() for name, w in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return calls_with_zeros(module, input)


def swapped_beside_a_plain_attribute(module: nn.Module, input: Tensor) -> Tensor:
    w = module.weight_hh_l0.detach()
    del module.weight_hh_l0
    module.weight_hh_l0 = w
    return calls_with_zeros(module, input)


def swapped_for_a_tuple(module: nn.Module, input: Tensor) -> Tensor:
    module._flat_weights = tuple(torch.zeros_like(w) for w in module._flat_weights)
    return module(input)[0]


def calls_with_zeros(module: nn.Module, input: Tensor) -> Tensor:
    outputs = []
    for _ in range(3):
        kept = module._flat_weights
        module._flat_weights = [torch.zeros_like(w) for w in kept]
        outputs.append(module(input)[0])
        module._flat_weights = kept
    return torch.stack(outputs)


CHANGES = [
    swapped_after_an_assignment,
    swapped_after_a_load,
    swapped_beside_a_plain_attribute,
    swapped_for_a_tuple,
    functional,
    assigned,
    put_into_the_dict,
    swapped_and_assigned,
    swapped_and_copied,
    swapped_and_converted,
    with_another_parameter,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_which_weights_win(change: Any) -> None:
    def run(cls: type) -> Any:
        module, input = cls(I, H), torch.randn(T, B, I)
        before = module(input)[0]
        return before, change(module, input), module(input.to(module.weight_hh_l0.dtype))[0]

    assert_agree(run)


def test_a_step_takes_swapped_weights() -> None:
    module, input = fastrnn.RNN(I, H), torch.randn(B, I)
    module._flat_weights = [torch.zeros_like(w) for w in module._flat_weights]
    assert not module.step(input)[0].any()


def test_swapped_weights_compiled() -> None:
    module, input = drop_connect(fastrnn.RNN)(I, H), torch.randn(T, B, I)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.manual_seed(1)
    expected = module(input)
    torch.manual_seed(1)
    for x, y in zip(compiled(input), expected, strict=True):
        torch.testing.assert_close(x, y)
    assert not torch.allclose(expected[0], fastrnn.RNN.forward(module, input)[0])
