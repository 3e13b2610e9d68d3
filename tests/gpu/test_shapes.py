"""The rows of the GPU benchmarks, their goals, and the bound that their times are held against."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.gpu import model, shapes
from benchmarks.gpu.shapes import BFLOAT16, FLOAT16, FLOAT32, SETTINGS, TF32, Setting
from benchmarks.shapes import Shape


def square(
    batch: int, size: int, setting: Setting = TF32, kind: str = "x", **options: Any
) -> Shape:
    return Shape(kind, batch, 512, size, size, dtype=setting.dtype, **options)


def test_the_plan_has_every_class_first_and_every_row_once() -> None:
    rows = shapes.plan()
    assert len({str(row) for row in rows}) == len(rows) > 500
    kinds = {row.shape.kind for row in rows}
    assert kinds >= {"tiny", "small", "cliff", "medium", "large", "wide", "packed", "DeepBench"}
    per_shape = len(SETTINGS) * len(shapes.MODES)
    assert {row.shape.kind for row in rows[: len(kinds) * per_shape]} == kinds
    quick = shapes.plan(quick=True)
    assert {str(row) for row in quick} < {str(row) for row in rows}
    assert len(quick) == sum(len(m) for of in shapes.FIRST.values() for m in of.values()) == 40
    assert {row.setting for row in quick} == set(SETTINGS)  # cuDNN's best, and exact float32
    assert {(row.setting, row.mode) for row in rows} == {
        (setting, mode) for setting in SETTINGS for mode in shapes.MODES
    }
    assert all(row.shape.dtype == row.setting.dtype for row in rows)


def test_rows_are_chosen_by_class_or_part_of_an_id() -> None:
    assert {row.shape.kind for row in shapes.plan(only=["cliff"])} == {"cliff"}
    found = shapes.plan(only=["H2560-relu float16"])
    assert {(row.shape.hidden_size, row.setting) for row in found} == {(2560, FLOAT16)}
    assert not shapes.plan(only=["no such row"])


@pytest.mark.parametrize(
    ("shape", "setting", "inference", "training"),
    [
        (square(32, 64), TF32, 1.5, 1.5),
        (square(32, 64), FLOAT16, 1.3, 1.5),
        (square(32, 256), FLOAT32, 2, 2),
        (square(64, 384), FLOAT32, 4, 4),
        (square(64, 384), BFLOAT16, 5, 5),
        (square(64, 512), TF32, 2.5, 2.5),
        (square(64, 512), FLOAT32, 0.95, 0.95),
        (square(64, 512), FLOAT16, 1.0, 1.2),
        (square(64, 1024), TF32, 1.5, 1.5),
        (square(64, 1024), BFLOAT16, 3, 3),
        (square(1024, 128), FLOAT16, 2, 2),
        (square(64, 512, kind="packed", ragged="packed"), BFLOAT16, 4, 4),
        (Shape("DeepBench", 32, 50, 2048, 2048), FLOAT16, 1.3, 1.2),
        (Shape("DeepBench", 32, 50, 2048, 2048), TF32, 1.1, 1.1),
        (Shape("short", 1, 10, 1, 32), TF32, 1.0, 1.0),
    ],
    ids=str,
)
def test_goals(shape: Shape, setting: Setting, inference: float, training: float) -> None:
    shape = replace(shape, dtype=setting.dtype)
    assert shapes.goal(shape, setting, False).at_once == inference
    assert shapes.goal(shape, setting, True).at_once == training


@pytest.mark.parametrize(
    "change", [{"batch": 12}, {"batch": 136}, {"input_size": 96}, {"num_layers": 2},
               {"bidirectional": True}, {"hidden_size": 1152}, {"batch": 96, "hidden_size": 896}],
    ids=str,
)  # fmt: skip
def test_the_conditions_of_cudnns_best_kernel(change: dict[str, Any]) -> None:
    shape = Shape("x", 64, 512, 128, 512, dtype="float16")
    assert shapes.has_static_kernel(shape, FLOAT16)
    assert not shapes.has_static_kernel(replace(shape, dtype="bfloat16"), BFLOAT16)
    assert not shapes.has_static_kernel(replace(shape, **change), FLOAT16)


def test_the_bound_of_a_step_by_hand() -> None:
    """One block, a row of the batch: STEP and H * H / FMA_RATE clocks."""
    by_hand = (model.STEP + 64 * 64 / model.FMA_RATE) / model.CLOCK
    assert model.step_seconds(square(1, 64, FLOAT32), tf32=False) == pytest.approx(by_hand)
    # Eight blocks, eight rows: 512 * 64 * 8 on tensor cores, 7/8 of 8 * 512 * 2 bytes come in.
    clocks = model.STEP + 8 * 512 * 64 / model.MMA_RATE[2]
    clocks += model.CLUSTER_HOP + 8 * 512 * 2 * 7 / 8 / model.CLUSTER_RATE
    found = model.step_seconds(square(64, 512, BFLOAT16), tf32=False)
    assert found == pytest.approx(clocks / model.CLOCK)


def test_the_bound_grows_with_work_and_knows_the_switch() -> None:
    for setting in SETTINGS:
        bounds = [model.step_seconds(square(64, h, setting), setting.tf32) for h in (64, 512, 2048)]
        assert bounds == sorted(bounds)
    large = square(64, 1024)
    assert model.step_seconds(large, True) < model.step_seconds(large, False)
    once = model.seconds(large, True, False)
    assert model.seconds(large, True, True) == pytest.approx(2 * once)
    assert model.seconds(replace(large, num_layers=3), True, False) == pytest.approx(3 * once)
    with pytest.raises(ValueError, match="does not fit"):
        model.step_seconds(square(1, 20000), True)
