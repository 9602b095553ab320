"""What `export` exports by default, and that it gives back what it changes in the process that calls it."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Recipe

from funnel_export import export
from funnel_export.errors import ExportError
from funnel_export.exporter import build
from funnel_export.spec.choices import Task
from funnel_export.spec.export import ExportSpec


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
            export(Recipe().checkpoint(), tmp_path / "out", funnel="1:3:2", task="text-generation")
        after = gc.isenabled()
    finally:
        gc.enable()
    assert (during, after) == ([False], enabled)


@pytest.mark.traces
@pytest.mark.parametrize("recipe", [Recipe(), Recipe(funnel=None, stored=torch.bfloat16, dtype="bfloat16")], ids=str)
def test_an_export_that_traces_anew_is_the_same_byte_for_byte(recipe: Recipe, tmp_path: Path) -> None:
    """So tests may share traces."""
    shared = recipe.bundle()
    made = export(recipe.checkpoint(), tmp_path / "out", funnel=recipe.funnel, task=recipe.task, dtype=recipe.dtype)
    assert made.manifest == shared.manifest
    assert made.model.path.read_bytes() == shared.model.path.read_bytes()


@pytest.mark.parametrize(
    ("recipe", "options", "task"),
    [
        (Recipe(), {}, Task.TEXT_GENERATION_WITH_PAST),
        (Recipe(), {"logits": "last"}, Task.TEXT_GENERATION),
        (Recipe(), {"task": "text-generation"}, Task.TEXT_GENERATION),
        (Recipe(task=Task.TEXT_CLASSIFICATION), {}, Task.TEXT_CLASSIFICATION),
        (Recipe(task=Task.FEATURE_EXTRACTION), {}, Task.FEATURE_EXTRACTION),
    ],
    ids=str,
)
def test_without_a_task_text_is_generated_with_a_cache(
    recipe: Recipe, options: dict[str, str], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs: list[ExportSpec] = []

    def fail(_: object, spec: ExportSpec, *_derived: object) -> None:
        specs.append(spec)
        raise ExportError("no graph today")

    monkeypatch.setattr(build, "build_graphs", fail)
    with pytest.raises(ExportError, match="no graph today"):
        export(recipe.checkpoint(), tmp_path / "out", funnel="1:3:2", **options)
    assert [spec.task for spec in specs] == [task]
