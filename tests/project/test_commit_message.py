"""The hook that checks a commit's message."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / ".ci/commit_message.py"
if not PATH.exists():
    pytest.skip("not a git checkout", allow_module_level=True)
SPEC = importlib.util.spec_from_file_location("commit_message", PATH)
hook = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(hook)


def test_what_is_taken() -> None:
    assert (
        hook.fault("cpu: share columns\n\nOne row kept a thread idle.\n# On branch main\n") is None
    )
    assert hook.fault('Revert "cpu: share columns"\n\nThis reverts commit 1.\n') is None


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ("share columns\n\nWhy.", "expected a subject such as"),
        ("# only git's own\n", "expected a subject such as"),
        (f"cpu: {'x' * 68}\n\nWhy.", "at most 72 characters, got 73"),
        ("cpu: share columns", "and then why"),
        ("cpu: share columns\nWhy.", "and then why"),
        ("cpu: share columns\n\n# On branch main\n", "and then why"),
    ],
)
def test_what_is_not(message: str, why: str) -> None:
    assert why in hook.fault(message)
