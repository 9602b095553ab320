"""What `export` changes in the process that calls it, it gives back."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Recipe

from funnel_export import export
from funnel_export.errors import ExportError
from funnel_export.exporter import build


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_as_it_was_after_an_error(
    enabled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []

    def fail(*_: Any) -> None:
        during.append(gc.isenabled())
        raise ExportError("no graph today")

    monkeypatch.setattr(build, "build_graphs", fail)
    (gc.enable if enabled else gc.disable)()
    try:
        with pytest.raises(ExportError, match="no graph today"):
            export(Recipe().checkpoint(), tmp_path / "out", funnel="1:3:2")
        after = gc.isenabled()
    finally:
        gc.enable()
    assert (during, after) == ([False], enabled)


@pytest.mark.traces
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(funnel=None, stored=torch.bfloat16, dtype="bfloat16")], ids=str)
def test_an_export_that_traces_anew_is_the_same_byte_for_byte(recipe: Recipe, tmp_path: Path) -> None:
    """So tests may share traces."""
    shared = recipe.bundle()
    made = export(recipe.checkpoint(), tmp_path / "out", funnel=recipe.funnel, dtype=recipe.dtype)
    assert made.manifest == shared.manifest
    assert made.model.path.read_bytes() == shared.model.path.read_bytes()
