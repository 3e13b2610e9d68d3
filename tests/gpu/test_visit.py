"""A visit to a GPU without a GPU: its evidence whatever fails, its budget, its rows, its report."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("matplotlib", reason="the report needs matplotlib")

import cuda_build
from benchmarks import report as all_reports
from benchmarks import timing
from benchmarks.contestants import make_contestant
from benchmarks.gpu import compare, evidence, kernels, prepare, process, report, shapes, visit
from benchmarks.gpu.process import Child, Job, Worker, run, run_all, work_through, write_whole

ROOT = Path(__file__).parents[2]
Record = dict[str, Any]


# --- Planted programs


KERNELS = """
    import json, os, sys, time
    LISTED = ["step float32", "tile:64x8x1 float16", "cluster:512x8x8 float16",
              "vector:64x1x1 float32"]
    word, *names = sys.argv[1:]
    if word == "list":
        print(*LISTED, sep="\\n")
    elif word == "check":
        name, dtype, *one = names
        wrong = False
        for rows in one or ROWS:
            fault = FAULTS.get(f"{name} {rows}")
            fault = None if fault == "beside others" and one else fault
            if fault == "hang":
                time.sleep(60)
            if fault == "crash":
                print("an illegal access", flush=True)
                os.abort()
            wrong |= fault is not None
            print(json.dumps({"name": name, "dtype": dtype, "rows": rows, "right": fault is None,
                              "error": 0.7 if fault == "beside others" else 0.5, "allowed": 0.1,
                              "worst": "grad_hx[1], t 0, b 3, j 17"}), flush=True)
        sys.exit(wrong)
    elif word == "time":
        for listed in [" ".join(names)] if names else LISTED:
            name, dtype = listed.split()
            if name == "step":
                continue
            if FAULTS.get(f"{name} time") == "hang":
                time.sleep(60)
            print(json.dumps({"name": name, "dtype": dtype, "pass": "forward", "ns": 500}),
                  flush=True)
"""
FAULTS = {
    "cluster:512x8x8 whole": "wrong", "cluster:512x8x8 marks": "hang",
    "vector:64x1x1 packed": "crash", "tile:64x8x1 packed": "beside others",
}  # fmt: skip

LIMITS = """
    print('{"what": "hop", "clocks": 200}', '{"what": "complete"}', sep="\\n")
"""

SANITIZER = """
    import subprocess, sys, time
    words = sys.argv[1:]
    program = next(i for i, word in enumerate(words) if word.endswith("kernels"))
    status = subprocess.run(words[program:]).returncode
    bad = words[words.index("--tool") + 1] == "racecheck" and "tile:64x8x1" in words
    if "vector:64x1x1" in words and "initcheck" in words:
        time.sleep(60)
    print(f"========= RACECHECK SUMMARY: {int(bad)} hazards displayed")
    sys.exit(86 if bad else status)
"""

TESTS = """
    import time, warnings
    import pytest
    from benchmarks.gpu import plugin
    pytestmark = pytest.mark.gpu

    def synchronise():
        if poisoned:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
    poisoned = False
    plugin.synchronise = synchronise

    @pytest.mark.parametrize("kernel", ["cluster", "tile"])
    def test_kernel(kernel):
        pass
    def test_hangs():
        time.sleep(60)
    def test_poisons():
        global poisoned
        poisoned = True
        print("the last words of the test")
        assert "ours" == "theirs"
    def test_poisons_and_passes():
        global poisoned
        poisoned = True
    def test_warns():
        warnings.warn("Attempting to run cuBLAS, but there was no current CUDA context!")
    def test_fails():
        assert 1 == 2
    def test_ends_the_process():
        import os
        os._exit(7)
    def test_threads():
        import os
        assert os.environ["OMP_NUM_THREADS"] == "2"  # torch takes it
    @pytest.mark.skip(reason="a reason")
    def test_skipped():
        pass
    @pytest.mark.parametrize("i", range(20))
    def test_good(i):
        assert poisoned is False
