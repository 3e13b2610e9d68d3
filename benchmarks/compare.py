"""Compare fastrnn with nn.RNN, and with other libraries, in interleaved rounds of one process.

    python -m benchmarks.compare --threads 1 2 --json benchmarks/results/cpu.json
    python -m benchmarks.compare --quick --only small H512

Each round times one sample of every contestant, in shuffled order. A ratio is the median over
rounds of the other's time by ours: above one, fastrnn is faster. Contestants agree before they are
timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from benchmarks import machine, shapes, timing
from benchmarks.contestants import MODULES, Problem, check, grad_mode, make_contestant
from benchmarks.gpu.process import write_whole
from benchmarks.shapes import Goal, Shape

Record = dict[str, Any]
MODES = ("inference", "training")


def measure(
    shape: Shape, mode: str, threads: int, args: argparse.Namespace, peers: ModuleType | None
) -> Record:
    """Time one row, and describe it in plain values."""
    torch.set_num_threads(threads)
    training = mode == "training"
    problem = Problem(shape)
    contestants = [make_contestant(name, problem, training) for name in MODULES]
    if peers:
        contestants += peers.make_contestants(problem, training, threads)
    check(problem, contestants, training)
    with grad_mode(training):
        row = timing.measure(contestants, threads, args.budget, args.rounds)
    gflop = shape.gflop(training)
    ours = row.seconds("fastrnn")
    capability = torch.backends.cpu.get_cpu_capability()
    goal = shape.goal(training, threads, capability)
    large = shape.kind == "large" and capability == "AVX512" and threads == 1
    return {
        "id": str(shape),
        "kind": shape.kind,
        "shape": {k: v for k, v in dataclasses.asdict(shape).items() if k not in MODES},
        "mode": mode,
        "threads": threads,
        "gflop": gflop,
        "gflops": gflop / ours,
        **share_of_gemm(shape.dtype, threads, gflop / ours),
        "weight_gbytes": shape.weight_bytes(training) / ours / 1e9,
        "ratio": row.ratio("fastrnn"),
        "goal": dataclasses.asdict(goal),
        "share_goal": dataclasses.asdict(shapes.SGEMM_GOALS[mode]) if large else None,
        "contestants": {
            c.name: {
                "microseconds": row.seconds(c.name) * 1e6,
                "quartiles": [x * 1e6 for x in row.quartiles(c.name)],
                "ratio_to_fastrnn": row.ratio("fastrnn", base=c.name),
                "repetitions": row.repetitions[c.name],
            }
            for c in contestants
        },
        "rounds": len(row.samples["fastrnn"]),
        "tries": row.tries,
        "others_cpu": row.others_cpu,
        "own_cpu": row.own_cpu,
        "noisy": row.noisy,
    }


def share_of_gemm(dtype: str, threads: int, gflops: float) -> Record:
    """The best matrix product known so far, and a row's speed as a share of its speed."""
    best = machine.best_gemm_gflops(dtype, threads)
    return {"gemm_gflops": best, "share_of_gemm": gflops / best}


def measure_gemms_again(records: Sequence[Record], threads: int) -> None:
    """At the end of a table: limits from more than one moment, and the rows' shares of them."""
    rows = [r for r in records if r["threads"] == threads]
    for dtype in {r["shape"]["dtype"] for r in rows}:
        machine.measure_gemm(dtype, threads)
    for r in rows:
        r.update(share_of_gemm(r["shape"]["dtype"], threads, r["gflops"]))


def verdict(ratio: float, goal: Goal) -> str:
    """How a ratio stands against its goal."""
    if ratio < goal.at_once:
        return "below"
    return "stretch" if goal.stretch is not None and ratio >= goal.stretch else "met"


def peer_names(records: Sequence[Record]) -> list[str]:
    names = dict.fromkeys(name for r in records for name in r["contestants"])
    return [name for name in names if name not in MODULES]


HEADER = (
    f"{'shape':34} {'nn.RNN µs':>11} {'fastrnn µs':>11} {'ratio':>6} "
    f"{'GFLOP/s':>8} {'of gemm':>7} {'goal':>5} {'aim':>5} {'':7}"
)


def line(r: Record, peers: Sequence[str]) -> str:
    times = {name: c["microseconds"] for name, c in r["contestants"].items()}
    goal = Goal(**r["goal"])
    text = (
        f"{r['id']:34} {times['nn.RNN']:11.1f} {times['fastrnn']:11.1f} {r['ratio']:6.2f} "
        f"{r['gflops']:8.1f} {r['share_of_gemm']:7.0%} {goal.at_once:5.2f} "
        f"{goal.stretch or math.nan:5.2f} {verdict(r['ratio'], goal):7}"
    )
    for name in peers:
        c = r["contestants"].get(name)
        text += (
            f" {c['ratio_to_fastrnn']:{max(6, len(name))}.2f}"
            if c
            else " " * (max(6, len(name)) + 1)
        )
    if r["share_goal"]:
        text += f"  share {verdict(r['share_of_gemm'], Goal(**r['share_goal']))}"
    if r["noisy"]:
        others = "unknown" if r["others_cpu"] is None else f"{r['others_cpu']:.2f}"
        text += f"  noisy: others used {others} processors in {r['tries']} tries"
    return text


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def scaling(records: Sequence[Record]) -> dict[tuple[str, str], float]:
    """Of (id, mode): one thread's time by two threads', where both were measured."""
    seconds = {
        (r["id"], r["mode"], r["threads"]): r["contestants"]["fastrnn"]["microseconds"]
        for r in records
    }
    return {
        (name, mode): one / seconds[name, mode, 2]
        for (name, mode, threads), one in seconds.items()
        if threads == 1 and (name, mode, 2) in seconds
    }


