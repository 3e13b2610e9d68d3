"""csrc/cuda/choose.cpp: which kernel a call takes on which device, and what may be forced."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import emulation
import pytest
import torch
from emulation import ROOT
from rows import CONFIGURATIONS, DTYPES, ON_GPU

# capability, multiprocessors, shared memory of a block and of a multiprocessor, registers
DEVICES = {
    "T4": [75, 40, 64 << 10, 64 << 10, 65536],
    "A100": [80, 108, 163 << 10, 164 << 10, 65536],
    "A100 MIG 1g": [80, 14, 163 << 10, 164 << 10, 65536],
    "RTX 3090": [86, 82, 99 << 10, 100 << 10, 65536],
    "RTX 4090": [89, 128, 99 << 10, 100 << 10, 65536],
    "H200": [90, 132, 227 << 10, 228 << 10, 65536],
    "H200 MIG 1g": [90, 16, 227 << 10, 228 << 10, 65536],
    "B200": [100, 148, 227 << 10, 228 << 10, 65536],
    "RTX 5090": [120, 170, 99 << 10, 100 << 10, 65536],
}
FLOAT32, FLOAT64, BFLOAT16, FLOAT16 = range(4)  # places in DTYPES
CHOICES = Path(__file__).parent / "choices.txt"


@pytest.fixture(scope="module")
def cuda() -> Any:
    return emulation.module()


def choices(cuda: Any) -> str:
    """What calls take on five devices, in training: dtype or TF32, seq_len, batch, hidden_size."""
    devices = ["T4", "A100", "RTX 4090", "H200", "B200"]
    shapes = [
        *((dtype, 512, 32, hidden) for dtype in ("float32", "bfloat16") for hidden in (64, 128)),
        *((dtype, 512, 64, hidden) for dtype in ("float32", "tf32", "float16")
          for hidden in (160, 256, 384, 512, 640, 768, 1024, 1025)),
        *(("float16", seq_len, 4, 300) for seq_len in (1, 2, 3, 8)),
        *((dtype, 28, 64, 128) for dtype in ("float32", "float16")),
        *(("tf32", seq_len, 32, 512) for seq_len in (1, 4)),
        *((dtype, 512, 4096, 256) for dtype in ("float32", "tf32", "bfloat16")),
        ("float64", 512, 32, 64),
    ]  # fmt: skip
    lines = [("dtype", "T", "B", "H", *(name.replace(" ", "") for name in devices))]
    for dtype, *sizes in shapes:
        code = DTYPES.index(torch.float32 if dtype == "tf32" else getattr(torch, dtype))
        call = (code, False, dtype == "tf32", *sizes, 1)
        taken = [cuda.choose(*call, DEVICES[name], "")[-1] for name in devices]
        lines.append((dtype, *map(str, sizes), *taken))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = [" ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(rows) + "\n"


def test_choices_are_those_written_down(cuda: Any) -> None:
    """A change of choices.txt is wanted: python tests/gpu/test_choice.py writes it again."""
    assert choices(cuda) == CHOICES.read_text()


@pytest.mark.parametrize("device", DEVICES)
def test_choice_can_be_launched(cuda: Any, device: str) -> None:
    facts = DEVICES[device]
    for dtype in range(4):
        for batch in (1, 7, 64, 1000, 100_000, 2**31):
            for hidden in (1, 64, 65, 128, 192, 193, 256, 257, 512, 513, 1024, 1025):
                for forced in ("", "step", "vector", "tile", "cluster"):
                    for flags in range(4):
                        name, rows, threads, registers, shared, launches, _ = cuda.choose(
                            dtype, flags & 1, flags & 2, 100, batch, hidden, 2, facts, forced
                        )
                        assert launches
                        if name == "step":
                            continue
                        assert forced in ("", name)
                        assert threads * registers <= facts[4]
                        assert registers <= 255
                        assert shared <= facts[2]
                        assert -(-batch // rows) <= 2**31 - 1
                        assert hidden <= (1024 if name == "cluster" else 256)
                        assert dtype != FLOAT64
                        if name == "tile":
                            assert facts[0] >= (75 if dtype == FLOAT16 else 80)
                            assert dtype != FLOAT32 or flags & 2
                        if name == "cluster":
                            assert facts[0] >= 90
                            assert hidden <= (640 if flags & 2 else 512) or dtype != FLOAT32
                            assert dtype != FLOAT32 or flags & 2 or rows < 8


@pytest.mark.parametrize(
    ("dtype", "seq_len", "batch", "hidden", "expected"),
    [
        (FLOAT32, 512, 1, 64, ("vector", 1)),
        (FLOAT32, 512, 32, 64, ("vector", 1)),
        (FLOAT32, 512, 64, 128, ("vector", 1)),
        (BFLOAT16, 512, 64, 64, ("tile", 8)),
        (BFLOAT16, 512, 64, 256, ("tile", 8)),
        (FLOAT16, 512, 4096, 128, ("tile", 8)),
        (BFLOAT16, 512, 64, 257, ("cluster", 8)),
        (BFLOAT16, 512, 64, 1024, ("cluster", 8)),
        (BFLOAT16, 512, 64, 1025, ("step", 0)),
        (FLOAT32, 512, 32, 256, ("cluster", 1)),
        (FLOAT64, 512, 64, 64, ("step", 0)),
        # Of few steps, none pays for loading a large w_hh into registers.
        (BFLOAT16, 1, 64, 1024, ("step", 0)),
        (BFLOAT16, 8, 64, 1024, ("cluster", 8)),
        (BFLOAT16, 0, 64, 64, ("tile", 8)),
        (FLOAT32, 1, 32, 64, ("vector", 1)),
    ],
)
def test_choice_on_h200(
    cuda: Any, dtype: int, seq_len: int, batch: int, hidden: int, expected: tuple[str, int]
) -> None:
    choice = cuda.choose(dtype, False, False, seq_len, batch, hidden, 1, DEVICES["H200"], "")
    assert choice[:2] == expected


@pytest.mark.parametrize(
    ("hidden", "has_hx", "expected"),
    [(64, True, "vector"), (64, False, "vector"), (512, True, "step"), (512, False, "step"),
     (256, True, "cluster"), (256, False, "step")],
)  # fmt: skip
def test_a_single_step_from_zeros_needs_no_product(
    cuda: Any, hidden: int, has_hx: bool, expected: str
) -> None:
    """Then there is nothing for which a block would have to load w_hh."""
    call = (FLOAT32, False, True, 1, 32, hidden, 1, DEVICES["H200"], "")
    assert cuda.choose(*call, has_hx=has_hx)[0] == expected


def test_the_driver_knows_how_many_groups_fit(tmp_path: Path) -> None:
    """Where the device has been asked, choose() goes by its answer for each configuration."""
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    source, program = tmp_path / "choose.cpp", tmp_path / "choose"
    source.write_text("""
        #include <cstdio>
        #include "cuda/choose.h"
        using namespace fastrnn::cuda;
        int main() {
          Device h200{90, 132, 227 << 10, 228 << 10, 65536};
          const auto all = configurations();
          std::vector<int> groups(kConfigurations.size());
          h200.groups_at_once = groups.data();
          const Problem problem{fastrnn::Dtype::kBFloat16, false, false, 512, 32, 512, 1};
          const auto taken = [&](const char* forced) {
            std::puts(name_of(choose(problem, h200, forced)).c_str());
          };
          taken(""), taken("cluster");
          for (const char* only : {"cluster:512x8x4", "cluster:512x16x4", "cluster:1024x8x8"}) {
            for (const Choice& c : all)
              groups[c.configuration] = name_of(c) == only ? 4 : 0;
            taken("");
          }
          for (int& count : groups) count = 8;
          taken("");
          for (const Choice& c : all)
            if (c.blocks == 8) groups[c.configuration] = 1;
          taken("");
        }
    """)
    sources = [source, ROOT / "csrc/cuda/choose.cpp"]
    subprocess.run(
        [compiler, "-std=c++20", f"-I{ROOT / 'csrc'}", *sources, "-o", program], check=True
    )
    run = subprocess.run([program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [
        "step", "step",  # no cluster fits
        "cluster:512x8x4", "cluster:512x16x4", "cluster:1024x8x8",  # one alone does
        "cluster:512x8x8", "cluster:512x8x4",  # the fastest; of eight blocks only one at a time
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "dtype", "hidden", "expected"),
    [
        # One of cuDNN's kernels stays on the GPU for all steps, and ours needs clusters for it.
        ("A100", FLOAT32, 256, "torch"),
        ("A100", FLOAT16, 384, "torch"),
        ("A100", FLOAT16, 1024, "torch"),
        # It has none.
        ("A100", FLOAT32, 257, "step"),
        ("A100", BFLOAT16, 512, "step"),
        ("A100", FLOAT16, 576, "step"),
        ("A100", FLOAT16, 1152, "step"),
        ("A100", FLOAT64, 64, "step"),
        # Ours is faster.
        ("A100", FLOAT32, 128, "vector"),
        ("A100", FLOAT16, 256, "tile"),
        ("H200", FLOAT32, 256, "cluster"),
        ("H200", FLOAT16, 1024, "cluster"),
        ("H200", FLOAT32, 1024, "step"),
    ],
)
def test_torchs_operator_is_a_choice(
    cuda: Any, device: str, dtype: int, hidden: int, expected: str
) -> None:
    """Where cuDNN is expected to be faster, and only for calls that it can serve."""
    call = (dtype, False, False, 512, 64, hidden, 1, DEVICES[device])
    assert cuda.choose(*call, "", True)[0] == expected
    assert cuda.choose(*call, "torch", True)[0] == "torch"
    assert cuda.choose(*call, "")[0] == ("step" if expected == "torch" else expected)
    assert cuda.choose(*call, "torch")[0] == "step"


def names_for(cuda: Any, *call: Any) -> set[str]:
    """The configurations that the error for an unknown name says can serve a call."""
    with pytest.raises(
        ValueError, match=r"expected FASTRNN_CUDA_KERNEL to be torch, .* got grid$"
    ) as e:
        cuda.choose(*call, "grid")
    return set(re.findall(r"\w+:\d+x\d+x\d+", str(e.value)))


@pytest.mark.parametrize(
    ("dtype", "tf32"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.float16, False),
        (torch.bfloat16, False),
    ],
    ids=str,
)
def test_every_configuration_is_tested(cuda: Any, dtype: torch.dtype, tf32: bool) -> None:
    """CONFIGURATIONS has all that there are, and choose() takes each for its own case."""
    code, h200 = DTYPES.index(dtype), DEVICES["H200"]
    tested = {c.kernel: c.case for c in CONFIGURATIONS if c.dtype == dtype and (tf32 or not c.tf32)}
    assert names_for(cuda, code, False, tf32, 5, 1, 1, 1, h200) == set(tested)
    for name, case in tested.items():
        choice = cuda.choose(code, False, tf32, 5, case.batch, case.hidden_size, 2, h200, name)
        assert choice[0] == name.split(":")[0]
        assert choice[1] == case.batch - 1


@pytest.mark.parametrize(
    ("dtype", "hidden", "device", "name"),
    [
        (FLOAT32, 1, "H200", "vector:64x3x1"),
        (FLOAT32, 1, "H200", "tile:64x8x1"),  # needs TF32
        (FLOAT32, 65, "H200", "vector:64x1x1"),
        (FLOAT64, 1, "H200", "vector:64x1x1"),
        (BFLOAT16, 1, "A100", "cluster:512x8x4"),
        (BFLOAT16, 1, "H200 MIG 1g", "cluster:512x8x16"),
        (BFLOAT16, 1000, "RTX 5090", "cluster:1024x8x8"),  # needs more shared memory
    ],
)
def test_a_configuration_that_cannot_serve(
    cuda: Any, dtype: int, hidden: int, device: str, name: str
) -> None:
    call = (dtype, False, False, 5, 1, hidden, 1, DEVICES[device])
    assert name not in names_for(cuda, *call)
    with pytest.raises(ValueError, match=rf"can serve this call .*, got {name}$"):
        cuda.choose(*call, name)


def test_a_gpu_runs_what_the_rows_name(cuda: Any) -> None:
    """Those of test_on_gpu.py, which steps would serve as well."""
    for row in ON_GPU:
        case, code = row.case, DTYPES.index(row.dtype)
        sizes = case.seq_len, case.batch, case.hidden_size, case.directions
        for backward in (False, True):
            taken = cuda.choose(code, backward, row.tf32, *sizes, DEVICES["H200"], row.kernel)
            assert taken[0] == row.kernel, row


if __name__ == "__main__":
    CHOICES.write_text(choices(emulation.module()))