"""


def script(path: Path, body: str, **values: Any) -> Path:
    head = "".join(f"{name} = {value!r}\n" for name, value in values.items())
    path.write_text(f"#!{sys.executable}\n{head}{textwrap.dedent(body)}")
    path.chmod(0o755)
    return path


def plant(folder: Path, faults: dict[str, str]) -> Path:
    """What `benchmarks.gpu.prepare` would have built: our library and a stand-in for `kernels`."""
    (folder / "fastrnn").mkdir(parents=True)
    for path in [*(ROOT / "fastrnn").glob("*.so"), ROOT / "fastrnn/_built_for.json"]:
        shutil.copy(path, folder / "fastrnn")
    script(folder / "kernels", KERNELS, FAULTS=faults, ROWS=kernels.ROWS)
    script(folder / "limits", LIMITS)
    (folder / "HASH").write_text(" ".join(prepare.hashes()))
    return folder


def plant_tests(folder: Path) -> Path:
    folder.mkdir()
    (folder / "test_planted.py").write_text(textwrap.dedent(TESTS))
    (folder / "test_broken.py").write_text("import no_such_module  # mark.gpu\n")
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = gpu\nfilterwarnings = error\n")
    return folder


def words(folder: Path, *more: object) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.gpu.visit", "--device", "cpu", "--budget", 100]
    command += ["--prebuilt", folder / "built", "--out", folder / "out", "--rows", "tiny B1-T512"]
    command += ["--row-budget", 0.001, "--check-limit", 1, "--test-limit", 1.5, "--shards", 2]
    command += ["--sanitizer-limit", 1]
    return [str(word) for word in [*command, "--tests", folder / "tests", *more]]


def go(folder: Path, *more: object, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        words(folder, *more), cwd=ROOT, env={**os.environ, "PATH": path, **variables},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def records(folder: Path, name: str) -> list[Record]:
    """Every line is whole."""
    return [json.loads(line) for line in (folder / "out" / name).read_text().splitlines()]


def assert_comes_home(folder: Path) -> None:
    files = list((folder / "out").iterdir())
    assert {path.name for path in files} <= {
        "gpu-cpu.json", "failures.txt", "log.txt", "tests.jsonl", "checks.jsonl", "times.jsonl",
        ".gpu-cpu.json.new",
    }  # fmt: skip
    assert all(path.stat().st_size < 16 << 20 for path in files)
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())


# --- A visit in which much fails


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder: Path = tmp_path_factory.mktemp("faulty")
    plant(folder / "built", FAULTS)
    plant_tests(folder / "tests")
    script(folder / "compute-sanitizer", SANITIZER)
    ended = go(folder)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    return folder, ended.stdout


def checked(folder: Path) -> dict[str, Record]:
    """The last record of each row of a kernel."""
    found = [r for r in records(folder, "checks.jsonl") if "tool" not in r]
    return {f"{r['name']} {r['rows']}": r for r in found}


def test_what_is_not_right_is_checked_by_itself(faulty: tuple[Path, str]) -> None:
    folder, _ = faulty
    last = checked(folder)
    assert len(last) == 4 * len(kernels.ROWS)
    wrong = {key for key, r in last.items() if not r.get("right")}
    assert wrong == {key for key, fault in FAULTS.items() if fault != "beside others"}
    alone = {key for key, r in last.items() if r["at_once"] == 1}
    assert alone == set(FAULTS)
    hung, crashed = last["cluster:512x8x8 marks"], last["vector:64x1x1 packed"]
    assert hung["failed"].startswith("killed after 1 s")
    assert crashed["failed"].startswith("ended with status -6")
    assert "an illegal access" in crashed["output"]
    failures = (folder / "out/failures.txt").read_text()
    assert "grad_hx[1], t 0, b 3, j 17" in failures
    assert "check tile:64x8x1 float16 packed, but by itself it is right" in failures
    assert failures.count("=== check ") == len(FAULTS)


def test_every_test_but_the_bad_ones_passes(faulty: tuple[Path, str]) -> None:
    folder, _ = faulty
    ends = {r["end"].split("::")[1]: r for r in records(folder, "tests.jsonl") if "end" in r}
    assert len(ends) == 30
    passed = {name for name, r in ends.items() if r["outcome"] == "passed"}
    assert passed == {
        "test_warns", "test_threads", *(f"test_good[{i}]" for i in range(20)),
        "test_kernel[cluster]", "test_kernel[tile]",
    }  # fmt: skip
    order = [r["begin"].split("::")[1] for r in records(folder, "tests.jsonl") if "begin" in r]
    assert order.index("test_kernel[cluster]") > order.index("test_hangs")  # wrong by the checks
    assert ends["test_skipped"]["outcome"] == "skipped"
    assert ends["test_hangs"]["failed"] == "hung"
    assert "in test_hangs" in ends["test_hangs"]["report"]  # where it stood
    assert ends["test_ends_the_process"]["failed"] == "the process ended with status 7"
    assert "illegal memory access" in ends["test_poisons_and_passes"]["report"]
    poisons = ends["test_poisons"]["report"]
    assert "'ours' == 'theirs'" in poisons
    assert "the last words of the test" in poisons
    failures = (folder / "out/failures.txt").read_text()
    assert failures.count("=== test_broken.py is not collected") == 1
    assert "no_such_module" in failures
    assert "no current CUDA context" in (folder / "out/log.txt").read_text()


def first_failure(lines: list[str]) -> str:
    return next(line for line in lines if line.startswith("check "))


def test_what_is_printed_is_short_and_ends_with_the_failures(faulty: tuple[Path, str]) -> None:
    folder, printed = faulty
    assert len(printed) <= 11_000
    lines = printed.splitlines()
    assert f"{folder / 'out'}" in lines[-1]
    tail = "\n".join(lines[lines.index(first_failure(lines)) :])
    assert "test_planted.py::test_fails: E" in tail
    assert "check cluster:512x8x8 float16 whole: error 0.5, allowed 0.1: grad_hx[1]" in tail
    assert "the other rows wait" in printed
    assert_comes_home(folder)


def test_what_is_prebuilt_is_imported_beside_the_sources(faulty: tuple[Path, str]) -> None:
    log = (faulty[0] / "out/log.txt").read_text()
    assert "/package/fastrnn/libfastrnn.so" in log
    assert "loads" in next(line for line in log.splitlines() if "] fastrnn" in line)


def test_times_are_of_what_is_right(faulty: tuple[Path, str]) -> None:
    folder, _ = faulty
    assert {r["name"] for r in records(folder, "times.jsonl") if "ns" in r} == {"tile:64x8x1"}


def test_sanitizers_begin_with_what_failed(faulty: tuple[Path, str]) -> None:
    folder, _ = faulty
    runs = {(r["tool"], f"{r['name']} {r['rows']}"): r["found"]
            for r in records(folder, "checks.jsonl") if "tool" in r}  # fmt: skip
    wrong = {key for key, fault in FAULTS.items() if fault != "beside others"}
    of_wrong = {(tool, key) for key in wrong for tool in kernels.TOOLS}
    assert of_wrong <= set(runs)
    expected = dict.fromkeys(runs, "clean")
    for (tool, key), _ in runs.items():
        if key in wrong:
            expected[tool, key] = "failed as without the tool"
        if FAULTS.get(key) == "hang" or (tool, key.split()[0]) == ("initcheck", "vector:64x1x1"):
            expected[tool, key] = "without an answer in time"
    expected["racecheck", "tile:64x8x1 whole"] = "with findings"
    assert runs == expected
    failures = (folder / "out/failures.txt").read_text()
    assert failures.count("=== racecheck of tile:64x8x1 float16 whole\n") == 1
    assert "RACECHECK SUMMARY: 1 hazards" in failures
    for tool in ("memcheck", "synccheck", "initcheck"):
        assert f"=== {tool} of" not in failures


def test_nothing_that_passed_is_run_again(faulty: tuple[Path, str], tmp_path: Path) -> None:
    """With the kernels mended and the earlier evidence, what is left runs, and the other rows."""
    folder, _ = faulty
    plant(tmp_path / "built", {})
    shutil.copytree(folder / "tests", tmp_path / "tests")
    script(tmp_path / "compute-sanitizer", SANITIZER)
    empty = tmp_path / "empty"
    ended = go(tmp_path, "--skip", empty, folder / "out")
    # A process answers for all rows of a kernel of which one was wrong.
    assert set(checked(tmp_path)) == {
        f"{name} {rows}" for name in ("cluster:512x8x8", "vector:64x1x1") for rows in kernels.ROWS
    }  # fmt: skip
    times = {r["name"] for r in records(tmp_path, "times.jsonl")}
    assert times == {"cluster:512x8x8", "vector:64x1x1"}  # nor the limits again
    runs = [
        {(r["tool"], r["name"], r["rows"]) for r in records(f, "checks.jsonl") if r.get("clean")}
        for f in (folder, tmp_path)
    ]
    assert runs[0]
    assert runs[1]
    assert not runs[0] & runs[1]
    again = {r["end"].split("::")[1] for r in records(tmp_path, "tests.jsonl") if "end" in r}
    assert again == {
        "test_hangs", "test_poisons", "test_poisons_and_passes", "test_fails",
        "test_ends_the_process", "test_skipped",
    }  # fmt: skip
    assert "1 before" in next(x for x in ended.stdout.splitlines() if "first rows" in x)
    assert "the other rows wait" not in ended.stdout
    rows = json.loads((tmp_path / "out/gpu-cpu.json").read_text())["rows"]
    assert len(rows) == 8
    assert all(row["forms"] for row in rows.values())
    assert_comes_home(tmp_path)


def test_results_are_merged_and_reported(faulty: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = faulty
    results, docs, readme = tmp_path / "results", tmp_path / "docs", tmp_path / "README.md"
    home = results / "gpu-cpu.json"
    earlier = {"name": "tile:8x8x1", "hash": prepare.hashes()[1], "ns": 1}
    write_whole(home, {
        "rows": {"another": {"hash": "0", "forms": {}}}, "machine": {"copy_GB_per_s": 3000},
        "times": [earlier, {**earlier, "hash": "old"}],
    })  # fmt: skip
    visit.main(["--take", str(folder / "out"), "--results", str(results)])
    document = json.loads(home.read_text())
    (key,) = set(document["rows"]) - {"another"}
    assert document["rows"][key]["hash"] == prepare.hashes()[0]
    assert document["machine"]["copy_GB_per_s"] == 3000  # of an earlier visit
    assert [x["what"] for x in document["limits"]] == ["hop", "complete"]
    assert {t["name"] for t in document["times"]} == {"tile:64x8x1", "tile:8x8x1"}
    assert len(document["times"]) == 2
    readme.write_text("before\n<!-- gpu-table -->\nold\n<!-- /gpu-table -->\nafter\n")
    all_reports.main(["--results", str(results), "--docs", str(docs), "--readme", str(readme)])
    assert "fastrnn µs, eager" in (docs / "benchmarks.md").read_text()
    text = readme.read_text()
    assert "| tiny |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


# --- A library that does not load, and does not compile


def test_without_fastrnn_nn_rnn_is_measured_and_the_compiler_is_heard(tmp_path: Path) -> None:
    plant(tmp_path / "built", {})
    (tmp_path / "built/fastrnn/libfastrnn.so").write_bytes(b"no library")
    (tmp_path / "tests").mkdir()
    noise = "\n".join(f"in instantiation {i} of a template" for i in range(2000))
    compiler = script(
        tmp_path / "g++",
        f"import sys; print('x.cpp:3:1: error: the first of many\\n' + {noise!r}); sys.exit(1)",
    )
    ended = go(tmp_path, CXX=str(compiler), MAX_JOBS="1")
    assert "nn.RNN alone" in ended.stdout
    failures = (tmp_path / "out/failures.txt").read_text()
    assert "no library" in failures or "invalid ELF header" in failures or "too short" in failures
    assert "error: the first of many" in failures
    assert "x.cpp:3:1: error: the first of many" in ended.stdout
    (row,) = json.loads((tmp_path / "out/gpu-cpu.json").read_text())["rows"].values()
    assert list(row["forms"]["eager"]["microseconds"]) == ["nn.RNN"]
    assert "failed" not in row
    assert_comes_home(tmp_path)


def test_nn_rnn_is_measured_without_importing_fastrnn(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    code = f"""
        import sys
        from benchmarks.gpu import compare
        compare.main("--device cpu --theirs-only --facts --rows {tmp_path}/rows.json "
                     "--out {tmp_path}/out.jsonl".split())
        assert "fastrnn" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=ROOT)
    facts, finished = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert "torch" in facts["facts"]
    assert finished == {"finished": True}


