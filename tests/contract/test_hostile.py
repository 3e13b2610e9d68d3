"""What a damaged checkpoint, an offloader or a slip hands over: errors, never a wild read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import RNN, RNNCell

OPS = torch.ops.fastrnn
T, B, I, H, L = 3, 2, 4, 5, 2  # noqa: E741  (seq_len, batch, input_size, hidden_size, layers)
NAMES = ["input", "hx", "weights", "batch_sizes", "lengths", "reset", "dropout_mask"]
NAMES += ["has_biases", "num_layers", "nonlinearity", "bidirectional", "batch_first"]


def weights() -> list[Tensor]:
    sizes = [(H, I), (H, H), (H,), (H,), (H, H), (H, H), (H,), (H,)]
    return [torch.randn(size) for size in sizes]


def padded() -> dict[str, Any]:
    """Arguments of the operator, with every tensor that padded input goes with."""
    given = {
        "input": torch.randn(T, B, I),
        "hx": torch.randn(L, B, H),
        "weights": weights(),
        "lengths": torch.tensor([3, 1]),
        "reset": torch.zeros(T, B, dtype=torch.bool),
        "dropout_mask": torch.ones(L - 1, T, B, H),
        "has_biases": True,
        "num_layers": L,
        "nonlinearity": "tanh",
        "bidirectional": False,
        "batch_first": False,
    }
    return {name: given.get(name) for name in NAMES}


def packed() -> dict[str, Any]:
    rows = {"input": torch.randn(5, I), "batch_sizes": torch.tensor([2, 2, 1])}
    return padded() | rows | {"lengths": None, "dropout_mask": torch.ones(L - 1, 5, H)}


def tensors_of(given: dict[str, Any]) -> dict[str, Tensor]:
    found = {name: x for name, x in given.items() if isinstance(x, Tensor)}
    return found | {f"weights[{i}]": w for i, w in enumerate(given["weights"])}


def shrink(x: Tensor, left: int) -> str:
    """Leave so many bytes of a tensor's storage; what the error is to say."""
    bytes = x.untyped_storage().nbytes()
    x.untyped_storage().resize_(left)
    return rf" to have {bytes} bytes of storage, .* got {left}: was it freed or resized\?"


def refused(name: str, x: Tensor, left: int) -> Any:
    escaped = name.replace("[", r"\[").replace("]", r"\]")
    return pytest.raises(RuntimeError, match=f"rnn: expected {escaped}{shrink(x, left)}")


LEFT = pytest.mark.parametrize("left", [0, 7], ids=["freed", "shrunk"])
PADDED = ["input", "hx", "lengths", "reset", "dropout_mask", *(f"weights[{i}]" for i in range(8))]
PACKED = ["input", "hx", "batch_sizes", "reset", "dropout_mask", "weights[0]"]
CASES = [(padded, name) for name in PADDED] + [(packed, name) for name in PACKED]
TENSORS = pytest.mark.parametrize(
    ("arguments", "name"), CASES, ids=[f"{f.__name__}-{name}" for f, name in CASES]
)


@LEFT
@TENSORS
@pytest.mark.parametrize("trains", [False, True], ids=["inference", "training"])
def test_freed_argument_of_the_operators(
    arguments: Any, name: str, left: int, trains: bool
) -> None:
    given = arguments()
    given["hx"].requires_grad_(trains)
    if name == "reset":
        left //= 2  # of six bytes
    with refused(name, tensors_of(given)[name], left):
        OPS.rnn(*given.values())
    with pytest.raises(RuntimeError, match="bytes of storage"):
        OPS.rnn_forward(*given.values(), True)


@LEFT
@TENSORS
def test_freed_argument_of_the_backward_operator(arguments: Any, name: str, left: int) -> None:
    given = arguments()
    output, hn, saved = OPS.rnn_forward(*given.values(), True)
    with refused(name, tensors_of(given)[name], min(left, 3) if name == "reset" else left):
        OPS.rnn_backward(output, hn, saved, *given.values(), True, True, True)


