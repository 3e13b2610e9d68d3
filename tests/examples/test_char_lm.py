"""The language model of characters: formulas, batches, training, processes and checkpoints."""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
parallel = importlib.import_module("_parallel")
parts = importlib.import_module("_char_lm")
char_lm = importlib.import_module("char_lm")
RNN_CLASSES = importlib.import_module("_common").RNN_CLASSES


def parse_options(argv: list[str]) -> argparse.Namespace:
    return parts.parse_options(char_lm.__doc__, argv)


REAL_TEXT = Path(os.environ.get("FASTRNN_DATA", "/nowhere")).absolute() / "tinyshakespeare.txt"
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


# The formulas


def double_parameters(vocabulary_size: int, hidden_size: int) -> char_lm.Parameters:
    """Weights large enough for every part of the network to matter, in float64."""
    parameters = char_lm.draw_parameters(vocabulary_size, hidden_size, seed=0)
    return tuple((50 * p + 0.1 * torch.randn_like(p)).double() for p in parameters)


@pytest.mark.parametrize("impl", ["fastrnn", "torch"])
def test_from_scratch_equals_the_module(impl: str) -> None:
    start = double_parameters(7, 5)
    model = char_lm.CharModel(RNN_CLASSES[impl], start).double()
    model.load_state_dict(char_lm.CharModel(RNN_CLASSES[impl], start).state_dict())
    codes, targets, state = torch.randint(7, (3, 6)), torch.randint(7, (3, 6)), torch.randn(3, 5)
    state = state.double()
    parameters = tuple(
        p.detach().clone().requires_grad_()
        for p in (
            model.rnn.weight_ih_l0.T,
            model.rnn.weight_hh_l0.T,
            model.rnn.bias_ih_l0,
            model.linear.weight.T,
            model.linear.bias,
        )
    )
    X = char_lm.one_hot(codes, 7).double()
    scores, last = char_lm.rnn_from_scratch(X, state, parameters)
    ours, hn = model(codes, state[None])
    assert scores.shape == (6, 3, 7)
    torch.testing.assert_close(ours, scores, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hn[0], last, rtol=1e-12, atol=1e-12)

    char_lm.loss_of(scores, targets).backward()
    char_lm.loss_of(ours, targets).backward()
    for name, parameter in zip(
        ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "linear.weight", "linear.bias"),
        parameters,
        strict=True,
    ):
        grad = model.get_parameter(name).grad.t()
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_start_is_normal_with_zero_biases() -> None:
    W_xh, W_hh, b_h, W_hq, b_q = char_lm.draw_parameters(60, 256, seed=1)
    assert [tuple(p.shape) for p in (W_xh, W_hh, b_h, W_hq, b_q)] == [
        (60, 256),
        (256, 256),
        (256,),
        (256, 60),
        (60,),
    ]
    assert not b_h.any()
    assert not b_q.any()
    for weights in (W_xh, W_hh, W_hq):  # standard errors of mean and deviation: below 1e-4
        assert abs(weights.mean()) < 5e-4
        assert abs(weights.std() - 0.01) < 5e-4


def test_perplexity_of_an_untrained_model_is_the_vocabulary() -> None:
    """Weights of zero give every character the same chance."""
    zeros = tuple(torch.zeros_like(p) for p in char_lm.draw_parameters(23, 4, seed=0))
    model = char_lm.CharModel(RNN_CLASSES["fastrnn"], zeros)
    assert char_lm.perplexity(model, torch.randint(23, (50,))) == pytest.approx(23, rel=1e-5)


# The batches

CODES = torch.arange(1000)


def batches_of(sampling: str, seed: int = 0) -> list[char_lm.Batch]:
    generator = torch.Generator().manual_seed(seed)
    return list(char_lm.SAMPLINGS[sampling](CODES, 4, 7, generator))


