"""The README's table beside nn.RNN is what the program prints, and every line works with ours."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

import fastrnn

ROOT = Path(__file__).parents[2]
program = runpy.run_path(str(ROOT / "docs/pytorch_table.py"))


def needs_onnx() -> None:
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("line", program["LINES"], ids=lambda line: line[1])
def test_line_works(line: tuple[str, str, object]) -> None:
    if line[0] == "ONNX":
        needs_onnx()
    assert program["outcome"](line[2], fastrnn.RNN) == "works"


def test_readme_has_the_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head = re.search(r"^\| on cpu .*`torch.nn.RNN` (\S+) \|$", text, re.MULTILINE)
    assert head is not None
    if head[1] != torch.__version__:
        pytest.skip(f"the table is of torch {head[1]}, this is {torch.__version__}")
    needs_onnx()
    assert program["table"]("cpu") in text


def test_an_error_is_named() -> None:
    def wrong(rnn: object) -> None:
        raise RuntimeError("a | b\nc")

    assert program["outcome"](wrong, None) == "`RuntimeError: a \\| b`"
