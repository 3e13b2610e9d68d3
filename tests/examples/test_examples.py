"""What holds for every example program: options, output, picture, errors, and equal learning.

What a single program teaches is tested in its own file.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

pytest.importorskip("matplotlib", reason="the examples need matplotlib")
pytest.importorskip("tqdm", reason="the examples need tqdm")
pytest.importorskip("sklearn", reason="some examples need scikit-learn")

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
common = importlib.import_module("_common")


@dataclass(frozen=True)
class Program:
    name: str
    small: str  # options with which it takes a second or two
    length: str  # the option that says how long to train
    data: str | None = None  # its data set, where there is a real one
    titles: tuple[str, str] = ("fastrnn.RNN", "torch.nn.RNN")

    def main(self, *options: str) -> Any:
        return importlib.import_module(self.name).main([*options])

    def classes(self) -> dict[str, type[torch.nn.RNN]]:
        """Its RNNs: those of all programs, or its own."""
        module = importlib.import_module(self.name)
        return getattr(module, "RNN_CLASSES", common.RNN_CLASSES)

    def __str__(self) -> str:
        return self.name


PROGRAMS = [
    Program("sin_to_cos", "--steps 20", "--steps"),
    Program("noisy_sine", "--epochs 1", "--epochs"),
    Program("sine_window", "--epochs 1", "--epochs"),
    Program("vanishing_gradients", "--steps 5", "--steps"),
    Program(
        "decision_making",
        "--steps 5",
        "--steps",
        titles=("fastrnn.LeakyRNN", "loop over time"),
    ),
    Program("mnist_rows", "--epochs 1 --limit 400", "--epochs", "mnist"),
    Program(
        "char_lm",
        "--epochs 1 --limit 6000 --hidden-size 32 --batch-size 8 --num-steps 20",
        "--epochs",
        "tinyshakespeare.txt",
    ),
    Program(
        "sentiment",
        "--epochs 1 --limit 600 --embedding-size 20 --hidden-size 16",
        "--epochs",
        "rt_polarity",
    ),
    Program(
        "pos_tagging",
        "--epochs 1 --limit 60 --hidden-size 16 --embedding-size 8 --letter-hidden-size 8",
        "--epochs",
        "ud_english_ewt",
    ),
    Program(
        "dna_tagging",
        "--steps 20 --length 30 --test-size 20 --batch-size 4 --hidden-size 8",
        "--steps",
    ),
    Program(
        "translation",
        "--epochs 1 --limit 64 --batch-size 16 --hidden-size 16 --embedding-size 8 --beam 2",
        "--epochs",
        "multi30k",
    ),
]
each_program = pytest.mark.parametrize("program", PROGRAMS, ids=str)


@dataclass
class Output:
    out: str
    err: str
    picture: Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@functools.cache
def compared(program: Program, folder: Path, noise: int | None = None) -> Output:
    """What a small run with --compare and without data sets prints and writes.

    With `noise`, it compares our RNN with itself plus roundings drawn from this seed, and draws
    nothing.
    """
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("FASTRNN_DATA", raising=False)
        patch.chdir(folder)
        if noise is not None:
            classes = program.classes()
            patch.setitem(classes, "torch", type("RoundedRNN", (Rounded, classes["fastrnn"]), {}))
            patch.setattr(Rounded, "generator", torch.Generator().manual_seed(noise))
            patch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)
        to = Path("new") / "folder" / f"{program}{'' if noise is None else noise}"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            program.main("--compare", "--device", "cpu", "--out", str(to), *program.small.split())
    return Output(out.getvalue(), err.getvalue(), folder / to / f"{program}.png")


class Rounded:
    """Before one of our RNNs as a base: each output is one rounding too high or low (float32)."""

    generator = torch.Generator()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, hn = super().forward(*args, **kwargs)
        if isinstance(output, PackedSequence):
            return output._replace(data=self.rounded(output.data)), self.rounded(hn)
        return self.rounded(output), self.rounded(hn)

    def rounded(self, x: Tensor) -> Tensor:
        signs = 2 * torch.randint(2, x.shape, generator=self.generator) - 1
        return x * (1 + 2**-23 * signs)


def refused(program: Program, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the program says as it ends with status 2, having written nothing."""
    with pytest.raises(SystemExit) as exit_:
        program.main(*argv)
    assert exit_.value.code == 2
    assert list(Path().iterdir()) == []
    return capsys.readouterr().err


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder, no data set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FASTRNN_DATA", raising=False)


def test_no_program_is_left_out() -> None:
    assert {program.name for program in PROGRAMS} == {p.stem for p in EXAMPLES.glob("[a-z]*.py")}


@each_program
def test_output(program: Program, folder: Path) -> None:
    output = compared(program, folder)
    assert "training amplifies rounding errors" in output.out
    for name in program.titles:
        row = rf"^{re.escape(name)} +\S+ +\S+ +\d+\.\d+ +\d+\.\d\d$"  # losses, time, ratio
        assert re.search(row, output.out, re.M), name
        assert re.search(rf"^{re.escape(name)}: .*\d", output.out, re.M), name  # its final figure
    assert f"wrote {output.picture.relative_to(folder)}" in output.out
    last = output.out.splitlines()[-1]
    match = re.fullmatch(rf"{program}: (\D.*), (\d+\.\d) s, ([\d,]+(\.\d+)?) steps/s", last)
    assert match, last
    assert re.search(r"\d", match[1])
    assert float(match[3].replace(",", "")) > 0
    assert output.err == ""  # no progress bar where stderr is no terminal


