"""The order that the CUDA kernels give their memory, under ThreadSanitizer and with calls left out.

Groups of rows and both directions run together. What ThreadSanitizer cannot see, the results show.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import emulation
import pytest
import torch
from emulation import HERE, ROOT


@pytest.fixture(scope="module")
def race_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """race.cpp under ThreadSanitizer, which does not look into the fibers."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    folder = tmp_path_factory.mktemp("race")
    common = [compiler, "-std=c++20", "-O1", "-g1", "-DFASTRNN_ON_CPU"]
    common += [f"-I{ROOT / 'csrc'}", f"-I{HERE}"]
    instrumented = [HERE / "race.cpp", HERE / "kernels.cpp", ROOT / "csrc/cuda/choose.cpp"]
    compilations = [
        subprocess.Popen([*common, *flags, "-c", source, "-o", folder / f"{source.stem}.o"])
        for flags, sources in (
            (["-fsanitize=thread"], instrumented),
            ([], [HERE / "fibers.cpp", HERE / "banks.cpp"]),
        )
        for source in sources
    ]
    assert not any(compilation.wait() for compilation in compilations)
    program = folder / "race"
    objects = sorted(folder.glob("*.o"))
    subprocess.run([*common, "-fsanitize=thread", *objects, "-o", program, "-pthread"], check=True)
    return program


def run(program: Path, *arguments: str) -> tuple[int, str]:
    """Status and report; ends at the first race."""
    options = {"TSAN_OPTIONS": "halt_on_error=1"}
    run = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=600, env=os.environ | options
    )
    return run.returncode, run.stdout + run.stderr


def test_races(race_program: Path) -> None:
    """ThreadSanitizer finds nothing."""
    status, report = run(race_program)
    assert status == 0, report


def not_seen(kernel: str, hidden_size: int, fault: str, why: str) -> Any:
    mark = pytest.mark.xfail(reason=why, strict=True, raises=AssertionError)
    return pytest.param(kernel, hidden_size, fault, RACE, marks=[mark, pytest.mark.slow])


RACE = "data race"


@pytest.mark.parametrize(
    ("kernel", "hidden_size", "fault", "message"),
    [
        # Of one direction the last units, and of each row, are the next one's too.
        ("vector", 60, "directions", RACE),
        ("vector", 60, "rows", RACE),
        ("tile", 248, "directions", RACE),
        ("cluster", 304, "directions", RACE),
        ("cluster", 200, "rows", RACE),
        # A call is left out, in one function.
        ("vector", 60, "block_sync in receive", RACE),
        ("tile", 62, "block_sync in receive", RACE),
        ("lengths", 0, "block_sync in check_lengths_kernel", RACE),
        # An address is read before it is there.
        ("grads", 0, "block_sync in weight_grads_kernel", "SEGV"),
        ("tile", 248, "warp_sync in clear", RACE),
        ("cluster", 304, "warp_sync in send", RACE),
        ("cluster", 304, "try_wait in wait", RACE),
        ("cluster", 304, "cluster_wait in load", "store_async before its barrier is there"),
        ("cluster", 304, "cluster_arrive in ClusterGroup", "every thread waits"),
        not_seen(
            "tile",
            248,
            "warp_sync in wait",
            "each lane copies the very 16 bytes whose address it gives to ldmatrix, which here it "
            "reads itself; on a GPU they are read for all lanes",
        ),
        not_seen(
            "cluster",
            304,
            "publish_barriers in ClusterGroup",
            "the cluster's barrier that follows orders all memory here; on a GPU it may not order "
            "how a barrier is initialised",
        ),
        not_seen(
            "cluster",
            304,
            "cluster_arrive in leave",
            "only after a wait in vain can a block end before what is sent to it has come; here "
            "nobody waits in vain before all of it has",
        ),
    ],
)
def test_a_fault_is_found(
    race_program: Path, kernel: str, hidden_size: int, fault: str, message: str
) -> None:
    _, report = run(race_program, kernel, str(hidden_size), fault)
    if "no such call" in report:
        raise ValueError(fault)
    assert message in report


@pytest.fixture
def plant() -> Iterator[Callable[..., None]]:
    cuda = emulation.module()
    yield cuda.plant
    cuda.plant()


VECTOR, TILE = ("vector:64x4x1", torch.float32), ("tile:64x8x1", torch.float16)
CLUSTER = ("cluster:256x4x2", torch.float32)


@pytest.mark.parametrize(
    ("name", "dtype", "missing"),
    [
        *(
            (*of, call)
            for of in (VECTOR, TILE, CLUSTER)
            for call in ("wait_copies", "commit_copies")
        ),
        # Of what an exchange announces, 16 bytes, or all with the arrival.
        (*CLUSTER, "bytes"),
        (*CLUSTER, "arrival"),
    ],
)
def test_results_without(
    plant: Callable[..., None], name: str, dtype: torch.dtype, missing: str
) -> None:
    """A copy that nobody waits for may come too late; a cluster waits for what was announced."""
    H, B, _ = map(int, name.split(":")[1].split("x"))
    torch.manual_seed(0)
    igates, w_hh = torch.randn(9, B, H).to(dtype), (torch.randn(H, H) * H**-0.5).to(dtype)

    def results() -> torch.Tensor:
        output, hn = torch.empty_like(igates), torch.empty_like(igates[0])
        direction = (False, w_hh, None, None, None, igates, output, None, hn)
        emulation.module().launch_forward(name, False, [direction])
        return output

    right = results()
    assert not right.isnan().any()
    plant(missing=missing)
    assert not torch.equal(results(), right)
