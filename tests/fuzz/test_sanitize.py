"""The texts that sanitize.py plants faults in are there; masked.h shows what it is to show."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
from planted_faults import file_of
from sanitize import SANITIZERS, Fault

ROOT = Path(__file__).parents[2]
FLOATS = "_mm256_setr_epi32(-1, -1, -(n > 2), 0, 0, 0, 0, 0)"
DOUBLES = "_mm256_setr_epi64x(-1, -1, -(n > 2), 0)"
MASKED = {
    f"_mm256_maskload_ps((float*)p, {FLOATS})": 4,
    f"_mm256_maskload_pd((double*)p, {DOUBLES})": 8,
    "_mm256_maskz_loadu_epi16((1 << n) - 1, p)": 2,
    "_mm512_maskz_loadu_epi16((1 << n) - 1, p)": 2,
    "_mm512_maskz_loadu_ps((1 << n) - 1, p)": 4,
    "_mm512_maskz_loadu_pd((1 << n) - 1, p)": 8,
    f"_mm256_maskstore_ps((float*)p, {FLOATS}, __m256{{}})": 4,
    f"_mm256_maskstore_pd((double*)p, {DOUBLES}, __m256d{{}})": 8,
    "_mm512_mask_storeu_ps(p, (1 << n) - 1, __m512{})": 4,
    "_mm512_mask_storeu_pd(p, (1 << n) - 1, __m512d{})": 8,
}
PROGRAM = """
#include <cstdlib>
int main(int, char** arguments) {
  const int n = std::atoi(arguments[1]), element = std::atoi(arguments[2]);
  void* p = std::calloc(2, element);
  switch (std::atoi(arguments[3])) {
%s
  }
}
"""


@pytest.mark.parametrize(
    "fault", [f for s in SANITIZERS.values() for f in s.faults], ids=lambda f: f.old.strip()[:40]
)
def test_planted_text_occurs_once(fault: Fault) -> None:
    assert file_of(fault.old, ROOT / "csrc").suffix in (".cpp", ".h")


def has_avx512() -> bool:
    flags = Path("/proc/cpuinfo")
    return platform.machine() == "x86_64" and flags.exists() and "avx512vl" in flags.read_text()


@pytest.mark.skipif(not has_avx512() or sys.platform != "linux", reason="no AVX-512")
def test_masked_accesses_are_seen(tmp_path: Path) -> None:
    """Two elements are there: the first two may be touched, and not the third."""
    cases = [f"case {i}: {call}; break;" for i, call in enumerate(MASKED)]
    (tmp_path / "masked.cpp").write_text(PROGRAM % "\n".join(cases))
    flags = ["-fsanitize=address", "-mavx512f", "-mavx512bw", "-mavx512vl", "-w"]
    flags += ["-include", str(ROOT / "tests/fuzz/masked.h")]
    build = ["g++", *flags, "masked.cpp", "-o", "masked"]
    made = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
    if "cannot find" in made.stderr:
        pytest.skip("no libasan")
    assert made.returncode == 0, made.stderr
    for i, (call, element) in enumerate(MASKED.items()):
        for n in (2, 3):
            command = ["./masked", str(n), str(element), str(i)]
            run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert ("ERROR: AddressSanitizer" in run.stderr) == (n == 3), (call, run.stderr)
