"""The language model in several processes, and the checkpoints from which it goes on."""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
parallel = importlib.import_module("_parallel")
char_lm = importlib.import_module("char_lm")
RNN_CLASSES = importlib.import_module("_common").RNN_CLASSES

SMALL = ("--limit", "12000", "--hidden-size", "32", "--batch-size", "8", "--num-steps", "20")
gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no gloo",
)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


def example(*options: str) -> char_lm.Results:
    return char_lm.main(["--device", "cpu", *SMALL, *options])


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having drawn nothing."""
    with pytest.raises(SystemExit) as exit_:
        char_lm.main(["--device", "cpu", *argv])
    assert exit_.value.code == 2
    assert not list(Path().glob("out/*"))
    return capsys.readouterr().err


# Checkpoints


def figures(run: char_lm.Run) -> tuple[list[float], ...]:
    return run.losses, run.step_losses, run.model.held_out


def test_resumed_training_is_the_uninterrupted_one(capsys: pytest.CaptureFixture[str]) -> None:
    whole = example("--epochs", "3")
    example("--epochs", "1", "--checkpoint", "kept", "--resume")  # none there: from the start
    assert sorted(path.name for path in Path("kept/random").iterdir()) == ["epoch-1"]
    capsys.readouterr()
    resumed = example("--epochs", "3", "--checkpoint", "kept", "--resume")
    assert "going on after kept/random/epoch-1" in capsys.readouterr().out
    for sampling in ("random", "sequential"):
        assert figures(resumed.runs[sampling][0]) == figures(whole.runs[sampling][0])
        assert sorted(path.name for path in Path("kept", sampling).iterdir()) == ["epoch-3"]
    assert resumed.sample == whole.sample

    again = example("--epochs", "3", "--checkpoint", "kept", "--resume")  # nothing left to do
    assert again.sample == whole.sample


@pytest.mark.parametrize("moment", ["save", "rename"])
def test_interrupted_save_leaves_the_last_checkpoint(
    moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--sampling", "random", "--checkpoint", "kept", "--resume", "--epochs")
    whole = example("--sampling", "random", "--epochs", "2")
    example(*options, "1")

    rename = Path.rename

    def break_off(path: Path, target: Path) -> Path:
        if path.name == "unfinished":
            raise KeyboardInterrupt
        return rename(path, target)  # torch.distributed.checkpoint renames files of its own

    with monkeypatch.context() as patch:
        if moment == "save":

            def write_a_part(state: object, checkpoint_id: Path) -> None:
                checkpoint_id.mkdir()
                (checkpoint_id / "__0_0.distcp").write_bytes(b"half")
                raise KeyboardInterrupt

            patch.setattr(parallel.dcp, "save", write_a_part)
        else:
            patch.setattr(Path, "rename", break_off)
        with pytest.raises(KeyboardInterrupt):
            example(*options, "2")
    assert sorted(path.name for path in Path("kept/random").iterdir()) == ["epoch-1", "unfinished"]
    resumed = example(*options, "2")
    assert figures(resumed.runs["random"][0]) == figures(whole.runs["random"][0])
    assert sorted(path.name for path in Path("kept/random").iterdir()) == ["epoch-2"]


def test_checkpoints_are_guarded(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = [*SMALL, "--sampling", "random", "--epochs", "1", "--checkpoint", "kept"]
    example(*options, "--out", "elsewhere")
    assert "there is a checkpoint already: --resume" in refused(options, capsys)
    options.append("--resume")
    message = refused([*options, "--hidden-size", "16"], capsys)
    assert "epoch-1: expected hidden_size 32, got 16" in message
    message = refused([*options, "--limit", "12001"], capsys)
    assert "epoch-1: expected characters 12000, got 12001" in message
    record = Path("kept/random/epoch-1/record.json")
    content = record.read_text()
    record.write_text(content[:-10])
    assert "epoch-1: cannot be read: " in refused(options, capsys)
    record.write_text(json.dumps({}))
    assert "epoch-1: cannot be read: " in refused(options, capsys)
    record.write_text(content)
    (record.parent / ".metadata").unlink()
    assert "epoch-1: cannot be read: " in refused(options, capsys)


# Several processes


def torchrun(*command: str, processes: int = 2, options: tuple[str, ...] = ("--standalone",)):
    """Start `processes` of a program with torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", *options]
    launcher += ["--nproc-per-node", str(processes), *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        launcher, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def output_of(process: subprocess.Popen[str], status: int = 0) -> str:
    try:
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    assert (process.returncode != 0) == (status != 0), err
    return err if status else out


GRADIENTS = """
import sys

import torch

sys.path.insert(0, sys.argv[1])
import _common
import _parallel
import char_lm

parameters, state, batches = torch.load("start.pt")
with _parallel.processes(torch.device("cpu")):
    model = char_lm.CharModel(_common.RNN_CLASSES["fastrnn"], parameters).double()
    model.load_state_dict(state)
    shared = _parallel.parallel(model)
    grads = []
    for inputs, targets in batches:
        model.zero_grad()
        scores, _ = shared(_parallel.own_rows(inputs))
        char_lm.loss_of(scores, _parallel.own_rows(targets)).backward()
        grads.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.save((grads, _parallel.number_of_processes()), f"grads-{torch.distributed.get_rank()}.pt")
"""


@gloo
def test_gradients_of_two_processes_are_those_of_one_on_the_whole_batch() -> None:
    start = char_lm.draw_parameters(13, 17, seed=0)
    parameters = tuple((50 * p + 0.1 * torch.randn_like(p)).double() for p in start)
    model = char_lm.CharModel(RNN_CLASSES["fastrnn"], parameters).double()
    batches = [(torch.randint(13, (6, 9)), torch.randint(13, (6, 9))) for _ in range(2)]
    torch.save((parameters, model.state_dict(), batches), "start.pt")
    Path("gradients.py").write_text(GRADIENTS)
    output_of(torchrun("gradients.py", str(EXAMPLES)))
    for rank in range(2):
        grads, processes = torch.load(f"grads-{rank}.pt")
        assert processes == 2
        for (inputs, targets), theirs in zip(batches, grads, strict=True):
            model.zero_grad()
            char_lm.loss_of(model(inputs)[0], targets).backward()
            for (name, parameter), grad in zip(model.named_parameters(), theirs, strict=True):
                # float64, the sum of 6 rows taken in two halves: a few of its epsilon, 2.2e-16
                bound = 1e-13 * parameter.grad.abs().max().item()
                torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=bound, msg=name)


