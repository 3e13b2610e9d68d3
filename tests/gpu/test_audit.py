"""What a reading of the CUDA half left to a GPU: first use, odd values, threads, limits, graphs."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from test_on_gpu import KERNELS, TAKEN, forced
from torch import Tensor

import cuda_build
import fastrnn
from fastrnn import _path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif("cuda" not in _path.KERNEL_DEVICES, reason="built without CUDA"),
]
ROOT = Path(__file__).parents[2]
# A size that each kernel takes when it is forced.
HIDDEN = {"step": 64, "vector": 64, "tile": 64, "cluster": 300}


def in_a_process(code: str, seconds: float, **variables: str) -> subprocess.CompletedProcess[str]:
    """For what may end the process's use of the GPU."""
    return subprocess.run(
        [sys.executable, "-c", dedent(code)], capture_output=True, text=True, timeout=seconds,
        env={**os.environ, **variables}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
def test_first_use_inside_a_capture(kernel: str) -> None:
    """A process's first call may be a captured one: loading a kernel is no call that it bans."""
    run = in_a_process(
        f"""
        import torch, fastrnn
        x = torch.randn(9, 5, 8, device="cuda")
        rnn = fastrnn.RNN(8, {HIDDEN[kernel]}, device="cuda")
        lengths = torch.tensor([9, 4, 1, 0, 7], device="cuda")
        torch.mm(x[0], x[0].t())  # cuBLAS's handle cannot be made in a capture
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(graph):
            output, hn = rnn(x, lengths=lengths)
        graph.replay()
        with torch.no_grad():
            torch.testing.assert_close((output, hn), rnn(x, lengths=lengths))
        """,
        60,
        FASTRNN_CUDA_KERNEL=kernel,
        FASTRNN_CHECK="0",
    )
    assert run.returncode == 0, run.stderr


def test_first_use_inside_a_capture_is_torch_s() -> None:
    """No kernel can be checked while a stream captures: torch's operator serves, or nothing."""
    run = in_a_process(
        """
        import torch, fastrnn
        x = torch.randn(9, 5, 8, device="cuda")
        rnn = fastrnn.RNN(8, 64, device="cuda")
        lengths = torch.tensor([9, 4, 1, 0, 7], device="cuda")
        theirs = torch.nn.RNN(8, 64, device="cuda")
        theirs.load_state_dict(rnn.state_dict())

        def capture(module, **options):
            graph = torch.cuda.CUDAGraph()
            with torch.no_grad(), torch.cuda.graph(graph):
                output, hn = module(x, **options)
            graph.replay()
            return output, hn

        with torch.no_grad():
            expected = theirs(x)
        torch.cuda.synchronize()
        torch.testing.assert_close(capture(rnn), expected)
        try:
            capture(rnn, lengths=lengths)
        except RuntimeError as e:
            assert "call it once before" in str(e), e
        else:
            assert fastrnn._C.cuda_kernels_hash() in PROVEN, "lengths= was served unchecked"
        with torch.no_grad():
            expected = rnn(x, lengths=lengths)
        torch.testing.assert_close(capture(rnn, lengths=lengths), expected)
        """.replace("PROVEN", repr((ROOT / "csrc/cuda/proven.h").read_text())),
        60,
        FASTRNN_CHECK="",
        FASTRNN_CUDA_KERNEL="",
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize(("kernel", "dtype"), TAKEN, ids=str)
def test_special_values(kernel: str, dtype: torch.dtype, nonlinearity: str) -> None:
    """NaN, infinities, denormals, the sides of tanh's branches, overflow: as torch has them."""
    nan, inf, edge = float("nan"), float("inf"), torch.tensor(0.625)
    around = [torch.nextafter(edge, torch.tensor(to)).item() for to in (0.0, 1.0)]
    values = [nan, inf, -inf, 1e-40, -1e-40, 0.0, -0.0, *around, 0.625, -0.625, 20.0, 6e4, -6e4]
    x = torch.tensor(values, dtype=dtype)[None, :, None]
    rnn = fastrnn.RNN(1, HIDDEN[kernel], nonlinearity=nonlinearity, bias=False, dtype=dtype)
    theirs = torch.nn.RNN(1, HIDDEN[kernel], nonlinearity=nonlinearity, bias=False).double()
    with torch.no_grad():
        rnn.weight_ih_l0.fill_(2.0)
        rnn.weight_hh_l0.zero_()
        theirs.load_state_dict({name: w.double() for name, w in rnn.state_dict().items()})
        expected, _ = theirs(x.double())
        with forced(kernel):
            output, hn = rnn.cuda()(x.cuda())
    torch.testing.assert_close(output.cpu(), expected.to(dtype), equal_nan=True)
    torch.testing.assert_close(hn, output, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kernel", KERNELS)
def test_nan_stays_in_its_row(kernel: str) -> None:
    """From its step on, and in no other row."""
    rnn = fastrnn.RNN(3, HIDDEN[kernel], device="cuda", dtype=torch.float16)
    x = torch.randn(6, 9, 3, device="cuda", dtype=torch.float16)
    with forced(kernel), torch.no_grad():
        good, _ = rnn(x)
        x[2, 4] = float("nan")
        output, _ = rnn(x)
    bad = torch.zeros(6, 9, dtype=torch.bool, device="cuda")
    bad[2:, 4] = True
    assert output[bad].isnan().all()
    torch.testing.assert_close(output[~bad], good[~bad], rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "dtype"), TAKEN, ids=str)
def test_padding_is_not_read(kernel: str, dtype: torch.dtype) -> None:
    """Beyond the lengths NaN in the input and in grad_output changes nothing."""
    rnn = fastrnn.RNN(5, HIDDEN[kernel], device="cuda", dtype=dtype)
    lengths = torch.tensor([7, 1, 0, 5, 3], device="cuda")
    padding = torch.arange(7, device="cuda")[:, None] >= lengths
    x = torch.randn(7, 5, 5, device="cuda", dtype=dtype)
    grad = torch.randn(7, 5, HIDDEN[kernel], device="cuda", dtype=dtype)

    def results(fill: float) -> list[Tensor]:
        input = x.masked_fill(padding[..., None], fill).requires_grad_()
        output, hn = rnn(input, lengths=lengths)
        leaves = [input, *rnn.parameters()]
        grads = torch.autograd.grad(output, leaves, grad.masked_fill(padding[..., None], fill))
        return [output, hn, *grads]

    with forced(kernel):
        for ours, expected in zip(results(float("nan")), results(0.0), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_threads_and_streams(kernel: str) -> None:
    """Four threads on four streams compute, bit for bit, what one computes."""
    torch.manual_seed(0)
    rnns = [fastrnn.RNN(8, HIDDEN[kernel], 2, device="cuda") for _ in range(4)]
    inputs = [torch.randn(40, 7, 8, device="cuda") for _ in range(4)]

    def results(i: int) -> list[Tensor]:
        output, hn = rnns[i](inputs[i])
        grads = torch.autograd.grad(output.square().sum() + hn.sum(), rnns[i].parameters())
        return [output.detach(), hn.detach(), *grads]

    def on_a_stream(i: int) -> list[list[Tensor]]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            found = [results(i) for _ in range(20)]
        stream.synchronize()
        return found

    with forced(kernel):
        expected = [results(i) for i in range(4)]
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(on_a_stream, range(4)))
    for repeated, once in zip(found, expected, strict=True):
        for ours in repeated:
            assert all(torch.equal(a, b) for a, b in zip(ours, once, strict=True))


def node_types(graph: torch.cuda.CUDAGraph) -> set[int]:
    """Which CUgraphNodeType a graph has that keeps its nodes (keep_graph)."""
    cuda = ctypes.CDLL("libcuda.so.1")
    raw, count = ctypes.c_void_p(graph.raw_cuda_graph()), ctypes.c_size_t()
    assert cuda.cuGraphGetNodes(raw, None, ctypes.byref(count)) == 0
    nodes = (ctypes.c_void_p * count.value)()
    assert cuda.cuGraphGetNodes(raw, nodes, ctypes.byref(count)) == 0
    types = set()
    for node in nodes:
        found = ctypes.c_int(-1)
        assert cuda.cuGraphNodeGetType(ctypes.c_void_p(node), ctypes.byref(found)) == 0
        types.add(found.value)
    return types


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_captured_graph_allocates_nothing(kernel: str) -> None:
    """Nor do its products: cuBLAS has torch's workspace."""
    rnn = fastrnn.RNN(8, HIDDEN[kernel], device="cuda")
    x = torch.randn(5, 4, 8, device="cuda")

    def step() -> tuple[Tensor, ...]:
        output, hn = rnn(x)
        return torch.autograd.grad(output.sum() + hn.sum(), tuple(rnn.parameters()))

    with forced(kernel):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph(keep_graph=True)
        with torch.cuda.graph(graph):
            step()
    kernels, copies, fills, empty = 0, 1, 2, 5  # others allocate, free, or hold graphs
    types = node_types(graph)
    assert kernels in types
    assert types <= {kernels, copies, fills, empty}


def test_bad_lengths_end_a_cluster() -> None:
    """A cluster whose blocks disagree would wait for ever: the check comes first."""
    start = time.monotonic()
    run = in_a_process(
        """
        import torch, fastrnn
        rnn = fastrnn.RNN(2, 300, device="cuda", dtype=torch.float16)
        x = torch.zeros(4, 2, 2, device="cuda", dtype=torch.float16)
        rnn(x, lengths=torch.tensor([4, 9], device="cuda"))
        torch.cuda.synchronize()
        """,
        60,
        CUDA_LAUNCH_BLOCKING="1",
    )
    assert run.returncode != 0
    assert "expected lengths between 0 and 4, got 9 for row 1" in run.stdout + run.stderr
    assert time.monotonic() - start < 40  # imports come on top of the kernel's own patience


def test_other_threads_run_while_launches_wait() -> None:
    """Calls that wait for a full queue do not hold Python's lock."""
    cell = fastrnn.RNNCell(8, 64, device="cuda")
    x, h = torch.randn(4, 8, device="cuda"), torch.zeros(4, 64, device="cuda")
    count, stop = 0, threading.Event()

    def counting() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(0.001)

    with torch.no_grad():
        cell(x, h)
        torch.cuda.synchronize()
        thread = threading.Thread(target=counting)
        thread.start()
        start = time.monotonic()
        torch.cuda._sleep(3_000_000_000)
        for _ in range(3000):
            h = cell(x, h)
        torch.cuda.synchronize()
        seconds = time.monotonic() - start
        stop.set()
        thread.join()
    assert count > 0.2 * seconds / 0.001, f"{count} counts in {seconds:.2f} s"


def test_no_tf32_where_the_environment_forbids_it() -> None:
    """NVIDIA_TF32_OVERRIDE=0 holds for our kernels as for cuBLAS."""
    run = in_a_process(
        """
        import torch, fastrnn
        torch.backends.cudnn.rnn.fp32_precision = "tf32"
        rnn = fastrnn.RNN(64, 64, device="cuda")
        x = torch.randn(20, 64, 64, device="cuda")
        exact = torch.nn.RNN(64, 64).double()
        exact.load_state_dict({k: w.double().cpu() for k, w in rnn.state_dict().items()})
        error = (rnn(x)[0].cpu().double() - exact(x.cpu().double())[0]).abs().max().item()
        assert error < 2e-6, error
        """,
        60,
        NVIDIA_TF32_OVERRIDE="0",
    )
    assert run.returncode == 0, run.stderr


def test_a_million_steps() -> None:
    """One launch of a few seconds: the last steps are right, and no watchdog ends it."""
    rnn = fastrnn.RNN(1, 64, device="cuda")
    x = torch.randn(1 << 20, 1, 1, device="cuda")
    with torch.no_grad():
        last, last_hn = rnn(x[-500:])  # a contraction: the state before is forgotten
        torch.cuda.synchronize()
        start = time.monotonic()
        output, hn = rnn(x)
        torch.cuda.synchronize()
    assert time.monotonic() - start < 4  # below 4 µs a step
    torch.testing.assert_close(output[-1], last[-1])
    torch.testing.assert_close(hn, last_hn)


def test_few_multiprocessors() -> None:
    """In a green context of eight, calls that chose clusters go by steps, or fit."""
    run = in_a_process(
        """
        import torch, fastrnn
        from torch.cuda.green_contexts import SUPPORTED, GreenContext
        if not SUPPORTED:
            raise SystemExit("no green contexts")
        rnn = fastrnn.RNN(8, 1000, device="cuda", dtype=torch.float16)
        x = torch.randn(6, 64, 8, device="cuda", dtype=torch.float16)

        def call():
            with torch.no_grad():
                output, _ = rnn(x)
                torch.cuda.synchronize()
                return output, fastrnn.info(rnn, x)["kernel"]

        expected, usual = call()
        context = GreenContext.create(num_sms=8, device_id=0)
        context.set_context()
        output, few = call()
        context.pop_context()
        assert usual.startswith("cuda cluster:"), usual
        assert few.startswith(("cuda cluster:", "cuda step")), few
        torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)
        """,
        60,
        FASTRNN_CUDA_KERNEL="cluster",
    )
    if "no green contexts" in run.stderr:
        pytest.skip("this torch has no green contexts")
    assert run.returncode == 0, run.stderr


@pytest.mark.slow
def test_rows_beyond_32_bits() -> None:
    """More than 2^32 rows of packed data: the last steps are right."""
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("less than 40 GiB free")
    seq_len, batch = 65537, 65536
    rnn = fastrnn.RNN(1, 1, device="cuda", dtype=torch.bfloat16)
    data = torch.randn(seq_len * batch, 1, device="cuda", dtype=torch.bfloat16)
    sizes = torch.full((seq_len,), batch)
    with torch.no_grad():
        output, hn = rnn(torch.nn.utils.rnn.PackedSequence(data, sizes))
        last, last_hn = rnn(data[-100 * batch :].view(100, batch, 1)[:, -64:])
    torch.testing.assert_close(output.data[-64:], last[-1], atol=0.05, rtol=0.05)
    torch.testing.assert_close(hn[:, -64:], last_hn, atol=0.05, rtol=0.05)


@pytest.mark.slow
def test_backward_of_a_cluster_beyond_32_bits() -> None:
    """T*B*H is more than 2^31: the gradients of the last rows are those of a call of their own."""
    if torch.cuda.mem_get_info()[0] < 50 << 30:
        pytest.skip("less than 50 GiB free")
    seq_len, batch, hidden = 4100, 1024, 520
    rnn = fastrnn.RNN(1, hidden, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(seq_len, batch, 1, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    few = x.detach()[:, -8:].clone().requires_grad_()
    for input in (x, few):
        rnn(input)[0][-1].float().sum().backward()
    torch.testing.assert_close(x.grad[-50:, -8:], few.grad[-50:], atol=0.05, rtol=0.05)


@pytest.mark.slow
@pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="no nvcc")
def test_code_of_an_older_architecture(tmp_path: Path) -> None:
    """PTX of 8.0 alone on a newer GPU: there are no clusters, and none traps or hangs."""
    program = tmp_path / "kernels"
    sources = [ROOT / "benchmarks/gpu/kernels.cpp", *cuda_build.library_sources()]
    command = [cuda_build.find_nvcc(), *cuda_build.FLAGS, "-cudart=static", "-Icsrc"]
    command += ["-gencode=arch=compute_80,code=compute_80", *sources, "-o", program]
    subprocess.run(command, cwd=ROOT, check=True)
    run = subprocess.run(
        [program, "check", "cluster:512x8x8", "float16", "whole"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stdout + run.stderr
    assert "usage: kernels" in run.stderr, run.stdout  # it is no name of the list
