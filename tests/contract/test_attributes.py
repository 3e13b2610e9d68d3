"""Attributes and weights overwritten after construction: nn.RNN raises, or takes the new value."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, Raised, T, assert_agree, outcome
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import TorchFunctionMode

from fastrnn import RNN, RNNCell

NAN = float("nan")
WRONG: dict[str, tuple[Any, ...]] = {
    "dropout": (-1.0, NAN, 1.5, 2, "0.5", None),
    "hidden_size": (H - 1, H + 1, -1, "4", None),
    "input_size": (I - 1, I + 1, "3", None),
    "num_layers": (1, 3, 0, -1, "2", None, 2.0),
    "bidirectional": (True, 1, None, "yes"),
    "batch_first": (1, 0, 2, None, "yes"),
    "bias": (False, 1, 0, None, "yes"),
    "mode": ("RNN_tanh", "LSTM", None, 3, []),
    "proj_size": (1, H + 1, "1", None),
    "training": ("yes", 1, None),
}
TAKEN: dict[str, tuple[Any, ...]] = {
    "dropout": (0.25, 0, 1, True, torch.tensor(0.5)),
    "input_size": (float(I),),
    "batch_first": (True,),
    "mode": ("RNN_RELU",),
    "nonlinearity": ("relu", "no such"),  # nn.RNN reads the mode alone
    "proj_size": (-1,),
    "training": (False,),
}
CALLS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda module: module(torch.randn(T, T, I)),
    "hx": lambda module: module(torch.randn(T, T, I), torch.randn(2, T, H)),
    "no batch": lambda module: module(torch.randn(T, I)),
    "packed": lambda module: module(
        pack_padded_sequence(torch.randn(T, T, I), torch.full((T,), T))
    ),
}


def rows(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={value!r}")
        for name, values in table.items()
        for value in values
    ]


def overwritten(cls: type, name: str, value: Any, **options: Any) -> Any:
    module = cls(I, H, 2, dropout=0.5 if name == "training" else 0.0, **options)
    setattr(module, name, value)
    return module


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("name", "value"), rows(WRONG))
def test_wrong_values_raise_as_in_torch(name: str, value: Any, call: Any) -> None:
    theirs, ours = (outcome(lambda cls: call(overwritten(cls, name, value)), cls)
                    for cls in (nn.RNN, RNN))  # fmt: skip
    if not isinstance(theirs, Raised):  # packed input has no layout to be first
        assert (name, call) == ("batch_first", CALLS["packed"])
        return
    assert isinstance(ours, Raised)
    # Of these two, torch's type is that of the line which happens to meet them first.
    assert ours.type is theirs.type or name in ("num_layers", "bidirectional")
    assert "incompatible function arguments" not in ours.text


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("name", "value"), rows(TAKEN))
def test_values_that_torch_takes(name: str, value: Any, call: Any) -> None:
    assert_agree(lambda cls: call(overwritten(cls, name, value)))


class Watched(TorchFunctionMode):
    """Sends every call through ``__torch_function__``."""

    def __torch_function__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return f(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "value"), rows(TAKEN))
def test_values_that_torch_takes_under_a_mode(name: str, value: Any) -> None:
    def run(cls: Any) -> Any:
        module = overwritten(cls, name, value)
        with Watched():
            return module(torch.randn(T, T, I))

    assert_agree(run)


@pytest.mark.parametrize(("name", "value"), [("batch_first", 1), ("training", "yes")])
def test_step_ignores_what_it_does_not_use(name: str, value: Any) -> None:
    rnn, x = RNN(I, H, 2), torch.randn(B, I)
    expected = rnn.step(x)
    setattr(rnn, name, value)
    torch.testing.assert_close(rnn.step(x), expected, rtol=0, atol=0)


def test_step_of_a_direction_that_is_no_bool() -> None:
    """Also under a transform, which the kernels do not take."""
    rnn, x = RNN(I, H, 2), torch.randn(B, I)
    expected, _ = rnn.step(x)
    rnn.bidirectional = 0
    output = torch.func.vmap(lambda x: rnn.step(x)[0])(x)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        ("dropout", -1.0, RuntimeError, "dropout probability has to be .* but got -1.0"),
        ("dropout", NAN, RuntimeError, "dropout probability has to be .* but got nan"),
        ("dropout", "0.5", TypeError, "dropout should be a number, got: str"),
        ("batch_first", 1, TypeError, "batch_first should be of type bool, got: int"),
        ("bias", 2, TypeError, "bias should be of type bool, got: int"),
        ("training", "yes", TypeError, "training should be of type bool, got: str"),
        ("num_layers", "2", TypeError, "num_layers should be of type int, got: str"),
        ("bidirectional", True, RuntimeError, "expected 16 weights"),
        ("input_size", 9, RuntimeError, r"must be equal to input_size. Expected 9, got 3"),
        ("hidden_size", 9, RuntimeError,
         r"expected weight_ih_l0 of shape \(hidden_size, input_size\) = \(9, 3\), got \(4, 3\)"),
        ("proj_size", 2, RuntimeError, r"Expected hidden size \(2, 2, 2\), got \[2, 2, 4\]"),
    ],
)  # fmt: skip
def test_words(name: str, value: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        overwritten(RNN, name, value)(torch.randn(T, B, I))


@pytest.mark.parametrize("value", [-1.0, NAN, 1.5])
def test_a_probability_matters_where_it_is_used(value: float) -> None:
    """In training, and between layers."""

    def run(cls: type) -> object:
        one, two = cls(I, H), cls(I, H, 2).eval()
        one.dropout = two.dropout = value
        return one(torch.randn(T, B, I)), two(torch.randn(T, B, I))

    assert_agree(run)


def test_dropout_of_one_layer_draws_nothing() -> None:
    def run(cls: type) -> object:
        module = cls(I, H)
        module.dropout = 0.5
        return module(torch.randn(T, B, I)), torch.rand(1)

    assert_agree(run)


def resized(module: Any, old: int, new: int) -> Any:
    for w in module.parameters():
        w.data = torch.randn(*[new if size == old else size for size in w.shape])
    return module


DATA = {
    "hidden": lambda cls: resized(cls(I, H, 2), H, 7)(torch.randn(T, B, I)),
    "hidden, packed": lambda cls: resized(cls(I, H, 2), H, 7)(
        pack_padded_sequence(torch.randn(T, B, I), [T, 2])
    ),
    "hidden, hx of before": lambda cls: resized(cls(I, H), H, 7)(
        torch.randn(T, B, I), torch.randn(1, B, H)
    ),
    "hidden, hx alike": lambda cls: resized(cls(I, H), H, 7)(
        torch.randn(T, B, I), torch.randn(1, B, 7)
    ),
    "input": lambda cls: resized(cls(I, H), I, 7)(torch.randn(T, B, I)),
    "input alike": lambda cls: resized(cls(I, H), I, 7)(torch.randn(T, B, 7)),
    "input alike, dropout": lambda cls: resized(cls(I, H, 2, dropout=0.5), I, 7)(
        torch.randn(T, B, 7)
    ),
}


@pytest.mark.parametrize("name", DATA)
def test_weights_of_another_size(name: str) -> None:
    for cls in (nn.RNN, RNN):
        raised = outcome(DATA[name], cls)
        assert isinstance(raised, Raised)
        assert raised.type is RuntimeError


@pytest.mark.parametrize("name", [*dict(nn.RNN(I, H, 2).named_parameters())])
def test_one_weight_of_another_size(name: str) -> None:
    for cls, change in itertools.product((nn.RNN, RNN), (1, -1)):
        module = cls(I, H, 2)
        w = getattr(module, name)
        for dim in range(w.dim()):
            sizes = [size + change * (i == dim) for i, size in enumerate(w.shape)]
            w.data = torch.randn(sizes)
            with pytest.raises(RuntimeError):
                module(torch.randn(T, B, I))


def test_sizes_that_were_changed_with_the_weights() -> None:
    def run(cls: type) -> object:
        module = resized(resized(cls(I, H, 2), H, 7), I, 5)
        module.hidden_size, module.input_size = 7, 5
        return module(torch.randn(T, B, 5))

    output, _ = assert_agree(run)
    assert output.shape == (T, B, 7)


@pytest.mark.parametrize("name", ["hidden_size", "input_size"])
def test_step(name: str) -> None:
    module = overwritten(RNN, name, 9)
    for reset in (None, torch.zeros(B)):
        with pytest.raises(RuntimeError, match=r"expected weight_ih_l0 of shape .* got \(4, 3\)"):
            module.step(torch.randn(B, I), reset=reset)
    with pytest.raises(TypeError, match="bias should be of type bool, got: int"):
        overwritten(RNN, "bias", 1).step(torch.randn(B, I))
    with pytest.raises(RuntimeError, match="dropout probability has to be between 0 and 1"):
        overwritten(RNN, "dropout", NAN).step(torch.randn(B, I))


def test_compiled() -> None:
    for name, value in (("hidden_size", 9), ("dropout", -1.0), ("batch_first", 2)):
        module = torch.compile(overwritten(RNN, name, value), backend="eager")
        with pytest.raises((RuntimeError, TypeError), match=name.split("_")[0]):
            module(torch.randn(T, B, I))
        torch.compiler.reset()


CELL: dict[str, tuple[Any, ...]] = {
    "hidden_size": (H - 1, H + 1, "4", None),
    "nonlinearity": ("RELU", None, 3),
}


@pytest.mark.parametrize(("name", "value"), rows(CELL))
def test_cell(name: str, value: Any) -> None:
    for sizes in ((B, I), (I,)):

        def run(cls: type) -> object:
            module = cls(I, H)
            setattr(module, name, value)
            return module(torch.randn(sizes))  # noqa: B023

        theirs, ours = outcome(run, nn.RNNCell), outcome(run, RNNCell)
        assert isinstance(ours, Raised)
        assert ours.type is theirs.type
        assert ours.text == theirs.text or ours.type is TypeError


def test_cell_takes_what_torch_does_not_read() -> None:
    def run(cls: type) -> object:
        results = []
        for name, value in {"input_size": 9, "bias": False, "nonlinearity": "relu"}.items():
            module = cls(I, H)
            setattr(module, name, value)
            results.append(module(torch.randn(B, I)))
        module.hidden_size = 9  # of the state that is made where none is given
        return results, module(torch.randn(B, I), torch.randn(B, H))

    assert_agree(run, RNNCell)


@pytest.mark.parametrize("hx", [None, H, 7])
def test_cell_with_weights_of_another_size(hx: int | None) -> None:
    def run(cls: type) -> object:
        state = None if hx is None else torch.randn(B, hx)
        return resized(cls(I, H), H, 7)(torch.randn(B, I), state)

    if hx == 7:
        assert_agree(run, RNNCell)
    else:
        theirs, ours = outcome(run, nn.RNNCell), outcome(run, RNNCell)
        assert isinstance(ours, Raised)
        assert ours == theirs
