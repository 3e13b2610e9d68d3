"""What a step asks of the banks of shared memory, counted over the emulated kernels.

By the rules in on_cpu/banks.h: a warp's load or store takes a wavefront for each 128 bytes of its
lanes, and one more wherever they want another word of the same bank. The counts below follow from
the layouts; a row that loses its padding shows here, not in a result.
"""

from __future__ import annotations

from typing import Any

import emulation
import pytest
import torch
from rows import CONFIGURATIONS, DTYPES, Row

Counts = dict[str, tuple[int, int]]  # by function and access: instructions, wavefronts


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


@pytest.mark.parametrize(
    ("stride", "size", "lanes", "load", "expected"),
    [
        # Eight rows of 16 bytes, as ldmatrix has them: of 128 bytes in the same banks, 16 bytes
        # longer in different ones.
        (128, 16, 8, False, 8),
        (144, 16, 8, False, 1),
        (48, 16, 8, False, 1),
        # A word of each lane, of the same bank, of every second and of each.
        (128, 4, 32, True, 32),
        (8, 4, 32, True, 2),
        (4, 4, 32, True, 1),
        (0, 4, 32, True, 1),
        # Halves of words are one word.
        (2, 2, 32, False, 1),
        # By halves and by quarters of a warp.
        (8, 8, 32, True, 2),
        (16, 16, 32, True, 4),
    ],
)
def test_rules(cuda: Any, stride: int, size: int, lanes: int, load: bool, expected: int) -> None:
    addresses = [1 << 12 | lane * stride for lane in range(lanes)]
    assert cuda.wavefronts(addresses, size, load) == expected


@pytest.mark.parametrize(("together", "expected"), [(1, 4), (2, 2), (4, 2), (8, 2)])
def test_16_bytes_at_four_addresses(cuda: Any, together: int, expected: int) -> None:
    """As measured on an H200: loads that a lane has in common with its neighbour take half."""
    addresses = [1 << 12 | lane // together % 4 * 16 for lane in range(32)]
    assert cuda.wavefronts(addresses, 16, True) == expected
    assert cuda.wavefronts(addresses, 16, False) == 4


def count(cuda: Any, configuration: Row, backward: bool, seq_len: int) -> Counts:
    """Of the first block, for a full group."""
    name, dtype = configuration.kernel, configuration.dtype
    units, rows, _ = map(int, name.split(":")[1].split("x"))
    x, y, z = (torch.zeros(seq_len, rows, units, dtype=dtype) for _ in range(3))
    w, state = torch.zeros(units, units, dtype=dtype), torch.zeros(rows, units, dtype=dtype)
    cuda.count_wavefronts()
    if backward:
        cuda.launch_backward(name, False, [(False, w, x, y, None, z, state)])
    else:
        cuda.launch_forward(name, False, [(False, w, None, None, None, x, y, None, state)])
    return cuda.counted_wavefronts()


def of_vector(c: dict[str, int], tensors: int) -> Counts:
    elements = max(1, c["rows"] * c["thread_units"] // c["lanes"])
    expected = {
        # 16 bytes, the same of two neighbours at least; half a warp reads 128 bytes in a row.
        "product load": (c["rows"] * c["units"] // 4 // c["lanes"], 2),
        # Rows have no padding: what a warp puts of the group's rows is in the same banks.
        "put store": (elements, c["rows"]),
        # The ring has each thread's elements, side by side.
        "take load": (tensors * elements, 1),
        "copy copy": (tensors * elements, 1),
    }
    if c["blocks"] > 1:
        # A quarter of a warp has 128 bytes of as many rows as they reach for, in the same banks.
        expected["send load"] = (1, 4 * min(c["rows"], 32 // c["warp_units"]))
    return expected


def of_tile(c: dict[str, int], tensors: int, narrow: bool) -> Counts:
    size, tiles, stacked = (2 if narrow else 4), c["rows"] // 8, c["warp_units"] // 16
    elements, pieces = 4 * tiles * stacked, c["rows"] * c["warp_units"] // 8
    expected = {
        # Four matrices at a time. Their rows are 16 bytes apart, modulo 128.
        "load matrices": (tiles * c["units"] * size // 64, 4),
        # 32 threads' 16 bytes, side by side.
        "multiply load": (c["stored_fragments"], 4),
        # Four rows, 32 bytes apart modulo 128, of 8 units: 16 or 32 bytes.
        "put store": (elements, 1),
    }
    if not narrow:
        expected |= {"take load": (tensors * elements, 1), "copy copy": (tensors * elements, 1)}
    elif c["slots"]:
        expected |= {
            # Matrices of 8 rows of the ring, 48 or 80 bytes apart.
            "take matrices": (tensors, 2 * tiles * stacked),
            # A quarter of a warp has 16 bytes of each of eight rows, of the ring or of the state.
            "copy copy": (tensors, pieces // 8),
            "store load": (1, pieces // 8),
        }
    if c["blocks"] > 1:  # 32 lanes, also where there are pieces for 16
        expected["send load"] = (1, 4)
    return {name: count for name, count in expected.items() if count[0]}


# Of both types in 16 bits one. The largest clusters are slow to emulate.
COUNTED = [
    pytest.param(
        c,
        id=c.name,
        marks=[pytest.mark.slow] * c.kernel.startswith(("cluster:768", "cluster:1024")),
    )
    for c in CONFIGURATIONS
    if c.dtype != torch.bfloat16
]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("configuration", COUNTED)
def test_a_step(cuda: Any, configuration: Row, backward: bool) -> None:
    c = cuda.sizes(configuration.kernel, DTYPES.index(configuration.dtype))
    tensors = 2 if backward else 1
    on_tensor_cores = configuration.tf32 or configuration.dtype != torch.float32
    expected = (
        of_tile(c, tensors, configuration.dtype != torch.float32)
        if on_tensor_cores
        else of_vector(c, tensors)
    )
    less, more = (count(cuda, configuration, backward, seq_len) for seq_len in (2, 4))
    steps = 2 * c["warps"]
    found = {
        name: tuple((x - y) // steps for x, y in zip(more[name], less[name], strict=True))
        for name in more
    }
    assert found == {name: (n, n * each) for name, (n, each) in expected.items()}
