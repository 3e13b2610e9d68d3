"""What only a GPU can show: each kernel on the device, streams, graphs, strides, large tensors.

The device-parametrised tests of the other files run there as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from textwrap import dedent
from typing import Any

import pytest
import torch
from cases import Case, assert_as_accurate
from problems import Problem
from rows import CONFIGURATIONS, ON_GPU, UNITS, Row
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _C

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif("cuda" not in fastrnn._path.KERNEL_DEVICES, reason="built without CUDA"),
]
KERNELS = ["step", "vector", "tile", "cluster"]
# What a kernel takes where TF32 is off, but for the float64 of the step kernels.
TAKEN = [(kernel, d) for kernel, d, tf32 in UNITS if not tf32 and d != torch.float64]


@contextmanager
def forced(name: str) -> Iterator[None]:
    """Calls take this kernel or configuration."""
    before = _C.set_cuda_kernel(name)
    try:
        yield
    finally:
        _C.set_cuda_kernel(before)


@pytest.fixture
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    with forced(request.param):
        yield request.param


@pytest.mark.parametrize("row", ON_GPU, ids=str)
def test_kernels(row: Row) -> None:
    torch.backends.cudnn.rnn.fp32_precision = "tf32" if row.tf32 else "ieee"
    problem = Problem(row.case, row.dtype, "cuda")
    with forced(row.kernel):
        ours = problem.ours(row.dtype)
    truth, theirs = problem.truth(), problem.theirs(row.dtype)
    if row.dtype == torch.float64:  # the truth is no better than the rest
        for name, expected in truth.items():
            torch.testing.assert_close(ours[name], expected, rtol=1e-10, atol=1e-10)
    else:
        assert_as_accurate(ours, theirs, truth, row.tf32)


@pytest.mark.parametrize(
    "row",
    [
        replace(row, case=replace(row.case, **dict.fromkeys(marks, True)))
        for marks in ((), ("packed",), ("lengths", "reset"))
        for row in CONFIGURATIONS
    ],
    ids=str,
)
def test_configurations(row: Row) -> None:
    """Each configuration of each kernel, against the reference."""
    if row.tf32:
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
        torch.backends.cuda.matmul.fp32_precision = "tf32"  # the reference's
    problem = Problem(row.case, row.dtype, "cuda")
    with forced(row.kernel):
        whole = torch.zeros(row.case.seq_len, row.case.batch, row.case.input_size)
        module = row.case.module(fastrnn.RNN, row.dtype, "cuda")
        try:
            taken = fastrnn.info(module, whole.to("cuda", row.dtype))
        except ValueError as e:
            if torch.cuda.get_device_capability() == (9, 0):
                raise
            pytest.skip(str(e))
        assert f"cuda {row.kernel}, backward {row.kernel} " in taken["kernel"]
        ours = problem.ours(row.dtype)
    assert_as_accurate(ours, problem.by_reference(row.dtype), problem.truth(), row.tf32)


@pytest.mark.parametrize("name", ["grid", "cluster:1024x3x8", "tile:64x8x1"])
def test_no_such_configuration(name: str) -> None:
    rnn = fastrnn.RNN(3, 60, device="cuda")
    message = f"can serve this call .*vector:64x1x1.*, got {name}(\n|$)"
    with forced(name), pytest.raises(ValueError, match=message):
        rnn(torch.zeros(4, 2, 3, device="cuda"))


def test_the_environment_forces_a_kernel() -> None:
    """As it was when fastrnn was imported."""
    code = """
        import os, fastrnn
        os.environ["FASTRNN_CUDA_KERNEL"] = "step"
        assert fastrnn._C.set_cuda_kernel("vector") == "tile"
        assert fastrnn._C.set_cuda_kernel("") == "vector"
    """
    env = {**os.environ, "FASTRNN_CUDA_KERNEL": "tile"}
    subprocess.run([sys.executable, "-c", dedent(code)], check=True, timeout=300, env=env)


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_repeatable(kernel: str) -> None:
    case = Case(40, 70, 30, 128, bidirectional=True, num_layers=2)
    problem = Problem(case, torch.float32, "cuda")
    first, second = problem.ours(torch.float32), problem.ours(torch.float32)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("kernel", "dtype"), TAKEN, indirect=["kernel"], ids=str)
def test_packed_and_lengths_agree(kernel: str, dtype: torch.dtype) -> None:
    """Not bit for bit: products of more rows or fewer may add up in another order."""
    case = Case(50, 30, 5, 60, num_layers=2, bidirectional=True)
    nn, rnn = (case.module(cls, dtype, "cuda") for cls in (torch.nn.RNN, fastrnn.RNN))
    rnn.load_state_dict(nn.state_dict())
    x = torch.randn(50, 30, 5, device="cuda", dtype=dtype)
    lengths = torch.randint(1, 51, (30,)).sort(descending=True).values
    lengths[0] = 50

    def of_packed(module: torch.nn.RNNBase, x: Tensor) -> dict[str, Tensor]:
        output, hn = module(pack_padded_sequence(x, lengths))
        return {"output": pad_packed_sequence(output)[0].detach().cpu(), "hn": hn.detach().cpu()}

    output, hn = rnn(x, lengths=lengths.cuda())
    padded = {"output": output.detach().cpu(), "hn": hn.detach().cpu()}
    theirs, ours = of_packed(nn, x), of_packed(rnn, x)
    truth = of_packed(nn.cpu().double(), x.cpu().double())
    assert_as_accurate(ours, theirs, truth)
    assert_as_accurate(padded, theirs, truth)


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_graph_capture(kernel: str, packed: bool) -> None:
    """A training step captured once and replayed on new numbers."""
    rnn = fastrnn.RNN(8, 64, 2, device="cuda")
    x = torch.randn(20, 4, 8, device="cuda")
    lengths = torch.tensor([20, 11, 7, 1])
    sizes = (torch.arange(20)[:, None] < lengths).sum(1)

    def step(data: Tensor) -> Tensor:
        rnn.zero_grad(set_to_none=False)
        sequence = data
        if packed:
            rows = torch.nn.utils.rnn.PackedSequence(data.flatten(0, 1)[: int(sizes.sum())], sizes)
            sequence = rows
        output, hn = rnn(sequence)
        y = output.data if packed else output
        (y.square().sum() + hn.sum()).backward()
        return hn.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(x)
    fresh = torch.randn_like(x)
    x.copy_(fresh)
    graph.replay()
    hn, grads = captured.clone(), [w.grad.clone() for w in rnn.parameters()]
    torch.testing.assert_close(hn, step(fresh))
    for grad, w in zip(grads, rnn.parameters(), strict=True):
        torch.testing.assert_close(grad, w.grad)


def test_other_stream() -> None:
    """Work queued on a stream waits for the stream's own earlier work."""
    rnn = fastrnn.RNN(16, 64, device="cuda")
    x = torch.randn(100, 8, 16, device="cuda")
    expected, _ = rnn(x)
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(x)
        output, _ = rnn(late)
    stream.synchronize()
    torch.testing.assert_close(output, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_device() -> None:
    rnn = fastrnn.RNN(8, 64, device="cuda:1")
    x = torch.randn(10, 3, 8, device="cuda:1", requires_grad=True)
    output, _ = rnn(x)
    output.sum().backward()
    assert output.device == x.grad.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    torch.testing.assert_close(output.cpu(), rnn.cpu()(x.cpu())[0])


@pytest.mark.parametrize("kernel", KERNELS, indirect=True)
def test_strides(kernel: str) -> None:
    rnn = fastrnn.RNN(6, 64, device="cuda")
    x = torch.randn(7, 20, 12, device="cuda").transpose(0, 1)[..., ::2]
    hx = torch.randn(1, 1, 64, device="cuda").expand(1, 7, 64)
    output, hn = rnn(x, hx)
    expected, expected_hn = rnn(x.contiguous(), hx.contiguous())
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(hn, expected_hn)


@pytest.mark.parametrize("packed", [False, True])
def test_cudnn_serves_inference(packed: bool) -> None:
    """Where it is taken, its results are nn.RNN's. Only inference: it has no gradients of
    gradients."""
    rnn, theirs = (cls(6, 700, 2, device="cuda") for cls in (fastrnn.RNN, torch.nn.RNN))
    theirs.load_state_dict(rnn.state_dict())
    x: Any = torch.randn(5, 3, 6, device="cuda")
    if packed:
        x = pack_padded_sequence(x, [5, 4, 1])
    hx = torch.randn(2, 1, 700, device="cuda").expand(2, 3, 700)
    with forced("torch"):
        assert fastrnn.info(rnn, x)["kernel"].startswith("cuda step")
        with torch.no_grad():
            assert fastrnn.info(rnn, x)["kernel"].startswith("torch")
            output, hn = rnn(x, hx)
            expected, expected_hn = theirs(x, hx.contiguous())
    if packed:
        output, expected = output.data, expected.data
    torch.testing.assert_close((output, hn), (expected, expected_hn), rtol=0, atol=0)


@pytest.mark.slow
def test_offsets_beyond_32_bits() -> None:
    """T*B*H is more than 2^31: the last steps are right."""
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("less than 20 GiB free")
    seq_len, batch, hidden = 4100, 4096, 130
    rnn = fastrnn.RNN(1, hidden, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(seq_len, batch, 1, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        output, hn = rnn(x)
        assert output.numel() > 2**31
        last, last_hn = rnn(x[-100:, -64:])  # a contraction: the state before is forgotten
    torch.testing.assert_close(output[-1, -64:], last[-1], atol=0.05, rtol=0.05)
    torch.testing.assert_close(hn[:, -64:], last_hn, atol=0.05, rtol=0.05)


def test_bad_lengths_stop_the_kernel() -> None:
    """The device finds them, and as after torch's own device assertions it serves no more."""
    code = (
        "import torch, fastrnn; rnn = fastrnn.RNN(2, 3, device='cuda');"
        "rnn(torch.zeros(4, 2, 2, device='cuda'), lengths=torch.tensor([4, 9], device='cuda'));"
        "torch.cuda.synchronize()"
    )
    # Else an error of a later launch could come before what the kernel has printed.
    env = {**os.environ, "CUDA_LAUNCH_BLOCKING": "1"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=env
    )
    assert run.returncode != 0
    assert "expected lengths between 0 and 4, got 9 for row 1" in run.stdout + run.stderr


@pytest.mark.parametrize("enabled", [False, True])
def test_input_on_the_cpu_beside_weights_on_cuda(enabled: bool) -> None:
    """The operators, called directly, say what was expected where."""
    rnn = fastrnn.RNN(2, 3, device="cuda")
    options = (None, None, None, None, True, 1, "tanh", False, False)
    with torch.set_grad_enabled(enabled), pytest.raises(RuntimeError, match=r"expected \w+ on "):
        torch.ops.fastrnn.rnn(torch.zeros(4, 1, 2), None, list(rnn.parameters()), *options)
