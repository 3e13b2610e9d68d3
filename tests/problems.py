"""The numbers that a case is tested with, and what nn.RNN, fastrnn and the truth make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import Case, away_from_the_kink
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import reference

# From input, hx and weights to output and hn.
Run = Callable[[Tensor, Tensor | None, dict[str, Tensor]], tuple[Tensor, Tensor]]


class Problem:
    """A case's weights, input, state, marks and gradients, the same for every implementation.

    They are stored in ``dtype``, and converted to the one that an implementation computes in.
    """

    def __init__(self, case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
        self.case, self.device = case, device
        T, B = case.seq_len, case.batch
        rows = (B, T) if case.batch_first else (T, B)
        states = case.num_layers * case.directions
        features = case.hidden_size * case.directions
        self.x = torch.randn(*rows, case.input_size, dtype=dtype)
        self.hx = torch.randn(states, B, case.hidden_size, dtype=dtype)
        self.lengths = torch.randint(0, T + 1, (B,))
        self.lengths[-1], self.lengths[0] = 0, T
        self.grad_output = torch.randn(*rows, features, dtype=dtype)
        self.grad_hn = torch.randn(states, B, case.hidden_size, dtype=dtype)
        self.batch_sizes = self.reset = self.dropout_mask = None
        if case.packed:
            self.lengths.clamp_(min=1)
            self.sort_lengths()
            valid = self.valid()
            self.batch_sizes = valid.sum(1)
            self.x, self.grad_output = self.x[valid], self.grad_output[valid]
        if case.reset:
            self.reset = torch.rand(rows) < 0.3
        if case.dropout:
            rows_of_mask = (len(self.x),) if case.packed else (T, B)
            shape = (case.num_layers - 1, *rows_of_mask, features)
            self.dropout_mask = torch.randint(0, 2, shape) * 1.25
        module = case.module(torch.nn.RNN, dtype)
        if case.nonlinearity == "relu":
            self.hx.clamp_(-1, 1)
            away_from_the_kink(module, self.x)
        self.weights = module.state_dict()

    def sort_lengths(self) -> None:
        """The longest row first, as packing has them."""
        self.lengths = self.lengths.sort(descending=True).values

    def valid(self) -> Tensor:
        """(T, B), true at a row's own steps."""
        return torch.arange(self.case.seq_len)[:, None] < self.lengths

    def results(self, run: Run, dtype: torch.dtype) -> dict[str, Tensor]:
        """Outputs and gradients by name."""
        to = {"dtype": dtype, "device": self.device, "copy": True}
        x = self.x.to(**to).requires_grad_()
        hx = self.hx.to(**to).requires_grad_() if self.case.hx else None
        weights = {name: w.to(**to).requires_grad_() for name, w in self.weights.items()}
        output, hn = run(x, hx, weights)
        torch.autograd.backward([output, hn], [self.grad_output.to(**to), self.grad_hn.to(**to)])
        results = {"output": output, "hn": hn, "input": x.grad}
        if hx is not None:
            results["hx"] = hx.grad
        results |= {name: w.grad for name, w in weights.items()}
        return {name: y.detach().cpu() for name, y in results.items()}

    def arguments(self, x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> list[Any]:
        """Of the operator and of the reference."""
        case = self.case
        lengths = self.lengths if case.lengths else None
        mask = None if self.dropout_mask is None else self.dropout_mask.to(x.dtype)
        marks = [m if m is None else m.to(self.device) for m in (lengths, self.reset, mask)]
        options = [case.bias, case.num_layers, case.nonlinearity, case.bidirectional]
        return [x, hx, [*weights.values()], self.batch_sizes, *marks, *options, case.batch_first]

    def truth(self) -> dict[str, Tensor]:
        return self.by_reference(torch.float64)

    def by_reference(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return self.results(lambda *given: reference.rnn(*self.arguments(*given)), dtype)

    def theirs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """nn.RNN, or the reference where nn.RNN has no such argument."""
        case = self.case
        if case.reset or case.dropout:
            return self.by_reference(dtype)
        module = case.module(torch.nn.RNN, dtype, self.device)

        def call(
            x: Tensor | PackedSequence, hx: Tensor | None, weights: dict[str, Tensor]
        ) -> tuple[Any, Tensor]:
            return torch.func.functional_call(module, weights, (x, hx))

        def packed(
            x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]
        ) -> tuple[Tensor, Tensor]:
            output, hn = call(PackedSequence(x, self.batch_sizes), hx, weights)
            return output.data, hn

        def padded(
            x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]
        ) -> tuple[Tensor, Tensor]:
            """Packed but for the rows without a step, which packing refuses."""
            rows = 0 if case.batch_first else 1
            there = self.lengths.nonzero().flatten()
            lengths, there = self.lengths[there], there.to(self.device)
            given = pack_padded_sequence(
                x.index_select(rows, there), lengths, case.batch_first, enforce_sorted=False
            )
            state = torch.zeros_like(self.grad_hn).to(x) if hx is None else hx
            output, hn = call(given, None if hx is None else hx.index_select(1, there), weights)
            output, _ = pad_packed_sequence(output, case.batch_first, total_length=case.seq_len)
            zeros = torch.zeros_like(self.grad_output).to(x)
            return zeros.index_copy(rows, there, output), state.index_copy(1, there, hn)

        run = packed if case.packed else padded if case.lengths else call
        return self.results(run, dtype)

    def ours(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """fastrnn.RNN, or the operator where that has no such argument."""
        case = self.case
        module = case.module(fastrnn.RNN, dtype, self.device)

        def call(x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            arguments = self.arguments(x, hx, weights)
            if case.dropout:
                return torch.ops.fastrnn.rnn(*arguments)
            input = PackedSequence(x, self.batch_sizes) if case.packed else x
            marks = dict(zip(("lengths", "reset"), arguments[4:6], strict=True))
            output, hn = torch.func.functional_call(module, weights, (input, hx), marks)
            return output.data if case.packed else output, hn

        return self.results(call, dtype)
