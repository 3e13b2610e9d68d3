"""fastrnn.functional.rnn: the module's computation with the weights as an argument."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from both import B, H, I, T, assert_same
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

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
        (TypeError, r"expected weights to be tensors, got NoneType"),
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
    "dropout that is no number": (
        lambda: rnn(torch.randn(T, B, I), None, weights(), dropout="0.5"),
        (TypeError, r"dropout should be a number, got: str"),
    ),
    "no weights": (
        lambda: rnn(torch.randn(T, B, I), None, None),
        (TypeError, r"expected a sequence of weights, got NoneType"),
    ),
    "an array": (
        lambda: rnn(torch.randn(T, B, I).numpy(), None, weights()),
        (AttributeError, r"got ndarray. Convert it: torch.as_tensor\(input\)"),
    ),
    "the state of an LSTM": (
        lambda: rnn(torch.randn(T, B, I), (torch.zeros(1, B, H),) * 2, weights()),
        (AttributeError, r"An LSTM's state is \(h, c\), an RNN's is h alone: pass hx\[0\]"),
    ),
    "dtype of hx": (
        lambda: rnn(torch.randn(T, B, I), torch.zeros(1, B, H).double(), weights()),
        (RuntimeError, r"expected hx of dtype torch.float32, .* got torch.float64"),
    ),
    "reset_state alone": (
        lambda: rnn(torch.randn(T, B, I), None, weights(), reset_state=torch.zeros(1, B, H)),
        (ValueError, r"reset_state is the state where reset is true. Expected reset as well, got"),
    ),
    "one weight": (
        lambda: rnn(torch.randn(T, B, I), None, torch.randn(4, H)),
        (TypeError, r"expected a sequence of weights, got one tensor"),
    ),
    "lengths without a batch": (
        lambda: rnn(torch.randn(T, I), None, weights(), lengths=torch.tensor([T])),
        (ValueError, r"lengths are for batched input, got 2-D input"),
    ),
    "reset of packed input": (
        lambda: rnn(INPUTS["packed"](), None, weights(), reset=torch.zeros(T + 1, B)),
        (ValueError, rf"expected reset of shape \({T}, {B}\), the input's .* got"),
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    call, (kind, words) = ERRORS[name]
    with pytest.raises(kind, match=words):
        call()


def test_lengths_beyond_64_bits() -> None:
    with pytest.raises(ValueError, match="between 0 and seq_len, got 1180591620717411303424"):
        rnn(torch.randn(5, 2, 3), None, weights(), lengths=[2**70, 2])


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ({"lengths": [5, 2.0]}, r"expected integer lengths, got 2.0 in a list"),
        ({"lengths": [3.0] * 2}, r"expected integer lengths, got 3.0 in a list"),
        ({"lengths": [True, True]}, r"expected integer lengths, got True in a list"),
        ({"lengths": "52"}, r"expected lengths to be a tensor or list of integers, got str"),
        ({"lengths": 5}, r"expected lengths to be a tensor or list of integers, got int"),
        ({"reset": "no"}, r"expected reset to be a tensor of shape \(5, 2\), bool or 0/1, got str"),
        ({"reset": [torch.zeros(2)] * 5}, r"got list. If its .* convert it: torch.stack\(reset\)"),
        (
            {"reset": pack_padded_sequence(torch.zeros(5, 2), torch.tensor([5, 2]))},
            r"got PackedSequence. Convert it with pad_packed_sequence\(reset\)",
        ),
    ],
    ids=str,
)
def test_marks_that_are_no_tensor(mark: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        RNN(3, 4)(torch.zeros(5, 2, 3), **mark)


@pytest.mark.parametrize(
    "lengths",
    [
        np.array([5, 2]),
        [np.int64(5), np.int32(2)],
        [torch.tensor(5), torch.tensor([2])],
    ],
    ids=["array", "numbers of NumPy", "tensors"],
)
def test_lengths_from_lists_and_arrays(lengths: Any) -> None:
    module, x = RNN(3, 4, bidirectional=True), torch.randn(5, 2, 3)
    expected = module(x, lengths=torch.tensor([5, 2]))
    assert all(map(torch.equal, module(x, lengths=lengths), expected))


def test_weights_may_come_from_an_iterator() -> None:
    module, x = RNN(3, 4, 2), torch.randn(5, 2, 3)
    output, _ = rnn(x, None, module.parameters(), num_layers=2)
    assert torch.equal(output, module(x)[0])
