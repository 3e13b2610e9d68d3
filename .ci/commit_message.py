"""Check a commit message: `area: imperative` in 72 characters at most, and a body that says why."""

import re
import sys
from pathlib import Path


def fault(message: str) -> str | None:
    """Say what is wrong, or nothing. Lines that begin with # are git's own."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject, *rest = "\n".join(lines).strip().splitlines() or [""]
    if subject.startswith(("Merge ", "Revert ", "fixup! ", "squash! ")):
        return None
    if not re.match(r"[a-z][\w/ ,-]*: \S", subject):
        return f"expected a subject such as 'cpu: share columns', got {subject!r}"
    if len(subject) > 72:
        return f"expected a subject of at most 72 characters, got {len(subject)}"
    if not rest or rest[0] or not "".join(rest).strip():
        return "expected an empty line after the subject, and then why"
    return None


if __name__ == "__main__":
    found = fault(Path(sys.argv[1]).read_text())
    if found:
        sys.exit(f"commit message: {found}")
