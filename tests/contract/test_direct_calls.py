"""The calls that read a module's ``__dict__``: anything odd there is left to Python."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import fastrnn
from fastrnn import _C, _checks

X, H = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
MODULES: dict[str, tuple[type, Any]] = {
    "rnn": (fastrnn.RNN, lambda d: _C.rnn_of_module(d, X, H, None, None)),
    "leaky": (fastrnn.LeakyRNN, lambda d: _C.leaky_of_module(d, X, H, None, None, None, False)),
    "step": (fastrnn.RNN, lambda d: _C.step_of_module(d, X[0], H)),
    "leaky step": (fastrnn.LeakyRNN, lambda d: _C.leaky_step_of_module(d, X[0], H, None)),
    "cell": (fastrnn.RNNCell, lambda d: _C.cell_of_module(d, X[0], H[0])),
}
SEQUENCES = ("rnn", "leaky", "step", "leaky step")


def facts(name: str) -> dict[str, Any]:
    module = MODULES[name][0](3, 4)
    found = dict(vars(module))
    for key in ("_parameters", "_flat_weights", "_flat_weights_names"):
        if key in found:
            found[key] = found[key].copy()
    return found


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


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
    held = dict(changed)

    class Key(str):
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            for name in ("_flat_weights", "_flat_weights_names", "_parameters"):
                held[name].clear()
            changed.clear()
            return False

    where = changed["_parameters"] if key == "weight_hh_l0" else changed
    where[Key(key)] = where.pop(key)
    assert call(changed) is None


def test_dropout_that_does_not_apply() -> None:
    for changes in ({"dropout": 0.5}, {"dropout": 0.5, "training": False}):
        assert MODULES["rnn"][1](facts("rnn") | changes) is not None  # of one layer
    module = fastrnn.RNN(3, 4, 2, dropout=0.5)
    hx = torch.zeros(2, 2, 4)
    assert _C.rnn_of_module(vars(module), X, hx, None, None) is None
    assert _C.rnn_of_module(vars(module.eval()), X, hx, None, None) is not None


def test_the_names_that_are_read() -> None:
    source = Path(__file__).parents[2] / "csrc/python_modules.h"
    found = re.findall(r'intern\("(\w+)"\)', source.read_text())
    assert sorted(found) == sorted(_checks.READ)
    assert not any(cls._is_overridden for cls, _ in MODULES.values())


class AlwaysTraining(fastrnn.RNN):
    training = property(lambda self: True, lambda self, value: None)


class OtherSize(fastrnn.RNN):
    @property
    def hidden_size(self) -> int:
        return 5

    @hidden_size.setter
    def hidden_size(self, value: int) -> None:
        self.__dict__["hidden_size"] = value


class Quiet(fastrnn.RNNCell):
    def __getattribute__(self, name: str) -> Any:
        return "relu" if name == "nonlinearity" else super().__getattribute__(name)


class Noisy(fastrnn.LeakyRNN):
    noise = property(lambda self: 1.0, lambda self, value: self.__dict__.update(noise=value))


def test_a_class_that_overrides_what_is_read() -> None:
    """A property comes before what the module's ``__dict__`` holds."""
    rnn = fastrnn.RNN(3, 4, 2, dropout=0.5).eval()
    rnn.__class__ = AlwaysTraining
    assert not torch.equal(rnn(X)[0], rnn(X)[0])
    rnn = OtherSize(3, 4)
    rnn.weight_ih_l0 = nn.Parameter(torch.ones(4, 3))
    with pytest.raises(RuntimeError, match=r"expected weight_ih_l0 of shape .* = \(5, 3\)"):
        rnn(X)
    cell = Quiet(3, 4)
    torch.testing.assert_close(cell(X[0]), nn.RNNCell.forward(cell, X[0]))
    leaky = Noisy(3, 4)
    assert not torch.equal(leaky(X)[0], leaky(X)[0])
    assert not torch.equal(leaky.step(X[0])[0], leaky.step(X[0])[0])


def test_a_subclass_with_a_check_takes_gates_alone() -> None:
    class Checked(fastrnn.LeakyRNN):
        def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
            super().check_input(input, batch_sizes)

    rnn = Checked(3, 4)
    igates = X @ rnn.weight_ih_l0.T
    torch.testing.assert_close(rnn(None, igates=igates)[0], rnn(X)[0])


def test_a_cells_weight_that_is_an_attribute_comes_first() -> None:
    cell, reset = fastrnn.RNNCell(3, 4), torch.zeros(2, dtype=torch.bool)
    theirs = nn.RNNCell(3, 4)
    theirs.load_state_dict(cell.state_dict())
    for module in (cell, theirs):
        module.__dict__["weight_hh"] = torch.zeros(4, 4)
    expected = theirs(X[0], H[0])
    torch.testing.assert_close(cell(X[0], H[0]), expected)
    torch.testing.assert_close(cell(X[0], H[0], reset=reset), expected)


@pytest.mark.parametrize("computed", ["prune", "weight_norm"])
@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm:FutureWarning")
def test_a_leak_that_a_hook_computes_is_computed_in_each_step(computed: str) -> None:
    rnn = fastrnn.LeakyRNN(3, 4, alpha=nn.Parameter(torch.full((1, 4), 0.5)))
    if computed == "prune":
        prune.identity(rnn, "alpha")
        changed = rnn.alpha_orig
    else:
        nn.utils.weight_norm(rnn, "alpha")
        changed = rnn.alpha_g
    for _ in range(2):
        rnn.step(X[0])[0].sum().backward()
    with torch.no_grad():
        changed.mul_(0.5)
    torch.testing.assert_close(rnn.step(X[0])[0], rnn(X[:1])[0][0], rtol=0, atol=0)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("changed", ["input", "hx"])
def test_a_change_before_backward_is_noticed_if_the_leak_alone_learns(
    batched: bool, changed: str
) -> None:
    rnn = fastrnn.LeakyRNN(3, 4, alpha=nn.Parameter(torch.full((4,), 0.5)))
    for w in rnn._flat_weights:
        w.requires_grad_(False)
    x, hx = (X[0].clone(), H.clone()) if batched else (X[0, 0].clone(), H[:, 0].clone())
    output, _ = rnn.step(x, hx)
    (x if changed == "input" else hx).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_step_of_a_bidirectional_module_with_noise() -> None:
    rnn = fastrnn.LeakyRNN(3, 4, bidirectional=True)
    with pytest.raises(RuntimeError, match="expected a unidirectional module"):
        rnn.step(X[0], noise=torch.zeros(2, 2, 4))


def test_a_leak_without_dimensions() -> None:
    for hidden_size in (1, 4):
        rnn = fastrnn.LeakyRNN(3, hidden_size, alpha=torch.tensor(0.5))
        assert _C.leaky_of_module(vars(rnn), X, None, None, None, None, False) is not None
        number = fastrnn.LeakyRNN(3, hidden_size, alpha=0.5)
        number.load_state_dict(rnn.state_dict(), strict=False)
        torch.testing.assert_close(rnn(X)[0], number(X)[0], rtol=0, atol=0)
