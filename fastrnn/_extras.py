"""What a call may have besides nn.RNN's arguments: gates, a leak, noise, every layer's output.

These calls take the operator ``rnn_extended``.
"""

from __future__ import annotations

import numbers
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import Parameter
from torch.nn.utils.rnn import PackedSequence

from fastrnn._checks import Options, got, same_order

FORMS = ("rate", "current")


class Extras(NamedTuple):
    """The extra arguments of a call, as the caller passed them."""

    igates: Any = None
    return_layers: bool = False
    alpha: Any = 1.0
    form: str = "rate"
    noise: Any = 0.0

    def leaks(self) -> bool:
        """Whether the call is one of ``leaky_rnn``."""
        tensors = isinstance(self.alpha, Tensor) or isinstance(self.noise, Tensor)
        return tensors or (self.alpha, self.form, self.noise) != (1, "rate", 0)

    def given(self) -> dict[str, Any]:
        """The keywords of a call of ``rnn`` or ``leaky_rnn``."""
        names = self._fields if self.leaks() else ("igates", "return_layers")
        return {name: getattr(self, name) for name in names}

    def tensors(self) -> dict[str, Any]:
        """What may be tensors, by name."""
        igates = self.igates.data if isinstance(self.igates, PackedSequence) else self.igates
        return {"igates": igates, "alpha": self.alpha, "noise": self.noise}

    def unsqueezed(self) -> Extras:
        """With a batch of one, for a call without a batch."""
        igates, noise = self.igates, self.noise
        if isinstance(igates, Tensor) and igates.dim() == 2:
            igates = igates.unsqueeze(1)
        if isinstance(noise, Tensor) and noise.dim() == 3:
            noise = noise.unsqueeze(2)
        return self._replace(igates=igates, noise=noise)

    def unpacked(self, packed: PackedSequence) -> Extras:
        """With the data of igates that come packed as the input does."""
        igates = self.igates
        if not isinstance(igates, PackedSequence):
            return self
        sizes = igates.batch_sizes
        if sizes is not packed.batch_sizes and not torch.equal(sizes, packed.batch_sizes):
            raise ValueError(
                "rnn: expected igates packed like the input, got different batch_sizes"
            )
        if not same_order(igates.sorted_indices, packed.sorted_indices):
            raise ValueError(
                "rnn: expected igates packed like the input, got different sorted_indices"
            )
        return self._replace(igates=igates.data)


class OperatorExtras(NamedTuple):
    """The arguments of ``rnn_extended`` after those that it shares with ``rnn``, in its order."""

    gates: Tensor | None  # (1 or L, T, B, D*H), or (1 or L, rows, D*H) for packed data
    alpha: Tensor | None  # (L*D, H)
    alpha_value: float
    form: str
    return_layers: bool

    def keeps(self) -> bool:
        """Whether the backward pass needs more than the states: csrc/extras.h has the same rule."""
        return self.alpha is not None or (self.form == "rate" and self.alpha_value != 1)


def check_alpha(alpha: Any) -> None:
    """Check the leak: a number in (0, 1], or a floating-point tensor."""
    if isinstance(alpha, Tensor):
        if not alpha.is_floating_point():
            raise TypeError(f"alpha should be a floating-point tensor, got: {alpha.dtype}")
        return
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real):
        array = isinstance(alpha, list | tuple) or hasattr(alpha, "__array__")
        convert = ". Convert it: torch.as_tensor(alpha)" if array else ""
        raise TypeError(
            f"alpha should be a number or a tensor, got: {type(alpha).__name__}{convert}"
        )
    if not 0 < alpha <= 1:  # type: ignore[operator]
        raise ValueError(f"alpha should be greater than 0 and at most 1, got {alpha}")


def check_learned(alpha: Any) -> None:
    """Check that what a module is to learn is a parameter: optimizers find no other tensor."""
    if isinstance(alpha, Tensor) and alpha.requires_grad and not isinstance(alpha, Parameter):
        raise ValueError(
            "alpha requires grad but is no Parameter. To learn it, pass torch.nn.Parameter(alpha); "
            "to compute it from a parameter, use torch.nn.utils.parametrize"
        )


def check_values(alpha: Tensor) -> None:
    """Check the values of a tensor, which may wait for a device: once, not in each call."""
    known = alpha.detach()
    if (
        known.device.type == "meta"
        or isinstance(known, FakeTensor)
        or bool(((known > 0) & (known <= 1)).all())
    ):
        return
    raise ValueError(
        "alpha should be greater than 0 and at most 1, got values from "
        f"{known.min().item():g} to {known.max().item():g}"
    )


