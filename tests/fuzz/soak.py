"""Calls of every kind from several threads, for minutes: results stay right, memory stays flat.

`python tests/fuzz/soak.py --minutes 10`, or `make soak MINUTES=10`. The main thread computes every
call once, on one thread of the kernels. Then rounds of Python threads repeat them at random, on
modules that they share and on copies of their own, with other numbers of kernel threads, and
compare bit for bit. After each round its threads are gone, and memory, threads and open files are
counted.
Prints a line a minute; exits with status 1 at a difference, at growth, or where a thread hangs.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import faulthandler
import gc
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

WORKERS = 4
KERNEL_THREADS = (1, 2, 3)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ROUND = 10.0  # seconds
WARM_UP = 60.0  # seconds, or a third of a shorter run, in which caches fill
PATIENCE = 120.0  # seconds after the end of a round in which its threads must end


@dataclass(frozen=True)
class Call:
    """A call's arguments and its module, which threads share; the ways to run it are below."""

    module: nn.Module
    way: str
    input: Tensor
    hx: Tensor | None
    marks: dict[str, Tensor]
    grads: tuple[Tensor, Tensor] | None  # of output and hn; None: inference
    twice: bool = False  # whether to derive the input's gradient again, by torch's operators

    def results(self, module: nn.Module) -> list[Tensor]:
        """Output, state and gradients, in new tensors."""
        if self.grads is None:
            with torch.no_grad():
                return list(WAYS[self.way](self, module, self.input, self.hx))
        x = self.input.detach().requires_grad_()
        hx = self.hx if self.hx is None else self.hx.detach().requires_grad_()
        results = WAYS[self.way](self, module, x, hx)
        given = [t for t in (x, hx) if t is not None]
        grads = self.grads[: len(results)]
        if self.twice:
            first = torch.autograd.grad(results, x, grads, create_graph=True)
            wanted = [*given, *module.parameters()]
            second = torch.autograd.grad(first[0].square().sum(), wanted, allow_unused=True)
            return [*results, *first, *(g for g in second if g is not None)]
        if module is self.module:  # shared: no thread may add to its .grad
            wanted = [*given, *module.parameters()]
            return [*results, *torch.autograd.grad(results, wanted, grads)]
        module.zero_grad()
        torch.autograd.backward(results, grads)
        return [*results, *(t.grad for t in (*given, *module.parameters()) if t.grad is not None)]


Way = Callable[[Call, Any, Tensor, Tensor | None], Any]  # to output and hn


def options(module: Any) -> dict[str, Any]:
    names = ("bias", "num_layers", "nonlinearity", "bidirectional", "batch_first")
    return {name: getattr(module, name) for name in names}


def by_module(call: Call, module: Any, x: Tensor, hx: Tensor | None) -> Any:
    return module(x, hx, **call.marks)


def by_function(call: Call, module: Any, x: Tensor, hx: Tensor | None) -> Any:
    given: dict[str, Any] = options(module) | call.marks
    return fastrnn.functional.rnn(x, hx, [*module.parameters()], **given)


def by_operator(call: Call, module: Any, x: Tensor, hx: Tensor | None) -> Any:
    given = options(module)
    given["has_biases"] = given.pop("bias")
    marks = {name: call.marks.get(name) for name in ("lengths", "reset", "dropout_mask")}
    return torch.ops.fastrnn.rnn(x, hx, [*module.parameters()], None, **marks, **given)


def by_packed(call: Call, module: Any, x: Tensor, hx: Tensor | None) -> Any:
    lengths, first = call.marks["lengths"].clamp(min=1), module.batch_first
    packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=False)
    output, hn = module(packed, hx)
    return output.data, hn


def by_steps(call: Call, module: Any, x: Tensor, hx: Tensor | None) -> Any:
    outputs = []
    for step in x.unbind(1 if module.batch_first else 0)[:4]:
        output, hx = module.step(step, hx)
        outputs.append(output)
    assert hx is not None
    return torch.stack(outputs), hx


def by_cell(call: Call, module: Any, x: Tensor, hx: Tensor | None) -> Any:
    return (module(x, hx),)


WAYS: dict[str, Way] = {
    "module": by_module,
    "function": by_function,
    "operator": by_operator,
    "packed": by_packed,
    "steps": by_steps,
    "cell": by_cell,
}


