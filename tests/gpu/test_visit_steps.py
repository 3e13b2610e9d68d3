"""The steps of a visit to a GPU, what it builds, and what it is asked for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from planted_visit import ROOT, a_visit, plant, records, script

import cuda_build
from benchmarks.gpu import kernels, prepare, process, visit
from benchmarks.gpu.process import Child, write_whole


@pytest.mark.parametrize(
    ("last", "status", "expected"),
    [
        ('"rows": "packed", "right": true', None, {"whole": "", "packed": "", "lengths": "killed"}),
        ('"rows": "packed", "failed": "no end"', 1, {"whole": "", "packed": "no end"}),
        ('"failed": "bad address"', 1, {"whole": "", "packed": "bad address"}),
    ],
)
def test_rows_that_a_process_has_begun(
    last: str, status: int | None, expected: dict[str, str]
) -> None:
    line = '{"name": "step", "dtype": "float32", '
    output = f'{line}"rows": "whole", "right": true}}\n{line}{last}}}\n'
    found = kernels.check_records("step float32", process.Ended(status, 1, output))
    assert {r["rows"]: r.get("failed", "").split(" after")[0] for r in found} == expected


def test_a_process_that_crashes_after_right_results() -> None:
    output = "\n".join(json.dumps({"rows": rows, "right": True}) for rows in kernels.ROWS)
    *_, last = kernels.check_records("step float32", process.Ended(-6, 1, output))
    assert last["failed"].startswith("ended with status -6")


def test_a_time_that_hangs_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "built", {"cluster:512x8x8 time": "hang"})
    monkeypatch.setattr(kernels, "TIME_SECONDS", 0.5)
    this = a_visit(tmp_path)
    kernels.checks(this, time.monotonic() + 20)
    note = kernels.times(this, time.monotonic() + 20)
    assert note == "2 lines, 3 of 3 kernels"
    found = records(tmp_path, "times.jsonl")
    assert [r["name"] for r in found] == ["tile:64x8x1", "cluster:512x8x8", "vector:64x1x1"]
    assert "failed" in found[1]
    assert [what.split(" killed")[0] for what, _ in this.failures] == [
        "times:", "time of cluster:512x8x8 float16"
    ]  # fmt: skip
    assert "before cluster:512x8x8 float16" in this.failures[0][0]
    assert kernels.times(a_visit(tmp_path), time.monotonic()) == "0 lines, 0 of 0 kernels"


def test_times_cut_off_are_a_failure(tmp_path: Path) -> None:
    plant(tmp_path / "built", {"cluster:512x8x8 time": "hang"})
    this = a_visit(tmp_path)
    kernels.checks(this, time.monotonic() + 20)
    kernels.times(this, time.monotonic() + 1)
    assert [what for what, _ in this.failures] == [
        "times: no time for 2 kernels, the first cluster:512x8x8 float16"
    ]  # fmt: skip


def test_a_sanitizer_that_cannot_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "built", {})
    script(tmp_path / "compute-sanitizer", "import sys; sys.exit('Error: Device not supported.')")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    this = a_visit(tmp_path)
    kernels.checks(this, time.monotonic() + 20)
    assert kernels.sanitizers(this, time.monotonic() + 20) == "does not work here"
    assert this.failures == [
        ("compute-sanitizer does not work here", "Error: Device not supported.")
    ]  # fmt: skip


def test_rows_of_the_processor_come_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    this = a_visit(tmp_path)

    def run(words: list[str], *_: object) -> process.Ended:
        write_whole(Path(words[words.index("--json") + 1]), {"rows": [1]})
        return process.Ended(None, 9, "")

    monkeypatch.setattr(visit, "run", run)
    visit.cpu(this, time.monotonic() + 9)
    this.document |= {"card": "h100", "rows": {}, "steps": {}}
    this.save()
    visit.main(["--take", str(this.out), "--results", str(tmp_path / "results")])
    assert json.loads((tmp_path / "results/cpu16.json").read_text()) == {"rows": [1]}
    assert "cpu" not in json.loads((tmp_path / "results/gpu-cpu.json").read_text())


def test_the_machine_and_the_library_s_own_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "NVIDIA H200, 9.0, 580.1, 1980 MHz, 3201 MHz"
    script(tmp_path / "nvidia-smi", f"print({line!r})")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    this = a_visit(tmp_path)
    visit.machine(this)
    assert (this.card, this.document["machine"]["capability"]) == ("h200", "9.0")
    assert not this.failures
    library = visit.Library(this)
    if not torch.cuda.is_available():
        assert "expected a CUDA device" in library.own_check()
        assert len(this.failures) == 1
    slow = script(tmp_path / "slow", "while True: pass")
    monkeypatch.setattr(visit.sys, "executable", "true")  # it succeeds
    library.own_check()
    assert library.own_check() == "checked before"
    this.end = time.monotonic()
    this.args.out = this.out = tmp_path / "another"
    this.out.mkdir()
    monkeypatch.setattr(visit.sys, "executable", str(slow))
    before = len(this.failures)
    assert library.own_check() == "no time for its own check"
    assert len(this.failures) == before


@pytest.mark.parametrize("stale", ["library", "programs"])
def test_what_was_built_of_other_sources_is_built_again(
    stale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing else."""
    folder = plant(tmp_path / "built", {})
    of, _ = prepare.hashes()
    (folder / "HASH").write_text("other other" if stale == "library" else f"{of} other")
    built: list[tuple[str, ...]] = []

    def build(library: visit.Library, *parts: str) -> Child:
        assert library.folder == folder
        assert not (folder / "kernels").exists()
        built.append(parts)
        return Child(["touch", "kernels", "limits"], folder)

    monkeypatch.setattr(visit.Library, "prepare", build)
    this = a_visit(tmp_path, "--device", "cpu")
    library = visit.Library(this)
    library.begin()
    assert "built of other sources: make gpu-prepare" in this.failures[0][0]
    assert library.wait_for_programs(time.monotonic() + 10) == "there"
    assert built == [("library", "programs") if stale == "library" else ("programs",)]
    library.stop()


