"""Which tests a run has: `make check` all but the long ones, `make test` no slow ones either, `make soak` long ones.

Slow and long tests find faults that are rare, or that other tests find.
"""

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest

SOAK = bool(os.environ.get("FUNNEL_EXPORT_SOAK"))
LONG = pytest.mark.skipif(not SOAK, reason="takes long, and others like it run: make soak")


def slow(*values: Any) -> Any:
    """A case of a test, which is slow."""
    return pytest.param(*values, marks=pytest.mark.slow)


def slow_but(quick: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """Cases of a test, which are slow unless they are among `quick`."""
    return [case if case in quick else slow(case) for case in cases]
