"""torch.compile: one graph, other sizes without compiling again, results equal to eager."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.utils.rnn import pack_sequence

from fastrnn import RNN, RNNCell

# On its first import inductor defines a ScriptModule, which torch itself deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

# At the first call the compiler takes sizes that are equal for one size, so none are: neither with
# one another nor with the features, 3 and 6, or the states, 1, 2 and 4.
SIZES = [(7, 5), (9, 3), (31, 4), (2, 8)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    counters.clear()
    before = torch._dynamo.config.save_config()
    yield
    assert torch._dynamo.config.save_config() == before  # nothing of ours changes global state
    torch.compiler.reset()


def compiled_graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def marks(module: RNN, seq_len: int, batch: int, device: str) -> dict[str, Tensor]:
    sizes = (batch, seq_len) if module.batch_first else (seq_len, batch)
    states = module.num_layers * (2 if module.bidirectional else 1)
    return {
        "hx": torch.randn(states, batch, module.hidden_size, device=device),
        "lengths": torch.randint(0, seq_len + 1, (batch,), device=device),
        "reset": torch.rand(sizes, device=device) < 0.3,
    }


def assert_alike(
    module: nn.Module, compiled: Any, *args: Any, eager: Any = None, **kwargs: Any
) -> None:
    """Results and their strides, and the gradients of every parameter and of a padded input."""
    results = []
    wanted = [*module.parameters()]
    if isinstance(args[0], Tensor):
        wanted.append(args[0].requires_grad_())
    for call in (compiled, eager or module):
        output, hn = call(*args, **kwargs)
        rows = output if isinstance(output, Tensor) else output.data
        grads = torch.autograd.grad(rows.square().sum() + hn.sin().sum(), wanted)
        results.append([rows, hn, *grads])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)
        assert ours.stride() == eager.stride()


OPTIONS = [
    {},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"num_layers": 2, "nonlinearity": "relu", "bias": False},
]


@pytest.mark.parametrize("given", [(), ("hx",), ("lengths",), ("hx", "lengths", "reset")], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sizes_do_not_compile_again(
    options: dict[str, Any], given: tuple[str, ...], device: str
) -> None:
    module = RNN(3, 6, **options, device=device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for seq_len, batch in SIZES:
        sizes = (batch, seq_len) if module.batch_first else (seq_len, batch)
        available = marks(module, seq_len, batch, device)
        kwargs = {name: available[name] for name in given}
        assert_alike(module, compiled, torch.randn(*sizes, 3, device=device), **kwargs)
    assert compiled_graphs() == 1


def test_by_default_the_second_size_makes_sizes_dynamic(device: str) -> None:
    module = RNN(3, 6, 2, device=device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for seq_len, batch in SIZES:
        assert_alike(module, compiled, torch.randn(seq_len, batch, 3, device=device))
    assert compiled_graphs() == 2


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("sort", [False, True], ids=["unsorted", "sorted"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_packed(sort: bool, given: bool, device: str) -> None:
    module = RNN(3, 6, 2, bidirectional=True, device=device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=True)
    for lengths in ((8, 6, 6, 2, 1), (9, 4, 4, 1), (7, 7), (5, 3, 2)):
        steps = lengths if sort else lengths[::-1]
        packed = pack_sequence(
            [torch.randn(n, 3, device=device) for n in steps], enforce_sorted=sort
        )
        hx = torch.randn(4, len(lengths), 6, device=device) if given else None
        assert_alike(module, compiled, packed, hx)
    assert compiled_graphs() == 1


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("sort", [False, True], ids=["unsorted", "sorted"])
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "hx"])
def test_packed_of_sizes_that_turn_dynamic(sort: bool, given: bool) -> None:
    """Without a tensor that has its size, the batch is in the values of batch_sizes alone."""
    module = RNN(3, 6, 2, bidirectional=True)
    compiled = torch.compile(module, backend="eager", fullgraph=given or not sort)
    for lengths in ((5, 3, 2), (7, 7, 2, 1)):
        steps = lengths if sort else lengths[::-1]
        packed = pack_sequence([torch.randn(n, 3) for n in steps], enforce_sorted=sort)
        hx = torch.randn(4, len(lengths), 6) if given else None
        assert_alike(module, compiled, packed, hx)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("kind", ["no batch", "no rows", "complex", "dropout"])
def test_one_graph_of(kind: str) -> None:
    module = RNN(3, 6, 2, dropout=0.5 if kind == "dropout" else 0.0)
    dtype = torch.complex64 if kind == "complex" else torch.float32
    sizes = {"no batch": (7, 3), "no rows": (7, 0, 3)}.get(kind, (7, 5, 3))
    input, results = torch.randn(sizes, dtype=dtype), []
    module.to(dtype)
    for compiled in (False, True):
        torch.manual_seed(1)
        if compiled:
            module.compile(backend="eager", fullgraph=True)
        results.append([*module(input), *module.eval()(input)])
        module.train()
    torch.testing.assert_close(*results)


def test_a_function_transform() -> None:
    module, input = RNN(3, 6), torch.randn(7, 5, 3)
    gradient = torch.func.grad(lambda input: module(input)[0].square().sum())
    compiled = torch.compile(gradient, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input), gradient(input))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = RNN(6, 8, 2, batch_first=True, bidirectional=True)
        self.cell = RNNCell(16, 6)
        self.stream = RNN(6, 5, 2)
        self.scores = nn.Linear(16, 4)

    def forward(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        output, _ = self.rnn(self.embed(words), lengths=lengths)
        state = None
        for _ in range(2):
            y, state = self.stream.step(self.cell(output.mean(1)), state)
        return self.scores(output).log_softmax(-1), y


def train(step: Callable[..., tuple[Tensor, Tensor]], model: nn.Module) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for seq_len, batch in SIZES:
        words = torch.randint(0, 11, (batch, seq_len), generator=generator)
        lengths = torch.randint(1, seq_len + 1, (batch,), generator=generator)
        device = next(model.parameters()).device
        scores, y = step(words.to(device), lengths.to(device))
        loss = scores[..., 0].neg().mean() + y.square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("backend", "mode"),
    [
        ("aot_eager", None),
        pytest.param("inductor", "default", marks=pytest.mark.slow),
        pytest.param("inductor", "reduce-overhead", marks=pytest.mark.slow),
    ],
    ids=["aot_eager", "default", "reduce-overhead"],
)
def test_training_a_larger_model(backend: str, mode: str | None, device: str) -> None:
    model = Model().to(device)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend=backend, mode=mode, fullgraph=True, dynamic=True)
    torch.testing.assert_close(train(compiled, model), train(twin, twin), rtol=1e-4, atol=1e-5)
    for ours, eager in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    assert compiled_graphs() == 1


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor(mode: str, device: str) -> None:
    module = RNN(3, 6, 2, device=device)
    compiled = torch.compile(module, mode=mode, fullgraph=True, dynamic=True)
    for seq_len, batch in SIZES:
        assert_alike(module, compiled, torch.randn(seq_len, batch, 3, device=device))
    assert compiled_graphs() == 1


def test_step_of_any_batch(device: str) -> None:
    module = RNN(3, 6, 2, device=device)
    compiled = torch.compile(module.step, backend="aot_eager", fullgraph=True, dynamic=True)
    for _, batch in SIZES:
        hx = torch.randn(2, batch, 6, device=device)
        x = torch.randn(batch, 3, device=device)
        assert_alike(module, compiled, x, hx, eager=module.step)
    assert compiled_graphs() == 1


def test_under_autocast(device: str) -> None:
    module = RNN(3, 6, 2, device=device)

    def call(input: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device, dtype=torch.bfloat16):
            return module(input)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    input = torch.randn(5, 2, 3, device=device)
    assert compiled(input)[0].dtype == torch.bfloat16
    for ours, eager in zip(compiled(input), call(input), strict=True):
        torch.testing.assert_close(ours, eager, rtol=0.02, atol=0.02)


def test_under_checkpoint(device: str) -> None:
    module = RNN(3, 6, 2, device=device)

    def call(input: Tensor) -> tuple[Tensor, Tensor]:
        return torch.utils.checkpoint.checkpoint(module, input, use_reentrant=False)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    assert_alike(module, compiled, torch.randn(5, 2, 3, device=device))


def test_writing_to_the_results(device: str) -> None:
    module = RNN(3, 6, 2, device=device)

    def call(input: Tensor) -> tuple[Tensor, Tensor]:
        output, hn = module(input)
        return output.mul_(2), hn.add_(1)

    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    input = torch.randn(5, 2, 3, device=device)
    grads = [
        torch.autograd.grad(sum(y.sum() for y in f(input)), [*module.parameters()])
        for f in (compiled, call)
    ]
    for ours, eager in zip(*grads, strict=True):
        torch.testing.assert_close(ours, eager)


def test_gradients_nobody_wants_do_not_share_memory(device: str) -> None:
    """Which torch.compile forbids an operator's results."""
    weights = [torch.ones(4, 3, device=device), torch.ones(4, 4, device=device)]
    input, args = torch.ones(5, 2, 3, device=device), (None, None, None, None)
    config = (False, 1, "tanh", False, False)
    _, hn, saved = torch.ops.fastrnn.rnn_forward(input, None, weights, *args, *config, True)
    grad_input, grad_hx, _ = torch.ops.fastrnn.rnn_backward(
        None, hn, saved, input, None, weights, *args, *config, False, False, True
    )
    assert grad_input.numel() == grad_hx.numel() == 0
    assert not torch._C._overlaps(grad_input, grad_hx)
    assert grad_input.untyped_storage()._cdata != grad_hx.untyped_storage()._cdata


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("frozen", ["", "weight_ih", "weight_hh", "weight"])
def test_under_compiled_autograd(frozen: str) -> None:
    module = RNN(3, 6, 2)
    for name, w in module.named_parameters():
        w.requires_grad_(not (frozen and frozen in name))
    input, hx = torch.randn(5, 2, 3), torch.randn(2, 2, 6, requires_grad=True)
    leaves = [hx, *(w for w in module.parameters() if w.requires_grad)]

    def gradients() -> list[Tensor]:
        for leaf in leaves:
            leaf.grad = None
        module(input, hx)[0].square().sum().backward()
        return [leaf.grad for leaf in leaves]

    counters.clear()
    eager = gradients()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
        compiled = gradients()
    assert counters["compiled_autograd"]["captures"] == 1
    for x, y in zip(eager, compiled, strict=True):
        torch.testing.assert_close(x, y)
