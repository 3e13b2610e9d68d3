"""Run one CUDA kernel on small shapes, to be watched by compute-sanitizer.

    FASTRNN_CUDA_KERNEL=tile compute-sanitizer python -m benchmarks.gpu.sanitize

Forward and backward, every dtype, both activations, both directions, packed rows and rows of one
length, sizes on and beside the kernels' tiles. Results are compared with nn.RNN's as well. A
configuration, such as cluster:1024x8x8, runs the cases that it can serve.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

from benchmarks.contestants import make_contestant
from benchmarks.gpu.compare import DeviceProblem, compare_errors, kernel_of, use
from benchmarks.gpu.shapes import SETTINGS, Row, Setting
from benchmarks.shapes import Shape

NOT_CHOSEN = 4  # exit status
SIZES = [(3, 40), (9, 64), (5, 100), (9, 200), (3, 256), (9, 300), (3, 520)]  # B, H


def cases(quick: bool) -> Iterator[Row]:
    settings = [*SETTINGS, Setting("float64")]
    for i, (batch, size) in enumerate(SIZES[::2] if quick else SIZES):
        for j, setting in enumerate(settings):
            options = i + j  # every option occurs with every dtype, not every combination
            yield Row(
                Shape(
                    "sanitize",
                    batch,
                    5,
                    7,
                    size,
                    nonlinearity="relu" if options % 2 else "tanh",
                    bidirectional=options % 3 == 0,
                    ragged="packed" if options % 4 > 1 else "",
                    dtype=setting.dtype,
                ),
                setting,
                "training",
            )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.sanitize")
    parser.add_argument("--quick", action="store_true", help="half of the sizes")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    args = parser.parse_args(argv)
    wanted = os.environ.get("FASTRNN_CUDA_KERNEL", "")
    ran, wrong = 0, 0
    for row in cases(args.quick):
        use(row.setting)
        problem = DeviceProblem(row, args.device)
        try:
            kernel = kernel_of(problem, training=True)
        except ValueError as e:
            print(f"{row}: {e}")
            continue
        if kernel is None or wanted not in kernel:
            continue
        pair = [make_contestant(name, problem, True) for name in ("nn.RNN", "fastrnn")]
        error = compare_errors(problem, pair, True)
        print(
            f"{row}: {kernel}, {'WRONG ' + str(error) if error['wrong'] else 'right'}", flush=True
        )
        ran += 1
        wrong += error["wrong"]
    print(f"cases: {ran}, wrong: {wrong}")
    if wrong:
        sys.exit(1)
    if not ran:
        print(f"no case takes the kernel {wanted!r} on this device")
        sys.exit(NOT_CHOSEN)


if __name__ == "__main__":
    main()