def draw_call(random: Random) -> Call:
    """A call of any way; torch's generator gives the numbers."""
    way, dtype = random.choice([*WAYS]), random.choice(DTYPES)
    trains, given = random.random() < 0.5, random.random() < 0.6
    twice = trains and dtype == torch.float64 and random.random() < 0.5
    # A few rows of many units, whose columns the threads share, or more rows of fewer units.
    batch, hidden = random.choice(
        [(1, 560), (2, 380), (3, 64), (7, 33), (24, 96), (110, 20), (1, 24), (40, 7)]
    )
    features, steps = random.choice([1, 3, 30, 67]), random.choice([1, 2, 5, 19])
    if way == "cell":
        cell = fastrnn.RNNCell(features, hidden, dtype=dtype)
        hx = torch.randn(batch, hidden, dtype=dtype) if given else None
        grad = torch.randn(batch, hidden, dtype=dtype)
        x = torch.randn(batch, features, dtype=dtype)
        return Call(cell, way, x, hx, {}, (grad, grad) if trains else None, twice)
    layers, directions = random.randint(1, 3), 1 if way == "steps" else random.randint(1, 2)
    first = random.random() < 0.5
    module = fastrnn.RNN(
        features,
        hidden,
        layers,
        nonlinearity=random.choice(["tanh", "relu"]),
        bias=random.random() < 0.8,
        batch_first=first,
        bidirectional=directions == 2,
        dtype=dtype,
    )
    sizes = (batch, steps) if first else (steps, batch)
    marks = {}
    if way == "packed" or (way != "steps" and random.random() < 0.3):
        marks["lengths"] = torch.randint(0, steps + 1, (batch,))
    if way not in ("packed", "steps") and random.random() < 0.3:
        marks["reset"] = torch.rand(sizes) < 0.3
    if way == "operator" and layers > 1:
        mask = torch.rand(layers - 1, steps, batch, directions * hidden) < 0.7
        marks["dropout_mask"] = mask.to(dtype)
    call = Call(
        module,
        way,
        torch.randn(*sizes, features, dtype=dtype),
        torch.randn(layers * directions, batch, hidden, dtype=dtype) if given else None,
        marks,
        None,
    )
    if not trains:
        return call
    output, hn = (torch.randn_like(t) for t in call.results(module))
    return Call(module, way, call.input, call.hx, marks, (output, hn), twice)


def wrong_calls() -> list[tuple[type[Exception], Callable[[], object]]]:
    """Calls that must raise, and leave nothing behind."""
    rnn, cell = fastrnn.RNN(3, 4, 2), fastrnn.RNNCell(3, 4)
    x, weights = torch.randn(5, 2, 3), [*rnn.parameters()]
    freed = torch.randn(2, 2, 4)
    freed.untyped_storage().resize_(0)
    return [
        (RuntimeError, lambda: rnn(torch.randn(5, 2, 7))),
        (RuntimeError, lambda: rnn(x, torch.randn(2, 3, 4))),
        (RuntimeError, lambda: rnn(x, freed)),
        (ValueError, lambda: rnn(x, lengths=torch.tensor([9, 1]))),
        (ValueError, lambda: rnn(x.double())),
        (RuntimeError, lambda: rnn.step(x[0, :, :2])),
        (RuntimeError, lambda: cell(x[0], torch.randn(3, 4))),
        (RuntimeError, lambda: fastrnn.functional.rnn(x, None, weights[:5], num_layers=2)),
        (RuntimeError, lambda: rnn(torch.zeros(1).expand(2**40, 2**20, 3))),
    ]


def like(module: nn.Module) -> nn.Module:
    """A new module with other weights."""
    if isinstance(module, fastrnn.RNNCell):
        sizes = module.input_size, module.hidden_size
        return fastrnn.RNNCell(*sizes, dtype=module.weight_ih.dtype)
    assert isinstance(module, fastrnn.RNN)
    dtype = module.weight_ih_l0.dtype
    return fastrnn.RNN(module.input_size, module.hidden_size, **options(module), dtype=dtype)


def loaded(module: nn.Module) -> nn.Module:
    new = like(module)
    new.load_state_dict(module.state_dict())
    return new