@pytest.mark.parametrize("sampling", ["random", "sequential"])
def test_batches_cut_the_text(sampling: str) -> None:
    batches = batches_of(sampling)
    for inputs, targets, _ in batches:
        assert inputs.shape == targets.shape == (4, 7)
        assert torch.equal(targets, inputs + 1)
        assert torch.equal(inputs, inputs[:, :1] + torch.arange(7))
    seen = torch.cat([inputs.flatten() for inputs, _, _ in batches])
    assert len(seen.unique()) == len(seen)  # each character at most once
    assert len(seen) > 1000 - 2 * 4 * 7  # and hardly one is left out
    assert not torch.equal(batches[0][0], batches_of(sampling, seed=1)[0][0])
    assert torch.equal(batches[0][0], batches_of(sampling)[0][0])


def test_random_batches_stand_alone() -> None:
    batches = batches_of("random")
    assert not any(goes_on for _, _, goes_on in batches)
    starts = torch.cat([inputs[:, 0] for inputs, _, _ in batches])
    assert not torch.equal(starts, starts.sort().values)


def test_sequential_batches_go_on() -> None:
    batches = batches_of("sequential")
    assert [goes_on for _, _, goes_on in batches] == [False] + [True] * (len(batches) - 1)
    for before, after in itertools.pairwise(batches):
        assert torch.equal(after[0][:, 0], before[0][:, -1] + 1)


def test_state_is_carried_in_sequential_sampling() -> None:
    """The loss of a batch depends on the batch before just where the rows go on."""
    args = parse_options(["--device", "cpu"])
    start = tuple(p.float() for p in double_parameters(9, 6))
    inputs, other, targets = (torch.randint(9, (2, 5)) for _ in range(3))

    def loss_after(first: torch.Tensor, goes_on: bool) -> float:
        model = char_lm.CharModel(RNN_CLASSES["fastrnn"], start)
        standstill = torch.optim.SGD(model.parameters(), lr=0.0)  # the state moves, no weight does
        batches = [(first, targets, False), (inputs, targets, goes_on)]
        return char_lm.train_epoch(model, batches, standstill, args)[1]

    assert loss_after(inputs, True) != loss_after(other, True)
    assert loss_after(inputs, False) == loss_after(other, False)


# Training


def test_learns_python_help(capsys: pytest.CaptureFixture[str]) -> None:
    results = example("--limit", "40000", "--epochs", "4", "--learning-rate", "0.01")
    assert results.text == "Python's help texts"
    for sampling in ("random", "sequential"):
        (run,) = results.runs[sampling]
        assert len(run.losses) == len(run.model.held_out) == 4
        assert run.losses == sorted(run.losses, reverse=True)
        assert math.exp(run.losses[-1]) < 15  # of some 80 characters
        assert run.model.held_out[-1] < 15
    assert len(results.sample) == len("the ") + 700
    assert results.sample.startswith("the ")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("no file $FASTRNN_DATA/tinyshakespeare.txt")
    assert sum("held-out text" in line for line in lines) == 8
    assert re.fullmatch(
        r"char_lm: held-out perplexity \S+ \(random\) and \S+ \(sequential\), \S+ s, \S+ steps/s",
        lines[-1],
    )


def test_from_scratch_and_fused_agree_in_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    """float32 sums of a few hundred terms: some tens of its epsilon, 1.2e-7, at the most."""
    results = example("--epochs", "1", "--sampling", "random")
    found = re.search(
        r"outputs differ by at most (\S+), gradients by (\S+),", capsys.readouterr().out
    )
    assert float(found[1]) < 5e-6
    assert float(found[2]) < 5e-6
    assert list(results.milliseconds) == ["from scratch", "fastrnn", "torch"]
    assert all(value > 0 for value in results.milliseconds.values())


def test_compare_trains_both_alike(capsys: pytest.CaptureFixture[str]) -> None:
    """Losses of 4 carry roundings of 5e-7; clipping keeps every step's growth of them small."""
    results = example("--compare", "--epochs", "2")
    comparisons = results.comparisons
    assert list(comparisons) == ["random", "sequential"]
    for comparison in comparisons.values():
        assert comparison.step_difference <= 1e-5
        assert comparison.epoch_difference <= 1e-5
    out = capsys.readouterr().out
    assert "training amplifies rounding errors" in out
    for runs in results.runs.values():
        for run in runs:
            name = {"fastrnn": "fastrnn.RNN", "torch": "torch.nn.RNN"}[run.name]
            assert f"\n{name}: held-out perplexity {run.model.held_out[-1]:.2f} (" in out


