"""LeakyRNN, igates and return_layers under PyTorch's tools."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, jacrev, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fastrnn import RNN, LeakyRNN
from fastrnn.functional import leaky_rnn

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")

T, B, I, H = 5, 4, 3, 6  # noqa: E741


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Model(nn.Module):
    """A leaky RNN with everything, and a plain one that reads its layers as gates."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        alpha = nn.Parameter(torch.linspace(0.1, 1, H))
        self.leaky = LeakyRNN(I, H, 2, alpha=alpha, form=form, bidirectional=True)
        self.plain = RNN(I, 2 * H)

    def forward(self, x: Tensor, lengths: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        _, hn, layers = self.leaky(x, lengths=lengths, noise=noise, return_layers=True)
        output, _ = self.plain(x, igates=layers.sum(0))
        return output, hn


def arguments(seq_len: int = T, batch: int = B) -> tuple[Tensor, Tensor, Tensor]:
    lengths = torch.randint(0, seq_len + 1, (batch,))
    return torch.randn(seq_len, batch, I), lengths, torch.randn(2, seq_len, batch, 2 * H)


@pytest.mark.parametrize("form", ["rate", "current"])
def test_compile(form: Any) -> None:
    model = Model(form)
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, dynamic=True)
    for seq_len, batch in ((7, 5), (9, 3)):
        given = arguments(seq_len, batch)
        results = []
        for call in (model, compiled):
            call.zero_grad()
            output, hn = call(*given)
            (output.sin().sum() + hn.cos().sum()).backward()
            results.append([output, hn, *(p.grad for p in call.parameters())])
        torch.testing.assert_close(*results)


def test_compile_draws_noise() -> None:
    rnn = LeakyRNN(I, H, alpha=0.2, noise=0.5)
    compiled = torch.compile(rnn, fullgraph=True)
    x = torch.randn(T, B, I)
    results = [compiled(x)[0], compiled(x)[0]]
    assert not torch.equal(*results)
    assert (results[0] - rnn(x)[0]).abs().max() < 20


def test_compile_packed_gates() -> None:
    rnn = RNN(I, H)

    def call(packed: PackedSequence) -> Tensor:
        gates = packed._replace(data=packed.data @ rnn.weight_ih_l0.T)
        output: Tensor = rnn(packed, igates=gates)[0].data
        return output

    packed = pack_sequence([torch.randn(5, I), torch.randn(3, I)])
    torch.testing.assert_close(torch.compile(call, fullgraph=True)(packed), call(packed))


@pytest.mark.parametrize("form", ["rate", "current"])
def test_export(form: Any) -> None:
    model = Model(form).eval()
    given = arguments()
    program = torch.export.export(model, given)
    torch.testing.assert_close(program.module()(*given), model(*given))
    assert "rnn_extended" in str(program.graph)


def test_onnx_says_what_it_lacks() -> None:
    x = torch.randn(T, B, I)
    for model, extra in ((LeakyRNN(I, H, alpha=0.2), {}), (RNN(I, H), {"return_layers": True})):
        with pytest.raises(Exception, match="no leak, no gates from outside"):
            torch.onnx.export(model.eval(), (x,), kwargs=extra, dynamo=True, verbose=False)


@pytest.mark.parametrize("form", ["rate", "current"])
def test_autocast(form: Any) -> None:
    model = Model(form)
    given = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        output, hn = model(*given)
        (output.float().sum() + hn.float().sum()).backward()
    assert output.dtype == hn.dtype == torch.bfloat16
    expected, _ = model(*given)
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


def leak_call(form: str, layers: bool) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    rnn = LeakyRNN(2, 3, 2, alpha=0.5, form=form, dtype=torch.float64)
    options = {"dtype": torch.float64}
    weights = [p.detach().requires_grad_() for p in rnn.parameters()]
    given = [torch.randn(3, 2, 2, **options), torch.randn(2, 2, 3, **options)]
    given += [torch.randn(2, 3, 2, 3, **options), 0.2 + 0.6 * torch.rand(2, 3, **options)]

    def call(x: Tensor, hx: Tensor, gates: Tensor, alpha: Tensor, *weights: Tensor) -> Any:
        none = (None, None, None, None, True, 2, "tanh", False, False)
        return torch.ops.fastrnn.rnn_extended(
            x, hx, weights, *none, gates, alpha, 1.0, form, layers
        )[: 3 if layers else 2]

    return call, [*(x.requires_grad_() for x in given), *weights]


@pytest.mark.parametrize("layers", [False, True], ids=["", "layers"])
@pytest.mark.parametrize("form", ["rate", "current"])
def test_derivatives(form: str, layers: bool) -> None:
    call, given = leak_call(form, layers)
    assert gradcheck(call, given)
    assert gradgradcheck(call, given)


@pytest.mark.parametrize("form", ["rate", "current"])
def test_transforms(form: Any) -> None:
    """vmap over weights and inputs, forward mode, jacobians."""
    rnn = LeakyRNN(I, H, alpha=0.3, form=form, dtype=torch.float64)
    weights = dict(rnn.named_parameters())
    x = torch.randn(2, T, B, I, dtype=torch.float64)

    def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        output: Tensor = functional_call(rnn, weights, (x,))[0]
        return output

    stacked = {name: torch.stack([w, 2 * w]) for name, w in weights.items()}
    found = vmap(call)(stacked, x)
    for i in range(2):
        own = {name: w[i] for name, w in stacked.items()}
        torch.testing.assert_close(found[i], call(own, x[i]))
    direction = torch.randn_like(x[0])
    _, tangent = jvp(lambda x: call(weights, x), (x[0],), (direction,))
    jacobian = jacrev(lambda x: call(weights, x).sum(0))(x[0])
    torch.testing.assert_close(tangent.sum(0), (jacobian * direction).sum((-3, -2, -1)))


def test_fx_records_one_call() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = LeakyRNN(I, H, alpha=0.3)

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x)[0]

    model = Outer()
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["rnn"]
    x = torch.randn(T, B, I)
    torch.testing.assert_close(traced(x), model(x))


def test_opcheck() -> None:
    _, given = leak_call("rate", True)
    x, hx, gates, alpha, *weights = given
    none = (None, None, None, None, True, 2, "tanh", False, False)
    torch.library.opcheck(
        torch.ops.fastrnn.rnn_extended.default,
        (x, hx, weights, *none, gates, alpha, 1.0, "current", True),
    )


@pytest.mark.parametrize("name", ["alpha", "igates", "noise"])
def test_a_tensor_subclass_sees_the_call(name: str) -> None:
    seen: list[Any] = []

    class Watching(torch.Tensor):
        @classmethod
        def __torch_function__(cls, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(f)
            return super().__torch_function__(f, types, args, kwargs or {})

    sizes = {"alpha": (4,), "igates": (5, 2, 4), "noise": (1, 5, 2, 4)}
    given: Any = {"alpha": 0.5, name: torch.full(sizes[name], 0.5)}
    weights = list(RNN(3, 4).parameters())
    expected, _ = leaky_rnn(torch.ones(5, 2, 3), None, weights, **given)
    given[name] = given[name].as_subclass(Watching)
    seen.clear()
    found, _ = leaky_rnn(torch.ones(5, 2, 3), None, weights, **given)
    assert leaky_rnn in seen
    torch.testing.assert_close(found.as_subclass(torch.Tensor), expected)
