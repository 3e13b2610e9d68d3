"""The least time that a step can take on a Hopper GPU: an estimate, to hold measured times against.

A group of `rows` batch rows keeps a copy of w_hh on `blocks` multiprocessors, in registers as far
as they reach and in shared memory beyond. A step is then

    STEP + max(multiply-adds, weights read from shared memory) + exchange of h between the blocks

clocks, and the bound is the least over all ways to divide rows and weights. The constants come from
published measurements of H100s and from the data sheet; `make gpu-check` measures most of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from benchmarks.shapes import ELEMENT_BYTES, Shape

CLOCK = 1.83e9  # Hz
MULTIPROCESSORS = 128  # of 132: whole clusters of 8 and groups of 16, 32, 64 and 128
STEP = 170  # clocks: read h, the end of a chain of sums, tanh, write h, a barrier of the block
FMA_RATE = 128  # multiply-adds per clock and multiprocessor, float32 units
MMA_RATE = {2: 1290, 4: 645}  # the same of mma.sync, by bytes of an element; 4 is TF32
MMA_ROWS = 8  # of the batch, at least
REGISTER_BYTES = 160 << 10  # for weights, of a multiprocessor
SHARED_BYTES = 176 << 10  # the same, shared memory
SHARED_RATE = 128  # bytes per clock
CLUSTER_HOP, CLUSTER_RATE = 250, 18  # clocks; bytes per clock that come to a multiprocessor
L2_HOP, L2_RATE = 915, 23.5
CLUSTER_BLOCKS = (2, 4, 8)
L2_BLOCKS = (16, 32, 64, 128)
COLUMN_SPLITS = (1, 4, 8)  # blocks of a cluster that share a row of w_hh, where h goes through L2
ROWS = (1, 2, 4, 8, 16, 24, 32, 64, 128)


def _exchange(rows: int, size: int, element: int, blocks: int) -> Iterator[float]:
    """Clocks to give every block the part of h that it needs, by each way there is."""
    if blocks == 1:
        yield 0.0
    elif blocks in CLUSTER_BLOCKS:
        yield CLUSTER_HOP + rows * size * element * (1 - 1 / blocks) / CLUSTER_RATE
    else:
        for split in COLUMN_SPLITS:
            through_l2 = rows * size * element / split * (1 - split / blocks)
            sums = rows * size * split / blocks * 4 * (1 - 1 / split)  # float32, in the cluster
            hop = CLUSTER_HOP if split > 1 else 0
            yield L2_HOP + through_l2 / L2_RATE + hop + sums / CLUSTER_RATE


def step_seconds(shape: Shape, tf32: bool) -> float:
    """Of one layer, both directions at once where there are two."""
    size, element = shape.hidden_size, ELEMENT_BYTES[shape.dtype]
    times = []
    for blocks, rows in itertools.product((1, *CLUSTER_BLOCKS, *L2_BLOCKS), ROWS):
        weights = size * size * element / blocks
        in_shared = max(0.0, weights - REGISTER_BYTES)
        if in_shared > SHARED_BYTES:
            continue
        multiply_adds = rows * size * size / blocks
        rates = [FMA_RATE] if element == 4 else []
        if rows >= MMA_ROWS and element in MMA_RATE and (element == 2 or tf32):
            rates.append(MMA_RATE[element])
        if not rates:
            continue
        clocks = STEP + max(multiply_adds / max(rates), in_shared / SHARED_RATE)
        clocks += min(_exchange(rows, size, element, blocks))
        groups = math.ceil(shape.batch / rows) * shape.num_directions
        times.append(clocks * math.ceil(groups * blocks / MULTIPROCESSORS))
    if not times:
        raise ValueError(f"w_hh of {shape} does not fit on the GPU")
    return min(times) / CLOCK


def seconds(shape: Shape, tf32: bool, training: bool) -> float:
    """Of all steps and layers; the way back has as many steps. Ragged rows: of the longest."""
    longest = max(shape.lengths or [shape.seq_len])
    steps = longest * shape.num_layers * (2 if training else 1)
    return steps * step_seconds(shape, tf32)
