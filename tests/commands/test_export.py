"""What `export` exports by default, and that it gives back what it changes in the process that calls it."""

import gc
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exported import ALL_LAYERS, Recipe, forward_of_bundle
from tiers import slow_but
from tracing import trace_anew

from funnel_export import Bundle, export
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


@pytest.mark.parametrize(
    "recipe", slow_but([Recipe()], (Recipe(), Recipe(funnel=None, stored=torch.bfloat16, dtype="bfloat16"))), ids=str
)
def test_an_export_that_traces_anew_computes_the_same(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So tests may share traces; nodes that do not depend on each other may come in another order."""
    replace(recipe, funnel=ALL_LAYERS.funnel).bundle()  # from which the other takes its layers
    shared = recipe.bundle()
    trace_anew(monkeypatch)
    options: dict[str, Any] = {"funnel": recipe.funnel, "task": recipe.task, "dtype": recipe.dtype}
    made, again = (export(recipe.checkpoint(), tmp_path / name, **options) for name in ("one", "other"))
    assert made.manifest == again.manifest, "two traces are the same byte for byte"
    assert nodes(made) == nodes(shared)
    if recipe.dtype == "float32":
        ids = torch.arange(3, 23).reshape(2, 10)
        assert torch.equal(*(forward_of_bundle(bundle)(ids) for bundle in (made, shared)))


def nodes(bundle: Bundle) -> Counter[tuple[str, str]]:
    """Operators of a bundle's graph and the names of the parts in which they are."""
    graph = onnx.load(bundle.model.path, load_external_data=False).graph
    return Counter((node.op_type, node.name.rpartition("/")[0]) for node in graph.node)


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
