"""Converts the progress of TensorRT's nested build phases into one fraction."""

from collections.abc import Callable
from typing import Any

Report = Callable[[str, float | None], None]


class Phases:
    """The running phases; an inner phase counts as one step of its outer phase."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._parents: dict[str, str | None] = {}
        self._steps: dict[str, int] = {}
        self._done: dict[str, int] = {}
        self._shown = ("", -1.0)

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """Start a phase."""
        self._parents[phase], self._steps[phase], self._done[phase] = parent, max(1, steps), 0
        self._show(phase)

    def step(self, phase: str, step: int) -> None:
        """Record that a step, counted from 0, is done."""
        self._done[phase] = min(step + 1, self._steps[phase])
        self._show(phase)

    def finish(self, phase: str) -> None:
        """End a phase."""
        parent = self._parents.pop(phase)
        if parent in self._done:
            self._done[parent] = min(self._done[parent] + 1, self._steps[parent])

    def _show(self, phase: str) -> None:
        share, inner = 0.0, phase
        while True:
            share = min(1.0, (self._done[inner] + share) / self._steps[inner])
            parent = self._parents.get(inner)
            if parent is None or parent not in self._done:
                break
            inner = parent
        share = max(share, self._shown[1])  # never go back, since steps differ in length
        if (phase, round(share, 2)) != self._shown:
            self._shown = (phase, round(share, 2))
            self._report(f"building: {phase.lower()}", share)


def make_monitor(trt: Any, report: Report) -> Any:
    """A TensorRT progress monitor that calls `report`."""
    phases = Phases(report)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # a base that only the module has
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            phases.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            phases.finish(phase_name)

    return Monitor()
