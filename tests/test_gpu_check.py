"""`make gpu-check` without a GPU: its files, its watching of processes, a dry run, its report."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib", reason="the report needs matplotlib")

import cuda_build
from benchmarks import timing
from benchmarks.contestants import make_contestant
from benchmarks.gpu import bench, check, compare, parts, report, shapes
from benchmarks.gpu.process import Child, run, write_whole

Record = dict[str, Any]


# --- Processes and files


def test_a_process_past_its_limit_ends_with_its_children(tmp_path: Path) -> None:
    child = "import time; time.sleep(60)"
    code = f"""
        import subprocess, sys, time
        print("begun", flush=True)
        p = subprocess.Popen([sys.executable, "-c", "{child}"])
        open("pid", "w").write(str(p.pid))
        time.sleep(60)
    """
    started = Child([sys.executable, "-c", textwrap.dedent(code)], tmp_path)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert not started.wait(0.05)
    ended = started.stop()
    assert (ended.status, ended.output) == (None, "begun\n")
    stat = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    for _ in range(100):  # gone, or dead and not yet collected by init
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child's child still runs")


def test_a_status_and_the_end_of_the_output_are_kept(tmp_path: Path) -> None:
    ended = run([sys.executable, "-c", "print('x' * 5000); print('last'); exit(7)"], 60, tmp_path)
    assert ended.status == 7
    assert ended.tail.endswith("last")
    assert len(ended.tail) < 3001


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "results.json"
    write_whole(path, {"a": 1})
    with pytest.raises(TypeError):
        write_whole(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


# --- Watching the measuring process


@pytest.fixture
def this(tmp_path: Path) -> parts.Run:
    args = check.parse(["--device", "cpu", "--json", str(tmp_path / "gpu.json")])
    return parts.Run(args, check.open_document(args.json), time.monotonic() + 60)


def scripted(this: parts.Run, body: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Measure a few rows with a stand-in for benchmarks.gpu.compare; returns their keys."""
    script = this.args.json.parent / "worker.py"
    script.write_text(
        textwrap.dedent("""
        import json, os, sys, time
        words = sys.argv
        keys = json.load(open(words[words.index("--rows") + 1]))
        out = open(words[words.index("--out") + 1], "a")
        theirs_only = "--theirs-only" in words
        def write(**line):
            print(json.dumps(line), file=out, flush=True)
        for key in keys:
            write(begun=key)
        """)
        + textwrap.indent(textwrap.dedent(body), "    ")
    )
    monkeypatch.setattr(this, "worker", lambda name, *words: [sys.executable, str(script), *words])
    monkeypatch.setattr(bench, "ROW_SECONDS", 3.0)
    monkeypatch.setattr(bench, "FIRST_ROW_SECONDS", 20.0)
    this.args.rows = ["tiny"]
    this.args.quick = True
    return [str(row) for row in shapes.plan(True, ["tiny"], toy=True)]


