"""The plan of a call on the CPU at and around each threshold, and that any plan may be forced."""

from __future__ import annotations

from typing import Any

import pytest
import raw
import torch
from cases import Case, assert_as_accurate
from problems import Problem

import cpu_build
from benchmarks import thresholds
from benchmarks.thresholds import NEVER

FLOAT32, FLOAT64, BFLOAT16 = 0, 1, 2  # the codes of csrc/rnn.h
SSE2, AVX2, AVX512 = 32, 64, 256  # bytes of a panel

PROBLEM = {
    "backward": False,
    "seq_len": 20,
    "batch": 20,
    "input_size": 20,
    "hidden_size": 48,
    "num_layers": 1,
    "num_directions": 1,
    "packed": False,
}


@pytest.fixture(scope="module")
def kernels():
    return cpu_build.kernels()


def choose(
    kernels: Any,
    *,
    dtype: int = FLOAT32,
    pairs: bool = False,
    panel_bytes: int = AVX512,
    threads: int = 1,
    **sizes: int,
) -> dict[str, Any]:
    problem = PROBLEM | sizes
    problem.setdefault("first_rows", problem["batch"])
    problem.setdefault("rows", problem["seq_len"] * problem["batch"])
    return kernels.choose(problem, dtype, pairs, panel_bytes, threads)


def row(expected: dict[str, Any], **given: Any) -> Any:
    id = "-".join(f"{name}={value}" for name, value in (given | expected).items())
    return pytest.param(given, expected, id=id)


