"""Where the time of a call goes: samples of Linux's perf, by what the code does.

    python -m benchmarks.profile [--only CLASS|ID ...] [--json OUT]

One thread, the representative row of each class, a process each. Needs `perf`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import facts
from benchmarks.shapes import Shape, select

MODES = ("inference", "training")
# The first pattern that a sample's symbol and library fit says what the time was spent on.
PARTS = {
    "products of a step": r"\btile<|\bdots<|\brun_dots<",
    "weight gradients": r"outer|weight_grad|pack_rows",
    "activations": r"\bfinish",
    "packing": r"pack_panels|pack_pair|\bpack<",
    "rows and steps": r"fastrnn::cpu",
    "memory (kernel)": r"\[k\]|kernel\.kallsyms|memmove|memset",
    "torch and its autograd": r"libtorch|libc10|fastrnn|_C\.",
    "Python": r"python",
    "allocator and the rest": r"",
}
SECONDS = 3.0

STEPS = """
import os, sys, time, torch
from benchmarks.contestants import Problem, grad_mode, make_contestant
from benchmarks.shapes import select
torch.set_num_threads(1)
training = sys.argv[2] == "training"
[shape] = select([sys.argv[1]])
step = make_contestant("fastrnn", Problem(shape), training).step
with grad_mode(training):
    step()
    print("ready", flush=True)
    sys.stdin.readline()
    end = time.perf_counter() + float(sys.argv[3])
    while time.perf_counter() < end:
        for _ in range(20):
            step()
os._exit(0)  # without Python's clearing up, which would be sampled
"""


def profile(shape: Shape, mode: str) -> dict[str, float]:
    """Shares of the samples by part."""
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "perf.data")
        arguments = [sys.executable, "-c", STEPS, str(shape), mode, str(SECONDS)]
        steps = subprocess.Popen(
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert steps.stdout is not None
        steps.stdout.readline()  # set up: only steps are sampled
        record = ["perf", "record", "-q", "-o", data, "-p", str(steps.pid)]
        recorder = subprocess.Popen(record)
        steps.communicate("go\n")
        recorder.wait()
        report = ["perf", "report", "-i", data, "--stdio", "-g", "none", "-F", "overhead,dso,sym"]
        text = subprocess.run(report, capture_output=True, text=True, check=True).stdout
    shares = dict.fromkeys(PARTS, 0.0)
    for share, symbol in re.findall(r"^\s*([\d.]+)%\s+(.*)$", text, re.MULTILINE):
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, symbol))
        shares[part] += float(share) / 100
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.profile", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="CLASS|ID")
    parser.add_argument("--json", type=Path, metavar="OUT")
    args = parser.parse_args()
    if shutil.which("perf") is None:
        parser.error("this needs Linux's perf (on Debian: apt install linux-perf)")
    rows = []
    for shape in select(args.only, quick=not args.only):
        for mode in MODES:
            shares = profile(shape, mode)
            rows.append({"id": str(shape), "kind": shape.kind, "mode": mode, "shares": shares})
            parts = ", ".join(f"{part} {share:.0%}" for part, share in shares.items() if share)
            print(f"{shape} {mode}: {parts}", flush=True)
    if args.json:
        command = "python -m benchmarks.profile"
        document = {"machine": facts(), "command": command, "profile": rows}
        args.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
