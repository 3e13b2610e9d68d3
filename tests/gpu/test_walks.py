"""How the CUDA kernels go through the steps of rows that all have every step, on the CPU.

Each launch is compared with what follows, in float64, from what it stored of the step before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import emulation
import pytest
import torch
from rows import CONFIGURATIONS, Row
from torch import Tensor

# One of each kind. Of steps on their way (configurations.h, slots()) the last has none, the others
# 2, 4 or 8.
NAMES = [
    ("vector:64x1x1", torch.float32),
    ("vector:64x4x1", torch.float32),
    ("tile:64x8x1", torch.float32),
    ("tile:128x16x1", torch.float16),
    ("tile:64x8x1", torch.bfloat16),
    ("tile:64x16x1", torch.bfloat16),
    ("tile:256x8x1", torch.float16),
    ("cluster:256x4x2", torch.float32),
    ("cluster:384x8x4", torch.float16),
    ("cluster:512x16x4", torch.bfloat16),
    ("cluster:1024x16x8", torch.float16),
]
CHOSEN = [c for c in CONFIGURATIONS if (c.kernel, c.dtype) in NAMES]
WITHOUT_RING = "cluster:1024x16x8"


@dataclass(frozen=True)
class Walk:
    """A launch of both directions, its rows and units counted from those of a group."""

    seq_len: int
    more_rows: int = 1  # than a group has; None: one row in all
    missing: int = 8  # units
    relu: bool = False
    without: str = ""  # tensors that are not given
    layout: str = "dense"
    off: dict[str, int] = field(default_factory=dict, hash=False)  # elements from 16 bytes
    in_place: bool = False  # igates in output, grad_output in grad_pre, as the operators have it

    def __str__(self) -> str:
        rows = "1" if self.more_rows is None else f"group+{self.more_rows}"
        flags = [
            "relu" if self.relu else "",
            *(f"no_{name}" for name in self.without.split()),
            self.layout if self.layout != "dense" else "",
            *(f"{name}+{n}" for name, n in self.off.items()),
            "in_place" if self.in_place else "",
        ]
        return "-".join([f"T{self.seq_len}-B{rows}-H-{self.missing}", *filter(None, flags)])

    def strides(self, batch: int, features: int) -> tuple[int, int]:
        """Of steps and of rows."""
        row = features + {"apart": 8, "odd_rows": 1}.get(self.layout, 0)
        if self.layout == "batch_first":
            return row, self.seq_len * row
        return batch * row + {"apart": 16, "odd_steps": 1}.get(self.layout, 0), row

    def is_in_pieces(self, element_bytes: int, hidden_size: int, names: str) -> bool:
        """Whether all that is moved begins at a multiple of 16 bytes."""
        if self.layout.startswith("odd"):
            return False
        starts = [n for name, n in self.off.items() if name in names.split()]
        return not any(n * element_bytes % 16 for n in [*starts, hidden_size])


WALKS = [
    # As long as the ring, shorter and longer.
    Walk(1, None, 0, without="copy grad_hn"),
    Walk(1, 0, in_place=True, without="hx grad_hx"),
    Walk(2, 0, relu=True, without="hx grad_hx", layout="batch_first"),
    Walk(3, 1, 0, without="grad_output b_ih b_hh", layout="apart"),
    Walk(7, 1, in_place=True, without="copy grad_hx"),
    Walk(8, None, relu=True, without="grad_output grad_hn copy"),
    Walk(9, 1, layout="batch_first", without="hx"),
    Walk(17, 1, in_place=True),
    Walk(17, None, 0, relu=True, without="grad_hx copy grad_hn"),
    # What cannot be moved 16 bytes at a time in 16 bits.
    Walk(1, 0, 3, without="grad_hx"),
    Walk(9, 1, 3, in_place=True, without="copy"),
    Walk(3, None, 1, relu=True, without="hx grad_output"),
    Walk(3, 1, 0, layout="odd_rows"),
    Walk(3, 1, 0, layout="odd_steps", without="copy grad_hx"),
    *(
        Walk(2, 1, off={name: n}, without="copy" if name != "copy" and n == 4 else "")
        for name in ("igates", "output", "copy", "grad_output", "grad_pre")
        for n in (1, 4)
    ),
]


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


class Launch:
    """The tensors of a launch. Around each is NaN, and in those that are to be written."""

    def __init__(self, configuration: Row, walk: Walk) -> None:
        torch.manual_seed(0)
        self.configuration, self.walk = configuration, walk
        units, rows, _ = map(int, configuration.kernel.split(":")[1].split("x"))
        self.batch = 1 if walk.more_rows is None else rows + walk.more_rows
        self.hidden_size = units - walk.missing
        self.around: list[tuple[str, Tensor, Tensor]] = []  # the memory, and how much is filled

    def has(self, name: str) -> bool:
        return name not in self.walk.without.split()

    def state(self, *sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(2, *sizes) * scale).to(self.configuration.dtype)

    def sequence(self, name: str, values: Tensor | None = None) -> Tensor:
        """[T, B, 2 * H], NaN where there are no values."""
        walk, features = self.walk, 2 * self.hidden_size
        sizes = (walk.seq_len, self.batch, features)
        strides = (*walk.strides(self.batch, features), 1)
        start = 8 + walk.off.get(name, 0)
        last = sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True))
        memory = torch.full((start + last + 1 + 64,), torch.nan, dtype=self.configuration.dtype)
        assert memory.data_ptr() % 16 == 0
        x = memory.as_strided(sizes, strides, start)
        if values is not None:
            x.copy_(values)
        self.around.append((name, memory, x))
        return x

    def of(self, x: Tensor | None, direction: int) -> Tensor | None:
        if x is None:
            return None
        return x[..., direction * self.hidden_size :][..., : self.hidden_size]

    def random(self) -> Tensor:
        return torch.randn(self.walk.seq_len, self.batch, 2 * self.hidden_size)

    def rounded(self, x: Tensor) -> Tensor:
        """A factor of a product as the kernel rounds it, in float64."""
        if self.configuration.tf32:
            x = ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)
        return x.double()

    def compare(self, name: str, found: Tensor, right: Tensor) -> None:
        """As csrc/cuda/check.cu allows: a rounding, and what the sum of a product may err."""
        allowed = {
            torch.float32: 1e-4 if self.configuration.tf32 else 1e-5,
            torch.float16: 1e-4 + 2**-11,
            torch.bfloat16: 1e-4 + 2**-8,
        }[found.dtype]
        off = ((found.double() - right).abs() / right.abs().clamp(min=1)).nan_to_num(nan=torch.inf)
        assert off.max() <= allowed, f"{name}, at {(off > allowed).nonzero()[0].tolist()}"

    def assert_nothing_around(self) -> None:
        for name, memory, x in self.around:
            assert (~memory.isnan()).sum() == x.numel(), f"written beside {name}"

    def assert_way(self, copies: int, names: str) -> None:
        """Where it can, it goes by copies in the background."""
        narrow = self.configuration.dtype != torch.float32
        size = 2 if narrow else 4
        in_pieces = self.walk.is_in_pieces(size, self.hidden_size, names)
        whole = self.configuration.kernel != WITHOUT_RING and (in_pieces or not narrow)
        assert (copies > 0) == whole


def in_time(x: Tensor, direction: int) -> Tensor:
    return x.flip(0) if direction else x


def launches(names: str) -> pytest.MarkDecorator:
    """Every walk of every configuration, but of tensors off 16 bytes only where a name is theirs.

    Where nothing is on its way, only a few. The largest clusters are slow to emulate.
    """
    large = ("cluster:384", "cluster:512", "cluster:1024")
    slow = {c: [pytest.mark.slow] * c.kernel.startswith(large) for c in CHOSEN}
    found = [
        pytest.param(c, w, id=f"{c.name}-{w}", marks=slow[c])
        for c in CHOSEN
        for w in WALKS
        if set(w.off) <= set(names.split())
        and (c.kernel != WITHOUT_RING or (w.seq_len <= 3 and not w.off))
    ]
    return pytest.mark.parametrize(("configuration", "walk"), found)


@launches("igates output copy")
def test_forward(cuda: Any, configuration: Row, walk: Walk) -> None:
    launch = Launch(configuration, walk)
    B, H = launch.batch, launch.hidden_size
    w_hh = launch.state(H, H, scale=H**-0.5)
    b_ih, b_hh, hx = (
        launch.state(*sizes, scale=scale) if launch.has(name) else None
        for name, sizes, scale in (("b_ih", (H,), 0.3), ("b_hh", (H,), 0.3), ("hx", (B, H), 1.0))
    )
    gates = launch.random().to(configuration.dtype)
    output = launch.sequence("output", gates if walk.in_place else None)
    igates = output if walk.in_place else launch.sequence("igates", gates)
    copy = launch.sequence("copy") if launch.has("copy") else None
    hn = torch.full((2, B, H), torch.nan, dtype=configuration.dtype)

    def own(x: Tensor | None, d: int) -> Tensor | None:
        return None if x is None else x[d]

    directions = [
        (
            d == 1,
            *(own(x, d) for x in (w_hh, b_ih, b_hh, hx)),
            *(launch.of(x, d) for x in (igates, output, copy)),
            hn[d],
        )
        for d in range(2)
    ]
    copies = cuda.launch_forward(configuration.kernel, walk.relu, directions)

    for d in range(2):
        h = in_time(launch.of(output, d), d)
        start = torch.zeros_like(hn[d]) if hx is None else hx[d]
        previous = torch.cat([start[None], h[:-1]])
        right = in_time(launch.of(gates, d), d).double()
        right = right + launch.rounded(previous) @ launch.rounded(w_hh[d]).T
        right = sum((b[d].double() for b in (b_ih, b_hh) if b is not None), right)
        launch.compare("output", h, right.relu() if walk.relu else right.tanh())
        assert torch.equal(hn[d], h[-1])
    assert copy is None or torch.equal(copy, output)
    launch.assert_nothing_around()
    launch.assert_way(copies, "igates output copy" if launch.has("copy") else "igates output")


@launches("output grad_output grad_pre")
def test_backward(cuda: Any, configuration: Row, walk: Walk) -> None:
    launch = Launch(configuration, walk)
    B, H = launch.batch, launch.hidden_size
    w_hh = launch.state(H, H, scale=H**-0.5)
    grad_hn = launch.state(B, H) if launch.has("grad_hn") else None
    output = launch.sequence(
        "output", launch.random().relu() if walk.relu else launch.random().tanh()
    )
    grad = launch.random().to(configuration.dtype) if launch.has("grad_output") else None
    in_place = walk.in_place and grad is not None
    grad_pre = launch.sequence("grad_pre", grad if in_place else None)
    grad_output = grad_pre if in_place else None
    if grad is not None and not in_place:
        grad_output = launch.sequence("grad_output", grad)
    grad_hx = None
    if launch.has("grad_hx"):
        grad_hx = torch.full((2, B, H), torch.nan, dtype=configuration.dtype)
    directions = [
        (
            d == 1,
            w_hh[d],
            launch.of(output, d),
            launch.of(grad_output, d),
            None if grad_hn is None else grad_hn[d],
            launch.of(grad_pre, d),
            None if grad_hx is None else grad_hx[d],
        )
        for d in range(2)
    ]
    copies = cuda.launch_backward(configuration.kernel, walk.relu, directions)

    for d in range(2):
        found = in_time(launch.of(grad_pre, d), d)
        h = in_time(launch.of(output, d), d).double()
        comes = launch.rounded(found) @ launch.rounded(w_hh[d])  # to the step before
        grad_h = torch.cat([comes[1:], torch.zeros(1, B, H, dtype=torch.float64)])
        if grad is not None:
            grad_h = grad_h + in_time(launch.of(grad, d), d)
        if grad_hn is not None:
            grad_h[-1] += grad_hn[d]
        slope = (h > 0).double() if walk.relu else 1 - h * h
        launch.compare("grad_pre", found, grad_h * slope)
        if grad_hx is not None:
            launch.compare("grad_hx", grad_hx[d], comes[0])
    launch.assert_nothing_around()
    names = "output grad_pre" + (" grad_output" if grad_output is not None else "")
    launch.assert_way(copies, names)
