"""The forward of nn.RNN on padded input: shapes, strides, memory, special values and errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from both import B, H, I, Raised, T, assert_agree, assert_raise_alike, outcome
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import RNN

CONFIGURATIONS = {
    "plain": {},
    "relu": {"nonlinearity": "relu"},
    "no bias": {"bias": False},
    "batch_first": {"batch_first": True},
    "layers": {"num_layers": 3},
    "both directions": {"bidirectional": True},
    "everything": {
        "num_layers": 2,
        "bidirectional": True,
        "batch_first": True,
        "nonlinearity": "relu",
    },
}

INPUTS = {
    "batch": lambda m, **like: torch.randn(T, B, I, **like),
    "batch of one": lambda m, **like: torch.randn(T, 1, I, **like),
    "one step": lambda m, **like: torch.randn(*((B, 1) if m.batch_first else (1, B)), I, **like),
    "no batch": lambda m, **like: torch.randn(T, I, **like),
    "no rows": lambda m, **like: torch.randn(*((0, T) if m.batch_first else (T, 0)), I, **like),
    "transposed": lambda m, **like: torch.randn(B, T, I, **like).transpose(0, 1),
    "strided": lambda m, **like: torch.randn(T, 2 * B, 2 * I, **like)[:, ::2, 1::2],
    "expanded": lambda m, **like: torch.randn(T, 1, I, **like).expand(T, B, I),
    "features first": lambda m, **like: torch.randn(I, T, B, **like).permute(1, 2, 0),
}


def state_for(module: nn.RNNBase, x: Tensor, **like: object) -> Tensor:
    layers = module.num_layers * (2 if module.bidirectional else 1)
    batch = [x.size(0 if module.batch_first else 1)] if x.dim() == 3 else []
    return torch.randn(layers, *batch, H, **like)


@pytest.mark.parametrize("where", ["cpu", "meta"])
@pytest.mark.parametrize("kind", INPUTS)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_shapes_strides_and_gradients(name: str, kind: str, where: str) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, **CONFIGURATIONS[name], device=where)
        x = INPUTS[kind](module, device=where).requires_grad_()
        hx = state_for(module, x, device=where).requires_grad_()
        results = [module(x.detach()), module(x, hx)]
        assert type(results[0]) is tuple
        output, hn = results[1]
        (output.sum() + hn.square().sum()).backward()
        views = [y._is_view() for pair in results for y in pair]
        grads = [w.grad for w in module.parameters()]
        return results, views, x.grad if x.is_leaf else None, hx.grad, grads

    assert_agree(run)


def test_gradient_of_batch_first_input_is_contiguous() -> None:
    x = torch.randn(B, T, I, requires_grad=True)
    RNN(I, H, batch_first=True)(x)[0].sum().backward()
    assert x.grad.is_contiguous()


def test_results_share_no_memory() -> None:
    module = RNN(I, H, batch_first=True)
    hx = torch.randn(1, 1, H)
    output, hn = module(torch.randn(1, 1, I), hx)
    storages = {x.untyped_storage().data_ptr() for x in (output, hn, hx, *module.parameters())}
    assert len(storages) == 3 + len(list(module.parameters()))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_special_values_propagate(value: float, nonlinearity: str) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, nonlinearity=nonlinearity, bidirectional=True)
        x = torch.randn(T, B, I)
        x[2, 0, 1] = value
        return module(x)

    output, _ = assert_agree(run)
    assert output[:, 1].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_special_values_of_w_hh_in_short_calls_show_from_the_second_step_on(value: float) -> None:
    """A difference, of calls with few rows of many units: without ``hx`` their first step has no
    product with w_hh. (tests/kernels/test_numerics.py has the others.)
    """

    def run(cls: type) -> object:
        module = cls(I, 64)
        with torch.no_grad():
            module.weight_hh_l0[1] = value
        sequence = torch.randn(T, B, I)
        return module(sequence, torch.zeros(1, B, 64))[0], module(sequence)[0]

    theirs, ours = outcome(run, nn.RNN), outcome(run, RNN)
    torch.testing.assert_close(ours[0], theirs[0], equal_nan=True)
    for output in (*theirs, ours[0]):
        assert output[0, :, 1].isnan().all()
    assert ours[1][0].isfinite().all()
    module = RNN(I, 64)
    with torch.no_grad():
        module.weight_hh_l0[1] = float("nan")
    output, _ = module(torch.randn(T, B, I))
    assert output[0].isfinite().all()
    assert output[1:, :, 1].isnan().all()


def test_derivative_of_relu_is_zero_at_zero() -> None:
    def run(cls: type) -> object:
        module = cls(I, H, nonlinearity="relu", bias=False)
        x = torch.zeros(T, B, I, requires_grad=True)
        module(x)[0].sum().backward()
        return x.grad

    assert assert_agree(run).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, 2, dtype=dtype)
        x = torch.randn(T, B, I, dtype=dtype, requires_grad=True)
        output, hn = module(x)
        output.sum().backward()
        return output, hn, x.grad, [w.grad for w in module.parameters()]

    assert_agree(run)


@pytest.mark.parametrize(
    "grad", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
def test_without_gradients(grad: type) -> None:
    def run(cls: type) -> object:
        module, inside = cls(I, H, 2, bidirectional=True), []
        for x in (torch.randn(T, B, I), torch.randn(T, I)):
            with grad():
                output, hn = module(x)
                output.add_(1)
                inside += [output, hn, output.is_inference(), hn.is_inference()]
        return inside

    assert_agree(run)


def test_tensors_of_inference_mode_outside_of_it() -> None:
    def run(cls: type) -> object:
        module = cls(I, H)
        with torch.inference_mode():
            x = torch.randn(T, B, I)
        with torch.no_grad():
            assert module(x)[0].isfinite().all()
        return module(x)

    assert_raise_alike(run)


def x(*sizes: int, **like: object) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)), **like)


def with_weight(module: nn.RNNBase, name: str, weight: Tensor) -> nn.RNNBase:
    setattr(module, name, nn.Parameter(weight))
    return module


ERRORS = {
    "0-D": lambda rnn: rnn(I, H)(torch.tensor(1.0)),
    "1-D": lambda rnn: rnn(I, H)(x(I)),
    "4-D": lambda rnn: rnn(I, H)(x(1, T, B, I)),
    "1-D before hx": lambda rnn: rnn(I, H)(x(I), x(1, H)),
    "2-D with 3-D hx": lambda rnn: rnn(I, H)(x(T, I), x(1, 1, H)),
    "3-D with 2-D hx": lambda rnn: rnn(I, H)(x(), x(1, H)),
    "3-D with 4-D hx": lambda rnn: rnn(I, H)(x(), x(1, 1, B, H)),
    "hx rank before dtype": lambda rnn: rnn(I, H)(x(dtype=torch.float64), x(1, H)),
    "float64": lambda rnn: rnn(I, H)(x(dtype=torch.float64)),
    "float16": lambda rnn: rnn(I, H)(x().half()),
    "float32 into float64": lambda rnn: rnn(I, H).double()(x()),
    "float32 into complex": lambda rnn: rnn(I, H, dtype=torch.complex64)(x()),
    "dtype before size": lambda rnn: rnn(I, H)(x(T, B, 9, dtype=torch.float64)),
    "input size": lambda rnn: rnn(I, H)(x(T, B, I + 1)),
    "input size, no batch": lambda rnn: rnn(I, H)(x(T, I + 1)),
    "input size before hx": lambda rnn: rnn(I, H)(x(T, B, I + 1), x(1, 9, H)),
    "hx batch": lambda rnn: rnn(I, H)(x(), x(1, B + 1, H)),
    "hx batch, batch_first": lambda rnn: rnn(I, H, batch_first=True)(x(B, T, I), x(1, T, H)),
    "hx would broadcast": lambda rnn: rnn(I, H)(x(), x(1, 1, H)),
    "hx layers": lambda rnn: rnn(I, H, 2)(x(), x(1, B, H)),
    "hx directions": lambda rnn: rnn(I, H, bidirectional=True)(x(), x(1, B, H)),
    "hx features": lambda rnn: rnn(I, H)(x(), x(1, B, H + 1)),
    "hx, no batch": lambda rnn: rnn(I, H)(x(T, I), x(1, H + 1)),
    "hx device": lambda rnn: rnn(I, H)(x(), x(1, B, H, device="meta")),
    "weight device": lambda rnn: rnn(I, H, device="meta")(x()),
    "input device": lambda rnn: rnn(I, H)(x(device="meta")),
    "one weight's device": lambda rnn: with_weight(rnn(I, H), "bias_hh_l0", x(H, device="meta"))(
        x()
    ),
    "no steps": lambda rnn: rnn(I, H)(x(0, B, I)),
    "no steps, batch_first": lambda rnn: rnn(I, H, batch_first=True)(x(B, 0, I)),
    "no steps, no batch": lambda rnn: rnn(I, H)(x(0, I)),
    "no input": lambda rnn: rnn(I, H)(),
    "unknown keyword": lambda rnn: rnn(I, H)(x(), state=None),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raise_alike(ERRORS[name])


CLEARER = {  # the call, torch's type and a part of our words, which say more than torch's
    "int64": (
        lambda rnn: rnn(I, H)(torch.ones(T, B, I, dtype=torch.int64)),
        ValueError,
        r"RNN input dtype \(torch.int64\) does not match weight dtype \(torch.float32\). Convert "
        r"input: input.to\(torch.float32\). If it holds indices .* put an nn.Embedding",
    ),
    "bool": (
        lambda rnn: rnn(I, H)(torch.ones(T, B, I, dtype=torch.bool)),
        ValueError,
        r"Convert input: input.to\(torch.float32\). If",
    ),
    "hx dtype": (
        lambda rnn: rnn(I, H)(x(), x(1, B, H, dtype=torch.float64)),
        RuntimeError,
        r"RNN: expected hx of dtype torch.float32, like the weights, got torch.float64. "
        r"Convert it: hx.to\(torch.float32\)",
    ),
    "hx dtype, no bias": (
        lambda rnn: rnn(I, H, bias=False)(x(), x(1, B, H).int()),
        RuntimeError,
        "expected hx of dtype torch.float32, .* got torch.int32",
    ),
    "hx dtype, no batch": (
        lambda rnn: rnn(I, H)(x(T, I), x(1, H).half()),
        RuntimeError,
        "expected hx of dtype torch.float32, .* got torch.float16",
    ),
    "hx dtype, complex": (
        lambda rnn: rnn(I, H)(x(), x(1, B, H, dtype=torch.complex64)),
        RuntimeError,
        "expected hx of dtype torch.float32, .* got torch.complex64",
    ),
    "hx dtype, packed": (
        lambda rnn: rnn(I, H)(packed(), x(1, B, H, dtype=torch.float64)),
        RuntimeError,
        "expected hx of dtype torch.float32, .* got torch.float64",
    ),
    "hx dtype, dropout": (
        lambda rnn: rnn(I, H, 2, dropout=0.5)(x(), x(2, B, H, dtype=torch.float64)),
        RuntimeError,
        "expected hx of dtype torch.float32, .* got torch.float64",
    ),
    "one weight's dtype": (
        lambda rnn: with_weight(rnn(I, H), "weight_hh_l0", x(H, H, dtype=torch.float64))(x()),
        RuntimeError,
        "RNN: expected weights of one dtype, got torch.float32 and torch.float64",
    ),
    "one bias's dtype": (
        lambda rnn: with_weight(rnn(I, H), "bias_hh_l0", x(H, dtype=torch.float64))(x()),
        RuntimeError,
        "RNN: expected weights of one dtype, got torch.float32 and torch.float64",
    ),
    "a recurrent weight's shape": (
        lambda rnn: with_weight(rnn(I, H), "weight_hh_l0", x(H + 1, H + 1))(x()),
        RuntimeError,
        rf"expected w_hh of shape \[{H}, {H}\], got \[{H + 1}, {H + 1}\]",
    ),
    "list": (
        lambda rnn: rnn(I, H)([1.0, 2.0]),
        AttributeError,
        r"expected input to be a Tensor or a PackedSequence, got list. .* torch.tensor\(input\)",
    ),
    "list of tensors": (
        lambda rnn: rnn(I, H)([x(B, I), x(B, I)]),
        AttributeError,
        r"got list. If its tensors have the same shape, convert it: torch.stack\(input\)",
    ),
    "result of another RNN": (
        lambda rnn: rnn(H, H)(rnn(I, H)(x())),
        AttributeError,
        r"got a tuple. If it is another RNN's \(output, hn\), pass output alone",
    ),
    "None": (
        lambda rnn: rnn(I, H)(None),
        AttributeError,
        "RNN: expected input to be a Tensor or a PackedSequence, got NoneType",
    ),
    "array": (
        lambda rnn: rnn(I, H)(np.ones((T, B, I), np.float32)),
        AttributeError,
        r"got ndarray. Convert it: torch.as_tensor\(input\)",
    ),
    "hx of an LSTM": (
        lambda rnn: rnn(I, H)(x(), (x(1, B, H), x(1, B, H))),
        AttributeError,
        r"RNN: expected hx to be a Tensor or None, got a tuple. An LSTM's state is \(h, c\), an "
        r"RNN's is h alone: pass hx\[0\]",
    ),
    "hx of an LSTM, packed": (
        lambda rnn: rnn(I, H)(packed(), (x(1, B, H), x(1, B, H))),
        AttributeError,
        r"An LSTM's state is \(h, c\), an RNN's is h alone: pass hx\[0\]",
    ),
    "hx of an LSTM, dropout": (
        lambda rnn: rnn(I, H, 2, dropout=0.5)(x(), (x(2, B, H), x(2, B, H))),
        AttributeError,
        r"An LSTM's state is \(h, c\), an RNN's is h alone: pass hx\[0\]",
    ),
    "list hx": (
        lambda rnn: rnn(I, H)(x(T, I), [x(1, H)]),
        AttributeError,
        r"expected hx to be a Tensor or None, got list. If .* convert it: torch.stack\(hx\)",
    ),
    "array hx": (
        lambda rnn: rnn(I, H)(x(), np.ones((1, B, H), np.float32)),
        AttributeError,
        r"expected hx to be a Tensor or None, got ndarray. Convert it: torch.as_tensor\(hx\)",
    ),
    "number hx": (
        lambda rnn: rnn(I, H)(x(), 0),
        AttributeError,
        "expected hx to be a Tensor or None, got int",
    ),
}


def packed() -> PackedSequence:
    return pack_padded_sequence(x(), [T, T - 1])


@pytest.mark.parametrize("name", CLEARER)
def test_errors_in_words_of_our_own(name: str) -> None:
    """The type is torch's; the sentence says what was expected, what came, and what to do."""
    call, kind, words = CLEARER[name]
    with pytest.raises(kind) as theirs:
        call(nn.RNN)
    assert theirs.type is kind
    with pytest.raises(kind, match=words) as ours:
        call(RNN)
    assert ours.type is kind


