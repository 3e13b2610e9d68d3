"""Time ten rows, and say which became slower than in the results of the same processor.

    python -m benchmarks.check
    python -m benchmarks.check --against build/before.json

A row's figure is its speedup over nn.RNN, measured in interleaved rounds: unlike a time, it does
not follow the processor's clock. The earlier results are the newest committed ones of this
processor and instruction set, or a file of benchmarks.compare. Fails if a row became slower.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import compare, machine, results, shapes
from benchmarks.machine import ROOT
from benchmarks.provenance import processor

Record = dict[str, Any]
RESULTS = ROOT / "benchmarks/results"
SHAPES = ("B1-T10-I1-H32", "B32-T20-I1-H64", "B32-T35-I28-H256", "B32-T128-I256-H256",
          "B1-T512-I64-H64")  # fmt: skip
SLOWER = 0.9  # of the earlier speedup: less is more than noise
SAME = ("cpu", "instruction_set", "torch_capability")


def earlier_results(facts: Record, documents: Iterable[Record]) -> Record | None:
    """The newest of the documents that were measured on this processor."""
    same = [d for d in documents if all(d["machine"].get(k) == facts[k] for k in SAME)]
    return max(same, key=results.date_of, default=None)


def rows_of(document: Record) -> dict[tuple[str, str], float]:
    """The speedup over nn.RNN of each row on one thread, by id and mode."""
    return {(r["id"], r["mode"]): r["ratio"] for r in results.one_thread(document)}


def table(before: dict[tuple[str, str], float], now: dict[tuple[str, str], float]) -> list[str]:
    """A line for each row, which says so if it became slower."""
    lines = [f"{'shape':24} {'':9} {'before':>7} {'now':>7} {'change':>7}"]
    for (name, mode), ratio in now.items():
        if (name, mode) not in before:
            lines.append(f"{name:24} {mode:9} {'-':>7} {ratio:7.2f}")
            continue
        change = ratio / before[name, mode]
        mark = "  slower" if change < SLOWER else ""
        lines.append(
            f"{name:24} {mode:9} {before[name, mode]:7.2f} {ratio:7.2f} {change - 1:+7.0%}{mark}"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.check", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--against", type=Path, metavar="FILE", help="other results to compare with"
    )
    parser.add_argument("--budget", type=float, default=6.0, help="most seconds of a row")
    args = parser.parse_args(argv)
    facts = machine.facts()
    if args.against:
        earlier = earlier_results(facts, [json.loads(args.against.read_text())])
        where = str(args.against)
    else:
        earlier = earlier_results(facts, results.of_kind(results.load(RESULTS), "cpu").values())
        where = "benchmarks/results"
    here = f"{processor(facts)}, {facts['instruction_set']}"
    if earlier is None:
        print(
            f"{where} has no results of this processor ({here}). To have some: "
            "python -m benchmarks.compare --only " + " ".join(SHAPES) + " --json FILE"
        )
        return 2
    of = earlier["machine"]
    print(f"{here}, beside commit {of['commit']} of {of['date']}, PyTorch {of['torch']}")
    options = compare.parse(["--only", *SHAPES, "--budget", str(args.budget)])
    now = {
        (str(shape), mode): compare.measure(shape, mode, 1, options, None)["ratio"]
        for shape in shapes.select(options.only)
        for mode in compare.MODES
    }
    lines = table(rows_of(earlier), now)
    print("\n".join(lines))
    return 1 if any(line.endswith("slower") for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main())
