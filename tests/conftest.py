from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic algorithms on CUDA


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in one line why tests were skipped: most need what most machines do not have."""
    reasons = [report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])]
    if not reasons:
        return
    gpu = sum("CUDA" in reason for reason in reasons)
    data = sum("FASTRNN_DATA" in reason for reason in reasons)
    needs = {
        "a GPU": gpu,
        "data sets in $FASTRNN_DATA": data,
        "something else (-rs says what)": len(reasons) - gpu - data,
    }
    words = ", ".join(f"{count:,} need {what}" for what, count in needs.items() if count)
    terminalreporter.write_line(f"{len(reasons):,} skipped: {words}")


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fill fresh memory with NaN, from C++ too: an element that a kernel forgot fails its test."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def exact_float32(request: pytest.FixtureRequest) -> Iterator[None]:
    """On a GPU no TF32 in nn.RNN and fastrnn unless a test sets it: the reference has none."""
    rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = rnn.fp32_precision, matmul.fp32_precision
    if request.node.get_closest_marker("gpu"):
        rnn.fp32_precision = "ieee"
    yield
    rnn.fp32_precision, matmul.fp32_precision = before


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return request.param
