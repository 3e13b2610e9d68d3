"""The shapes that are measured, how much each of them computes, and the goals of each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

ELEMENT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Goal:
    """Ratios of nn.RNN's time to ours: the least to accept, and the aim."""

    at_once: float
    stretch: float | None = None


@dataclass(frozen=True)
class Shape:
    """A row. Goals are those of one thread on a CPU with AVX-512."""

    kind: str  # tiny, small, medium, large, long, few-rows, variant, example, sweep-hidden, ...
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    nonlinearity: str = "tanh"
    bidirectional: bool = False
    ragged: str = ""  # rows of unequal length: "packed" as a PackedSequence, "lengths" as lengths=
    dtype: str = "float32"
    inference: Goal = Goal(0.95, 1.1)
    training: Goal = Goal(0.95, 1.1)
    quick: bool = False
    program: str = ""  # of kind example: whose step or call it is

    def __str__(self) -> str:
        sizes = f"B{self.batch}-T{self.seq_len}-I{self.input_size}-H{self.hidden_size}"
        options = [
            sizes,
            f"L{self.num_layers}" if self.num_layers > 1 else "",
            self.nonlinearity if self.nonlinearity != "tanh" else "",
            "bidirectional" if self.bidirectional else "",
            self.ragged,
            self.dtype if self.dtype != "float32" else "",
        ]
        return "-".join(filter(None, [self.program, *options]))

    @property
    def num_directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def lengths(self) -> list[int] | None:
        """The length of each row, uniform in 1 .. T, or None where all are T."""
        if not self.ragged:
            return None
        draw = random.Random(0)
        return [draw.randint(1, self.seq_len) for _ in range(self.batch)]

    @property
    def steps(self) -> int:
        """Steps of all rows."""
        return sum(self.lengths or [self.batch * self.seq_len])

    @property
    def num_weights(self) -> int:
        """Elements of the weight matrices."""
        features = self.num_directions * self.hidden_size
        inputs = self.input_size + (self.num_layers - 1) * features
        return features * (inputs + self.num_layers * self.hidden_size)

    def gflop(self, training: bool) -> float:
        """2 * steps * H * (I + H) / 1e9 of all layers; three times that in training."""
        return 2e-9 * self.steps * self.num_weights * (3 if training else 1)

    def weight_bytes(self, training: bool) -> int:
        """The weights, read once; in training read twice, and their gradients written."""
        return self.num_weights * ELEMENT_BYTES[self.dtype] * (3 if training else 1)

    def goal(self, training: bool, threads: int, capability: str) -> Goal:
        """The goal on this many threads, with torch's name for the instruction set."""
        own = self.training if training else self.inference
        if threads > 1 or self.kind.startswith("sweep"):
            return NEVER_BELOW
        if capability == "AVX2":
            return _avx2_goal(self, own, training)
        return own if capability == "AVX512" else NEVER_BELOW


NEVER_BELOW = Goal(0.95, 1.1)  # every shape, on every machine
SCALING_GOALS = {"medium": Goal(1.7, 1.85), "large": Goal(1.7, 1.85)}  # two threads over one
SGEMM_GOALS = {"inference": Goal(0.85, 0.95), "training": Goal(0.82, 0.93)}  # share, kind large
PEER_GOAL = Goal(1.0, 1.2)  # in every cell
PEER_MEAN_GOALS = {"inference": Goal(1.5, 2.0), "training": Goal(1.6, 2.0)}  # geometric mean


def _avx2_goal(shape: Shape, own: Goal, training: bool) -> Goal:
    match shape.kind:
        case "tiny":
            return Goal(0.95 * own.at_once)
        case "small":
            return Goal(3.3)
        case "medium":
            return Goal(1.5, 1.7)
        case "large":
            return Goal(1.2, 1.35)
        case "long" if shape.hidden_size == 64:
            return Goal(28 if training else 14)
        case "long":
            return Goal(12 if training else 5)
        case _:
            return NEVER_BELOW


def _main() -> Iterator[Shape]:
    yield Shape("tiny", 1, 10, 1, 32, 1, inference=Goal(9.5, 12), training=Goal(7, 8), quick=True)
    yield Shape("tiny", 1, 10, 2, 32, 2, inference=Goal(13.5, 19), training=Goal(9.5, 11.3))
    yield Shape("small", 32, 4, 1, 64, inference=Goal(5, 7), training=Goal(3.5, 4.6))
    yield Shape("small", 32, 20, 1, 64, inference=Goal(6, 8.5), training=Goal(5, 7), quick=True)
    yield Shape("small", 8, 28, 28, 64, inference=Goal(8.5, 12), training=Goal(9, 12))
    medium = {"inference": Goal(3.0, 3.5), "training": Goal(2.5, 3.0)}
    yield Shape("medium", 64, 28, 28, 128, **medium, quick=True)
    yield Shape("medium", 128, 28, 28, 256, **medium)
    yield Shape("medium", 32, 35, 28, 256, **medium)
    yield Shape("medium", 20, 35, 200, 200, 2, **medium)
    large = {"inference": Goal(2.3, 2.6), "training": Goal(2.2, 2.5)}
    yield Shape("large", 32, 128, 256, 256, **large, quick=True)
    yield Shape("large", 64, 50, 512, 512, **large)
    yield Shape("large", 64, 100, 1024, 1024, **large)
    yield Shape("large", 16, 50, 1760, 1760, **large)
    yield Shape("long", 1, 512, 64, 64, inference=Goal(30, 45), training=Goal(50, 75), quick=True)
    yield Shape("long", 1, 2000, 128, 128, inference=Goal(10, 16), training=Goal(19, 28))
    few = {"inference": Goal(1.0, 1.5), "training": Goal(1.0, 2.0)}
    yield Shape("few-rows", 1, 1, 1024, 1024, **few, quick=True)
    yield Shape("few-rows", 1, 2, 1024, 1024, **few)
    yield Shape("few-rows", 1, 10, 1024, 1024, **few)
    yield Shape("few-rows", 1, 10, 512, 512, **few)
    yield Shape("few-rows", 32, 1, 512, 512, **few)
    yield Shape("few-rows", 8, 1, 256, 256, **few)
    yield Shape("few-rows", 1, 20, 256, 256, **few)
    yield Shape("few-rows", 1, 1, 128, 128, **few)