def test_writes_the_same_text_for_the_same_seed() -> None:
    args = parse_options(["--device", "cpu", *SMALL])
    text = parts.load_text(args)
    start = char_lm.draw_parameters(len(text.vocabulary), 16, seed=0)
    model = char_lm.CharModel(RNN_CLASSES["fastrnn"], start)
    first, again, other = (char_lm.write(model, text, "for ", 30, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 34
    assert first.startswith("for ")


@pytest.mark.slow
def test_beats_pairs_of_characters_on_shakespeare() -> None:
    """After one epoch, better than knowing how often each character follows each other one."""
    if not REAL_TEXT.is_file():
        pytest.skip("no file $FASTRNN_DATA/tinyshakespeare.txt")
    results = char_lm.main(["--device", "cpu", "--data", str(REAL_TEXT.parent), "--epochs", "1"])
    text = parts.load_text(parse_options(["--data", str(REAL_TEXT.parent)]))
    size = len(text.vocabulary)
    counts = torch.ones(size, size)  # one more than seen: no pair is impossible
    counts.index_put_((text.train[:-1], text.train[1:]), torch.tensor(1.0), accumulate=True)
    chances = (counts / counts.sum(1, keepdim=True))[text.held_out[:-1], text.held_out[1:]]
    pairs = math.exp(-chances.log().mean())
    assert 8 < pairs < 16
    for run, *_ in results.runs.values():
        assert run.model.held_out[-1] < 0.8 * pairs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_compare_on_cuda() -> None:
    results = char_lm.main(["--device", "cuda", *SMALL, "--compare", "--epochs", "1"])
    for comparison in results.comparisons.values():
        assert comparison.step_difference <= 1e-4


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


def test_other_implementation_goes_on() -> None:
    """Bound as for --compare: the second epoch runs on torch.nn.RNN."""
    options = ("--sampling", "sequential", "--epochs")
    whole = example(*options, "2")
    example(*options, "1", "--checkpoint", "kept")
    mixed = example(*options, "2", "--checkpoint", "kept", "--resume", "--impl", "torch")
    (ours,), (theirs,) = whole.runs["sequential"], mixed.runs["sequential"]
    assert theirs.losses == pytest.approx(ours.losses, abs=1e-5)


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
    parameters = double_parameters(13, 17)
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


# What it refuses


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "."], "tinyshakespeare.txt: No such file"),
        (["--limit", "500"], "475 training characters are too few for a batch of 32 rows"),
        (["--limit", "30", "--batch-size", "1", "--num-steps", "1"], "too few"),
        (["--prefix", ""], "--prefix: expected at least one character"),
        (["--prefix", "☃ the ☀☃"], "--prefix: '☃☀' does not occur in Python's help texts"),
        (["--sampling", "neither"], "--sampling: invalid choice"),
        (["--resume"], "--resume: needs --checkpoint DIR"),
        (["--compare", "--checkpoint", "kept"], "--checkpoint: keeps one training"),
        (["--num-steps", "-1"], "--num-steps: expected"),
        (["--clip-norm", "0"], "--clip-norm: expected a number above 0, got 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_arguments(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(argv, capsys)


def test_reads_a_text_of_any_language(tmp_path: Path) -> None:
    text = "Füße und Blumen, 花。\n" * 400
    (tmp_path / "tinyshakespeare.txt").write_text(text, encoding="utf-8")
    args = parse_options([*SMALL, "--data", str(tmp_path), "--prefix", "花"])
    read = parts.load_text(args)
    assert Counter(read.vocabulary) == Counter(set(text))
    codes = torch.cat([read.train, read.held_out]).tolist()
    assert "".join(read.vocabulary[code] for code in codes) == text


def test_text_that_is_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tinyshakespeare.txt").write_bytes(b"\xff" * 5000)
    assert "tinyshakespeare.txt: 'utf-8' codec can't decode" in refused(["--data", "."], capsys)
