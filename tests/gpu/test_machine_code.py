"""What `make cuda-check` shows of machine code, beside the reading of it: test_sass.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import machine_code, sass
from benchmarks.gpu.machine_code import Configuration, Kernel, Measured

KERNELS = {
    "cluster:1024x16x8 bf16 backward any": Kernel(255, 222000, 7124, 1036, 7994, 90, "100 LDC"),
    "vector:64x1x1 f32 forward any": Kernel(95, 8192, 1466, 115, 526, 0, "9 LDC, 4 early"),
    "vector:64x1x1 f32 forward whole": Kernel(79, 8192, 647, 117, 392, 16, "1 S2R"),
    "vector:128x1x1 f32 forward whole": Kernel(119, 17408, 807, 150, 546, 0, ""),
    "take_numbers_kernel<int>": Kernel(10, 0, 24, 0, 0, 0, ""),
}
TIMES = {
    "vector:64x1x1 float32 forward": Measured(196.0, 400.0),
    "vector:128x1x1 float32 forward": Measured(1092.0, 1100.0),
    "cluster:1024x16x8 bfloat16 backward": Measured(8000.0, 9000.0),
    "tile:64x8x1 float16 forward": Measured(300.0, 400.0),
}


@pytest.mark.parametrize(
    ("mangled", "expected"),
    [
        (
            "_ZN7fastrnn4cuda20forward_block_kernelINS0_11VectorGroupIXtlNS0_13ConfigurationELNS0_"
            "6KernelE2ELNS0_10ArithmeticE0ELi64ELi1ELi1ELi16ELi2ELi2EEEEENS0_12WholeForwardIS6_EEE"
            "EvNS0_10RecurrenceINS0_16ForwardDirectionEEE",
            "vector:64x1x1 f32 forward whole",
        ),
        (
            "_ZN7fastrnn4cuda21backward_block_kernelINS0_12ClusterGroupINS0_9TileGroupI13__nv_bflo"
            "at16XtlNS0_13ConfigurationELNS0_6KernelE4ELNS0_10ArithmeticE2ELi384ELi8ELi4ELi16ELi1E"
            "Li1EEEEEEENS0_11AnyBackwardIS9_Li2EEEEEvNS0_10RecurrenceINS0_17BackwardDirectionEEE",
            "cluster:384x8x4 bf16 backward any",
        ),
        (
            "_ZN7fastrnn4cuda20forward_block_kernelINS0_9TileGroupIfXtlNS0_13ConfigurationELNS0_6K"
            "ernelE3ELNS0_10ArithmeticE1ELi64ELi8ELi1ELi16ELi1ELi0EEEEENS0_12WholeForwardIS6_EEEEv"
            "NS0_10RecurrenceINS0_16ForwardDirectionEEE",
            "tile:64x8x1 tf32 forward whole",
        ),
    ],
)
def test_kernels_are_called_by_their_configurations(mangled: str, expected: str) -> None:
    known = [
        Configuration("tile:64x8x1", "TF32", 1, 4),
        Configuration("cluster:384x8x4", "float32", 2, 6),
        Configuration("vector:64x1x1", "float32", 3, 4),
    ]
    code = [sass.Instruction("EXIT"), sass.Instruction("NOP"), sass.Instruction("NOP")]
    name, line = machine_code.line_of(mangled, code, 79, known)
    assert name == expected
    assert (line.registers, line.instructions, line.step) == (79, 1, 0)


def test_a_loop_without_a_plain_way_is_reported() -> None:
    receive, product = sass.Instruction("BAR.SYNC 0x0"), sass.Instruction("FFMA R1, R1, R2, R3")
    away, again = sass.Instruction("BRA `(.L_1)", target=4), sass.Instruction("@P0 BRA `(.L_2)")
    again.target = 0
    code = [receive, product, away, again, sass.Instruction("EXIT")]
    _, line = machine_code.line_of("a_kernel", code, 32, [])
    assert (line.instructions, line.step) == (5, 0)
    assert line.found == "no way through the loop of 4 instructions"


def test_what_is_kept_has_a_line_for_each_kernel(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    machine_code.keep(KERNELS, "V13.0.88", "0123456789ab", path)
    kept = json.loads(path.read_text())
    assert (kept["nvcc"], kept["sources"], kept["arch"]) == ("V13.0.88", "0123456789ab", "sm_90a")
    assert kept["kernels"]["vector:64x1x1 f32 forward whole"]["found"] == "1 S2R"
    assert len(path.read_text().splitlines()) == len(KERNELS) + 2

    def changes(kernels: machine_code.Kernels, nvcc: str = "V13.0.88") -> list[str]:
        return machine_code.changes(kernels, nvcc, len(kernels) > 1, path)[1:]

    assert changes(KERNELS) == ["no differences"]
    small = KERNELS["take_numbers_kernel<int>"]
    assert changes({"take_numbers_kernel<int>": small}) == ["no differences"]  # of some files
    changed = KERNELS | {"new_kernel": small}
    changed["vector:64x1x1 f32 forward whole"] = Kernel(79, 8192, 640, 110, 350, 0, "")
    del changed["take_numbers_kernel<int>"]
    assert changes(changed) == [
        "vector:64x1x1 f32 forward whole: instructions 647 -> 640; step 117 -> 110; "
        "clocks 392 -> 350; lost 16 -> -; found 1 S2R -> -",
        "new_kernel: new",
        "take_numbers_kernel<int>: gone",
    ]
    (line,) = machine_code.changes(KERNELS, "V13.1.1", True, path)
    assert "of nvcc V13.0.88, this is V13.1.1" in line


def test_measured_times_are_those_of_whole_rows() -> None:
    times = machine_code.served(KERNELS, TIMES)
    assert list(times) == [
        "cluster:1024x16x8 bf16 backward any",  # which has no other kernel
        "vector:64x1x1 f32 forward whole",
        "vector:128x1x1 f32 forward whole",
    ]
    vector, cluster = machine_code.comparison(KERNELS, times)
    assert vector == "vector: 1.00 (0.50 to 2.00)"
    assert cluster == "cluster: 1.00 (1.00 to 1.00)"


def test_the_table_fits_a_screen() -> None:
    lines = machine_code.table(KERNELS, machine_code.served(KERNELS, TIMES))
    assert max(map(len, lines)) <= 100
    whole = lines.index(next(line for line in lines if line.startswith("forward, whole rows")))
    assert lines[whole + 1].split() == (
        ["vector:64x1x1", "f32", "79", "8K", "647", "117", "392", "16", "196", "400", "1", "S2R"]
    )
    assert lines[whole + 2].startswith("vector:128x1x1 f32")
    assert lines[-1].split() == ["take_numbers_kernel<int>", "10", "24"]


def test_results_hold_measured_times() -> None:
    times, sources = machine_code.measured()
    assert len(sources) == 12
    assert 200 < times["vector:64x1x1 float32 forward"].alone < 400


def test_without_nvdisasm_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(machine_code, "find_nvdisasm", lambda nvcc: None)
    files = {"cubins": [], "registers": {}, "readable": list, "whole": False}
    machine_code.report("nvcc", "V13.0.88", "0123456789ab", keeps=False, **files)
    assert capsys.readouterr().out.startswith("cuda-check: no nvdisasm beside nvcc")
    with pytest.raises(SystemExit, match="no nvdisasm"):
        machine_code.report("nvcc", "V13.0.88", "0123456789ab", keeps=True, **files)
