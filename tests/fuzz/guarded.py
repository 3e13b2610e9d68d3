"""Tensors in memory that shows every access outside of them: poison around them, then no page."""

from __future__ import annotations

import ctypes
import mmap
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
POISON = 0xFF  # NaN in every floating-point type, -1 in the integers, true in bool

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Region:
    """Some pages between two that nobody may touch."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.map = mmap.mmap(-1, size + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for page in (start, start + PAGE + size):
            if _libc.mprotect(page, PAGE, 0):  # PROT_NONE
                raise OSError(ctypes.get_errno(), "mprotect")
        self.bytes = np.frombuffer(self.map, np.uint8, size, PAGE)


@dataclass
class Placed:
    name: str
    region: Region
    tensor: Tensor
    elements: Tensor  # the storage, in one dimension
    before: np.ndarray | None = None  # what the region held when it was sealed

    def intact(self) -> bool:
        return self.before is None or np.array_equal(self.region.bytes, self.before)


class Memory:
    """Gives out guarded tensors; ``reset`` takes all of them back."""

    def __init__(self) -> None:
        self.free: dict[int, list[Region]] = {}
        self.placed: list[Placed] = []

    def empty(
        self,
        name: str,
        shape: Sequence[int],
        dtype: torch.dtype,
        strides: Sequence[int] | None = None,
        rng: random.Random | None = None,
    ) -> Tensor:
        """A tensor of poison, at the start or the end of its pages, as ``rng`` says.

        Its storage ends where its last element ends.
        """
        strides = strides if strides is not None else contiguous_strides(shape)
        span = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        at_end = rng is None or rng.random() < 0.6
        lead = rng.choice((0, 0, 1, 5)) if rng is not None and at_end else 0  # storage_offset()
        size = max(PAGE, 1 << ((span + lead) * dtype.itemsize - 1).bit_length())
        if size > 1 << 20:  # no more than it takes
            size = -(-(span + lead) * dtype.itemsize // PAGE) * PAGE
        regions = self.free.setdefault(size, [])
        region = regions.pop() if regions else Region(size)
        region.bytes.fill(POISON)
        offset = PAGE + (size - (span + lead) * dtype.itemsize if at_end else 0)
        elements = torch.frombuffer(region.map, dtype=dtype, count=span + lead, offset=offset)
        tensor = elements.as_strided(shape, strides, lead)
        self.placed.append(Placed(name, region, tensor, elements[lead:]))
        return tensor

    def put(
        self,
        name: str,
        values: Tensor,
        strides: Sequence[int] | None = None,
        rng: random.Random | None = None,
    ) -> Tensor:
        """A guarded tensor of these values, which nothing may change from now on.

        Where strides let elements share memory, they share one of the values.
        """
        tensor = self.empty(name, values.shape, values.dtype, strides, rng)
        placed = self.placed[-1]
        if strides is None:
            tensor.copy_(values)
        else:
            index = torch.arange(placed.elements.numel()).as_strided(values.shape, strides)
            placed.elements[index.flatten()] = values.flatten()
        self.seal(placed)
        return tensor

    def seal(self, placed: Placed) -> None:
        placed.before = placed.region.bytes.copy()

    def written(self) -> list[str]:
        """The sealed tensors whose memory, or memory around them, has changed since."""
        return [p.name for p in self.placed if not p.intact()]

    def reset(self) -> None:
        for placed in self.placed:
            if placed.region.size <= 1 << 20:
                self.free[placed.region.size].append(placed.region)
        self.placed = []

    def written_outside(self, tensor: Tensor, written: Tensor) -> bool:
        """Whether anything but the elements of ``tensor`` where ``written`` is true has changed."""
        placed = next(p for p in self.placed if p.tensor is tensor)
        integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
        elements = placed.elements.view(integers[tensor.element_size()])
        kept = elements.clone()
        elements.as_strided(tensor.shape, tensor.stride(), elements.storage_offset())[written] = -1
        outside = bool((placed.region.bytes != POISON).any())
        elements.copy_(kept)
        return outside


def contiguous_strides(shape: Sequence[int]) -> list[int]:
    strides = [1] * len(shape)
    for d in range(len(shape) - 2, -1, -1):
        strides[d] = strides[d + 1] * shape[d + 1]
    return strides


def strides_of(layout: str, shape: Sequence[int]) -> list[int] | None:
    """Strides of a shape: dense but in another order of dimensions, with gaps, or shared memory."""
    dims = len(shape)
    order = list(range(dims))
    gaps, step = 0, 1
    if layout == "dense":
        return None
    if layout == "swapped" and dims > 1:  # the first two
        order[:2] = 1, 0
    elif layout == "reversed":
        order.reverse()
    elif layout == "sliced":  # x[..., 1:-1] and the like
        gaps = 3
    elif layout == "strided":  # x[..., ::2]
        step = 2
    strides, stride = [0] * dims, step
    for d in reversed(order):
        strides[d] = stride
        stride = stride * shape[d] + gaps
    if layout == "windows":  # each row begins one element after the row before
        strides = [1] * dims
    elif layout.startswith("expanded"):  # over the dimension that the name ends in
        over = int(layout[-1])
        if over < dims - 1:
            stride = 1
            for d in reversed(range(dims)):
                strides[d] = 0 if d == over else stride
                stride *= 1 if d == over else shape[d]
    return strides


LAYOUTS = ["dense", "swapped", "reversed", "sliced", "strided", "windows", "expanded0", "expanded1"]
