"""What each threshold of csrc/cpu/choose.cpp is worth: the plan chosen beside the other one.

    python -m benchmarks.thresholds

Each threshold has a call on either side of it. A call runs by the plan that is chosen for it and by
the same plan with one field turned, interleaved; the ratio says how many times as fast the chosen
one is. Near a threshold it is near 1. float32, the raw kernels, without torch around them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Any

from benchmarks.contestants import Contestant, Problem
from benchmarks.shapes import Shape
from benchmarks.test_kernels import INSTRUCTION_SETS, Call
from benchmarks.timing import measure
from cpu_build import kernels

NEVER = 2**63 - 1  # of csrc/cpu/choose.h


@dataclass(frozen=True)
class Side:
    """A call, and what is forced on it instead of the choice."""

    threshold: str
    batch: int
    seq_len: int
    input_size: int
    hidden_size: int
    forced: dict[str, Any]
    training: bool = False
    threads: int = 1


def sides() -> list[Side]:
    one, two = {"threads": 1}, {"threads": 2}
    columns, rows = {"share_columns": True}, {"share_columns": False}
    natural, packed = {"form": "as they came"}, {"form": "packed"}
    joined, apart = {"fused_rows": 0}, {"fused_rows": NEVER}
    return [
        Side("kLeastWork", 2, 10, 50, 50, two, threads=2),
        Side("kLeastWork", 2, 48, 50, 50, one, threads=2),
        Side("kLeastRows", 2, 20, 64, 512, rows, threads=2),
        Side("kLeastRows", 8, 20, 64, 512, columns, threads=2),
        Side("kLeastRowsUncached", 10, 20, 64, 1024, rows, threads=2),
        Side("kLeastRowsUncached", 32, 20, 64, 1024, columns, threads=2),
        Side("kLeastStepWork", 2, 50, 64, 256, columns, threads=2),
        Side("kLeastStepWork", 2, 50, 64, 768, rows, threads=2),
        Side("kLeastUnpackedSize", 2, 4, 32, 32, natural),
        Side("kLeastUnpackedSize", 2, 4, 64, 96, packed),
        Side("kFewRows", 2, 4, 64, 256, packed),
        Side("kFewRows", 8, 8, 64, 256, natural),
        Side("kFewRowsOfOneStep", 20, 1, 256, 256, packed),
        Side("kFewRowsOfOneStep", 80, 1, 256, 256, natural),
        Side("kFewRowsOfOneStepBack", 48, 1, 256, 256, packed, training=True),
        Side("kFewRowsOfOneStepBack", 192, 1, 256, 256, natural, training=True),
        Side("kSplitBatch", 1, 200, 64, 64, {"split": False}),
        Side("kSplitBatch", 4, 200, 64, 64, {"split": True}),
        Side("kTileRows", 6, 40, 64, 128, joined),
        Side("kTileRows", 24, 40, 64, 128, apart),
        Side("kFusedBytes", 24, 40, 128, 128, apart),
        Side("kFusedBytes", 24, 40, 1024, 128, joined),
        Side("kFewFeatures", 2, 100, 1, 64, apart),
        Side("kFewFeatures", 2, 100, 16, 64, joined),
        Side("kNearestBytes", 16, 40, 64, 64, {"opposed": False}),
        Side("kNearestBytes", 16, 40, 64, 512, {"opposed": True}),
        Side("kFetchedSize", 96, 28, 28, 64, {"fetch_rows": True}),
        Side("kFetchedSize", 96, 28, 28, 256, {"fetch_rows": False}),
        Side("kNearBytes", 8, 20, 64, 384, {"fetch_w_hh": True}),
        Side("kNearBytes", 8, 20, 64, 1024, {"fetch_w_hh": False}),
    ]


def ratio(side: Side, instruction_set: str, rounds: int | None) -> float:
    """How many times as fast the chosen plan is as the forced one."""
    sizes = (side.batch, side.seq_len, side.input_size, side.hidden_size)
    problem = Problem(Shape("threshold", *sizes))

    def contestant(name: str, forced: dict[str, Any]) -> Contestant:
        call = Call(problem, instruction_set, side.threads)
        call.head = (instruction_set, {"threads": side.threads} | forced)
        if "threads" in side.forced and not forced:  # what would be chosen of two
            call.head = (instruction_set, {"threads": 3 - side.forced["threads"]})
        return Contestant(name, call.training if side.training else call.forward, dict)

    both = [contestant("chosen", {}), contestant("forced", side.forced)]
    return measure(both, side.threads, budget=10.0, rounds=rounds).ratio("chosen", "forced")


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, help="of each row; by default as many as it takes")
    rounds = parser.parse_args().rounds
    instruction_set = [name for name in INSTRUCTION_SETS if kernels().available(name)][-1]
    print(f"{instruction_set}, float32: times as fast as with the forced field")
    for side in sides():
        sizes = f"B{side.batch}-T{side.seq_len}-I{side.input_size}-H{side.hidden_size}"
        mode = "training" if side.training else "inference"
        (field, value), *_ = side.forced.items()
        what = f"{field} {'never' if value == NEVER else value}"
        found = ratio(side, instruction_set, rounds)
        print(f"{side.threshold:22} {sizes:22} {mode:10} {what:22} {found:5.2f}", flush=True)


if __name__ == "__main__":
    _main()
