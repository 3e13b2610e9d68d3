"""Child processes that never make their parent wait, and files that survive its end."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
Keep = Callable[[Record], None]

AFTER_KILL = 1.0  # seconds; a process in the driver may not end at all
MOST_TEXT = 40_000  # characters that are kept of any text: the first and the last half
TURN = 0.02  # seconds between looks at the children


@dataclass
class Ended:
    """How a process ended. `status` is None where its time was up."""

    status: int | None
    seconds: float
    output: str

    @property
    def how(self) -> str:
        if self.status is None:
            return f"killed after {self.seconds:.0f} s"
        return f"ended with status {self.status} after {self.seconds:.0f} s"


class Lines:
    """The whole lines that another process has written since the last look."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.offset = descriptor, 0

    def new(self) -> list[str]:
        size = os.fstat(self.descriptor).st_size - self.offset
        data = os.pread(self.descriptor, size, self.offset) if size > 0 else b""
        whole = data[: data.rfind(b"\n") + 1]
        self.offset += len(whole)
        return whole.decode(errors="replace").splitlines()


class Child:
    """A process in a group of its own, whose output goes to a file: ended with all its children."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None
    ) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `stop`)
        self.lines = Lines(self.log.fileno())
        self.start = time.monotonic()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            process_group=0,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )

    def wait(self, seconds: float = 0.0) -> bool:
        """Whether it has ended within so many seconds."""
        try:
            self.process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def stop(self, patience: float = AFTER_KILL) -> Ended:
        """End it if it still runs; say how it ended."""
        status, seconds = self.process.poll(), time.monotonic() - self.start
        self.kill()
        gone = self.wait(patience)
        self.log.seek(0)
        output = shortened(self.log.read().decode(errors="replace"))
        self.log.close()
        return Ended(status, seconds, output + ("" if gone else "\n(it does not end)"))


def stop_all(children: Iterable[Child]) -> None:
    """End them together: several that do not end take no longer than one."""
    children = list(children)
    for child in children:
        child.kill()
    until = time.monotonic() + AFTER_KILL
    for child in children:
        child.stop(until - time.monotonic())


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def shortened(text: str) -> str:
    if len(text) <= MOST_TEXT:
        return text
    half = MOST_TEXT // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters ...]\n{text[-half:]}"


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


@dataclass
class Job:
    """A command for `run_all`, which calls `line` with each line as it is printed."""

    key: Any
    command: Sequence[str]
    limit: float  # seconds
    silence: float = math.inf  # seconds without a line


def run_all(
    jobs: Iterable[Job],
    at_once: int,
    end: float,
    cwd: Path,
    line: Callable[[Any, str], None] = lambda key, text: None,
) -> Iterator[tuple[Any, Ended]]:
    """Run commands, and say how each ended. What `end` cuts off is as if it had not begun."""
    waiting = iter(jobs)
    running: dict[Child, Job] = {}
    heard: dict[Child, float] = {}
    try:
        while True:
            while len(running) < at_once and time.monotonic() < end:
                job = next(waiting, None)
                if job is None:
                    break
                child = Child(job.command, cwd)
                running[child], heard[child] = job, child.start
            if not running:
                return
            time.sleep(TURN)
            for child, job in list(running.items()):
                over = child.wait()
                for text in child.lines.new():
                    heard[child] = time.monotonic()
                    line(job.key, text)
                until = min(child.start + job.limit, heard[child] + job.silence)
                if over or time.monotonic() > until:
                    del running[child]
                    yield job.key, child.stop()
            if time.monotonic() > end:
                return
    finally:
        stop_all(running)


class Worker:
    """A process that works through items; another takes over where it hangs or ends early.

    It writes lines of JSON: {"begin": key}, then {"end": key, ...}, and at last {"finished": true}.
    Other lines are passed on. An item that the end of the time cuts off is {"cut": key}.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[Worker, Path], Sequence[str]],
        cwd: Path,
        env: Mapping[str, str],
        limits: tuple[float, float],
    ) -> None:
        self.name, self.command, self.cwd, self.env = name, command, cwd, env
        self.first_limit, self.limit = limits  # seconds until the first item, and of each
        self.done: set[str] = set()
        self.bad_ends = 0
        self.child: Child | None = None

    def begin(self) -> None:
        self.file = tempfile.NamedTemporaryFile(suffix=".jsonl")  # noqa: SIM115
        self.lines = Lines(self.file.fileno())
        self.current: str | None = None
        self.last: Record = {}
        self.finished, self.before, self.since = False, len(self.done), time.monotonic()
        self.child = Child(self.command(self, Path(self.file.name)), self.cwd, self.env)

    def turn(self, keep: Keep, end: float) -> None:
        """Pass on what is new; replace the process where it hangs or has ended early."""
        assert self.child is not None
        over = self.child.wait()  # before the lines are read, so that none is missed
        for record in records(self.lines.new()):
            self.current = record.get("begin", self.current)
            if "end" in record:
                self.current = None
                self.done.add(record["end"])
            self.finished |= "finished" in record
            self.since, self.last = time.monotonic(), record
            keep(record)
        now = time.monotonic()
        first = self.current is None and len(self.done) == self.before
        late = now > self.since + (self.first_limit if first else self.limit)
        if not over and not late and now < end:
            return
        ended = self.child.stop()
        self.child = None
        self.file.close()
        if self.finished or (not over and not late):
            if not self.finished:
                keep({"cut": self.current, "worker": self.name})
            return
        how = "hung" if late and not over else f"the process ended with status {ended.status}"
        if "synchronising" in self.last:
            how += " while synchronising"
        self.bad_ends += 1
        if self.current is not None:
            self.done.add(self.current)
            keep({"end": self.current, "failed": how, "report": ended.output})
        elif len(self.done) == self.before:
            keep({"stopped": self.name, "failed": how, "report": ended.output})
        if (len(self.done) > self.before or self.bad_ends == 1) and now < end:
            self.begin()


def work_through(workers: Sequence[Worker], end: float, keep: Keep) -> None:
    """Run workers beside one another until they have finished or time is up."""
    try:
        for worker in workers:
            worker.begin()
        while any(worker.child for worker in workers):
            time.sleep(TURN)
            for worker in workers:
                if worker.child:
                    worker.turn(keep, end)
    finally:
        stop_all(worker.child for worker in workers if worker.child)


def records(lines: Iterable[str]) -> Iterator[Record]:
    """The lines that are objects of JSON; what else a program prints is left out."""
    for line in lines:
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                yield found


def read_records(path: Path) -> list[Record]:
    """Of a file of lines of JSON, whose last line may be torn."""
    return list(records(path.read_text(errors="replace").splitlines())) if path.exists() else []


def write_whole(path: Path, document: Any) -> None:
    """Replace the file in one step: a reader finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=1) + "\n"
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.replace(path)
