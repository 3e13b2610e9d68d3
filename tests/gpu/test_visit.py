"""A visit to a GPU without a GPU: its evidence whatever fails, and whenever it ends."""

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
from pathlib import Path

import pytest
from planted_visit import (
    FAULTS,
    ROOT,
    SANITIZER,
    Record,
    assert_comes_home,
    go,
    plant,
    plant_tests,
    records,
    script,
    words,
)

from benchmarks import report as all_reports
from benchmarks.gpu import kernels, prepare, process, visit
from benchmarks.gpu.process import write_whole


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
    blocks = "".join(
        f"<!-- {x} -->\nold\n<!-- /{x} -->\n" for x in ("headline", "speed", "gpu-table")
    )
    readme.write_text(f"before\n{blocks}after\n")
    all_reports.main(["--results", str(results), "--docs", str(docs), "--readme", str(readme)])
    assert "fastrnn µs, eager" in (docs / "benchmarks/gpu-cpu.md").read_text()
    text = readme.read_text()
    assert "in training" in text
    assert "| tiny" in (docs / "benchmarks.md").read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")


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
