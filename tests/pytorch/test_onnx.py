"""torch.onnx.export as people write it, run in ONNX Runtime."""

from __future__ import annotations

import concurrent.futures
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import fastrnn

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

# torch's exporter warns of its own dependencies and of names of sizes that are equal.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

AUTO = torch.export.Dim.AUTO


class Model(nn.Module):
    """An RNN whose marks and state are positional inputs."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.rnn = case.module(fastrnn.RNN, torch.float32)

    def forward(
        self, input: Tensor, hx: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.rnn(input, hx, lengths=lengths)


def export(model: nn.Module, args: tuple[Any, ...], **options: Any) -> Any:
    program = torch.onnx.export(model.eval(), args, dynamo=True, verbose=False, **options)
    return session_of(program)


def session_of(program: Any) -> Any:
    return onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )


def feed_of(session: Any, args: tuple[Any, ...]) -> dict[str, Any]:
    given = [x for x in args if x is not None]
    names = [x.name for x in session.get_inputs()]
    return {name: x.numpy() for name, x in zip(names, given, strict=True)}


def assert_runs_alike(session: Any, model: nn.Module, *args: Tensor | None) -> None:
    with torch.no_grad():
        expected = model(*args)
    results = [torch.from_numpy(x) for x in session.run(None, feed_of(session, args))]
    for x, y in zip(results, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


def arguments(case: Case, seq_len: int, batch: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    sizes = (batch, seq_len) if case.batch_first else (seq_len, batch)
    states = case.num_layers * (2 if case.bidirectional else 1)
    hx = torch.randn(states, batch, case.hidden_size) if case.hx else None
    lengths = torch.randint(1, seq_len + 1, (batch,)) if case.lengths else None
    return torch.randn(*sizes, case.input_size), hx, lengths


EXPORTED = [case for case in CASES if case.seq_len < 100 and case.batch < 100]
EXPORTED += [Case(6, 5, 3, 9, 2, "relu", lengths=True, bidirectional=True, bias=False)]


@pytest.mark.parametrize("case", EXPORTED, ids=str)
def test_onnx_runtime_agrees_at_any_length_and_batch(case: Case) -> None:
    model = Model(case)
    args = arguments(case, 7, 4)
    sizes: list[Any] = [{0: AUTO, 1: AUTO}, {1: AUTO} if case.hx else None]
    sizes.append({0: AUTO} if case.lengths else None)
    session = export(model, args, dynamic_shapes=tuple(sizes))
    assert_runs_alike(session, model, *args)
    assert_runs_alike(session, model, *arguments(case, max(case.seq_len, 2), max(case.batch, 2)))
    assert_runs_alike(session, model, *arguments(case, 3, 5))


def test_the_graph_holds_one_rnn_for_each_layer() -> None:
    program = torch.onnx.export(
        fastrnn.RNN(3, 4, 2, bidirectional=True).eval(),
        (torch.randn(5, 2, 3),),
        dynamo=True,
        verbose=False,
    )
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators.count("RNN") == 2
    assert "Scan" not in operators
    assert "Loop" not in operators


def test_rows_without_a_step() -> None:
    case = Case(5, 3, 2, 4, lengths=True, bidirectional=True)
    model, (input, hx, _) = Model(case), arguments(case, 5, 3)
    args = (input, hx, torch.tensor([5, 0, 2]))
    assert_runs_alike(export(model, args), model, *args)


def test_dropout_of_a_model_in_training_mode() -> None:
    """The exporter gives the model's inference, as of nn.RNN: no mask is drawn into the file."""
    model, x = nn.Sequential(fastrnn.RNN(3, 8, 2, dropout=0.5)), torch.randn(5, 2, 3)
    with pytest.warns(UserWarning, match="in training mode"):
        program = torch.onnx.export(model.train(), (x,), dynamo=True, verbose=False)
    assert_runs_alike(session_of(program), model.eval(), x)


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.rnn = fastrnn.RNN(6, 8, 2, batch_first=True, bidirectional=True, dropout=0.5)
        self.cell = fastrnn.RNNCell(16, 5)
        self.step = fastrnn.RNN(5, 3, 2)

    def forward(self, words: Tensor) -> tuple[Tensor, ...]:
        output, hn = self.rnn(self.embed(words))
        return *self.step.step(self.cell(output[:, -1])), hn


def test_inside_a_model_with_a_cell_and_a_step() -> None:
    model, words = Tagger(), torch.randint(0, 11, (4, 7))
    session = export(model, (words,), dynamic_shapes=({0: AUTO, 1: AUTO},))
    assert_runs_alike(session, model, words)
    assert_runs_alike(session, model, torch.randint(0, 11, (2, 3)))


def test_without_a_batch() -> None:
    model = fastrnn.RNN(3, 4, 2)
    session = export(model, (torch.randn(5, 3),), dynamic_shapes=({0: AUTO},))
    assert_runs_alike(session, model, torch.randn(8, 3))


class Marked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(3, 4)

    def forward(self, input: Tensor, reset: Tensor) -> Tensor:
        return self.rnn(input, reset=reset)[0]


class Packed(Marked):
    def forward(self, data: Tensor, batch_sizes: Tensor, hx: Tensor) -> Tensor:  # type: ignore[override]
        return self.rnn(PackedSequence(data, batch_sizes), hx)[0].data


