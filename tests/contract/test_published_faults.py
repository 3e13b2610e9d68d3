"""Faults that other libraries published, each tried here by its kind.

Those that other tests try: the state of padded rows (pytorch/rl#3711, ray-project/ray#21392) is in
every case with lengths, a reset that is a step late (PufferAI/PufferLib#622) in test_reset.py, a
kernel on a device that is not the current one (pytorch/rl#4175, linkedin/Liger-Kernel#1303) and
more than 2^31 elements on a GPU (pytorch/rl#3818) in test_on_gpu.py and test_audit.py.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Callable
from typing import Any

import emulation
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import RNN, RNNCell

OPS = torch.ops.fastrnn
T, B, I, H = 5, 3, 4, 6  # noqa: E741  (seq_len, batch, input_size, hidden_size)
Run = Callable[[type, str], Any]


def tensors(result: Any) -> list[Tensor]:
    if isinstance(result, list | tuple):
        return [y for part in result for y in tensors(part)]
    return [result.detach().cpu()]


def assert_agree(run: Run, device: str, cls: type = RNN, theirs: type = nn.RNN) -> None:
    """Ours on a device computes what torch's class does on the CPU, from the same numbers."""
    results = []
    for kind, place in ((cls, device), (theirs, "cpu")):
        torch.manual_seed(0)
        results.append(tensors(run(kind, place)))
    torch.testing.assert_close(*results)


def numbers(*sizes: int, device: str, requires_grad: bool = False) -> Tensor:
    x = torch.randn(sizes, dtype=torch.float64)
    return x.to(device).requires_grad_(requires_grad)


def made(cls: type, device: str, *args: Any, **options: Any) -> Any:
    return cls(I, H, *args, **options).double().to(device)


def grads(loss: Tensor, module: nn.Module, *others: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, [*others, *module.parameters()])


# Sizes of more than 32 bits.