# --- An end at any moment


def test_evidence_is_whole_whenever_the_visit_is_killed(tmp_path: Path) -> None:
    plant(tmp_path / "built", FAULTS)
    plant_tests(tmp_path / "tests")
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # its children's files, too, have this in a name
    started = subprocess.Popen(words(tmp_path), cwd=ROOT, stdout=subprocess.DEVNULL, env=env)
    log = tmp_path / "out/log.txt"
    while not log.exists():
        assert started.poll() is None
        time.sleep(0.01)
    seconds = random.uniform(0, 5)
    time.sleep(seconds)
    os.kill(started.pid, signal.SIGKILL)
    started.wait(10)
    assert_comes_home(tmp_path)
    assert "no GPU, sources" in log.read_text(), seconds
    for path in (tmp_path / "out").glob("*.jsonl"):
        assert process.read_records(path), seconds
    if Path("/proc/self/cmdline").exists():
        time.sleep(0.5)
        assert not [
            path for path in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path) in read(path)
        ], seconds  # its children have ended with it


def read(path: Path) -> str:
    """Of a process, which may end at any moment."""
    try:
        return path.read_text()
    except OSError:
        return ""


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


# --- Processes


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


# --- Steps


def a_visit(folder: Path, *options: object) -> evidence.Visit:
    words = ["--prebuilt", folder / "built", "--out", folder / "out", *options]
    this = evidence.Visit(visit.parse(list(map(str, words))), folder)
    this.document = {"machine": {}}
    return this


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