REFUSED = {
    "reset": (Marked, (torch.ones(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)), "has no reset"),
    "packed": (
        Packed,
        (torch.ones(3, 3), torch.tensor([2, 1]), torch.zeros(1, 2, 4)),
        "no packed sequences",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_onnx_lacks_says_what_to_do(name: str) -> None:
    model, args, words = REFUSED[name]
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as raised:
        export(model(), args)
    causes, error = [], raised.value
    while error is not None:
        causes.append(str(error))
        error = error.__cause__
    assert words in "\n".join(causes)


def test_an_exported_program() -> None:
    model, input = Tagger().eval(), torch.randint(0, 11, (4, 7))
    program = torch.export.export(model, (input,), dynamic_shapes=({0: AUTO, 1: AUTO},))
    table = torch.export.default_decompositions()
    table.update(fastrnn.decompositions(onnx=True))
    session = session_of(
        torch.onnx.export(program.run_decompositions(table), dynamo=True, verbose=False)
    )
    assert_runs_alike(session, model, torch.randint(0, 11, (2, 3)))


def test_an_exported_program_says_what_onnx_lacks() -> None:
    model, args, words = REFUSED["reset"]
    program = torch.export.export(model(), args)
    with pytest.raises(ValueError, match=words):
        program.run_decompositions(fastrnn.decompositions(onnx=True))


class Plain(nn.Module):
    """Layers, a state, a cell: what the older exporter takes of nn.RNN."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(3, 8, 2, "relu", batch_first=True, bidirectional=True, dropout=0.5)

    def forward(self, input: Tensor, hx: Tensor) -> tuple[Tensor, Tensor]:
        return self.rnn(input, hx)


class OneStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = fastrnn.RNNCell(3, 8)

    def forward(self, input: Tensor, hx: Tensor) -> Tensor:
        return self.cell(input, hx)


OLDER = {
    "layers and a state": (Plain(), (torch.randn(4, 5, 3), torch.randn(4, 4, 8))),
    "no state": (nn.Sequential(fastrnn.RNN(3, 8)), (torch.randn(5, 4, 3),)),
    "a cell": (OneStep(), (torch.randn(4, 3), torch.randn(4, 8))),
}


@pytest.mark.filterwarnings("ignore:.*legacy TorchScript-based ONNX export")
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1")
@pytest.mark.parametrize("name", OLDER)
def test_the_older_exporter(name: str, tmp_path: Path) -> None:
    model, args = OLDER[name]
    torch.onnx.export(model.eval(), args, tmp_path / "m.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    results = [torch.from_numpy(x) for x in session.run(None, feed_of(session, args))]
    expected = model(*args)
    for x, y in zip(results, expected if isinstance(expected, tuple) else [expected], strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
    nodes = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert nodes.count("RNN") == (2 if name == "layers and a state" else 1)


def test_the_older_exporter_cannot_express_lengths(tmp_path: Path) -> None:
    model, args = Model(Case(5, 4, 3, 8, lengths=True)), (torch.randn(5, 4, 3), None)
    with pytest.raises(ValueError, match=r"cannot express lengths\. Use dynamo=True"):
        torch.onnx.export(
            model, (*args, torch.tensor([5, 4, 3, 2])), tmp_path / "m.onnx", dynamo=False
        )


class PackedWithin(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(3, 8, 2, batch_first=True, bidirectional=True)

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(input, lengths, batch_first=True)
        output, hn = self.rnn(packed)
        return pad_packed_sequence(output, batch_first=True)[0], hn


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_packed_sequences_in_the_older_exporter(tmp_path: Path) -> None:
    model, path = PackedWithin().eval(), tmp_path / "m.onnx"
    args = (torch.randn(3, 5, 3), torch.tensor([5, 4, 2]))
    torch.onnx.export(
        model, args, path, dynamo=False, input_names=["x", "n"], dynamic_axes={"x": {1: "length"}}
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert_runs_alike(session, model, *args)
    assert_runs_alike(session, model, torch.randn(3, 7, 3), torch.tensor([7, 6, 1]))


def test_autocast() -> None:
    """The graph is of the dtype that the operator would cast to."""
    model, x = nn.Sequential(fastrnn.RNN(3, 8, 2)).eval(), torch.randn(5, 2, 3)

    class Cast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.float16):
                return self.model(x)[0].float()

    session = session_of(torch.onnx.export(Cast().eval(), (x,), dynamo=True, verbose=False))
    result = torch.from_numpy(session.run(None, feed_of(session, (x,)))[0])
    torch.testing.assert_close(result, model(x)[0], rtol=0, atol=5e-3)


class Slow(nn.Module):
    """A model whose export waits until another thread has made its calls."""

    def __init__(self, started: threading.Event, done: threading.Event) -> None:
        super().__init__()
        self.linear, self.started, self.done = nn.Linear(3, 3), started, done

    def forward(self, x: Tensor) -> Tensor:
        self.started.set()
        assert self.done.wait(60)
        return self.linear(x)


def test_other_threads_go_on_while_one_exports() -> None:
    """The exporter's flag is for the whole process; its operators compute zeros."""
    rnn, x = fastrnn.RNN(3, 8, 2), torch.randn(5, 2, 3)
    started, done = threading.Event(), threading.Event()
    compiled = torch.compile(rnn, backend="eager")
    expected = rnn(x)[0]
    found: list[Tensor] = []

    def calls() -> None:
        assert started.wait(60)
        try:
            found.append(rnn(x, lengths=[5, 5])[0])  # a list takes Python's way
            found.append(compiled(x)[0])
        finally:
            done.set()

    with concurrent.futures.ThreadPoolExecutor() as pool:
        other = pool.submit(calls)
        torch.onnx.export(Slow(started, done).eval(), (x,), dynamo=True, verbose=False)
        other.result()
    for output in (*found, compiled(x)[0]):
        torch.testing.assert_close(output, expected)
    assert len(found) == 2
