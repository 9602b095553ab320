"""What a timed call runs: a batch of whole texts, or further tokens after texts."""

from typing import NamedTuple

LEAST_STEPS = 8
"""Fewest tokens of a call that generates, so that the clock and the host's work around a call do not matter."""


class Shape(NamedTuple):
    """The size of a timed call."""

    batch: int
    """Rows."""
    length: int
    """Tokens of each row that are read at once; with `steps`, before the clock starts."""
    steps: int = 0
    """Tokens of each row that are read one by one after them; 0 for a call that reads whole texts."""

    @property
    def tokens(self) -> int:
        """Tokens of a row in all."""
        return self.length + self.steps

    def __str__(self) -> str:
        where = f"batch {self.batch}, length {self.length}"
        return f"{where}, {self.steps} steps" if self.steps else where


def steps_of(stride: int) -> int:
    """Steps of a call: whole windows of the funnel, so that each call runs the middle layers equally often."""
    return -(-LEAST_STEPS // stride) * stride
