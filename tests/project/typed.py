"""What type checkers must find: `make lint` runs mypy and pyright over this file."""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from typing import Any, assert_type

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn import RNN, LeakyRNN, RNNCell, functional


def module(rnn: RNN, x: Tensor, packed: PackedSequence, marks: "np.ndarray[Any, Any]") -> None:
    assert_type(rnn(x), tuple[Tensor, Tensor])
    assert_type(rnn(x, torch.zeros(1, 2, 4)), tuple[Tensor, Tensor])
    assert_type(rnn(packed), tuple[PackedSequence, Tensor])
    assert_type(rnn(x, lengths=[3, 2], reset=marks), tuple[Tensor, Tensor])
    assert_type(rnn(x, lengths=torch.tensor([3, 2])), tuple[Tensor, Tensor])
    assert_type(rnn(packed, reset=packed), tuple[PackedSequence, Tensor])
    assert_type(rnn.step(x[0], reset=[True, False]), tuple[Tensor, Tensor])
    assert_type(rnn.nonlinearity, str)
    assert_type(rnn(x, igates=x), tuple[Tensor, Tensor])
    assert_type(rnn(x, return_layers=True), tuple[Tensor, Tensor, Tensor])
    layers = rnn(packed, return_layers=True)
    assert_type(layers, tuple[PackedSequence, Tensor, list[PackedSequence]])
    assert_type(LeakyRNN(3, 4, alpha=0.1).step(x), tuple[Tensor, Tensor])


def cell(rnn: RNNCell, x: Tensor) -> None:
    assert_type(rnn(x), Tensor)
    assert_type(rnn(x, reset=[True, False]), Tensor)


def function(x: Tensor, packed: PackedSequence, weights: list[Tensor]) -> None:
    assert_type(functional.rnn(x, None, weights, lengths=[3, 2]), tuple[Tensor, Tensor])
    assert_type(functional.rnn(packed, None, weights), tuple[PackedSequence, Tensor])
    assert_type(functional.rnn(x, None, weights, return_layers=True), tuple[Any, ...])
    assert_type(functional.rnn(None, None, weights, igates=x), tuple[Any, ...])


def model(sequential: nn.Sequential) -> None:
    assert_type(fastrnn.replace(sequential), nn.Sequential)
    with fastrnn.as_torch(sequential) as same:
        assert_type(same, nn.Sequential)


def wrong(rnn: RNN, x: Tensor, packed: PackedSequence) -> None:
    RNN(3, 4, nonlinearity="gelu")  # type: ignore[arg-type]
    RNN(3, 4, proj_size=2)  # type: ignore[arg-type]
    LeakyRNN(3, 4, form="rates")  # type: ignore[arg-type]
    rnn(x, lengths=3)  # type: ignore[call-overload]
    rnn(packed, lengths=[3, 2])  # type: ignore[call-overload]
    rnn([1.0, 2.0])  # type: ignore[call-overload]
