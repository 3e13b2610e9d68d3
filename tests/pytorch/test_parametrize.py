"""Weights that are computed or compressed: pruning, parametrisation, quantisation."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, Raised, T, assert_agree, assert_same, outcome
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import fastrnn
from fastrnn import RNN, RNNCell

# Torch's, of its own quantisation, which moves to torchao.
QUANTIZE = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


def trained_alike(change: Callable[[nn.Module], object], **options: Any) -> None:
    """After `change`, two steps of training make the same of our module as of nn.RNN."""

    def run(cls: type) -> object:
        module = cls(I, H, 2, **options)
        torch.manual_seed(1)
        change(module)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        results = []
        for _ in range(2):
            optimizer.zero_grad()
            output, hn = module(x())
            (output.square().sum() + hn.sum()).backward()
            results.append((output, hn, [copy.deepcopy(w.grad) for w in module.parameters()]))
            optimizer.step()
        return results, dict(module.state_dict())

    assert_agree(run, tolerance=1e-5)


# Pruning.

PRUNED: dict[str, Callable[[nn.Module], object]] = {
    "random": lambda m: prune.random_unstructured(m, "weight_hh_l0", 0.5),
    "rows": lambda m: prune.ln_structured(m, "weight_hh_l0", 0.5, 2, 0),
    "columns": lambda m: prune.random_structured(m, "weight_hh_l1", 0.5, 1),
    "mask": lambda m: prune.custom_from_mask(m, "weight_hh_l0", torch.eye(H)),
    "identity": lambda m: prune.identity(m, "weight_hh_l0"),
    "bias": lambda m: prune.l1_unstructured(m, "bias_hh_l0", 2),
    "twice": lambda m: [
        prune.l1_unstructured(m, "weight_hh_l0", 0.5),
        prune.random_unstructured(m, "weight_hh_l0", 0.5),
    ],
    "global": lambda m: prune.global_unstructured(
        [(m, "weight_hh_l0"), (m, "weight_ih_l1")], prune.L1Unstructured, amount=0.3
    ),
    "every weight": lambda m: [
        prune.l1_unstructured(m, name, 0.5) for name, _ in list(m.named_parameters())
    ],
}


@pytest.mark.parametrize("name", PRUNED)
def test_pruned(name: str) -> None:
    trained_alike(PRUNED[name])


def test_pruned_weights_stay_zero_and_are_saved_and_copied() -> None:
    module = RNN(I, H)
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    zeros = module.weight_hh_l0_mask == 0
    optimizer = torch.optim.Adam(module.parameters(), 0.1)
    for _ in range(3):
        module(x())[0].square().sum().backward()
        optimizer.step()
    input = x()
    with torch.no_grad():  # its weight_hh_l0 is computed: without a graph it can be copied
        expected = module(input)
    assert module.weight_hh_l0[zeros].eq(0).all()
    assert zeros.sum() == H * H // 2
    twin = RNN(I, H)
    prune.identity(twin, "weight_hh_l0")
    twin.load_state_dict(module.state_dict())
    with torch.no_grad():
        assert_same(twin(input), expected)
        assert_same(copy.deepcopy(module)(input), expected)
    prune.remove(module, "weight_hh_l0")
    assert sorted(module.state_dict()) == sorted(RNN(I, H).state_dict())
    with torch.no_grad():
        assert_same(module(input), expected)


# Parametrisation.


class Symmetric(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.triu() + w.triu(1).T


class LowRank(nn.Module):
    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return u @ v

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        u, s, v = torch.linalg.svd(w)
        return u[:, :2] * s[:2], v[:2]


class Int8(nn.Module):
    """A weight as int8 with a scale for each row."""

    def forward(self, whole: Tensor, scale: Tensor) -> Tensor:
        return whole * scale

    def right_inverse(self, w: Tensor) -> tuple[Tensor, Tensor]:
        scale = w.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        return (w / scale).round().to(torch.int8), scale


PARAMETRIZED: dict[str, Callable[[nn.Module], object]] = {
    "orthogonal, householder": lambda m: parametrizations.orthogonal(
        m, "weight_hh_l0", orthogonal_map="householder"
    ),
    "orthogonal, cayley": lambda m: parametrizations.orthogonal(
        m, "weight_hh_l0", orthogonal_map="cayley"
    ),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    # In training it iterates whenever a weight is read, which nn.RNN does more often.
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0").eval(),
    "own": lambda m: parametrize.register_parametrization(m, "weight_hh_l0", Symmetric()),
    "two tensors": lambda m: parametrize.register_parametrization(m, "weight_hh_l1", LowRank()),
    "one upon the other": lambda m: [
        parametrize.register_parametrization(m, "weight_hh_l0", part)
        for part in (Symmetric(), nn.Tanh())
    ],
    "every weight": lambda m: [
        parametrize.register_parametrization(m, name, nn.Tanh())
        for name, _ in list(m.named_parameters())
    ],
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized(name: str) -> None:
    trained_alike(PARAMETRIZED[name])


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_parametrized_copies_saves_and_compiles(name: str) -> None:
    torch.compiler.reset()
    module, input = RNN(I, H, 2), x()
    PARAMETRIZED[name](module)
    expected = tuple(y.detach() for y in module(input))
    copied = copy.deepcopy(module)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with parametrize.cached():
        cached = module(input)
    for other in (copied(input), compiled(input), cached):
        assert_same(tuple(y.detach() for y in other), expected)
    for weight in list(module.parametrizations):
        parametrize.remove_parametrizations(module, weight)
    assert type(module) is RNN
    assert_same(tuple(y.detach() for y in module(input)), expected)


def test_weight_only_int8() -> None:
    """The weights are kept in a quarter of the memory; results are those of the rounded weights."""
    module = RNN(64, 64, 2).requires_grad_(False)
    input = x(T, B, 64)
    before = module(input)
    rounded = RNN(64, 64, 2).requires_grad_(False)
    rounded.load_state_dict(module.state_dict())
    for name, w in list(module.named_parameters()):
        if w.dim() == 2:
            parametrize.register_parametrization(module, name, Int8(), unsafe=True)
            w = getattr(rounded, name)
            w.copy_(Int8()(*Int8().right_inverse(w)))
    output, hn = module(input)
    assert_same((output, hn), rounded(input))
    assert 0 < (output - before[0]).abs().max() < 0.02
    state = module.state_dict()
    stored = {name: w.dtype for name, w in state.items() if name.endswith("original0")}
    assert set(stored.values()) == {torch.int8}
    assert len(stored) == 4
    file = io.BytesIO()
    torch.save(state, file)
    assert file.tell() < 0.4 * sum(4 * w.numel() for w in rounded.parameters()) + 8000
    file.seek(0)
    module.load_state_dict(torch.load(file, weights_only=True))
    assert_same(module(input), (output, hn))


class Doubled(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return torch.cat([w, w])


class Halved(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w.half()


@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_parametrizations_that_do_not_fit_raise(weight: str) -> None:
    module = RNN(I, H)
    parametrize.register_parametrization(module, weight, Doubled(), unsafe=True)
    with pytest.raises(RuntimeError, match=r"(?i)rnn: expected \w+ of shape"):
        module(x())
    module = RNN(I, H)
    parametrize.register_parametrization(module, weight, Halved(), unsafe=True)
    with pytest.raises((RuntimeError, ValueError), match="dtype"):
        module(x())


# Quantisation.


class Model(nn.Module):
    def __init__(self, cls: type) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(I, I), cls(I, H, 2), nn.Linear(H, 2)

    def forward(self, input: Tensor) -> Tensor:
        return self.last(self.rnn(self.first(input))[0])


@QUANTIZE
@pytest.mark.parametrize("asked", [None, {RNN, RNNCell}], ids=["default", "asked"])
def test_dynamic_quantization_leaves_ours_alone(asked: set[type] | None) -> None:
    """nn.RNNCell it converts: a model to be quantised takes torch's cells, by fastrnn.restore."""
    model = nn.ModuleDict({"rnn": RNN(I, H), "cell": RNNCell(I, H), "last": nn.Linear(H, 2)})
    quantized = torch.ao.quantization.quantize_dynamic(model, asked)
    assert type(quantized["rnn"]) is RNN
    assert type(quantized["cell"]) is RNNCell
    input = x()
    assert_same(quantized["rnn"](input), model["rnn"](input))
    assert_same(quantized["cell"](input[0]), model["cell"](input[0]))
    restored = torch.ao.quantization.quantize_dynamic(fastrnn.restore(model))
    assert "quantized" in type(restored["cell"]).__module__