@pytest.mark.parametrize("impls", [("fastrnn", "torch"), ("torch", "fastrnn")], ids="-".join)
def test_speed_is_that_of_fastrnn(
    impls: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever --impl names, and so trains first: the ratio of the median steps."""
    seconds = {"fastrnn": [1.0, 1.0, 4.0], "torch": [3.0, 2.0, 1.0]}
    model = torch.nn.Linear(1, 1)
    runs = [common.Run(impl, model, [0.5] * 3, seconds[impl], 1, 6.0) for impl in impls]
    comparison = common.report("program", runs, [f"test error of {impl} 0" for impl in impls])
    assert comparison.speed_ratio == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].startswith("one trained after the other")
    rows = {line.split()[0]: line.split()[1:] for line in lines[1:3]}
    assert list(rows) == [common.CLASS_NAMES[impl] for impl in impls]
    assert rows["fastrnn.RNN"] == ["0.5", "0.5", "1000.000", "1.00"]
    assert rows["torch.nn.RNN"] == ["0.5", "0.5", "2000.000", "2.00"]
    names = [common.CLASS_NAMES[impl] for impl in impls]
    figures = [f"{name}: test error of {impl} 0" for name, impl in zip(names, impls, strict=True)]
    assert lines[5:7] == figures
    assert lines[7] == f"program: test error of {impls[0]} 0, 6.0 s, 0.50 steps/s"


def test_steps_are_timed_by_their_optimizer() -> None:
    """A time for each step, and together no more than the whole training."""
    model = torch.nn.Linear(1, 1)

    def train(model: torch.nn.Module) -> list[float]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(4):
            time.sleep(0.01)
            optimizer.step()
        return [4.0, 3.0, 2.0, 1.0]

    run = common.time_training("fastrnn", model, train, parts=2)
    assert len(run.step_seconds) == 4
    assert min(run.step_seconds) >= 0.01
    assert sum(run.step_seconds) <= run.seconds
    assert run.losses == [3.5, 1.5]


@each_program
def test_both_learn_alike(program: Program, folder: Path) -> None:
    """Over the first steps, the losses differ by no more than roundings grow to.

    Two correct float32 implementations differ by a rounding or two of each output. What training
    makes of that is up to the network: it can grow a thousandfold in 20 steps of Adam, or not at
    all. So the program itself says how much: it compares our RNN with the same whose outputs are
    each one rounding off. The bound is four times the larger of two such differences, for two
    implementations that are each two roundings off, and the roundings of the loss itself.
    """

    def differences(noise: int | None = None) -> list[float]:
        pattern = r"in the first step, and by at most (\S+) in the first \d+:"
        out = compared(program, folder, noise).out
        return [float(number) for number in re.findall(pattern, out)]

    ours = differences()
    assert ours
    for difference, *grown in zip(ours, differences(0), differences(1), strict=True):
        assert math.isfinite(difference)
        assert difference <= 4 * max(grown) + 2e-6


@each_program
def test_first_step_differs_by_rounding(program: Program, folder: Path) -> None:
    """A loss is the mean of values below 10: a few roundings of float32, 6e-8 of each."""
    out = compared(program, folder).out
    differences = re.findall(r"the losses differ by (\S+) in the first step", out)
    assert differences
    assert all(float(difference) <= 2e-6 for difference in differences)


@each_program
def test_picture(program: Program, folder: Path) -> None:
    from matplotlib.image import imread

    picture = torch.from_numpy(imread(compared(program, folder).picture))[..., :3]
    height, width = picture.shape[:2]
    assert min(height, width) >= 300
    for half in picture.split((height + 1) // 2):
        for quarter in half.split((width + 1) // 2, dim=1):
            assert len(quarter.reshape(-1, 3).unique(dim=0)) > 20


@each_program
def test_help(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        program.main("--help")
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    options = ["--impl", "--compare", "--device", "--seed", "--out", program.length]
    for option in [*options, *(["--data"] if program.data else [])]:
        assert re.search(rf"^  {option}\b", text, re.M), option
    assert f"python examples/{program}.py" in text  # the docstring
    assert f"{program}.png" in text


@each_program
@pytest.mark.usefixtures("nowhere")
def test_bad_arguments(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    for argv, message in [
        ([program.length, "0"], f"{program.length}: expected a whole number of at least 1, got 0"),
        ([program.length, "many"], f"{program.length}: expected a whole number of at least 1"),
        (["--impl", "numpy"], "--impl: invalid choice"),
        (["--device", "abacus"], "--device: cannot use device 'abacus'"),
        (["--seed", "-1"], "--seed: expected"),
        (["--colour"], "unrecognized arguments: --colour"),
        (["--device", "cpu", "--out", __file__, *program.small.split()], "File exists"),
    ]:
        assert message in refused(program, argv, capsys)


@pytest.mark.parametrize("program", [p for p in PROGRAMS if p.data], ids=str)
def test_without_data(
    program: Program, folder: Path, nowhere: None, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = "file" if "." in program.data else "folder"
    message = f"no {kind} $FASTRNN_DATA/{program.data} or data/{program.data}"
    lines = [line for line in compared(program, folder).out.splitlines() if message in line]
    assert len(lines) == 1
    assert re.search(r": taking .+ instead$", lines[0])
    assert "nowhere: no such folder" in refused(program, ["--data", "nowhere"], capsys)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@each_program
@pytest.mark.usefixtures("nowhere")
def test_runs_on_cuda(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    program.main("--compare", "--device", "cuda", *program.small.split())
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{program}: ")


@pytest.mark.slow
@each_program
def test_runs_as_a_script(program: Program, tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, EXAMPLES / f"{program}.py", "--device", "cpu", *program.small.split()],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "FASTRNN_DATA"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith(f"{program}: ")
    assert (tmp_path / "out" / f"{program}.png").is_file()
