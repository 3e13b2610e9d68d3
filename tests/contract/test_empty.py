"""Calls without rows, steps, features or hidden units: as torch's modules have them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from both import assert_agree, outcome
from torch import nn

from fastrnn import RNN, RNNCell

T, I, H = 3, 4, 5  # noqa: E741  (seq_len, input_size, hidden_size)

CELLS = [(0, 0, 2), (0, 3, 2), (3, 0, 2), (3, 4, 0), (0, 0, 0), (3, 0, 0), (0, 3, 0), (3, 0, None),
         (0, 3, None), (0, 0, None)]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("options", [{}, {"bias": False, "nonlinearity": "relu"}], ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("input_size", "hidden_size", "batch"), CELLS)
def test_cell_without_elements(
    input_size: int,
    hidden_size: int,
    batch: int | None,
    dtype: torch.dtype,
    given: bool,
    options: dict[str, Any],
) -> None:
    def run(cls: type) -> object:
        cell = cls(input_size, hidden_size, **options, dtype=dtype)
        rows = () if batch is None else (batch,)
        x = torch.randn(*rows, input_size, dtype=dtype, requires_grad=True)
        h = torch.randn(*rows, hidden_size, dtype=dtype, requires_grad=True) if given else None
        result = cell(x, h)
        with torch.no_grad():
            again = cell(x, h)
        wanted = [y for y in (x, h, *cell.parameters()) if y is not None]
        return result, again, torch.autograd.grad(result.sum(), wanted, allow_unused=True)

    assert_agree(run, RNNCell)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("hidden_size", [0, 3])
def test_cell_without_elements_under_a_transform(hidden_size: int) -> None:
    cell = RNNCell(0, hidden_size)
    h = torch.func.vmap(cell)(torch.zeros(5, 2, 0))
    torch.testing.assert_close(h, cell(torch.zeros(2, 0)).expand(5, 2, hidden_size))


ROWS = ["padded", "padded hx", "batch_first", "packed", "no batch"]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_module_without_rows(rows: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, **options, dtype=dtype, batch_first=rows == "batch_first")
        x = torch.randn(T, 0, I, dtype=dtype)
        if rows == "no batch":
            x = torch.randn(1, I, dtype=dtype)
        elif rows == "batch_first":
            x = torch.randn(0, T, I, dtype=dtype)
        x.requires_grad_()
        states = module.num_layers * (1 + module.bidirectional)
        h = torch.randn(states, 0, H, dtype=dtype) if rows == "padded hx" else None
        if rows == "packed":
            sequence = nn.utils.rnn.PackedSequence(x[:, :0].flatten(0, 1), torch.tensor([0, 0]))
            (output, *_), hn = module(sequence)
        else:
            output, hn = module(x, h)
        total = output.sum() + hn.sum()
        wanted = [*module.parameters()] + ([] if rows == "packed" else [x])
        grads = torch.autograd.grad(total, wanted)
        return output, hn, [g.clone(memory_format=torch.contiguous_format) for g in grads]

    assert_agree(run)


@pytest.mark.parametrize("sizes", [(0, I), (T, 0, I), (0, 2, I), (0, 0, I)], ids=str)
def test_module_without_steps_or_rows(sizes: tuple[int, ...]) -> None:
    ours, theirs = (outcome(lambda cls: cls(I, H)(torch.zeros(sizes)), c) for c in (RNN, nn.RNN))
    assert type(ours) is type(theirs)
    if not isinstance(theirs, tuple):
        assert ours == theirs


@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_row_of_length_zero(dtype: torch.dtype, given: bool, device: str) -> None:
    """Its output is zero, its final state the initial one, through which its gradient passes."""
    rnn = RNN(I, H, 2, bidirectional=True, dtype=dtype, device=device)
    x = torch.randn(T, 3, I, dtype=dtype, device=device, requires_grad=True)
    hx = torch.randn(4, 3, H, dtype=dtype, device=device, requires_grad=True) if given else None
    output, hn = rnn(x, hx, lengths=torch.tensor([T, 0, 1], device=device))
    assert output[:, 1].count_nonzero() == 0
    expected = hn.new_zeros(4, H) if hx is None else hx[:, 1]
    torch.testing.assert_close(hn[:, 1], expected, rtol=0, atol=0)
    grad = torch.randn_like(hn)
    torch.autograd.backward([output, hn], [torch.ones_like(output), grad])
    assert x.grad is not None
    assert x.grad[:, 1].count_nonzero() == 0
    if hx is not None:
        assert hx.grad is not None
        torch.testing.assert_close(hx.grad[:, 1], grad[:, 1], rtol=0, atol=0)