@QUANTIZE
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_fx_quantization_converts_the_rest(kind: str) -> None:
    from torch.ao.quantization import (
        QConfigMapping,
        default_dynamic_qconfig,
        get_default_qconfig_mapping,
        quantize_fx,
    )

    torch.use_deterministic_algorithms(False)  # a quantised tensor cannot be filled with NaN

    def run(cls: type) -> object:
        model, input = Model(cls).eval(), x()
        mapping = (
            get_default_qconfig_mapping("x86")
            if kind == "static"
            else QConfigMapping().set_global(default_dynamic_qconfig)
        )
        prepared = quantize_fx.prepare_fx(model, mapping, (input,))
        prepared(input)
        quantized = quantize_fx.convert_fx(prepared)
        assert type(quantized.rnn) is cls
        assert "quantized" in type(quantized.last).__module__
        return quantized(input)

    assert_agree(run)


@QUANTIZE
def test_training_for_quantization() -> None:
    def run(cls: type) -> object:
        model, input = Model(cls), x()
        model.qconfig = torch.ao.quantization.get_default_qat_qconfig("x86")
        prepared = torch.ao.quantization.prepare_qat(model)
        prepared(input).square().sum().backward()
        assert type(prepared.rnn) is cls
        return {name: w.grad for name, w in prepared.named_parameters()}

    assert_agree(run, tolerance=1e-5)


def quantized_weight(w: Tensor) -> Tensor:
    return torch.quantize_per_tensor(w, 0.01, 0, torch.qint8)


@QUANTIZE
@pytest.mark.parametrize(
    "convert", [quantized_weight, lambda w: (100 * w).to(torch.int8)], ids=["qint8", "int8"]
)
@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0"])
def test_quantized_weights_raise(weight: str, convert: Callable[[Tensor], Tensor]) -> None:
    def run(cls: type) -> object:
        module = cls(I, H)
        w = getattr(module, weight).detach()
        delattr(module, weight)
        setattr(module, weight, convert(w))
        return module(x())

    theirs, ours = outcome(run, nn.RNN), outcome(run, RNN)
    assert isinstance(theirs, Raised)
    assert isinstance(ours, Raised)
    assert ours.type is theirs.type
    assert "dtype" in ours.text