THREADS = [
    row({"threads": 1}, threads=2, seq_len=11, batch=2, input_size=50, hidden_size=50),
    row({"threads": 2}, threads=2, seq_len=12, batch=2, input_size=50, hidden_size=50),
    row({"threads": 1}, threads=1, seq_len=12, batch=2, input_size=50, hidden_size=50),
    # Forward no thread without a row, unless it has columns.
    row({"threads": 1}, threads=2, seq_len=2000, batch=1, hidden_size=128),
    row({"threads": 3}, threads=4, seq_len=2000, batch=3, hidden_size=128),
    row({"threads": 2}, threads=2, seq_len=2000, batch=1, hidden_size=128, backward=True),
    row({"threads": 2}, threads=2, batch=1, hidden_size=500),
    # Rows as they lie in memory: all of a padded call, those that there are of a packed one.
    row({"threads": 2}, threads=2, rows=20),
    row({"threads": 1}, threads=2, rows=20, packed=True),
    row({"threads": 1}, threads=2, seq_len=0, rows=0, first_rows=0),
    # A step's work.
    row({"share_columns": False}, threads=2, batch=1, hidden_size=499),
    row({"share_columns": True}, threads=2, batch=1, hidden_size=500),
    row({"share_columns": False}, threads=1, batch=1, hidden_size=500),
    row({"share_columns": False}, threads=2, batch=1, hidden_size=500, dtype=BFLOAT16),
    # Two rows a thread, or ten.
    row({"share_columns": True}, threads=2, batch=3, hidden_size=300),
    row({"share_columns": False}, threads=2, batch=4, hidden_size=300),
    row({"share_columns": True}, threads=4, batch=7, hidden_size=300),
    row({"share_columns": False}, threads=2, batch=19, hidden_size=724),
    row({"share_columns": True}, threads=2, batch=19, hidden_size=725),
    row({"share_columns": False}, threads=2, batch=20, hidden_size=725),
    row({"share_columns": False}, threads=2, batch=19, hidden_size=511, dtype=FLOAT64),
    row({"share_columns": True}, threads=2, batch=19, hidden_size=512, dtype=FLOAT64),
    # 128 columns a thread.
    row({"share_columns": True}, threads=4, batch=39, hidden_size=512, dtype=FLOAT64),
    row({"share_columns": False}, threads=5, batch=39, hidden_size=512, dtype=FLOAT64),
    # Twelve rows of grad_input a thread.
    row({"share_input_grad": False}, threads=2, seq_len=23, batch=1, hidden_size=500),
    row({"share_input_grad": True}, threads=2, seq_len=24, batch=1, hidden_size=500),
]
FORMS = [
    row({"form": "packed"}, seq_len=4, batch=4, hidden_size=63),
    row({"form": "as they came"}, seq_len=4, batch=4, hidden_size=64),
    row({"form": "packed"}, seq_len=17, batch=1, hidden_size=64),
    row({"form": "as they came"}, seq_len=17, batch=2, rows=16, hidden_size=64),
    row({"form": "as they came"}, seq_len=1, batch=40, hidden_size=64),
    row({"form": "packed"}, seq_len=1, batch=41, hidden_size=64),
    row({"form": "packed"}, seq_len=2, batch=9, hidden_size=64),
    row({"form": "as they came"}, seq_len=2, batch=20, rows=20, hidden_size=64),
    row({"form": "as they came"}, seq_len=1, batch=96, hidden_size=64, backward=True),
    row({"form": "packed"}, seq_len=1, batch=97, hidden_size=64, backward=True),
    row({"form": "packed"}, seq_len=1, batch=96, hidden_size=63, backward=True),
    row({"form": "as they came"}, seq_len=1, batch=16, hidden_size=64, dtype=BFLOAT16, pairs=True),
    row({"form": "packed pairs"}, seq_len=1, batch=17, hidden_size=64, dtype=BFLOAT16, pairs=True),
]
STEPS = [
    row({"split": True}, batch=2),
    row({"split": False}, batch=3),
    row({"opposed": True}, hidden_size=128),
    row({"opposed": False}, hidden_size=129),
    row({"opposed": True}, hidden_size=512, panel_bytes=AVX2),
    row({"opposed": False}, hidden_size=513, panel_bytes=AVX2),
    row({"opposed": True}, hidden_size=1024, panel_bytes=SSE2),
    row({"opposed": False}, hidden_size=1025, panel_bytes=SSE2),
    row({"fused_rows": 0}, input_size=3),
    row({"fused_rows": 12}, input_size=4),
    row({"fused_rows": 12}, input_size=512, hidden_size=128),
    row({"fused_rows": NEVER}, input_size=513, hidden_size=128),
    row({"fused_rows": 12}, input_size=256, hidden_size=128, dtype=FLOAT64),
    row({"fused_rows": NEVER}, input_size=257, hidden_size=128, dtype=FLOAT64),
    row({"fused_rows": 12}, input_size=512, hidden_size=128, dtype=BFLOAT16),
    row({"fused_rows": NEVER}, input_size=513, hidden_size=128, dtype=BFLOAT16),
    row({"fused_rows": NEVER}, input_size=4, seq_len=1, hidden_size=64),
    row({"fused_rows": 0}, input_size=3, seq_len=1, hidden_size=64),
    row({"fused_rows_above": 12}, input_size=1000, hidden_size=256),
    row({"fused_rows_above": NEVER}, input_size=4, hidden_size=257),
    row({"fused_rows_above": NEVER}, input_size=4, hidden_size=256, num_directions=2),
]
FETCHED = [
    row({"fetch_rows": False}, hidden_size=127),
    row({"fetch_rows": True}, hidden_size=128),
    row({"fetch_rows": True}, hidden_size=1, backward=True),
    row({"fetch_rows": False}, hidden_size=128, packed=True),
    row({"fetch_rows": False}, hidden_size=128, packed=True, backward=True),
    row({"fetch_rows": False}, hidden_size=128, dtype=BFLOAT16),
    row({"fetch_w_hh": False}, hidden_size=512),
    row({"fetch_w_hh": True}, hidden_size=513),
    row({"fetch_w_hh": True}, hidden_size=363, dtype=FLOAT64),
    row({"fetch_w_hh": True}, hidden_size=513, dtype=BFLOAT16),
    row({"fetch_w_hh": False}, hidden_size=724, dtype=BFLOAT16, seq_len=1),  # as it came
    row({"fetch_w_hh": True}, hidden_size=725, dtype=BFLOAT16, seq_len=1),
    row({"fetch_w_ih": False}, input_size=1024, hidden_size=256),
    row({"fetch_w_ih": True}, input_size=1025, hidden_size=256),
    row({"fetch_w_ih_above": False}, hidden_size=362, num_directions=2),
    row({"fetch_w_ih_above": True}, hidden_size=363, num_directions=2),
]