def print_summary(records: Sequence[Record]) -> None:
    print("\nGeometric means of the ratios")
    for threads in sorted({r["threads"] for r in records}):
        for kind in dict.fromkeys(r["kind"] for r in records):
            means = []
            for mode in MODES:
                rows = [
                    r
                    for r in records
                    if (r["kind"], r["mode"], r["threads"]) == (kind, mode, threads)
                ]
                if rows:
                    means.append(f"{mode} {geometric_mean([r['ratio'] for r in rows]):6.2f}")
            print(f"  {kind:16} threads: {threads}   " + "   ".join(means))
    for name in peer_names(records):
        for mode in MODES:
            cells = [
                r["contestants"][name]["ratio_to_fastrnn"]
                for r in records
                if r["mode"] == mode and name in r["contestants"]
            ]
            if cells:
                least = f"{geometric_mean(cells):.2f}, least {min(cells):.2f}"
                print(f"  against {name}, {mode}: {least} in {len(cells)} rows")
    faster = scaling(records)
    if faster:
        print("\nTwo threads over one")
        kinds = {r["id"]: r["kind"] for r in records}
        for (name, mode), ratio in faster.items():
            goal = shapes.SCALING_GOALS.get(kinds[name])
            print(f"  {name:34} {mode:9} {ratio:5.2f} {verdict(ratio, goal) if goal else ''}")


def save(path: Path | None, records: Sequence[Record], extra: Record) -> None:
    if path is None:
        return
    pairs = dict.fromkeys((r["shape"]["dtype"], r["threads"]) for r in records)
    gemms = {f"{dtype}, threads: {n}": machine.gemm_gflops(dtype, n) for dtype, n in pairs}
    document = {**extra, "gemm_gflops": gemms, "rows": list(records)}
    write_whole(path, document)


def load(path: Path, extra: Record) -> dict[tuple[str, str, int], Record]:
    """The rows of an earlier run of the same code on the same machine."""
    document = json.loads(path.read_text())
    for name, value in document["machine"].items():
        if name != "date" and extra["machine"].get(name) != value:
            now = extra["machine"].get(name)
            raise SystemExit(f"--again: {path} was measured with {name} {value}, now it is {now}")
    return {(r["id"], r["mode"], r["threads"]): r for r in document["rows"]}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="CLASS|ID", help="class or part of an id"
    )
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES)
    parser.add_argument("--quick", action="store_true", help="the representative rows")
    parser.add_argument(
        "--sweep",
        nargs="*",
        choices=[*shapes.SWEEPS],
        help="sweep over sizes instead: all axes, or these",
    )
    parser.add_argument("--peers", action="store_true", help="JAX, ONNX Runtime and oneDNN too")
    parser.add_argument("--budget", type=float, default=20.0, help="most seconds of a row")
    parser.add_argument("--rounds", type=int, help="exactly so many rounds")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    parser.add_argument(
        "--again", action="store_true", help="measure only what OUT lacks or has as noisy"
    )
    args = parser.parse_args(argv)
    if args.again and not (args.json and args.json.exists()):
        parser.error("--again: give the file of the earlier run with --json")
    if args.sweep is not None and not args.sweep:
        args.sweep = list(shapes.SWEEPS)
    if args.peers and len(args.threads) > 1:
        parser.error(
            "--peers: other libraries set their threads once, so give --threads one number"
        )
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    words = sys.argv[1:] if argv is None else list(argv)
    peers: ModuleType | None = None
    if args.peers:
        peers = importlib.import_module("benchmarks.peers")
        peers.limit_threads(args.threads[0])
    selected = shapes.select(args.only, args.quick, args.sweep)
    extra: Record = {
        "command": " ".join(["python -m benchmarks.compare", *words]),
        "machine": machine.facts(),
    }
    if peers:
        extra["machine"].update(peers.versions())
    extra["machine"].pop("threads")
    for name, value in extra["machine"].items():
        print(f"{name:16} {value}")
    records: list[Record] = []
    names: list[str] = peers.NAMES if peers else []
    earlier = load(args.json, extra) if args.again else {}
    for threads in args.threads:
        for mode in args.modes:
            print(f"\n{mode}, threads: {threads}\n{HEADER}" + "".join(f" {n:>6}" for n in names))
            for shape in selected:
                found = earlier.pop((str(shape), mode, threads), None)
                if found is None or found["noisy"]:
                    found = measure(shape, mode, threads, args, peers)
                records.append(found)
                print(line(found, names), flush=True)
                save(args.json, [*records, *earlier.values()], extra)
            measure_gemms_again(records, threads)
            save(args.json, [*records, *earlier.values()], extra)
    print_summary(records)


if __name__ == "__main__":
    main()
