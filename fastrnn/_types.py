"""For type checkers: the types of calls, and of arguments that need not be tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, overload

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


class SupportsArray(Protocol):
    """A NumPy array, or anything that converts to one."""

    def __array__(self) -> Any: ...


Lengths: TypeAlias = Tensor | Sequence[int] | SupportsArray
Marks: TypeAlias = Tensor | Sequence[Any] | SupportsArray


class RNNCall(Protocol):
    """A call of :class:`fastrnn.RNN`."""

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Marks | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        reset: Marks | PackedSequence | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...


class RNNCellCall(Protocol):
    """A call of :class:`fastrnn.RNNCell`."""

    def __call__(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Marks | None = None,
        reset_state: Tensor | None = None,
    ) -> Tensor: ...
