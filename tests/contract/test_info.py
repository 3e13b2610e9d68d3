"""fastrnn.info: it says which way a call goes, and the call goes there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import _path


def test_facts() -> None:
    facts = fastrnn.info()
    assert facts["fastrnn"] == fastrnn.__version__
    assert facts["torch"] == torch.__version__
    assert facts["cpu_kernels"] in ("baseline", "neon", "avx2", "avx512", "avx512_bf16")
    assert "kernel" not in facts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernel_of_a_call(dtype: torch.dtype) -> None:
    rnn = fastrnn.RNN(3, 4, dtype=dtype)
    kernel = f"cpu {fastrnn.info()['cpu_kernels']} {str(dtype).removeprefix('torch.')}"
    assert fastrnn.info(rnn)["kernel"] == kernel
    assert fastrnn.info(rnn, pack_sequence([torch.zeros(2, 3, dtype=dtype)]))["kernel"] == kernel
    assert fastrnn.info(fastrnn.RNNCell(3, 4, dtype=dtype))["kernel"] == kernel


def test_torchs_own_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a fastrnn.RNN or .*, got torch\.nn\..*\.RNN"):
        fastrnn.info(torch.nn.RNN(3, 4))


def test_model_that_holds_an_rnn_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a fastrnn\.RNN or .*Sequential"):
        fastrnn.info(torch.nn.Sequential(fastrnn.RNN(3, 4)))


def test_kernel_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert fastrnn.info(fastrnn.RNN(3, 4))["kernel"].endswith(" bfloat16")
        assert fastrnn.info(fastrnn.RNN(3, 4, dtype=torch.float64))["kernel"].endswith(" float64")


def test_reference_says_why() -> None:
    rnn = fastrnn.RNN(3, 4)
    seen: list[str] = []

    def note(x: torch.Tensor) -> torch.Tensor:
        seen.append(fastrnn.info(rnn, x)["kernel"])
        return x

    torch.func.vmap(note)(torch.zeros(2, 5, 1, 3))
    assert seen == ["reference (a torch.func transform is active)"]


@pytest.fixture
def calls_of_torch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of torch's own operators, as they are called."""
    calls: list[str] = []
    for name in ("rnn_tanh", "rnn_relu"):
        operator = getattr(torch, name)

        def noted(*args: object, name: str = name, operator: Any = operator) -> object:
            calls.append(name)
            return operator(*args)

        monkeypatch.setattr(torch, name, noted)
    return calls


WITHOUT_KERNELS = {
    "plain": {},
    "relu, no bias": {"nonlinearity": "relu", "bias": False},
    "dropout": {"num_layers": 3, "dropout": 0.5},
    "bidirectional, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}


@pytest.mark.parametrize("given", ["padded", "packed", "state"])
@pytest.mark.parametrize("options", WITHOUT_KERNELS.values(), ids=WITHOUT_KERNELS)
def test_a_device_without_kernels_takes_torchs_operator(
    options: dict[str, Any],
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    calls_of_torch: list[str],
) -> None:
    """Never a loop over time where torch has an operator: values, gradients and dropout alike."""
    ours, theirs = fastrnn.RNN(3, 4, **options), torch.nn.RNN(3, 4, **options)
    ours.load_state_dict(theirs.state_dict())
    x: Any = torch.randn(5, 5, 3)
    if given == "packed":
        x = pack_sequence([torch.randn(n, 3) for n in (2, 5, 1)], enforce_sorted=False)
    states = (2 if options.get("bidirectional") else 1) * options.get("num_layers", 1)
    hx = [torch.randn(states, 5, 4)] if given == "state" else []
    monkeypatch.setattr(_path, "KERNEL_DEVICES", ())
    monkeypatch.setattr(fastrnn._C, "rnn_of_module", lambda *args: None)
    assert fastrnn.info(ours, x)["kernel"] == "torch (no kernel for cpu in this build)"
    results = []
    for rnn in (ours, theirs):
        torch.manual_seed(0)
        output, hn = rnn(x, *hx)
        (output.data if given == "packed" else output).sum().backward()
        results.append((output, hn, *(p.grad for p in rnn.parameters())))
    assert len(calls_of_torch) == 1
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("mark", ["lengths", "reset"])
def test_what_torchs_operator_cannot_do_takes_the_reference(
    mark: str, monkeypatch: pytest.MonkeyPatch, calls_of_torch: list[str]
) -> None:
    rnn, x = fastrnn.RNN(3, 4), torch.randn(5, 2, 3)
    given = {"lengths": torch.tensor([5, 3]), "reset": torch.rand(5, 2) < 0.5}[mark]
    expected = rnn(x, **{mark: given})
    monkeypatch.setattr(_path, "KERNEL_DEVICES", ())
    monkeypatch.setattr(fastrnn._C, "rnn_of_module", lambda *args: None)
    torch.testing.assert_close(rnn(x, **{mark: given}), expected)
    assert calls_of_torch == []


def test_complex_numbers_take_torchs_operator(calls_of_torch: list[str]) -> None:
    ours, theirs = (cls(3, 4, dtype=torch.complex64) for cls in (fastrnn.RNN, torch.nn.RNN))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.complex64)
    assert fastrnn.info(ours)["kernel"] == "torch (no kernel for torch.complex64)"
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
    assert calls_of_torch == ["rnn_tanh"]


