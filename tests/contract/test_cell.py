"""fastrnn.RNNCell against torch.nn.RNNCell."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from both import B, H, I, Raised, assert_agree, assert_raise_alike, outcome
from torch import Tensor, nn

import fastrnn
from fastrnn import RNNCell


def x(*sizes: int, **like: object) -> Tensor:
    return torch.randn(*sizes, **like)


CONFIGURATIONS = {
    "tanh": {},
    "relu": {"nonlinearity": "relu"},
    "no bias": {"bias": False},
    "relu, no bias": {"nonlinearity": "relu", "bias": False},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "complex": {"dtype": torch.complex64},
    "meta": {"device": "meta"},
}

SHAPES = {
    "batch": ((B, I), (B, H)),
    "batch, no hx": ((B, I), None),
    "no batch": ((I,), (H,)),
    "no batch, no hx": ((I,), None),
    "no rows": ((0, I), (0, H)),
    "one row": ((1, I), (1, H)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_results_and_gradients(name: str, shape: str) -> None:
    def run(cls: type) -> object:
        cell = cls(I, H, **CONFIGURATIONS[name])
        like = {"dtype": cell.weight_ih.dtype, "device": cell.weight_ih.device}
        input_shape, hx_shape = SHAPES[shape]
        input = x(*input_shape, **like, requires_grad=True)
        hx = None if hx_shape is None else x(*hx_shape, **like, requires_grad=True)
        h = cell(input, hx)
        h.sum().abs().backward()
        grads = [w.grad for w in cell.parameters()]
        return h, h._is_view(), input.grad, None if hx is None else hx.grad, grads

    assert_agree(run, RNNCell)


def test_parameters_attributes_and_copies() -> None:
    def run(cls: type) -> object:
        cell = cls(I, H, nonlinearity="relu")
        twins = copy.deepcopy(cell), pickle.loads(pickle.dumps(cell))
        assert all(type(twin) is cls for twin in twins)
        return (
            vars(cell) | {"_parameters": dict(cell._parameters)},
            repr(cell),
            cell.__constants__,
            [twin(torch.ones(B, I)) for twin in twins],
            torch.get_rng_state(),
        )

    assert_agree(run, RNNCell)


def test_state_dict_goes_both_ways() -> None:
    theirs, ours = nn.RNNCell(I, H), RNNCell(I, H)
    ours.load_state_dict(theirs.state_dict())
    input = x(B, I)
    torch.testing.assert_close(ours(input), theirs(input))
    theirs.load_state_dict(RNNCell(I, H).state_dict())


def test_loop_with_a_state_detached_in_place() -> None:
    def run(cls: type) -> object:
        cell = cls(I, H)
        h, losses = torch.zeros(B, H), []
        for t in range(9):
            h = cell(x(B, I), h)
            if t % 3 == 2:
                losses.append(h.square().sum())
                losses[-1].backward()
                h.detach_()
        return h, losses, [w.grad for w in cell.parameters()]

    assert_agree(run, RNNCell)


def test_same_as_the_module() -> None:
    cell, module = RNNCell(I, H), fastrnn.RNN(I, H)
    module.load_state_dict({f"{name}_l0": w for name, w in cell.state_dict().items()})
    input, h, states = x(6, B, I), None, []
    for t in range(6):
        h = cell(input[t], h)
        states.append(h)
    torch.testing.assert_close(torch.stack(states), module(input)[0])


def test_state_may_change_after_the_step() -> None:
    cell = RNNCell(I, H)
    h = cell(x(B, I))
    expected = torch.autograd.grad(h.sum(), cell.weight_ih, retain_graph=True)
    total = h.sum()
    h.zero_()
    torch.testing.assert_close(torch.autograd.grad(total, cell.weight_ih), expected)


def test_autocast() -> None:
    def run(cls: type) -> object:
        cell = cls(I, H)
        with torch.autocast("cpu", torch.bfloat16):
            h = cell(x(B, I), x(B, H))
        h.sum().backward()
        return h, [w.grad for w in cell.parameters()]

    assert_agree(run, RNNCell, tolerance=2e-2)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by torch itself
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("sizes", [(), (2,)], ids=["no batch", "batch"])
def test_gradcheck(nonlinearity: str, sizes: tuple[int, ...]) -> None:
    cell = RNNCell(2, 3, nonlinearity=nonlinearity, dtype=torch.float64)
    like = {"dtype": torch.float64, "requires_grad": True}
    arguments = (x(*sizes, 2, **like), x(*sizes, 3, **like), *cell.parameters())

    def call(input: Tensor, hx: Tensor, *weights: Tensor) -> Tensor:
        names = [name for name, _ in cell.named_parameters()]
        return torch.func.functional_call(cell, dict(zip(names, weights, strict=True)), (input, hx))

    assert torch.autograd.gradcheck(call, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, arguments)


ERRORS = {
    "3-D": lambda cell: cell(I, H)(x(1, B, I)),
    "0-D": lambda cell: cell(I, H)(torch.tensor(1.0)),
    "3-D hx": lambda cell: cell(I, H)(x(B, I), x(1, B, H)),
    "input size": lambda cell: cell(I, H)(x(B, I + 1)),
    "input size, no batch": lambda cell: cell(I, H)(x(I + 1), x(H)),
    "rows": lambda cell: cell(I, H)(x(B, I), x(B + 1, H)),
    "one row does not broadcast": lambda cell: cell(I, H)(x(B, I), x(1, H)),
    "hx size": lambda cell: cell(I, H)(x(B, I), x(B, H + 1)),
    "hx size, no batch": lambda cell: cell(I, H)(x(I), x(H + 1)),
    "2-D hx, no batch": lambda cell: cell(I, H)(x(I), x(1, H)),
    "1-D hx, batch": lambda cell: cell(I, H)(x(B, I), x(B)),
    "nonlinearity": lambda cell: cell(I, H, nonlinearity="sigmoid")(x(B, I)),
    "shape before nonlinearity": lambda cell: cell(I, H, nonlinearity="sigmoid")(x(1, B, I)),
    "nonlinearity before size": lambda cell: cell(I, H, nonlinearity="gelu")(x(B, I + 1)),
    "relu of complex": lambda cell: cell(I, H, nonlinearity="relu", dtype=torch.complex64)(
        x(B, I, dtype=torch.complex64)
    ),
    "unknown keyword": lambda cell: cell(I, H)(x(B, I), state=None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    if name in ("2-D hx, no batch", "1-D hx, batch") and torch.__version__ >= (2, 15):
        # torch has other words there, and another type; ours are those of the versions before.
        assert all(isinstance(outcome(ERRORS[name], c), Raised) for c in (nn.RNNCell, RNNCell))
    else:
        assert_raise_alike(ERRORS[name], RNNCell)


CLEARER = {  # the call, torch's type and a part of our words, which say more than torch's
    "dtype": (
        lambda cell: cell(I, H)(x(B, I, dtype=torch.float64)),
        RuntimeError,
        r"RNNCell: expected input of dtype torch.float32, like the weights, got torch.float64. "
        r"Convert it: input.to\(torch.float32\)",
    ),
    "integers": (
        lambda cell: cell(I, H)(x(B, I).int()),
        RuntimeError,
        "expected input of dtype torch.float32, .* got torch.int32",
    ),
    "hx dtype": (
        lambda cell: cell(I, H)(x(B, I), x(B, H, dtype=torch.float64)),
        RuntimeError,
        "RNNCell: expected hx of dtype torch.float32, .* got torch.float64",
    ),
    "hx dtype, no bias": (
        lambda cell: cell(I, H, bias=False)(x(B, I), x(B, H).half()),
        RuntimeError,
        "RNNCell: expected hx of dtype torch.float32, .* got torch.float16",
    ),
    "None": (
        lambda cell: cell(I, H)(None),
        AttributeError,
        "RNNCell: expected input to be a Tensor, got NoneType",
    ),
    "array": (
        lambda cell: cell(I, H)(x(B, I).numpy()),
        AttributeError,
        r"got ndarray. Convert it: torch.as_tensor\(input\)",
    ),
    "packed": (
        lambda cell: cell(I, H)(nn.utils.rnn.pack_sequence([x(2, I)])),
        AttributeError,
        r"got PackedSequence. Convert it with pad_packed_sequence\(input\)",
    ),
    "hx of an LSTM": (
        lambda cell: cell(I, H)(x(B, I), (x(B, H), x(B, H))),
        AttributeError,
        r"RNNCell: expected hx to be a Tensor or None, got a tuple. An LSTM's state is \(h, c\)",
    ),
    "tuple of one": (
        lambda cell: cell(I, H)(x(B, I), (x(B, H),)),
        AttributeError,
        r"expected hx to be a Tensor or None, got tuple. .* torch.stack\(hx\)",
    ),
}


@pytest.mark.parametrize("name", CLEARER)
def test_errors_in_words_of_our_own(name: str) -> None:
    """The type is torch's; the sentence says what was expected, what came, and what to do."""
    call, kind, words = CLEARER[name]
    with pytest.raises(kind) as theirs:
        call(nn.RNNCell)
    assert theirs.type is kind
    with pytest.raises(kind, match=words) as ours:
        call(RNNCell)
    assert ours.type is kind


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_input(sparse: Any) -> None:
    """A batch of one-hot words, say."""
    words = torch.eye(I)[[2, 0, 2]]
    cell, theirs = RNNCell(I, H), nn.RNNCell(I, H)
    theirs.load_state_dict(cell.state_dict())
    torch.testing.assert_close(cell(sparse(words)), theirs(sparse(words)))
    torch.testing.assert_close(cell(sparse(words)), cell(words))


