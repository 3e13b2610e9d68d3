"""torch.fx and torch.jit: what a trace holds, and that it serves other sizes."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_agree, assert_same
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from fastrnn import RNN


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


class Tagger(nn.Module):
    def __init__(self, cls: type = RNN, **options: object) -> None:
        super().__init__()
        self.first = nn.Linear(I, I)
        self.rnn = cls(I, H, 2, **options)
        self.last = nn.Linear(H, 2)

    def forward(self, input: Tensor) -> Tensor:
        output, hn = self.rnn(self.first(input))
        return self.last(output) * self.last(hn).mean()


def test_symbolic_trace_records_a_call_of_the_module() -> None:
    def run(cls: type) -> object:
        model = Tagger(cls, dropout=0.5)
        graph = torch.fx.symbolic_trace(model)
        calls = [(n.op, n.target) for n in graph.graph.nodes]
        torch.manual_seed(2)
        results = [graph(x(7, 3, I)), graph.eval()(x()), graph.train()(x())]
        return calls[:3], results

    assert_agree(run)


def test_symbolic_trace_of_the_module_itself() -> None:
    module, input = RNN(I, H), x(7, 3, I)
    graph = torch.fx.symbolic_trace(module)
    assert_same(graph(input, None, None, None), module(input))


def test_symbolic_trace_of_a_subclass_looks_inside() -> None:
    class Doubled(RNN):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
            return super().forward(2 * input, hx)[0]

    model, input = nn.Sequential(nn.Linear(I, I), Doubled(I, H)), x(7, 3, I)
    assert_same(torch.fx.symbolic_trace(model)(input), model(input))


JIT = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def saved_and_loaded(traced: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


@JIT
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_jit_trace_serves_other_sizes(batch_first: bool) -> None:
    model = Tagger(batch_first=batch_first).eval()
    for input in (x(), x(T, I)):
        traced = saved_and_loaded(torch.jit.trace(model, input))
        other = x(*([9, 4] if input.dim() == 3 else [9]), I)
        assert_same(traced(other), model(other))
    with pytest.raises(RuntimeError, match=r"expected w_ih of shape|input.size\(-1\)|size"):
        traced(x(9, I + 1))


class PackedTagger(nn.Module):
    def __init__(self, with_hx: bool, **options: object) -> None:
        super().__init__()
        self.rnn = RNN(I, H, 2, bidirectional=True, **options)
        self.with_hx = with_hx

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        sequence = pack_padded_sequence(input, lengths, enforce_sorted=False)
        hx = input.sum((0, 2)).view(1, -1, 1).expand(4, -1, H) if self.with_hx else None
        output, hn = self.rnn(sequence, hx)
        return output.data, hn


@JIT
@pytest.mark.filterwarnings("ignore:pack_padded_sequence has been called")
@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
def test_jit_trace_of_packed_input_serves_other_lengths(with_hx: bool) -> None:
    model = PackedTagger(with_hx)
    traced = torch.jit.trace(model, (x(), torch.tensor([2, 5])))
    other = x(9, 4, I), torch.tensor([1, 9, 9, 3])
    assert_same(saved_and_loaded(traced)(*other), model(*other))


@JIT
def test_jit_freeze_of_a_trace() -> None:
    model = Tagger().eval()
    frozen = torch.jit.freeze(torch.jit.trace(model, x()))
    assert not list(frozen.named_parameters())
    other = x(9, 4, I)
    torch.testing.assert_close(frozen(other), model(other).detach())


@JIT
def test_jit_trace_of_dropout_serves_other_sizes() -> None:
    model = Tagger(dropout=0.5)
    traced = torch.jit.trace(model, x(), check_trace=False)
    other = x(9, 4, I)
    torch.manual_seed(3)
    expected = model(other)
    torch.manual_seed(3)
    assert_same(traced(other), expected)


@JIT
def test_jit_script_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"RNN does not support torch\.jit\.script\. Use torch"):
        torch.jit.script(Tagger())