def test_a_cell_without_kernels_is_torchs_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and not a sequence of one step."""
    monkeypatch.setattr(_path, "KERNEL_DEVICES", ())
    monkeypatch.setattr(fastrnn._C, "cell_of_module", lambda *args: None)
    for options in ({}, {"nonlinearity": "relu", "bias": False}):
        ours, theirs = (cls(3, 4, **options) for cls in (fastrnn.RNNCell, torch.nn.RNNCell))
        ours.load_state_dict(theirs.state_dict())
        for given in ([torch.randn(2, 3)], [torch.randn(3), torch.randn(4)]):
            torch.testing.assert_close(ours(*given), theirs(*given), rtol=0, atol=0)


def test_packed_rows_beyond_the_last_step_are_not_read(calls_of_torch: list[str]) -> None:
    rnn = fastrnn.RNN(3, 4, bidirectional=True, dtype=torch.complex64)
    packed = pack_sequence([torch.randn(n, 3, dtype=torch.complex64) for n in (5, 2)])
    rest = torch.full((3, 3), torch.nan, dtype=torch.complex64)
    longer = packed._replace(data=torch.cat([packed.data, rest]))
    results = [rnn(given) for given in (packed, longer)]
    torch.testing.assert_close(*[(y.data, hn) for y, hn in results], rtol=0, atol=0)
    assert calls_of_torch == ["rnn_tanh"] * 2


def test_sparse_weights_take_torchs_operator() -> None:
    ours, theirs, x = fastrnn.RNN(3, 4), torch.nn.RNN(3, 4), torch.randn(5, 2, 3)
    ours.load_state_dict(theirs.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's word on sparse CSR being in beta
        for rnn in (ours, theirs):
            w = rnn.weight_hh_l0.detach().to_sparse_csr()
            del rnn.weight_hh_l0
            rnn.weight_hh_l0 = w
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


LARGE_STEPS = """
import torch, fastrnn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
x, lengths = torch.randn(9, 64, 28), torch.arange(64) % 9 + 1
packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
torch.manual_seed(0)
for kind in ("tanh", "relu"):
    theirs = torch.nn.RNN(28, 128, 2, kind, bidirectional=True)
    ours = fastrnn.RNN(28, 128, 2, kind, bidirectional=True)
    ours.load_state_dict(theirs.state_dict())
    for given in (x, packed):
        kernel = fastrnn.info(ours, given)["kernel"]
        assert kernel.startswith("torch (faster than the baseline kernels"), kernel
        for enabled in (False, True):
            with torch.set_grad_enabled(enabled):
                results = [rnn(given) for rnn in (ours, theirs)]
            pairs = [(y.data if given is packed else y, h) for y, h in results]
            torch.testing.assert_close(*pairs)
        for rnn, (y, h) in zip((ours, theirs), pairs):
            rnn.zero_grad()
            (y.square().sum() + h.sum()).backward()
        for a, b in zip(ours.parameters(), theirs.parameters()):
            torch.testing.assert_close(a.grad, b.grad)
assert fastrnn.info(ours, x[:, :3])["kernel"] == "cpu baseline float32"

# Gradients asked for twice, of gradients, in batches, of some arguments only, and after a result
# was overwritten.
def more(rnn):
    inputs = [torch.randn(4, 64, 28).requires_grad_(), torch.randn(4, 64, 128).requires_grad_()]
    y, hn = rnn(*inputs)
    again = [torch.autograd.grad(y.sum(), inputs, retain_graph=True) for _ in range(2)]
    first = torch.autograd.grad(y.square().sum() + hn.sum(), inputs, create_graph=True)
    sum(g.square().sum() for g in first).backward()
    v = torch.stack([torch.ones_like(hn), hn.detach()])
    y, hn = rnn(*inputs)
    batched = torch.autograd.grad(hn, inputs, v, is_grads_batched=True)
    part = torch.autograd.grad(rnn(*inputs)[1].sum(), rnn.weight_hh_l0)
    rnn.weight_ih_l1.requires_grad_(False)
    y = rnn(inputs[0], inputs[1].detach().transpose(0, 1).contiguous().transpose(0, 1))[0]
    y.sum().backward()
    y = rnn(*inputs)[0]
    y.mul_(2)
    y.sum().backward()
    return again, first, batched, part, [p.grad for p in rnn.parameters()]

