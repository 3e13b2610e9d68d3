"""The constructor of nn.RNN: what it takes, what it refuses, and the attributes that it sets."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from both import assert_agree, assert_raise_alike, outcome
from torch import nn

from fastrnn import RNN

REFUSED = {
    "proj_size keyword": lambda rnn: rnn(3, 4, proj_size=0),
    "proj_size before nonlinearity": lambda rnn: rnn(3, 4, nonlinearity="x", proj_size=2),
    "nonlinearity name": lambda rnn: rnn(3, 4, nonlinearity="sigmoid"),
    "nonlinearity position": lambda rnn: rnn(3, 4, 1, "sigmoid"),
    "nonlinearity case": lambda rnn: rnn(3, 4, nonlinearity="Tanh"),
    "nonlinearity None": lambda rnn: rnn(3, 4, nonlinearity=None),
    "nonlinearity True": lambda rnn: rnn(3, 4, 2, True),
    "nonlinearity function": lambda rnn: rnn(3, 4, nonlinearity=torch.tanh),
    "nonlinearity before sizes": lambda rnn: rnn("a", -1, nonlinearity="x"),
    "mode": lambda rnn: rnn(3, 4, mode="RNN_TANH"),
    "unknown keyword": lambda rnn: rnn(3, 4, hidden=5),
    "dropout text": lambda rnn: rnn(3, 4, 2, dropout="a"),
    "dropout None": lambda rnn: rnn(3, 4, 2, dropout=None),
    "dropout complex": lambda rnn: rnn(3, 4, 2, dropout=1j),
    "dropout True": lambda rnn: rnn(3, 4, 2, dropout=True),
    "dropout below": lambda rnn: rnn(3, 4, 2, dropout=-0.1),
    "dropout above": lambda rnn: rnn(3, 4, 2, dropout=1.1),
    "dropout nan": lambda rnn: rnn(3, 4, 2, dropout=float("nan")),
    "dropout tensor": lambda rnn: rnn(3, 4, 2, dropout=torch.tensor(0.5)),
    "dropout before bias": lambda rnn: rnn(3, 4, 2, bias=1, dropout=2.0),
    "bias": lambda rnn: rnn(3, 4, bias=1),
    "batch_first": lambda rnn: rnn(3, 4, batch_first=None),
    "bias before batch_first": lambda rnn: rnn(3, 4, bias=0, batch_first=0),
    "input_size float": lambda rnn: rnn(3.0, 4),
    "input_size numpy": lambda rnn: rnn(np.int64(3), 4),
    "input_size zero": lambda rnn: rnn(0, 4),
    "input_size before hidden_size": lambda rnn: rnn(-1, "a"),
    "hidden_size text": lambda rnn: rnn(3, "4"),
    "hidden_size negative": lambda rnn: rnn(3, -4),
    "num_layers zero": lambda rnn: rnn(3, 4, 0),
    "num_layers text": lambda rnn: rnn(3, 4, "1"),
    "num_layers float": lambda rnn: rnn(3, 4, 1.0),
    "dtype integer": lambda rnn: rnn(3, 4, dtype=torch.int64),
    "dtype float8": lambda rnn: rnn(3, 4, dtype=torch.float8_e4m3fn),
    "device": lambda rnn: rnn(3, 4, device="nowhere"),
}

# Python's own words for arguments that do not fit the signature name it.
REFUSED_BY_SIGNATURE = {
    "nothing": lambda rnn: rnn(),
    "no hidden_size": lambda rnn: rnn(3),
    "nonlinearity twice": lambda rnn: rnn(3, 4, 1, "tanh", nonlinearity="tanh"),
    "too many": lambda rnn: rnn(3, 4, 1, "tanh", True, False, 0.0, False, 0, None, None, None),
}

ACCEPTED = {
    "defaults": lambda rnn: rnn(3, 4),
    "all positional": lambda rnn: rnn(3, 4, 2, "relu", False, True, 0.5, True),
    "all keywords": lambda rnn: rnn(
        input_size=3,
        hidden_size=4,
        num_layers=2,
        nonlinearity="relu",
        bias=False,
        batch_first=True,
        dropout=0.5,
        bidirectional=True,
        device="cpu",
        dtype=torch.float64,
    ),
    "dropout int": lambda rnn: rnn(3, 4, 2, dropout=1),
    "dropout zero": lambda rnn: rnn(3, 4, dropout=0),
    "dropout numpy": lambda rnn: rnn(3, 4, 2, dropout=np.float32(0.25)),
    "input_size True": lambda rnn: rnn(True, 4),
    "bidirectional int": lambda rnn: rnn(3, 4, bidirectional=1),
    "half": lambda rnn: rnn(3, 4, dtype=torch.float16),
    "bfloat16": lambda rnn: rnn(3, 4, dtype=torch.bfloat16),
    "complex": lambda rnn: rnn(3, 4, dtype=torch.complex64),
    "meta": lambda rnn: rnn(3, 4, device="meta"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    assert_raise_alike(REFUSED[name])


@pytest.mark.parametrize("name", REFUSED_BY_SIGNATURE)
def test_refused_by_signature(name: str) -> None:
    theirs = outcome(REFUSED_BY_SIGNATURE[name], nn.RNN)
    assert outcome(REFUSED_BY_SIGNATURE[name], RNN).type is theirs.type is TypeError


@pytest.mark.parametrize("name", ACCEPTED)
def test_attributes(name: str) -> None:
    def attributes(cls: type) -> dict[str, object]:
        module = ACCEPTED[name](cls)
        state = dict(vars(module))
        del state["_flat_weight_refs"]  # compared in test_state.py
        class_state = {
            name: getattr(cls, name) for name in ("__constants__", "__jit_unused_properties__")
        }
        return state | class_state | {"repr": repr(module), "all_weights": module.all_weights}

    assert_agree(attributes)


def test_dropout_of_one_layer_warns() -> None:
    messages = []
    for cls in (nn.RNN, RNN):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but") as record:
            cls(3, 4, dropout=0.5)
        messages.append([str(w.message) for w in record])
    assert messages[0] == messages[1]


def test_signature_is_the_documented_one() -> None:
    documented = nn.RNN.__doc__.splitlines()[0]  # __init__(input_size,...,dtype=None)
    parameters = list(inspect.signature(RNN).parameters.values())[:-1]
    ours = ",".join(str(p.replace(annotation=p.empty)) for p in parameters)
    assert f"__init__({ours})" == documented


def test_ninth_and_tenth_positional_arguments_are_device_and_dtype() -> None:
    module = RNN(3, 4, 1, "tanh", True, False, 0.0, False, "meta", torch.float64)
    assert (module.weight_ih_l0.device.type, module.weight_ih_l0.dtype) == ("meta", torch.float64)


def test_skip_init() -> None:
    module = torch.nn.utils.skip_init(RNN, 3, 4, dtype=torch.float64)
    assert module.weight_hh_l0.dtype == torch.float64
    assert module.weight_hh_l0.device.type == "cpu"


def test_class_is_one_that_dynamo_traces() -> None:
    module = RNN(3, 4)
    assert isinstance(module, nn.RNNBase)
    assert not isinstance(module, nn.RNN)  # torch.compile refuses its instances
    assert type(module).__name__ == "RNN"


CHANGED_LATER = {
    "mode": lambda m: setattr(m, "mode", "RNN_RELU"),
    "nonlinearity": lambda m: setattr(m, "nonlinearity", "relu"),
    "batch_first": lambda m: setattr(m, "batch_first", True),
    "dropout": lambda m: setattr(m, "dropout", 0.5),
    "training": lambda m: m.eval(),
}


@pytest.mark.parametrize("name", CHANGED_LATER)
def test_attributes_changed_later(name: str) -> None:
    def run(cls: type) -> object:
        module = cls(3, 4, 2, dropout=0.25)
        CHANGED_LATER[name](module)
        return module(torch.randn(5, 2, 3)), torch.get_rng_state()

    assert_agree(run)


def test_unknown_mode_raises() -> None:
    def run(cls: type) -> object:
        module = cls(3, 4)
        module.mode = "LSTM"
        return module(torch.randn(5, 2, 3))

    assert_raise_alike(run)


def test_bidirectional_that_is_no_bool_fails_in_forward() -> None:
    for cls in (nn.RNN, RNN):
        module = cls(3, 4, bidirectional=1)
        with pytest.raises(TypeError):
            module(torch.randn(5, 2, 3))