def _variants() -> Iterator[Shape]:
    tiny, small, medium = (
        Shape("variant", *s) for s in [(1, 10, 1, 32), (32, 20, 1, 64), (64, 28, 28, 128)]
    )
    large, long = (Shape("variant", *s) for s in [(32, 128, 256, 256), (1, 512, 64, 64)])
    few = Shape("variant", 1, 1, 1024, 1024)
    for shape in (tiny, small, medium, large, long, few):
        yield replace(shape, nonlinearity="relu")
    for shape in (tiny, small, medium, large, long, few):
        yield replace(shape, bidirectional=True)
    for shape, hidden_size in [
        (tiny, 33),
        (small, 63),
        (medium, 129),
        (large, 257),
        (long, 65),
        (few, 1023),
    ]:
        yield replace(shape, hidden_size=hidden_size)
    for batch in range(1, 8):
        yield replace(medium, batch=batch)
    for dtype in ("float64", "bfloat16"):
        for shape in (tiny, small, medium, large, long, few, Shape("variant", 64, 50, 512, 512)):
            yield replace(shape, dtype=dtype)
    ragged = {"inference": Goal(3, 5), "training": Goal(3, 5)}
    for kind in ("packed", "lengths"):
        yield Shape("variant", 64, 100, 128, 128, ragged=kind, **ragged, quick=kind == "packed")
        yield Shape("variant", 32, 50, 64, 256, ragged=kind, **ragged)


def _examples() -> Iterator[Shape]:
    """The RNNs of the programs in `examples/`: of a training step, and of prediction."""

    def row(program: str, *sizes: int, **options: Any) -> Shape:
        return Shape("example", *sizes, program=program, **options)

    yield row("sin_to_cos", 1, 10, 1, 32)
    yield row("sin_to_cos", 1, 10, 2, 32, 2)
    yield row("noisy_sine", 32, 4, 1, 32)
    yield row("noisy_sine", 996, 4, 1, 32)
    yield row("sine_window", 32, 20, 1, 64)
    yield row("sine_window", 200, 20, 1, 64)
    yield row("mnist_rows", 8, 28, 28, 64)
    yield row("mnist_rows", 1000, 28, 28, 64)
    yield row("vanishing_gradients", 32, 64, 64, 64)
    yield row("char_lm", 32, 35, 65, 256)
    yield row("char_lm", 1, 1, 65, 256)
    yield row("sentiment", 32, 42, 100, 64, bidirectional=True, ragged="lengths")
    yield row("sentiment", 500, 59, 100, 64, bidirectional=True, ragged="lengths")
    yield row("dna_tagging", 32, 240, 4, 128, 2, nonlinearity="relu", bidirectional=True)
    yield row("dna_tagging", 100, 240, 4, 128, 2, nonlinearity="relu", bidirectional=True)
    yield row("pos_tagging", 16, 34, 192, 128, bidirectional=True, ragged="lengths")
    yield row("pos_tagging", 100, 45, 192, 128, bidirectional=True, ragged="lengths")
    yield row("pos_tagging", 142, 16, 32, 64, bidirectional=True, ragged="lengths")
    yield row("translation", 64, 14, 256, 256, bidirectional=True, ragged="lengths")
    yield row("translation", 64, 14, 256, 512)
    yield row("translation", 256, 1, 256, 512)


def _sweep(axis: str) -> Iterator[Shape]:
    kind = f"sweep-{axis}"
    match axis:
        case "hidden":
            for hidden_size in (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024):
                for batch in (1, 32):
                    yield Shape(kind, batch, 50, hidden_size, hidden_size)
        case "length":
            for seq_len in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024):
                for batch in (1, 32):
                    yield Shape(kind, batch, seq_len, 28, 128)
        case "batch":
            for batch in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256):
                yield Shape(kind, batch, 28, 28, 128)


SHAPES = [*_main(), *_variants(), *_examples()]
SWEEPS = {axis: list(_sweep(axis)) for axis in ("hidden", "length", "batch")}


def select(only: list[str], quick: bool = False, sweeps: list[str] | None = None) -> list[Shape]:
    """Rows by class, id or part of an id; every row if `only` is empty."""
    shapes = SHAPES if sweeps is None else [s for axis in sweeps for s in SWEEPS[axis]]
    names = {name for shape in shapes for name in (shape.kind, str(shape))}

    def named(shape: Shape, text: str) -> bool:
        return text in (shape.kind, str(shape)) if text in names else text in str(shape)

    return [
        shape
        for shape in shapes
        if (shape.quick or not quick) and (not only or any(named(shape, text) for text in only))
    ]
