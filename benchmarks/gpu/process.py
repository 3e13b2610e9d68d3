"""Child processes with a time limit, and a file that is never half written."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TAIL = 3000  # characters of the output that are kept


@dataclass
class Ended:
    """How a process ended. `status` is None where its time was up."""

    status: int | None
    seconds: float
    output: str

    @property
    def tail(self) -> str:
        return self.output[-TAIL:].strip()


class Child:
    """A process in a group of its own, whose output goes to a file: ended with all its children."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within so many seconds."""
        try:
            self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> Ended:
        """End it if it still runs; say how it ended."""
        status = self.process.poll()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.seek(0)
        output = self.log.read().decode(errors="replace")
        self.log.close()
        return Ended(status, time.monotonic() - self.start, output)


def run(
    command: Sequence[str], limit: float, cwd: Path, env: Mapping[str, str] | None = None
) -> Ended:
    """Run a command for at most `limit` seconds."""
    child = Child(command, cwd, env)
    try:
        child.wait(limit)
    finally:
        ended = child.stop()
    return ended


def write_whole(path: Path, document: Any) -> None:
    """Replace the file in one step: a reader finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(json.dumps(document, indent=1) + "\n")
    new.replace(path)
