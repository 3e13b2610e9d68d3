"""The RNN as a function of its input, state and weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypedDict, TypeVar, Unpack, overload

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function

from fastrnn import _C, _checks, _extras, _layouts
from fastrnn._checks import Options
from fastrnn._extras import Extras
from fastrnn._types import Lengths, Marks

__all__ = ["leaky_rnn", "rnn"]

_Input = TypeVar("_Input", bound=Tensor | PackedSequence)


class _Options(TypedDict, total=False):
    """For type checkers: the keywords of :func:`rnn`."""

    bias: bool
    num_layers: int
    nonlinearity: Literal["tanh", "relu"]
    bidirectional: bool
    batch_first: bool
    dropout: float
    training: bool
    lengths: Lengths | None
    reset: Marks | PackedSequence | None
    reset_state: Tensor | None
    igates: Tensor | PackedSequence | None


@overload
def rnn(
    input: _Input,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_layers: Literal[False] = False,
    **options: Unpack[_Options],
) -> tuple[_Input, Tensor]: ...
@overload
def rnn(
    input: Tensor | PackedSequence | None,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    return_layers: bool = False,
    **options: Unpack[_Options],
) -> tuple[Any, ...]: ...
def rnn(
    input: Any,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    bias: bool = True,
    num_layers: int = 1,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths | None = None,
    reset: Marks | PackedSequence | None = None,
    reset_state: Tensor | None = None,
    igates: Tensor | PackedSequence | None = None,
    return_layers: bool = False,
) -> Any:
    r"""Run a stack of Elman RNN layers over a sequence, all layers and time steps in one call.

    .. math:: h_t = f(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \quad f = \tanh, \text{relu}

    With T = seq_len, B = batch, I = input_size, H = hidden_size, L = num_layers, D = 2 if
    bidirectional else 1:

    Args:
        input: (T, B, I), or (B, T, I) with ``batch_first``, or (T, I) without a batch, or a
            ``PackedSequence``; or None, with ``igates``.
        hx: The initial state (L*D, B, H), (L*D, H) without a batch, or None for zeros.
        weights: For each layer and, within it, each direction: ``w_ih`` (H, I or D*H), ``w_hh``
            (H, H) and, with ``bias``, ``b_ih`` and ``b_hh`` (H).
        bias: Whether ``weights`` holds biases.
        num_layers: L.
        nonlinearity: ``"tanh"`` or ``"relu"``.
        bidirectional: Whether a second direction reads each layer's input from its end.
        batch_first: Whether the batch is the first dimension of ``input``, ``output`` and
            ``reset``.
        dropout: Probability of zeroing an element of the output of every layer but the last, if
            ``training``.
        training: Whether dropout applies.
        lengths: (B,) integers, in any order: the number of valid steps of each row of padded
            input, 0 to T. The output beyond them is zero, ``hn`` is the state after each row's
            last valid step, and the reverse direction starts there.
        reset: (T, B), or (B, T) with ``batch_first``, or (T) without a batch: true where a new
            sequence begins. Bool, or numbers, where any but 0 is true; a last dimension of 1 is
            allowed. For a ``PackedSequence``, another one packed alike or a padded tensor. The
            state before such a step, even the first, is zero, and no gradient passes. The reverse
            direction restarts at the step before, where the earlier sequence ends.
        reset_state: (L*D, B, H), or (L*D, H) without a batch: the state there, instead of zeros.
            Such calls take the reference path.
        igates: (T, B, D*H) in the layout of the input, added to the first layer's
            :math:`W_{ih} x_t`; without an input, it takes that product's place.
        return_layers: Whether to return the output of every layer too.

    Returns:
        ``output`` (T, B, D*H) in the layout of ``input``, and ``hn`` (L*D, B, H). With
        ``return_layers``, also the output of every layer, before dropout: (L, T, B, D*H) in the
        layout of the input or, for a ``PackedSequence``, a list of L of them.

    Raises:
        ValueError: A wrong rank, dtype or dropout, an unknown nonlinearity, or ``reset_state``
            without ``reset``.
        TypeError: A wrong type.
        AttributeError: ``input`` or ``hx`` of a wrong type, as nn.RNN raises it.
        RuntimeError: A wrong size or device.

    Source: J. L. Elman, "Finding Structure in Time", Cognitive Science 14, 1990.

    Example:
        >>> import torch, fastrnn.functional
        >>> weights = [torch.eye(2), torch.zeros(2, 2)]
        >>> x = torch.tensor([[[1.0, -1.0]], [[2.0, -2.0]]])
        >>> output, hn = fastrnn.functional.rnn(x, None, weights, bias=False, nonlinearity="relu")
        >>> output.squeeze(1)
        tensor([[1., 0.],
                [2., 0.]])
    """
    _check_settings(nonlinearity, num_layers, bias, bidirectional, batch_first, dropout)
    weights = _as_list(weights)
    _checks.check_count(weights, bias, num_layers, bidirectional)
    if not training:
        dropout = 0.0
    plain = igates is None and return_layers is False
    if plain and dropout == 0.0 and reset_state is None and not is_dynamo_compiling():
        result: Any = _C.rnn(
            input,
            hx,
            weights,
            bias,
            num_layers,
            nonlinearity,
            bidirectional,
            batch_first,
            lengths,
            reset,
        )
        if result is not None:
            return result
    options = Options(
        lengths=lengths,
        reset=reset,
        has_biases=bias,
        num_layers=num_layers,
        nonlinearity=nonlinearity,
        bidirectional=bidirectional,
        batch_first=batch_first,
    )
    extras = None if plain else Extras(igates, return_layers)
    return rnn_in_python(input, hx, weights, options, dropout, reset_state, extras)


def leaky_rnn(
    input: Any,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    alpha: float | Tensor,
    *,
    form: Literal["rate", "current"] = "rate",
    noise: float | Tensor = 0.0,
    bias: bool = True,
    num_layers: int = 1,
    nonlinearity: Literal["tanh", "relu"] = "tanh",
    bidirectional: bool = False,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    lengths: Lengths | None = None,
    reset: Marks | PackedSequence | None = None,
    reset_state: Tensor | None = None,
    igates: Tensor | PackedSequence | None = None,
    return_layers: bool = False,
) -> Any:
    r"""Run a stack of leaky RNN layers over a sequence, all layers and time steps in one call.

    The equations, and the meaning of ``alpha``, ``form`` and ``noise``, are those of
    :class:`fastrnn.LeakyRNN`; all other arguments, results and errors are those of :func:`rnn`.

    Args:
        alpha: The leak: a number in (0, 1], or a tensor of any shape that expands to (L*D, H). The
            values of a tensor are not checked.
        form: ``"rate"`` or ``"current"``.
        noise: The noise's standard deviation, or the noise itself, (L, T, B, D*H) with T and B in
            the order of the input, or (L, rows, D*H) for a ``PackedSequence``.

    Example:
        >>> import torch, fastrnn.functional
        >>> weights = [torch.eye(1), torch.zeros(1, 1)]
        >>> x = torch.ones(3, 1, 1)
        >>> options = {"bias": False, "nonlinearity": "relu"}
        >>> output, hn = fastrnn.functional.leaky_rnn(x, None, weights, 0.5, **options)
        >>> output.flatten()  # halfway to 1 in each step
        tensor([0.5000, 0.7500, 0.8750])
    """
    _check_settings(nonlinearity, num_layers, bias, bidirectional, batch_first, dropout)
    _extras.check_alpha(alpha)
    _extras.check_form(form)
    _extras.check_noise(noise)
    weights = _as_list(weights)
    dropout = dropout if training else 0.0
    direct = igates is None and reset_state is None and dropout == 0.0
    noiseless = not isinstance(noise, Tensor) and noise == 0
    if direct and noiseless and isinstance(return_layers, bool) and not is_dynamo_compiling():
        result: Any = _C.rnn_extended(
            input,
            hx,
            weights,
            bias,
            num_layers,
            nonlinearity,
            bidirectional,
            batch_first,
            lengths,
            reset,
            alpha,
            form,
            return_layers,
        )
        if result is not None:
            return result
    options = Options(
        lengths=lengths,
        reset=reset,
        has_biases=bias,
        num_layers=num_layers,
        nonlinearity=nonlinearity,
        bidirectional=bidirectional,
        batch_first=batch_first,
    )
    extras = Extras(igates, return_layers, alpha, form, noise)
    return rnn_in_python(input, hx, weights, options, dropout, reset_state, extras)


def _check_settings(
    nonlinearity: Any,
    num_layers: Any,
    bias: Any,
    bidirectional: Any,
    batch_first: Any,
    dropout: Any,
) -> None:
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    if not (
        type(num_layers) is int
        and type(bias) is bool
        and type(bidirectional) is bool
        and type(batch_first) is bool
    ):
        _checks.check_types(  # to say which
            num_layers=num_layers, bias=bias, bidirectional=bidirectional, batch_first=batch_first
        )
    if num_layers <= 0:
        raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
    if type(dropout) is not float or dropout:
        _checks.check_dropout(dropout)


def _as_list(weights: Any) -> list[Tensor]:
    if type(weights) is list:
        return weights
    if isinstance(weights, Tensor) or not isinstance(weights, Iterable):
        got = "one tensor" if isinstance(weights, Tensor) else type(weights).__name__
        raise TypeError(f"rnn: expected a sequence of weights, got {got}")
    return list(weights)


def rnn_in_python(
    input: Any,
    hx: Tensor | None,
    weights: list[Tensor],
    options: Options,
    dropout: float,
    reset_state: Tensor | None,
    extras: Extras | None = None,
) -> Any:
    """Run what C++ declines: packed input, transforms, compilers, extras, errors.

    ``options`` has lengths and reset as the caller passed them, and no ``batch_sizes``: those come
    from packed input.
    """
    _checks.check_reset_state(reset_state, options.reset)
    if input is None and extras is not None and extras.igates is not None:
        input, weights = _layouts.without_input(extras.igates, weights, options)
    num_layers, bidirectional = options.num_layers, options.bidirectional
    if type(num_layers) is not int or type(bidirectional) is not bool:
        _checks.check_types(num_layers=num_layers, bidirectional=bidirectional)
    packed = isinstance(input, PackedSequence)
    more = {} if extras is None else extras.tensors()
    if not packed:
        tensors = (input, hx, *weights, *more.values())
        if has_torch_function(tensors) and not any(map(_layouts.is_expanded, weights)):
            leaks = extras is not None and extras.leaks()
            return handle_torch_function(
                leaky_rnn if leaks else rnn,  # type: ignore[arg-type]
                tensors,
                input,
                hx,
                weights,
                bias=options.has_biases,
                num_layers=options.num_layers,
                nonlinearity=options.nonlinearity,
                bidirectional=options.bidirectional,
                batch_first=options.batch_first,
                dropout=float(dropout),
                training=dropout != 0.0,
                lengths=options.lengths,
                reset=options.reset,
                reset_state=reset_state,
                **({} if extras is None else extras.given()),
            )
        _checks.check_tensors(input, hx, reset_state)
    elif not isinstance(input.batch_sizes, Tensor):
        got = type(input.batch_sizes).__name__
        raise TypeError(
            f"RNN: expected batch_sizes of the PackedSequence to be a Tensor, got {got}"
        )
    if extras is not None and type(extras.return_layers) is not bool:
        _checks.check_types(return_layers=extras.return_layers)
    _checks.check_count(weights, options.has_biases, num_layers, bidirectional)
    if not torch.compiler.is_compiling():
        reset: Any = options.reset
        _C.check_storages(
            weights,
            hx=hx,
            lengths=options.lengths,
            reset=reset.data if isinstance(reset, PackedSequence) else reset,
            reset_state=reset_state,
            **more,
            **(input._asdict() if packed else {"input": input}),
        )
    run = _layouts.rnn_packed if packed else _layouts.rnn_padded
    return run(input, hx, weights, options, dropout, reset_state, extras)
