"""Interleaved timing, and what else used the machine meanwhile."""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.contestants import Contestant

SAMPLE_SECONDS = 2e-3  # a sample repeats its step for at least so long
LEAST_ROUNDS = 15
LEAST_SECONDS = 0.6  # of a row, so that the clock ticks of /proc/stat are fine enough
OTHERS_ALLOWED = 0.12  # processors that others may use before a row counts as noisy
OWN_EXPECTED = 0.95  # share of the time that one thread must have had a processor


@dataclass
class Row:
    """Samples in seconds per step, one per contestant and round, and how quiet the machine was."""

    samples: dict[str, list[float]]
    repetitions: dict[str, int]
    others_cpu: float | None  # processors that others used; None where the system does not say
    own_cpu: float  # processors that we used
    tries: int
    noisy: bool

    def seconds(self, name: str) -> float:
        return median(self.samples[name])

    def ratio(self, name: str, base: str = "nn.RNN") -> float:
        """How many times faster than `base`: the median of the ratios of each round."""
        pairs = zip(self.samples[base], self.samples[name], strict=True)
        return median(theirs / ours for theirs, ours in pairs)

    def quartiles(self, name: str) -> tuple[float, float]:
        ordered = sorted(self.samples[name])
        last = len(ordered) - 1
        return ordered[round(last * 0.25)], ordered[round(last * 0.75)]


class Meter:
    """Processors used by this process and by all others, from its making to `stop`."""

    def __init__(self) -> None:
        self.start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float | None]:
        busy = None
        stat = Path("/proc/stat")
        if stat.exists():
            ticks = [int(x) for x in stat.read_text().split("\n", 1)[0].split()[1:9]]
            idle = ticks[3] + ticks[4]  # idle, iowait; stolen time counts as others'
            busy = (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time(), busy

    def stop(self) -> tuple[float, float | None]:
        end = self._read()
        wall, own = end[0] - self.start[0], end[1] - self.start[1]
        if end[2] is None or self.start[2] is None:
            return own / wall, None
        return own / wall, max(0.0, (end[2] - self.start[2] - own) / wall)


def seconds_of(step: Callable[[], object], repetitions: int) -> float:
    """Seconds per step."""
    start = time.perf_counter()
    for _ in itertools.repeat(None, repetitions):
        step()
    return (time.perf_counter() - start) / repetitions


def repetitions_for(step: Callable[[], object]) -> int:
    """How many steps make a sample; also warms up."""
    step()
    repetitions = 1
    while (elapsed := seconds_of(step, repetitions) * repetitions) < SAMPLE_SECONDS:
        repetitions = math.ceil(repetitions * min(10.0, 1.2 * SAMPLE_SECONDS / elapsed))
    return repetitions


def interleave(
    contestants: Sequence[Contestant],
    repetitions: dict[str, int],
    budget: float,
    rounds: int | None,
) -> dict[str, list[float]]:
    """Rounds of one sample of each contestant, in shuffled order; fewer if the budget runs out."""
    shuffle = random.Random(0).shuffle
    samples: dict[str, list[float]] = {c.name: [] for c in contestants}
    order = list(contestants)
    start = time.perf_counter()
    for done in itertools.count():
        elapsed = time.perf_counter() - start
        if rounds is not None:
            finished = done >= rounds
        else:
            enough = done >= LEAST_ROUNDS and elapsed > LEAST_SECONDS
            finished = enough or (done >= 3 and elapsed > budget)
        if finished:
            break
        shuffle(order)
        for contestant in order:
            if repetitions[contestant.name] > 1:
                contestant.step()  # lets other contestants' threads come to rest, fills the caches
            samples[contestant.name].append(
                seconds_of(contestant.step, repetitions[contestant.name])
            )
    return samples


def measure(
    contestants: Sequence[Contestant],
    threads: int,
    budget: float,
    rounds: int | None = None,
    most_tries: int = 3,
) -> Row:
    """Time a row; again, and keep the quietest, while something else uses the machine."""
    repetitions = {c.name: repetitions_for(c.step) for c in contestants}
    best: Row | None = None
    for tries in range(1, most_tries + 1):
        gc.collect()
        gc.disable()
        try:
            meter = Meter()
            samples = interleave(contestants, repetitions, budget, rounds)
            own, others = meter.stop()
        finally:
            gc.enable()
        noisy = (others or 0.0) > OTHERS_ALLOWED or (threads == 1 and own < OWN_EXPECTED)
        if best is None or (others or 0.0) - own < (best.others_cpu or 0.0) - best.own_cpu:
            best = Row(samples, repetitions, others, own, tries, noisy)
        best.tries = tries
        if not noisy:
            break
        if tries < most_tries:
            time.sleep(1.0)
    assert best is not None
    return best
