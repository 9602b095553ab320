"""Exports without tracing, and a folder with what they need, for a test to spoil."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from exported import Recipe

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.exporter import build


@pytest.fixture
def ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports that need no tracing."""
    graphs = build.build_graphs(Checkpoint.open(Recipe().checkpoint()), Recipe().bundle().spec)
    monkeypatch.setattr(build, "build_graphs", lambda *_: graphs)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that every user may enter, with a checkpoint that every user may read."""
    with tempfile.TemporaryDirectory(prefix="funnel-export-") as name:
        folder = Path(name)
        shutil.copytree(Recipe().checkpoint(), folder / "checkpoint")
        shutil.copytree(Recipe().bundle().path, folder / "made")
        folder.chmod(0o755)
        for path in folder.rglob("*"):
            path.chmod(0o755)
        yield folder
