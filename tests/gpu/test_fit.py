"""benchmarks/gpu/fit.py, and csrc/cuda/choose.cpp on an H200."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.fit import (
    PASSES,
    Choice,
    Measured,
    Time,
    calls_of,
    columns,
    main,
    parse,
    regrets,
)
from benchmarks.gpu.shapes import plan

LINE = {
    "name": "cluster:512x8x8", "dtype": "float16", "pass": "forward", "groups": 66, "at_once": 16,
    "estimated_at_once": 16, "steps": 768, "ns": 1234.5,
}  # fmt: skip
CLUSTERS = {2: 66, 4: 30, 8: 15}  # of so many blocks that run at once on an H200, by its driver


@pytest.fixture
def choice() -> Choice:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return Choice()


def as_in_the_table(choice: Choice) -> list[Time]:
    """Times of an H200 where a group and a wave take what the table says."""

    def places() -> Iterator[Time]:
        for (name, dtype), c in choice.configurations.items():
            blocks = int(name.split("x")[-1])
            sharing = round(c.at_once * blocks / 132)  # blocks of a multiprocessor
            at_once = CLUSTERS[blocks] * sharing if blocks > 1 else c.at_once
            for direction in PASSES:
                for groups, ns in {1: c.alone, at_once: c.full, 2 * at_once: 2 * c.full}.items():
                    yield Time(name, dtype, direction, groups, at_once, c.at_once, ns)

    return list(places())


def test_times_between_measurements() -> None:
    measured = Measured(4, {1: 100.0, 2: 120.0, 4: 160.0, 8: 300.0})
    for groups, ns in {
        2: 120,
        3: 140,
        4: 160,
        6: 150 + 120,  # a full wave, of which two take 300, and one of two groups
        8: 300,
        12: 450,
        13: 450 + 100,
    }.items():
        assert measured.at(groups) == ns
    assert Measured(4, {1: 100.0}).at(5) == 200


@pytest.mark.parametrize(
    ("dtype", "name", "size"),
    [
        ("float32", "vector:64x2x1", 64),
        ("bfloat16", "tile:128x16x1", 100),
        ("float16", "cluster:512x8x8", 512),
        ("float16", "cluster:1024x16x8", 513),
    ],
)
def test_estimates(choice: Choice, dtype: str, name: str, size: int) -> None:
    times = as_in_the_table(choice)
    choice.on_device_of(times)
    (at_once,) = {t.at_once for t in times if (t.name, t.dtype) == (name, dtype)}
    c = choice.configurations[name, dtype]
    third = c.alone + (c.full - c.alone) * 2 / (at_once - 1)  # of three groups
    expected = {
        1: c.alone,
        3: third,
        at_once: c.full,
        at_once + 1: c.full + c.alone,
        2 * at_once: 2 * c.full,
        5 * at_once + 3: 5 * c.full + third,
    }
    calls = [f"{dtype} 0 forward {groups * c.rows} {size}" for groups in expected]
    calls.append(f"{dtype} 0 forward {2 * c.rows + 1} {size}")  # a group that is not full
    found = [answer.ns[name] for answer in choice.of(calls)]
    assert found == pytest.approx([*expected.values(), third], rel=1e-4)


def test_estimates_of_steps(choice: Choice) -> None:
    calls = ["float32 0 forward 64 1000", "float32 1 forward 64 1000", "float64 0 forward 1 10"]
    found = choice.of(calls)
    assert [answer.chosen for answer in found] == ["step"] * 3
    assert [answer.ns["step"] for answer in found] == pytest.approx([11200, 8640, 8000.005])


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("float32 0 forward 1 64", "vector:64x1x1"),
        ("float32 0 backward 32 64", "vector:64x1x1"),
        ("float32 1 forward 512 64", "vector:64x2x1"),
        ("float32 0 forward 64 128", "vector:128x1x1"),
        ("float32 0 backward 256 128", "vector:128x2x1"),
        ("float32 1 forward 1024 128", "tile:128x8x1"),
        ("float32 0 forward 16 192", "vector:192x1x1"),
        ("float32 0 forward 32 256", "cluster:256x1x2"),
        ("float32 1 backward 256 256", "cluster:256x8x2"),
        ("float32 0 forward 256 256", "cluster:256x4x2"),
        ("float32 0 backward 16 264", "cluster:384x1x4"),
        ("float32 1 forward 64 384", "cluster:384x8x4"),
        ("float32 0 forward 1 512", "cluster:512x1x8"),
        ("float32 0 forward 64 512", "cluster:512x2x8"),
        ("float32 1 backward 128 512", "cluster:512x8x8"),
        ("float16 0 forward 32 64", "tile:64x8x1"),
        ("bfloat16 0 backward 512 64", "tile:64x8x1"),
        ("float16 0 forward 1024 128", "tile:128x8x1"),
        ("bfloat16 0 forward 64 256", "tile:256x8x1"),
        ("float16 0 backward 64 384", "cluster:384x8x4"),
        ("float16 0 forward 64 512", "cluster:512x8x8"),
        ("bfloat16 0 backward 256 512", "cluster:512x16x4"),
        ("bfloat16 0 forward 16 768", "cluster:768x8x8"),
        ("bfloat16 0 backward 64 1024", "cluster:1024x8x8"),
        ("float16 0 forward 128 1024", "cluster:1024x16x8"),
    ],
)  # fmt: skip
def test_the_choice_on_an_h200(choice: Choice, call: str, expected: str) -> None:
    """What was measured to be the fastest, or within 5 % of it."""
    choice.on_device_of(as_in_the_table(choice))
    (answer,) = choice.of([call])
    assert answer.chosen == expected


def test_regret(choice: Choice) -> None:
    """The table prefers a row in a group, where here two are faster."""
    times = [
        Time("vector:64x1x1", "float32", "forward", 1, 132, 132, 200.0),
        Time("vector:64x2x1", "float32", "forward", 1, 132, 132, 160.0),
        Time("vector:64x1x1", "float32", "backward", 1, 132, 132, 100.0),  # not asked for
    ]
    choice.on_device_of(times)
    calls = ["float32 0 forward 1 64", "float32 0 forward 264 64", "float32 0 forward 1 65"]
    found = regrets(choice, times, calls)
    assert [r.call for r in found] == calls[:2]  # none of these has 65 units
    alone, many = found
    assert (alone.best, alone.chosen, alone.ratio) == ("vector:64x2x1", "vector:64x1x1", 1.25)
    # Of two rows each, 132 groups run at once; of one row two waves.
    assert (many.best, many.chosen, many.ratio) == ("vector:64x2x1", "vector:64x2x1", 1)


def test_no_regret_where_times_are_as_in_the_table(choice: Choice) -> None:
    times = as_in_the_table(choice)
    choice.on_device_of(times)
    calls = calls_of(plan())
    found = regrets(choice, times, calls)
    assert len(found) > 200
    assert max(r.ratio for r in found) == pytest.approx(1)
    # It is what choose() takes, but for steps, of which there are no times.
    chosen = [answer.chosen for answer in choice.of([r.call for r in found])]
    assert [r.chosen for r in found] == chosen


def test_columns(choice: Choice) -> None:
    times = as_in_the_table(choice)
    lines = columns(choice.table, times)[1:]
    assert [line.split()[0] for line in lines] == [c.name for c in choice.table]
    assert all(line.endswith(" 0.0 %") for line in lines)

    # The mean of passes and dtypes; what did not run alone and in a full wave has no line.
    c = choice.configurations["tile:64x8x1", "float16"]
    here = [t for t in times if t.name == c.name and t.dtype in c.dtypes]
    slow = replace(here[0], ns=c.alone + 400)
    (line,) = columns(choice.table, [slow, *here[1:]])[1:]
    alone = c.alone + 100
    assert line.split()[-6:-1] == [
        f"{alone},", f"{c.full}", f"{c.alone},", f"{c.full}", f"{100 - 100 * c.alone / alone:.1f}",
    ]  # fmt: skip
    assert columns(choice.table, [t for t in here if t.groups > 1])[1:] == []

    # Times of a build whose blocks took more of a multiprocessor.
    fewer = [replace(t, estimated_at_once=132) for t in here]
    (line,) = columns(choice.table, fewer)[1:]
    assert line.endswith(" 0.0 %  132 groups at once, now 264")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"at_once": 14}, 'line 2: expected one device, "at_once" as before'),
        ({"hash": "other"}, 'line 2: expected one build, "hash" as before'),
    ],
)
def test_times_that_do_not_belong_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse([json.dumps(LINE), json.dumps({**LINE, **changes})])


def test_lines_that_are_no_times(choice: Choice, tmp_path: Path) -> None:
    assert parse(['{"limit": {"name": "launch"}}', '{"failed": "no memory"}']) == []
    path = tmp_path / "times.jsonl"
    for text, message in {
        "": "expected measurements, got none",
        "usage": "line 1: expected what `kernels time` prints, got usage",
        '{"ns": 1}': "line 1: expected what `kernels time` prints",
        json.dumps(LINE) + "\n5": "line 2: expected what `kernels time` prints, got 5",
        json.dumps({**LINE, "name": "step"}): "expected configurations of these sources, got",
    }.items():
        path.write_text(text)
        with pytest.raises(SystemExit, match=message):
            main([str(path)])


def test_report(choice: Choice, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.jsonl"
    lines = [{**vars(t), "pass": t.direction, "steps": 768} for t in as_in_the_table(choice)]
    path.write_text("\n".join(map(json.dumps, lines)))
    main([str(path)])
    text = capsys.readouterr().out
    assert "chosen over best: mean 1.000, worst 1.00, of 2" in text
    assert "choose() takes step for 0 of these calls" in text
