"""The module :class:`LeakyRNN`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _C, _extras
from fastrnn._extras import Extras
from fastrnn._types import Lengths, Marks
from fastrnn.rnn import RNN


class LeakyRNN(RNN):
    r"""A leaky RNN: an Elman RNN whose units move only part of the way in each step.

    This is the continuous-time RNN of computational neuroscience, discretised with
    :math:`\alpha = \Delta t / \tau`, and the reservoir of an echo state network. In the **rate**
    form the state is a firing rate:

    .. math:: h_t = (1 - \alpha) h_{t-1}
        + \alpha f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh} + \xi_t)

    In the **current** form it is a current :math:`v`, and the output is :math:`f(v_t)`:

    .. math:: v_t = (1 - \alpha) v_{t-1}
        + \alpha (W_{ih} x_t + b_{ih} + W_{hh} f(v_{t-1}) + b_{hh} + \xi_t)

    With ``alpha=1`` and no noise, the rate form is :class:`RNN`. Parameters, initial values,
    shapes, and all arguments that are not named here are those of :class:`RNN`.

    Args:
        alpha: The leak, in (0, 1]: a number; or a tensor of a shape that expands to (L*D, H),
            which becomes a buffer; or a ``Parameter``, which is learned. Only the constructor
            checks values: ``torch.nn.utils.parametrize`` keeps a learned leak in (0, 1]. A tensor
            takes the module's device and dtype.
        form: ``"rate"`` or ``"current"``.
        noise: The standard deviation :math:`\sigma` of the noise, in training and in evaluation.
            Every step, row, layer and unit draws
            :math:`\xi = \sigma \sqrt{2 / \alpha} \, \mathcal{N}(0, 1)` from torch's generator. In
            the current form this adds noise of standard deviation :math:`\sigma \sqrt{2 \alpha}`
            to the state.
        nonlinearity, others: As in :class:`RNN`.

    Inputs:
        noise: The noise itself, in place of a drawn one: (L, T, B, D*H), with T and B in the order
            of the input, (L, T, D*H) without a batch, or (L, rows, D*H) for a ``PackedSequence``;
            or another standard deviation, such as 0.
        input, hx, lengths, reset, reset_state, igates, return_layers: As in :class:`RNN`. In the
            current form, ``hx``, ``reset_state`` and ``hn`` are currents.

    Raises:
        ValueError, TypeError, RuntimeError: As in :class:`RNN`, and for an ``alpha``, ``form`` or
            ``noise`` that is not as described.

    Sources: H. Jaeger et al., "Optimization and applications of echo state networks with
    leaky-integrator neurons", Neural Networks 20, 2007 (rate form); H. F. Song, G. R. Yang and
    X.-J. Wang, "Training excitatory-inhibitory recurrent neural networks for cognitive tasks", PLoS
    Computational Biology 12, 2016 (current form, noise); G. R. Yang et al., "Task representations
    in neural networks trained to perform many cognitive tasks", Nature Neuroscience 22, 2019 (rate
    form with noise).

    Example:
        >>> import torch
        >>> from fastrnn import LeakyRNN
        >>> rnn = LeakyRNN(input_size=3, hidden_size=50, nonlinearity="relu", alpha=0.2, noise=0.1)
        >>> output, hn = rnn(torch.randn(100, 8, 3))
        >>> output.shape, hn.shape
        (torch.Size([100, 8, 50]), torch.Size([1, 8, 50]))
    """

    alpha: float | Tensor
    __call__: Callable[..., Any]

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
        *,
        alpha: float | Tensor = 0.1,
        form: Literal["rate", "current"] = "rate",
        noise: float = 0.0,
    ) -> None:
        _extras.check_alpha(alpha)
        _extras.check_learned(alpha)
        _extras.check_form(form)
        if isinstance(noise, Tensor):
            raise TypeError(
                "noise should be a number, got a tensor: a standard deviation is float(noise), and "
                "noise itself an argument of the call"
            )
        _extras.check_noise(noise)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            nonlinearity,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )
        self.form, self.noise = form, noise
        if isinstance(alpha, Tensor):
            size = (num_layers * (2 if bidirectional else 1), hidden_size)
            _extras.check_expands(alpha, size)
            w: Any = self.weight_hh_l0
            values = alpha.detach().to(device=w.device, dtype=w.dtype)
            _extras.check_values(values)  # as rounded
            if not isinstance(alpha, Parameter):
                self.register_buffer("alpha", values.clone())
            elif w.is_meta and not alpha.is_meta:  # its data cannot be replaced
                self.alpha = Parameter(values, alpha.requires_grad)
            else:
                alpha.data = values  # the parameter stays the caller's
                self.alpha = alpha
        else:
            self.alpha = float(alpha)

    def reset_parameters(self) -> None:
        """Draw the weights and biases anew, as RNN does; a learned leak stays as it is."""
        bound = 1.0 / self.hidden_size**0.5 if self.hidden_size > 0 else 0.0
        for w in self._flat_weights:
            nn.init.uniform_(w, -bound, bound)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Return the settings that ``print(module)`` shows."""
        alpha: Any = self.alpha
        leak = f"tensor of shape {tuple(alpha.shape)}" if isinstance(alpha, Tensor) else alpha
        noise = f", noise={self.noise}" if self.noise else ""
        return (
            f"{super().extra_repr()}, nonlinearity={self.nonlinearity}, alpha={leak}, "
            f"form={self.form}{noise}"
        )

    def forward(
        self,
        input: Any,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        reset: Marks | PackedSequence | None = None,
        reset_state: Tensor | None = None,
        igates: Tensor | PackedSequence | None = None,
        noise: Tensor | float | None = None,
        return_layers: bool = False,
    ) -> Any:
        """Run the RNN; see the class for the arguments."""
        direct = igates is None and reset_state is None and not self._is_overridden
        if direct and not is_dynamo_compiling():
            result = _C.leaky_of_module(
                self.__dict__, input, hx, lengths, reset, noise, return_layers
            )
            if result is not None:
                return result
        return self._run(
            LeakyRNN.forward, input, hx, lengths, reset, reset_state, igates, return_layers, noise
        )

    def step(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        reset: Marks | None = None,
        reset_state: Tensor | None = None,
        noise: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor]:
        r"""Run one time step of all layers, for input that comes step by step.

        The results are those of a call on a sequence of one step.

        Args:
            input: (B, I), or (I) without a batch, whatever ``batch_first``.
            hx: The state (L, B, H), or (L, H) without a batch; zeros by default.
            reset: (B,), true where a new sequence begins, as in :meth:`RNN.step`.
            reset_state: (L, B, H), the state there, instead of zeros.
            noise: (L, B, H), or (L, H) without a batch, in place of a drawn one.

        Returns:
            The last layer's output, (B, H) or (H), and the next state, in the shape of ``hx``.

        Raises:
            ValueError: A wrong rank or dtype of ``input``, or ``reset_state`` without ``reset``.
            RuntimeError: A bidirectional module, or a wrong size or device.

        Example:
            >>> import torch
            >>> from fastrnn import LeakyRNN
            >>> rnn, state = LeakyRNN(10, 20, alpha=0.2).eval(), None
            >>> for x in torch.randn(5, 3, 10):  # five steps of three streams
            ...     output, state = rnn.step(x, state)
            >>> output.shape, state.shape
            (torch.Size([3, 20]), torch.Size([1, 3, 20]))
        """
        direct = reset is None and reset_state is None and not self._is_overridden
        if direct and not is_dynamo_compiling():
            result = _C.leaky_step_of_module(self.__dict__, input, hx, noise)
            if result is not None:
                return result
        self._refuse_bidirectional_step()
        if isinstance(noise, Tensor):
            shape = (self.num_layers, *input.shape[:-1], self.hidden_size)
            if tuple(noise.shape) != shape:
                raise ValueError(
                    f"LeakyRNN.step: expected noise of shape {shape}, got {tuple(noise.shape)}"
                )
            noise = noise.unsqueeze(1)
        return self._run_step(input, hx, reset, reset_state, noise)

    def _extras(self, igates: Any, return_layers: bool, noise: Any) -> Extras:
        noise = self.noise if noise is None else noise
        _extras.check_form(self.form)  # attributes may have been overwritten
        _extras.check_alpha(self.alpha)
        _extras.check_noise(noise)
        return Extras(igates, return_layers, self.alpha, self.form, noise)
