"""What is done to the arguments of a call, to see that it ends in a sentence or a right result."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

INTEGERS = [-1, 0, 2, 3, 2**31, 2**62 + 1, 2**63 - 1, 2**63, -(2**63), 10**30]


class Wrapped(Tensor):
    """A tensor around another, as libraries make them: it has no memory of its own."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        x = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )
        x.inner = inner
        return x

    @classmethod
    def __torch_dispatch__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(unwrapped, (args, kwargs or {}))
        return tree_map(lambda x: cls(x) if isinstance(x, Tensor) else x, f(*args, **kwargs))


class Subclass(Tensor):
    """A tensor by another name."""


def unwrapped(x: Any) -> Any:
    return x.inner if isinstance(x, Wrapped) else x


# Tensors that are damaged, or only unusual.


def like(x: Tensor, y: Tensor) -> Tensor:
    return y.requires_grad_(x.requires_grad and y.is_floating_point())


def cut(x: Tensor, rng: random.Random) -> Tensor:
    """A storage of which an offloader has freed a part, or all."""
    y = x.detach().clone()
    size = y.untyped_storage().nbytes()
    y.untyped_storage().resize_(rng.choice([0, 1, max(size - 1, 0), size // 2]))
    return like(x, y)


def beyond(x: Tensor, rng: random.Random) -> Tensor:
    """Sizes, strides or an offset that leave the storage."""
    y = x.detach().clone()
    size, sizes, strides, offset = y.untyped_storage().nbytes(), list(x.shape), [*x.stride()], 0
    where = rng.randrange(len(sizes) + 1)
    if where == len(sizes):
        offset = rng.choice([1, 7, 2**20])
    else:
        strides[where] = rng.choice([strides[where] + 1, 2**16])
    y.set_(y.untyped_storage(), offset, sizes, strides)
    y.untyped_storage().resize_(size)
    return like(x, y)


def resized(x: Tensor, rng: random.Random) -> Tensor:
    sizes = list(x.shape)
    i = rng.randrange(len(sizes)) if sizes else 0
    sizes = sizes or [1]
    sizes[i] = rng.choice([0, sizes[i] + 1, max(sizes[i] - 1, 0), 2 * sizes[i]])
    return like(x, torch.ones(sizes).to(x.dtype))


def swapped(x: Tensor, rng: random.Random) -> Tensor:
    return x.transpose(*rng.choices(range(x.dim()), k=2)) if x.dim() else x


def huge(x: Tensor, rng: random.Random) -> Tensor:
    """Large sizes in little memory."""
    sizes = [*x.shape]
    for _ in range(rng.choice([1, 1, 2])):
        if sizes:
            sizes[rng.randrange(len(sizes))] = rng.choice([2**31, 2**40])
    try:
        return like(x, torch.ones((), dtype=x.dtype).expand(sizes))
    except RuntimeError:  # more elements than there are numbers
        return x


def spread(x: Tensor, rng: random.Random) -> Tensor:
    """The same values with other strides."""
    kind = rng.randrange(3)
    if kind == 0 and x.dim() > 1:
        i, j = rng.sample(range(x.dim()), 2)
        return x.transpose(i, j).contiguous().transpose(i, j)
    if kind == 1 and x.dim():
        return torch.stack([x, x], -1)[..., 1]
    return torch.cat([x.flatten()[:1], x.flatten()])[1:].view(x.shape)


def overlapping(x: Tensor, rng: random.Random) -> Tensor:
    strides = [rng.choice([0, 1]) for _ in x.shape]
    return x.as_strided(x.shape, strides)


def values(x: Tensor, rng: random.Random) -> Tensor:
    """Other values: of integers such as no index or length has."""
    y = x.detach().clone()
    if y.numel() == 0:
        return x
    i = rng.randrange(y.numel())
    if y.dtype == torch.int64:
        known = [0, -1, 3, 2**31, 2**62 + 1, 2**63 - 1, -(2**63)]
        y.view(-1)[i] = rng.choice(known)
    elif y.is_floating_point():
        y.view(-1)[i] = rng.choice([1e30, -1e30, 0.0, 1e-40])
    return like(x, y)


def quantized(x: Tensor, rng: random.Random) -> Tensor:
    return torch.quantize_per_tensor(x.detach().float(), 0.1, 0, torch.qint8)


def leaked(x: Tensor, rng: random.Random) -> Tensor:
    """What a transform's function kept of its argument."""
    kept: list[Tensor] = []
    torch.func.vmap(lambda y: kept.append(y) or y)(x.detach()[None])
    return kept[0]


DTYPES = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8,
          torch.bool, torch.complex64, torch.float8_e4m3fn]  # fmt: skip
TENSORS: dict[str, Callable[[Tensor, random.Random], Any]] = {
    "cut": cut,
    "beyond": beyond,
    "resized": resized,
    "swapped": swapped,
    "huge": huge,
    "spread": spread,
    "overlapping": overlapping,
    "values": values,
    "dtype": lambda x, rng: x.to(rng.choice(DTYPES)),
    "complex": lambda x, rng: x.to(torch.complex64),
    "meta": lambda x, rng: x.to("meta"),
    "more dimensions": lambda x, rng: x.unsqueeze(rng.randint(0, x.dim())),
    "fewer dimensions": lambda x, rng: x.flatten(0, 1) if x.dim() > 1 else x.sum(),
    "one number": lambda x, rng: x.flatten()[:1].sum(),
    "expanded": lambda x, rng: x[:1].expand(x.shape) if x.dim() and x.numel() else x,
    "sparse": lambda x, rng: x.to_sparse(),
    "sparse rows": lambda x, rng: x.detach().flatten(1).to_sparse_csr() if x.dim() > 1 else x,
    "mkldnn": lambda x, rng: x.detach().float().to_mkldnn(),
    "quantized": quantized,
    "nested": lambda x, rng: torch.nested.nested_tensor([x.detach(), x.detach()]),
    "jagged": lambda x, rng: torch.nested.nested_tensor([x.detach()] * 2, layout=torch.jagged),
    "fake": lambda x, rng: FakeTensorMode().from_tensor(x),
    "wrapped": lambda x, rng: Wrapped(x.detach()),
    "subclass": lambda x, rng: x.as_subclass(Subclass),
    "parameter": lambda x, rng: nn.Parameter(x.detach(), x.requires_grad),
    "lazy": lambda x, rng: nn.UninitializedParameter(),
    "functional": lambda x, rng: torch._to_functional_tensor(x),
    "negative": lambda x, rng: torch._neg_view(-x) if x.is_floating_point() else x,
    "imaginary": lambda x, rng: torch.complex(x.detach().float(), x.detach().float()).conj().imag,
    "zero": lambda x, rng: torch._efficientzerotensor(x.shape, dtype=x.dtype),
    "inference": lambda x, rng: torch.inference_mode()(torch.clone)(x.detach()),
    "leaked": leaked,
    "array": lambda x, rng: x.detach().float().numpy(),
    "numbers": lambda x, rng: x.tolist(),
    "list": lambda x, rng: [x],
    "pair": lambda x, rng: (x, x),
    "packed": lambda x, rng: PackedSequence(x, torch.tensor([1])),
}
OTHERS: list[Any] = [None, "x", b"x", [], (), {}, 1, 1.0, True, object(), Tensor, torch.float32,
                     np.float32(1), 2**63, float("nan"), torch.tensor(1), [None],
                     [[1], [2, 3]]]  # fmt: skip
BOOLS: list[Any] = [None, 0, 1, 2, "yes", 1.0, np.True_, torch.tensor(True), [], 2**63]
WHOLES: list[Any] = [*INTEGERS, None, True, "1", 1.0, np.int64(1), torch.tensor(1), [1], 1j]
WORDS: list[Any] = [
    None,
    "gelu",
    "",
    b"tanh",
    "tanh\0",
    "TANH",
    "ta" * 10**5,
    "\ud800",
    3,
    ["tanh"],
]
FLOATS: list[Any] = [float("nan"), -0.5, 1.5, float("inf"), "0.5", None, 10**400, 1j, True,
                     torch.tensor(0.5), np.float64(0.5), 1, [0.5]]  # fmt: skip


def damaged(x: Any, rng: random.Random) -> tuple[str, Any]:
    """A word for what was done, and what came of it."""
    lazy = isinstance(x, nn.UninitializedParameter)
    if isinstance(x, Tensor) and not lazy and rng.random() < 0.9:
        kind = rng.choice([*TENSORS])
        try:
            return kind, TENSORS[kind](x, rng)
        except (RuntimeError, NotImplementedError, TypeError):  # of such tensors there is no such
            return "none", x
    if isinstance(x, list):
        kind = rng.choice(
            ["fewer", "more", "other", "tuple", "reversed", "none of one", "iterator"]
        )
        few = x[: rng.randrange(len(x))] if x else []
        return kind, {"fewer": few, "more": [*x, *x[:1]], "other": rng.choice(OTHERS),
                      "tuple": tuple(x), "reversed": x[::-1], "none of one": [*few, None],
                      "iterator": iter(x)}[kind]  # fmt: skip
    for kind, known in ((bool, BOOLS), (int, WHOLES), (float, FLOATS), (str, WORDS)):
        if type(x) is kind:
            value = rng.choice(known)
            return f"{value!r:.30}", value
    value = rng.choice(OTHERS)
    return f"{value!r:.30}", value