results = []
for rnn in (ours, theirs):
    torch.manual_seed(2)
    rnn.zero_grad()
    results.append(more(rnn))
torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
dropping = fastrnn.RNN(28, 128, 2, dropout=0.5)
assert fastrnn.info(dropping, x)["kernel"] == "cpu baseline float32"
dropping(x)[0].sum().backward()

# Rows beyond the last step are no part of the sequence, and get no gradient.
for kind, dtype, layers in (("relu", torch.float16, 1), ("relu", torch.float32, 3),
                            ("tanh", torch.float64, 2)):
    rnn = fastrnn.RNN(28, 300, layers, kind, bidirectional=True, dtype=dtype)
    results = []
    for extra in (0, 5):
        data = torch.cat([packed.data, torch.full((extra, 28), torch.nan)]).to(dtype)
        data.requires_grad_()
        given = PackedSequence(data, *packed[1:])
        assert fastrnn.info(rnn, given)["kernel"].startswith("torch (faster")
        with torch.no_grad():
            y, hn = rnn(given)
        with_grad = rnn(given)
        assert torch.equal(y.data, with_grad[0].data) and torch.equal(hn, with_grad[1])
        loss = with_grad[0].data.sum() + with_grad[1].sum()
        grads = torch.autograd.grad(loss, [data, *rnn.parameters()])
        rows = len(packed.data)
        assert grads[0][rows:].eq(0).all()
        results.append((y.data, hn, grads[0][:rows], grads[1:]))
    torch.testing.assert_close(*results, rtol=0, atol=0)

# The layout of the input decides on no rounding, with gradients or without.
for dtype in (torch.float32, torch.float64, torch.bfloat16):
    for bias in (True, False):
        rnn = fastrnn.RNN(6, 300, bias=bias, batch_first=True, dtype=dtype)
        x = torch.randn(11, 7, 6, dtype=dtype)
        assert fastrnn.info(rnn, x)["kernel"].startswith("torch (faster")
        right = rnn(x)[0]
        assert right.transpose(0, 1).is_contiguous()  # as nn.RNN's
        for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
            assert torch.equal(rnn(given)[0], right)
            with torch.no_grad():
                assert torch.equal(rnn(given)[0], right)
print("compared")
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ATEN_CPU_CAPABILITY is of x86-64")
def test_large_steps_without_long_vectors_are_left_to_torch() -> None:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    run = subprocess.run(
        [sys.executable, "-c", LARGE_STEPS],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout == "compared\n", run.stderr


TRAINED_BY_TORCH = """
import torch, fastrnn

library = torch.library.Library("aten", "IMPL")
@torch.library.impl(library, "rnn_tanh.input", "AutogradCPU")
def record(input, hx, weights, has_biases, num_layers, dropout, train, *rest):
    print(dropout, train)
    raise SystemExit

fastrnn.RNN(8, 2048)(torch.randn(3, 40, 8))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="ATEN_CPU_CAPABILITY is of x86-64")
def test_torchs_operator_is_told_that_it_trains() -> None:
    """Else cuDNN would keep nothing for the backward pass, and refuse it."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TRAINED_BY_TORCH],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
    )
    assert run.stdout == "0.0 True\n", run.stderr


def test_python_m_fastrnn() -> None:
    run = subprocess.run(
        [sys.executable, "-m", "fastrnn"], capture_output=True, text=True, check=True
    )
    lines = dict(line.split(maxsplit=1) for line in run.stdout.splitlines())
    assert lines["fastrnn"] == fastrnn.__version__
    assert lines["cpu_kernels"] == fastrnn.info()["cpu_kernels"]


@pytest.mark.parametrize(("capability", "kernels"), [("default", "baseline"), ("avx2", "avx2")])
def test_torchs_ceiling_is_kept(capability: str, kernels: str) -> None:
    """ATEN_CPU_CAPABILITY limits our kernels as it limits torch's; all give the same answers."""
    if fastrnn.info()["cpu_kernels"] in ("baseline", "neon"):
        pytest.skip("this processor has one instruction set")
    code = (
        "import torch, fastrnn; torch.manual_seed(0); rnn = fastrnn.RNN(5, 33); "
        "y = rnn(torch.randn(7, 3, 5))[0]; y.sum().backward(); "
        "print(fastrnn.info()['cpu_kernels'], y.sum().item(), rnn.weight_hh_l0.grad.sum().item())"
    )

    def run(environment: dict[str, str]) -> list[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()

    limited, best = run({"ATEN_CPU_CAPABILITY": capability}), run({})
    assert limited[0] == kernels
    for ours, theirs in zip(limited[1:], best[1:], strict=True):
        assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
