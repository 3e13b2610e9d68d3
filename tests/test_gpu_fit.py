"""benchmarks/gpu/fit.py: constants from times, and what a choice by them costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu.fit import (
    MULTIPROCESSORS,
    PASSES,
    Measured,
    Model,
    Time,
    calls_of,
    fit,
    main,
    parse,
    regrets,
)
from benchmarks.gpu.shapes import plan

TRUE = {
    "latency": 240, "fma_rate": 80, "tf32_rate": 220, "narrow_rate": 450, "shared_rate": 90,
    "cluster_hop": 420, "cluster_rate": 12,
}  # fmt: skip
LINE = {
    "name": "cluster:512x8x8", "dtype": "float16", "pass": "forward", "groups": 66, "at_once": 16,
    "steps": 768, "ns": 1234.5,
}  # fmt: skip


@pytest.fixture
def model() -> Model:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return Model()


def synthetic(model: Model, kernel: str = "", noise: float = 0.02) -> list[Time]:
    """Times as the model has them with the constants in TRUE, and some noise."""

    def places() -> Iterator[Time]:
        for name, dtype in model.configurations:
            at_once = MULTIPROCESSORS // int(name.split("x")[-1])
            for direction in PASSES if name.startswith(kernel) else ():
                for groups in (1, at_once // 2, at_once, 2 * at_once):
                    yield Time(name, dtype, direction, groups, at_once, 1.0)

    times = list(places())
    model.on_device_of(times)
    constants = np.array(
        [TRUE.get(n, x) for n, x in zip(model.names, model.constants, strict=True)]
    )
    ns = model.estimate([model.call(t) for t in times], constants)
    ns *= np.exp(np.random.default_rng(0).normal(0, noise, len(ns)))
    return [replace(t, ns=float(x)) for t, x in zip(times, ns, strict=True)]


def test_constants_are_found(model: Model) -> None:
    found = fit(model, synthetic(model))
    for i, name in enumerate(model.names):
        if name in TRUE:
            assert found.constants[i] == pytest.approx(TRUE[name], rel=0.05), name
            assert found.remark(i).startswith("± ")
        else:
            assert found.constants[i] == pytest.approx(model.constants[i])
            assert found.remark(i).startswith("kept: ")


def test_constants_without_data_are_kept(model: Model) -> None:
    found = fit(model, synthetic(model, "vector"))
    for i, name in enumerate(model.names):
        if name in ("latency", "fma_rate"):
            assert found.constants[i] == pytest.approx(TRUE[name], rel=0.05)
        else:
            assert found.constants[i] == pytest.approx(model.constants[i])
            assert found.remark(i).startswith("kept: ")


def test_constants_that_times_do_not_tell_apart(model: Model) -> None:
    """Of one configuration alone, a hop between blocks looks like any other latency."""
    alone = [t for t in synthetic(model, "cluster:512x1x8") if t.groups == 1]
    found = fit(model, alone)
    for name in ("latency", "cluster_hop", "cluster_rate", "fma_rate"):
        assert found.remark(model.names.index(name)).startswith("not determined: ")


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


def test_regret(model: Model) -> None:
    """The model prefers a row in a group, where here two are faster."""
    times = [
        Time("vector:64x1x1", "float32", "forward", 1, 132, 200.0),
        Time("vector:64x2x1", "float32", "forward", 1, 132, 160.0),
        Time("vector:64x1x1", "float32", "backward", 1, 132, 100.0),  # not asked for
    ]
    model.on_device_of(times)
    free = model.constants.copy()  # products take no time: the fewest waves are best
    free[model.names.index("fma_rate")] = 1e9
    free[model.names.index("warp_load")] = 1e-9
    calls = ["float32 0 forward 1 64", "float32 0 forward 264 64", "float32 0 forward 1 65"]
    found = regrets(model, times, calls, np.vstack([model.constants, free]))
    assert [r.call for r in found] == calls[:2]  # none of these has 65 units
    alone, many = found
    assert (alone.best, alone.chosen[0], alone.times[0]) == ("vector:64x2x1", "vector:64x1x1", 1.25)
    # Of two rows each, 132 groups run at once; of one row two waves.
    assert (many.best, many.chosen[1], many.times[1]) == ("vector:64x2x1", "vector:64x2x1", 1)


def test_the_choice_is_that_of_choose(model: Model) -> None:
    times = [replace(t, ns=100.0) for t in synthetic(model)]
    calls = calls_of(plan())
    found = regrets(model, times, calls, model.constants[None])
    chosen = model.choose([r.call for r in found])
    assert len(found) > 200
    assert [r.chosen[0] for r in found] == [
        r.chosen[0] if name == "step" else name for r, name in zip(found, chosen, strict=True)
    ]
    assert chosen.count("step") < 20


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


def test_lines_that_are_no_times(model: Model, tmp_path: Path) -> None:
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


def test_report(model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "times.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({**vars(t), "pass": t.direction, "steps": 768})
            for t in synthetic(model, "tile", noise=0)
        )
    )
    main([str(path)])
    text = capsys.readouterr().out
    assert "1.000 after" in text
    assert "    .latency = 240,         // ± " in text
    assert "    .cluster_hop = 300,     // kept: no measured time depends on it" in text
    assert "worst before" in text
