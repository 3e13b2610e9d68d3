"""The table of shapes that the numerical tests run, and how errors are judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What an implementation may err where nn.RNN happens to be exact: a few roundings of values of
# size one.
FLOOR = {
    torch.float64: 4e-15,
    torch.float32: 2e-6,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}
TF32_FLOOR = 1e-3  # of float32, where products may round their factors to 11 bits


MARKS = ("lengths", "packed", "reset", "dropout")


@dataclass(frozen=True)
class Case:
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bias: bool = True
    batch_first: bool = False
    bidirectional: bool = False
    hx: bool = True
    lengths: bool = False
    packed: bool = False
    reset: bool = False
    dropout: bool = False  # a mask that is given

    def __str__(self) -> str:
        flags = [
            f"L{self.num_layers}" if self.num_layers > 1 else "",
            "relu" if self.nonlinearity == "relu" else "",
            "" if self.bias else "nobias",
            "batchfirst" if self.batch_first else "",
            "bidirectional" if self.bidirectional else "",
            "" if self.hx else "nohx",
            *(name if getattr(self, name) else "" for name in MARKS),
        ]
        sizes = f"T{self.seq_len}-B{self.batch}-I{self.input_size}-H{self.hidden_size}"
        return "-".join([sizes, *filter(None, flags)])

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def options(self) -> dict[str, object]:
        return {
            "num_layers": self.num_layers,
            "nonlinearity": self.nonlinearity,
            "bias": self.bias,
            "batch_first": self.batch_first,
            "bidirectional": self.bidirectional,
        }

    def module(self, cls: type, dtype: torch.dtype, device: str = "cpu") -> torch.nn.RNNBase:
        return cls(self.input_size, self.hidden_size, **self.options, dtype=dtype, device=device)


# Odd sizes, sizes just past a tile (vectors of 4, 8 and 16; panels of up to 4 vectors; tiles of 6,
# 8, 12 rows; blocks of 96 rows; blocks of 256 rows of all steps), single steps, and each option.
CASES = [
    Case(1, 1, 1, 1),
    Case(1, 1, 1, 1, hx=False),
    Case(10, 1, 1, 32, hx=False),
    Case(10, 1, 2, 32, num_layers=2),
    Case(3, 2, 5, 7, bias=False),
    Case(2, 13, 3, 17, batch_first=True),
    Case(28, 8, 28, 64, batch_first=True, hx=False),
    Case(7, 12, 3, 65, nonlinearity="relu"),
    Case(5, 7, 33, 63, num_layers=2, bidirectional=True),
    Case(5, 7, 33, 63, num_layers=3, bidirectional=True, batch_first=True, nonlinearity="relu"),
    Case(4, 97, 6, 49, bidirectional=True),
    Case(3, 200, 2, 15, num_layers=2, hx=False),
    Case(6, 3, 5, 200),
    Case(3, 5, 130, 129, nonlinearity="relu"),
    Case(300, 1, 4, 16),
    Case(7, 1, 20, 60, num_layers=2, bidirectional=True),
    Case(20, 1, 3, 101),
    Case(3, 5, 290, 257),
    Case(2, 6, 7, 513, hx=False),
    Case(37, 11, 9, 33, num_layers=2),
    Case(1, 33, 70, 67, num_layers=2, lengths=True),
    Case(1, 101, 9, 130, nonlinearity="relu", bidirectional=True),
    Case(10, 10, 5, 290),
    Case(9, 1, 3, 24, lengths=True),
    Case(9, 10, 3, 24, lengths=True, num_layers=2),
    Case(12, 9, 5, 31, lengths=True, bidirectional=True, nonlinearity="relu"),
    Case(12, 110, 5, 18, lengths=True, bidirectional=True, num_layers=2, batch_first=True),
    Case(8, 6, 4, 20, lengths=True, batch_first=True, hx=False, bias=False),
    Case(6, 5, 3, 20, lengths=True, bidirectional=True, hx=False),
]


def away_from_the_kink(module: torch.nn.RNNBase, x: Tensor) -> None:
    """Give relu pre-activations of size one at least: rounding then never changes their sign.

    The first feature is +-1 and its weights +-2, the other terms sum to less than one; so the sign
    of a pre-activation varies with the step, the row and the unit, but does not hang on rounding.
    """
    with torch.no_grad():
        x[..., 0] = torch.where(x[..., 0] < 0, -1.0, 1.0)
        for name, w in module.named_parameters():
            if w.dim() == 1:
                w.mul_(0.1 / w.abs().max())
            elif name.startswith("weight_ih_l0"):
                first = torch.where(w[:, 0] < 0, -2.0, 2.0)
                w.mul_(0.1 / (w.abs().sum(1, keepdim=True) * x.abs().max()))
                w[:, 0] = first
            else:  # states are at most about 3
                w.mul_(0.1 / w.abs().sum(1, keepdim=True))
                if name.startswith("weight_ih"):
                    w.mul_(0.5)


def error(x: Tensor, truth: Tensor) -> float:
    """Largest difference, relative to the largest value or one."""
    if truth.numel() == 0:
        return 0.0
    scale = max(1.0, truth.abs().max().item())
    return (x.double() - truth).abs().max().item() / scale


def assert_as_accurate(
    ours: dict[str, Tensor],
    theirs: dict[str, Tensor],
    truth: dict[str, Tensor],
    tf32: bool = False,
) -> None:
    """Each of our results errs at most twice as much as nn.RNN's, or the floor of its dtype."""
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        assert ours[name].shape == expected.shape, name
        floor = TF32_FLOOR if tf32 else FLOOR[ours[name].dtype]
        bound = 2 * error(theirs[name], expected) + floor
        assert error(ours[name], expected) <= bound, name