def far_apart(*sizes: int, dim: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A view whose last element is more than 2^31 elements from its first; few pages are used."""
    strides = [*torch.empty(sizes, device="meta").stride()]
    strides[dim] = 2**31 // (sizes[dim] - 1) + 8
    last = sum(stride * (size - 1) for stride, size in zip(strides, sizes, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, (last + 1) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype).as_strided(sizes, strides)


SPREAD = [("input", 0), ("input", 1), ("hx", 0), ("hx", 1), ("reset", 0), ("reset", 1),
          ("grad_output", 0), ("grad_output", 1), ("grad_hn", 1)]  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory in use at once")
@pytest.mark.parametrize(("name", "dim"), SPREAD)
@pytest.mark.parametrize("kernels", ["cpu", "cuda emulated"])
def test_offsets_beyond_32_bits(name: str, dim: int, kernels: str) -> None:
    """Triton kernels with 32-bit offsets: pytorch/rl#3818, fla-org/flash-linear-attention#1082."""
    like = {"dtype": torch.bfloat16}
    given = {
        "input": torch.randn(T, B, I, **like),
        "hx": torch.randn(2, B, H, **like),
        "reset": torch.rand(T, B) < 0.5,
        "grad_output": torch.randn(T, B, H, **like),
        "grad_hn": torch.randn(2, B, H, **like),
    }
    near = given[name]
    far = far_apart(*near.shape, dim=dim, dtype=near.dtype)
    far.copy_(near)
    assert (far.stride(dim) * (far.size(dim) - 1)) > 2**31
    sizes = [(H, I), (H, H), (H,), (H,), (H, H), (H, H), (H,), (H,)]
    weights = [torch.randn(size).to(torch.bfloat16) / 4 for size in sizes]

    def run(input: Tensor, hx: Tensor, reset: Tensor, grad_output: Tensor, grad_hn: Tensor) -> Any:
        flags = (True, 2, "tanh", False, False)
        args = (input, hx, weights, None, None, reset, None, *flags)
        if kernels == "cpu":
            output, hn, saved = OPS.rnn_forward(*args, True)
            back = OPS.rnn_backward(grad_output, grad_hn, saved, *args, True, True, True)
        else:
            cuda = emulation.module()
            output, hn, saved = cuda.forward("step", False, args, True)
            back = cuda.backward("step", False, grad_output, grad_hn, saved, args, True, True, True)
        return output, hn, *back[:2], *back[2]

    expected = run(**given)
    for y, e in zip(run(**(given | {name: far})), expected, strict=True):
        assert torch.equal(y, e)


# Gradients of gradients.


def padded(module: Any, x: Tensor, hx: Tensor) -> Tensor:
    return module(x, hx)[0]


def packed(module: Any, x: Tensor, hx: Tensor) -> Tensor:
    return module(pack_padded_sequence(x, [T, T - 1, 2]), hx)[0].data


def only_hn(module: Any, x: Tensor, hx: Tensor) -> Tensor:
    return module(x, hx)[1]


@pytest.mark.parametrize("call", [padded, packed, only_hn])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_double_backward_is_not_silent(call: Any, nonlinearity: str, device: str) -> None:
    """Second derivatives that were wrong in silence: pytorch/rl#4175. Ours are nn.RNN's."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device, 2, nonlinearity, bidirectional=True)
        x = numbers(T, B, I, device=device, requires_grad=True)
        hx = numbers(4, B, H, device=device, requires_grad=True)
        loss = call(module, x, hx).square().sum()
        first = torch.autograd.grad(loss, [x, hx, *module.parameters()], create_graph=True)
        penalty = sum(g.square().sum() for g in first)
        return first, grads(penalty, module, x, hx)

    assert_agree(run, device)


def test_double_backward_of_a_cell(device: str) -> None:
    """As pytorch/rl#4175, through three steps."""

    def run(cls: type, device: str) -> Any:
        cell = made(cls, device)
        x, h = (numbers(B, n, device=device, requires_grad=True) for n in (I, H))
        state = h
        for _ in range(3):
            state = cell(x, state)
        first = torch.autograd.grad(state.sum(), [x, h], create_graph=True)
        return grads(sum(g.square().sum() for g in first), cell, x, h)

    assert_agree(run, device, RNNCell, nn.RNNCell)


# States, inputs and gradients in any layout.

STATES = {
    "expanded": ((1, 1, H), lambda base: base.expand(2, B, H)),
    "expanded rows": ((2, 1, H), lambda base: base.expand(2, B, H)),
    "part of a larger batch": ((2, B + 2, H), lambda base: base[:, :B]),
    "batch first": ((B, 2, H), lambda base: base.transpose(0, 1)),
    "every second feature": ((2, B, 2 * H), lambda base: base[..., ::2]),
    "features first": ((H, B, 2), lambda base: base.permute(2, 1, 0)),
    "chosen rows": ((2, B, H), lambda base: base.index_select(1, torch.arange(B).to(base.device))),
    "twice the same": ((1, B, H), lambda base: torch.cat([base, base])),
}


@pytest.mark.parametrize("name", STATES)
def test_state_that_is_a_view(name: str, device: str) -> None:
    """ "rnn: hx is not contiguous": fastai/fastai2#141, allenai/allennlp#1486.

    The gradient of what was expanded is the sum over its rows.
    """
    sizes, view = STATES[name]

    def run(cls: type, device: str) -> Any:
        module = made(cls, device, 2)
        base = numbers(*sizes, device=device, requires_grad=True)
        output, hn = module(numbers(T, B, I, device=device), view(base))
        return output, hn, grads(output.square().sum() + hn.sum(), module, base)

    assert_agree(run, device)


@pytest.mark.parametrize("sizes", [(1, B, I), (T, 1, I), (1, 1, I), (T, B, 1)], ids=str)
def test_input_that_is_expanded(sizes: tuple[int, ...], device: str) -> None:
    """A wrong gradient of expanded input on CUDA: pytorch/pytorch#30303."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device)
        base = numbers(*sizes, device=device, requires_grad=True)
        output, _ = module(base.expand(T, B, I))
        return output, grads(output.square().sum(), module, base)

    assert_agree(run, device)


GRADIENTS = {
    "transposed": lambda device: numbers(B, T, H, device=device).transpose(0, 1),
    "every second feature": lambda device: numbers(T, B, 2 * H, device=device)[..., ::2],
    "features first": lambda device: numbers(H, T, B, device=device).permute(1, 2, 0),
    "expanded": lambda device: numbers(1, 1, 1, device=device).expand(T, B, H),
    "expanded steps": lambda device: numbers(1, B, H, device=device).expand(T, B, H),
    "reversed": lambda device: numbers(T, B, H, device=device).flip(0),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradient_that_is_not_contiguous(name: str, device: str) -> None:
    """Wrong results from strided gradients of the output: Dao-AILab/flash-attention#355."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device)
        x = numbers(T, B, I, device=device, requires_grad=True)
        output, _ = module(x)
        return torch.autograd.grad(output, [x, *module.parameters()], GRADIENTS[name](device))

    assert_agree(run, device)


CHANGES = {
    "output": lambda output, hn: output.mul_(2),
    "one step": lambda output, hn: output[1].zero_(),
    "hn": lambda output, hn: hn.add_(1),
    "detached": lambda output, hn: output.detach().zero_(),
    "both": lambda output, hn: (torch.relu_(output), hn.mul_(3)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_results_written_to_before_backward(name: str, device: str) -> None:
    """In-place operations between forward and backward: pytorch/rl#1742."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device, 2)
        x = numbers(T, B, I, device=device, requires_grad=True)
        output, hn = module(x)
        CHANGES[name](output, hn)
        return grads(output.square().sum() + hn.square().sum(), module, x)

    assert_agree(run, device)


# What is wanted, and what is not.


@pytest.mark.parametrize("which", ["output", "hn", "neither layer's last"])
def test_only_one_result_is_used(which: str, device: str) -> None:
    """Gradients that are None: chainer/chainer#4420."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device, 2)
        x = numbers(T, B, I, device=device, requires_grad=True)
        output, hn = module(x)
        used = {"output": output, "hn": hn, "neither layer's last": hn[:1]}[which]
        return grads(used.square().sum(), module, x)

    assert_agree(run, device)


@pytest.mark.parametrize("trained", ["input", "hx", "first weight", "last bias"])
def test_all_else_is_frozen(trained: str, device: str) -> None:
    """An invalid number of gradients where the weights require none: pytorch/pytorch#776."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device, 2).requires_grad_(False)
        x, hx = numbers(T, B, I, device=device), numbers(2, B, H, device=device)
        named = {"input": x, "hx": hx, "first weight": module.weight_ih_l0}
        wanted = named.get(trained, module.bias_hh_l1).requires_grad_()
        return torch.autograd.grad(module(x, hx)[0].square().sum(), wanted)

    assert_agree(run, device)


def test_backward_twice_accumulates(device: str) -> None:
    """A second backward pass failed in cuDNN's binding: pytorch/pytorch#777."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device, bidirectional=True)
        loss = module(numbers(T, B, I, device=device))[0].sum()
        loss.backward(retain_graph=True)
        loss.backward()
        return [w.grad for w in module.parameters()]

    assert_agree(run, device)


# Devices.


def elsewhere(device: str) -> str:
    return "meta" if device == "cpu" else "cpu"


@pytest.mark.parametrize("part", ["data", "sorted_indices", "unsorted_indices"])
@pytest.mark.parametrize("given", ["hx", "reset", "reset_state"])
def test_part_of_a_packed_sequence_on_another_device(part: str, given: str, device: str) -> None:
    """Indices that stay where they were: pytorch/pytorch#22251."""
    x, state = torch.randn(T, B, I, device=device), torch.randn(1, B, H, device=device)
    sequence = pack_padded_sequence(x, torch.tensor([2, T, 3]), enforce_sorted=False)
    moved = sequence._replace(**{part: getattr(sequence, part).to(elsewhere(device))})
    hx = state if given == "hx" else None
    marks = {} if hx is not None else {"reset": torch.ones(T, B, device=device)}
    if given == "reset_state":
        marks["reset_state"] = state
    with pytest.raises((RuntimeError, ValueError), match=r"device|on meta|on cpu"):
        RNN(I, H, device=device)(moved, hx, **marks)


@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_batch_sizes_on_another_device(grad: bool, device: str) -> None:
    """A segmentation fault, since a GPU's pointer was read on the CPU: pytorch/pytorch#172182."""
    x = torch.randn(T, B, I, device=device)
    sequence = pack_padded_sequence(x, torch.tensor([T, 3, 2]))
    there = sequence.batch_sizes.to("meta" if device == "cpu" else device)
    moved = PackedSequence._make(sequence._replace(batch_sizes=there))
    module = RNN(I, H, device=device)
    weights = [*module.parameters()]
    options = (None, None, None, True, 1, "tanh", False, False)
    with torch.set_grad_enabled(grad):
        for call in (
            lambda: module(moved),
            lambda: module(moved, torch.zeros(1, B, H, device=device)),
            lambda: fastrnn.functional.rnn(moved, None, weights),
            lambda: OPS.rnn(sequence.data, None, weights, there, *options),
        ):
            with pytest.raises((RuntimeError, ValueError)):
                call()


@pytest.mark.parametrize(
    "name", ["hx", "lengths", "reset", "reset_state", "dropout_mask", "weight"]
)
def test_one_tensor_on_another_device(name: str, device: str) -> None:
    """Kernels that read where they were not given memory: pytorch/rl#4175, in every operator."""
    there = elsewhere(device)
    module = RNN(I, H, 2, device=device)
    x = torch.randn(T, B, I, device=device)
    given: dict[str, Any] = {
        "hx": torch.zeros(2, B, H, device=there),
        "lengths": torch.full((B,), T, device=there),
        "reset": torch.zeros(T, B, dtype=torch.bool, device=there),
        "reset_state": torch.zeros(2, B, H, device=there),
        "dropout_mask": torch.ones(1, T, B, H, device=there),
        "weight": module.bias_hh_l1.to(there),
    }
    weights = [*module.parameters()]
    if name == "weight":
        weights[-1] = given["weight"]
    one = {name: given[name]} if name not in ("weight", "dropout_mask") else {}
    if name == "reset_state":
        one["reset"] = given["reset"].to(device, copy=True) if there != "meta" else torch.ones(
            T, B, dtype=torch.bool
        )  # fmt: skip
    if name != "dropout_mask":
        hx = one.pop("hx", None)
        with pytest.raises((RuntimeError, ValueError)):
            fastrnn.functional.rnn(x, hx, weights, num_layers=2, **one)
    if name == "reset_state":
        return
    marks = [given[n] if n == name else None for n in ("lengths", "reset", "dropout_mask")]
    args = [x, given["hx"] if name == "hx" else None, weights, None, *marks]
    args += [True, 2, "tanh", False, False]
    saved = torch.zeros(2, T * B, H, device=device)
    output = torch.zeros(T, B, H, device=device)
    for call in (
        lambda: OPS.rnn(*args),
        lambda: OPS.rnn_forward(*args, True),
        lambda: OPS.rnn_backward(output, None, saved, *args, True, True, True),
    ):
        with pytest.raises((RuntimeError, ValueError), match=r"expected .* on "):
            call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_backward_runs_on_the_stream_of_forward() -> None:
    """Backward passes on the default stream: pytorch/pytorch#7601."""
    module = RNN(I, H, device="cuda")
    x = torch.randn(100, B, I, device="cuda")
    expected = grads(module(x)[0].sum(), module)
    stream, late = torch.cuda.Stream(), torch.zeros(100, B, H, device="cuda")
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output, _ = module(x)
        torch.cuda._sleep(50_000_000)
        late.fill_(1)  # read too soon, the gradients are zero
        found = torch.autograd.grad(output, [*module.parameters()], late)
    stream.synchronize()
    torch.testing.assert_close(found, expected)


# Nothing to do, and values that are none.


@pytest.mark.parametrize("kind", ["padded", "batch_first", "hx", "cell", "step"])
def test_no_rows(kind: str, device: str) -> None:
    """A grid of no blocks, which CUDA refuses: pytorch/pytorch#71696. The gradients are zero."""
    if kind == "step":
        module = made(RNN, device)
        output, hn = module.step(numbers(0, I, device=device))
        assert output.shape == (0, H)
        assert hn.shape == (1, 0, H)
        assert all(g.eq(0).all() for g in grads(output.sum(), module))
        return

    def run(cls: type, device: str) -> Any:
        if kind == "cell":
            module = made(cls, device)
            x = numbers(0, I, device=device, requires_grad=True)
            h = module(x)
            return h, grads(h.sum(), module, x)
        module = made(cls, device, 2, batch_first=kind == "batch_first")
        sizes = (0, T, I) if kind == "batch_first" else (T, 0, I)
        x = numbers(*sizes, device=device, requires_grad=True)
        output, hn = module(x, numbers(2, 0, H, device=device) if kind == "hx" else None)
        return output, hn, grads(output.sum() + hn.sum(), module, x)

    pair = (RNNCell, nn.RNNCell) if kind == "cell" else (RNN, nn.RNN)
    assert_agree(run, device, *pair)


@pytest.mark.parametrize("sizes", [(0, B, I), (0, 0, I), (0, I)], ids=str)
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}], ids=str)
def test_no_steps(sizes: tuple[int, ...], options: dict[str, Any], device: str) -> None:
    """ "stack expects a non-empty TensorList": pytorch/pytorch#60269 made it a sentence."""
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0 in RNN"):
        RNN(I, H, **options, device=device)(torch.zeros(sizes, device=device))


@pytest.mark.parametrize("where", ["input", "hx", "weight"])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_nan_is_not_swallowed(nonlinearity: str, where: str, device: str) -> None:
    """A relu that makes zero of NaN: pytorch/pytorch#7999. Each NaN is where nn.RNN has it."""

    def run(cls: type, device: str) -> Any:
        module = made(cls, device, nonlinearity=nonlinearity)
        x, hx = numbers(T, B, I, device=device), numbers(1, B, H, device=device)
        with torch.no_grad():
            {"input": x[2, 1], "hx": hx[0, 1], "weight": module.weight_ih_l0[3]}[where][:2] = (
                torch.nan
            )
        return torch.where(module(x, hx)[0].isnan(), 1.0, 0.0)

    assert_agree(run, device)
