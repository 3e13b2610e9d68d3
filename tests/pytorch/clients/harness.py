"""How tools take fastrnn.RNN, and the table of them in docs/pytorch.md.

A tool is a function that uses it on a model and returns numbers. It takes ours in that way in which
the numbers are those of the same model with nn.RNN: as it is, in `fastrnn.as_torch`, or not at all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastrnn

HERE = Path(__file__).parents[1]
DOCUMENT = HERE.parents[1] / "docs/pytorch.md"
MARKS = "<!-- tools -->", "<!-- /tools -->"

T, I, H = 8, 3, 32  # noqa: E741  (seq_len, input_size, hidden_size)

AS_IT_IS, IN_AS_TORCH, NOT = "as is", "inside `as_torch`", "no"
NEITHER = "no; neither does `nn.RNN`"


class Classifier(nn.Module):
    """Whether the first feature of a sequence sums to more than zero: scores (B, 2)."""

    def __init__(self, rnn_class: type[nn.RNNBase] = fastrnn.RNN) -> None:
        super().__init__()
        self.rnn = rnn_class(I, H, batch_first=True)
        self.linear = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        output, hn = self.rnn(x)
        return self.linear(output.mean(1) + hn[-1])


def sequences(count: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, T, I)
    return x, (x[..., 0].sum(1) > 0).long()


def batches() -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*sequences(64)), 16)


def sample() -> Tensor:
    return sequences(2)[0]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


@dataclass(frozen=True)
class Tool:
    package: str
    what: str  # is compared
    run: Callable[[Any], Any]
    how: str


TOOLS: list[Tool] = []


def tool(package: str, what: str, how: str = AS_IT_IS) -> Callable[..., Any]:
    """A decorator, of a function from a model to numbers."""

    def add(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        TOOLS.append(Tool(package, what, run, how))
        return run

    return add


def outcome(tool: Tool, rnn_class: type[nn.RNNBase], as_torch: bool = False) -> Any:
    """Its numbers, or its error."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    torch.compiler.reset()
    model = Classifier(rnn_class)
    try:
        if as_torch:
            with fastrnn.as_torch(model):
                return tool.run(model)
        return tool.run(model)
    except ImportError:  # the tool was not run
        raise
    except Exception as error:
        return error.with_traceback(None)


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Exception) or isinstance(theirs, Exception):
        return False
    try:
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    except AssertionError:
        return False
    return True


def how(tool: Tool) -> tuple[str, str]:
    """How it takes ours, and what was seen."""
    theirs, ours = outcome(tool, nn.RNN), outcome(tool, fastrnn.RNN)
    seen = f"nn.RNN: {theirs!r:.500}\nours: {ours!r:.500}"
    if same(ours, theirs):
        return AS_IT_IS, seen
    inside = outcome(tool, fastrnn.RNN, as_torch=True)
    seen += f"\nin as_torch: {inside!r:.500}"
    if (
        isinstance(ours, Exception)
        and isinstance(theirs, Exception)
        and repr(inside) == repr(theirs)
    ):
        return NEITHER, seen
    return IN_AS_TORCH if same(inside, theirs) else NOT, seen


def versions() -> dict[str, str]:
    """Of the packages in the two lists of requirements."""
    text = "".join(file.read_text() for file in HERE.glob("requirements-clients*.txt"))
    return dict(re.findall(r"^([\w-]+)==(\S+)$", text, re.MULTILINE))


def table() -> str:
    rows = ["| tool | version | what was compared | works |", "| --- | --- | --- | --- |"]
    package = ""
    for tool in TOOLS:
        head = f"{tool.package} | {versions()[tool.package]}" if tool.package != package else "|"
        rows.append(f"| {head} | {tool.what} | {tool.how} |")
        package = tool.package
    return "\n".join(rows)


def with_table(document: str) -> str:
    """The document with the table between its marks."""
    begin, end = MARKS
    before, _, rest = document.partition(begin)
    return f"{before}{begin}\n{table()}\n{end}{rest.partition(end)[2]}"
