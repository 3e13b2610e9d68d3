"""Outputs and gradients against the float64 reference, judged by nn.RNN's own error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import CASES, Case, assert_as_accurate
from problems import Problem
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn

# The last has weights that outgrow a cache: on two threads its columns are shared, not its rows.
ALL_CASES = [*CASES, Case(4, 11, 5, 730, num_layers=2, bidirectional=True, lengths=True)]
LAYERS = Case(13, 14, 5, 19, num_layers=2, bidirectional=True, batch_first=True, reset=True)
RESET = [
    Case(6, 3, 2, 5, reset=True),
    Case(6, 3, 2, 5, reset=True, hx=False),
    Case(6, 3, 2, 5, reset=True, lengths=True),
    Case(6, 3, 2, 5, reset=True, lengths=True, hx=False),
    LAYERS,
    replace(LAYERS, lengths=True),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def dtype_id(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("case", [*ALL_CASES, *RESET], ids=str)
def test_outputs_and_gradients(case: Case, dtype: torch.dtype, device: str) -> None:
    problem = Problem(case, dtype, device)
    assert_as_accurate(problem.ours(dtype), problem.theirs(dtype), problem.truth())


@pytest.mark.parametrize("case", [case for case in CASES if not case.lengths], ids=str)
def test_reference_is_nn_rnn(case: Case) -> None:
    problem = Problem(case, torch.float64, "cpu")
    theirs = problem.theirs(torch.float64)
    assert_as_accurate(problem.truth(), theirs, theirs)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_results_do_not_depend_on_threads(case: Case) -> None:
    problem = Problem(case, torch.float32, "cpu")
    if "torch" in fastrnn.info(case.module(fastrnn.RNN, torch.float32), problem.x)["kernel"]:
        pytest.skip("torch's own products, which depend on threads")
    threads = torch.get_num_threads()
    try:
        results = []
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            results.append(problem.ours(torch.float32))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, y in results[0].items():
            assert torch.equal(y, other[name]), name


@pytest.mark.parametrize("mode", ["packed", "lengths", "reset", "dropout", "frozen weights"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=dtype_id)
def test_shared_columns(mode: str, dtype: torch.dtype) -> None:
    """Threads that share the columns of w_hh, whatever else happens, compute what one computes."""
    torch.manual_seed(0)
    seq_len, batch, hidden_size = 4, 11, 730
    rnn = fastrnn.RNN(70, hidden_size, 2, bidirectional=True, dropout=0.3, dtype=dtype)
    rnn.train(mode == "dropout").requires_grad_(mode != "frozen weights")
    if "torch" in fastrnn.info(rnn, torch.zeros(seq_len, batch, 70, dtype=dtype))["kernel"]:
        pytest.skip("torch's own products, which depend on threads")
    x = torch.randn(seq_len, batch, 70, dtype=dtype)
    hx = torch.randn(4, batch, hidden_size, dtype=dtype)
    lengths = torch.randint(1, seq_len + 1, (batch,))
    arguments = {}
    if mode == "lengths":
        arguments["lengths"] = lengths
    elif mode == "reset":
        arguments["reset"] = torch.rand(seq_len, batch) < 0.3

    def results(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        leaf, state = x.clone().requires_grad_(), hx.clone().requires_grad_()
        rnn.zero_grad()
        input = leaf
        if mode == "packed":
            input = pack_padded_sequence(leaf, lengths, enforce_sorted=False)
        output, hn = rnn(input, state, **arguments)
        output = output.data if mode == "packed" else output
        torch.autograd.backward([output, hn], [output.detach().cos(), hn.detach().sin()])
        grads = [p.grad for p in rnn.parameters() if p.grad is not None]
        assert len(grads) == (0 if mode == "frozen weights" else 16)
        return [output.detach(), hn.detach(), leaf.grad, state.grad, *grads]

    threads = torch.get_num_threads()
    try:
        alone = results(1)
        for n in (2, 3):
            for expected, y in zip(alone, results(n), strict=True):
                assert torch.equal(expected, y)
    finally:
        torch.set_num_threads(threads)


def test_infinite_weights_do_not_reach_rows_that_have_ended() -> None:
    """A gradient of zero is not multiplied with w_hh: zero times infinity would be NaN."""
    grads = []
    for cls in (torch.nn.RNN, fastrnn.RNN):
        torch.manual_seed(0)
        rnn = cls(2, 3)
        with torch.no_grad():
            rnn.weight_hh_l0[0, 0] = float("inf")
        x = torch.randn(3, 2, 2, requires_grad=True)
        output, _ = rnn(pack_padded_sequence(x, torch.tensor([3, 1])), torch.ones(1, 2, 3))
        output.data.sum().backward()
        grads.append(x.grad[:, 1])
    assert grads[0].isfinite().all()
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize("create_graph", [False, True], ids=["kernels", "reference"])
def test_padding_may_be_nan(create_graph: bool) -> None:
    rnn = fastrnn.RNN(4, 5, 2, bidirectional=True)
    lengths = torch.tensor([5, 2, 0])
    x = torch.randn(5, 3, 4)
    padded = x.where((torch.arange(5)[:, None] < lengths)[..., None], torch.nan)
    weights = [*rnn.parameters()]
    results = [
        torch.autograd.grad(
            rnn(input, lengths=lengths)[0].sum(), weights, create_graph=create_graph
        )
        for input in (padded, x)
    ]
    for y, expected in zip(*results, strict=True):
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
@pytest.mark.parametrize("enforce_sorted", [True, False], ids=["sorted", "unsorted"])
@pytest.mark.parametrize(
    "case",
    [
        Case(6, 4, 3, 9),
        Case(6, 4, 3, 9, hx=False),
        Case(11, 20, 5, 33, num_layers=2, bidirectional=True),
        Case(11, 100, 5, 10, bidirectional=True, batch_first=True),
    ],
    ids=str,
)
def test_packed(case: Case, enforce_sorted: bool, dtype: torch.dtype, device: str) -> None:
    problem = Problem(case, dtype, device)
    lengths = torch.randint(1, case.seq_len + 1, (case.batch,))
    lengths[0] = case.seq_len
    if enforce_sorted:
        lengths = lengths.sort(descending=True).values

    def runner(cls: type, dtype: torch.dtype):
        module = case.module(cls, dtype, device)

        def run(x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            packed = pack_padded_sequence(x, lengths, case.batch_first, enforce_sorted)
            output, hn = torch.func.functional_call(module, weights, (packed, hx))
            for ours, given in zip(output[1:], packed[1:], strict=True):
                assert ours is given
            return pad_packed_sequence(output, case.batch_first)[0], hn

        return run

    truth = problem.results(runner(torch.nn.RNN, torch.float64), torch.float64)
    theirs = problem.results(runner(torch.nn.RNN, dtype), dtype)
    assert_as_accurate(problem.results(runner(fastrnn.RNN, dtype), dtype), theirs, truth)


@pytest.mark.parametrize("case", [case for case in CASES if case.lengths], ids=str)
def test_lengths_is_packing(case: Case, device: str) -> None:
    problem = Problem(case, torch.float32, device)
    problem.lengths.clamp_(min=1)
    module = case.module(fastrnn.RNN, torch.float32, device)
    order = problem.lengths.argsort(descending=True, stable=True).to(
        device
    )  # torch's own packing breaks ties anyhow
    back = order.argsort()
    dim = 0 if case.batch_first else 1

    def packed(x: Tensor, hx: Tensor | None, weights: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        x, hx = x.index_select(dim, order), None if hx is None else hx.index_select(1, order)
        sequence = pack_padded_sequence(x, problem.lengths[order.cpu()], case.batch_first)
        output, hn = torch.func.functional_call(module, weights, (sequence, hx))
        output = pad_packed_sequence(output, case.batch_first, total_length=case.seq_len)[0]
        return output.index_select(dim, back), hn.index_select(1, back)

    ours, expected = problem.ours(torch.float32), problem.results(packed, torch.float32)
    if device == "cuda":  # sums over all rows, which here are more, have other roundings
        return assert_as_accurate(expected, problem.theirs(torch.float32), problem.truth())
    for name, y in expected.items():
        assert torch.equal(ours[name], y), name


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_nan_and_inf_propagate(nonlinearity: str, dtype: torch.dtype, device: str) -> None:
    rnn = fastrnn.RNN(2, 33, nonlinearity=nonlinearity, device=device, dtype=dtype)
    nn = torch.nn.RNN(2, 33, nonlinearity=nonlinearity, dtype=dtype)
    nn.load_state_dict(rnn.state_dict())
    x = torch.randn(4, 3, 2, dtype=dtype)
    x[1, 0, 0], x[1, 1, 0] = float("nan"), float("inf")
    output, expected = rnn(x.to(device))[0].cpu(), nn(x)[0]
    assert output.isnan().any()
    assert torch.equal(output.isnan(), expected.isnan())
    assert torch.equal(output.isinf(), expected.isinf())


def test_relu_passes_gradients_of_nan() -> None:
    ours, theirs = fastrnn.RNN(2, 3, nonlinearity="relu"), torch.nn.RNN(2, 3, nonlinearity="relu")
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(3, 1, 2)
    x[2, 0, 0] = float("nan")
    for rnn in (ours, theirs):
        rnn(x)[0].sum().backward()
    torch.testing.assert_close(ours.bias_ih_l0.grad, theirs.bias_ih_l0.grad, equal_nan=True)


def test_infinite_weights_do_not_depend_on_threads() -> None:
    rnn = fastrnn.RNN(4, 128, bidirectional=True)
    with torch.no_grad():
        rnn.weight_hh_l0_reverse[0, 0] = float("inf")
    x, lengths = torch.randn(20, 40, 4), torch.arange(40) % 20 + 1
    threads = torch.get_num_threads()
    outputs = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            outputs.append(rnn(x, lengths=lengths)[0])
    finally:
        torch.set_num_threads(threads)
    assert outputs[0].isnan().any()
    for output in outputs[1:]:
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("lengths", [[8, 4, 3], [1] * 20], ids=["few rows", "one step"])
def test_packed_and_padded_choose_alike(lengths: list[int]) -> None:
    """The choice of kernel goes by the rows that are valid, not by the padding."""
    rnn, given = fastrnn.RNN(8, 96), torch.tensor(lengths)
    x = torch.randn(8, len(lengths), 8)
    packed, packed_hn = rnn(pack_padded_sequence(x, given))
    results = []
    for output, hn in [rnn(x, lengths=given), (pad_packed_sequence(packed)[0], packed_hn)]:
        loss = output.square().sum() + hn.sin().sum()
        grads = torch.autograd.grad(loss, [*rnn.parameters()])
        results.append([output[: max(lengths)], hn, *grads])
    for ours, of_packed in zip(*results, strict=True):
        assert torch.equal(ours, of_packed)


def test_strided_arguments(device: str) -> None:
    rnn = fastrnn.RNN(6, 5, num_layers=2, device=device)
    x = torch.randn(6, 4, 7, device=device).permute(2, 1, 0)
    hx = torch.randn(5, 1, 2, device=device).permute(2, 1, 0).expand(2, 4, 5)
    output, hn = rnn(x, hx)
    expected, expected_hn = rnn(x.contiguous(), hx.contiguous())
    assert torch.equal(output, expected)
    assert torch.equal(hn, expected_hn)
    repeated = x[:1].expand(7, 4, 6)
    assert torch.equal(rnn(repeated)[0], rnn(repeated.contiguous())[0])


@pytest.mark.parametrize("lengths", [[0, 5], [1, -1], [1, 9]], ids=str)
def test_bad_lengths(lengths: list[int]) -> None:  # on CUDA: tests/gpu/test_on_gpu.py
    rnn = fastrnn.RNN(3, 4)
    x = torch.randn(4, 2, 3)
    with pytest.raises(ValueError, match=r"lengths between 0 and 4, got"):
        rnn(x, lengths=torch.tensor(lengths))


@pytest.mark.parametrize(
    "lengths", [[5, 2], (5, 2), torch.tensor([5, 2], dtype=torch.int32)], ids=str
)
def test_lengths_as_packing_takes_them(lengths: Any) -> None:
    rnn, x = fastrnn.RNN(3, 4), torch.randn(5, 2, 3)
    expected = rnn(x, lengths=torch.tensor([5, 2]))
    assert all(map(torch.equal, rnn(x, lengths=lengths), expected))
    run = torch.compile(rnn, fullgraph=True, backend="eager")
    assert all(map(torch.equal, run(x, lengths=lengths), expected))


def test_bad_lengths_and_reset_arguments() -> None:
    rnn = fastrnn.RNN(3, 4)
    x = torch.randn(5, 2, 3)
    with pytest.raises(
        ValueError, match=r"integer lengths, got torch.float32. Convert them: lengths.long\(\)"
    ):
        rnn(x, lengths=torch.tensor([1.0, 2.0]))
    with pytest.raises(
        ValueError, match=r"lengths of shape \(2,\), one for each row .* got \(3,\)"
    ):
        rnn(x, lengths=torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match=r"reset of shape \(5, 2\)"):
        rnn(x, reset=torch.zeros(2, 5, dtype=torch.bool))
    packed = pack_padded_sequence(x, torch.tensor([5, 3]))
    with pytest.raises(ValueError, match="lengths are for padded input"):
        rnn(packed, lengths=torch.tensor([5, 3]))
