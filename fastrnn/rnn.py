"""The modules :class:`RNN` and :class:`RNNCell`, and the swap of a model's modules for these."""

from __future__ import annotations

import numbers
from typing import Any, TypeVar, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.fx import Proxy
from torch.nn.modules.rnn import RNNBase, RNNCellBase
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastrnn import _C, _checks
from fastrnn.functional import rnn_cell, rnn_in_python, rnn_positional, rnn_step

_CHECKS = ("check_input", "check_hidden_size", "check_forward_args", "get_expected_hidden_size")
_NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}  # of a module's mode


class RNN(RNNBase):
    r"""A multi-layer Elman RNN with tanh or relu, a drop-in replacement for ``torch.nn.RNN``.

    .. math:: h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Same arguments, parameters, initial values, ``state_dict``, inputs, outputs and errors as
    ``torch.nn.RNN``; the class derives from ``RNNBase`` and not from ``torch.nn.RNN``, which
    ``torch.compile`` refuses to look into.

    Args:
        input_size: Features of the input, I.
        hidden_size: Features of the hidden state, H.
        num_layers: Layers stacked on one another, L.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bias: Whether the layers have ``b_ih`` and ``b_hh``.
        batch_first: Whether input and output are (B, T, features) instead of (T, B, features).
        dropout: Probability of zeroing an element of the output of every layer but the last, in
            training.
        bidirectional: Whether a second direction reads the sequence from its end; D = 2, else 1.
        device, dtype: Of the parameters.

    Inputs:
        input: (T, B, I), (B, T, I) with ``batch_first``, (T, I) without a batch, or a
            ``PackedSequence``.
        hx: The initial state (L*D, B, H), or (L*D, H) without a batch; zeros by default.
        lengths: (B) integers, a tensor, an array or a list, 0 to T in any order: the valid steps of
            each row of padded input.
            Outputs beyond them are zero, ``hn`` is the state after the last valid step, the
            reverse direction starts at each row's own end.
        reset: (T, B), or (B, T) with ``batch_first``: true where a new sequence begins; the state
            before that step is zero, and no gradient passes; a mark on the first step drops ``hx``.
            Bool, or numbers (an environment's ``done``), of which all but 0 are true, with or
            without a last dimension of 1; a tensor, an array or a list; of a ``PackedSequence``,
            packed alike or padded. The reverse direction begins anew at the step before, where the
            earlier sequence ends.
        reset_state: (L*D, B, H), the state there instead of zeros; gradients flow to it. Takes the
            reference path.

    Returns:
        ``output``, (T, B, D*H) in the input's layout, and ``hn``, (L*D, B, H).

    Raises:
        ValueError, TypeError: A wrong argument to the constructor, a wrong rank or dtype, or
            ``reset_state`` without ``reset``.
        AttributeError: ``input`` or ``hx`` of a wrong type, as nn.RNN raises it.
        RuntimeError: A wrong size or device, or a size of the module that is not its weights'.

    Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990.

    Example:
        >>> import torch
        >>> from fastrnn import RNN
        >>> rnn = RNN(input_size=10, hidden_size=20, num_layers=2)
        >>> output, hn = rnn(torch.randn(5, 3, 10))
        >>> output.shape, hn.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    nonlinearity: str
    _checks_overridden = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        if "proj_size" in kwargs:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'."
            )
        self.nonlinearity = nonlinearity
        super().__init__(
            f"RNN_{nonlinearity.upper()}",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
            **kwargs,
        )

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._checks_overridden = any(
            getattr(cls, name) is not getattr(RNNBase, name) for name in _CHECKS
        )

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        reset: Tensor | PackedSequence | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Any,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Any = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Any, Tensor]:
        """Run the RNN; see the class for the arguments."""
        parameters: Any = self._parameters
        if [*parameters] == self._flat_weights_names:
            weights = [*parameters.values()]
        else:
            weights = self._weights_by_name()
        bias, batch_first, training = self.bias, self.batch_first, self.training
        if (
            (bias is not True and bias is not False)
            or (batch_first is not True and batch_first is not False)
            or (training is not True and training is not False)
        ):
            _checks.check_types(bias=bias, batch_first=batch_first, training=training)
        try:
            nonlinearity = _NONLINEARITIES[self.mode]
        except (KeyError, TypeError):
            raise AssertionError(f"mode must be RNN_TANH or RNN_RELU, got {self.mode}") from None
        dropout = self.dropout
        if dropout != 0.0:
            dropout = self._dropout_now()
        checked = not self._checks_overridden
        if checked and not dropout and reset_state is None and not is_dynamo_compiling():
            # As rnn_positional does: a call of Python less, for the calls that are short.
            result: tuple[Tensor, Tensor] | None = _C.rnn(
                input,
                hx,
                weights,
                bias,
                self.num_layers,
                nonlinearity,
                self.bidirectional,
                batch_first,
                lengths,
                reset,
            )
            if result is not None:
                # After the call, which no trace comes through: it would record the shape.
                if (
                    weights[0].shape != (self.hidden_size, self.input_size)
                    or self.proj_size != 0
                    or type(self.hidden_size) is not int
                ):
                    self._check_sizes(weights, input, hx)
                return result
        if isinstance(input, Proxy) and _is_leaf(self, RNN.forward, input):
            marks = {"lengths": lengths, "reset": reset, "reset_state": reset_state}
            return _call_leaf(self, input, hx, **marks)  # type: ignore[no-any-return]
        if checked:
            self._check_sizes(weights, input, hx)
        else:
            self._run_checks(input, hx)
        run = rnn_in_python if checked else rnn_positional
        return run(
            input,
            hx,
            weights,
            bias,
            self.num_layers,
            nonlinearity,
            self.bidirectional,
            batch_first,
            dropout,
            lengths,
            reset,
            reset_state,
        )

    def step(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Run one time step of all layers, for input that comes step by step.

        The results are those of a call on a sequence of one step, without a call's overhead:
        feed each state to the next step. Of the module's hooks only those run that compute weights
        (``prune``, ``weight_norm``, ``spectral_norm``).

        Args:
            input: (B, I), or (I) without a batch, whatever ``batch_first``.
            hx: The state (L, B, H), or (L, H) without a batch; zeros by default.
            reset: (B): true where a new sequence begins, whose state before the step is zero. Bool,
                or numbers, of which all but 0 are true, with or without a last dimension of 1.
            reset_state: (L, B, H), the state there instead of zeros.

        Returns:
            The last layer's output, (B, H) or (H), and the next state, in the shape of ``hx``.

        Raises:
            ValueError: A wrong rank or dtype of ``input``, or ``reset_state`` without ``reset``.
            RuntimeError: A bidirectional module, or a wrong size or device.

        Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990.

        Example:
            >>> import torch
            >>> from fastrnn import RNN
            >>> rnn, state = RNN(10, 20, num_layers=2).eval(), None
            >>> for x in torch.randn(5, 3, 10):  # five steps of three streams
            ...     output, state = rnn.step(x, state)
            >>> output.shape, state.shape
            (torch.Size([3, 20]), torch.Size([2, 3, 20]))
        """
        if self.bidirectional:
            raise RuntimeError(
                "RNN.step: expected a module of one direction, got bidirectional=True. Its second "
                "direction begins at the end of the input: call the module on the whole sequence"
            )
        parameters: Any = self._parameters
        if [*parameters] == self._flat_weights_names:
            weights = [*parameters.values()]
        else:
            self._compute_weights()
            weights = self._weights_by_name()
        bias = self.bias
        if bias is not True and bias is not False:
            _checks.check_types(bias=bias)
        try:
            nonlinearity = _NONLINEARITIES[self.mode]
        except (KeyError, TypeError):
            raise AssertionError(f"mode must be RNN_TANH or RNN_RELU, got {self.mode}") from None
        dropout = self.dropout
        if dropout != 0.0:
            dropout = self._dropout_now()
        unmarked = reset is None and reset_state is None
        if unmarked and not dropout and not is_dynamo_compiling():
            result: tuple[Tensor, Tensor] | None = _C.rnn_step(
                input, hx, weights, bias, self.num_layers, nonlinearity
            )
            if result is not None:
                if (
                    weights[0].shape != (self.hidden_size, self.input_size)
                    or type(self.hidden_size) is not int
                ):
                    self._check_sizes(weights)
                return result
        self._check_sizes(weights)
        return rnn_step(
            input,
            hx,
            weights,
            bias,
            self.num_layers,
            nonlinearity,
            dropout,
            reset,
            reset_state,
        )

    def _compute_weights(self) -> None:
        """Run the hooks that compute weights before a call of the module, which a step is not."""
        for hook in self._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod | SpectralNorm | WeightNorm):
                hook(self, None)

    def _weights_by_name(self) -> list[Any]:
        """The weights where there are other parameters, or some are computed: attributes."""
        parameters: Any = self._parameters
        try:
            return [*map(parameters.__getitem__, self._flat_weights_names)]
        except KeyError:
            return [
                getattr(self, name, stale)
                for name, stale in zip(self._flat_weights_names, self._flat_weights, strict=True)
            ]

    def _dropout_now(self) -> float:
        """The probability that applies, which may have been overwritten: as nn.RNN checks it."""
        dropout: Any = self.dropout
        if not isinstance(dropout, numbers.Real | Tensor):
            raise TypeError(f"dropout should be a number, got: {type(dropout).__name__}")
        if not self.training or self.num_layers == 1:
            return 0.0
        if not 0 <= self.dropout <= 1:
            raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout}")
        return self.dropout

    def _check_sizes(self, weights: list[Any], *call: Any) -> None:
        """Check that the module's sizes are its weights': both may have been overwritten.

        ``call`` is ``input, hx``, on which nn.RNN's own checks run first, or nothing for a step.
        """
        w_ih, expected = weights[0], (self.hidden_size, self.input_size)
        # A trace would record the shape; what is no tensor has a message of its own.
        if torch.jit.is_tracing() or not isinstance(w_ih, Tensor):  # type: ignore[attr-defined, no-untyped-call]
            return
        makes_state = len(call) == 0 or call[1] is None
        if makes_state and type(self.hidden_size) is not int:
            _checks.check_index("hidden_size", self.hidden_size)
        fits = w_ih.shape == expected
        if fits and self.proj_size == 0:
            return
        if call:
            self._run_checks(*call)
        if not fits:
            raise RuntimeError(
                f"RNN: expected weight_ih_l0 of shape (hidden_size, input_size) = {expected}, got "
                f"{tuple(w_ih.shape)}: the sizes or the weights were overwritten"
            )

    def _run_checks(self, input: Any, hx: Tensor | None) -> None:
        """Call the checks that a subclass overrides as nn.RNN.forward does."""
        self._update_flat_weights()
        batch_sizes = None
        if isinstance(input, PackedSequence):
            input, batch_sizes, sorted_indices, _ = input
            if hx is not None:
                hx = self.permute_hidden(hx, sorted_indices)
        else:
            _checks.check_tensors(input, hx)
            _checks.check_rank(input, hx)
            if input.dim() == 2:
                input = input.unsqueeze(0 if self.batch_first else 1)
                hx = None if hx is None else hx.unsqueeze(1)
        if hx is None:
            hx = input.new_zeros(
                self.num_layers * (2 if self.bidirectional else 1),
                input.size(0 if self.batch_first else 1) if batch_sizes is None else batch_sizes[0],
                self.hidden_size,
            )
        self.check_forward_args(input, hx, batch_sizes)

    def __prepare_scriptable__(self) -> None:
        _refuse_script(self)


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

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> Tensor:
        """Run one step; see the class for the arguments."""
        parameters: Any = self._parameters
        try:
            w_ih, w_hh = parameters["weight_ih"], parameters["weight_hh"]
            b_ih, b_hh = parameters["bias_ih"], parameters["bias_hh"]
        except KeyError:  # parametrised, pruned or otherwise computed weights are attributes
            w_ih, w_hh, b_ih, b_hh = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        nonlinearity = self.nonlinearity
        unmarked = reset is None and reset_state is None
        if unmarked and nonlinearity in ("tanh", "relu") and not is_dynamo_compiling():
            result: Tensor | None = _C.rnn_cell(input, hx, w_ih, w_hh, b_ih, b_hh, nonlinearity)
            if result is not None:
                # After the call, which no trace comes through: it would record the shape.
                size = self.hidden_size
                if hx is None and (type(size) is not int or w_hh.shape[1] != size):
                    self._check_hidden_size(w_hh)
                return result
        if isinstance(input, Proxy) and _is_leaf(self, RNNCell.forward, input):
            return _call_leaf(self, input, hx, reset=reset, reset_state=reset_state)
        if hx is None:
            self._check_hidden_size(w_hh)
        return rnn_cell(
            input, hx, nonlinearity, w_ih, w_hh, b_ih, b_hh, reset=reset, reset_state=reset_state
        )

    def _check_hidden_size(self, w_hh: Any) -> None:
        """Check the size of the state that is made, which may have been overwritten."""
        expected: Any = self.hidden_size
        # A trace would record the shape; what is no matrix has a message of its own.
        if torch.jit.is_tracing() or not isinstance(w_hh, Tensor) or w_hh.dim() != 2:  # type: ignore[attr-defined, no-untyped-call]
            return
        _checks.check_index("hidden_size", expected)
        if w_hh.size(1) != expected:
            raise RuntimeError(
                f"hidden0 has inconsistent hidden_size: got {expected}, expected {w_hh.size(1)}"
            )

    def __prepare_scriptable__(self) -> None:
        _refuse_script(self)