@pytest.mark.parametrize(("given", "expected"), [*THREADS, *FORMS, *STEPS, *FETCHED])
def test_choose(kernels, given: dict[str, Any], expected: dict[str, Any]) -> None:
    plan = choose(kernels, **given)
    assert {name: plan[name] for name in expected} == expected


def test_large_steps_are_torchs_where_vectors_are_short(kernels) -> None:
    work = [kernels.torch_step_work(vector_bytes) for vector_bytes in (16, 32, 64)]
    assert work == [400_000, NEVER, NEVER]


@pytest.mark.parametrize(
    ("batch", "active", "share_columns", "threads", "expected"),
    [
        (7, [], False, 2, [[0, 3, 0, 1], [3, 7, 0, 1]]),
        (7, [], True, 2, [[0, 7, 0, 2], [0, 7, 1, 2]]),
        (7, [], False, 1, [[0, 7, 0, 1]]),
        (1, [], False, 2, [[0, 0, 0, 1], [0, 1, 0, 1]]),
        # Rows of 4, 2, 1 and 1 steps: the first has half of them.
        (4, [4, 2, 1, 1], False, 2, [[0, 1, 0, 1], [1, 4, 0, 1]]),
    ],
)
def test_parts(
    kernels, batch: int, active: list[int], share_columns: bool, threads: int, expected: list[Any]
) -> None:
    seq_len = len(active) or 5
    assert kernels.parts(seq_len, batch, active, share_columns, threads) == expected


SAME_BITS = [
    {"threads": 2},
    {"threads": 2, "share_columns": True, "share_input_grad": False},
    {"threads": 2, "share_columns": True, "share_input_grad": True},
    {"fused_rows": 0, "fused_rows_above": 1},
    {"fused_rows": NEVER, "fused_rows_above": NEVER},
    {"fetch_rows": True, "fetch_w_ih": True, "fetch_w_ih_above": True, "fetch_w_hh": True},
    {"fetch_rows": False},
]
OTHER_SUMS = [
    {"form": "as they came"},
    {"form": "as they came", "fused_rows": 0, "fused_rows_above": 0},
    {"split": True},
    {"split": True, "opposed": False},
]


@pytest.mark.parametrize("isa", ["baseline", "neon", "avx2", "avx512"])
@pytest.mark.parametrize("batch", [1, 13])
def test_forced_plans(kernels, isa: str, batch: int) -> None:
    if not kernels.available(isa):
        pytest.skip(f"this machine has no {isa}")
    case = Case(6, batch, 75, 70, num_layers=2, bidirectional=True)
    problem = Problem(case, torch.float32)
    theirs, truth = problem.theirs(torch.float32), problem.truth()
    packed = {"form": "packed", "split": False}
    expected = raw.call(kernels, isa, packed, problem)
    for plan in SAME_BITS:
        for name, y in raw.call(kernels, isa, packed | plan, problem).items():
            assert torch.equal(y, expected[name]), (plan, name)
    for plan in OTHER_SUMS:
        assert_as_accurate(raw.call(kernels, isa, packed | plan, problem), theirs, truth)


def test_a_field_that_there_is_not_is_refused(kernels) -> None:
    with pytest.raises(ValueError, match=r"no such field: .*hidden_sizes"):
        choose(kernels, hidden_sizes=3)


@pytest.mark.parametrize("side", thresholds.sides(), ids=lambda s: f"{s.threshold}-B{s.batch}")
def test_both_sides_of_a_threshold_are_measured(side: thresholds.Side, kernels: Any) -> None:
    """The plan that benchmarks/thresholds.py forces is not the one that is chosen."""
    sizes = {"batch": side.batch, "seq_len": side.seq_len, "input_size": side.input_size}
    chosen = choose(
        kernels,
        threads=side.threads,
        hidden_size=side.hidden_size,
        backward=side.training,
        **sizes,
    )
    for field, value in side.forced.items():
        assert chosen[field] != value