HOLDERS: list[Callable[[nn.Module], nn.Module]] = [
    lambda module: module,  # shared
    lambda module: module,
    loaded,
    copy.deepcopy,
    lambda module: pickle.loads(pickle.dumps(module)),
]


class Work:
    """The calls with their results, and what the threads found."""

    def __init__(self, seed: int, count: int = 120) -> None:
        random = Random(seed)
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        self.calls = [draw_call(random) for _ in range(count)]
        self.expected = [[y.detach() for y in c.results(c.module)] for c in self.calls]
        self.wrong = wrong_calls()
        self.faults: list[str] = []
        self.counts = [0] * WORKERS

    def try_one(self, random: Random) -> None:
        torch.set_num_threads(random.choice(KERNEL_THREADS))
        if random.random() < 0.05:
            error, wrong = random.choice(self.wrong)
            try:
                wrong()
            except error:
                return
            raise AssertionError(f"expected {error.__name__}")
        index = random.randrange(len(self.calls))
        call = self.calls[index]
        results = call.results(random.choice(HOLDERS)(call.module))
        for i, (ours, right) in enumerate(zip(results, self.expected[index], strict=True)):
            near = call.twice and torch.allclose(ours, right, rtol=1e-9, atol=1e-9)
            if not near and not torch.equal(ours, right):
                threads = torch.get_num_threads()
                facts = f"{call.way} {tuple(call.input.shape)} {call.input.dtype} {call.module}"
                raise AssertionError(f"call {index}, {facts}, {threads} threads: result {i}")

    def work(self, worker: int, seed: int, until: float) -> None:
        random = Random(seed)
        while time.monotonic() < until and not self.faults:
            try:
                self.try_one(random)
            except Exception as e:
                self.faults.append(f"{type(e).__name__}: {e}")
            self.counts[worker] += 1

    def round(self, seed: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(target=self.work, args=(i, seed * WORKERS + i, until), daemon=True)
            for i in range(WORKERS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()) + PATIENCE)
            if thread.is_alive():
                faulthandler.dump_traceback()
                self.faults.append("a thread hangs")
                return


LIBC = ctypes.CDLL(None)
M_ARENA_MAX = -8  # in malloc.h


@dataclass(frozen=True)
class Held:
    """What the process holds when nothing runs."""

    bytes: int
    threads: int
    files: int

    @classmethod
    def now(cls) -> Held:
        gc.collect()
        LIBC.malloc_trim(0)  # what is free goes back to the system
        with open("/proc/self/statm") as f:
            resident = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return cls(resident, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")))


def growth(warm: Held, now: Held, most: float) -> list[str]:
    found = []
    grown = (now.bytes - warm.bytes) / 2**20
    if grown > most:
        found.append(f"memory grew by {grown:.1f} MiB")
    if now.threads > warm.threads:
        found.append(f"threads: {warm.threads}, then {now.threads}")
    if now.files > warm.files:
        found.append(f"open files: {warm.files}, then {now.files}")
    return found


def soak(seconds: float, seed: int, most_growth: float) -> int:
    # With an arena for each thread, what is resident would vary by tens of megabytes.
    LIBC.mallopt(M_ARENA_MAX, 1)
    work = Work(seed)
    length, warm_up = min(ROUND, seconds / 6), min(WARM_UP, seconds / 3)
    start = time.monotonic()
    number, minutes, passed = 0, 1, 0.0
    warm: Held | None = None
    while passed < seconds and not work.faults:
        work.round(seed * 1_000_003 + number, min(length, seconds - passed))
        number += 1
        held, passed = Held.now(), time.monotonic() - start
        if warm is None and passed >= warm_up:
            warm = held
        if passed >= 60 * minutes or passed >= seconds:
            minutes += 1
            print(
                f"{passed / 60:4.1f} min {sum(work.counts):9,} calls {held.bytes / 2**20:8.1f} MiB "
                f"{held.threads} threads {held.files} files",
                flush=True,
            )
    faults = work.faults or growth(warm or held, held, most_growth)
    for fault in faults:
        print(f"seed {seed}: {fault}", flush=True)
    return 1 if faults else 0


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--growth", type=float, default=4.0, metavar="MIB", help="after a minute, at most"
    )
    given = parser.parse_args(arguments)
    return soak(60 * given.minutes, given.seed, given.growth)


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(status)  # a thread that hangs would keep the process
