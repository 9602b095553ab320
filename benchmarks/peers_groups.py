"""How the runners of `peers.py` are interleaved: all at once, or, where memory is short, group by group.

A group is what is compared most closely: models of one family of runtimes. Its processes start, run interleaved, and
end, and the next group starts; then all groups do so again. Thus dense and funnel in one runtime stand beside each
other in every round, and what changes on the machine over minutes meets every group. No setting of any runtime changes.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from funnel_export.latency.shape import Shape
from funnel_export.latency.trials import Runner, RunnerRecord, run_trials
from funnel_export.progress import Progress

GROUPS = {
    "eager": 0,
    "torch.compile": 0,
    "onnxruntime": 1,
    "openvino": 2,
    "genai": 3,
    "optimum": 3,
    "intel": 3,
    "llama": 3,
}
"""The group of each runtime."""
VISITS = 2
"""How often a group starts."""


def default_rounds(shape: Shape) -> int:
    """Fewer where calls are long, of 4x1536 up to 35 seconds on two cores; below 6 there is no 95 % interval."""
    tokens = shape.batch * shape.length
    return next((rounds for limit, rounds in ((128, 31), (512, 21), (2048, 8)) if tokens <= limit), 6)


def run_trials_by_group(
    runners: Sequence[Runner], batches: Mapping[Shape, list[list[int]]], *, rounds: int, progress: Progress
) -> list[RunnerRecord]:
    """Trials in which one group at a time is in memory.

    Each visit has its share of the rounds, and two calls before them that do not count. What is not of a call, such as
    the seconds of loading, is of the first visit.
    """
    groups = [list(g) for _, g in itertools.groupby(sorted(runners, key=_group), key=_group)]
    kept: dict[str, RunnerRecord] = {}
    for visit, group in itertools.product(range(VISITS), groups):
        share = len(range(visit, rounds, VISITS))
        for record in run_trials(group, batches, rounds=share, warmup=0, progress=progress):
            first = kept.setdefault(record.runner.runtime, record)
            if first is record or first.result.error is not None:
                continue
            if record.result.error is not None:
                kept[record.runner.runtime] = record
                continue
            for shape, times in record.times.items():
                first.times[shape].seconds += times.seconds
    return list(kept.values())


def _group(runner: Runner) -> int:
    return GROUPS[runner.runtime.split()[0]]


class Watch:
    """Says the steps of the trials, and notes how little memory was left at them."""

    def __init__(self) -> None:
        self.least_gb = available_gb()

    def __call__(self, step: str, *_: object) -> None:
        """Progress, as `run_trials` wants it."""
        self.least_gb = min(self.least_gb, available_gb())
        say(f"{step} ({self.least_gb:.1f} GB left at least)")


def available_gb() -> float:
    """Memory that processes can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(found.split()[1]) * 1024 / 1e9


def say(step: str) -> None:
    """To stderr."""
    print(step, file=sys.stderr, flush=True)
