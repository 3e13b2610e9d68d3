"""rnn_extended by the CUDA half on the CPU, against the reference: see test_on_cpu.py."""

from __future__ import annotations

from typing import Any

import emulation
import pytest
import torch
from cases import Case, assert_as_accurate
from kernels.test_extended import ROWS, ExtendedProblem, Row
from rows import DTYPES
from torch import Tensor

from fastrnn import reference

FORMS = ("rate", "current")
MARKED = [
    Case(6, 3, 5, 7, reset=True, nonlinearity="relu"),
    Case(6, 5, 3, 20, lengths=True, bidirectional=True, hx=False, nonlinearity="relu"),
    Case(7, 4, 3, 9, packed=True, bidirectional=True, num_layers=3, dropout=True, hx=False),
    Case(7, 4, 3, 9, bidirectional=True, num_layers=2, dropout=True, batch_first=True, bias=False),
]
LEAKY = [
    *(row for row in ROWS if row.alpha != "plain"),
    *(Row(c, form, "tensor", "all", True) for c in MARKED for form in FORMS),
]
# Without a leak, the kernels of plain calls serve.
PLAIN = [
    *(row for row in ROWS if row.alpha == "plain" and row.case.hidden_size <= 65),
    *(Row(c, "rate", "plain", "all", True) for c in MARKED),
]


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


def extras_of(problem: ExtendedProblem, dtype: torch.dtype) -> tuple[Any, ...]:
    row = problem.row
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    alpha = problem.alpha.to(exact) if row.alpha == "tensor" else None
    return problem.gates, alpha, 0.3 if row.alpha == "value" else 1.0, row.form, row.layers


def ours(cuda: Any, kernel: str, problem: ExtendedProblem, dtype: torch.dtype) -> dict[str, Tensor]:
    row, extras = problem.row, extras_of(problem, dtype)
    hx = problem.hx if row.case.hx else None
    arguments = tuple(problem.arguments(problem.x, hx, problem.weights))
    output, hn, layers, saved = cuda.forward_extended_and_save(kernel, False, arguments, extras)
    alone = cuda.forward_extended(kernel, False, arguments, extras)
    torch.testing.assert_close(alone, (output, hn, layers))
    grad_layers = problem.grad_layers if row.layers else None
    wanted = {"input": True, "hx": hx is not None, "gates": bool(row.gates)}
    wanted["alpha"] = row.alpha == "tensor"
    grad_input, grad_hx, grad_weights, grad_gates, grad_alpha = cuda.backward_extended(
        kernel,
        False,
        [problem.grad_output, problem.grad_hn, grad_layers],
        saved,
        arguments,
        extras,
        [wanted["input"], wanted["hx"], True, wanted["gates"], wanted["alpha"]],
    )
    grads = {"input": grad_input, "hx": grad_hx, "gates": grad_gates, "alpha": grad_alpha.to(dtype)}
    assert all(grad.numel() == 0 for name, grad in grads.items() if not wanted[name])
    grads = {name: grad for name, grad in grads.items() if wanted[name]}
    grads |= dict(zip(problem.weights, grad_weights, strict=True))
    found = {"output": output, "hn": hn} | ({"layers": layers} if row.layers else {})
    return found | {f"{name}'s gradient": grad for name, grad in grads.items()}


