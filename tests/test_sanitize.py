"""The faults that sanitize.py plants are in texts that are there."""

from __future__ import annotations

from pathlib import Path

import pytest
from sanitize import SANITIZERS, Fault

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "fault", [f for s in SANITIZERS.values() for f in s.faults], ids=lambda f: f.old.strip()[:40]
)
def test_planted_text_occurs_once(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
