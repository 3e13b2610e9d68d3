"""Stands in for ``fastrnn._C`` where torch is newer than a wheel knows: no kernels, no operators.

Its entries leave every call to Python, and :mod:`fastrnn._path` finds no operator of ours there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def rnn(*args: Any) -> None:
    """Serve no call."""


rnn_step = rnn_cell = rnn


def are_weights(*args: Any) -> bool:
    """Leave it to Python."""
    return False


def check_storages(weights: list[Tensor], **others: object) -> None:
    """Check nothing: torch's own operator reads the storages."""


def known_activation(pre: Tensor, value: Tensor, is_tanh: bool) -> Tensor:
    """Compute it: only the operators' backward knows it."""
    return pre.tanh() if is_tanh else pre.relu()


def set_reference_backward(function: Callable[..., list[Tensor]]) -> None:
    """Need none: there are no operators."""


def cpu_kernels() -> str:
    """Name no instruction set."""
    return "none"


def cuda_configurations() -> list[Any]:
    """Name no CUDA kernel."""
    return []