def check(cuda: Any, kernel: str, row: Row, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # Currents of either sign pass zero slowly, and there relu's slope would hang on a rounding.
    at_the_kink = row.form == "current" and row.case.nonlinearity == "relu" and dtype.itemsize == 2
    problem = ExtendedProblem(row, dtype, alpha=0.9 if at_the_kink else None)
    theirs = problem.results_of(reference.rnn_extended, dtype)
    truth = problem.results_of(reference.rnn_extended, torch.float64)
    assert_as_accurate(ours(cuda, kernel, problem, dtype), theirs, truth)


@pytest.mark.parametrize("row", LEAKY, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leaks(cuda: Any, row: Row, dtype: torch.dtype) -> None:
    check(cuda, "", row, dtype)


@pytest.mark.parametrize("row", PLAIN, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_leaks(cuda: Any, row: Row, dtype: torch.dtype) -> None:
    for kernel in ("", "step+"):
        check(cuda, kernel, row, dtype)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_small_leak_in_16_bits(cuda: Any, form: str, dtype: torch.dtype) -> None:
    """Each step adds less than a rounding of the state, which is kept in float32."""
    torch.manual_seed(0)
    row = Row(Case(400, 2, 3, 8), form, "tensor")
    problem = ExtendedProblem(row, dtype, alpha=0.002)
    truth = problem.results_of(reference.rnn_extended, torch.float64)
    theirs = problem.results_of(reference.rnn_extended, torch.float32)
    assert_as_accurate(ours(cuda, "", problem, dtype), theirs, truth)


@pytest.mark.parametrize("form", FORMS)
def test_packed_data_with_more_rows(cuda: Any, form: str) -> None:
    """The rows behind the last step count for nothing, and their gradients are zero."""
    case = Case(5, 3, 4, 9, packed=True, num_layers=2, bidirectional=True, dropout=True)
    torch.manual_seed(0)
    problem = ExtendedProblem(Row(case, form, "tensor", "all", True), torch.float32)
    expected = ours(cuda, "", problem, torch.float32)
    for name in ("x", "gates", "dropout_mask"):
        x = getattr(problem, name)
        more = x.new_full((*x.shape[:-2], 2, x.shape[-1]), 7)
        setattr(problem, name, torch.cat([x, more], -2))
    found = ours(cuda, "", problem, torch.float32)
    for name in ("input's gradient", "gates's gradient"):
        assert (found[name][..., -2:, :] == 0).all()
        found[name] = found[name][..., :-2, :]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_that_are_not_wanted(cuda: Any, form: str) -> None:
    """Each gradient alone is what it is among all."""
    torch.manual_seed(0)
    row = Row(Case(5, 3, 4, 9, num_layers=2, bidirectional=True), form, "tensor", "first", True)
    problem = ExtendedProblem(row, torch.float32)
    arguments = tuple(problem.arguments(problem.x, problem.hx, problem.weights))
    extras = extras_of(problem, torch.float32)
    *_, saved = cuda.forward_extended_and_save("", False, arguments, extras)
    for grads in ([problem.grad_output, None, None], [None, problem.grad_hn, problem.grad_layers]):

        def run(wanted: list[bool], grads: list[Tensor | None] = grads) -> Any:
            return cuda.backward_extended("", False, grads, saved, arguments, extras, wanted)

        everything = run([True] * 5)
        for i in range(5):
            found = run([n == i for n in range(5)])
            torch.testing.assert_close(found[i], everything[i])


@pytest.mark.parametrize("kernel", ["", "vector", "torch"])
@pytest.mark.parametrize("save", [False, True])
def test_a_leaky_step_takes_no_more_launches(cuda: Any, save: bool, kernel: str) -> None:
    """Nor does it go elsewhere, whatever kernel is forced."""
    case = Case(9, 8, 28, 64, bidirectional=True)
    problem = ExtendedProblem(Row(case, "current", "tensor"), torch.float32)
    arguments = tuple(problem.arguments(problem.x, problem.hx, problem.weights))
    cuda.launches()
    cuda.forward("step", False, arguments, save)
    plain = cuda.launches()
    run = cuda.forward_extended_and_save if save else cuda.forward_extended
    run(kernel, False, arguments, extras_of(problem, torch.float32))
    assert cuda.launches() == plain


@pytest.mark.parametrize("form", FORMS)
def test_no_rows(cuda: Any, form: str) -> None:
    torch.manual_seed(0)
    row = Row(Case(5, 0, 4, 9, num_layers=2), form, "tensor", "first", True)
    x, hx = torch.empty(5, 0, 4), torch.empty(2, 0, 9)
    weights = [*row.case.module(torch.nn.RNN, torch.float32).state_dict().values()]
    arguments = (x, hx, weights, None, None, None, None, True, 2, "tanh", False, False)
    extras = (torch.empty(1, 5, 0, 9), torch.full((2, 9), 0.5), 1.0, form, True)
    *results, saved = cuda.forward_extended_and_save("", False, arguments, extras)
    assert [[*x.shape] for x in results] == [[5, 0, 9], [2, 0, 9], [2, 5, 0, 9]]
    grads = cuda.backward_extended("", False, results, saved, arguments, extras, [True] * 5)
    assert [grad.shape for grad in grads[2]] == [w.shape for w in weights]
    assert all((grad == 0).all() for grad in (*grads[2], grads[4]))
    assert grads[3].shape == extras[0].shape
