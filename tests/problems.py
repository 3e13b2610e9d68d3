"""The numbers that a case is tested with, and what nn.RNN, fastrnn and the truth make of them."""

from __future__ import annotations

import torch
from cases import Case, away_from_the_kink
from torch import Tensor

import fastrnn
from fastrnn import reference


class Problem:
    """A case's weights, input, state, lengths and gradients, the same for every implementation.

    They are stored in ``dtype``, and converted to the one that an implementation computes in.
    """

    def __init__(self, case: Case, dtype: torch.dtype = torch.float64, device: str = "cpu") -> None:
        self.case, self.device = case, device
        shape = (case.batch, case.seq_len) if case.batch_first else (case.seq_len, case.batch)
        states = case.num_layers * (2 if case.bidirectional else 1)
        self.x = torch.randn(*shape, case.input_size, dtype=dtype)
        self.hx = torch.randn(states, case.batch, case.hidden_size, dtype=dtype)
        self.lengths = torch.randint(0, case.seq_len + 1, (case.batch,))
        self.lengths[0] = case.seq_len
        features = case.hidden_size * (2 if case.bidirectional else 1)
        self.grad_output = torch.randn(*shape, features, dtype=dtype)
        self.grad_hn = torch.randn(states, case.batch, case.hidden_size, dtype=dtype)
        module = case.module(torch.nn.RNN, dtype)
        if case.nonlinearity == "relu":
            self.hx.clamp_(-1, 1)
            away_from_the_kink(module, self.x)
        self.weights = module.state_dict()

    def results(self, run, dtype: torch.dtype) -> dict[str, Tensor]:
        """Outputs and gradients by name of ``run(input, hx, weights) -> output, hn``."""
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

    def truth(self) -> dict[str, Tensor]:
        case = self.case

        def run(x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return reference.rnn(
                x,
                hx,
                list(weights.values()),
                lengths=self.lengths.to(x.device) if case.lengths else None,
                has_biases=case.bias,
                num_layers=case.num_layers,
                nonlinearity=case.nonlinearity,
                bidirectional=case.bidirectional,
                batch_first=case.batch_first,
            )

        return self.results(run, torch.float64)

    def theirs(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """nn.RNN, with lengths row by row: it has no such argument."""
        module = self.case.module(torch.nn.RNN, dtype, self.device)

        def call(x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.func.functional_call(module, weights, (x, hx))

        def by_rows(
            x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]
        ) -> tuple[Tensor, Tensor]:
            dim = 0 if self.case.batch_first else 1
            outputs, states = [], []
            for b, length in enumerate(self.lengths.tolist()):
                state = (
                    hx[:, b : b + 1].contiguous()
                    if hx is not None
                    else torch.zeros_like(self.grad_hn[:, :1]).to(x)
                )
                rest = self.case.seq_len - length
                row = x.narrow(dim, b, 1).narrow(1 - dim, 0, length)
                shape = list(self.grad_output.shape)
                shape[dim], shape[1 - dim] = 1, rest
                padding = x.new_zeros(shape)
                output = padding
                if length > 0:
                    output, state = call(row, state if hx is not None else None, weights)
                    output = torch.cat([output, padding], 1 - dim)
                outputs.append(output)
                states.append(state)
            return torch.cat(outputs, dim), torch.cat(states, 1)

        return self.results(by_rows if self.case.lengths else call, dtype)

    def ours(self, dtype: torch.dtype) -> dict[str, Tensor]:
        module = self.case.module(fastrnn.RNN, dtype, self.device)
        lengths = self.lengths.to(self.device) if self.case.lengths else None

        def call(x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.func.functional_call(module, weights, (x, hx), {"lengths": lengths})

        return self.results(call, dtype)
