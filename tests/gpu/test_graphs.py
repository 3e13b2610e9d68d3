"""A training step, captured once in a CUDA graph and replayed on new data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrnn import RNN

T, B, I, H = 20, 16, 8, 64  # noqa: E741  (seq_len, batch, input_size, hidden_size)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


class Model(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.rnn = RNN(I, H, 2, **options)
        self.linear = nn.Linear(H * (2 if self.rnn.bidirectional else 1), 1)

    def forward(self, input: Tensor, marks: Tensor) -> Tensor:
        kind = {torch.int64: "lengths", torch.bool: "reset"}.get(marks.dtype)
        return self.linear(self.rnn(input, **({kind: marks} if kind else {}))[0]).squeeze(-1)


def batches(count: int, kind: str) -> list[tuple[Tensor, Tensor]]:
    marks = {
        "whole": lambda: torch.zeros(()),
        "lengths": lambda: torch.randint(0, T + 1, (B,)),
        "reset": lambda: torch.rand(T, B) < 0.2,
    }[kind]
    return [(torch.randn(T, B, I).cuda(), marks().cuda()) for _ in range(count)]


def loss_of(output: Tensor, input: Tensor) -> Tensor:
    return (output - input.sum(-1).cumsum(0)).square().mean()


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "nonlinearity": "relu"}], ids=str)
@pytest.mark.parametrize("kind", ["whole", "lengths", "reset"])
def test_whole_training_step(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    eager = Model(**options).cuda()
    model = copy.deepcopy(eager)
    data = batches(8, kind)

    def stepper(model: nn.Module) -> Any:
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01, capturable=True)

        def step(input: Tensor, marks: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model(input, marks), input)
            loss.backward()
            optimizer.step()
            return loss

        return step

    step_eager, step = stepper(eager), stepper(model)
    expected = [step_eager(*pair).item() for pair in data[:3]]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        losses = [step(*pair).item() for pair in data[:3]]
    torch.cuda.current_stream().wait_stream(side)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-4)

    input, marks = (y.clone() for y in data[0])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static_loss = step(input, marks)
    replayed, expected = [], []
    for pair in data[3:]:  # both optimizers have taken the same steps
        input.copy_(pair[0])
        marks.copy_(pair[1])
        graph.replay()
        replayed.append(static_loss.item())
        expected.append(step_eager(*pair).item())
    torch.testing.assert_close(replayed, expected, rtol=1e-3, atol=1e-4)
    assert len(set(replayed)) == len(replayed)


# torch keeps gradient nodes of its own warm-up, which ran on another stream.
@pytest.mark.filterwarnings("ignore:The AccumulateGrad node's stream")
def test_make_graphed_callables() -> None:
    torch.manual_seed(0)
    eager = RNN(I, H, 2).cuda()
    sample = torch.randn(T, B, I, device="cuda", requires_grad=True)
    graphed = torch.cuda.make_graphed_callables(copy.deepcopy(eager), (sample,))
    for _ in range(3):
        results = []
        data = torch.randn(T, B, I, device="cuda")
        for module in (eager, graphed):
            module.zero_grad()
            input = data.clone().requires_grad_()
            output, hn = module(input)
            (output.square().sum() + hn.sum()).backward()
            weights = [w.grad.clone() for w in module.parameters()]
            results.append([output.detach().clone(), hn.detach().clone(), input.grad, *weights])
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_inference_under_autocast(dtype: torch.dtype) -> None:
    module = RNN(I, H, 2).cuda().requires_grad_(False)
    input = torch.randn(T, B, I, device="cuda")
    with torch.autocast("cuda", dtype, cache_enabled=False):
        module(input)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output, _ = module(input)
    input.copy_(torch.randn(T, B, I))
    graph.replay()
    with torch.autocast("cuda", dtype):
        expected, _ = module(input)
    assert output.dtype == dtype
    torch.testing.assert_close(output, expected)
