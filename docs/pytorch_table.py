"""Run the same code with fastrnn.RNN and with torch.nn.RNN, and write a table of what differs.

    python docs/pytorch_table.py                  writes the table of docs/pytorch.md
    python docs/pytorch_table.py --device cuda    prints that of a GPU

Code "works" if it ends without an error and its checks hold. What works with both is not a row: a
sentence below the table names it. Where a package is missing, the row stays as it is.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

DOCUMENT = Path(__file__).with_name("pytorch.md")
MARKS = "<!-- table -->", "<!-- /table -->"

T, B, I, H = 5, 2, 3, 4  # noqa: E741  (seq_len, batch, input_size, hidden_size)

Line = Callable[[Callable[..., Any]], object]


def x(*sizes: int) -> Tensor:
    return torch.randn(*(sizes or (T, B, I)))


def compile_whole(rnn: Callable[..., Any]) -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    module = rnn(I, H, 2)
    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=True)
    for sizes in ((5, 2), (9, 3), (31, 4)):
        input = x(*sizes, I)
        torch.testing.assert_close(compiled(input), module(input))
    assert len(graphs) == 1, f"{len(graphs)} graphs"


def compile_packed(rnn: Callable[..., Any]) -> None:
    compiled = torch.compile(rnn(I, H, 2), backend="eager", fullgraph=True)
    compiled(pack_padded_sequence(x(), torch.tensor([3, 5]), enforce_sorted=False))


def export(rnn: Callable[..., Any]) -> None:
    module = rnn(I, H, 2)
    sizes = {0: torch.export.Dim("seq_len"), 1: torch.export.Dim("batch")}
    exported = torch.export.export(module, (x(7, 6, I),), dynamic_shapes=(sizes,)).module()
    torch.testing.assert_close(exported(x(11, 3, I))[0].shape, torch.Size([11, 3, H]))


def onnx(rnn: Callable[..., Any]) -> None:
    import onnxruntime

    module, auto = rnn(I, H, 2).eval(), torch.export.Dim.AUTO
    program = torch.onnx.export(
        module,
        (x(7, 6, I),),
        dynamo=True,
        dynamic_shapes=({0: auto, 1: auto},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    for input in (x(7, 6, I), x(11, 3, I)):
        outputs = session.run(None, {session.get_inputs()[0].name: input.cpu().numpy()})
        steps, expected = len(outputs[0]), module(input)[0]
        assert steps == len(input), f"{len(input)} steps of input give {steps} of output"
        torch.testing.assert_close(torch.from_numpy(outputs[0]), expected.detach().cpu())


def double_backward(rnn: Callable[..., Any]) -> None:
    module, input = rnn(I, H, 2), x().requires_grad_()
    (g,) = torch.autograd.grad(module(input)[0].square().sum(), input, create_graph=True)
    g.square().sum().backward()


def forward_mode(rnn: Callable[..., Any]) -> None:
    jvp(rnn(I, H, 2), (x(),), (x(),))


def hessian_of_input(rnn: Callable[..., Any]) -> None:
    module = rnn(I, H)
    hessian(lambda input: module(input)[0].square().sum())(x())


def vmap_inputs(rnn: Callable[..., Any]) -> None:
    module, inputs = rnn(I, H), x(3, T, B, I)
    expected = torch.stack([module(input)[0] for input in inputs])
    torch.testing.assert_close(vmap(module)(inputs)[0], expected)


def ensemble(rnn: Callable[..., Any]) -> None:
    models = [rnn(I, H) for _ in range(3)]
    weights, _ = stack_module_state(models)
    vmap(lambda w, input: functional_call(models[0], w, (input,)), (0, None))(weights, x())


def gradients_of_samples(rnn: Callable[..., Any]) -> None:
    module = rnn(I, H)
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def loss(weights: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(module, weights, (input,))[0].square().sum()

    vmap(grad(loss), (None, 0))(weights, x(6, T, I))


def mixed_precision(rnn: Callable[..., Any]) -> None:
    module, input = rnn(I, H, 2), x()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast(input.device.type, dtype):
            output, hn = module(input)
        assert output.dtype == hn.dtype == dtype, f"{output.dtype} for {dtype}"
        output.float().sum().backward()
        assert module.weight_hh_l0.grad.dtype == torch.float32


def backward_in_eval(rnn: Callable[..., Any]) -> None:
    rnn(I, H).eval()(x())[0].sum().backward()


def distributed(wrap: Callable[[nn.Module], nn.Module]) -> Line:
    def run(rnn: Callable[..., Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            cuda = torch.get_default_device().type == "cuda"
            torch.distributed.init_process_group(
                "nccl" if cuda else "gloo",
                init_method=f"file://{folder}/store",
                rank=0,
                world_size=1,
            )
            try:
                wrap(rnn(I, H, 2))(x())[0].sum().backward()
            finally:
                torch.distributed.destroy_process_group()

    return run


def pruned(rnn: Callable[..., Any]) -> None:
    module = rnn(I, H)
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    module(x())[0].sum().backward()
    prune.remove(module, "weight_hh_l0")


def copy_of_parametrized(rnn: Callable[..., Any]) -> None:
    module = rnn(I, H)
    parametrizations.orthogonal(module, "weight_hh_l0")
    module(x())
    copy.deepcopy(module)


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, w: Tensor) -> Tensor:
        self.count += 1
        return w.clone()


def computed_once(rnn: Callable[..., Any]) -> None:
    module, counted = rnn(I, H), Counted()
    parametrize.register_parametrization(module, "weight_hh_l0", counted)
    counted.count = 0
    module(x())
    assert counted.count == 1, f"computed {counted.count} times"


def quantize_dynamic(rnn: Callable[..., Any]) -> None:
    model, input = nn.Sequential(rnn(I, H)), x()
    quantized = torch.ao.quantization.quantize_dynamic(model)
    torch.testing.assert_close(quantized(input), model(input))


def step(rnn: Callable[..., Any]) -> None:
    rnn(I, H, 2).step(x(B, I))


def lengths(rnn: Callable[..., Any]) -> None:
    rnn(I, H)(x(), lengths=torch.tensor([3, 5]))


def reset(rnn: Callable[..., Any]) -> None:
    rnn(I, H)(x(), reset=torch.eye(T, B).bool())


LINES: list[tuple[str, str, Line]] = [
    ("`torch.compile`", "one graph for every batch and length", compile_whole),
    ("`torch.compile`", "packed sequences", compile_packed),
    ("`torch.export`", "dynamic batch and length", export),
    ("ONNX", "dynamic batch and length, in ONNX Runtime", onnx),
    ("derivatives", "double backward", double_backward),
    ("derivatives", "forward mode", forward_mode),
    ("derivatives", "Hessian", hessian_of_input),
    ("derivatives", "backward in `eval()`", backward_in_eval),
    ("`torch.func`", "`vmap` over inputs", vmap_inputs),
    ("`torch.func`", "`vmap` over weights: an ensemble", ensemble),
    ("`torch.func`", "per-sample gradients", gradients_of_samples),
    ("mixed precision", "autocast to bfloat16 and float16", mixed_precision),
    (
        "data parallel",
        "`DistributedDataParallel`",
        distributed(nn.parallel.DistributedDataParallel),
    ),
    ("data parallel", "FSDP2's `fully_shard`", distributed(fully_shard)),
    ("computed weights", "`prune`", pruned),
    ("computed weights", "a parametrization is computed once per call", computed_once),
    (
        "computed weights",
        "`deepcopy` after a call with a parametrization",
        copy_of_parametrized,
    ),
    ("quantization", "`quantize_dynamic` leaves the RNN as it is", quantize_dynamic),
    ("arguments", "`step`: one time step", step),
    ("arguments", "`lengths=` of padded rows", lengths),
    ("arguments", "`reset=` inside a row", reset),
]


def outcome(line: Line, rnn: Callable[..., Any]) -> str:
    """Return "works", or the error's type and the beginning of its message."""
    torch.manual_seed(0)
    torch.compiler.reset()
    try:
        line(rnn)
    except ImportError:  # the code was not run
        raise
    except AssertionError as error:
        return str(error).splitlines()[0]
    except Exception as error:
        words = str(error).strip().splitlines()[0]
        words = words if len(words) <= 60 else words[:60].rsplit(" ", 1)[0] + " ..."
        return f"`{type(error).__name__}: {words}`".replace("|", "\\|")
    return "works"