def _is_leaf(module: torch.nn.Module, forward: Any, input: Any) -> bool:
    """Whether ``torch.fx.symbolic_trace`` records a call of the module, as of torch's own."""
    return type(module).forward is forward and getattr(input.tracer, "root", module) is not module


def _call_leaf(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    tracer = args[0].tracer
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), args, kwargs)


def _refuse_script(module: torch.nn.Module) -> None:
    raise RuntimeError(
        f"fastrnn.{type(module).__name__} does not support torch.jit.script. Use torch.jit.trace "
        "or torch.export, or give TorchScript torch's own modules: fastrnn.restore(model)"
    )


_Model = TypeVar("_Model", bound=torch.nn.Module)
_PAIRS: tuple[tuple[type, type], ...] = ((torch.nn.RNN, RNN), (torch.nn.RNNCell, RNNCell))


def replace(model: _Model) -> _Model:
    """Make every ``torch.nn.RNN`` and ``torch.nn.RNNCell`` of a model ours, in place.

    The modules stay the same objects, with their parameters, buffers, hooks, parametrisations and
    training flag: only their class changes. Subclasses are left alone.

    Args:
        model: Any module; itself may be an RNN.

    Returns:
        ``model``.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.replace(torch.nn.Sequential(torch.nn.RNN(3, 4)))
        >>> type(model[0]) is fastrnn.RNN
        True
    """
    return _change_classes(model, dict(_PAIRS))


