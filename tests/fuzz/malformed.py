"""Malformed arguments: each call ends in a result that is right or an error that users expect.

    python tests/fuzz/malformed.py --count 20000 --seed 0
    python tests/fuzz/malformed.py --seed 0 --only 1234

Call number 1234 of seed 0 is always the same: a valid call of one entry, with one or two arguments
damaged. What comes of it is compared with ``torch.nn.RNN`` where that has the call, the type of an
error too, else with the reference in float64. The calls run in child processes that say which is
next, so that a crash or a hang has a name.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.append(str(Path(__file__).parents[1]))  # started as a program

from both import THEIRS, Raised, assert_same
from malformed_calls import Call, build, flat, half
from malformed_extended import ENTRIES
from malformed_values import Wrapped, damaged
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from fastrnn import RNN

EXPECTED = (TypeError, ValueError, RuntimeError, IndexError)
SECONDS = 20  # that a call may take
MEMORY = 4 << 30  # that a process may take more than when it starts


def malformed(seed: int, index: int) -> Call:
    """The call of this number, with its damage."""
    rng = random.Random(f"{seed} {index}")
    entry = rng.choices(ENTRIES, [entry.share for entry in ENTRIES])[0]
    call = build(entry, rng)
    for _ in range(rng.choice([1, 1, 1, 2])):
        if entry.name == "autograd":  # of the others it is known what they do
            name = rng.choice(["grad_output", "grad_hn", "unpacked", "freed"])
            if name in ("unpacked", "freed"):
                if call.damage:  # torch itself crashes when it converts what was freed
                    continue
                call.damage[name] = f"{call.given[name]} {call.given['which']}"
                continue
        else:
            name = rng.choice([*call.given])
        if any(word.split("[")[0] == name for word in call.damage):
            continue  # once is enough
        value = call.given[name]
        if isinstance(value, list) and value and (entry.theirs or rng.random() < 0.7):
            i = rng.randrange(len(value))
            word, value[i] = damaged(value[i], rng)
            call.damage[f"{name}[{i}]"] = word
        else:
            word, call.given[name] = damaged(value, rng)
            if (
                entry.name in ("RNN()", "LeakyRNN()")
                and name == "num_layers"
                and type(call.given[name]) is int
            ):
                call.given[name] = min(call.given[name], 3)  # it would make them all
            call.damage[name] = word
    return call


# What comes of a call.


def attempt(call: Call, run: Callable[[], Any]) -> Any:
    """The results and the gradients of all leaves, or what is raised."""
    torch.manual_seed(0)
    try:
        with torch.autocast("cpu", torch.bfloat16) if call.autocast else nullcontext():
            result = run()
        outputs = [y for y in flat(result, inner=False) if getattr(y, "requires_grad", False)]
        leaves = [x for x in call.leaves if x.requires_grad]
        if call.entry.name in NO_GRADIENT or not outputs or not leaves:
            return result, ()
        grads = [torch.full_like(y, 0.5) for y in outputs]
        return result, torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    except Exception as e:
        return Raised(type(e), str(e))


def without_values(x: Any) -> bool:
    return any(isinstance(y, FakeTensor) or y.device.type == "meta" for y in flat(x)
               if isinstance(y, Tensor))  # fmt: skip


def assert_close(ours: Any, truth: Any, rounding: float) -> None:
    ours, truth = list(flat(ours)), list(flat(truth))
    assert len(ours) == len(truth), f"{len(ours)} tensors, expected {len(truth)}"
    for y, expected in zip(ours, truth, strict=True):
        assert y.shape == expected.shape, f"shape {tuple(y.shape)}, expected {expected.shape}"
        y, expected = y.detach(), expected.detach().to(y.dtype)
        known = expected[expected.isfinite()].abs()
        scale = max(1.0, known.max().item() if known.numel() else 0.0)
        torch.testing.assert_close(
            y, expected, rtol=rounding, atol=rounding * scale, equal_nan=True
        )


def examine(seed: int, index: int) -> tuple[str, str]:
    """The kind of what comes of a call, which begins with FAULT if it is wrong, and the facts."""
    note("arguments")
    call = malformed(seed, index)
    entry, facts = call.entry, str(call)
    note("fastrnn")
    ours = attempt(call, lambda: entry.run(call, entry.theirs or entry.cls))
    if isinstance(ours, Raised):
        facts = f"{facts}\n  ours raises {ours.type.__name__}: {ours.text:.300}"
    if entry.theirs is not None and not call.marked and comparable(call):
        other = malformed(seed, index)
        note("torch")
        theirs = attempt(other, lambda: entry.run(other, THEIRS[entry.theirs]))
        if isinstance(theirs, Raised):
            facts = f"{facts}\n  torch raises {theirs.type.__name__}: {theirs.text:.300}"
        if not isinstance(theirs, Raised) or "INTERNAL ASSERT" not in theirs.text:
            kind, *words = judge(call, ours, theirs).split("\n")
            if deliberate(call, kind.removeprefix("FAULT: ")):
                kind = "deliberate: " + kind.removeprefix("FAULT: ")
            return kind, "\n    ".join([facts, *words])
    if isinstance(ours, Raised):
        harmless = entry.truth is not None and HARMLESS.issuperset(call.damage.values())
        if harmless and not isinstance(attempt(call, lambda: entry.truth(call)), Raised):
            return f"FAULT: raises {ours.type.__name__}, and the reference returns", facts
        return judge_error(call, ours), facts
    if entry.truth is None or ours[0] is None:
        return "returns, where there is nothing to compare" if ours[
            0
        ] is not None else "nothing", facts
    if without_values(ours):
        return "returns a shape", facts
    other = malformed(seed, index)
    note("reference")
    truth = attempt(other, lambda: entry.truth(other))
    if isinstance(truth, Raised):
        facts = f"{facts}\n  the reference raises {truth.type.__name__}: {truth.text:.300}"
        if (
            truth.type is AssertionError
            or "allocate memory" in truth.text
            or "Inference tensors" in truth.text
            or "escaped from inside a function" in truth.text
        ):
            return "returns, where there is nothing to compare", facts
        return "FAULT: returns, and the reference raises", facts
    rounded = half(call, ours)
    try:
        assert_close(ours[0], truth[0], 0.05 if rounded else 1e-4)
        if not rounded:  # of relu they hang on rounding
            assert_close(ours[1], truth[1], 1e-3)
    except (AssertionError, RuntimeError) as e:
        return "FAULT: differs from the reference", f"{facts}\n  {e}"
    return "returns what the reference does", facts


def comparable(call: Call) -> bool:
    """Torch itself may read what is not there."""
    if call.entry.name == "autograd" and {"unpacked", "freed"} & {*call.damage}:
        return False  # what is saved is each library's own
    return not any(word.split()[0] in ("cut", "beyond", "leaked") for word in call.damage.values())


HARMLESS = {"spread", "expanded", "subclass", "parameter"}  # other tensors of the same shape
WEIGHT = r"weights.*|[wb]_[ih]h"
DELIBERATE = {  # entry, argument, damage, what comes of it: why
    ("RNN", "batch_sizes", ".*", r"raises \w+, and torch \w+(Error|Exception)"):
        "torch's error is that of the line which meets them first, often zeros()",
    ("RNN", "data|weights.*", ".*", r"raises (Type|Attribute)Error, and torch \w+Error"):
        "no tensor: the same",
    (r"RNN|RNN\(\)", "num_layers|bidirectional", ".*", r"raises \w+, and torch \w+Error"):
        "the same: torch checks neither",
    (r"RNN|RNN\(\)", "num_layers|bidirectional", "(?!np.int64)",
     r"raises \w+, and torch returns"): "the same, where it is no integer, or no bool",
    ("RNN|RNNCell", "input|hx", "<class", "raises AttributeError, and torch TypeError"):
        "the same: a class",
    ("RNN", "batch_first|bias|training", ".*", r"raises TypeError, and torch \w+"):
        "no bool: torch does not look at it, or takes NumPy's",
    ("RNN|RNNCell", "dropout|hidden_size", "10{10}|9223372036854775808",
     ".*OverflowError|.*torch TypeError"):
        "torch's words for an integer beyond 64 bits",
    ("RNN|RNNCell", f"input|hx|{WEIGHT}", r".* dimensions|one number|resized|tensor",
     r"raises RuntimeError, and torch \w+"): "torch broadcasts some of them",
    ("RNN|RNNCell", f"input|data|hx|{WEIGHT}", "meta", "raises RuntimeError, and torch returns"):
        "torch returns a tensor without values",
    ("RNN|RNNCell", f"hx|{WEIGHT}", "imaginary|dtype|complex|fake",
     "raises RuntimeError, and torch returns"): "torch casts a bias or a state in silence",
    ("RNN", "(un)?sorted_indices", "meta", "raises RuntimeError, and torch returns"):
        "torch chooses rows by values that there are not",
    ("RNN", "batch_sizes", "expanded|overlapping|.* dimensions",
     "raises RuntimeError, and torch returns"): "torch reads sizes in their order in memory",
    ("RNN|RNNCell", WEIGHT, "lazy|jagged", "raises RuntimeError, and torch ValueError"):
        "such a weight's own error",
    ("RNN", "input|data", "quantized", r"raises \w+, and torch \w+Error"):
        "a dtype that no one takes",
    ("RNN|RNNCell", f"data|hx|{WEIGHT}", "sparse|mkldnn", r"raises \w+, and torch returns"):
        "torch takes a sparse tensor in some places",
    ("autograd", "grad_output|grad_hn", "sparse", r"returns, and torch raises \w+Error"):
        "torch takes a sparse gradient in some calls",
    ("RNN", "batch_sizes", "wrapped|functional", "returns, and torch raises RuntimeError"):
        "torch reads their memory, of which there is none",
}  # fmt: skip


def deliberate(call: Call, kind: str) -> bool:
    return any(
        re.fullmatch(entry, call.entry.name)
        and re.fullmatch(argument, name)
        and re.match(damage, word)
        and re.match(fault, kind)
        for (entry, argument, damage, fault) in DELIBERATE
        for name, word in call.damage.items()
    )


def judge_error(call: Call, ours: Raised) -> str:
    of_torch = "leaked" in call.damage.values() and "maybe_level" in ours.text
    if "INTERNAL ASSERT" in ours.text and not of_torch:
        return "FAULT: internal assertion"
    if not call.entry.private and "incompatible function arguments" in ours.text:
        return "FAULT: words of pybind11"
    fake = any("fake" in word for word in call.damage.values()) or "mode" in call.damage
    if issubclass(ours.type, EXPECTED) or (fake and ours.type is AssertionError):
        return f"raises {ours.type.__name__}"
    if issubclass(ours.type, AttributeError) and {"input", "hx", "data"} & {*call.damage}:
        return "raises AttributeError, as torch does"
    return f"FAULT: raises {ours.type.__name__}"


def judge(call: Call, ours: Any, theirs: Any) -> str:
    if isinstance(ours, Raised) and isinstance(theirs, Raised):
        kinds = sorted([ours.type, theirs.type], key=lambda kind: len(kind.__mro__))
        if issubclass(kinds[1], kinds[0]):
            return f"raises {ours.type.__name__}, as torch does"
        if len(call.damage) > 1:  # either may be met first
            return judge_error(call, ours)
        return f"FAULT: raises {ours.type.__name__}, and torch {theirs.type.__name__}"
    if isinstance(ours, Raised):
        return f"FAULT: raises {ours.type.__name__}, and torch returns"
    if isinstance(theirs, Raised):
        return f"FAULT: returns, and torch raises {theirs.type.__name__}"
    if without_values(ours):
        return "returns a shape"
    unusual = any(isinstance(y, Wrapped | np.ndarray) for y in flat((ours, theirs), inner=False))
    unusual |= any(name.endswith("sorted_indices") for name in call.damage)  # are handed back
    unusual |= "functional" in call.damage.values() or call.entry.name == "autograd"
    rounded = half(call, ours)
    try:
        if rounded:  # the gradients of relu hang on rounding
            assert_close(ours[0], theirs[0], 0.05)
        elif unusual:
            assert_close(ours, theirs, 4e-5)
        else:
            assert_same(ours[0], theirs[0], tolerance=2e-5)
            assert_close(ours[1], theirs[1], 4e-5)
    except (AssertionError, RuntimeError) as e:
        return f"FAULT: differs from torch: {e}"
    return "returns what torch does"


NO_GRADIENT = (
    "autograd",
    "ops.rnn_forward",
    "ops.rnn_backward",
    "ops.rnn_extended_forward",
    "ops.rnn_extended_backward",
    "_C.check_storages",
    "_C.set_reference_backward",
)


# The processes.

where = 0


def note(phase: str) -> None:
    """Say what comes next: then a crash has a name."""
    print(json.dumps([where, phase]), flush=True)


def child(seed: int, start: int, stop: int, fake: str | None) -> None:
    global where
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    used = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, -1))
    for where in range(start, stop):
        signal.alarm(SECONDS)
        if fake is not None:
            note("fastrnn")
            exec(fake, {"where": where})
        kind, facts = examine(seed, where)
        print(json.dumps([where, facts.split(" of ")[0], kind, facts]), flush=True)


def torch_ends(seed: int, index: int) -> bool:
    """Whether torch alone ends the process: else it met what a call of ours had destroyed."""
    command = [sys.executable, __file__, "--seed", str(seed), "--torch", str(index)]
    return subprocess.run(command, capture_output=True).returncode < 0


def results(seed: int, count: int, fake: str | None = None) -> Iterator[tuple[int, str, str, str]]:
    """Number, entry, kind and facts of each call; a process that ends is followed by another.

    ``fake`` is run before each call, in place of a fault of ours.
    """
    start = 0
    while start < count:
        phase = "start"
        command = [sys.executable, __file__, "--seed", str(seed), "--child", str(start), str(count)]
        command += [] if fake is None else ["--fake", fake]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                start, *said = json.loads(line)
                if len(said) == 1:
                    phase = said[0]
                    continue
                yield (start, *said)
                start += 1
        code = process.returncode
        assert code == 0 or (code < 0 and phase in ("fastrnn", "torch")), f"{start}: {code}"
        if start < count:
            call = malformed(seed, start)
            end = "hangs" if code == -signal.SIGALRM else f"ends the process ({code})"
            fault = "FAULT: " if phase == "fastrnn" or not torch_ends(seed, start) else ""
            yield start, call.entry.name, f"{fault}{phase} {end}", str(call)
            start += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one call")
    parser.add_argument("--show", help="print all calls of a kind")
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--torch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fake", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if args.child:
        child(args.seed, *args.child, args.fake)
        return 0
    if args.torch is not None:
        signal.alarm(SECONDS)
        call = malformed(args.seed, args.torch)
        cls = THEIRS[call.entry.theirs or RNN]
        attempt(call, lambda: call.entry.run(call, cls))
        return 0
    if args.only is not None:
        warnings.simplefilter("ignore")
        kind, facts = examine(args.seed, args.only)
        print(f"{kind}\n  {facts}")
        return kind.startswith("FAULT")
    kinds: Counter[tuple[str, str]] = Counter()
    for index, entry, kind, facts in results(args.seed, args.count):
        kinds[entry, kind] += 1
        if kind.startswith("FAULT") or (args.show and re.search(args.show, kind)):
            print(f"--seed {args.seed} --only {index}: {kind}\n  {facts}", flush=True)
    for (entry, kind), n in sorted(kinds.items()):
        print(f"{n:7,}  {entry:20}  {kind}")
    faults = sum(n for (_, kind), n in kinds.items() if kind.startswith("FAULT"))
    print(f"{sum(kinds.values()):,} calls, {faults:,} faults")
    return faults > 0


if __name__ == "__main__":
    sys.exit(main())