@LEFT
@pytest.mark.parametrize("name", ["grad_output", "grad_hn", "saved"])
@pytest.mark.parametrize("arguments", [padded, packed])
def test_freed_gradient(arguments: Any, name: str, left: int) -> None:
    given = arguments()
    results = OPS.rnn_forward(*given.values(), True)
    of = dict(zip(["grad_output", "grad_hn", "saved"], map(torch.clone, results), strict=True))
    with refused(name, of[name], left):
        OPS.rnn_backward(*of.values(), *given.values(), True, True, True)


def call_rnn(module: Any, x: Tensor, h: Tensor | None) -> Any:
    return module(x, h)


def call_step(module: Any, x: Tensor, h: Tensor | None) -> Any:
    return module.step(x, h)


def call_functional(module: Any, x: Tensor, h: Tensor | None) -> Any:
    return fastrnn.functional.rnn(x, h, list(module.parameters()))


def call_packed(module: Any, x: Tensor, h: Tensor | None) -> Any:
    return module(pack_padded_sequence(x, torch.tensor([2, 3]), enforce_sorted=False), h)


def call_autocast(module: Any, x: Tensor, h: Tensor | None) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return module(x, h)


def call_reset_state(module: Any, x: Tensor, h: Tensor | None) -> Any:
    return module(x, h, reset=torch.ones(T, B, dtype=torch.bool), reset_state=torch.ones(1, B, H))


def call_step_with_reset(module: Any, x: Tensor, h: Tensor | None) -> Any:
    return module.step(x, h, reset=torch.tensor([True, False]))


ENTRIES = [call_rnn, call_step, call_functional, call_packed, call_autocast, call_reset_state]


@LEFT
@pytest.mark.parametrize("index", range(6), ids=["input", "hx", "w_ih", "w_hh", "b_ih", "b_hh"])
@pytest.mark.parametrize("trains", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("call", [*ENTRIES, call_step_with_reset], ids=lambda f: f.__name__)
def test_freed_argument_of_a_call(call: Any, index: int, left: int, trains: bool) -> None:
    module = RNN(I, H)
    steps = () if call in (call_step, call_step_with_reset) else (T,)
    given = [torch.randn(*steps, B, I), torch.randn(1, B, H), *module.parameters()]
    name = ["input", "hx", *(f"weights[{i}]" for i in range(4))][index]
    sequence = None
    if call is call_packed and index == 0:  # what a packed sequence holds is a copy
        name, sequence = "data", pack_padded_sequence(given[0], torch.tensor([3, 2]))
        given[0] = sequence.data
    with torch.set_grad_enabled(trains), refused(name, given[index], left):
        module(sequence, given[1]) if sequence is not None else call(module, *given[:2])


@LEFT
@pytest.mark.parametrize("name", ["batch_sizes", "sorted_indices", "unsorted_indices"])
def test_freed_part_of_a_packed_sequence(name: str, left: int) -> None:
    sequence = pack_padded_sequence(
        torch.randn(T, B, I), torch.tensor([2, 3]), enforce_sorted=False
    )
    with refused(name, getattr(sequence, name), left):
        RNN(I, H)(sequence, torch.randn(1, B, H))


@LEFT
@pytest.mark.parametrize("name", ["lengths", "reset", "reset_state"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool], ids=str)
def test_freed_marks(name: str, left: int, dtype: torch.dtype) -> None:
    given = {
        "lengths": torch.ones(B),
        "reset": torch.ones(T, B),
        "reset_state": torch.ones(1, B, H),
    }
    marks = {n: x if n == "reset_state" else x.to(dtype) for n, x in given.items()}
    if name == "lengths":
        marks = {"lengths": marks["lengths"]}
        if dtype == torch.bool:
            pytest.skip("lengths are integers")
    with refused(name, marks[name], left // 2):
        RNN(I, H)(torch.randn(T, B, I), **marks)


@LEFT
@pytest.mark.parametrize("index", range(6), ids=["input", "hx", "w_ih", "w_hh", "b_ih", "b_hh"])
@pytest.mark.parametrize("marked", [False, True], ids=["plain", "reset"])
def test_freed_argument_of_a_cell(index: int, left: int, marked: bool) -> None:
    cell = RNNCell(I, H)
    given = [torch.randn(B, I), torch.randn(B, H), *cell.parameters()]
    name = ["input", "hx", *(f"weights[{i}]" for i in range(4))][index]
    with refused(name, given[index], left):
        cell(*given[:2], reset=torch.tensor([True, False]) if marked else None)


@pytest.mark.parametrize("freed", ["w_hh", "gradient"])
def test_freed_before_a_second_derivative(freed: str) -> None:
    module = RNN(I, H)
    output, _ = module(torch.randn(T, B, I, requires_grad=True))
    gradient = torch.randn_like(output, requires_grad=True)
    x = module.weight_hh_l0 if freed == "w_hh" else gradient
    with refused("weights[1]" if freed == "w_hh" else "grad_output", x, 0):
        torch.autograd.grad(output, module.weight_ih_l0, gradient, create_graph=True)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64], ids=str)
