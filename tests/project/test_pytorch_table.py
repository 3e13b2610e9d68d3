"""The table beside nn.RNN is what the program writes, and every line works with ours."""

from __future__ import annotations

import functools
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


def test_the_document_has_the_table() -> None:
    text = program["DOCUMENT"].read_text(encoding="utf-8")
    head = re.search(r"^\| on cpu .*`torch.nn.RNN` (\S+) \|$", text, re.MULTILINE)
    assert head is not None
    if head[1] != torch.__version__:
        pytest.skip(f"the table is of torch {head[1]}, this is {torch.__version__}")
    assert program["with_table"](text) == text, "python docs/pytorch_table.py   writes it"


def test_an_error_is_named() -> None:
    assert program["outcome"](wrong, None) == "`RuntimeError: a \\| b`"


def test_what_works_with_both_is_no_row() -> None:
    assert program["row"]("area", "what", lambda rnn: None, "") is None
    expected = "| area | what | `RuntimeError: a \\| b` | `RuntimeError: a \\| b` |"
    assert program["row"]("area", "what", wrong, "") == expected


def test_a_row_stays_where_a_package_is_missing() -> None:
    committed = "| area | row | works | fails |\n\nThese work with both:\none; the\nother."
    row = functools.partial(program["row"], "area", line=missing, committed=committed)
    assert row(what="row") == "| area | row | works | fails |"
    assert row(what="the other") is None
    with pytest.raises(ModuleNotFoundError):
        row(what="new")


def wrong(rnn: object) -> None:
    raise RuntimeError("a | b\nc")


def missing(rnn: object) -> None:
    raise ModuleNotFoundError("no such package")
