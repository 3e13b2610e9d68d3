"""A plugin of pytest for `benchmarks.gpu.tests`: a line of JSON when each test begins and ends.

After each test the device is synchronised. Where that raises, it serves this process no more: the
process ends, and the tests that are left run in a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from benchmarks.gpu.process import shortened

POISONED = 3  # exit status

out: TextIO
reports: list[pytest.TestReport] = []


def write(record: dict[str, Any]) -> None:
    out.write(json.dumps(record) + "\n")
    out.flush()


def synchronise() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--out-file", type=Path, help="append lines of JSON")
    parser.addoption("--done-file", type=Path, help="JSON list of tests to leave out")
    parser.addoption("--shard", default="0/1", help="which, of how many")
    parser.addoption("--late", default="", help="words in the names of tests that come last")


def pytest_configure(config: pytest.Config) -> None:
    global out
    out = config.getoption("--out-file").open("a")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    done = set(json.loads(config.getoption("--done-file").read_text()))
    shard, count = map(int, config.getoption("--shard").split("/"))
    late = config.getoption("--late").split()
    items[:] = [item for item in items[shard::count] if item.nodeid not in done]
    items.sort(key=lambda item: any(word in item.nodeid for word in late))
    write({"shard": shard, "tests": len(items)})
    torch = sys.modules.get("torch")
    if items and torch is not None and torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # CUDA's start counts for no test
            torch.zeros(1, device="cuda")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    reports.clear()
    write({"begin": item.nodeid})
    result = yield
    poison = ""
    write({"synchronising": item.nodeid})
    try:
        synchronise()
    except Exception as e:
        poison = f"\nafter the test, synchronising: {type(e).__name__}: {e}"
    bad = [r for r in reports if r.failed]
    record: dict[str, Any] = {"end": item.nodeid, "outcome": outcome_of(reports)}
    record["seconds"] = round(sum(r.duration for r in reports), 2)
    if bad or poison:
        record["outcome"] = "failed"
        record["report"] = shortened("\n".join([*map(text_of, bad), poison]))
    write(record)
    if poison:
        os._exit(POISONED)
    return result


def outcome_of(reports: list[pytest.TestReport]) -> str:
    return next((r.outcome for r in reports if r.outcome != "passed"), "passed")


def text_of(report: pytest.TestReport) -> str:
    return "\n".join([report.longreprtext, *(f"{name}:\n{text}" for name, text in report.sections)])


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    reports.append(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.failed:
        write({"uncollected": report.nodeid, "report": report.longreprtext})


def pytest_warning_recorded(warning_message: warnings.WarningMessage, nodeid: str) -> None:
    text = f"{warning_message.category.__name__}: {warning_message.message}"
    write({"warning": text, "test": nodeid})


def pytest_sessionfinish() -> None:
    write({"finished": True})