def test_freed_where_torch_serves(dtype: torch.dtype) -> None:
    cell = RNNCell(I, H, dtype=torch.complex64)
    x = torch.ones(B, I, dtype=dtype)
    with refused("input", x, 0):
        cell(x)


def test_all_of_a_storage_may_be_used() -> None:
    """Offsets, expanded and overlapping elements up to the storage's last byte."""
    module = RNN(I, H)
    memory = torch.randn(T * B * I + 3)
    views = [
        memory[3:].view(T, B, I),
        memory[-I:].expand(T, B, I),
        memory[-1:].expand(T, B, I),
        memory.as_strided((T, B, I), (1, 2, 3), memory.numel() - 14),
        memory[:0].view(T, 0, I),
    ]
    for x in views:
        torch.testing.assert_close(module(x)[0], module(x.clone())[0])
    views[3].untyped_storage().resize_(memory.numel() * 4 - 4)
    with pytest.raises(RuntimeError, match=rf"have {memory.numel() * 4} bytes of storage"):
        module(views[3])


HUGE = [2**62 + 1, 2**61, 2**63 - 1, 2**33]


@pytest.mark.parametrize("num_layers", HUGE)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_that_overflow(num_layers: int, bidirectional: bool, device: str) -> None:
    given = {name: x for name, x in padded().items() if name in ("has_biases", "nonlinearity")}
    w = [x.to(device) for x in weights()]
    x = torch.randn(T, B, I, device=device)
    changes = {"input": x, "weights": w, "num_layers": num_layers, "bidirectional": bidirectional}
    args = [(dict.fromkeys(NAMES) | {"batch_first": False} | given | changes)[n] for n in NAMES]
    with pytest.raises(RuntimeError, match=f"weights for .*num_layers ?= ?{num_layers}.* got 8"):
        OPS.rnn(*args)
    with pytest.raises(RuntimeError, match=r"weights for .* got 8"):
        OPS.rnn_forward(*args, True)
    output, saved = torch.zeros(T, B, H, device=device), torch.zeros(L, T * B, H, device=device)
    with pytest.raises(RuntimeError, match=r"weights for .* got 8"):
        OPS.rnn_backward(output, None, saved, *args, True, True, True)
    with pytest.raises(RuntimeError, match=f"weights for num_layers={num_layers}"):
        fastrnn.functional.rnn(x, None, w, num_layers=num_layers, bidirectional=bidirectional)


@pytest.mark.parametrize("num_layers", HUGE)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize(
    "call", [call_rnn, call_step, call_packed, call_autocast, call_reset_state]
)
def test_module_with_layers_that_overflow(call: Any, num_layers: int, dropout: float) -> None:
    module = RNN(I, H)
    module.num_layers, module.dropout = num_layers, dropout
    x = torch.randn(B, I) if call is call_step else torch.randn(T, B, I)
    with pytest.raises(RuntimeError, match=f"weights for num_layers={num_layers}"):
        call(module, x, torch.randn(1, B, H))
    with pytest.raises(RuntimeError, match=f"weights for num_layers={num_layers}"):
        call(module, x, None)


