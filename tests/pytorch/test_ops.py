"""The operators: what torch asks of a custom operator, and arguments that must not get through."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import forward_ad

import fastrnn  # noqa: F401  (loads the operators)

OPS = torch.ops.fastrnn


def arguments(
    batch_first: bool = False,
    bidirectional: bool = False,
    num_layers: int = 1,
    requires_grad: bool = False,
):
    directions = 2 if bidirectional else 1
    x = torch.randn(2, 3, 4) if batch_first else torch.randn(3, 2, 4)
    hx = torch.randn(num_layers * directions, 2, 5)
    weights = []
    for layer in range(num_layers):
        features = 4 if layer == 0 else 5 * directions
        for _ in range(directions):
            weights += [torch.randn(5, features), torch.randn(5, 5), torch.randn(5), torch.randn(5)]
    for w in (x, hx, *weights) if requires_grad else ():
        w.requires_grad_()
    return [
        x,
        hx,
        weights,
        None,
        None,
        None,
        None,
        True,
        num_layers,
        "tanh",
        bidirectional,
        batch_first,
    ]


CONFIGURATIONS = [
    {},
    {"batch_first": True, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True},
]


# torch 2.15 looks at it itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_opcheck_rnn(configuration: dict[str, object], requires_grad: bool) -> None:
    torch.library.opcheck(OPS.rnn, arguments(**configuration, requires_grad=requires_grad))


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=str)
def test_opcheck_forward_and_backward(configuration: dict[str, object]) -> None:
    args = arguments(**configuration)
    torch.library.opcheck(OPS.rnn_forward, (*args, True))
    output, hn, saved = OPS.rnn_forward(*args, True)
    grads = torch.randn_like(output), torch.randn_like(hn)
    torch.library.opcheck(OPS.rnn_backward, (*grads, saved, *args, True, True, True))


def test_opcheck_lengths_reset_and_packed() -> None:
    args = arguments()
    args[4] = torch.tensor([3, 1])
    args[5] = torch.zeros(3, 2, dtype=torch.bool)
    torch.library.opcheck(OPS.rnn, args)
    packed = arguments()
    packed[0] = torch.randn(5, 4)
    packed[3] = torch.tensor([2, 2, 1])
    torch.library.opcheck(OPS.rnn, packed)


def replaced(**changes: object):
    names = ["input", "hx", "weights", "batch_sizes", "lengths", "reset", "dropout_mask"]
    names += ["has_biases", "num_layers", "nonlinearity", "bidirectional", "batch_first"]
    args = dict(zip(names, arguments(), strict=True))
    assert changes.keys() <= args.keys()
    return list((args | changes).values())


LONG = torch.long
BAD = {
    "rank": ({"input": torch.randn(4)}, r"input must have 3 dimensions, got 1"),
    "no step": ({"input": torch.randn(0, 2, 4)}, r"sequence length to be larger than 0"),
    "hx": ({"hx": torch.randn(1, 3, 5)}, r"expected hx of shape \[1, 2, 5\], got \[1, 3, 5\]"),
    "hx dtype": ({"hx": torch.randn(1, 2, 5).double()}, r"expected hx of dtype Float, got Double"),
    "input size": (
        {"input": torch.randn(3, 2, 9)},
        r"expected w_ih of shape \[5, 9\], got \[5, 4\]",
    ),
    "w_hh rank": (
        {"weights": [torch.randn(5, 4), torch.randn(5), *2 * [torch.randn(5)]]},
        r"w_hh of shape \[5, 5\], got \[5\]",
    ),
    "w_hh": (
        {"weights": [torch.randn(5, 4), torch.randn(5, 6), *2 * [torch.randn(5)]]},
        r"w_hh of shape \[5, 5\]",
    ),
    "bias": (
        {"weights": [torch.randn(5, 4), torch.randn(5, 5), torch.randn(5), torch.randn(4)]},
        r"expected b_hh of shape \[5\], got \[4\]",
    ),
    "weights": ({"weights": []}, r"expected 4 weights for each of num_layers = 1, got 0"),
    "layers": ({"num_layers": 0}, r"expected num_layers > 0, got 0"),
    "dtype": ({"input": torch.zeros(3, 2, 4, dtype=LONG)}, r"expected a dtype of float32"),
    "sizes": (
        {"input": torch.randn(2, 4), "batch_sizes": torch.tensor([2, 1])},
        r"sum to at most the 2 rows of data",
    ),
    "rising": (
        {"input": torch.randn(9, 4), "batch_sizes": torch.tensor([2, 3])},
        r"do not increase",
    ),
    "negative": (
        {"input": torch.randn(9, 4), "batch_sizes": torch.tensor([2, -1])},
        r"not negative, got -1 at step 1",
    ),
    "int32": (
        {"input": torch.randn(9, 4), "batch_sizes": torch.tensor([2], dtype=torch.int32)},
        r"Long but found Int",
    ),
    "lengths": ({"lengths": torch.tensor([3, 4])}, r"lengths between 0 and 3, got 4 for row 1"),
    "lengths dtype": ({"lengths": torch.tensor([3.0, 1.0])}, r"lengths of dtype Long"),
    "reset": (
        {"reset": torch.zeros(2, 3, dtype=torch.bool)},
        r"reset of dtype Bool and shape \[3, 2\]",
    ),
    "mask": ({"dropout_mask": torch.ones(1, 3, 2, 5)}, r"dropout_mask of shape \[0, 3, 2, 5\]"),
    "sparse": ({"input": torch.randn(3, 2, 4).to_sparse()}, r"strided|Sparse"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises((RuntimeError, ValueError, IndexError), match=message):
        OPS.rnn(*replaced(**changes))


def test_bad_saved() -> None:
    args = arguments()
    output, hn, saved = OPS.rnn_forward(*args, True)
    with pytest.raises(RuntimeError, match=r"expected saved of shape \[1, 6, 5\], got \[1, 5, 5\]"):
        OPS.rnn_backward(output, hn, saved[:, :5], *args, True, True, True)
    with pytest.raises(
        RuntimeError, match=r"expected grad_output of shape \[3, 2, 5\], got \[2, 2, 5\]"
    ):
        OPS.rnn_backward(output[:2], hn, saved, *args, True, True, True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # of torch's own
@pytest.mark.parametrize("requires_grad", [False, True], ids=["inference", "training"])
def test_no_tangent_is_lost(requires_grad: bool) -> None:
    args = arguments(requires_grad=requires_grad)
    with forward_ad.dual_level():
        args[0] = forward_ad.make_dual(args[0], torch.ones_like(args[0]))
        with pytest.raises(NotImplementedError, match=r"fastrnn\.functional\.rnn"):
            OPS.rnn(*args)
