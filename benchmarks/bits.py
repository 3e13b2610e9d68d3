"""Hashes of everything that calls on the CPU return, to show that a change keeps every bit.

    python -m benchmarks.bits --out before.json
    python -m benchmarks.bits --out after.json --compare before.json

Every instruction set that torch's ATEN_CPU_CAPABILITY can select, each dtype, one and two threads,
inference and training. The sizes lie on both sides of every threshold in csrc/cpu/choose.cpp. The
hashes are those of one processor and one torch; with --compare, what differs is listed, and the
exit status says whether anything does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

CAPABILITIES = ("default", "avx2", "best")
THREADS = (1, 2)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    nonlinearity: str = "tanh"
    layout: str = "padded"  # or packed, lengths, reset
    hx: bool = True
    bias: bool = True
    dropout: float = 0.0

    def __str__(self) -> str:
        flags = [f"L{self.num_layers}", self.nonlinearity, self.layout]
        flags += ["bidirectional"] * self.bidirectional + ["nohx"] * (not self.hx)
        flags += ["nobias"] * (not self.bias) + ["dropout"] * (self.dropout > 0)
        sizes = f"T{self.seq_len}-B{self.batch}-I{self.input_size}-H{self.hidden_size}"
        return "-".join([sizes, *flags])


def cases() -> Iterator[Case]:
    # Packed weights or as they came: hidden size, rows of all steps, rows of a single step.
    for T, B, H in [(4, 4, 63), (4, 4, 64), (17, 1, 63), (17, 1, 64), (16, 1, 65), (5, 4, 96)]:
        yield Case(T, B, 20, H)
    for B in (16, 17, 40, 41, 96, 97):
        yield Case(1, B, 70, 67, num_layers=2)
    # The input projection in the step's product: rows, input size, bytes of w_ih.
    for B in (11, 12, 24):
        yield Case(6, B, 30, 48, num_layers=2)
    for inputs in (1, 3, 4):
        yield Case(6, 7, inputs, 40)
        yield Case(2, 3, inputs, 70, hx=False)
    for inputs, H in [(512, 128), (513, 128), (256, 129), (256, 128), (1, 257)]:
        yield Case(3, 13, inputs, H)
    # A row or two: two chains of sums, panels and k walked in opposite directions.
    for B in (1, 2, 3):
        for H in (128, 129):
            yield Case(20, B, 9, H)
    # With lengths, the baseline's kernels take large steps too.
    for H in (512, 513, 1024, 1025):
        yield Case(18, 2, 5, H, layout="lengths")
    # Rows fetched ahead, and large matrices.
    for inputs, H in [(127, 127), (128, 128), (129, 128), (512, 512), (513, 512)]:
        yield Case(4, 14, inputs, H)
    # Threads: the least work, columns or rows, rows of the input's gradient.
    for T in (23, 24):
        yield Case(T, 1, 50, 50)
        yield Case(T, 1, 100, 512)
    for B, H in [(1, 499), (1, 500), (3, 300), (4, 300), (19, 511), (19, 512), (20, 512)]:
        yield Case(3, B, 40, H)
    for B, H in [(19, 724), (19, 725), (20, 725)]:
        yield Case(2, B, 40, H)
    # Steps that a baseline of short vectors leaves to torch.
    for B in (9, 10):
        yield Case(3, B, 8, 200, num_layers=2, bidirectional=True)
    # Blocks of rows, of all steps, of units.
    for B in (95, 96, 97, 193):
        yield Case(3, B, 12, 33)
    yield Case(256, 1, 5, 40)
    yield Case(257, 1, 5, 40)
    # Every option.
    for layout in ("padded", "packed", "lengths", "reset"):
        for nonlinearity in ("tanh", "relu"):
            for layers, both in [(1, False), (1, True), (2, False), (3, True)]:
                more = {"layout": layout, "nonlinearity": nonlinearity}
                yield Case(7, 13, 6, 37, layers, both, **more)
                yield Case(5, 2, 33, 80, layers, both, hx=False, bias=False, **more)
        yield Case(6, 26, 24, 72, 3, True, layout=layout, dropout=0.3)
        yield Case(4, 3, 9, 290, 2, True, layout=layout)


def results(case: Case, dtype: torch.dtype, training: bool) -> dict[str, Tensor]:
    """Outputs and, in training, every gradient, of numbers that hang on the case alone."""
    torch.manual_seed(zlib.crc32(str(case).encode()))
    T, B, H, L = case.seq_len, case.batch, case.hidden_size, case.num_layers
    D = 2 if case.bidirectional else 1

    def uniform(*shape: int, bound: float = 1.0) -> Tensor:
        x = (torch.rand(*shape, dtype=torch.float64) * 2 - 1) * bound
        return x.to(dtype).requires_grad_(training)

    weights = [
        uniform(*shape, bound=H**-0.5)
        for layer in range(L)
        for _ in range(D)
        for shape in [(H, D * H if layer else case.input_size), (H, H)] + [(H,), (H,)] * case.bias
    ]
    x = uniform(T, B, case.input_size)
    hx = uniform(L * D, B, H) if case.hx else None
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    reset = torch.rand(T, B) < 0.3
    given: Tensor | PackedSequence = x
    if case.layout == "packed":
        given = pack_padded_sequence(x, lengths, enforce_sorted=False)
    output, hn = fastrnn.functional.rnn(
        given,
        hx,
        weights,
        bias=case.bias,
        num_layers=L,
        nonlinearity=case.nonlinearity,
        bidirectional=case.bidirectional,
        dropout=case.dropout,
        training=True,
        lengths=lengths if case.layout == "lengths" else None,
        reset=reset if case.layout == "reset" else None,
    )
    data = output.data if isinstance(output, PackedSequence) else output
    found = {"output": data, "hn": hn}
    if training:
        leaves = {"input": x} | ({"hx": hx} if hx is not None else {})
        leaves |= {f"weights[{i}]": w for i, w in enumerate(weights)}
        into = [uniform(*y.shape).detach() for y in (data, hn)]
        grads = torch.autograd.grad([data, hn], list(leaves.values()), into)
        found |= {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}
    return found


def digest(x: Tensor) -> str:
    bits = x.detach().contiguous().view(torch.uint8)
    return hashlib.sha256(bits.numpy().tobytes()).hexdigest()


def hash_all() -> dict[str, str]:
    kernels = fastrnn.info()["cpu_kernels"]
    hashes = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        for case in cases():
            for dtype in DTYPES:
                for mode in ("inference", "training"):
                    name = str(dtype).removeprefix("torch.")
                    row = f"{kernels}, {name}, {case}, threads: {threads}, {mode}"
                    with torch.set_grad_enabled(mode == "training"):
                        found = results(case, dtype, mode == "training")
                    hashes |= {f"{row}: {part}": digest(x) for part, x in found.items()}
    return hashes


def hash_by_capability() -> dict[str, str]:
    """A process for each instruction set: torch reads its ceiling once."""
    hashes: dict[str, str] = {}
    for capability in CAPABILITIES:
        environment = {k: v for k, v in os.environ.items() if k != "ATEN_CPU_CAPABILITY"}
        if capability != "best":
            environment["ATEN_CPU_CAPABILITY"] = capability
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.bits"], env=environment, stdout=subprocess.PIPE
        )
        run.check_returncode()
        hashes |= json.loads(run.stdout)
    return hashes


def main() -> None:
    parser = argparse.ArgumentParser(description="Hash what calls on the CPU return.")
    parser.add_argument("--out", type=Path, help="write here, of every instruction set")
    parser.add_argument("--compare", type=Path, help="a file of an earlier run")
    options = parser.parse_args()
    if options.out is None and options.compare is None:
        print(json.dumps(hash_all()))  # of this process's instruction set
        return
    hashes = hash_by_capability()
    if options.out is not None:
        options.out.write_text(json.dumps(hashes, indent=0))
    if options.compare is None:
        print(f"{len(hashes)} tensors")
        return
    before = json.loads(options.compare.read_text())
    differ = [name for name in before | hashes if before.get(name) != hashes.get(name)]
    print(*differ, f"{len(differ)} of {len(before | hashes)} tensors differ", sep="\n")
    sys.exit(bool(differ))


if __name__ == "__main__":
    main()