def restore(model: _Model) -> _Model:
    """Make every ``fastrnn.RNN`` and ``fastrnn.RNNCell`` of a model torch's own, in place.

    Args:
        model: Any module; itself may be an RNN.

    Returns:
        ``model``.

    Example:
        >>> import torch, fastrnn
        >>> model = fastrnn.restore(torch.nn.Sequential(fastrnn.RNN(3, 4)))
        >>> type(model[0]) is torch.nn.RNN
        True
    """
    return _change_classes(model, {ours: theirs for theirs, ours in _PAIRS})


def _change_classes(model: _Model, classes: dict[type, type]) -> _Model:
    if not isinstance(model, torch.nn.Module):
        what = model.__name__ if isinstance(model, type) else type(model).__name__
        raise TypeError(f"expected a torch.nn.Module, got {what}")
    for module in model.modules():
        original = parametrize.type_before_parametrizations(module)
        target = classes.get(original)
        if target is None:
            continue
        if original is not type(module):  # parametrize made a subclass, which holds properties
            namespace = dict(type(module).__dict__)
            target = type(f"Parametrized{target.__name__}", (target,), namespace)
        module.__class__ = target
        if isinstance(module, RNNBase):  # computed weights of a call of nn.RNN stop deepcopy
            flat: list[Any] = module._flat_weights
            module._flat_weights = [w if w is None or w.is_leaf else w.detach() for w in flat]
    return model
