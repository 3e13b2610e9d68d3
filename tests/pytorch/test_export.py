"""torch.export, AOTInductor, and a program without Python."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from fastrnn import RNN

AUTO = torch.export.Dim.AUTO
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.filterwarnings(
    # torch's own, from the import of inductor and from its pickles of trees
    "ignore:.torch.jit.script:DeprecationWarning",
)


class Tagger(nn.Module):
    """Every kind of argument: a state, lengths, marks; two RNNs, a cell and a step."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = RNN(3, 6, 2, batch_first=True, bidirectional=True)
        self.cell = fastrnn.RNNCell(12, 5)
        self.stream = RNN(5, 4, 2, nonlinearity="relu", bias=False)

    def forward(
        self, input: Tensor, hx: Tensor, lengths: Tensor, reset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        output, hn = self.rnn(input, hx, lengths=lengths, reset=reset)
        y, _ = self.stream.step(self.cell(output.mean(1)))
        return output, hn, y


def arguments(batch: int, seq_len: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(batch, seq_len, 3),
        torch.randn(4, batch, 6),
        torch.randint(0, seq_len + 1, (batch,)),
        torch.rand(batch, seq_len) < 0.3,
    )


SIZES: Any = ({0: AUTO, 1: AUTO}, {1: AUTO}, {0: AUTO}, {0: AUTO, 1: AUTO})

RUN = """
import sys
import torch, {package}
args, results = torch.load(sys.argv[2])
with torch.no_grad():
    outputs = {load}(*args)
for x, y in zip(outputs, results, strict=True):
    torch.testing.assert_close(x, y)
print("equal")
"""


def run_elsewhere(load: str, model: Path, folder: Path, args: Any, results: Any) -> None:
    """In another process, which has neither the model's class nor this one's state."""
    torch.save((args, results), folder / "case.pt")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(package="fastrnn", load=load), model, folder / "case.pt"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
    )
    assert done.stdout.endswith("equal\n"), done.stderr


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_saved_and_run_in_another_process(strict: bool, tmp_path: Path) -> None:
    model = Tagger().eval()
    exported = torch.export.export(model, arguments(5, 7), dynamic_shapes=SIZES, strict=strict)
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(torch.ops.fastrnn.rnn.default) == 3  # no loop over time
    for sizes in ((5, 7), (2, 11), (8, 3)):
        args = arguments(*sizes)
        for ours, eager in zip(exported.module()(*args), model(*args), strict=True):
            torch.testing.assert_close(ours, eager)
    torch.export.save(exported, tmp_path / "model.pt2")
    load = "torch.export.load(sys.argv[1]).module()"
    run_elsewhere(load, tmp_path / "model.pt2", tmp_path, args, model(*args))


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_time_first_without_a_state(strict: bool) -> None:
    model = RNN(3, 6, 2)
    sizes = ({0: AUTO, 1: AUTO},)
    input = (torch.randn(7, 5, 3),)
    exported = torch.export.export(model, input, dynamic_shapes=sizes, strict=strict).module()
    for seq_len, batch in ((5, 2), (11, 3)):
        input = torch.randn(seq_len, batch, 3)
        torch.testing.assert_close(exported(input), model(input))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = RNN(3, 6, 2, bidirectional=True)

    def forward(self, data: Tensor, sizes: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        output, hn = self.rnn(PackedSequence(data, sizes), hx)
        return output.data, hn


def test_packed_data_of_other_lengths() -> None:
    model = Packed()
    arguments = torch.randn(8, 3), torch.tensor([2, 2, 2, 1, 1]), torch.randn(4, 2, 6)
    sizes = ({0: AUTO}, {0: AUTO}, {1: AUTO})
    exported = torch.export.export(model, arguments, dynamic_shapes=sizes).module()
    other = torch.randn(6, 3), torch.tensor([3, 2, 1]), torch.randn(4, 3, 6)
    torch.testing.assert_close(exported(*other), model(*other))


def test_decomposed_to_core_aten() -> None:
    model, args = Tagger(), arguments(4, 6)
    program = torch.export.export(model, args)
    assert "fastrnn.rnn" in str(program.run_decompositions().graph)
    table = torch.export.default_decompositions()
    table.update(fastrnn.decompositions())
    decomposed = program.run_decompositions(table)
    assert "fastrnn" not in str(decomposed.graph)
    operators = {n.target for n in decomposed.graph.nodes if n.op == "call_function"}
    beyond = {op for op in operators if hasattr(op, "tags") and torch.Tag.core not in op.tags}
    assert beyond <= {torch.ops.aten._assert_tensor_metadata.default}  # export's own
    other = arguments(4, 6)
    torch.testing.assert_close(decomposed.module()(*other), model(*other))


def test_core_aten_has_one_length() -> None:
    rnn, auto = RNN(3, 4).eval(), torch.export.Dim.AUTO
    program = torch.export.export(
        rnn, (torch.randn(5, 2, 3),), dynamic_shapes=({0: auto, 1: auto},)
    )
    with pytest.raises(ValueError, match="expected a program of static length, got a dynamic"):
        program.run_decompositions(fastrnn.decompositions())


def test_an_exported_model_trains() -> None:
    model, args = Tagger(), arguments(5, 7)
    exported = torch.export.export(model, args, dynamic_shapes=SIZES).module()
    args = arguments(3, 9)
    for call in (exported, model):
        output, hn, y = call(*args)
        (output.square().sum() + hn.sin().sum() + y.sum()).backward()
    for (name, ours), eager in zip(exported.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, eager.grad, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")
def test_aot_inductor_in_another_process(tmp_path: Path) -> None:
    model = Tagger().eval()
    with torch.no_grad():
        exported = torch.export.export(model, arguments(5, 7), dynamic_shapes=SIZES)
        path = tmp_path / "model.pt2"
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
        args = arguments(3, 11)
        load = "torch._inductor.aoti_load_package(sys.argv[1])"
        run_elsewhere(load, path, tmp_path, args, model(*args))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("g++") is None, reason="needs cmake and g++"
)
def test_the_program_without_python(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, ROOT / "examples/cpp/export_model.py", "--out", tmp_path)
    build = tmp_path / "build"
    run("cmake", "-S", "examples/cpp", "-B", build, f"-DPython_EXECUTABLE={sys.executable}")
    run("cmake", "--build", build)
    program = build / "run_rnn"
    assert "libpython" not in run("ldd", program)
    files = [tmp_path / name for name in ("model.pt2", "input.pt", "output.pt")]
    run(program, *files)
    expected = torch.load(tmp_path / "expected.pt")
    for ours, eager in zip(torch.load(files[2]), expected, strict=True):
        torch.testing.assert_close(ours, eager)
    wrong = subprocess.run([program, *files[::-1]], capture_output=True, text=True)
    assert wrong.returncode == 1


def test_the_operators_load_without_the_package() -> None:
    """As a C++ program loads them, and without Python's symbols."""
    library = fastrnn.info()["library"]
    code = (
        "import torch; torch.ops.load_library(r'" + library + "');"
        "x, w = torch.ones(4, 2, 3), [torch.ones(5, 3), torch.ones(5, 5)];"
        "y, h = torch.ops.fastrnn.rnn(x, None, w, None, None, None, None,"
        " False, 1, 'tanh', False, False); print(tuple(y.shape), tuple(h.shape))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(4, 2, 5) (1, 2, 5)\n", done.stderr
