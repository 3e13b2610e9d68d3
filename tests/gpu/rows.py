"""What runs on a GPU: the rows of csrc/cuda/configurations.h, and cases for each kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from cases import CASES, Case

from fastrnn import _C

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]  # as csrc/rnn.h counts them


@dataclass(frozen=True)
class Row:
    """A case by a kernel, or by one configuration of it, "kernel:UNITSxROWSxBLOCKS"."""

    case: Case
    kernel: str
    dtype: torch.dtype
    tf32: bool = False  # of float32, products may round their factors to 11 bits

    @property
    def name(self) -> str:
        dtype = "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")
        return f"{self.kernel}-{dtype}"

    def __str__(self) -> str:
        return f"{self.name}-{self.case}"


def of_configuration(name: str, dtype: torch.dtype, tf32: bool) -> Row:
    """Two groups of rows in each direction, the second not full, and units just missing."""
    units, rows, _ = map(int, name.split(":")[1].split("x"))
    return Row(Case(5, rows + 1, 4, units - 3, bidirectional=True), name, dtype, tf32)


CONFIGURATIONS = [of_configuration(*row) for row in _C.cuda_configurations()]

# What each kernel computes in, and the hidden units that it takes of each.
UNITS: dict[tuple[str, torch.dtype, bool], int] = {
    ("step", dtype, tf32): 2**31
    for dtype in DTYPES
    for tf32 in (False, True)
    if dtype == torch.float32 or not tf32
}
for name, dtype, tf32 in _C.cuda_configurations():
    kernel, _, sizes = name.partition(":")
    units = int(sizes.partition("x")[0])
    # Where TF32 is allowed, those that compute in float32 have the input's product in it.
    for allowed in {tf32, dtype == torch.float32}:
        UNITS[kernel, dtype, allowed] = max(units, UNITS.get((kernel, dtype, allowed), 0))


def for_every_kernel(cases: Sequence[Case]) -> list[Row]:
    """Each case by each kernel that takes it, in all that the kernel computes in."""
    return [
        Row(case, *of) for of, units in UNITS.items() for case in cases if case.hidden_size <= units
    ]


# Those of test_on_gpu.py: of other shapes than the tests' table, long, wide and with full groups.
ON_GPU = for_every_kernel(
    [
        Case(40, 5, 3, 64),
        Case(40, 70, 30, 128, bidirectional=True, num_layers=2),
        Case(33, 9, 8, 192, nonlinearity="relu"),
        Case(33, 17, 8, 250, batch_first=True),
        Case(9, 3, 8, 700),
        *(case for case in CASES if not case.lengths),
    ]
)
