"""fastrnn.functional.rnn: the module's computation with the weights as an argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_same
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from fastrnn import RNN
from fastrnn.functional import rnn

CONFIGURATIONS = {
    "defaults": {},
    "relu, no bias": {"nonlinearity": "relu", "bias": False},
    "batch_first": {"batch_first": True},
    "layers and directions": {"num_layers": 2, "bidirectional": True},
}

INPUTS = {
    "batch": lambda: torch.randn(T, B, I),
    "no batch": lambda: torch.randn(T, I),
    "packed": lambda: pack_sequence([torch.randn(3, I), torch.randn(5, I)], enforce_sorted=False),
}


@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_is_what_the_module_computes(name: str, kind: str) -> None:
    module, input = RNN(I, H, **CONFIGURATIONS[name]), INPUTS[kind]()
    weights = [w for layer in module.all_weights for w in layer]
    for sequence in (weights, tuple(weights), nn.ParameterList(weights)):
        assert_same(rnn(input, None, sequence, **CONFIGURATIONS[name]), module(input))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_dropout_applies_in_training(training: bool) -> None:
    module, input = RNN(I, H, 2, dropout=0.5).train(training), torch.randn(T, B, I)
    torch.manual_seed(1)
    expected = module(input)
    torch.manual_seed(1)
    result = rnn(
        input, None, list(module.parameters()), num_layers=2, dropout=0.5, training=training
    )
    assert_same(result, expected)


def weights(count: int = 4) -> list[Tensor]:
    return [torch.randn(H, I), torch.randn(H, H), torch.randn(H), torch.randn(H)][:count]


ERRORS = {
    "nonlinearity": (
        lambda: rnn(torch.randn(T, B, I), None, weights(), nonlinearity="gelu"),
        (ValueError, r"Unknown nonlinearity 'gelu'\. Select from 'tanh' or 'relu'\."),
    ),
    "too few weights": (
        lambda: rnn(torch.randn(T, B, I), None, weights(2)),
        (
            RuntimeError,
            r"expected 4 weights for num_layers=1, bias=True, bidirectional=False, got",
        ),
    ),
    "a weight that is no tensor": (
        lambda: rnn(torch.randn(T, B, I), None, [*weights(3), None]),
        (TypeError, r"expected weights that are tensors, got NoneType"),
    ),
    "dtype": (
        lambda: rnn(torch.randn(T, B, I).double(), None, weights()),
        (ValueError, r"input dtype \(torch.float64\) does not match weight dtype"),
    ),
    "bidirectional": (
        lambda: rnn(torch.randn(T, B, I), None, 2 * weights(), bidirectional=1),
        (TypeError, r"bidirectional should be of type bool, got: int"),
    ),
    "batch_first": (
        lambda: rnn(torch.randn(T, B, I), None, weights(), batch_first="no"),
        (TypeError, r"batch_first should be of type bool, got: str"),
    ),
    "no layers": (
        lambda: rnn(torch.randn(T, B, I), None, [], num_layers=0),
        (ValueError, r"num_layers must be greater than zero, got 0"),
    ),
    "num_layers": (
        lambda: rnn(torch.randn(T, B, I), None, weights(), num_layers="1"),
        (TypeError, r"num_layers should be of type int, got: str"),
    ),
    "dropout": (
        lambda: rnn(torch.randn(T, B, I), None, weights(), dropout=-0.5, training=True),
        (ValueError, r"dropout should be a probability between 0 and 1, got -0.5"),
    ),
    "one weight": (
        lambda: rnn(torch.randn(T, B, I), None, torch.randn(4, H)),
        (TypeError, r"expected a sequence of weights, got one tensor"),
    ),
    "lengths without a batch": (
        lambda: rnn(torch.randn(T, I), None, weights(), lengths=torch.tensor([T])),
        (ValueError, r"lengths go with batched input, got 2-D input"),
    ),
    "reset of packed input": (
        lambda: rnn(INPUTS["packed"](), None, weights(), reset=torch.zeros(T + 1, B)),
        (ValueError, rf"expected reset of dtype torch.bool and shape \({T}, {B}\), got"),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, (kind, words) = ERRORS[name]
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize(
    "mark", [{"lengths": [5, 2.0]}, {"lengths": "52"}, {"reset": [[True, False]] * 5}], ids=str
)
def test_marks_that_are_no_tensor(mark: dict[str, Any]) -> None:
    ((name, value),) = mark.items()
    message = f"expected {name} to be a tensor, got {type(value).__name__}"
    with pytest.raises(TypeError, match=message):
        RNN(3, 4)(torch.zeros(5, 2, 3), **mark)


def test_weights_may_come_from_an_iterator() -> None:
    module, x = RNN(3, 4, 2), torch.randn(5, 2, 3)
    output, _ = rnn(x, None, module.parameters(), num_layers=2)
    assert torch.equal(output, module(x)[0])