def test_a_crash_and_a_hang_cost_their_rows_only(
    this: parts.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
        if not theirs_only and "bfloat16 inference" in key:
            print("an illegal access", flush=True)
            os._exit(7)
        if not theirs_only and "bfloat16 training" in key:
            time.sleep(60)
        write(row=key, forms={"eager": {}}, theirs_only=theirs_only)
    """
    keys = scripted(this, body, monkeypatch)
    found = bench.bench(this, 40)
    rows = found["rows"]
    assert set(rows) == set(keys)
    failed = {key: row["failed"] for key, row in rows.items() if "failed" in row}
    crashed, hung = ([k for k in keys if f"bfloat16 {m}" in k] for m in shapes.MODES)
    assert failed == {
        **dict.fromkeys(crashed, "the process ended with status 7"),
        **dict.fromkeys(hung, "hung"),
    }
    assert all(rows[key]["theirs_only"] for key in failed)  # nn.RNN was measured after all
    assert not any(rows[key]["theirs_only"] for key in keys if key not in failed)
    assert found["status"] == "failed"
    assert found["failed"] == len(failed)
    assert "an illegal access" in found["ended"][0]["output"]


def test_time_that_is_up_keeps_what_there_is(
    this: parts.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = """
        if keys.index(key) > 1:
            time.sleep(60)
        write(row=key, forms={})
    """
    keys = scripted(this, body, monkeypatch)
    monkeypatch.setattr(bench, "ROW_SECONDS", 50.0)
    monkeypatch.setattr(bench, "SAVE_SECONDS", 0.2)
    found = bench.bench(this, 6)
    assert found["status"] == "cut off"
    assert list(found["rows"]) == keys[:2]
    saved = json.loads(this.args.json.read_text())  # although nothing has come to its end
    assert list(saved["parts"]["bench"]["rows"]) == keys[:2]


def test_a_process_that_always_ends_is_given_up(
    this: parts.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(this, "os._exit(1)", monkeypatch)
    this.args.quick, this.args.rows = False, ["tiny", "small"]
    found = bench.bench(this, 60)
    assert found["status"] == "failed"
    assert [end["theirs_only"] for end in found["ended"][: 2 * bench.MOST_ENDS]] == [
        *[False] * bench.MOST_ENDS,
        *[True] * bench.MOST_ENDS,
    ]


# --- A dry run, and the report


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    words = ["--device", "cpu", "--quick", "--json", str(path), "--budget", "0.01"]
    check.main(
        [*words, "--only", "facts", "limits", "sanitize", "bench", "--rows", "tiny", "packed"]
    )
    return path


def test_a_dry_run_measures_and_says_what_it_leaves_out(dry_run: Path) -> None:
    document = json.loads(dry_run.read_text())
    assert {n: p["status"] for n, p in document["parts"].items()} == {
        "facts": "ok", "limits": "skipped", "sanitize": "skipped", "bench": "ok",
    }  # fmt: skip
    assert "GPU" in document["parts"]["limits"]["reason"]
    bench_part = document["parts"]["bench"]
    assert bench_part["measured"] == bench_part["wanted"] == len(bench_part["rows"]) == 8
    for row in bench_part["rows"].values():
        times = row["forms"]["eager"]["microseconds"]
        assert times["nn.RNN"] > 0 < times["fastrnn"]
        assert row["forms"]["eager"]["ratio"] > 0
        assert row["kernel"].startswith("cpu ")
        assert row["error"]["wrong"] is False


def test_a_form_in_plain_values() -> None:
    samples = {"nn.RNN": [4e-6, 8e-6, 6e-6], "fastrnn": [2e-6, 4e-6, 3e-6]}
    timed = timing.Row(samples, {"nn.RNN": 1, "fastrnn": 1}, None, 1.0, 1, False)
    found = compare.describe(timed, steps=2, bound=1.5e-6)
    assert found["ratio"] == pytest.approx(2)
    assert found["microseconds"] == pytest.approx({"nn.RNN": 6, "fastrnn": 3})
    assert found["microseconds_per_step"] == pytest.approx({"nn.RNN": 3, "fastrnn": 1.5})
    assert found["fraction_of_bound"] == pytest.approx({"nn.RNN": 0.25, "fastrnn": 0.5})
    assert found["rounds"] == 3


def test_a_second_run_keeps_what_it_does_not_measure(dry_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    shutil.copy(dry_run, path)
    before = json.loads(path.read_text())["parts"]
    words = ["--device", "cpu", "--quick", "--json", str(path), "--rows", "tiny", "stack"]
    check.main([*words, "--only", "bench", "--again"])
    after = json.loads(path.read_text())["parts"]
    assert [after[name] for name in ("limits", "sanitize")] == [
        before[name] for name in ("limits", "sanitize")
    ]
    rows = after["bench"]["rows"]
    assert after["bench"]["measured"] == after["bench"]["wanted"] == 4
    assert {k: v for k, v in rows.items() if not k.startswith("stack")} == before["bench"]["rows"]


def test_a_part_without_time_or_with_a_defect_keeps_what_there_was(
    dry_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gpu.json"
    shutil.copy(dry_run, path)
    before = json.loads(path.read_text())["parts"]

    def broken(this: parts.Run, limit: float) -> Record:
        raise ZeroDivisionError("a defect")

    parts_now = {**check.PARTS, "facts": check.Part(broken, 40, 40)}
    monkeypatch.setattr(check, "PARTS", {**parts_now, "bench": check.Part(broken, 0.5, 0.5)})
    with pytest.raises(SystemExit):
        check.main(["--device", "cpu", "--json", str(path), "--only", "bench"])
    after = json.loads(path.read_text())["parts"]
    assert (after["facts"]["status"], after["bench"]["status"]) == ("failed", "skipped")
    assert "a defect" in after["facts"]["reason"]
    assert after["facts"]["machine"] == before["facts"]["machine"]
    assert after["bench"]["rows"] == before["bench"]["rows"]


def test_the_report_of_both_modules_and_of_nn_rnn_alone(dry_run: Path, tmp_path: Path) -> None:
    document = json.loads(dry_run.read_text())
    text = report.section("gpu", document, tmp_path)
    assert "| tiny |" in text
    assert "fastrnn µs, eager" in text
    assert (tmp_path / "ratio-gpu.png").exists()
    for row in document["parts"]["bench"]["rows"].values():
        row["kernel"] = None
        eager = row["forms"]["eager"]
        del eager["ratio"], eager["microseconds"]["fastrnn"]
    text = report.section("alone", document, tmp_path)
    assert "what there is to beat" in text
    assert "fastrnn µs" not in text
    assert not (tmp_path / "ratio-alone.png").exists()
    key, row = next(iter(document["parts"]["bench"]["rows"].items()))
    row["failed"] = "hung"
    assert "failed: hung" in report.section("alone", document, tmp_path), key


def test_without_kernels_nn_rnn_is_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    row = shapes.plan(True, ["tiny"], toy=True)[1]
    monkeypatch.setattr(compare.fastrnn, "info", lambda *_: {"kernel": "reference (no kernel)"})
    found = compare.measure(row, "cpu", 0.01)
    assert found["kernel"] is None
    assert list(found["forms"]["eager"]["microseconds"]) == ["nn.RNN"]


@pytest.mark.parametrize(
    ("setting", "factor", "wrong"),
    [
        (shapes.FLOAT32, 1.0001, True),
        (shapes.TF32, 1.0001, False),  # within what TF32 may lose
        (shapes.TF32, 1.01, True),
    ],
    ids=str,
)
def test_a_wrong_result_is_not_timed(
    setting: shapes.Setting, factor: float, wrong: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = next(r for r in shapes.plan(only=["tiny"], toy=True) if r.setting == setting)

    def spoiled(name: str, *arguments: Any) -> Any:
        contestant = make_contestant(name, *arguments)
        if name == "nn.RNN":
            return contestant
        good = contestant.results
        return replace(contestant, results=lambda: {k: x * factor for k, x in good().items()})

    monkeypatch.setattr(compare, "make_contestant", spoiled)
    found = compare.measure(row, "cpu", 0.01)
    assert found["error"]["wrong"] is wrong
    timed = list(found["forms"]["eager"]["microseconds"])
    assert timed == ["nn.RNN"] if wrong else ["nn.RNN", "fastrnn"]


# --- Tests and sanitizers as parts


def test_the_tests_of_a_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "test_some.py"
    path.write_text(
        "import pytest\npytestmark = pytest.mark.gpu\n"
        "def test_good(): pass\ndef test_bad(): assert 1 == 2\n"
        "@pytest.mark.skip\ndef test_left(): pass\ndef test_other(): assert 0\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu\n")
    found = parts.run_tests_of(str(path), "not other", time.monotonic() + 60)
    assert found["status"] == "failed"
    assert found["failed"] == ["test_bad: assert 1 == 2"]
    assert (found["tests"], found["failures"], found["skipped"]) == (3, 1, 1)
    assert "test_bad" in found["output"]


def fake_sanitizer(folder: Path, last: str) -> str:
    """Runs what it watches, as compute-sanitizer does, and ends with `last`."""
    program = folder / "compute-sanitizer"
    program.write_text(
        '#!/bin/sh\nwhile [ "$1" != -m ]; do before=$1; shift; done\n'
        f'"$before" "$@"; status=$?\n{last}\nexit $status\n'
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    ("kernel", "last", "status", "summary"),
    [
        ("cpu", 'echo "========= ERROR SUMMARY: 0 errors"', "ok", "ERROR SUMMARY: 0 errors"),
        ("cpu", 'echo "========= RACECHECK SUMMARY: 1 hazard"; exit 86', "failed",
         "RACECHECK SUMMARY: 1 hazard"),
        ("tile", "", "skipped", None),
    ],
)  # fmt: skip
def test_a_sanitizer_run_is_read(
    this: parts.Run, tmp_path: Path, kernel: str, last: str, status: str, summary: str | None
) -> None:
    this.args.quick = True
    program = fake_sanitizer(tmp_path, last)
    found = parts.sanitize_one(this, program, kernel, "memcheck", time.monotonic() + 120)
    assert (found["status"], found["summary"]) == (status, summary), found.get("output")
    assert found["cases"] == (20 if kernel == "cpu" else 0)


def test_a_missing_sanitizer_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.shutil, "which", lambda *_, **__: None)
    with pytest.raises(parts.CannotRun, match="compute-sanitizer is neither on the PATH"):
        parts.sanitizer()


@pytest.mark.slow
@pytest.mark.skipif(cuda_build.find_nvcc() is None, reason="no nvcc")
def test_the_limits_compile(tmp_path: Path) -> None:
    nvcc = cuda_build.find_nvcc()
    assert nvcc is not None
    command = [nvcc, *cuda_build.FLAGS, "-arch=sm_90a", "-Icsrc", "-Xptxas=-v", "-cubin"]
    command += ["benchmarks/gpu/limits.cu", "-o", str(tmp_path / "limits.cubin")]
    done = subprocess.run(command, cwd=parts.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    stacks = [line for line in done.stderr.splitlines() if "bytes stack frame" in line]
    assert stacks
    assert all("0 bytes stack frame, 0 bytes spill stores" in line for line in stacks)


# --- What is asked for


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "benches"], "invalid choice: 'benches'"),
        (["--rows", "no-such-row"], "no row has no-such-row"),
        (["--device", "cpu"], "say with --json where"),
        (["--total", "0"], "expected more than 0 seconds"),
    ],
    ids=" ".join,
)
def test_mistakes_in_the_arguments(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        check.parse(words)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", '{"rows": []}', "[]"])
def test_a_file_of_something_else_is_left_alone(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match="is no results file of this program"):
        check.main(["--device", "cpu", "--json", str(path), "--only", "facts"])
    assert path.read_text() == content


def test_no_gpu_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(check.shutil, "which", lambda *_: None)
    with pytest.raises(SystemExit, match="nvidia-smi is not found"):
        check.main(["--json", str(tmp_path / "gpu.json")])
    assert not list(tmp_path.iterdir())


def test_the_build_is_for_this_gpu_alone(this: parts.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    def noted(command: list[str], limit: float, cwd: Path, env: dict[str, str]) -> Any:
        seen.append(env)
        return argparse.Namespace(status=0)

    monkeypatch.setattr(parts, "run", noted)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    build: Callable[[parts.Run, float], Record] = parts.build
    for capability in ("9.0", "8.0", ""):
        this.capability = capability
        assert build(this, 1)["status"] == "ok"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    assert build(this, 1)["status"] == "ok"
    assert seen == [
        {"TORCH_CUDA_ARCH_LIST": "9.0a"}, {"TORCH_CUDA_ARCH_LIST": "8.0"}, {}, {},
    ]  # fmt: skip
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "9.0a"
