"""Whether this run is `make soak`, which has the long tests."""

import os

import pytest

SOAK = bool(os.environ.get("FUNNEL_EXPORT_SOAK"))
LONG = pytest.mark.skipif(not SOAK, reason="takes long, and others like it run: make soak")
"""For tests whose kind of fault another test covers in every run."""
