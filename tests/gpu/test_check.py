"""``python -m fastrnn check``."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from fastrnn import _check


def test_the_command() -> None:
    """A table, a line to report, and status 0."""
    command = [sys.executable, "-m", "fastrnn", "check", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    header, *rows, empty, last = done.stdout.splitlines()
    assert header.split() == ["kernel", "dtype", "error", "allowed", "us/step", "nn.RNN"]
    assert len(rows) == len(_check.SIZES) * len(_check.DTYPES)
    for row in rows:
        error, allowed, ours, theirs = map(float, row.split()[2:])
        assert error <= allowed
        assert ours > 0 < theirs
    assert empty == ""
    assert last.endswith(f"{len(rows)} cases, all right")


def test_a_reader_that_stops_early() -> None:
    """As ``python -m fastrnn check | head -2``: no traceback, and the status of SIGPIPE."""
    command = [sys.executable, "-m", "fastrnn", "check", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"kernel")
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 141


@pytest.mark.parametrize("result", ["output", "hn"])
def test_a_wrong_number_is_named(
    result: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of packed rows alone, in float16: eight roundings of the last unit of the last row."""

    def spoiled(x: Any, *arguments: Any, **options: Any) -> Any:
        output, hn = rnn(x, *arguments, **options)
        if not isinstance(x, torch.Tensor) and x.data.dtype == torch.float16:
            wrong = output.data if result == "output" else hn[-1]
            with torch.no_grad():
                wrong.data[-1, -1] += 8 * 2**-11
        return output, hn

    rnn = _check.rnn
    monkeypatch.setattr(_check, "rnn", spoiled)
    monkeypatch.setattr(_check, "SIZES", [(8, 64)])
    assert _check.run("cpu") == 1
    wrong = [line for line in capsys.readouterr().out.splitlines() if "WRONG" in line]
    assert len(wrong) == 1
    assert f"WRONG: packed: {result} is off by" in wrong[0]


def test_results_of_cuda_are_gathered() -> None:
    half = torch.float16
    good, bad = _check._cuda_kernels(
        [
            ("tile:64x8x1", half, "whole", 1e-4, 6e-4, ""),
            ("tile:64x8x1", half, "packed", 3e-4, 6e-4, ""),
            ("step", half, "whole", 1e-4, 6e-4, ""),
            ("step", half, "packed", 1.0, 6e-4, "hn[0] is off"),
        ]
    )
    assert good == _check.Found("tile:64x8x1", half, 3e-4, 6e-4, "", 8, 64)
    assert (bad.error, bad.fault) == (1.0, "packed: hn[0] is off")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert _check.run("cuda") == 1
    assert "expected a CUDA device, but torch " in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_cuda_kernel() -> None:
    command = [sys.executable, "-m", "fastrnn", "check", "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
