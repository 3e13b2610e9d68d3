"""The forward of nn.RNN on a PackedSequence."""

from __future__ import annotations

import pytest
import torch
from both import H, I, Raised, assert_agree, assert_raise_alike, assert_same, outcome
from torch import Tensor, nn
from torch.nn.utils.rnn import (
    PackedSequence,
    pack_padded_sequence,
    pack_sequence,
    unpack_sequence,
)

from fastrnn import RNN, reference

CONFIGURATIONS = {
    "plain": {},
    "relu, no bias": {"nonlinearity": "relu", "bias": False},
    "batch_first": {"batch_first": True},
    "everything": {"num_layers": 3, "bidirectional": True},
}


def sequences(*lengths: int, **like: object) -> list[Tensor]:
    return [torch.randn(n, I, **like) for n in lengths]


PACKED = {
    "sorted": lambda: pack_sequence(sequences(5, 4, 4, 1)),
    "unsorted": lambda: pack_sequence(sequences(2, 5, 1, 4), enforce_sorted=False),
    "one row": lambda: pack_sequence(sequences(6)),
    "one step": lambda: pack_sequence(sequences(1, 1, 1)),
    "equal lengths": lambda: pack_sequence(sequences(3, 3)),
    "from padded": lambda: pack_padded_sequence(
        torch.randn(3, 5, I), [3, 5, 2], batch_first=True, enforce_sorted=False
    ),
}


@pytest.mark.parametrize("with_hx", [False, True], ids=["", "hx"])
@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_results_and_gradients(name: str, kind: str, with_hx: bool) -> None:
    def run(cls: type) -> object:
        module = cls(I, H, **CONFIGURATIONS[name])
        packed = PACKED[kind]()
        data = packed.data.requires_grad_()
        states = module.num_layers * (2 if module.bidirectional else 1)
        hx = torch.randn(states, int(packed.batch_sizes[0]), H, requires_grad=True)
        output, hn = module(packed, hx if with_hx else None)
        assert output.batch_sizes is packed.batch_sizes
        assert output.sorted_indices is packed.sorted_indices
        assert output.unsorted_indices is packed.unsorted_indices
        weight = torch.linspace(-1, 1, hn.numel()).view_as(hn)
        ((output.data.square()).sum() + (hn * weight).sum()).backward()
        views = output.data._is_view(), hn._is_view()
        return output, hn, views, data.grad, hx.grad, [w.grad for w in module.parameters()]

    assert_agree(run)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_equals_each_sequence_alone(name: str) -> None:
    module = RNN(I, H, **(CONFIGURATIONS[name] | {"dtype": torch.float64}))
    rows = sequences(2, 5, 1, 4, dtype=torch.float64)
    hx = torch.randn(module.num_layers * (1 + module.bidirectional), 4, H, dtype=torch.float64)
    output, hn = module(pack_sequence(rows, enforce_sorted=False), hx)
    for b, (row, packed) in enumerate(zip(rows, unpack_sequence(output), strict=True)):
        alone, hn_alone = module(row, hx[:, b])
        torch.testing.assert_close(packed, alone)
        torch.testing.assert_close(hn[:, b], hn_alone)


class Subclass(PackedSequence):
    pass


DATA = torch.arange(27.0).view(9, I).sin()


def packed(*batch_sizes: int, dtype: torch.dtype = torch.int64) -> PackedSequence:
    return PackedSequence(DATA, torch.tensor(batch_sizes, dtype=dtype))


def permuted(batch: int) -> PackedSequence:
    order = torch.arange(batch).flip(0)
    return PackedSequence(DATA, torch.tensor([batch, batch]), order, order)


QUIRKS = {
    "subclass in, PackedSequence out": lambda rnn: rnn(I, H)(Subclass(*packed(4, 3, 2))),
    "extra rows are left out": lambda rnn: rnn(I, H)(packed(3, 2)),
    "no rows": lambda rnn: rnn(I, H)(packed(0)),
    "no rows, two steps": lambda rnn: rnn(I, H, 2, bidirectional=True)(packed(0, 0)),
    "steps without rows": lambda rnn: rnn(I, H, bidirectional=True)(
        PackedSequence(DATA[:5], torch.tensor([3, 2, 0, 0]))
    ),
    "hx has more rows than are selected": lambda rnn: rnn(I, H)(
        permuted(2), torch.arange(12.0).view(1, 3, H)
    ),
    "complex": lambda rnn: rnn(I, H, 2, dtype=torch.complex128, bidirectional=True)(
        PackedSequence(DATA.to(torch.complex128), torch.tensor([4, 3, 2]))
    ),
    "extra rows in complex": lambda rnn: rnn(I, H, dtype=torch.complex128)(
        PackedSequence(DATA.to(torch.complex128), torch.tensor([2, 1]))
    ),
    "meta": lambda rnn: rnn(I, H, 2, device="meta")(
        PackedSequence(DATA.to("meta"), torch.tensor([4, 3, 2]))
    ),
    "meta, extra rows": lambda rnn: rnn(I, H, device="meta")(
        PackedSequence(DATA.to("meta"), torch.tensor([4, 3])), torch.zeros(1, 4, H, device="meta")
    ),
}


@pytest.mark.parametrize("name", QUIRKS)
def test_quirks(name: str) -> None:
    assert_agree(QUIRKS[name])


