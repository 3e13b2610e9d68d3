"""Build fastrnn with a sanitizer, see that it finds planted faults, and run the tests under it.

`python tests/fuzz/sanitize.py address`, or `make sanitize`: AddressSanitizer and
UndefinedBehaviorSanitizer on the tests of the kernels and on a minute of the fuzzer.
`python tests/fuzz/sanitize.py thread`, or `make sanitize SANITIZER=thread`: ThreadSanitizer on
the soak.

All happens in build/sanitize, in a copy of the sources. Exits with status 1 where a sanitizer
reports something, a test fails, or a planted fault stays unseen. Needs gcc on Linux.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from planted_faults import file_of

ROOT = Path(__file__).parents[2]
COPIED = ["csrc", "fastrnn", "tests", "setup.py", "torch_build.py", "cpu_build.py", "cuda_build.py",
          "pyproject.toml"]  # fmt: skip
BUILT = shutil.ignore_patterns("*.so", "_built_for.json", "__pycache__")


@dataclass(frozen=True)
class Fault:
    """A text of csrc that is replaced, and the words of the report that must follow."""

    old: str
    new: str
    words: str


@dataclass(frozen=True)
class Sanitizer:
    flags: str
    runtime: str  # gcc's library
    options: dict[str, str]  # environment variables
    faults: list[Fault]
    builds: list[list[str]]  # what Python runs before, and then under the sanitizer
    runs: list[list[str]]
    sources: list[str] = field(default_factory=list)  # of tests/fuzz, built into the extension


EXTENSION = ["setup.py", "-q", "build_ext", "--inplace"]
# Threads share columns; they share rows, and pack weights a layer at a time; rows are shorter.
TRIAL = """
import torch, fastrnn
torch.set_num_threads(3)
for steps, batch, size, layers in (5, 1, 560, 2), (9, 7, 200, 6):
    rnn = fastrnn.RNN(3, size, layers, bidirectional=True, dtype=torch.float64)
    lengths = torch.arange(steps, steps - batch, -1).relu()
    output, _ = rnn(torch.randn(steps, batch, 3).double(), lengths=lengths)
    output.sum().backward()
