"""The calls that read a module's ``__dict__``: anything odd there is left to Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fastrnn
from fastrnn import _C

X, H = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
MODULES: dict[str, tuple[type, Any]] = {
    "rnn": (fastrnn.RNN, lambda d: _C.rnn_of_module(d, X, H, None, None)),
    "leaky": (fastrnn.LeakyRNN, lambda d: _C.leaky_of_module(d, X, H, None, None, None, False)),
    "step": (fastrnn.RNN, lambda d: _C.step_of_module(d, X[0], H)),
    "leaky step": (fastrnn.LeakyRNN, lambda d: _C.leaky_step_of_module(d, X[0], H, None)),
    "cell": (fastrnn.RNNCell, lambda d: _C.cell_of_module(d, X[0], H[0])),
}
SEQUENCES = ("rnn", "leaky", "step", "leaky step")


class Key(str):
    """Calls a function when it is compared."""

    __hash__ = str.__hash__
    clear: Any

    def __eq__(self, other: object) -> bool:
        self.clear()
        return False


def facts(name: str) -> dict[str, Any]:
    module = MODULES[name][0](3, 4)
    found = dict(vars(module))
    for key in ("_parameters", "_flat_weights", "_flat_weights_names"):
        if key in found:
            found[key] = found[key].copy()
    return found


def first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


@pytest.mark.parametrize("name", MODULES)
def test_the_result_is_the_modules(name: str) -> None:
    cls, call = MODULES[name]
    module = cls(3, 4)
    x, hx = (X, H) if name in ("rnn", "leaky") else (X[0], H[0] if name == "cell" else H)
    run = module.step if "step" in name else module.__call__
    torch.testing.assert_close(first(call(vars(module))), first(run(x, hx)), rtol=0, atol=0)


CHANGES: dict[str, tuple[Any, ...]] = {
    "bias": (1, None, False),
    "mode": ("tanh", "RNN_tanh", b"RNN_TANH", None),
    "bidirectional": (0, None, True),
    "batch_first": (0, None),
    "dropout": (None, "0", torch.zeros(()), 1),
    "training": (1, None),
    "num_layers": ("1", 1.0, True, 0, 2, 2**70),
    "hidden_size": (5, 4.0, True, 2**70),
    "input_size": (4, 3.0, None),
    "proj_size": (1, None),
    "_flat_weights": (None, (), [], [None] * 4),
    "_flat_weights_names": (None, (), [], [[]] * 4, ["weight_hh_l0", "weight_ih_l0"] * 2),
    "_parameters": (None, {}, []),
}
LEAK: dict[str, tuple[Any, ...]] = {
    "form": ("both", None, 1),
    "alpha": (None, "0.1", 1, 2.0, 0.0, torch.ones(3), torch.ones(4, dtype=torch.int64)),
    "noise": (0.1, None, "0", False),
}
CELL: dict[str, tuple[Any, ...]] = {
    "nonlinearity": ("sigmoid", None, b"tanh"),
    "hidden_size": (5, 4.0, True),
    "_parameters": (None, {}, [], {"weight_ih": torch.ones(4, 3)}),
}


@pytest.mark.parametrize("name", MODULES)
def test_an_attribute_that_is_missing_or_changed_is_left_to_python(name: str) -> None:
    _, call = MODULES[name]
    changes = CELL if name == "cell" else CHANGES | (LEAK if "leaky" in name else {})
    for key, values in changes.items():
        missing = facts(name)
        del missing[key]
        assert call(missing) is None, key
        for value in values:
            assert call(facts(name) | {key: value}) is None, (key, value)


@pytest.mark.parametrize("name", SEQUENCES)
def test_weights_that_are_not_current_are_left_to_python(name: str) -> None:
    _, call = MODULES[name]
    changed = facts(name)
    changed["_parameters"]["bias_ih_l0"] = torch.zeros(4)
    assert call(changed) is None
    swapped = facts(name)
    swapped["_flat_weights"][2:] = swapped["_flat_weights"][:1:-1]
    assert call(swapped) is None


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("key", ["weight_hh_l0", "mode", "hidden_size"])
def test_a_key_that_empties_the_dict_and_its_lists_when_it_is_compared(name: str, key: str) -> None:
    _, call = MODULES[name]
    changed = facts(name)
    odd, held = Key(key), dict(changed)

    def clear() -> None:
        held["_flat_weights"].clear()
        held["_flat_weights_names"].clear()
        held["_parameters"].clear()
        changed.clear()

    Key.clear = staticmethod(clear)
    where = changed["_parameters"] if key == "weight_hh_l0" else changed
    where[odd] = where.pop(key)
    assert call(changed) is None


def test_dropout_that_does_not_apply() -> None:
    for changes in ({"dropout": 0.5}, {"dropout": 0.5, "training": False}):
        assert MODULES["rnn"][1](facts("rnn") | changes) is not None  # of one layer
    module = fastrnn.RNN(3, 4, 2, dropout=0.5)
    hx = torch.zeros(2, 2, 4)
    assert _C.rnn_of_module(vars(module), X, hx, None, None) is None
    assert _C.rnn_of_module(vars(module.eval()), X, hx, None, None) is not None
