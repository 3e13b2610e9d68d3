"""The soak of soak.py, for seconds: it passes, and finds what leaks and what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import os, sys, threading
sys.path.insert(0, {tests!r})
import soak
kept = []
{fault}
status = soak.main(["--minutes", "0.05", "--growth", "16"])
sys.stdout.flush()
os._exit(status)
"""
FAULTS = {
    "none": ("",),
    "memory": (
        "soak.HOLDERS[0] = lambda module: kept.append(bytearray(4 << 20)) or module",
        "memory grew by",
    ),
    "threads and files": (
        "def begin(module):\n"
        "    os.dup(0)\n"
        "    threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "    return module\n"
        "soak.HOLDERS[0] = begin",
        "threads: ",
        "open files: ",
    ),
    "results": (
        "cell = soak.WAYS['cell']\n"
        "def by_cell(*args):\n"
        "    return [y + threading.active_count() - 1 for y in cell(*args)]\n"
        "soak.WAYS['cell'] = by_cell",
        "AssertionError: call ",
    ),
}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("name", FAULTS)
def test_soak(name: str) -> None:
    fault, *words = FAULTS[name]
    program = RUN.format(tests=str(Path(__file__).parent), fault=fault)
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == (name != "none"), run.stdout + run.stderr
    for text in words:
        assert text in run.stdout
