"""A visit to a GPU without a GPU: stand-ins for the programs, the tests and the sanitizer."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the report needs matplotlib")

from benchmarks.gpu import evidence, kernels, prepare, visit

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]

KERNELS = """
    import json, os, sys, time
    LISTED = ["step float32", "tile:64x8x1 float16", "cluster:512x8x8 float16",
              "vector:64x1x1 float32"]
    word, *names = sys.argv[1:]
    if word == "list":
        print(*LISTED, sep="\\n")
    elif word == "check":
        name, dtype, *one = names
        wrong = False
        for rows in one or ROWS:
            fault = FAULTS.get(f"{name} {rows}")
            fault = None if fault == "beside others" and one else fault
            if fault == "hang":
                time.sleep(60)
            if fault == "crash":
                print("an illegal access", flush=True)
                os.abort()
            wrong |= fault is not None
            print(json.dumps({"name": name, "dtype": dtype, "rows": rows, "right": fault is None,
                              "error": 0.7 if fault == "beside others" else 0.5, "allowed": 0.1,
                              "worst": "grad_hx[1], t 0, b 3, j 17"}), flush=True)
        sys.exit(wrong)
    elif word == "time":
        for listed in [" ".join(names)] if names else LISTED:
            name, dtype = listed.split()
            if name == "step":
                continue
            if FAULTS.get(f"{name} time") == "hang":
                time.sleep(60)
            print(json.dumps({"name": name, "dtype": dtype, "pass": "forward", "ns": 500}),
                  flush=True)
"""
FAULTS = {
    "cluster:512x8x8 whole": "wrong", "cluster:512x8x8 marks": "hang",
    "vector:64x1x1 packed": "crash", "tile:64x8x1 packed": "beside others",
}  # fmt: skip

LIMITS = """
    print('{"what": "hop", "clocks": 200}', '{"what": "complete"}', sep="\\n")
"""

SANITIZER = """
    import subprocess, sys, time
    words = sys.argv[1:]
    program = next(i for i, word in enumerate(words) if word.endswith("kernels"))
    status = subprocess.run(words[program:]).returncode
    bad = words[words.index("--tool") + 1] == "racecheck" and "tile:64x8x1" in words
    if "vector:64x1x1" in words and "initcheck" in words:
        time.sleep(60)
    print(f"========= RACECHECK SUMMARY: {int(bad)} hazards displayed")
    sys.exit(86 if bad else status)
"""

TESTS = """
    import time, warnings
    import pytest
    from benchmarks.gpu import plugin
    pytestmark = pytest.mark.gpu

    def synchronise():
        if poisoned:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
    poisoned = False
    plugin.synchronise = synchronise

    @pytest.mark.parametrize("kernel", ["cluster", "tile"])
    def test_kernel(kernel):
        pass
    def test_hangs():
        time.sleep(60)
    def test_poisons():
        global poisoned
        poisoned = True
        print("the last words of the test")
        assert "ours" == "theirs"
    def test_poisons_and_passes():
        global poisoned
        poisoned = True
    def test_warns():
        warnings.warn("Attempting to run cuBLAS, but there was no current CUDA context!")
    def test_fails():
        assert 1 == 2
    def test_ends_the_process():
        import os
        os._exit(7)
    def test_threads():
        import os
        assert os.environ["OMP_NUM_THREADS"] == "2"  # torch takes it
    @pytest.mark.skip(reason="a reason")
    def test_skipped():
        pass
    @pytest.mark.parametrize("i", range(20))
    def test_good(i):
        assert poisoned is False
"""


def script(path: Path, body: str, **values: Any) -> Path:
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    path.write_text(f"#!{sys.executable}\n{head}{textwrap.dedent(body)}")
    path.chmod(0o755)
    return path


def plant(folder: Path, faults: dict[str, str]) -> Path:
    """What `benchmarks.gpu.prepare` would have built: our library and a stand-in for `kernels`."""
    (folder / "fastrnn").mkdir(parents=True)
    for path in [*(ROOT / "fastrnn").glob("*.so"), ROOT / "fastrnn/_built_for.json"]:
        shutil.copy(path, folder / "fastrnn")
    script(folder / "kernels", KERNELS, FAULTS=faults, ROWS=kernels.ROWS)
    script(folder / "limits", LIMITS)
    (folder / "HASH").write_text(" ".join(prepare.hashes()))
    return folder


def plant_tests(folder: Path) -> Path:
    folder.mkdir()
    (folder / "test_planted.py").write_text(textwrap.dedent(TESTS))
    (folder / "test_broken.py").write_text("import no_such_module  # mark.gpu\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\nfilterwarnings = error\n")
    return folder


def words(folder: Path, *more: object) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.visit", "--device", "cpu", "--budget", 100]
    command += ["--prebuilt", folder / "built", "--out", folder / "out", "--rows", "tiny B1-T512"]
    command += ["--row-budget", 0.001, "--check-limit", 1, "--test-limit", 1.5, "--shards", 2]
    command += ["--sanitizer-limit", 1]
    return [str(word) for word in [*command, "--tests", folder / "tests", *more]]


def go(folder: Path, *more: object, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        words(folder, *more), cwd=ROOT, env={**os.environ, "PATH": path, **variables},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def records(folder: Path, name: str) -> list[Record]:
    """Every line is whole."""
    return [json.loads(line) for line in (folder / "out" / name).read_text().splitlines()]


def assert_comes_home(folder: Path) -> None:
    files = list((folder / "out").iterdir())
    assert {path.name for path in files} <= {
        "gpu-cpu.json", "failures.txt", "log.txt", "tests.jsonl", "checks.jsonl", "times.jsonl",
        ".gpu-cpu.json.new",
    }  # fmt: skip
    assert all(path.stat().st_size < 16 << 20 for path in files)
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())


def a_visit(folder: Path, *options: object) -> evidence.Visit:
    words = ["--prebuilt", folder / "built", "--out", folder / "out", *options]
    this = evidence.Visit(visit.parse(list(map(str, words))), folder)
    this.document = {"machine": {}}
    return this
