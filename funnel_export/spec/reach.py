"""Which entries of its cache a layer with a sliding window reads in a step."""

WORTH = 4
"""Length of a cache, in windows, from which on the window's entries are gathered first; see `reach_of`."""


def reach_of(window: int | None, positions: int) -> int | None:
    """How many entries before its chunk a layer reads; None if it reads its whole cache and masks the rest.

    Gathering the window's entries reads and writes them once more, so it pays only where the cache grows to a few
    windows (measured in benchmarks/LOG.md). A graph has no branches, so the limit of the model's positions decides.

    Args:
        window: positions that a query sees, itself included; None without a sliding window.
        positions: the most that the model has, in the same unit: tokens or slots.
    """
    return None if window is None or positions < WORTH * window else max(1, window - 1)
