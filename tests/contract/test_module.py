"""nn.RNN among other modules: dropout, computed weights, hooks, threads and subclasses."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from both import B, H, I, Raised, T, assert_agree, assert_raise_alike, assert_same, outcome
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from fastrnn import RNN


def x(*sizes: int, **like: Any) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


def packed() -> PackedSequence:
    return pack_sequence([x(n, I) for n in (2, 5, 3)], enforce_sorted=False)


# Dropout: the same numbers from the same seed, and the same state of the generator after it.

DROPOUT = {
    "two layers": lambda rnn: rnn(I, H, 2, dropout=0.5)(x()),
    "four layers": lambda rnn: rnn(I, H, 4, dropout=0.3)(x()),
    "both directions": lambda rnn: rnn(I, H, 3, bidirectional=True, dropout=0.5)(x()),
    "batch_first": lambda rnn: rnn(I, H, 3, batch_first=True, dropout=0.5)(x()),
    "no batch": lambda rnn: rnn(I, H, 2, dropout=0.5)(x(T, I)),
    "no rows": lambda rnn: rnn(I, H, 2, dropout=0.5)(x(T, 0, I)),
    "packed": lambda rnn: rnn(I, H, 3, bidirectional=True, dropout=0.5)(packed()),
    "large": lambda rnn: rnn(I, 33, 2, dropout=0.1)(x(40, 17, I)),
    "float64": lambda rnn: rnn(I, H, 2, dropout=0.5, dtype=torch.float64)(x(dtype=torch.float64)),
    "bfloat16": lambda rnn: rnn(I, H, 2, dropout=0.2, dtype=torch.bfloat16)(x().bfloat16()),
    "all": lambda rnn: rnn(I, H, 3, dropout=1.0)(x()),
    "none": lambda rnn: rnn(I, H, 3, dropout=0.0)(x()),
    "eval": lambda rnn: rnn(I, H, 3, dropout=0.5).eval()(x()),
    "one layer": lambda rnn: rnn(I, H, 1, dropout=0.5)(x()),
}


@pytest.mark.filterwarnings("ignore:dropout option adds dropout")
@pytest.mark.parametrize("name", DROPOUT)
def test_dropout(name: str) -> None:
    def run(cls: type) -> object:
        torch.manual_seed(1)
        output, hn = DROPOUT[name](cls)
        state = torch.get_rng_state()
        data = output.data if isinstance(output, PackedSequence) else output
        return output, hn, state, data.isfinite().all()

    *_, finite = assert_agree(run)
    assert finite


def test_dropout_of_complex_numbers() -> None:
    def run(rnn: type) -> object:
        return rnn(I, H, 2, dropout=0.5, dtype=torch.complex64)(x(dtype=torch.complex64))

    raises = isinstance(outcome(run, nn.RNN), Raised)  # until torch 2.15
    (assert_raise_alike if raises else assert_agree)(run)


def test_gradients_of_dropout() -> None:
    def run(cls: type) -> object:
        module, input = cls(I, H, 3, bidirectional=True, dropout=0.5), x(requires_grad=True)
        module(input)[0].square().sum().backward()
        return input.grad, [w.grad for w in module.parameters()]

    assert_agree(run)


# Weights that are computed: from other parameters, from a mask, from elsewhere. More of them:
# tests/pytorch/test_parametrize.py.


def drop_connect(module: nn.Module) -> None:
    """Merity et al. 2017: the recurrent weight is a masked copy of a parameter."""
    raw = module.weight_hh_l0
    del module.weight_hh_l0
    module.register_parameter("weight_hh_l0_raw", raw)

    def mask(module: nn.Module, args: object) -> None:
        module.weight_hh_l0 = nn.functional.dropout(module.weight_hh_l0_raw, 0.5, module.training)

    module.register_forward_pre_hook(mask)


def tie(module: nn.Module) -> None:
    module.weight_hh_l1 = module.weight_hh_l0
    module.bias_hh_l1 = module.bias_ih_l1


def freeze(module: nn.Module) -> None:
    module.weight_hh_l0.requires_grad_(False)
    module.bias_ih_l1.requires_grad_(False)


def prune_and_remove(module: nn.Module) -> None:
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    prune.remove(module, "weight_hh_l0")
    assert isinstance(module.weight_hh_l0, nn.Parameter)


COMPUTED = {
    "weight_norm, old": lambda m: nn.utils.weight_norm(m, "weight_hh_l1"),
    "spectral_norm, old": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    "prune and remove": prune_and_remove,
    "weights dropped": drop_connect,
    "tied": tie,
    "frozen": freeze,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights(name: str) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, 2)
        COMPUTED[name](module)
        optimizer = torch.optim.SGD(module.parameters(), 0.1)
        results = []
        for _ in range(3):
            optimizer.zero_grad()
            output, hn = module(x())
            output.square().sum().backward()
            grads = {name: w.grad for name, w in module.named_parameters()}
            results.append((output, hn, copy.deepcopy(grads)))
            optimizer.step()
        return results, list(module.state_dict())

    # Each step of training hands the roundings of the one before on, amplified.
    results, _ = assert_agree(run, tolerance=1e-5)
    grads = results[0][2]
    assert [name for name, g in grads.items() if g is None] == (
        ["weight_hh_l0", "bias_ih_l1"] if name == "frozen" else []
    )


def test_spectral_norm_iterates_once_a_call() -> None:
    module = RNN(I, H)
    parametrizations.spectral_norm(module, "weight_hh_l0")
    reference = parametrizations.spectral_norm(nn.Linear(H, H, bias=False))
    reference.load_state_dict(
        {
            name.replace("weight_hh_l0", "weight"): value
            for name, value in module.state_dict().items()
            if "parametrizations" in name
        }
    )
    for _ in range(3):
        module(x())
        reference(x(1, H))
    theirs, ours = reference.parametrizations.weight[0], module.parametrizations.weight_hh_l0[0]
    torch.testing.assert_close(ours._u, theirs._u)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    assert type(module) is RNN


def test_functional_call_leaves_the_module_as_it_was() -> None:
    def run(cls: type) -> object:
        module, input = cls(I, H, 2), x()
        before = module(input)
        weights = {name: w.detach() * 2 for name, w in module.named_parameters()}
        inside = torch.func.functional_call(module, weights, (input,))
        partly = torch.func.functional_call(
            module, {"weight_hh_l1": weights["weight_hh_l1"]}, input
        )
        after = module(input)
        assert torch.equal(before[0], after[0])
        return inside, partly, after, list(module.state_dict())

    assert_agree(run)


# The protocol of nn.Module.


def test_hooks() -> None:
    def run(cls: type) -> object:
        module, seen = cls(I, H), []

        def before(m: nn.Module, args: Any, kwargs: Any) -> Any:
            seen.append(("before", args, kwargs))
            return args, kwargs | {"hx": torch.ones(1, B, H)}

        def after(m: nn.Module, args: Any, kwargs: Any, result: Any) -> Any:
            seen.append(("after", args, kwargs, result))
            return result[0] * 2, result[1]

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after, with_kwargs=True)
        module.register_full_backward_pre_hook(lambda m, g: seen.append(("grads", g)))
        module.register_full_backward_hook(lambda m, i, o: seen.append(("backward", i, o)))
        output, _ = module(x(requires_grad=True), hx=None)
        output.sum().backward()
        return seen

    seen = assert_agree(run)
    assert [name for name, *_ in seen] == ["before", "after", "grads", "backward"]
    assert len(seen[-1][1]) == 1  # the input's


def test_full_backward_hook_of_packed_input_is_left_out() -> None:
    def run(cls: type) -> object:
        module, seen = cls(I, H), []
        module.register_full_backward_hook(lambda m, i, o: seen.append((i, o)))
        output, _ = module(packed())
        output.data.sum().backward()
        return seen

    assert_agree(run)


def test_keyword_arguments() -> None:
    assert_agree(lambda rnn: rnn(I, H)(hx=torch.ones(1, B, H), input=x()))


def test_replicas_have_weight_lists_of_their_own() -> None:
    for cls in (nn.RNN, RNN):
        module, input = cls(I, H), x()
        replica = module._replicate_for_data_parallel()
        assert replica._flat_weights is not module._flat_weights
        assert replica._flat_weights_names is not module._flat_weights_names
        for name, w in module.named_parameters():
            setattr(replica, name, 2 * w)
        assert not torch.allclose(replica(input)[0], module(input)[0])
        replica(input)[0].sum().backward()
        assert all(w.grad is not None for w in module.parameters())


def test_data_parallel_on_the_cpu() -> None:
    assert_agree(lambda rnn: nn.DataParallel(rnn(I, H, batch_first=True))(x()))


def test_distributed_data_parallel(tmp_path: Any) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:

        def run(cls: type) -> object:
            model = nn.parallel.DistributedDataParallel(cls(I, H, 2))
            output, hn = model(x())
            (output.sum() + hn.sum()).backward()
            return output, hn, [w.grad for w in model.parameters()]

        assert_agree(run)
    finally:
        torch.distributed.destroy_process_group()


def test_shared_memory() -> None:
    module, input = RNN(I, H), x()
    expected = module(input)
    assert module.share_memory() is module
    assert all(w.is_shared() for w in module._flat_weights)
    assert_same(module(input), expected)


def test_threads() -> None:
    module = RNN(I, H, 2, bidirectional=True)
    inputs = [x() for _ in range(4)]

    def gradients(input: Tensor) -> list[Tensor]:
        output, _ = module(input)
        return list(torch.autograd.grad(output.sum(), list(module.parameters())))

    expected = [gradients(input) for input in inputs]
    results: dict[int, list[Tensor]] = {}

    def work(i: int) -> None:
        for _ in range(20):
            results[i] = gradients(inputs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, grads in enumerate(expected):
        assert_same(results[i], grads)


# Subclasses of the module and of Tensor.

CHECKS = {
    "check_input": lambda self, input, batch_sizes: (tuple(input.shape), batch_sizes),
    "check_hidden_size": lambda self, hx, expected, msg="": (tuple(hx.shape), expected),
    "check_forward_args": lambda self, input, hx, batch_sizes: (
        tuple(input.shape),
        tuple(hx.shape),
        batch_sizes,
    ),
}


@pytest.mark.parametrize("kind", ["batch", "batch_first", "no batch", "packed"])
@pytest.mark.parametrize("name", CHECKS)
def test_subclass_that_overrides_a_check(name: str, kind: str) -> None:
    def run(cls: type) -> object:
        seen = []
        check = CHECKS[name]
        override = {name: lambda self, *args: seen.append(check(self, *args))}
        module = type("Checked", (cls,), override)(I, H, 2, batch_first=kind == "batch_first")
        input = packed() if kind == "packed" else x(*((T, I) if kind == "no batch" else ()))
        sizes = {"batch": (B,), "batch_first": (T,), "no batch": (), "packed": (3,)}[kind]
        return module(input), module(input, x(2, *sizes, H)), seen

    *_, seen = assert_agree(run)
    assert len(seen) == 2


def test_subclass_that_overrides_the_expected_size_refuses() -> None:
    def run(cls: type) -> object:
        override = {"get_expected_hidden_size": lambda self, input, batch_sizes: (7, 7, 7)}
        return type("Checked", (cls,), override)(I, H)(x())

    theirs, ours = outcome(run, nn.RNN), outcome(run, RNN)
    assert ours == theirs == Raised(RuntimeError, "Expected hidden size (7, 7, 7), got [1, 2, 4]")


def test_subclass_that_sees_float64() -> None:
    """A check that converts what nn.RNN would refuse does not hide the refusal."""

    def run(cls: type) -> object:
        override = {"check_input": lambda self, input, batch_sizes: None}
        return type("Lenient", (cls,), override)(I, H)(x(dtype=torch.float64))

    for cls in (nn.RNN, RNN):
        assert issubclass(outcome(run, cls).type, RuntimeError | ValueError)


def test_subclass_with_a_forward_of_its_own() -> None:
    def run(cls: type) -> object:
        class Last(cls):  # type: ignore[misc,valid-type]
            def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
                return super().forward(2 * input, hx)[0][-1]

        return Last(I, H)(x())

    assert_agree(run)


class Marked(torch.Tensor):
    """A plain subclass of Tensor."""


@pytest.mark.parametrize("which", ["input", "hx", "weight", "packed"])
def test_tensor_subclass_in_and_out(which: str) -> None:
    def run(cls: type) -> object:
        module, input, hx = cls(I, H), x(), x(1, B, H)
        if which == "input":
            input = input.as_subclass(Marked)
        elif which == "hx":
            hx = hx.as_subclass(Marked)
        elif which == "weight":
            del module.weight_hh_l0
            module.weight_hh_l0 = x(H, H).as_subclass(Marked)
        else:
            sequence = packed()
            input, hx = sequence._replace(data=sequence.data.as_subclass(Marked)), x(1, 3, H)
        output, hn = module(input, hx)
        if which == "packed":
            return type(output), type(output.data), output.data.as_subclass(Tensor), type(hn)
        return [(type(y), y.as_subclass(Tensor)) for y in (output, hn)]

    assert_agree(run)
