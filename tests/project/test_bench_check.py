"""benchmarks.check: which results it takes, and what it calls slower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check, compare, machine, shapes


def document(date: str, ratio: float, **machine_facts: Any) -> dict[str, Any]:
    facts = {
        "commit": "0" * 12,
        "torch": "2.13.0",
        "date": date,
        **machine.facts(),
        **machine_facts,
    }
    facts["date"] = date
    rows = [
        {"id": name, "mode": mode, "threads": threads, "ratio": ratio * threads, "kind": "small"}
        for name in check.SHAPES
        for mode in compare.MODES
        for threads in (1, 2)
    ]
    return {"machine": facts, "rows": rows}


def test_the_newest_results_of_the_same_processor() -> None:
    old, new = document("2026-01-01", 1.0), document("2026-02-01", 2.0)
    other = document("2026-03-01", 3.0, cpu="another")
    narrow = document("2026-03-01", 3.0, instruction_set="none")
    assert check.earlier_results(machine.facts(), [new, old, other, narrow]) is new
    assert check.earlier_results(machine.facts(), [other, narrow]) is None


def test_a_row_is_slower_from_ten_percent_on() -> None:
    before = {("a", "inference"): 2.0, ("a", "training"): 2.0}
    now = {("a", "inference"): 1.84, ("a", "training"): 1.79, ("b", "training"): 1.0}
    header, same, slower, new = check.table(before, now)
    assert header.split() == ["shape", "before", "now", "change"]
    assert same.split() == ["a", "inference", "2.00", "1.84", "-8%"]
    assert slower.split() == ["a", "training", "2.00", "1.79", "-10%", "slower"]
    assert new.split() == ["b", "training", "-", "1.00"]


def test_its_shapes_exist() -> None:
    assert [str(s) for s in shapes.select(list(check.SHAPES))] == list(check.SHAPES)


@pytest.mark.parametrize(("ratio", "code"), [(1e-3, 0), (1e9, 1)])
def test_measures_and_compares(
    ratio: float,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(check, "SHAPES", check.SHAPES[:1])
    path = tmp_path / "before.json"
    path.write_text(json.dumps(document("2026-01-01", ratio)))
    assert check.main(["--against", str(path), "--budget", "0.1"]) == code
    out = capsys.readouterr().out
    assert out.count("B1-T10-I1-H32 ") == 2
    assert ("slower" in out) == bool(code)


def test_without_results_it_says_how_to_make_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document("2026-01-01", 1.0, cpu="another")))
    assert check.main(["--against", str(path)]) == 2
    assert "has no results of this processor" in capsys.readouterr().out