LAYOUTS = {
    "sparse": lambda: x().to_sparse(),
    "sparse rows": lambda: x(T, I).to_sparse_csr(),
    "mkldnn": lambda: x().to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([x(T, I), x(T - 1, I)]),
}


@pytest.mark.filterwarnings("ignore:.*(Sparse CSR|nested tensor).*:UserWarning")
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_that_raise(name: str) -> None:
    for cls in (nn.RNN, RNN):
        raised = outcome(lambda cls: cls(I, H)(LAYOUTS[name]()), cls)
        assert isinstance(raised, Raised)
        assert issubclass(raised.type, RuntimeError)  # NotImplementedError too
    words = (
        "a nested one. .* with lengths=" if name == "nested" else r"Convert it: input.to_dense\(\)"
    )
    with pytest.raises(
        RuntimeError, match=f"RNN: expected input to be a dense tensor, got .*{words}"
    ):
        RNN(I, H)(LAYOUTS[name]())


def test_missing_weight_raises() -> None:
    for cls in (nn.RNN, RNN):
        module = cls(I, H)
        module._flat_weights_names.pop()
        module._flat_weights.pop()
        module._flat_weight_refs.pop()
        with pytest.raises(RuntimeError, match=r"weights|number of RNN parameters"):
            module(x())