def test_a_build_removes_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "build_library", lambda *_: None)
    (tmp_path / "fastrnn").mkdir()
    (tmp_path / "mine").write_text("of the user")
    prepare.build(sys.executable, tmp_path, "", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["HASH", "mine"]


def test_symbols_that_the_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    library = ROOT / "fastrnn/libfastrnn.so"
    monkeypatch.setattr(prepare, "NEWEST", {"GLIBC": (99,), "GLIBCXX": (99,)})
    assert not list(prepare.too_new(library))
    monkeypatch.setattr(prepare, "NEWEST", {"GLIBC": (2, 1), "GLIBCXX": (3, 4, 0)})
    assert any("of GLIBC 2." in symbol for symbol in prepare.too_new(library))


def test_a_python_is_found_or_missed() -> None:
    version = "{}.{}".format(*sys.version_info)
    assert version in prepare.find_python(version)
    with pytest.raises(SystemExit, match=r"no python9\.9 on the PATH"):
        prepare.find_python("9.9")


@pytest.mark.slow
@pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="no nvcc")
def test_the_limits_compile(tmp_path: Path) -> None:
    nvcc = cuda_build.find_nvcc()
    assert nvcc is not None
    command = [nvcc, *cuda_build.FLAGS, "-arch=sm_90a", "-Icsrc", "-Xptxas=-v", "-cubin"]
    command += ["benchmarks/gpu/limits.cu", "-o", str(tmp_path / "limits.cubin")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    stacks = [line for line in done.stderr.splitlines() if "bytes stack frame" in line]
    assert stacks
    assert all("0 bytes stack frame, 0 bytes spill stores" in line for line in stacks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rows", "no-such-row"], "no row has no-such-row"),
        (["--budget", "3"], "expected more than 4"),
        (["--device", "tpu"], "invalid choice"),
    ],
    ids=" ".join,
)
def test_mistakes_in_the_arguments(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        visit.parse(options)
    assert message in capsys.readouterr().err


def test_no_gpu_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(visit, "run", lambda *_: process.Ended(127, 0, "nvidia-smi: not found"))
    this = a_visit(tmp_path)
    visit.machine(this)
    assert this.failures == [
        ("nvidia-smi ended with status 127 after 0 s", "nvidia-smi: not found")
    ]


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
    ],
)
def test_cards(name: str, card: str) -> None:
    assert visit.card_of(name) == card


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prebuilt", "nowhere"], "no folder nowhere: make gpu-prepare makes"),
        (["--take", "nowhere"], "no gpu-.*json in nowhere: nothing is taken"),
    ],
)
def test_wrong_folders(words: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        visit.main([*words, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(bool(list(Path("/dev").glob("nvidia*"))), reason="there is a GPU")
def test_without_a_gpu_nothing_is_begun(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="expected a GPU, found none"):
        visit.main(["--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
