"""Run the same lines with torch.nn.RNN and with fastrnn.RNN, and compare what comes of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import fastrnn

T, B, I, H = 5, 2, 3, 4  # noqa: E741  (seq_len, batch, input_size, hidden_size)

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


def brief(x: Any) -> str:
    return f"a {type(x).__name__}" if isinstance(x, Tensor | tuple | list) else repr(x)


def strides(x: Tensor) -> list[int]:
    """The strides that matter: a dimension of size one has any."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1]


def assert_same(ours: Any, theirs: Any, where: str = "result", tolerance: float = 0.0) -> None:
    """The same types, shapes, strides, dtypes and, within rounding, values, all the way down."""
    assert type(ours) is type(theirs), f"{where}: {brief(ours)} and {brief(theirs)}"
    if isinstance(theirs, Tensor):
        for fact in ("requires_grad", "dtype", "device", "layout", "shape"):
            assert getattr(ours, fact) == getattr(theirs, fact), f"{where}.{fact}"
        if theirs.layout == torch.strided:
            assert strides(ours) == strides(theirs), f"{where}.stride()"
        if theirs.device.type != "meta":
            rounding = 2e-2 if theirs.dtype in (torch.float16, torch.bfloat16) else 2e-6
            bound = max(rounding, tolerance)
            torch.testing.assert_close(
                ours.detach(),
                theirs.detach(),
                rtol=5 * bound,
                atol=bound,
                equal_nan=True,
                msg=lambda m: f"{where}: {m}",
            )
    elif isinstance(theirs, PackedSequence):
        for name in PackedSequence._fields:
            assert_same(getattr(ours, name), getattr(theirs, name), f"{where}.{name}", tolerance)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}[{key!r}]", tolerance)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), where
        for i, value in enumerate(theirs):
            assert_same(ours[i], value, f"{where}[{i}]", tolerance)
    else:
        assert ours == theirs, where


def assert_agree(
    run: Callable[[type], Any], cls: type = fastrnn.RNN, tolerance: float = 0.0
) -> Any:
    """``run`` returns the same with our class as with torch's, and raises with neither."""
    theirs = outcome(run, THEIRS[cls])
    assert not isinstance(theirs, Raised), theirs
    ours = outcome(run, cls)
    assert_same(ours, theirs, tolerance=tolerance)
    return ours


def assert_raise_alike(run: Callable[[type], Any], cls: type = fastrnn.RNN) -> None:
    """``run`` raises the same type with the same words with our class as with torch's."""
    theirs = outcome(run, THEIRS[cls])
    assert isinstance(theirs, Raised), f"torch's class returns {brief(theirs)}"
    ours = outcome(run, cls)
    assert isinstance(ours, Raised), f"ours returns {brief(ours)}"
    assert ours == theirs