"""
CONTRACT = ["results", "cell", "step", "reset", "functional", "hostile", "empty"]
TESTS = ["tests/kernels/test_raw.py", *(f"tests/contract/test_{name}.py" for name in CONTRACT)]
TESTS += ["tests/pytorch/test_ops.py", "tests/pytorch/test_hostile_graph.py"]
# Limits of memory leave no room for a sanitizer's; under it operator new ends the process where it
# fails; and its symbols are weak.
LEFT_OUT = "not little_memory and not more_rows_than_memory and not share_nothing"
SOAK = ["tests/fuzz/soak.py", "--growth", "inf", "--minutes"]

SANITIZERS = {
    "address": Sanitizer(
        # Elements of any alignment are taken, as numpy and torch make them from bytes. The types
        # behind torch's virtual functions are not in sight.
        flags="-fsanitize=address,undefined -fno-sanitize=alignment,vptr",
        runtime="libasan.so",
        options={
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        },
        faults=[
            Fault(
                "for (int64_t t = 0; t < s.seq_len; ++t) rows += s.active[t];",
                "for (int64_t t = 0; t <= s.seq_len; ++t) rows += s.active[t];",
                "ERROR: AddressSanitizer",
            ),
            Fault("kept = allocate(bytes);", "kept = allocate(64);", "ERROR: AddressSanitizer"),
            Fault(
                "begin(int64_t n) const { return n * index / size; }",
                "begin(int64_t n) const { return n * INT64_MAX * index / size; }",
                "signed integer overflow",
            ),
        ],
        builds=[EXTENSION, ["-c", "import cpu_build; cpu_build.kernels()"]],
        runs=[
            ["-m", "pytest", "-q", "--capture=sys", "-m", "not slow", "-k", LEFT_OUT, *TESTS],
            ["tests/fuzz/fuzz.py", "--seconds", "60"],
        ],
    ),
    "thread": Sanitizer(
        flags="-fsanitize=thread",
        runtime="libtsan.so",
        options={
            "TSAN_OPTIONS": "history_size=4:halt_on_error=1:suppressions=tests/fuzz/tsan.supp"
        },
        faults=[
            Fault(old, new, "data race")
            for old, new in [
                ("if (!first) team.wait();", ""),
                ("    team.wait();\n  }\n\n  const void* w_ih", "  }\n\n  const void* w_ih"),
                (" || call_.grad_alpha || plan_.share_columns) team.wait();", ") (void)team;"),
                ("if (layer > 0) team.wait();", ""),
                ("static_cast<const Team*>(t)->wait();", "(void)t;"),
                ("if (size > 1) GOMP_barrier();", ""),
            ]
        ],
        builds=[EXTENSION],
        runs=[[*SOAK, "5"]],
        sources=["omp_by_threads.cpp"],
    ),
}


class Build:
    """A copy of the sources, built with a sanitizer."""

    def __init__(self, name: str) -> None:
        self.sanitizer = SANITIZERS[name]
        self.folder = ROOT / "build/sanitize" / name
        # Python's own flags have -fwrapv, with which no overflow is an error.
        flags = "-O1 -g1 -fno-omit-frame-pointer -fno-wrapv"
        flags += f" -include {self.folder}/tests/fuzz/masked.h"
        self.environment = os.environ | {
            "FASTRNN_FLAGS": f"{flags} {self.sanitizer.flags}",
            "FASTRNN_CUDA": "0",
            "PYTHONPATH": str(self.folder),
        }

    def copy(self) -> None:
        """Files that differ are written anew, so that what is built from them is, too."""

        def copy_file(source: str, target: str) -> None:
            if not Path(target).exists() or Path(source).read_bytes() != Path(target).read_bytes():
                shutil.copyfile(source, target)

        for name in COPIED:
            source, target = ROOT / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, False, BUILT, copy_file, dirs_exist_ok=True)
            else:
                copy_file(str(source), str(target))
        for name in self.sanitizer.sources:
            copy_file(str(ROOT / "tests/fuzz" / name), str(self.folder / "csrc/cpu" / name))

    def build(self, command: list[str]) -> None:
        # The raw kernels are loaded, too, where the runtime does not come first.
        environment = self.environment | {"ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0"}
        run = subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        if run.returncode != 0:
            sys.exit(run.stdout + run.stderr)

    def run(self, arguments: list[str]) -> tuple[int, str]:
        """Run Python under the sanitizer, which ends it at its first report: status and stderr."""
        # The second is there for exceptions, whose functions the first looks for at once.
        libraries = [library(self.sanitizer.runtime), library("libstdc++.so")]
        environment = self.environment | self.sanitizer.options
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment | {"LD_PRELOAD": " ".join(libraries)},
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        return run.returncode, run.stderr

    def finds(self, fault: Fault) -> bool:
        path = self.folder / "csrc" / file_of(fault.old, ROOT / "csrc")
        text = path.read_text()
        path.write_text(text.replace(fault.old, fault.new))
        try:
            self.build(EXTENSION)
            status, errors = self.run(["-c", TRIAL])
            return status != 0 and fault.words in errors
        finally:
            path.write_text(text)


def library(name: str) -> str:
    path = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(path).is_absolute():
        sys.exit(f"gcc has no {name} here")
    return path


def sanitize(name: str, plant: bool) -> int:
    build, failures = Build(name), 0
    build.copy()
    for fault in build.sanitizer.faults if plant else []:
        found = build.finds(fault)
        failures += not found
        what = f"{' '.join(fault.old.split())} -> {' '.join(fault.new.split())}"
        print(f"planted, {'found' if found else 'NOT FOUND'}: {what}", flush=True)
    for command in build.sanitizer.builds:
        build.build(command)
    for arguments in [["-c", TRIAL], *build.sanitizer.runs]:
        status, errors = build.run(arguments)
        failures += status != 0
        print(errors, f"{' '.join(arguments).splitlines()[0]}: status {status}", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=SANITIZERS)
    parser.add_argument("--no-faults", action="store_true", help="plant none")
    given = parser.parse_args()
    sys.exit(sanitize(given.name, not given.no_faults))