def test_extra_rows_are_left_out_by_the_reverse_direction() -> None:
    module = RNN(
        I, H, 2, bidirectional=True
    )  # nn.RNN's starts at the end of the data, extra or not
    output, hn = module(packed(3, 2))
    trimmed, hn_trimmed = module(PackedSequence(DATA[:5], torch.tensor([3, 2])))
    assert_same((output.data, hn), (trimmed.data, hn_trimmed))


def test_gradient_of_extra_rows_is_zero() -> None:
    def run(cls: type) -> object:
        data = DATA.clone().requires_grad_()
        output, hn = cls(I, H)(PackedSequence(data, torch.tensor([3, 2])))
        (output.data.sum() + hn.sum()).backward()
        return data.grad

    assert assert_agree(run)[5:].eq(0).all()


def test_gradients_of_no_rows() -> None:
    def run(cls: type) -> object:
        module = cls(I, H)
        data, hx = DATA.clone().requires_grad_(), torch.zeros(1, 0, H, requires_grad=True)
        output, hn = module(PackedSequence(data, torch.tensor([0])), hx)
        (output.data.sum() + hn.sum()).backward()
        return data.grad, hx.grad, [w.grad for w in module.parameters()]

    assert_agree(run)


ERRORS = {
    "3-D data": lambda rnn: rnn(I, H)(PackedSequence(torch.randn(2, 3, I), torch.tensor([2]))),
    "input size": lambda rnn: rnn(I + 1, H)(packed(4, 3, 2)),
    "dtype": lambda rnn: rnn(I, H, dtype=torch.float64)(packed(4, 3, 2)),
    "too few rows of hx": lambda rnn: rnn(I, H)(permuted(3), torch.zeros(1, 2, H)),
    "rows of hx without indices": lambda rnn: rnn(I, H)(packed(3, 2), torch.zeros(1, 4, H)),
    "2-D hx": lambda rnn: rnn(I, H)(packed(3, 2), torch.zeros(1, H)),
    "2-D hx with indices": lambda rnn: rnn(I, H)(permuted(3), torch.zeros(3, H)),
    "int32 batch sizes": lambda rnn: rnn(I, H)(packed(3, 2, dtype=torch.int32)),
    "relu in complex": lambda rnn: rnn(I, H, nonlinearity="relu", dtype=torch.complex64)(
        PackedSequence(DATA.to(torch.complex64), torch.tensor([4, 3, 1]))
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raise_alike(ERRORS[name])


# Where nn.RNN fails on the way, in the words of the operation that happened to be next.
ERRORS_IN_OTHER_WORDS = {
    "tuple hx": (
        lambda rnn: rnn(I, H)(packed(3, 2), (torch.zeros(1, 3, H), None)),
        "An LSTM's state is (h, c), an RNN's is h alone: pass hx[0]",
    ),
    "hx dtype": (
        lambda rnn: rnn(I, H)(packed(3, 2), torch.zeros(1, 3, H, dtype=torch.float64)),
        "expected hx of dtype torch.float32, like the weights, got torch.float64",
    ),
    "plain tuple": (
        lambda rnn: rnn(I, H)(tuple(packed(4, 3, 2))),
        "expected input to be a Tensor or a PackedSequence, got tuple",
    ),
    "rising batch sizes": (lambda rnn: rnn(I, H)(packed(2, 3)), "do not increase"),
    "negative batch sizes": (lambda rnn: rnn(I, H)(packed(2, -1)), "not negative"),
    "too many rows": (
        lambda rnn: rnn(I, H)(packed(4, 4, 4)),
        "at most the 9 rows of data, got more by step 2",
    ),
    "no batch sizes": (
        lambda rnn: rnn(I, H)(packed()),
        "batch_sizes of at least one step, got none",
    ),
    "hx device": (
        lambda rnn: rnn(I, H)(packed(3, 2), torch.zeros(1, 3, H, device="meta")),
        "found input tensor at cpu and hidden tensor at meta",
    ),
}


@pytest.mark.parametrize("name", ERRORS_IN_OTHER_WORDS)
def test_errors_in_other_words(name: str) -> None:
    run, words = ERRORS_IN_OTHER_WORDS[name]
    theirs, ours = (outcome(run, cls) for cls in (nn.RNN, RNN))
    assert isinstance(theirs, Raised)
    assert ours.type is theirs.type
    assert words in ours.text


def test_batch_sizes_with_gaps_in_memory() -> None:
    sizes = torch.tensor([3, 9, 2, 9, 1])[::2]
    module = RNN(I, H)
    assert_same(module(PackedSequence(DATA, sizes))[1], module(packed(3, 2, 1))[1])


def test_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths are for padded input, got a PackedSequence"):
        RNN(I, H)(packed(4, 3, 2), lengths=torch.ones(4))


def test_reference_of_packed_data_ignores_batch_first() -> None:
    """Packed data has no batch dimension that could come first."""
    rnn, sizes = nn.RNN(3, 4), torch.tensor([2, 2, 1])
    given = (torch.randn(5, 3), None, list(rnn.parameters()), sizes)
    expected, hn = reference.rnn(*given)
    output, again = reference.rnn(*given, batch_first=True)
    torch.testing.assert_close((output, again), (expected, hn), rtol=0, atol=0)
    assert output.shape == (5, 4)
