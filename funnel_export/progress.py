"""Telling what is going on: long work reports its steps to whoever shows them."""

from typing import Protocol


class Progress(Protocol):
    """Shows what is being done."""

    def __call__(self, step: str, done: float | None = None, /) -> None:
        """Called as a step begins, and as it goes on with the share that is done, from 0 to 1, where that is known."""


def no_progress(step: str, done: float | None = None, /) -> None:
    """Report nothing."""