@pytest.mark.parametrize("where", ["weights", "hx", "input"])
def test_devices_that_differ(where: str) -> None:
    """The operator has an answer on meta, of which nothing may come to another device."""
    devices = {"weights": "cpu", "hx": "cpu", "input": "cpu", where: "meta"}
    cell = RNNCell(I, H, device=devices["weights"])
    with pytest.raises(RuntimeError, match=r"not at the same device, .* at (cpu|meta)"):
        cell(x(B, I).to(devices["input"]), x(B, H).to(devices["hx"]))


def test_errors_of_the_constructor() -> None:
    for arguments in ((), (I,), (I, H, True, "tanh", None, None, None), (I, -1), ("a", H)):
        theirs, ours = (outcome(lambda cls: cls(*arguments), cls) for cls in (nn.RNNCell, RNNCell))  # noqa: B023
        assert ours == theirs


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning")
def test_graphs() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = RNNCell(I, H)

        def forward(self, input: Tensor, hx: Tensor) -> Tensor:
            return self.cell(self.cell(input, hx)[:, :I], hx)

    model, arguments, more = Model(), (x(B, I), x(B, H)), (x(7, I), x(7, H))
    symbolic = torch.fx.symbolic_trace(model)
    assert [n.op for n in symbolic.graph.nodes].count("call_module") == 2
    traced = torch.jit.trace(model, arguments)
    exported = torch.export.export(
        model, arguments, dynamic_shapes=2 * ({0: torch.export.Dim("b")},)
    )
    for graph in (symbolic, traced, exported.module()):
        torch.testing.assert_close(graph(*more), model(*more))
    with pytest.raises(RuntimeError, match=r"RNNCell does not support torch\.jit\.script"):
        torch.jit.script(model)


def test_vmap_over_cells() -> None:
    cells = [RNNCell(I, H) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(cells)
    input = x(B, I)
    results = torch.vmap(lambda w: torch.func.functional_call(cells[0], w, (input,)))(weights)
    torch.testing.assert_close(results, torch.stack([cell(input) for cell in cells]))


def test_no_features() -> None:
    ours, theirs = RNNCell(0, H), nn.RNNCell(0, H)
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(torch.zeros(B, 0)), theirs(torch.zeros(B, 0)))
