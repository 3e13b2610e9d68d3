"""The fuzzer itself: it repeats, shrinks, survives crashes, and sees a touch outside a tensor."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fuzz import available
from guarded import LAYOUTS, Memory, strides_of
from planted_faults import FAULTS, OF_THE_CHECKS, OF_THE_EXTENSION, Fault, file_of

ROOT = Path(__file__).parents[2]


def fuzz(*arguments: str) -> tuple[int, list[str]]:
    """The exit status, and the lines that it prints."""
    command = [sys.executable, "tests/fuzz/fuzz.py", "--isa", available()[-1], *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return ended.returncode, (ended.stdout + ended.stderr).splitlines()


def problems(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("Problem(")]


def test_a_seed_gives_the_same_problems() -> None:
    runs = [fuzz("--problems", "40", "--list", "--seed", seed) for seed in ("0", "0", "1")]
    for status, lines in runs:
        assert status == 0, lines
    first, again, other = (problems(lines) for _, lines in runs)
    assert first == again
    assert len(first) >= 40
    assert first != other


def test_a_failure_shrinks_to_a_line_that_repeats_it() -> None:
    fake = ["--fake", "hidden_size > 6 and rows == 'lengths'"]
    status, lines = fuzz("--seconds", "20", *fake)
    assert status == 1, lines
    line, wrong = lines[:2]
    assert wrong == "  as asked"
    assert line.endswith("--repeat \"Problem(hidden_size=7, rows='lengths')\"")
    command, path, *arguments = shlex.split(line)
    assert (command, path) == ("python", "tests/fuzz/fuzz.py")
    assert fuzz(*arguments, *fake) == (1, ["as asked"])
    assert fuzz(*arguments) == (0, ["nothing wrong"])


def test_a_crash_is_a_failure() -> None:
    crash = "batch > 3 and __import__('os').abort()"
    status, lines = fuzz("--seconds", "20", "--no-shrink", "--fake", crash)
    assert status == 1
    assert "--repeat" in lines[0]
    assert lines[1] == "  crashed: SIGABRT"


@pytest.mark.parametrize(
    "fault", FAULTS + OF_THE_EXTENSION + OF_THE_CHECKS, ids=lambda fault: fault.name
)
def test_planted_faults_apply(fault: Fault) -> None:
    file = file_of(fault.old, ROOT / "csrc")
    assert fault.new != fault.old
    assert (ROOT / "csrc" / fault.source(file)).exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_guarded_tensors(layout: str) -> None:
    memory, values = Memory(), torch.randn(3, 4, 5)
    x = memory.put("x", values, strides_of(layout, values.shape))
    assert x.shape == values.shape
    assert x.untyped_storage().nbytes() <= values.untyped_storage().nbytes() * 5
    if layout not in ("windows", "expanded0", "expanded1"):
        assert torch.equal(x, values)
    assert not x.isnan().any()
    assert memory.written() == []
    x[-1, -1, -1] += 1
    assert memory.written() == ["x"]


def test_a_write_beside_a_tensor_shows() -> None:
    memory = Memory()
    x = memory.empty("x", (4, 3), torch.bfloat16, strides_of("sliced", (4, 3)))
    rows = torch.tensor([True, False, True, True])
    x[rows] = 1.0
    assert not memory.written_outside(x, rows)
    x[1, 0] = 1.0
    assert memory.written_outside(x, rows)
    x.view(torch.int16)[1, 0] = -1
    assert not memory.written_outside(x, rows)
    x.as_strided((1,), (1,), x.storage_offset() + 3)[0] = 0.0  # between two rows
    assert memory.written_outside(x, rows)


TOUCH = """
import ctypes, random, torch
from guarded import Memory

class AtEnd(random.Random):
    def random(self):
        return {at_end}

x = Memory().put("x", torch.ones(5), None, AtEnd())
assert x.isfinite().all()
print("placed", flush=True)
ctypes.c_float.from_address(x.data_ptr() + {offset}).value
"""


@pytest.mark.parametrize(("at_end", "offset"), [(0.0, 4 * 5), (1.0, -4)], ids=["end", "start"])
def test_a_touch_outside_the_pages_crashes(at_end: float, offset: int) -> None:
    """Of a tensor at the end of its pages what follows, at the start what comes before."""
    program = TOUCH.format(at_end=at_end, offset=offset)
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT / "tests/fuzz")
    assert ended.stdout == "placed\n", ended.stderr
    assert ended.returncode < 0


PROGRAMS = [path for path in Path(__file__).parent.glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", sorted(set(PROGRAMS) - {Path(__file__)}), ids=lambda p: p.name)
def test_programs_start(path: Path) -> None:
    subprocess.run(
        [sys.executable, str(path), "--help"], check=True, capture_output=True, timeout=300
    )
