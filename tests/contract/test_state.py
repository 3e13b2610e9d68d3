"""The parameters of nn.RNN: names, initial values, state_dict, copies, and ways to change them."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from both import assert_agree, assert_same
from torch import Tensor, nn

import fastrnn
from fastrnn import RNN

CONFIGURATIONS = {
    "one layer": {},
    "no bias": {"bias": False},
    "two layers": {"num_layers": 2},
    "both directions": {"bidirectional": True},
    "everything": {"num_layers": 3, "bidirectional": True, "dtype": torch.float64},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_parameters_and_the_state_of_the_generator(name: str) -> None:
    def run(cls: type) -> object:
        module = cls(3, 4, **CONFIGURATIONS[name])
        buffers = [name for name, _ in module.named_buffers()]
        return dict(module.named_parameters()), buffers, torch.get_rng_state()

    parameters, _, _ = assert_agree(run)
    assert all(w.abs().max() <= 1 / math.sqrt(4) for w in parameters.values())


def test_reset_parameters() -> None:
    def run(cls: type) -> object:
        module = cls(3, 4, 2)
        before = module.weight_hh_l1.clone()
        module.reset_parameters()
        assert not torch.equal(before, module.weight_hh_l1)
        return dict(module.named_parameters())

    assert_agree(run)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_state_dict_goes_both_ways(name: str) -> None:
    theirs, ours = (cls(3, 4, **CONFIGURATIONS[name]) for cls in (nn.RNN, RNN))
    for source, target in ((theirs, ours), (ours, theirs)):
        target.reset_parameters()
        state = source.state_dict()
        assert state._metadata == target.state_dict()._metadata
        target.load_state_dict(state)
        x = torch.randn(5, 2, 3, dtype=ours.weight_ih_l0.dtype)
        assert_same(target(x), source(x))


LOADING_ERRORS = {
    "missing": lambda state: state.pop("bias_hh_l0"),
    "unexpected": lambda state: state.update(weight_hr_l0=torch.zeros(1)),
    "shape": lambda state: state.update(weight_ih_l0=torch.zeros(4, 5)),
}


@pytest.mark.parametrize("name", LOADING_ERRORS)
def test_state_dict_that_does_not_fit(name: str) -> None:
    messages = []
    for cls in (nn.RNN, RNN):
        module = cls(3, 4)
        state = module.state_dict()
        LOADING_ERRORS[name](state)
        with pytest.raises(RuntimeError, match="loading state_dict for RNN") as raised:
            module.load_state_dict(state)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


def test_biases_are_two_parameters_with_gradients_of_their_own() -> None:
    module = RNN(3, 4)
    module(torch.randn(5, 2, 3))[0].sum().backward()
    b_ih, b_hh = module.bias_ih_l0, module.bias_hh_l0
    assert torch.equal(b_ih.grad, b_hh.grad)
    b_ih.grad.zero_()
    assert b_hh.grad.abs().min() > 0
    assert b_ih.data_ptr() != b_hh.data_ptr()


# Copies and files.


def through_file(module: nn.Module, *, weights_only: bool) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    with torch.serialization.safe_globals([type(module)]):
        return torch.load(file, weights_only=weights_only)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "save": lambda m: through_file(m, weights_only=False),
    "save, weights only": lambda m: through_file(m, weights_only=True),
    "deepcopy of a copy": lambda m: copy.deepcopy(copy.copy(m)),
}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("name", COPIES)
def test_copies(name: str, used: bool) -> None:
    def run(cls: type) -> object:
        module = cls(3, 4, 2, dropout=0.5, bidirectional=True)
        if used:
            module(torch.randn(5, 2, 3))[0].sum().backward()
        module.eval()
        twin = COPIES[name](module)
        assert type(twin) is cls
        assert (twin._flat_weights is module._flat_weights) == (name == "copy")
        with torch.no_grad():
            twin.weight_ih_l0.add_(1)
        x = torch.randn(5, 2, 3)
        return (
            module(x),
            twin(x),
            repr(twin),
            [m.training for m in (module, twin)],
            twin.weight_hh_l1.grad,
        )

    assert_agree(run)


def test_state_for_pickle_has_no_references() -> None:
    assert_agree(lambda rnn: list(rnn(3, 4).__getstate__()))


def test_states_of_old_versions() -> None:
    def run(cls: type) -> object:
        module = cls(3, 4, 2, bidirectional=True)
        state = module.__getstate__()
        del state["proj_size"]
        state["all_weights"] = [
            [getattr(module, name) for name in names] for names in module._all_weights
        ]
        del state["_all_weights"], state["_flat_weights_names"], state["_flat_weights"]
        old = cls.__new__(cls)
        old.__setstate__(state)
        return old(torch.randn(5, 2, 3)), old.proj_size, old._all_weights, old._flat_weights_names

    assert_agree(run)


# Changes of a module's parameters.


@contextmanager
def future(name: str) -> Iterator[None]:
    getattr(torch.__future__, f"set_{name}")(True)
    try:
        yield
    finally:
        getattr(torch.__future__, f"set_{name}")(False)


def new_weights(module: nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {name: torch.rand_like(w, device="cpu") - 0.5 for name, w in module.named_parameters()}


def assign_parameters(module: nn.Module) -> None:
    for name, w in new_weights(module).items():
        setattr(module, name, nn.Parameter(w))


def write_into_parameters_dict(module: nn.Module) -> None:
    for name, w in new_weights(module).items():
        module._parameters[name] = nn.Parameter(w)


def set_data(module: nn.Module) -> None:
    for name, w in new_weights(module).items():
        getattr(module, name).data = w


def set_plain_tensors(module: nn.Module) -> None:
    for name, w in new_weights(module).items():
        delattr(module, name)
        setattr(module, name, w.requires_grad_())


def meta_then_assign(module: nn.Module) -> None:
    weights = new_weights(module)
    module.to("meta")
    module.load_state_dict(weights, assign=True)


def to_empty(module: nn.Module) -> None:
    weights = new_weights(module)
    module.to("meta").to_empty(device="cpu")
    module.load_state_dict(weights)


def convert(option: str | None) -> Any:
    def change(module: nn.Module) -> None:
        weights = new_weights(module)
        if option is None:
            module.double().float()
        else:
            with future(option):
                module.double().float()
        module.load_state_dict(weights)

    return change


CHANGES = {
    "assign": assign_parameters,
    "_parameters": write_into_parameters_dict,
    ".data": set_data,
    "plain tensors": set_plain_tensors,
    "load": lambda m: m.load_state_dict(new_weights(m)),
    "load with assign": lambda m: m.load_state_dict(new_weights(m), assign=True),
    "meta, then assign": meta_then_assign,
    "meta, then to_empty": to_empty,
    "double and float": convert(None),
    "overwrite on conversion": convert("overwrite_module_params_on_conversion"),
    "swap on conversion": convert("swap_module_params_on_conversion"),
    "flatten_parameters": lambda m: (assign_parameters(m), m.flatten_parameters()),
}


@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
@pytest.mark.parametrize("name", CHANGES)
def test_forward_takes_the_parameters_as_they_are(name: str, used: bool) -> None:
    def run(cls: type) -> object:
        module = cls(3, 4, 2, bidirectional=True)
        x = torch.randn(5, 2, 3)
        if used:
            module(x)[0].sum().backward()
        with torch.no_grad():  # a graph would hold on to the parameters
            before, _ = module(x)
        CHANGES[name](module)
        output, hn = module(x)
        assert not torch.allclose(output, before)
        module.zero_grad()
        output.sum().backward()
        names = module._flat_weights_names
        grads = [getattr(module, name).grad for name in names]
        # copying refreshes _flat_weights where nn.RNN.forward does
        module.__getstate__()
        same = [
            w is getattr(module, name) for w, name in zip(module._flat_weights, names, strict=True)
        ]
        return output, hn, grads, same

    _, _, grads, same = assert_agree(run)
    assert all(g is not None and g.abs().max() > 0 for g in grads)
    assert all(same)


def test_conversion_keeps_the_identity_of_parameters() -> None:
    for cls in (nn.RNN, RNN):
        module = cls(3, 4)
        before = list(module.parameters())
        module.double()
        assert all(a is b for a, b in zip(before, module.parameters(), strict=True))
        assert module.weight_ih_l0.dtype == torch.float64


def test_deleted_weight_runs_on_the_last_one() -> None:
    def run(cls: type) -> object:
        module = cls(3, 4)
        x = torch.randn(5, 2, 3)
        module(x)
        del module.weight_ih_l0
        return module(x)

    assert_agree(run)


def test_weight_set_to_none_raises() -> None:
    for cls in (nn.RNN, RNN):
        module = cls(3, 4)
        module.weight_hh_l0 = None
        with pytest.raises(TypeError):
            module(torch.randn(5, 2, 3))


def test_optimizer_steps_alike() -> None:
    def run(cls: type) -> object:
        module = cls(3, 4, 2)
        optimizer = torch.optim.Adam(module.parameters(), 0.01)
        x, target = torch.randn(6, 2, 3), torch.randn(6, 2, 4)
        losses = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(module(x)[0], target)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses, dict(module.named_parameters())

    losses, _ = assert_agree(run)
    assert losses[-1] < losses[0]


def test_meta_module_has_no_memory_until_loaded() -> None:
    with torch.device("meta"):
        module = RNN(3, 4)
    assert all(w.is_meta for w in module._flat_weights)
    source = nn.RNN(3, 4)
    module.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(5, 2, 3)
    assert_same(module(x), source(x))


def test_whole_module_needs_safe_globals() -> None:
    file = io.BytesIO()
    torch.save(fastrnn.RNN(3, 4), file)
    file.seek(0)
    with pytest.raises(pickle.UnpicklingError, match=r"fastrnn\.rnn\.RNN"):
        torch.load(file, weights_only=True)
