"""The rows of the GPU benchmarks and their goals. Imports no torch: a plan costs nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from benchmarks.shapes import NEVER_BELOW, SHAPES, Goal, Shape

MODES = ("inference", "training")


@dataclass(frozen=True)
class Setting:
    """A dtype, and whether float32 products may round their factors to TF32."""

    dtype: str
    tf32: bool = False

    def __str__(self) -> str:
        return f"{self.dtype} TF32" if self.tf32 else self.dtype


TF32, FLOAT32 = Setting("float32", True), Setting("float32")
FLOAT16, BFLOAT16 = Setting("float16"), Setting("bfloat16")
SETTINGS = (TF32, FLOAT32, FLOAT16, BFLOAT16)

MUST_MEAN = 2.0  # geometric mean over all rows
STEPS = 512

# B, H with I = H and T = STEPS; the first of a class is its representative.
SQUARE = {
    "tiny": [(32, 64), (64, 128), (1, 64), (8, 64), (1, 128), (64, 32)],
    "small": [(32, 256), (64, 256), (16, 192), (32, 160), (1, 256)],
    "cliff": [(64, 384), (16, 264), (32, 320), (4, 288), (1, 384)],
    "medium": [(64, 512), (16, 512), (32, 640), (1, 512)],
    "large": [(64, 1024), (128, 1024), (16, 768), (1, 1024)],
    "wide": [(256, 256), (1024, 128), (512, 64), (1024, 256)],
}


# What a first visit measures: of each class what decides most, and cuDNN's best kernels.
TRAIN, INFER = ("training",), ("inference",)
FIRST: dict[str, dict[Setting, tuple[str, ...]]] = {
    "tiny B32-T512-I64-H64": {TF32: MODES, FLOAT16: MODES},
    "tiny B1-T512-I64-H64": {TF32: TRAIN},
    "small B32-T512-I256-H256": {TF32: MODES},
    "cliff B64-T512-I384-H384": {TF32: MODES, FLOAT16: MODES},
    "medium B64-T512-I512-H512": {TF32: MODES, FLOAT32: TRAIN, FLOAT16: MODES, BFLOAT16: MODES},
    "large B64-T512-I1024-H1024": {TF32: MODES, FLOAT16: MODES},
    "large B128-T512-I1024-H1024": {BFLOAT16: MODES},
    "packed B64-T512-I512-H512-packed": {TF32: MODES, BFLOAT16: TRAIN},
    "DeepBench B32-T50-I2048-H2048-relu": {
        TF32: MODES, FLOAT32: TRAIN, FLOAT16: INFER, BFLOAT16: TRAIN,
    },
    "wide B256-T512-I256-H256": {TF32: TRAIN, FLOAT16: INFER},
    "stack B32-T512-I128-H128-L4": {TF32: TRAIN},
    "stack B32-T512-I256-H256-bidirectional": {TF32: TRAIN},
    "short B64-T28-I28-H128": {TF32: TRAIN},
    "short B32-T1-I512-H512": {TF32: INFER},
    "example char_lm-B32-T35-I65-H256": {TF32: TRAIN},
    "example sin_to_cos-B1-T10-I1-H32": {TF32: TRAIN},
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What is timed at once: nn.RNN and fastrnn, eager and captured in a CUDA graph."""

    shape: Shape  # of the setting's dtype
    setting: Setting
    mode: str

    def __str__(self) -> str:
        sizes = replace(self.shape, dtype="float32")
        return f"{self.shape.kind} {sizes} {self.setting} {self.mode}"

    @property
    def goal(self) -> Goal:
        return goal(self.shape, self.setting, self.mode == "training")


def _shapes() -> Iterator[Shape]:
    for kind, sizes in SQUARE.items():
        for batch, hidden_size in sizes:
            yield Shape(kind, batch, STEPS, hidden_size, hidden_size)
    for batch, size in [(64, 512), (64, 128), (32, 256), (64, 1024)]:
        yield Shape("packed", batch, STEPS, size, size, ragged="packed")
    deepbench = [(b, 50, h) for b in (32, 16, 64, 128) for h in (2048, 1760, 2560)]
    for batch, steps, size in [*deepbench, (1, 672, 32), (1, 96, 64)]:
        yield Shape("DeepBench", batch, steps, size, size, nonlinearity="relu")
    yield Shape("stack", 32, STEPS, 128, 128, 4)
    yield Shape("stack", 32, STEPS, 256, 256, bidirectional=True)
    yield Shape("stack", 64, STEPS, 512, 512, 4)
    yield Shape("stack", 32, STEPS, 128, 128, 2, bidirectional=True)
    yield Shape("short", 64, 28, 28, 128)
    yield Shape("short", 32, 20, 1, 64)
    yield Shape("short", 1, 10, 1, 32)
    yield Shape("short", 64, 8, 512, 512)
    yield Shape("short", 32, 1, 512, 512)
    yield Shape("short", 64, 32, 1024, 1024)
    # Packed where the program has rows of different lengths: that is what nn.RNN can do.
    for shape in (s for s in SHAPES if s.kind == "example"):
        yield replace(shape, ragged="packed" if shape.ragged else "")