def test_compiled_module_with_layers_that_overflow() -> None:
    module = RNN(I, H)
    module.num_layers = 2**62 + 1
    with pytest.raises(Exception, match=r"weights for num_layers=4611686018427387905"):
        torch.compile(module, backend="eager", fullgraph=True)(torch.randn(T, B, I))


SIZES = {
    "steps and rows": (2**40, 2**20, 1),
    "steps": (2**50, 1, 1),
    "rows": (1, 2**50, 1),
    "bytes that overflow": (2**31, 2**30, 1),
    "bytes that overflow by hidden units": (2**30, 2**29, 1),
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("module", [RNN(1, 1), RNN(1, 3, 2, bidirectional=True)], ids=["1", "4"])
@pytest.mark.parametrize("trains", [False, True], ids=["inference", "training"])
def test_sizes_that_no_memory_holds(sizes: tuple[int, ...], module: RNN, trains: bool) -> None:
    x = torch.zeros(1).expand(sizes)
    with torch.set_grad_enabled(trains), pytest.raises(RuntimeError, match=r"memory|overflow"):
        module(x)


@pytest.mark.parametrize("features", [2**40, 2**55, 2**61])
def test_features_that_no_memory_holds(features: int) -> None:
    zero = torch.zeros(1)
    given = [zero.expand(H, features // 8), zero.expand(H, H), zero.expand(H), zero.expand(H)]
    x = zero.expand(T, 2, features // 8)
    options = (None, None, None, None, True, 1, "tanh", False, False)
    with pytest.raises(RuntimeError, match=r"memory|overflow"):
        OPS.rnn(x, None, given, *options)
    x, given[0], given[1] = zero.expand(T, 1, 1), zero.expand(2**30, 1), zero.expand(2**30, 2**30)
    given[2:] = [zero.expand(2**30)] * 2
    with pytest.raises(RuntimeError, match=r"memory|overflow"):
        OPS.rnn(x, None, given, *options)


def test_lengths_of_more_rows_than_memory_holds() -> None:
    x = torch.zeros(1).expand(2**55, 0, 1)
    options = (None, torch.zeros(0, dtype=torch.int64), None, None, True, 1, "tanh", False, False)
    given = [torch.zeros(1, 1), torch.zeros(1, 1), torch.zeros(1), torch.zeros(1)]
    message = f"can't allocate memory: you tried to allocate {8 * 2**55} bytes"
    with pytest.raises(RuntimeError, match=message):
        OPS.rnn(x, None, given, *options)


LIMITED = """
import re, resource, sys, torch, fastrnn
torch.set_num_threads(1)

def within(megabytes, run):
    status = open("/proc/self/status").read()
    used = int(re.search(r"VmSize:\\s+(\\d+)", status).group(1)) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), -1))
    try:
        return run()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
"""

# Packed, the weights take 75 MB; as they came, nothing.
FEW_ROWS = """
rnn = fastrnn.RNN(64, 2500, 2)
x = torch.randn(3, 20, 64)
output, hn = within(30, lambda: rnn(x))
torch.testing.assert_close((output, hn), rnn(x), rtol=1e-4, atol=1e-5)
"""

# Scratch of 96 rows of a million features.
NO_ROOM = """
import pytest
x = torch.randn(1, 2, 1 << 20, requires_grad=True)
rnn = fastrnn.RNN(1 << 20, 1)
output, hn = rnn(x)
for run in (
    lambda: rnn(x),
    lambda: fastrnn.RNNCell(1 << 20, 1)(x[0]),
    lambda: rnn.step(x[0]),
    lambda: output.sum().backward(),
):
    with pytest.raises(RuntimeError, match=r"tried to allocate \\d{9,} bytes") as e:
        within(100, run)
    assert e.type is RuntimeError
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("program", [FEW_ROWS, NO_ROOM], ids=["few rows", "no room"])
def test_little_memory(program: str) -> None:
    subprocess.run([sys.executable, "-c", LIMITED + program], check=True)
