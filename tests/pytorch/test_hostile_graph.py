"""Who runs a backward pass, and what became of the tensors since the call."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, T, assert_agree
from torch import Tensor, nn
from torch._dynamo import compiled_autograd
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.utils._mode_utils import no_dispatch

from fastrnn import RNN, RNNCell

L = 2


def in_a_process(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )


# A node that is called, not run by autograd's engine.


@pytest.mark.parametrize("grad", [True, False])
def test_a_node_that_is_called(grad: bool) -> None:
    module, x = RNN(I, H), torch.randn(T, B, I, requires_grad=True)
    output, _ = module(x)
    with torch.set_grad_enabled(grad):
        found = output.grad_fn(torch.ones_like(output), None)
    expected = torch.autograd.grad(output.sum(), [x, *module.parameters()])
    torch.testing.assert_close([found[0], *found[2:]], [*expected])


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
@pytest.mark.parametrize("edges", [1, 40])
def test_a_node_that_is_called_from_another_node(edges: int) -> None:
    """A second derivative goes where the node's own edges lead."""
    module, x = RNN(I, H).double(), torch.randn(T, B, I).double().requires_grad_()
    output, _ = module(x)
    others = [torch.randn(2).double().requires_grad_() for _ in range(edges)]
    found: list[Tensor] = []

    def hook(grad: Tensor) -> None:
        found.append(output.grad_fn(torch.ones_like(output), None)[0])

    stacked = torch.stack(others)
    stacked.register_hook(hook)
    stacked.square().sum().backward(create_graph=True)
    (right,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    second = torch.autograd.grad(found[0].square().sum(), [x, *others], allow_unused=True)
    torch.testing.assert_close(second[0], torch.autograd.grad(right.square().sum(), x)[0])
    assert second[1:] == (None,) * edges


def test_second_derivatives_under_compiled_autograd() -> None:
    x = torch.randn(T, B, I, requires_grad=True)
    output, _ = RNN(I, H)(x)
    with (
        compiled_autograd._enable(lambda graph: graph),
        pytest.raises(NotImplementedError, match="not supported under compiled autograd"),
    ):
        torch.autograd.grad(output.sum(), x, create_graph=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_recorded_penalty_under_compiled_autograd() -> None:
    module, x = RNN(I, H, 2), torch.randn(T, B, I, requires_grad=True)

    def gradients() -> tuple[Tensor, ...]:
        (grad,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        grad.square().sum().backward()
        found = tuple(w.grad for w in module.parameters())
        module.zero_grad()
        return found

    expected = gradients()
    (grad,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    with compiled_autograd._enable(torch.compile(backend="eager")):
        grad.square().sum().backward()
    torch.testing.assert_close(tuple(w.grad for w in module.parameters()), expected)


# Tensors that are given other memory, between a call and its backward pass.


def swap_weights(module: nn.Module, x: Tensor, hx: Tensor) -> None:
    vector = torch.zeros_like(parameters_to_vector(module.parameters()))
    vector_to_parameters(vector, module.parameters())


def swap_input(module: nn.Module, x: Tensor, hx: Tensor) -> None:
    x.data = torch.zeros_like(x)


def swap_state(module: nn.Module, x: Tensor, hx: Tensor) -> None:
    hx.data = torch.zeros_like(hx)


def double(module: nn.Module, x: Tensor, hx: Tensor) -> None:
    for w in module.parameters():  # module.double() as it was before torch swapped tensors
        w.data = w.data.double()


SWAPS = [(RNN, swap) for swap in (swap_weights, swap_input, swap_state, double)]
SWAPS += [(RNNCell, swap) for swap in (swap_weights, double)]  # nn.RNNCell keeps no views of these


@pytest.mark.parametrize(("cls", "swap"), SWAPS)
def test_data_replaced_before_backward(cls: type, swap: Callable[..., None]) -> None:
    """As nn.RNN, which keeps views of what the call was given."""

    def run(cls: type) -> list[Tensor]:
        cell = issubclass(cls, nn.modules.rnn.RNNCellBase)
        module: Any = cls(I, H) if cell else cls(I, H, L)
        x = torch.randn(*([] if cell else [T]), B, I, requires_grad=True)
        hx = torch.randn(*([] if cell else [L]), B, H, requires_grad=True)
        result = module(x, hx)
        swap(module, x, hx)
        before = [x, hx, *module.parameters()]
        nodes = (result if cell else result[0]).sum()
        nodes.backward()
        return [w.grad.float() for w in before if w.grad is not None]

    assert_agree(run, cls)


def test_a_change_in_place_is_still_seen() -> None:
    module = RNN(I, H)
    output, _ = module(torch.randn(T, B, I))
    with torch.no_grad():
        module.weight_hh_l0.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# Tensors without memory, where what serves them is switched off.


def fake(*sizes: int) -> Tensor:
    return FakeTensorMode().from_tensor(torch.randn(sizes))


def functional(*sizes: int) -> Tensor:
    return torch._to_functional_tensor(torch.randn(sizes))


@pytest.mark.parametrize("make", [fake, functional])
@pytest.mark.parametrize("name", ["input", "hx", "weights", "gradient"])
def test_tensors_without_memory(make: Callable[..., Tensor], name: str) -> None:
    given: dict[str, Tensor] = {"input": torch.randn(T, B, I), "hx": torch.randn(1, B, H)}
    weights = [torch.randn(H, I), torch.randn(H, H)]
    options = None, None, None, None, False, 1, "tanh", False, False
    saved = torch.ops.fastrnn.rnn_forward(*given.values(), weights, *options, True)[2]
    grad = torch.randn(T, B, H)
    if name == "weights":
        weights[1] = make(H, H)
    elif name == "gradient":
        grad = make(T, B, H)
    else:
        given[name] = make(*given[name].shape)
    arguments = *given.values(), weights, *options
    operator: Any = torch.ops.fastrnn.rnn
    if name == "gradient":
        operator = torch.ops.fastrnn.rnn_backward
        arguments = grad, None, saved, *arguments, True, True, True
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
    with (
        torch.no_grad(),
        no_dispatch(),
        torch._C._ExcludeDispatchKeyGuard(key),
        pytest.raises(RuntimeError, match="to have memory, got a tensor without"),
    ):
        operator(*arguments)


# Arguments that another thread writes to.

WRITTEN = """
    import threading, time, torch, fastrnn
    torch.set_num_threads(1)
    module, marks = fastrnn.RNN(1, 1), torch.{marks}
    stop = threading.Event()
    def write():
        while not stop.is_set():
            marks.fill_(2**40)
            marks.fill_({right})
    thread = threading.Thread(target=write)
    thread.start()
    end, results, errors = time.monotonic() + 3, 0, 0
    with torch.no_grad():
        while time.monotonic() < end or results + errors < 20:
            try:
                {call}
                results += 1
            except (RuntimeError, ValueError):
                errors += 1
    stop.set()
    thread.join()
    print(results + errors)
"""


@pytest.mark.parametrize("kind", ["packed", "lengths"])
def test_marks_that_another_thread_writes_to(kind: str) -> None:
    """What was checked is what is used: an error or a result, never a read elsewhere."""
    if kind == "packed":
        call = "module(torch.nn.utils.rnn.PackedSequence(torch.zeros(50000, 1), marks))"
        code = WRITTEN.format(marks="ones(50000, dtype=torch.long)", right=1, call=call)
    else:
        call = "module(torch.zeros(3, 50000, 1), lengths=marks)"
        code = WRITTEN.format(marks="full((50000,), 3)", right=3, call=call)
    ended = in_a_process(code)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 20


def test_many_steps_without_rows() -> None:
    """Nothing is done for each: it would take twenty minutes that no one can interrupt."""
    ended = in_a_process("""
        import torch, fastrnn
        rnn = fastrnn.RNN(4, 6, 2)
        x = torch.zeros(2**40, 0, 4, requires_grad=True)
        rnn(x)[0].sum().backward()
        assert all(bool((w.grad == 0).all()) for w in rnn.parameters())
        assert x.grad.shape == x.shape
    """)
    assert ended.returncode == 0, ended.stderr


def test_the_shapes_of_gradients_for_a_compiler() -> None:
    """Those of the fake operator are those of the kernels."""
    weights = [torch.randn(H, I), torch.randn(H, H)]
    x, options = torch.randn(T, B, I), (None, None, None, None, False, 1, "tanh", False, False)
    saved = torch.ops.fastrnn.rnn_forward(x, None, weights, *options, True)[2]
    given = torch.randn(T, B, H), None, saved, x, None, weights, *options
    real = torch.ops.fastrnn.rnn_backward(*given, True, True, True)
    with FakeTensorMode() as mode:
        faked = torch.utils._pytree.tree_map_only(Tensor, mode.from_tensor, given)
        found = torch.ops.fastrnn.rnn_backward(*faked, True, True, True)
    assert [y.shape for y in real[:2]] == [y.shape for y in found[:2]]
