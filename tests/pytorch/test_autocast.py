"""torch.autocast: as nn.RNN under it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_agree, assert_raise_alike
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import RNN

DOUBLE = {"dtype": torch.float64}


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


CASTS: dict[str, Callable[[type], Any]] = {
    "float32": lambda rnn: rnn(I, H, 2)(x()),
    "hx": lambda rnn: rnn(I, H)(x(), x(1, B, H)),
    "bfloat16 input": lambda rnn: rnn(I, H)(x().bfloat16()),
    "float16 input": lambda rnn: rnn(I, H)(x().half(), x(1, B, H)),
    "bfloat16 module": lambda rnn: rnn(I, H, dtype=torch.bfloat16)(x()),
    "float64 module": lambda rnn: rnn(I, H, **DOUBLE)(x(**DOUBLE)),
    "no batch": lambda rnn: rnn(I, H)(x(T, I)),
    "both directions": lambda rnn: rnn(I, H, bidirectional=True, batch_first=True)(x()),
    "dropout": lambda rnn: rnn(I, H, 2, dropout=0.5)(x()),
    "packed": lambda rnn: rnn(I, H, 2)(
        pack_padded_sequence(x(), torch.tensor([3, 5]), enforce_sorted=False)
    ),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CASTS)
def test_autocast(name: str, dtype: torch.dtype) -> None:
    def run(cls: type) -> object:
        modules = []

        def make(*args: Any, **options: Any) -> nn.Module:
            modules.append(cls(*args, **options))
            return modules[0]

        with torch.autocast("cpu", dtype):
            output, hn = CASTS[name](make)
        data = output.data if isinstance(output, PackedSequence) else output
        (data.float().square().sum() + hn.float().sum()).backward()
        return output, hn, {k: w.grad for k, w in modules[0].named_parameters()}

    _, _, grads = assert_agree(run, tolerance=5e-2)
    if name == "float32":
        assert all(g.dtype == torch.float32 for g in grads.values())


CAST_ERRORS = {
    "float64 input": lambda rnn: rnn(I, H)(x(**DOUBLE)),
    "float64 hx": lambda rnn: rnn(I, H)(x(), x(1, B, H, **DOUBLE)),
    "float32 input of a float64 module": lambda rnn: rnn(I, H, **DOUBLE)(x()),
}


@pytest.mark.parametrize("name", CAST_ERRORS)
def test_autocast_errors(name: str) -> None:
    def run(cls: type) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return CAST_ERRORS[name](cls)

    assert_raise_alike(run)


def test_autocast_of_another_device_lifts_the_check_of_dtypes() -> None:
    def run(cls: type) -> object:
        torch.set_autocast_enabled("cuda", True)
        try:
            return cls(I, H)(x().half())
        finally:
            torch.set_autocast_enabled("cuda", False)

    assert_raise_alike(run)


def test_autocast_keeps_cast_weights() -> None:
    module, input = RNN(I, H), x()
    with torch.autocast("cpu", torch.bfloat16):
        first, _ = module(input)
        with torch.autocast("cpu", enabled=False):
            second, _ = module(input)
        third, _ = module(input)
    assert (first.dtype, second.dtype, third.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.bfloat16,
    )
    (first.sum() + third.sum()).backward()
    assert module.weight_hh_l0.grad.dtype == torch.float32
