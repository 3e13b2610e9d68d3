"""Malformed arguments of every entry; tests/fuzz/malformed.py tries as many as one likes."""

from __future__ import annotations

import random
from decimal import Decimal

import malformed
import numpy as np
import pytest
import torch
from both import Raised
from malformed import attempt, results
from malformed_calls import Entry, build
from malformed_extended import ENTRIES
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import RNN, LeakyRNN, RNNCell


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_undamaged_calls_are_valid(entry: Entry) -> None:
    """Else what is damaged might not matter."""
    for i in range(40):
        call = build(entry, random.Random(i))
        result = attempt(call, lambda call=call: entry.run(call, entry.theirs or entry.cls))
        assert not isinstance(result, Raised), f"{call}\n{result}"


def test_malformed_arguments() -> None:
    """A result that is right or an error that users expect, for 2,000 calls."""
    found = list(results(seed=1, count=2000))
    assert len(found) == 2000
    assert {name for _, name, _, _ in found} == {entry.name for entry in ENTRIES}
    faults = [f"--seed 1 --only {i}: {kind}\n{facts}" for i, _, kind, facts in found
              if kind.startswith("FAULT")]  # fmt: skip
    assert not faults, "\n".join(faults)


@pytest.mark.filterwarnings("ignore")  # of torch, for unusual tensors
@pytest.mark.parametrize("fault", ["crash", "wrong value", "other error"])
def test_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of fault is seen, in a call that is right."""
    index = next(
        i for i in range(1000)
        if malformed.malformed(0, i).entry.name == "functional.rnn"
        and malformed.examine(0, i)[0] == "returns what the reference does"
    )  # fmt: skip
    real = fastrnn.functional.rnn

    def faulty(*args: object, **kwargs: object) -> object:
        if fault == "crash":
            raise RuntimeError("INTERNAL ASSERT FAILED")
        if fault == "other error":
            raise OverflowError
        output, hn = real(*args, **kwargs)  # type: ignore[arg-type]
        return output, hn + 0.01

    monkeypatch.setattr(fastrnn.functional, "rnn", faulty)
    assert malformed.examine(0, index)[0].startswith("FAULT")


def test_a_crash_has_a_name() -> None:
    """It is a fault of the call that runs, and the calls after it follow."""
    crash = "if where == 2: __import__('os').abort()"
    found = list(results(seed=1, count=4, fake=crash))
    assert [index for index, *_ in found] == [0, 1, 2, 3]
    assert [kind.startswith("FAULT: fastrnn ends the process") for _, _, kind, _ in found] == [
        False,
        False,
        True,
        False,
    ]


# What was found so.


@pytest.mark.parametrize("missing", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("reset", [False, True])
def test_cell_with_one_bias(missing: str, reset: bool) -> None:
    """The other one was left out in silence."""
    cells = [cls(3, 4) for cls in (RNNCell, torch.nn.RNNCell)]
    cells[1].load_state_dict(cells[0].state_dict())
    x, grads = torch.randn(2, 3), []
    marks = {"reset": torch.zeros(2, dtype=torch.bool)} if reset else {}
    for cell in cells:
        setattr(cell, missing, None)
        h = cell(x, None, **(marks if isinstance(cell, RNNCell) else {}))
        grads.append([h, *torch.autograd.grad(h.sum(), [*cell.parameters()])])
    torch.testing.assert_close(*grads)


def calls_with(name: str, x: Tensor) -> list[object]:
    """Calls on the CPU with one mark that is elsewhere: past the module, and by the operators."""
    module, input = RNN(3, 4), torch.randn(5, 2, 3)
    options = [None, None, None, True, 1, "tanh", False, False]
    options[["lengths", "reset", "dropout_mask"].index(name)] = x
    weights = list(module.parameters())
    args = (input, None, weights, None, *options)
    return [
        lambda: module(input, **{name: x}),
        lambda: torch.ops.fastrnn.rnn(*args),
        lambda: torch.ops.fastrnn.rnn_forward(*args, True),
    ]


@pytest.mark.parametrize("name", ["lengths", "reset"])
def test_marks_on_meta_beside_a_call_on_the_cpu(name: str) -> None:
    """The result was memory that nothing had written to."""
    shape, dtype = {"lengths": ((2,), torch.int64), "reset": ((5, 2), torch.bool)}[name]
    for call in calls_with(name, torch.empty(shape, dtype=dtype, device="meta")):
        with pytest.raises((RuntimeError, ValueError), match=r"expected .* on cpu, got"):
            call()  # type: ignore[operator]


@pytest.mark.parametrize("create_graph", [False, True])
def test_sparse_gradient(create_graph: bool) -> None:
    module, x = RNN(3, 4), torch.randn(5, 2, 3, requires_grad=True)
    results = []
    for convert in (lambda g: g, lambda g: g.to_sparse()):
        output, _ = module(x)
        grad = convert(torch.eye(5, 8).view(5, 2, 4))
        wanted = [x, *module.parameters()]
        results.append(torch.autograd.grad(output, wanted, grad, create_graph=create_graph))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("part", ["saved", "batch_sizes"])
@pytest.mark.parametrize("create_graph", [False, True])
def test_hook_that_hands_back_freed_memory(part: str, create_graph: bool) -> None:
    """It was made contiguous before anything looked at its storage."""

    def unpack(x: Tensor) -> Tensor:
        if (x.dtype == torch.int64) != (part == "batch_sizes"):
            return x
        far_apart = torch.empty_strided(x.shape, [2 * s for s in x.stride()], dtype=x.dtype)
        far_apart.untyped_storage().resize_(0)
        return far_apart

    module = RNN(3, 4)
    module.weight_ih_l0.requires_grad_(False)  # only saved, and batch_sizes, come by the hook
    module.weight_hh_l0.requires_grad_(False)
    sequence = pack_padded_sequence(torch.randn(1, 2, 3), [1, 1])
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, unpack):
        output, _ = module(sequence)
    with pytest.raises(RuntimeError, match=f"expected {part} to have .* was it freed or resized"):
        torch.autograd.grad(output.data.sum(), module.bias_hh_l0, create_graph=create_graph)


@pytest.mark.parametrize(
    "value",
    [True, 1.0, 2**63, "1", None, torch.tensor(1.9), np.float32(1.9), Decimal("1.9")],
    ids=repr,
)
def test_num_layers_of_another_type(value: object) -> None:
    module = RNN(3, 4)
    module.num_layers = value  # type: ignore[assignment]
    kind = RuntimeError if value == 2**63 else TypeError
    words = "expected .* weights" if value == 2**63 else "num_layers should be of type int, got:"
    for call in (
        lambda: module(torch.ones(5, 2, 3)),
        lambda: module(torch.ones(5, 2, 3), reset=torch.zeros(5, 2)),
        lambda: module.step(torch.ones(2, 3)),
        lambda: module.step(torch.ones(2, 3), reset=torch.zeros(2)),
    ):
        with pytest.raises(kind, match=words):
            call()


@pytest.mark.parametrize("cls", [RNN, RNNCell])
def test_hidden_size_that_is_no_integer(cls: type) -> None:
    """As in nn.RNN it matters where a state is made."""
    module = cls(3, 4)
    module.hidden_size = 4.0
    x = torch.ones(2, 3)
    with pytest.raises(TypeError, match="hidden_size should be of type int, got: float"):
        module(x)
    module(x, torch.ones(2, 4) if cls is RNNCell else torch.ones(1, 4))


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"),
    [
        ("alpha", 10**400, ValueError, "alpha should be greater than 0 and at most 1"),
        ("alpha", None, TypeError, "alpha should be a number or a tensor, got: NoneType"),
        ("form", "tanh", ValueError, "Unknown form 'tanh'"),
        ("form", 3, ValueError, "Unknown form 3"),
        ("noise", 10**400, ValueError, "noise should be a finite standard deviation"),
        ("noise", [0.1], TypeError, "noise should be a number or a tensor, got: list"),
    ],
)
def test_leaky_attributes_that_were_overwritten(
    name: str, value: object, kind: type[Exception], words: str
) -> None:
    module = LeakyRNN(3, 4)
    setattr(module, name, value)
    for call in (lambda: module(torch.ones(5, 2, 3)), lambda: module.step(torch.ones(2, 3))):
        with pytest.raises(kind, match=words):
            call()


def test_noise_of_another_type() -> None:
    module = LeakyRNN(3, 4)
    for noise in ([], (), pack_padded_sequence(torch.ones(1, 2, 4), [1, 1])):
        with pytest.raises(TypeError, match="noise should be a number or a tensor, got:"):
            module.step(torch.ones(2, 3), noise=noise)


def test_return_layers_of_another_type() -> None:
    with pytest.raises(TypeError, match="return_layers should be of type bool, got: str"):
        LeakyRNN(3, 4)(torch.ones(5, 2, 3), return_layers="yes")


def test_leaky_bidirectional_of_another_type() -> None:
    module = LeakyRNN(3, 4)
    module.bidirectional = []  # type: ignore[assignment]
    with pytest.raises(TypeError, match="bidirectional should be of type bool, got: list"):
        module(torch.ones(5, 2, 3))


@pytest.mark.parametrize("name", ["alpha", "igates", "noise"])
def test_freed_memory_has_a_name(name: str) -> None:
    x = {"alpha": torch.ones(1, 4), "igates": torch.ones(5, 2, 4), "noise": torch.ones(1, 5, 2, 4)}
    x[name].untyped_storage().resize_(0)
    alpha, weights = x["alpha"] if name == "alpha" else 0.5, [torch.ones(4, 3), torch.eye(4)]
    more = {} if name == "alpha" else {name: x[name]}
    with pytest.raises(RuntimeError, match=f"expected {name} to have .* was it freed or resized"):
        fastrnn.functional.leaky_rnn(torch.ones(5, 2, 3), None, weights, alpha, bias=False, **more)
