"""fastrnn.replace and fastrnn.restore: a model's modules change their class and nothing else."""

from __future__ import annotations

import copy

import pytest
import torch
from both import H, I, assert_same
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import fastrnn


class Tagger(nn.Module):
    """One RNN under two names, one in a list, a cell, and a module of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(I, H, 2, bidirectional=True, dropout=0.5)
        self.same = self.rnn
        self.more = nn.ModuleList([nn.RNN(2 * H, H, batch_first=True)])
        self.cell = nn.RNNCell(H, H, nonlinearity="relu")
        self.gru = nn.GRU(H, H)
        self.last = nn.Linear(H, 2)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.rnn(x)
        y, _ = self.more[0](y)
        y, _ = self.gru(y)
        return self.last(self.cell(y[-1]))


KINDS = {
    "": Tagger,
    "rnn": fastrnn.RNN,
    "same": fastrnn.RNN,
    "more": nn.ModuleList,
    "more.0": fastrnn.RNN,
    "cell": fastrnn.RNNCell,
    "gru": nn.GRU,
    "last": nn.Linear,
}


def kinds(model: nn.Module) -> dict[str, type]:
    return {name: type(m) for name, m in model.named_modules(remove_duplicate=False)}


def test_replace_and_restore_change_the_classes_only() -> None:
    model = Tagger()
    original = kinds(model)
    modules, parameters = list(model.modules()), dict(model.named_parameters())
    x = torch.randn(5, 2, I)
    expected = model.eval()(x)
    for change, classes in ((fastrnn.replace, KINDS), (fastrnn.restore, original)):
        assert change(model) is model
        assert kinds(model) == classes
        assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
        assert all(w is parameters[name] for name, w in model.named_parameters())
        assert not any(m.training for m in model.modules())
        assert_same(model(x), expected)


def test_replace_twice_and_restore_twice() -> None:
    model = fastrnn.replace(fastrnn.replace(Tagger()))
    assert kinds(model) == KINDS
    fastrnn.restore(fastrnn.restore(model))
    assert kinds(model)["rnn"] is nn.RNN


@pytest.mark.parametrize("name", ["RNN", "RNNCell"])
def test_the_model_itself_may_be_one(name: str) -> None:
    torch_class, our_class = getattr(nn, name), getattr(fastrnn, name)
    module = torch_class(I, H)
    x = torch.randn(5, 2, I) if name == "RNN" else torch.randn(5, I)
    expected = module(x)
    assert fastrnn.replace(module) is module
    assert type(module) is our_class
    assert_same(module(x), expected)
    assert type(fastrnn.restore(module)) is torch_class


def test_training_goes_on_with_the_same_optimizer() -> None:
    x, target = torch.randn(5, 2, I), torch.tensor([0, 1])

    def train(replaced: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        losses = []
        for step in range(6):
            if replaced and step in (2, 4):
                (fastrnn.replace if step == 2 else fastrnn.restore)(model)
            optimizer.zero_grad()
            losses.append(nn.functional.cross_entropy(model(x), target))
            losses[-1].backward()
            optimizer.step()
        return losses

    assert_same(train(replaced=True), train(replaced=False))


def test_hooks_and_requires_grad_stay() -> None:
    model = nn.Sequential(nn.RNN(I, H))
    calls = []
    model[0].register_forward_hook(lambda m, args, result: calls.append(type(m)))
    model[0].weight_hh_l0.requires_grad_(False)
    fastrnn.replace(model)
    output, _ = model(torch.randn(5, 2, I))
    output.sum().backward()
    assert calls == [fastrnn.RNN]
    assert model[0].weight_hh_l0.grad is None
    assert model[0].weight_ih_l0.grad is not None


def orthogonal(module: nn.Module) -> None:
    parametrizations.orthogonal(module, "weight_hh_l0")


def two_weights(module: nn.Module) -> None:
    parametrizations.weight_norm(module, "weight_ih_l0")
    parametrizations.orthogonal(module, "weight_hh_l0")


def pruned(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)


COMPUTED_WEIGHTS = {"orthogonal": orthogonal, "two weights": two_weights, "pruned": pruned}


@pytest.mark.parametrize("name", COMPUTED_WEIGHTS)
def test_computed_weights(name: str) -> None:
    model = nn.Sequential(nn.RNN(I, H))
    COMPUTED_WEIGHTS[name](model[0])
    x = torch.randn(5, 2, I)
    expected, state = model(x), list(model.state_dict())
    fastrnn.replace(model)
    assert isinstance(model[0], fastrnn.RNN)
    assert list(model.state_dict()) == state
    assert_same(model(x), expected)
    fastrnn.restore(model)
    assert isinstance(model[0], nn.RNN)
    assert_same(model(x), expected)


def test_parametrization_is_removed_after_replace() -> None:
    model = nn.Sequential(nn.RNN(I, H))
    orthogonal(model[0])
    fastrnn.replace(model)
    assert parametrize.is_parametrized(model[0], "weight_hh_l0")
    parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert type(model[0]) is fastrnn.RNN
    assert isinstance(model[0].weight_hh_l0, nn.Parameter)
    eye = model[0].weight_hh_l0 @ model[0].weight_hh_l0.T
    torch.testing.assert_close(eye, torch.eye(H), atol=1e-5, rtol=0)


class OwnForward(nn.RNN):
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return super().forward(2 * input, hx)


class OwnForwardOfOurs(fastrnn.RNN):
    pass


def test_subclasses_are_left_alone_with_a_warning() -> None:
    model = nn.ModuleDict({"theirs": OwnForward(I, H), "ours": OwnForwardOfOurs(I, H)})
    with pytest.warns(UserWarning, match=r"subclasses of torch\.nn's .*: theirs \(OwnForward\)\."):
        fastrnn.replace(model)
    ours = r"subclasses of fastrnn's .*: ours \(OwnForwardOfOurs\)\."
    with pytest.warns(UserWarning, match=ours):
        fastrnn.restore(model)
    with pytest.warns(UserWarning, match=ours), fastrnn.as_torch(model):
        pass
    assert [type(m) for m in model.values()] == [OwnForward, OwnForwardOfOurs]


def test_nothing_to_replace_warns() -> None:
    with pytest.warns(UserWarning, match=r"found no torch\.nn\.RNN or RNNCell in Linear"):
        fastrnn.replace(nn.Linear(2, 2))
    fastrnn.replace(fastrnn.RNN(I, H))  # has been done


def test_as_torch() -> None:
    model = fastrnn.replace(Tagger())
    modules, x = list(model.modules()), torch.randn(5, 2, I)
    expected = model.eval()(x)
    with fastrnn.as_torch(model) as same:
        assert same is model
        assert kinds(model) == kinds(Tagger())
        assert_same(model(x), expected)
    assert kinds(model) == KINDS
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    assert_same(model(x), expected)


def test_as_torch_leaves_torchs_own_and_ends_after_an_error() -> None:
    model = nn.ModuleList([nn.RNN(I, H), fastrnn.RNN(I, H), fastrnn.RNNCell(I, H)])
    orthogonal(model[1])

    def inside() -> None:
        with fastrnn.as_torch(model):
            assert isinstance(model[1], nn.RNN)
            assert type(model[2]) is nn.RNNCell
            raise KeyError("a tool's error")

    with pytest.raises(KeyError, match="a tool's error"):
        inside()
    assert type(model[0]) is nn.RNN
    assert isinstance(model[1], fastrnn.RNN)
    assert type(model[2]) is fastrnn.RNNCell


def test_as_torch_of_one_module_and_of_none() -> None:
    rnn = fastrnn.RNN(I, H)
    with fastrnn.as_torch(rnn), fastrnn.as_torch(rnn):
        assert type(rnn) is nn.RNN
    assert type(rnn) is fastrnn.RNN
    for f in (fastrnn.as_torch, fastrnn.replace, fastrnn.restore):
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got the class RNN"):
            f(fastrnn.RNN)
        with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got list"):
            f([rnn])


def test_state_dict_pickle_and_clone_of_a_replaced_model() -> None:
    model = fastrnn.replace(Tagger()).eval()
    twin = copy.deepcopy(model)
    assert kinds(twin) == KINDS
    fresh = Tagger().eval()
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(5, 2, I)
    assert_same(fresh(x), model(x))
    assert_same(twin(x), model(x))


@pytest.mark.filterwarnings("ignore:.*jit:DeprecationWarning")
def test_restored_model_can_be_scripted() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = fastrnn.RNN(I, H)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    model = Model()
    with pytest.raises(RuntimeError, match=r"RNN does not support torch\.jit\.script"):
        torch.jit.script(model)
    x = torch.randn(5, 2, I)
    expected = model(x)
    assert_same(torch.jit.script(fastrnn.restore(model))(x), expected)


@pytest.mark.parametrize(
    ("given", "name"), [(None, "NoneType"), (3, "int"), (nn.RNN, "the class RNN")]
)
def test_what_is_no_module_is_refused(given: object, name: str) -> None:
    with pytest.raises(TypeError, match=f"expected a torch.nn.Module, got {name}"):
        fastrnn.replace(given)


def test_deepcopy_of_a_parametrised_module_called_before() -> None:
    rnn = torch.nn.RNN(4, 5)
    torch.nn.utils.parametrizations.weight_norm(rnn, "weight_hh_l0")
    x = torch.randn(3, 2, 4)
    expected = rnn(x)[0]
    fastrnn.replace(rnn)
    torch.testing.assert_close(copy.deepcopy(rnn)(x)[0], expected)
    torch.testing.assert_close(rnn(x)[0], expected)


def test_expanded_weights_left_by_a_call() -> None:
    rnn, x = nn.RNN(I, H, batch_first=True), torch.randn(2, 5, I)
    expected = rnn(x)[0]
    call_for_per_sample_grads(rnn, batch_size=2)(x)  # leaves them in rnn._flat_weights
    fastrnn.replace(rnn)
    torch.testing.assert_close(rnn(x)[0], expected)
    with fastrnn.as_torch(rnn):
        call_for_per_sample_grads(rnn, batch_size=2)(x)
    assert type(rnn) is fastrnn.RNN
    torch.testing.assert_close(rnn(x)[0], expected)
