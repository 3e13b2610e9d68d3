"""What a visit to a GPU writes, and the processes that it starts."""

from __future__ import annotations

import json
import sys
import textwrap
import time
from pathlib import Path

import pytest
from planted_visit import Record

from benchmarks.gpu import evidence, process, visit
from benchmarks.gpu.process import Child, Job, Worker, run, run_all, work_through, write_whole


def test_a_torn_line_is_ignored_and_closed(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n{"a": ')
    args = visit.parse(["--out", str(tmp_path)])
    evidence.Visit(args, tmp_path).keep("x.jsonl", {"a": 2})
    assert [r["a"] for r in process.read_records(tmp_path / "x.jsonl")] == [1, 2]


def test_failures_alike_are_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MOST_PRINTED", 400)
    this = evidence.Visit(visit.parse(["--out", str(tmp_path)]), tmp_path)
    for i in range(9):
        this.fail(f"row {i}", "Traceback\nRuntimeError: no driver")
        this.fail("the same")
        this.fail(f"test {i}", f"E   assert {i} == 'x' * 200")
    this.last_words()
    printed = capsys.readouterr().out
    assert len(printed) <= 400
    lines = printed.splitlines()
    assert lines[:2] == ["row 0: RuntimeError: no driver (and 8 more)", "the same (and 8 more)"]
    assert lines[2] == "test 0: E   assert 0 == 'x' * 200"
    assert lines[-1] == f"27 failures; {tmp_path}"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "results.json"
    write_whole(path, {"a": 1})
    with pytest.raises(TypeError):
        write_whole(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_would_not_come_home_grows_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "MOST_FILE", 100)
    this = evidence.Visit(visit.parse(["--out", str(tmp_path)]), tmp_path)
    for text in ("a" * 80 + "\n", "b" * 80 + "\n", "c\n"):
        this.append("log.txt", text)
    assert (tmp_path / "log.txt").read_text() == "a" * 80 + "\nc\n"


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


def test_a_process_that_no_signal_ends_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a fault of the GPU, in the driver."""
    monkeypatch.setattr(process, "AFTER_KILL", 0.2)
    monkeypatch.setattr(Child, "kill", lambda self: None)
    several = [Child(["sleep", "1"], tmp_path) for _ in range(5)]
    start = time.monotonic()
    process.stop_all(several[1:])
    assert "it does not end" in several[0].stop(0.2).output
    assert time.monotonic() - start < 0.9
    for started in several:
        started.process.wait()


def test_a_long_output_keeps_its_beginning_and_its_end(tmp_path: Path) -> None:
    code = "print('first'); print('x' * 1_000_000); print('last'); exit(7)"
    ended = run([sys.executable, "-c", code], 60, tmp_path)
    assert ended.status == 7
    assert ended.output.startswith("first")
    assert ended.output.endswith("last\n")
    assert len(ended.output) < 410_000


def test_jobs_share_the_time(tmp_path: Path) -> None:
    jobs = [Job(i, ["sleep", "30" if i == 1 else "0"], 0.5) for i in range(8)]
    start = time.monotonic()
    ended = dict(run_all(jobs, 3, start + 20, tmp_path))
    assert [key for key, e in ended.items() if e.status is None] == [1]
    assert len(ended) == 8
    assert time.monotonic() - start < 5
    late = [Job(i, ["sleep", "30"], 30) for i in range(8)]
    assert not dict(run_all(late, 3, time.monotonic() + 0.3, tmp_path))
    assert time.monotonic() - start < 8


def test_a_worker_that_never_finishes_anything_is_given_up(tmp_path: Path) -> None:
    found: list[Record] = []
    worker = Worker("w", lambda w, out: ["false"], tmp_path, {}, (5, 5))
    work_through([worker], time.monotonic() + 20, found.append)
    assert [r["failed"] for r in found] == ["the process ended with status 1"] * 2


def test_a_hang_while_synchronising_is_known(tmp_path: Path) -> None:
    found: list[Record] = []

    def command(worker: Worker, out: Path) -> list[str]:
        if worker.done:
            return ["sh", "-c", f"""echo '{{"finished": true}}' >>{out}"""]
        lines = """{"begin": "a"}\n{"synchronising": "a"}\n"""
        return ["sh", "-c", f"printf '{lines}' >>{out}; sleep 60"]

    worker = Worker("w", command, tmp_path, {}, (5, 0.3))
    work_through([worker], time.monotonic() + 20, found.append)
    assert [r["failed"] for r in found if "end" in r] == ["hung while synchronising"]


def test_a_process_that_falls_silent_ends(tmp_path: Path) -> None:
    words = ["sh", "-c", "for i in 1 2 3; do echo $i; sleep 0.3; done; sleep 60"]
    heard: list[str] = []
    jobs = [Job("", words, 60, 1)]
    ((_, ended),) = run_all(jobs, 1, time.monotonic() + 20, tmp_path, lambda _, x: heard.append(x))
    assert ended.status is None
    assert heard == ["1", "2", "3"]