def has_static_kernel(shape: Shape, setting: Setting) -> bool:
    """Whether cuDNN has a kernel for it that stays on the GPU for all steps: its best class.

    The conditions are those of use_persist_device_heuristics in PyTorch's
    aten/src/ATen/native/cudnn/RNN.cpp, of a large GPU.
    """
    aligned = shape.hidden_size % 128 == shape.input_size % 128 == shape.batch % 8 == 0
    small = shape.hidden_size <= 1024 and shape.batch <= 128
    single = shape.num_layers == 1 and not shape.bidirectional and not shape.ragged
    wide = shape.batch >= 96 and shape.hidden_size >= 896
    return setting == FLOAT16 and aligned and small and single and not wide


def goal(shape: Shape, setting: Setting, training: bool) -> Goal:
    """The least ratio to nn.RNN, and the aim. A stack has the goal of one of its layers."""

    def of(inference: tuple[float, float], train: tuple[float, float]) -> Goal:
        return Goal(*(train if training else inference))

    size = shape.hidden_size
    if shape.kind == "packed":
        return of((4, 15), (4, 12))
    if shape.kind == "DeepBench" and size >= 1024:
        if setting == FLOAT32:
            return Goal(1.0, 1.2)
        return of((1.1, 2), (1.1, 1.7)) if setting == TF32 else of((1.3, 3), (1.2, 2))
    if shape.seq_len <= 32:
        return Goal(1.0, 2.0)
    if shape.ragged:
        return NEVER_BELOW
    if setting == BFLOAT16:
        return of((5, 20), (5, 15)) if size <= 512 else Goal(3, 5)
    if shape.batch >= 256:
        return of((2, 5), (2, 4)) if size <= 256 else NEVER_BELOW
    if size > 384 and has_static_kernel(shape, setting):
        return of((1.0, 1.5), (1.2, 1.6))
    if size <= 128:
        return of((1.3, 2), (1.5, 2.5)) if setting == FLOAT16 else Goal(1.5, 2.5)
    if size <= 256:
        return Goal(2, 4)
    if size <= 384:
        return Goal(4, 8)
    if setting == TF32:
        return Goal(2.5, 5) if size <= 640 else Goal(1.5, 3)
    return Goal(1.0, 1.2) if size >= 1024 else NEVER_BELOW


def _toy(shape: Shape) -> Shape:
    """The same at sizes that any machine computes at once, to try the program itself."""
    batch, seq_len = min(shape.batch, 3), min(shape.seq_len, 6)
    sizes = {name: min(getattr(shape, name), 16) for name in ("input_size", "hidden_size")}
    return replace(shape, batch=batch, seq_len=seq_len, **sizes)


def plan(quick: bool = False, only: Sequence[str] = (), toy: bool = False) -> list[Row]:
    """The rows, most telling first: whatever time cuts off at the end is least missed.

    The first shape of each class comes first, then the second of each. `quick` keeps FIRST; `only`
    keeps classes, or ids that contain a text.
    """
    kinds: dict[str, list[Shape]] = {}
    for shape in _shapes():
        kinds.setdefault(shape.kind, []).append(shape)
    turns: list[Any] = [s for turn in zip_longest(*kinds.values()) for s in turn if s]

    def wanted(row: Row) -> bool:
        named = any(t == row.shape.kind if t in kinds else t in str(row) for t in only)
        of_shape = FIRST.get(str(row).removesuffix(f" {row.setting} {row.mode}"), {})
        first = row.mode in of_shape.get(row.setting, ())
        return (first or not quick) and (named or not only)

    rows = [
        Row(replace(shape, dtype=setting.dtype), setting, mode)
        for shape in turns
        for setting in SETTINGS
        for mode in MODES
    ]
    chosen = [replace(r, shape=_toy(r.shape)) if toy else r for r in rows if wanted(r)]
    return list({str(row): row for row in chosen}.values())
