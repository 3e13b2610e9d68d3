"""Compare LeakyRNN with the loop over time that people write by hand, and with our plain RNN.

    python -m benchmarks.leaky --json benchmarks/results/leaky.json

Rounds are interleaved as in benchmarks.compare. A ratio is the other's time divided by LeakyRNN's:
above one, LeakyRNN is faster. All contestants have the same weights, and those that compute the
same are compared before they are timed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import machine, shapes, timing
from benchmarks.contestants import Contestant, grad_mode
from benchmarks.gpu.process import write_whole
from benchmarks.shapes import Shape
from fastrnn import RNN, LeakyRNN

Record = dict[str, Any]
MODES = ("inference", "training")
KINDS = ("small", "medium", "large", "long")
ALPHA = 0.2
FORMS = ("rate", "current")
LEARNED = "rate, learned alpha"
OURS = (*FORMS, LEARNED)
OTHERS = ("RNN", "loop")


class Loop(nn.Module):
    """The leaky RNN as it is usually written: two linear layers, and Python's loop over time."""

    def __init__(self, like: RNN) -> None:
        super().__init__()
        self.input2h = nn.Linear(like.input_size, like.hidden_size)
        self.h2h = nn.Linear(like.hidden_size, like.hidden_size)
        weights = [w.detach().clone() for w in like.parameters()]
        layers = (self.input2h, self.h2h, self.input2h, self.h2h)
        for layer, name, w in zip(
            layers, ("weight", "weight", "bias", "bias"), weights, strict=True
        ):
            getattr(layer, name).data = w

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        h, outputs = h[0], []
        for x_t in x:
            h = h * (1 - ALPHA) + torch.tanh(self.input2h(x_t) + self.h2h(h)) * ALPHA
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)


def modules(shape: Shape) -> dict[str, nn.Module]:
    sizes = shape.input_size, shape.hidden_size
    plain = RNN(*sizes)
    found: dict[str, nn.Module] = {"RNN": plain, "loop": Loop(plain)}
    for name in OURS:
        alpha = nn.Parameter(torch.full(sizes[1:], ALPHA)) if name == LEARNED else ALPHA
        found[name] = LeakyRNN(*sizes, alpha=alpha, form="current" if name == "current" else "rate")
        found[name].load_state_dict(plain.state_dict(), strict=False)
    return found


def contestant(name: str, module: nn.Module, shape: Shape, training: bool) -> Contestant:
    torch.manual_seed(0)
    x = torch.randn(shape.seq_len, shape.batch, shape.input_size, requires_grad=training)
    hx = torch.zeros(1, shape.batch, shape.hidden_size)
    grad = torch.randn(shape.seq_len, shape.batch, shape.hidden_size)
    leaves = [x, *module.parameters()]

    def training_step() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        output: Tensor = module(x, hx)[0]
        output.backward(grad)
        return output

    step: Callable[[], Any] = training_step if training else lambda: module(x, hx)[0]

    def results() -> dict[str, Tensor]:
        with grad_mode(training):
            found = {"output": step().detach()}
        if training:
            found |= {"input": x.grad.clone()} if x.grad is not None else {}
        return found

    return Contestant(name, step, results)


def measure(shape: Shape, mode: str, budget: float) -> Record:
    training = mode == "training"
    found = [contestant(n, m, shape, training) for n, m in modules(shape).items()]
    by_name = {c.name: c for c in found}
    expected = by_name["loop"].results()
    for name in ("rate", LEARNED):
        torch.testing.assert_close(by_name[name].results(), expected, rtol=1e-3, atol=1e-4)
    with grad_mode(training):
        row = timing.measure(found, 1, budget)
    return {
        "id": str(shape),
        "kind": shape.kind,
        "mode": mode,
        "microseconds": {c.name: row.seconds(c.name) * 1e6 for c in found},
        "ratios": {n: {o: row.ratio(n, base=o) for o in OTHERS} for n in OURS},
        "rounds": len(row.samples["rate"]),
        "tries": row.tries,
        "noisy": row.noisy,
    }


def line(r: Record) -> str:
    text = f"{r['id']:24} {r['mode']:9} {r['microseconds']['rate']:10.1f}"
    for name in OURS:
        text += "".join(f" {r['ratios'][name][other]:7.2f}" for other in OTHERS)
    return text + ("  noisy" if r["noisy"] else "")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.leaky", description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(KINDS), metavar="CLASS|ID")
    parser.add_argument("--budget", type=float, default=20.0, help="most seconds of a row")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results here")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    words = sys.argv[1:] if argv is None else list(argv)
    document: Record = {
        "leaky": True,
        "command": " ".join(["python -m benchmarks.leaky", *words]),
        "machine": machine.facts(),
        "rows": [],
    }
    columns = "".join(f" {name + ': RNN, loop':>15}" for name in ("rate", "current", "learned"))
    print(f"{'shape':24} {'':9} {'rate µs':>10}{columns}")
    for shape in shapes.select(args.only, False, None):
        if (shape.dtype, shape.num_layers, shape.num_directions) != ("float32", 1, 1):
            continue
        for mode in MODES:
            document["rows"].append(measure(shape, mode, args.budget))
            print(line(document["rows"][-1]), flush=True)
            if args.json:
                write_whole(args.json, document)


if __name__ == "__main__":
    main()
