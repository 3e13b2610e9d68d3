"""For type checkers: the types of calls, and of arguments that need not be tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, overload

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
        igates: Tensor | None = None,
        return_layers: Literal[False] = False,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        reset: Marks | PackedSequence | None = None,
        reset_state: Tensor | None = None,
        igates: Tensor | PackedSequence | None = None,
        return_layers: Literal[False] = False,
    ) -> tuple[PackedSequence, Tensor]: ...

    @overload
    def __call__(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Marks | None = None,
        reset_state: Tensor | None = None,
        igates: Tensor | None = None,
        return_layers: Literal[True],
    ) -> tuple[Tensor, Tensor, Tensor]: ...

    @overload
    def __call__(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        reset: Marks | PackedSequence | None = None,
        reset_state: Tensor | None = None,
        igates: Tensor | PackedSequence | None = None,
        return_layers: Literal[True],
    ) -> tuple[PackedSequence, Tensor, list[PackedSequence]]: ...

    @overload
    def __call__(
        self,
        input: None,
        hx: Tensor | None = None,
        *,
        igates: Tensor | PackedSequence,
        lengths: Lengths | None = None,
        reset: Marks | PackedSequence | None = None,
        reset_state: Tensor | None = None,
        return_layers: bool = False,
    ) -> Any: ...


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
