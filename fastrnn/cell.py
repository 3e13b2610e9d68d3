"""The module :class:`RNNCell`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.modules.rnn import RNNCellBase

from fastrnn import _C, _checks
from fastrnn._step import rnn_cell
from fastrnn._trace import call_leaf, is_leaf, refuse_script
from fastrnn._types import Marks, RNNCellCall


class RNNCell(RNNCellBase):
    r"""One time step of an Elman RNN, a drop-in replacement for :class:`torch.nn.RNNCell`.

    .. math:: h' = \tanh(W_{ih} x + b_{ih} + W_{hh} h + b_{hh})

    Args:
        input_size: Features of the input, I.
        hidden_size: Features of the hidden state, H.
        bias: Whether the cell has ``b_ih`` and ``b_hh``.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        device, dtype: Of the parameters.

    Inputs:
        input: (B, I) or (I).
        hx: The state (B, H) or (H); zeros by default.
        reset, reset_state: As in :meth:`RNN.step`, (B) and (B, H).

    Returns:
        The next state, (B, H) or (H).

    Raises:
        ValueError: A wrong rank, or ``reset_state`` without ``reset``.
        RuntimeError: A wrong size, or an unknown nonlinearity.

    Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990.

    Example:
        >>> import torch
        >>> from fastrnn import RNNCell
        >>> cell = RNNCell(10, 20)
        >>> cell(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]  # noqa: RUF012
    nonlinearity: str
    __call__: RNNCellCall  # of forward
    _is_overridden = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._is_overridden = _checks.is_overridden(cls, RNNCellBase)

    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Marks | None = None,
        reset_state: Tensor | None = None,
    ) -> Tensor:
        """Run one step; see the class for the arguments."""
        direct = reset is None and reset_state is None and not self._is_overridden
        if direct and not is_dynamo_compiling():
            result = _C.cell_of_module(self.__dict__, input, hx)
            if result is not None:
                return result
        if is_leaf(self, RNNCell.forward, input):
            marks = {"reset": reset, "reset_state": reset_state}
            return call_leaf(self, input, hx, **marks)  # type: ignore[no-any-return]
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        if hx is None:
            self._check_hidden_size(weights[1])
        return rnn_cell(input, hx, weights, self.nonlinearity, reset, reset_state)

    def _check_hidden_size(self, w_hh: Any) -> None:
        """Check ``hidden_size``, the size of a default state: it may have been overwritten."""
        expected: Any = self.hidden_size
        # A trace would record the shape; if w_hh is not a matrix, another check says so.
        if torch.jit.is_tracing() or not isinstance(w_hh, Tensor) or w_hh.dim() != 2:  # type: ignore[attr-defined, no-untyped-call]
            return
        _checks.check_index("hidden_size", expected)
        if w_hh.size(1) != expected:
            raise RuntimeError(
                f"hidden0 has inconsistent hidden_size: got {expected}, expected {w_hh.size(1)}"
            )

    def __prepare_scriptable__(self) -> None:
        refuse_script(self)
