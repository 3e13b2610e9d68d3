"""nn.RNN among other modules: dropout, computed weights, hooks, tracing, and torch's modes."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from both import B, H, I, Raised, T, assert_agree, assert_raise_alike, assert_same, outcome
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from fastrnn import RNN


def x(*sizes: int, **like: object) -> Tensor:
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


# Weights that are computed: from other parameters, from a mask, from elsewhere.


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
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_ih_l1"),
    "spectral_norm in eval": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0").eval(),
    "weight_norm, old": lambda m: nn.utils.weight_norm(m, "weight_hh_l1"),
    "spectral_norm, old": lambda m: nn.utils.spectral_norm(m, "weight_hh_l0"),
    "prune": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
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


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("asked", [None, {RNN}], ids=["default", "asked"])
def test_dynamic_quantization_leaves_the_module_alone(asked: set[type] | None) -> None:
    model = nn.Sequential(RNN(I, H))
    quantized = torch.ao.quantization.quantize_dynamic(model, asked)
    assert type(quantized[0]) is RNN
    assert quantized[0].weight_ih_l0.dtype == torch.float32


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


# Tracing.


class Tagger(nn.Module):
    def __init__(self, cls: type = RNN, **options: object) -> None:
        super().__init__()
        self.first = nn.Linear(I, I)
        self.rnn = cls(I, H, 2, **options)
        self.last = nn.Linear(H, 2)

    def forward(self, input: Tensor) -> Tensor:
        output, hn = self.rnn(self.first(input))
        return self.last(output) * self.last(hn).mean()


def test_symbolic_trace_records_a_call_of_the_module() -> None:
    def run(cls: type) -> object:
        model = Tagger(cls, dropout=0.5)
        graph = torch.fx.symbolic_trace(model)
        calls = [(n.op, n.target) for n in graph.graph.nodes]
        torch.manual_seed(2)
        results = [graph(x(7, 3, I)), graph.eval()(x()), graph.train()(x())]
        return calls[:3], results

    assert_agree(run)


def test_symbolic_trace_of_the_module_itself() -> None:
    module, input = RNN(I, H), x(7, 3, I)
    graph = torch.fx.symbolic_trace(module)
    assert_same(graph(input, None, None, None), module(input))


def test_symbolic_trace_of_a_subclass_looks_inside() -> None:
    class Doubled(RNN):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
            return super().forward(2 * input, hx)[0]

    model, input = nn.Sequential(nn.Linear(I, I), Doubled(I, H)), x(7, 3, I)
    assert_same(torch.fx.symbolic_trace(model)(input), model(input))


JIT = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


def saved_and_loaded(traced: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


@JIT
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_jit_trace_serves_other_sizes(batch_first: bool) -> None:
    model = Tagger(batch_first=batch_first).eval()
    for input in (x(), x(T, I)):
        traced = saved_and_loaded(torch.jit.trace(model, input))
        other = x(*([9, 4] if input.dim() == 3 else [9]), I)
        assert_same(traced(other), model(other))
    with pytest.raises(RuntimeError, match=r"expected w_ih of shape|input.size\(-1\)|size"):
        traced(x(9, I + 1))


class PackedTagger(nn.Module):
    def __init__(self, with_hx: bool, **options: object) -> None:
        super().__init__()
        self.rnn = RNN(I, H, 2, bidirectional=True, **options)
        self.with_hx = with_hx

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        sequence = pack_padded_sequence(input, lengths, enforce_sorted=False)
        hx = input.sum((0, 2)).view(1, -1, 1).expand(4, -1, H) if self.with_hx else None
        output, hn = self.rnn(sequence, hx)
        return output.data, hn


@JIT
@pytest.mark.filterwarnings("ignore:pack_padded_sequence has been called")
@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
def test_jit_trace_of_packed_input_serves_other_lengths(with_hx: bool) -> None:
    model = PackedTagger(with_hx)
    traced = torch.jit.trace(model, (x(), torch.tensor([2, 5])))
    other = x(9, 4, I), torch.tensor([1, 9, 9, 3])
    assert_same(saved_and_loaded(traced)(*other), model(*other))


@JIT
def test_jit_freeze_of_a_trace() -> None:
    model = Tagger().eval()
    frozen = torch.jit.freeze(torch.jit.trace(model, x()))
    assert not list(frozen.named_parameters())
    other = x(9, 4, I)
    torch.testing.assert_close(frozen(other), model(other).detach())


@JIT
def test_jit_trace_of_dropout_serves_other_sizes() -> None:
    model = Tagger(dropout=0.5)
    traced = torch.jit.trace(model, x(), check_trace=False)
    other = x(9, 4, I)
    torch.manual_seed(3)
    expected = model(other)
    torch.manual_seed(3)
    assert_same(traced(other), expected)


@JIT
def test_jit_script_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"RNN does not support torch\.jit\.script\. Use torch"):
        torch.jit.script(Tagger())


@pytest.mark.parametrize("options", [{}, {"batch_first": True}], ids=["time first", "batch first"])
def test_export_serves_other_lengths(options: dict[str, bool]) -> None:
    model = Tagger(**options)
    sizes = {0: torch.export.Dim("first"), 1: torch.export.Dim("second")}
    for strict in (False, True):
        exported = torch.export.export(model, (x(7, 6, I),), dynamic_shapes=(sizes,), strict=strict)
        for input in (x(), x(11, 3, I)):
            assert_same(exported.module()(input), model(input))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch._dynamo.config.patch(error_on_recompile=True)
def test_compile_takes_the_whole_graph_once(backend: str) -> None:
    torch.compiler.reset()
    model = Tagger()
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for sizes in ((5, 2), (9, 3), (31, 4)):
        input, twin = (torch.linspace(-1, 1, sizes[0] * sizes[1] * I).view(*sizes, I) for _ in "ab")
        input.requires_grad_(), twin.requires_grad_()
        result, expected = compiled(input), model(twin)
        assert_same(result, expected)
        grads = torch.autograd.grad(result.sum(), [input, *model.parameters()])
        assert_same(grads, torch.autograd.grad(expected.sum(), [twin, *model.parameters()]))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("kind", ["unsorted", "unsorted, hx", "sorted, hx", "sorted"])
def test_compile_packed(kind: str) -> None:
    torch.compiler.reset()
    model = RNN(I, H, 2, bidirectional=True)
    # Without any other tensor that has its size, the batch is in the values of batch_sizes alone.
    compiled = torch.compile(model, backend="eager", fullgraph=kind != "sorted")
    for lengths in ((2, 5, 3), (1, 7, 7, 2)):
        rows = [x(n, I) for n in lengths]
        rows = rows if kind.startswith("unsorted") else sorted(rows, key=len, reverse=True)
        sequence = pack_sequence(rows, enforce_sorted=not kind.startswith("unsorted"))
        hx = x(4, len(lengths), H) if kind.endswith("hx") else None
        assert_same(compiled(sequence, hx), model(sequence, hx))


COMPILED = {
    "lengths": lambda m: m(x(), lengths=torch.tensor([3, 5])),
    "reset": lambda m: m(x(), reset=torch.eye(T, B, dtype=torch.bool)),
    "no batch": lambda m: m(x(T, I)),
    "complex": lambda m: m.to(torch.complex64)(x(dtype=torch.complex64)),
    "no rows": lambda m: m(x(T, 0, I)),
}


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@pytest.mark.parametrize("name", COMPILED)
def test_compile(name: str) -> None:
    torch.compiler.reset()
    module, results = RNN(I, H, 2), []
    for compiled in (False, True):
        torch.manual_seed(1)
        if compiled:
            module.compile(backend="eager", fullgraph=True)
        results.append(COMPILED[name](module))
    assert_same(*results)


def test_compile_with_dropout() -> None:
    torch.compiler.reset()
    module, input = RNN(I, H, 2, dropout=0.5), x()
    torch.manual_seed(1)
    expected = module(input)
    module.compile(backend="eager", fullgraph=True)
    torch.manual_seed(1)
    assert_same(module(input), expected)
    assert_same(module.eval()(input), module(input))


def test_compile_of_a_function_transform() -> None:
    torch.compiler.reset()
    module, input = RNN(I, H), x()
    gradient = torch.func.grad(lambda input: module(input)[0].square().sum())
    compiled = torch.compile(gradient, backend="eager", fullgraph=True)
    assert_same(compiled(input), gradient(input))


def test_export_of_packed_data_serves_other_lengths() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = RNN(I, H, 2, bidirectional=True)

        def forward(self, data: Tensor, sizes: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
            output, hn = self.rnn(PackedSequence(data, sizes), hx)
            return output.data, hn

    auto = torch.export.Dim.AUTO
    model, arguments = Model(), (x(8, I), torch.tensor([2, 2, 2, 1, 1]), x(4, 2, H))
    exported = torch.export.export(
        model, arguments, dynamic_shapes=({0: auto}, {0: auto}, {1: auto})
    ).module()
    other = x(6, I), torch.tensor([3, 2, 1]), x(4, 3, H)
    assert_same(exported(*other), model(*other))


# Modes and transforms that look at operators.


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


def test_dispatch_mode_sees_the_operators() -> None:
    module, input = RNN(I, H), x()
    with Names() as names:
        output, _ = module(input)
        output.sum().backward()
    assert "fastrnn::rnn_forward" in names.seen
    assert "fastrnn::rnn_backward" in names.seen
    with torch.no_grad(), Names() as names:
        module(input)
    assert names.seen == ["fastrnn::rnn"]


def test_function_mode_sees_the_call() -> None:
    from torch.overrides import TorchFunctionMode

    seen = []

    class Mode(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    module, input = RNN(I, H), x()
    expected = module(input)
    with Mode():
        result = module(input)
    assert_same(result, expected)
    assert any("rnn" in name for name in seen)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bidirectional": True}], ids=str)
def test_fake_tensors_forward_and_backward(options: dict[str, bool]) -> None:
    def run(cls: type) -> object:
        with FakeTensorMode():
            module, input = cls(I, H, 2, **options), x(requires_grad=True)
            output, hn = module(input)
            (output.sum() + hn.sum()).backward()
            tensors = [output, hn, input.grad, *(w.grad for w in module.parameters())]
            return [(tuple(y.shape), y.stride(), y.dtype, y.device) for y in tensors]

    assert_agree(run)


def test_fake_packed_input() -> None:
    with FakeTensorMode() as mode:
        module, data, hx = RNN(I, H), x(8, I, requires_grad=True), x(1, 2, H)
        sizes = mode.from_tensor(torch.tensor([2, 2, 2, 1, 1]))
        output, hn, _ = torch.ops.fastrnn.rnn_forward(
            data,
            hx,
            module._flat_weights,
            sizes,
            None,
            None,
            None,
            True,
            1,
            "tanh",
            False,
            False,
            True,
        )
    assert output.shape == (8, H)
    assert hn.shape == (1, 2, H)


def test_make_fx() -> None:
    module, input = RNN(I, H, 2), x()
    graph = make_fx(lambda x: module(x)[0], tracing_mode="symbolic", _allow_non_fake_inputs=True)(
        input
    )
    assert "fastrnn" in graph.code
    assert graph(x(9, 4, I)).shape == (9, 4, H)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "bias": False}], ids=str)
def test_flops_are_counted_as_for_nn_rnn(options: dict[str, bool]) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, 2, **options)
        with FlopCounterMode(display=False) as forward:
            module(x())
        with FlopCounterMode(display=False) as inference, torch.no_grad():
            module(x())
        with FlopCounterMode(display=False) as both:
            module(x(requires_grad=True), x(2 * (2 if options else 1), B, H, requires_grad=True))[
                0
            ].sum().backward()
        return [mode.get_total_flops() for mode in (forward, inference, both)]

    forward, *_ = assert_agree(run)
    assert forward > 0


def test_expanded_weights_say_that_they_cannot() -> None:
    from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

    module = RNN(I, H, batch_first=True)
    with pytest.raises(
        RuntimeError, match="Expanded Weights encountered but cannot handle function"
    ):
        call_for_per_sample_grads(module)(x())


def test_per_sample_gradients_by_vmap() -> None:
    module, input = RNN(I, H, 2, batch_first=True), x(B, T, I)
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def loss(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, (row,))[0].square().sum()

    grads = torch.vmap(torch.func.grad(loss), (None, 0))(weights, input)
    for b in range(B):
        assert_same({k: g[b] for k, g in grads.items()}, torch.func.grad(loss)(weights, input[b]))


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_linearize() -> None:
    module, input, tangent = RNN(I, H, 2), x(), x()
    result, push = torch.func.linearize(module, input)
    expected, tangents = torch.func.jvp(module, (input,), (tangent,))
    assert_same([y.detach() for y in result], [y.detach() for y in expected])
    torch.testing.assert_close(push(tangent), tangents)


def test_vmap_over_an_ensemble() -> None:
    modules = [RNN(I, H, 2) for _ in range(3)]
    weights, _ = torch.func.stack_module_state(modules)
    input = x()
    results = torch.vmap(lambda w: torch.func.functional_call(modules[0], w, (input,))[0])(weights)
    torch.testing.assert_close(results, torch.stack([m(input)[0] for m in modules]))


CALLS: dict[str, Callable[[RNN], object]] = {
    "kernel": lambda m: x(),
    "torch": lambda m: x(dtype=torch.complex64),
}


@pytest.mark.parametrize("name", CALLS)
def test_info_names_the_path(name: str) -> None:
    module = RNN(I, H, dtype=torch.complex64 if name == "torch" else None)
    kernel = fastrnn.info(module, CALLS[name](module))["kernel"]
    assert kernel.startswith("cpu" if name == "kernel" else "torch (no kernel for")