# --- What is built


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


# --- Rows


def test_a_form_in_plain_values() -> None:
    samples = {"nn.RNN": [4e-6, 8e-6, 6e-6], "fastrnn": [2e-6, 4e-6, 3e-6]}
    timed = timing.Row(samples, {"nn.RNN": 1, "fastrnn": 1}, None, 1.0, 1, False)
    found = compare.describe(timed, steps=2, bound=1.5e-6)
    assert found["ratio"] == pytest.approx(2)
    assert found["microseconds"] == pytest.approx({"nn.RNN": 6, "fastrnn": 3})
    assert found["microseconds_per_step"] == pytest.approx({"nn.RNN": 3, "fastrnn": 1.5})
    assert found["fraction_of_bound"] == pytest.approx({"nn.RNN": 0.25, "fastrnn": 0.5})
    assert found["rounds"] == 3


@pytest.mark.parametrize(
    ("kernel", "avoid", "measured"),
    [
        ("reference (no kernel)", [], False),
        ("cpu tile:64x8x1, backward cluster:512x8x8 (relu)", ["cluster:512x8x8 float32"], False),
        ("cpu tile:64x8x1, backward cluster:512x8x8 (relu)", ["cluster:512x8x8 float16"], True),
    ],
)
def test_kernels_that_are_not_measured(
    kernel: str, avoid: list[str], measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = shapes.plan(True, ["tiny"], toy=True)[1]
    monkeypatch.setattr("fastrnn.info", lambda *_: {"kernel": kernel})
    found = compare.measure(row, "cpu", 0.001, avoid=avoid)
    times = found["forms"]["eager"]["microseconds"]
    assert list(times) == (["nn.RNN", "fastrnn"] if measured else ["nn.RNN"])


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


def test_a_row_that_failed_does_not_replace_a_good_one() -> None:
    good, bad = {"hash": "a", "forms": {}}, {"hash": "a", "failed": "hung"}
    assert evidence.better(good, bad) is good
    assert evidence.better(None, bad) is bad
    assert evidence.better({**good, "hash": "b"}, bad) is bad


# --- The report


def test_the_readme_before_anything_is_measured() -> None:
    text = (ROOT / "README.md").read_text()
    _, _, rest = text.partition("<!-- gpu-table -->\n")
    documents = [json.loads(p.read_text()) for p in visit.RESULTS.glob("gpu-*.json")]
    assert rest.partition("\n<!-- /gpu-table -->")[0] == report.readme_table(documents)


def test_the_report_of_nn_rnn_alone(tmp_path: Path) -> None:
    key = str(shapes.plan()[0])
    row = {"hash": "a", "kernel": None, "failed": "hung", "forms": {"eager": {"microseconds": {
        "nn.RNN": 5.0}}}}  # fmt: skip
    document = {
        "gpu_visit": 1, "device": "cuda", "card": "h100", "command": "visit", "steps": {},
        "machine": {"gpu": "NVIDIA H100", "hash": "b"}, "rows": {key: row},
    }  # fmt: skip
    text = report.section("gpu-h100", document, tmp_path)
    assert "what there is to beat" in text
    assert "fastrnn µs" not in text
    assert "failed: hung; of other sources, a" in text
    assert not (tmp_path / "ratio-gpu-h100.png").exists()
    assert "nothing has been measured" in report.readme_table([document])


# --- What is asked for


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