def losses_in(folder: str, sampling: str) -> list[float]:
    (record,) = Path(folder, sampling).glob("epoch-*/record.json")
    return json.loads(record.read_text())["results"]["losses"]


PROGRAM = str(EXAMPLES / "char_lm.py")


@gloo
@pytest.mark.slow
def test_two_processes_learn_as_one() -> None:
    """The bound of --compare: sums of float32 in another order. Then one process goes on."""
    whole = example("--epochs", "2")
    options = (PROGRAM, "--device", "cpu", *SMALL, "--checkpoint", "kept")
    out = output_of(torchrun(*options, "--epochs", "1"))
    assert out.count("epoch 1/1  perplexity") == 2  # one line for each sampling: from rank 0
    assert "2 processes" in out
    assert out.splitlines()[-1].startswith("char_lm: held-out perplexity ")
    resumed = example("--epochs", "2", "--checkpoint", "kept", "--resume")
    for sampling in ("random", "sequential"):
        ours, theirs = whole.runs[sampling][0], resumed.runs[sampling][0]
        assert theirs.step_losses == pytest.approx(ours.step_losses, abs=1e-5)
        assert theirs.model.held_out == pytest.approx(ours.model.held_out, abs=1e-3)


@gloo
@pytest.mark.slow
def test_two_nodes_go_on_where_one_process_stopped() -> None:
    """Two launchers on this machine, of a process each, stand for two nodes."""
    whole = example("--epochs", "2", "--sampling", "sequential")
    example("--epochs", "1", "--sampling", "sequential", "--checkpoint", "kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}")
    nodes = ("--nnodes", "2", "--rdzv-id", "test", *rendezvous)
    program = (PROGRAM, "--device", "cpu", *SMALL, "--sampling", "sequential", "--epochs", "2")
    command = (*program, "--checkpoint", "kept", "--resume")
    launchers = [torchrun(*command, processes=1, options=nodes) for _ in range(2)]
    outs = [output_of(launcher) for launcher in launchers]
    assert sum("going on after" in out for out in outs) == 1
    expected = whole.runs["sequential"][0].step_losses
    assert losses_in("kept", "sequential") == pytest.approx(expected, abs=1e-5)


@gloo
@pytest.mark.slow
def test_batch_that_processes_cannot_share() -> None:
    err = output_of(torchrun(PROGRAM, "--device", "cpu", *SMALL, "--batch-size", "5"), status=1)
    assert "--batch-size 5: expected a multiple of the number of processes, 2" in err
    assert not Path("out").exists()
