"""Run the same lines with torch.nn.RNN and with fastrnn.RNN, and compare what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn

THEIRS: dict[type, type] = {
    fastrnn.RNN: torch.nn.RNN,
    fastrnn.RNNCell: torch.nn.RNNCell,
}


@dataclass(frozen=True)
class Raised:
    type: type
    text: str


def outcome(run: Callable[[type], Any], cls: type) -> Any:
    """What ``run(cls)`` returns from a fixed seed, or what it raises."""
    torch.manual_seed(0)
    try:
        return run(cls)
    except Exception as e:
        return Raised(type(e), str(e))


def strides(x: Tensor) -> list[int]:
    """The strides that matter: a dimension of size one has any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


def assert_same(ours: Any, theirs: Any, where: str = "result") -> None:
    """The same types, shapes, strides, dtypes and, within rounding, values, all the way down."""
    assert type(ours) is type(theirs), f"{where}: {ours!r} and {theirs!r}"
    if isinstance(theirs, Tensor):
        assert ours.requires_grad == theirs.requires_grad, where
        assert ours.dtype == theirs.dtype, where
        assert ours.device == theirs.device, where
        assert ours.shape == theirs.shape, where
        if theirs.layout == torch.strided:
            assert strides(ours) == strides(theirs), where
        if theirs.device.type != "meta":
            low = theirs.dtype in (torch.float16, torch.bfloat16)
            tolerance = {"rtol": 2e-2, "atol": 2e-2} if low else {"rtol": 1e-5, "atol": 2e-6}
            torch.testing.assert_close(
                ours.detach(),
                theirs.detach(),
                **tolerance,
                equal_nan=True,
                msg=lambda m: f"{where}: {m}",
            )
    elif isinstance(theirs, PackedSequence):
        for name in PackedSequence._fields:
            assert_same(getattr(ours, name), getattr(theirs, name), f"{where}.{name}")
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}[{key!r}]")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, value in enumerate(theirs):
            assert_same(ours[i], value, f"{where}[{i}]")
    else:
        assert ours == theirs, where


def assert_agree(run: Callable[[type], Any], cls: type = fastrnn.RNN) -> Any:
    """``run`` returns the same with our class as with torch's, and raises with neither."""
    theirs = outcome(run, THEIRS[cls])
    assert not isinstance(theirs, Raised), theirs
    ours = outcome(run, cls)
    assert_same(ours, theirs)
    return ours


def assert_raise_alike(run: Callable[[type], Any], cls: type = fastrnn.RNN) -> None:
    """``run`` raises the same with our class as with torch's: the same type, with the same words."""
    theirs = outcome(run, THEIRS[cls])
    assert isinstance(theirs, Raised), f"torch's class returns {theirs!r}"
    ours = outcome(run, cls)
    assert ours == theirs, f"{ours} and {theirs}"


def gradients(module: torch.nn.Module, **tensors: Tensor) -> dict[str, Tensor | None]:
    """The gradients of a module's parameters and of the tensors, by name."""
    return {name: x.grad for name, x in [*module.named_parameters(), *tensors.items()]}
