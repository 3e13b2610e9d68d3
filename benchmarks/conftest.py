from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from benchmarks import machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every shape, not the representative set")


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Keep the representative shapes, unless --full is given, and as many threads as there are."""
    processors = machine.facts()["processors"]

    def wanted(item: Any) -> bool:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        shape = parameters.get("shape")
        if parameters.get("threads", 1) > processors:
            return False
        return config.getoption("--full") or shape is None or shape.quick

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    machine_info.clear()
    machine_info.update(machine.facts())


def pytest_benchmark_update_commit_info(commit_info: dict[str, Any]) -> None:
    commit_info.clear()
    commit_info["id"] = machine.commit()


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Leave out the time of every single round: they fill hundreds of megabytes."""
    for benchmark in output_json["benchmarks"]:
        del benchmark["stats"]["data"]


@pytest.fixture
def threads() -> int:
    """One thread, where a benchmark has no parameter of that name."""
    return 1


@pytest.fixture(autouse=True)
def facts(benchmark: Any, threads: int) -> Iterator[None]:
    """Set torch's threads, and put machine, versions, commit and threads beside the times."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    benchmark.extra_info.update(machine.facts())
    yield
    torch.set_num_threads(before)


@pytest.fixture
def record(benchmark: Any, facts: None) -> Any:
    """Put an amount of arithmetic beside the time, and the speed reached as a share of limits."""

    def put(gflop: float, limits: dict[str, float]) -> None:
        benchmark.extra_info.update(gflop=gflop)
        if benchmark.stats is None:  # --benchmark-disable
            return
        speed = gflop / benchmark.stats.stats.median
        benchmark.extra_info.update(gflops=speed, limits_gflops=limits)
        shares = {f"share_of_{name}": speed / limit for name, limit in limits.items()}
        benchmark.extra_info.update(shares)

    return put
