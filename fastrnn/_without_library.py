"""Stands in for ``fastrnn._C`` if torch is newer than the wheel: no kernels, no operators.

Its functions leave every call to Python, where :mod:`fastrnn._path` finds no operator of ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def rnn(*args: Any) -> None:
    """Decline every call."""


rnn_extended = rnn_step = rnn_cell = rnn
rnn_of_module = leaky_of_module = step_of_module = leaky_step_of_module = cell_of_module = rnn


def check_storages(weights: list[Tensor], **others: object) -> None:
    """Check nothing: torch's own operator reads the storages."""


def known_activation(pre: Tensor, value: Tensor, is_tanh: bool) -> Tensor:
    """Compute the value: only the operators' backward pass knows it."""
    return pre.tanh() if is_tanh else pre.relu()


def set_reference_backward(function: Callable[..., list[Tensor]]) -> None:
    """Ignore it: there are no operators."""


set_extended_reference_backward = set_reference_backward


def cpu_kernels() -> str:
    """Name no instruction set."""
    return "none"


def cuda_configurations() -> list[Any]:
    """Name no CUDA kernel."""
    return []
