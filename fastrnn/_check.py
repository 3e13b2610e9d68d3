"""``python -m fastrnn check``: are the kernels right on this machine, and how fast are they."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _C, _info, _path, reference
from fastrnn.functional import rnn
from fastrnn.rnn import RNN

STEPS = 64  # of the calls that are timed
SIZES = [(1, 32), (1, 256), (8, 64), (64, 128), (16, 512)]  # B, H
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# The error that is allowed even where plain torch happens to be exact.
FLOOR = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}
ROWS = ("whole", "packed", "lengths", "marks")


@dataclass
class Found:
    """A row of the table. Errors are relative to the largest true value, or to 1 if it is less."""

    kernel: str
    dtype: torch.dtype
    error: float
    allowed: float
    fault: str  # empty: none
    batch: int
    hidden_size: int


def run(device: str) -> int:
    """Check every kernel that a device has; return the status to exit with.

    Args:
        device: ``cpu`` or ``cuda``.

    Returns:
        1 if something is wrong, else 0.
    """
    why = _why_no_check() if device == "cuda" else ""
    if why:
        print(f"check: {why}. For the CPU: python -m fastrnn check --device cpu", file=sys.stderr)
        return 1
    print(f"{'kernel':<24} {'dtype':<9} {'error':>8} {'allowed':>8} {'us/step':>8} {'nn.RNN':>8}")
    faults, count = [], 0
    on_cuda = (
        _cuda_kernels(_C.cuda_check(torch.empty(0, device="cuda"))) if device == "cuda" else ()
    )
    stopped = False  # by a kernel: nothing that follows can be measured
    for found in itertools.chain(on_cuda, _calls(device)):
        count += 1
        line = (
            f"{found.kernel:<24} {_short(found.dtype):<9} {found.error:8.1e} {found.allowed:8.1e}"
        )
        print(line, end=" ", flush=True)
        if found.fault:
            faults.append(f"{found.kernel} {_short(found.dtype)}: {found.fault}")
            print(f"WRONG: {found.fault}")
            continue
        try:
            ours, theirs = (0.0, 0.0) if stopped else _microseconds(found, device)
        except RuntimeError as e:
            stopped = True
            faults.append(f"{found.kernel} {_short(found.dtype)}: {str(e).splitlines()[0]}")
            print(f"WRONG: {e}")
            continue
        print(f"{ours:8.2f} {theirs:8.2f}")
    facts = _info.info()
    where = f"{facts['processor']} {facts['cpu_kernels']}, {facts['threads']} threads"
    if device == "cuda":
        major, minor = torch.cuda.get_device_capability()
        where = (
            f"{torch.cuda.get_device_name()} sm_{major}{minor}, CUDA {torch.version.cuda}, "
            f"kernels {_C.cuda_kernels_hash()} for {facts['cuda_kernels']}"
        )
    verdict = f"{len(faults)} wrong: {'; '.join(faults)}" if faults else "all right"
    print(
        f"\nfastrnn {facts['fastrnn']}, torch {facts['torch']}, {where}: {count} cases, {verdict}"
    )
    return 1 if faults else 0


def _why_no_check() -> str:
    if not torch.cuda.is_available():
        return f"expected a CUDA device, but torch {torch.__version__} finds none"
    if not _path.WITH_CUDA:
        return "expected CUDA kernels, but this build has none (FASTRNN_CUDA=1 builds them)"
    why: str = _C.cuda_why_no_kernels(torch.cuda.current_device())
    return f"expected CUDA kernels that run here, but {why}" if why else ""


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- CUDA: csrc/cuda/check.h


def _cuda_kernels(
    checked: Iterable[tuple[str, torch.dtype, str, float, float, str]],
) -> Iterator[Found]:
    kernels: dict[tuple[str, torch.dtype], list[tuple[str, float, float, str]]] = {}
    for name, dtype, rows, error, allowed, fault in checked:
        kernels.setdefault((name, dtype), []).append((rows, error, allowed, fault))
    for (name, dtype), results in kernels.items():
        faults = [f"{rows}: {fault}" for rows, _, _, fault in results if fault]
        units, batch = map(int, name.split(":")[1].split("x")[:2]) if ":" in name else (64, 32)
        error, allowed = max(r[1] for r in results), results[0][2]
        yield Found(name, dtype, error, allowed, "; ".join(faults), batch, units)


# --- Whole calls, against the reference in double


def _calls(device: str) -> Iterator[Found]:
    kernels = _C.cpu_kernels() if device == "cpu" else "call"
    for (batch, hidden_size), dtype in itertools.product(SIZES, DTYPES):
        worst, allowed, faults = 0.0, 0.0, []
        try:
            for rows in ROWS:
                error, bound, where = _compare(batch, hidden_size, dtype, rows, device)
                worst, allowed = max(worst, error), max(allowed, bound)
                if not error <= bound:
                    faults.append(f"{rows}: {where} is off by {error:.2g}, allowed: {bound:.2g}")
        except RuntimeError as e:  # the device may be stopped
            faults.append(str(e).splitlines()[0])
        name = f"{kernels}:B{batch}-H{hidden_size}"
        yield Found(name, dtype, worst, allowed, "; ".join(faults), batch, hidden_size)


def _compare(
    batch: int, hidden_size: int, dtype: torch.dtype, rows: str, device: str
) -> tuple[float, float, str]:
    """Return the worst error, the error allowed there, and which result it is in."""
    generator = torch.Generator().manual_seed(0)
    steps, features = 7, 2 * hidden_size

    def numbers(*sizes: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*sizes, generator=generator) * scale).to(dtype)

    deviation = hidden_size**-0.5
    input, hx = numbers(steps, batch, 5), numbers(2, batch, hidden_size)
    weights = [numbers(hidden_size, n, scale=deviation) if n else numbers(hidden_size, scale=0.3)
               for _ in range(2) for n in (5, hidden_size, 0, 0)]  # fmt: skip
    grad_output = numbers(steps, batch, features)
    lengths = torch.arange(batch) * 4 % (steps + 1)
    lengths[0] = steps
    options: dict[str, Tensor] = {}
    if rows == "packed":
        lengths = lengths.clamp(min=1).sort(descending=True).values
        there = torch.arange(steps)[:, None] < lengths
        input, grad_output = input[there], grad_output[there]
        options["batch_sizes"] = there.sum(1)
    elif rows != "whole":
        options["lengths"] = lengths
    if rows == "marks":
        options["reset"] = torch.rand(steps, batch, generator=generator) < 0.3

    def results(call: Callable[..., Any], to: torch.dtype, where: str = "cpu") -> list[Tensor]:
        leaves = [x.to(where, to).requires_grad_() for x in (input, hx, *weights)]
        marks = {k: x if k == "batch_sizes" else x.to(where) for k, x in options.items()}
        output, hn = call(leaves[0], leaves[1], leaves[2:], bidirectional=True, **marks)
        given = [x.to(where, to) for x in (grad_output, hx)]
        grads = torch.autograd.grad((output, hn), leaves, given)
        return [x.detach().cpu().double() for x in (output, hn, *grads)]

    def kernels(x: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes = options.pop("batch_sizes", None)
        whole: Any = x if sizes is None else PackedSequence(x, sizes)
        output, hn = rnn(whole, *arguments, **options)
        return (output if sizes is None else output.data), hn

    truth = results(reference.rnn, torch.float64)
    theirs = results(reference.rnn, dtype)
    switch: Any = torch.backends.cudnn.rnn
    before = switch.fp32_precision
    switch.fp32_precision = "ieee"  # the reference rounds nothing to TF32
    try:
        ours = results(kernels, dtype, device)
    finally:
        switch.fp32_precision = before
    names = ["output", "hn", "grad_input", "grad_hx", *(f"grad_weights[{i}]" for i in range(8))]
    found = []
    for name, right, plain, own in zip(names, truth, theirs, ours, strict=True):
        scale = max(1.0, float(right.abs().max()))
        bound = 2 * float((plain - right).abs().max()) / scale + FLOOR[dtype]
        error = float((own - right).abs().max()) / scale
        found.append((error, bound, name))
    return max(found, key=lambda x: (not x[0] <= x[1], x[0]))


# --- Time


def _microseconds(found: Found, device: str) -> tuple[float, float]:
    """Return the microseconds of a step of a forward pass, ours and nn.RNN's."""
    size = found.hidden_size
    input = torch.randn(STEPS, found.batch, size, device=device).to(found.dtype)
    ours = RNN(size, size, device=device, dtype=found.dtype)
    theirs = torch.nn.RNN(size, size, device=device, dtype=found.dtype)
    forces = device == "cuda" and not found.kernel.startswith("call:")
    before = _C.set_cuda_kernel(found.kernel) if forces else ""
    try:
        with torch.inference_mode():
            return _time(lambda: ours(input), device), _time(lambda: theirs(input), device)
    finally:
        if forces:
            _C.set_cuda_kernel(before)


def _time(call: Callable[[], object], device: str) -> float:
    times: list[float] = []
    while len(times) < 2 or (len(times) < 6 and sum(times) < 0.3):
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 1e6 * min(times[1:]) / STEPS  # the first warms up
