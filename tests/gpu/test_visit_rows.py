"""The rows that a visit to a GPU measures, and their report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from planted_visit import ROOT

from benchmarks import readme, timing
from benchmarks.contestants import make_contestant
from benchmarks.gpu import compare, evidence, report, shapes, visit


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


def test_the_readme_says_what_was_measured() -> None:
    text = (ROOT / "README.md").read_text()
    _, _, rest = text.partition("<!-- gpu-table -->\n")
    documents = {p.stem: json.loads(p.read_text()) for p in visit.RESULTS.glob("gpu-*.json")}
    assert rest.partition("\n<!-- /gpu-table -->")[0] == readme.gpu(documents)


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
    assert "nothing has been measured" in readme.gpu({"gpu-h100": document})
