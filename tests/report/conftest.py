"""A bundle for tests of reports."""

from pathlib import Path

import pytest
from breaks import own

from funnel_export import Bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle without reports."""
    return own(tmp_path)
