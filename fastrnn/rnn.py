"""The module :class:`RNN`."""

from __future__ import annotations

import numbers
import weakref
from typing import Any, Literal, Never

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter
from torch.nn.modules.rnn import RNNBase
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.rnn import PackedSequence
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from fastrnn import _C, _checks
from fastrnn._checks import Options
from fastrnn._extras import Extras
from fastrnn._step import rnn_step
from fastrnn._trace import call_leaf, is_leaf, refuse_script
from fastrnn._types import Lengths, Marks, RNNCall
from fastrnn.functional import rnn_in_python

_CHECKS = ("check_input", "check_hidden_size", "check_forward_args", "get_expected_hidden_size")
_NONLINEARITIES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}  # of a module's mode


class RNN(RNNBase):
    r"""A multi-layer Elman RNN with tanh or relu, a drop-in replacement for ``torch.nn.RNN``.

    .. math:: h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Same arguments, parameters, initial values, ``state_dict``, inputs, outputs and errors as
    ``torch.nn.RNN``. The class derives from ``RNNBase`` and not from ``torch.nn.RNN``, which
    ``torch.compile`` refuses to trace into.

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
        lengths: (B,) integers from 0 to T, in any order, as a tensor, array or list: the number of
            valid steps of each row of padded input. Outputs beyond them are zero, ``hn`` is the
            state after the last valid step, and the reverse direction starts at each row's own end.
        reset: (T, B), or (B, T) with ``batch_first``, as a tensor, array or list: true where a new
            sequence begins. The state before that step is zero, and no gradient passes; at the
            first step, ``hx`` is dropped. Bool, or numbers such as an environment's ``done``, where
            any but 0 is true; a last dimension of 1 is allowed. For a ``PackedSequence``, packed
            alike or padded. The reverse direction restarts at the step before, where the earlier
            sequence ends.
        reset_state: (L*D, B, H), the state there, instead of zeros; gradients flow to it. Such
            calls take the reference path.
        igates: (T, B, D*H) in the input's layout, added to the first layer's :math:`W_{ih} x_t`.
            With ``None`` for the input, it takes that product's place.
        return_layers: Whether to return the output of every layer too.

    Returns:
        ``output``, (T, B, D*H) in the input's layout, and ``hn``, (L*D, B, H). With
        ``return_layers``, also the output of every layer, before dropout: (L, T, B, D*H), with T
        and B in the order of the input or, for a ``PackedSequence``, a list of L of them.

    Raises:
        ValueError, TypeError: A wrong argument to the constructor, a wrong rank or dtype, or
            ``reset_state`` without ``reset``.
        AttributeError: ``input`` or ``hx`` of a wrong type, as nn.RNN raises it.
        RuntimeError: A wrong size or device, or a module whose sizes are not its weights'.

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
    __call__: RNNCall  # of forward
    _checks_overridden = _is_overridden = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        **kwargs: Never,
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
        cls._is_overridden = cls._checks_overridden or _checks.is_overridden(cls, RNNBase)

    def forward(
        self,
        input: Any,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Marks | PackedSequence | None = None,
        reset_state: Tensor | None = None,
        igates: Tensor | PackedSequence | None = None,
        return_layers: bool = False,
    ) -> Any:
        """Run the RNN; see the class for the arguments."""
        direct = igates is None and reset_state is None and return_layers is False
        if direct and not self._is_overridden and not is_dynamo_compiling():
            result = _C.rnn_of_module(self.__dict__, input, hx, lengths, reset)
            if result is not None:
                return result
        return self._run(RNN.forward, input, hx, lengths, reset, reset_state, igates, return_layers)

    def _run(
        self,
        forward: Any,
        input: Any,
        hx: Any,
        lengths: Any,
        reset: Any,
        reset_state: Any,
        igates: Any,
        return_layers: Any,
        noise: Any = None,
    ) -> Any:
        """Run what C++ declines. ``forward`` is that of the class whose call it is."""
        weights = self._weights_now()
        nonlinearity, dropout = self._settings()
        _checks.check_types(batch_first=self.batch_first, training=self.training)
        if is_leaf(self, forward, input):
            given: dict[str, Any] = {
                "lengths": lengths,
                "reset": reset,
                "reset_state": reset_state,
                "igates": igates,
                "noise": noise,
                "return_layers": return_layers or None,
            }
            return call_leaf(self, input, hx, **given)
        if input is not None or igates is None:
            if self._checks_overridden:
                self._run_checks(input, hx)
            self._check_sizes(weights, input, hx)
        options = self._options(nonlinearity, lengths, reset)
        extras = self._extras(igates, return_layers, noise)
        return rnn_in_python(input, hx, weights, options, dropout, reset_state, extras)

    def _extras(self, igates: Any, return_layers: bool, noise: Any) -> Extras | None:
        plain = igates is None and return_layers is False
        return None if plain else Extras(igates, return_layers)

    def step(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Marks | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Run one time step of all layers, for input that comes step by step.

        The results are those of a call on a sequence of one step, without a call's overhead. Pass
        each state to the next step. Of the module's hooks, only those that compute weights run
        (``prune``, ``weight_norm``, ``spectral_norm``).

        Args:
            input: (B, I), or (I) without a batch, whatever ``batch_first``.
            hx: The state (L, B, H), or (L, H) without a batch; zeros by default.
            reset: (B,), true where a new sequence begins; the state before the step is zero there.
                Bool, or numbers, where any but 0 is true; a last dimension of 1 is allowed.
            reset_state: (L, B, H), the state there, instead of zeros.

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
        direct = reset is None and reset_state is None and not self._is_overridden
        if direct and not is_dynamo_compiling():
            result = _C.step_of_module(self.__dict__, input, hx)
            if result is not None:
                return result
        return self._run_step(input, hx, reset, reset_state)

    def _run_step(
        self, input: Any, hx: Any, reset: Any, reset_state: Any, noise: Any = None
    ) -> tuple[Tensor, Tensor]:
        """Run what C++ declines of a step."""
        self._refuse_bidirectional_step()
        self._compute_weights()
        weights = self._weights_now()
        nonlinearity, dropout = self._settings()
        self._check_sizes(weights)
        options = self._options(nonlinearity, None, reset)._replace(
            bidirectional=False, batch_first=False
        )
        extras = self._extras(None, False, noise)
        return rnn_step(input, hx, weights, options, dropout, reset_state, extras)

    def _refuse_bidirectional_step(self) -> None:
        if self.bidirectional:
            raise RuntimeError(
                "RNN.step: expected a unidirectional module, got bidirectional=True. Its second "
                "direction begins at the end of the input: call the module on the whole sequence"
            )

    def _settings(self) -> tuple[str, float]:
        """The nonlinearity and the dropout that apply; any attribute may have been overwritten."""
        bias = self.bias
        if bias is not True and bias is not False:
            _checks.check_types(bias=bias)
        try:
            nonlinearity = _NONLINEARITIES[self.mode]
        except (KeyError, TypeError):
            raise AssertionError(f"mode must be RNN_TANH or RNN_RELU, got {self.mode}") from None
        dropout = self.dropout
        return nonlinearity, 0.0 if dropout == 0.0 else self._dropout_now()

    def _options(self, nonlinearity: str, lengths: Any, reset: Any) -> Options:
        return Options(
            lengths=lengths,
            reset=reset,
            has_biases=self.bias,
            num_layers=self.num_layers,
            nonlinearity=nonlinearity,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
        )

    def _compute_weights(self) -> None:
        """Run the hooks that compute weights, since a step does not go through ``__call__``."""
        for hook in self._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod | SpectralNorm | WeightNorm):
                hook(self, None)

    def _weights_now(self) -> list[Any]:
        """The weights of a call as nn.RNN finds them.

        They are ``_flat_weights``, which a subclass may have swapped, unless an attribute has
        changed since that list was made. Computed weights are attributes.
        """
        parameters = self._parameters
        found: list[Any] = [
            parameters[name] if name in parameters else getattr(self, name, None)
            for name in self._flat_weights_names
        ]
        if all(
            w is None or ref is None or ref() is w
            for w, ref in zip(found, self._flat_weight_refs, strict=False)
        ):
            return list(self._flat_weights)
        # A list of computed weights would break deepcopy. nn.RNN also flattens the new ones here.
        if all(type(w) in (Tensor, Parameter) and w.is_leaf for w in found):
            self._flat_weights = found
            self._flat_weight_refs = [weakref.ref(w) for w in found]
        return found

    def _dropout_now(self) -> float:
        """The probability that applies, checked as in nn.RNN: it may have been overwritten."""
        dropout: Any = self.dropout
        if not isinstance(dropout, numbers.Real | Tensor):
            raise TypeError(f"dropout should be a number, got: {type(dropout).__name__}")
        if not self.training or self.num_layers == 1:
            return 0.0
        if not 0 <= self.dropout <= 1:
            raise RuntimeError(f"dropout probability has to be between 0 and 1, but got {dropout}")
        return self.dropout

    def _check_sizes(self, weights: list[Any], *call: Any) -> None:
        """Check that the module's sizes match its weights: both may have been overwritten.

        ``call`` is ``input, hx``, on which nn.RNN's own checks run first, or empty for a step.
        A subclass with checks of its own has run them already.
        """
        if call and self._checks_overridden:
            return
        w_ih, expected = weights[0], (self.hidden_size, self.input_size)
        # A trace would record the shape; if w_ih is not a tensor, another check says so.
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
        """Call the checks that a subclass may override, in nn.RNN.forward's order."""
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
        refuse_script(self)
