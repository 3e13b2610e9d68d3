"""Which lines of the CPU's kernels the fuzzer runs, for each instruction set; needs gcc and gcov.

Of csrc/cpu all but rnn_cpu.cpp. The raw kernels run by any plan; leaks, gates from outside and the
output of every layer come by the operators.

``make fuzz-coverage SECONDS=60`` builds both with counters in build/coverage.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from planted_faults import ROOT, compile_object, link, link_extension, of_torch

sys.path += [str(ROOT), str(ROOT / "tests")]  # started as a program

from fuzz import available
from fuzz_problem import EXTENDED

BUILD = ROOT / "build/coverage"
PACKAGE = BUILD / "fastrnn"
LEAST = 95.0  # percent


def build() -> Path:
    """The raw kernels' module; beside it, a copy of the package with the same kernels."""
    BUILD.mkdir(parents=True, exist_ok=True)
    csrc, module = ROOT / "csrc", BUILD / "fastrnn_kernels.so"

    def compiled(source: Path, *flags: str) -> Path:
        to = BUILD / f"{source.stem}.o"
        compile_object(source, to, csrc, flags)
        return to

    sources = [path for path in (csrc / "cpu").glob("*.cpp") if path.name != "rnn_cpu.cpp"]
    objects = [compiled(source, "-O0", "--coverage") for source in sources]
    of_module = compiled(ROOT / "tests/kernels/kernels_module.cpp", "-O0", "--coverage")
    link([*objects, of_module], module, ["--coverage"])
    others = [compiled(csrc / name, "-O1") for name in ["cpu/rnn_cpu.cpp", *of_torch(csrc)]]
    shutil.rmtree(PACKAGE, ignore_errors=True)
    shutil.copytree(ROOT / "fastrnn", PACKAGE)
    link_extension([*objects, *others], PACKAGE, ["--coverage"])
    return module


def fuzz(isa: str, options: argparse.Namespace, package: Path, *more: str) -> None:
    command = [sys.executable, str(ROOT / "tests/fuzz/fuzz.py"), "--keep-going", "--no-shrink"]
    command += ["--isa", isa, "--seed", options.seed, "--seconds", str(options.seconds), *more]
    environment = dict(os.environ, PYTHONPATH=str(package.parent))
    ended = subprocess.run(command, stdout=subprocess.PIPE, env=environment)
    print(ended.stdout.decode().splitlines()[-1] if ended.stdout else "")


def counts(isa: str) -> dict[str, dict[int, int]]:
    """How often each line of a file of csrc/cpu has run, as this instruction set compiles it."""
    found: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    names = ["choose", "stack", f"kernels_{isa}"]
    if isa == "avx512_bf16":  # has kernels of its own for bfloat16 alone
        names.append("kernels_avx512")
    for name in names:
        command = ["gcov", "--json-format", "--stdout", f"{name}.gcda"]
        text = subprocess.run(command, capture_output=True, check=True, cwd=BUILD).stdout
        for file in json.loads(text)["files"]:
            path = Path(file["file"])
            if path.parent.name == "cpu":
                for line in file["lines"]:
                    found[path.name][line["line_number"]] += line["count"]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="for each instruction set")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--built", action="store_true", help="before: only run")
    parser.add_argument("--isa", nargs="+", default=available())
    options = parser.parse_args()
    module = BUILD / "fastrnn_kernels.so" if options.built else build()
    low = 0
    for isa in options.isa:
        for path in BUILD.glob("*.gcda"):
            path.unlink()
        fuzz(isa, options, ROOT / "fastrnn", "--entries", "raw", "--kernels", str(module))
        fuzz(isa, options, PACKAGE, "--entries", *EXTENDED)
        lines = counts(isa)
        total = sum(map(len, lines.values()))
        ran = sum(count > 0 for of_file in lines.values() for count in of_file.values())
        share = 100 * ran / total
        low += share < LEAST
        print(f"{isa}: {share:.1f} % of {total} lines of the kernels ran")
        for name, of_file in sorted(lines.items()):
            missed = [str(number) for number, count in sorted(of_file.items()) if count == 0]
            if missed:
                print(f"  {name}, not run: {' '.join(missed)}")
    return 1 if low else 0


if __name__ == "__main__":
    sys.exit(main())