def row(area: str, what: str, line: Line, committed: str) -> str | None:
    """A row of the table, as committed where a package is missing; None if both work."""
    try:
        ours, theirs = outcome(line, fastrnn.RNN), outcome(line, nn.RNN)
    except ImportError:
        for kept in committed.splitlines():
            if kept.startswith(f"| {area} | {what} |"):
                return kept
        if what in " ".join(committed.split()):  # among the names of what works with both
            return None
        raise
    if ours == theirs == "works":
        return None
    return f"| {area} | {what} | {ours} | {theirs} |"


def table(device: str, committed: str = "") -> str:
    """The rows that differ, and a sentence with the names of the others."""
    rows = [f"| on {device} | | `fastrnn.RNN` | `torch.nn.RNN` {torch.__version__} |"]
    rows.append("| --- | --- | --- | --- |")
    same = []
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        for area, what, line in LINES:
            found = row(area, what, line, committed)
            if found is None:
                same.append(what)
            else:
                rows.append(found)
    sentence = f"These work with both: {'; '.join(same)}."
    return "\n".join([*rows, "", *textwrap.wrap(sentence, 110, break_on_hyphens=False)])


def with_table(document: str) -> str:
    """The document with the table between its marks."""
    begin, end = MARKS
    before, _, rest = document.partition(begin)
    committed, _, after = rest.partition(end)
    return f"{before}{begin}\n{table('cpu', committed)}\n{end}{after}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    os.environ.setdefault("TORCH_LOGS", "-all")
    device = parser.parse_args().device
    if device == "cpu":
        text = with_table(DOCUMENT.read_text(encoding="utf-8"))
        DOCUMENT.write_text(text, encoding="utf-8")
    else:
        print(table(device))
