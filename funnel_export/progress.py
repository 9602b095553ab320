"""Progress of long work, reported step by step to a callback."""

from typing import Protocol


class Progress(Protocol):
    """A callback that shows the current step."""

    def __call__(self, step: str, done: float | None = None, /) -> None:
        """Report that a step begins; `done`, 0 to 1, is the completed share if it is known."""


def no_progress(step: str, done: float | None = None, /) -> None:
    """Report nothing."""