def check_expands(alpha: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the leak of each layer and direction and unit, ``size`` = (L*D, H)."""
    try:
        return alpha.expand(size)
    except RuntimeError:
        raise RuntimeError(
            f"alpha should have a shape that expands to (L*D, H) = {size}, got {tuple(alpha.shape)}"
        ) from None


def check_form(form: Any) -> None:
    """Check the name of the leaky equation."""
    if form not in FORMS:
        raise ValueError(f"Unknown form {form!r}. Select from 'rate' or 'current'.")


def check_noise(noise: Any) -> None:
    """Check the noise: a standard deviation, or a tensor, whose shape is checked later."""
    if isinstance(noise, Tensor):
        return
    if isinstance(noise, bool) or not isinstance(noise, numbers.Real):
        convert = ""
        if isinstance(noise, PackedSequence):
            convert = ". Pass its data, (L, rows, D*H)"
        elif isinstance(noise, list | tuple) or hasattr(noise, "__array__"):
            convert = ". Convert it: torch.as_tensor(noise)"
        raise TypeError(
            f"noise should be a number or a tensor, got: {type(noise).__name__}{convert}"
        )
    number: Any = noise.item() if hasattr(noise, "item") else noise  # NumPy's would overflow
    if not 0 <= number <= sys.float_info.max:
        raise ValueError(f"noise should be a finite standard deviation of at least 0, got {noise}")


def prepare(
    extras: Extras, input: Tensor, weights: Sequence[Tensor], options: Options
) -> OperatorExtras:
    """The operator's arguments, for an ``input`` (T, B, I), (B, T, I) or packed (rows, I)."""
    hidden_size, directions = weights[1].size(-1), 2 if options.bidirectional else 1
    num_layers, swapped = options.num_layers, options.batch_first
    features = directions * hidden_size
    alpha, alpha_value = _alpha(extras.alpha, num_layers * directions, hidden_size, input)
    gates = None
    if extras.igates is not None:
        _check_like("igates", extras.igates, (*input.shape[:-1], features), input)
        gates = extras.igates.transpose(0, 1) if swapped else extras.igates
        gates = gates.unsqueeze(0)
    noise = extras.noise
    if isinstance(noise, Tensor):
        _check_like("noise", noise, (num_layers, *input.shape[:-1], features), input)
        noise = noise.transpose(1, 2) if swapped else noise
    elif noise > 0:
        rows = input.transpose(0, 1) if swapped else input
        leak: Any = alpha_value
        if alpha is not None:
            leak = alpha.to(input.dtype).reshape(num_layers, *[1] * (input.dim() - 1), -1)
        scale = noise * (2 / leak) ** 0.5
        noise = scale * torch.randn(
            num_layers, *rows.shape[:-1], features, dtype=input.dtype, device=input.device
        )
    else:
        noise = None
    if noise is not None and gates is not None:
        gates = torch.cat([noise[:1] + gates, noise[1:]])
    elif noise is not None:
        gates = noise
    return OperatorExtras(gates, alpha, alpha_value, extras.form, extras.return_layers)


def _alpha(alpha: Any, states: int, hidden_size: int, input: Tensor) -> tuple[Tensor | None, float]:
    if not isinstance(alpha, Tensor):
        return None, float(alpha)
    # As the sums of the state: in 16 bits 1 - alpha would lose a small alpha.
    exact = torch.float64 if input.dtype == torch.float64 else torch.float32
    return check_expands(alpha, (states, hidden_size)).to(exact), 1.0


def is_cast(x: Tensor, like: Tensor) -> bool:
    """Whether autocast gives both one dtype; it leaves float64 as it is."""
    device, dtypes = x.device.type, (x.dtype, like.dtype)
    casts = device in ("cpu", "cuda", "xpu") and torch.is_autocast_enabled(device)
    return casts and torch.float64 not in dtypes


def _check_like(name: str, x: Any, shape: tuple[int, ...], input: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"rnn: expected {name} to be a Tensor, got {got(x, name)}")
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return  # it would record the sizes
    if name == "noise" and x.dim() == 0:
        raise ValueError(
            f"rnn: expected noise of shape {tuple(shape)}, or a standard deviation as a number, "
            "got a tensor without dimensions. Convert it: float(noise)"
        )
    if tuple(x.shape) != tuple(shape):
        raise ValueError(f"rnn: expected {name} of shape {tuple(shape)}, got {tuple(x.shape)}")
    if x.device != input.device:
        raise RuntimeError(f"rnn: expected {name} on {input.device}, got {x.device}")
    if x.layout != torch.strided:
        raise RuntimeError(
            f"rnn: expected {name} to be a dense tensor, got {x.layout}. "
            f"Convert it: {name}.to_dense()"
        )
    if x.dtype != input.dtype and not is_cast(x, input):
        raise RuntimeError(
            f"rnn: expected {name} of dtype {input.dtype}, like the input, got {x.dtype}. "
            f"Convert it: {name}.to({input.dtype})"
        )
