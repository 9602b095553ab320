"""What `export` exports by default, and that it gives back what it changes in the process that calls it."""

import gc
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import tracing
from exported import ALL_LAYERS, PAST, Recipe
from tiers import slow_but
from tracing import trace_anew

from funnel_export import export
from funnel_export.errors import ExportError
from funnel_export.exporter import build
from funnel_export.exporter.translate import Piece
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
    "recipe",
    slow_but([Recipe()], (Recipe(), PAST, Recipe(funnel=None, stored=torch.bfloat16, dtype="bfloat16"))),
    ids=["funnel", "with a cache", "dense bfloat16"],
)
def test_a_graph_of_shared_parts_is_the_same(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So tests may share traces; nodes that do not depend on each other may come in another order."""
    translated: list[int] = []
    translate = tracing._translate

    def counted(pieces: Sequence[Piece], *given: Any) -> Any:
        translated.append(len(pieces))
        return translate(pieces, *given)

    monkeypatch.setattr(tracing, "FOLDER", tmp_path)
    monkeypatch.setattr(tracing, "_PARTS", {})
    monkeypatch.setattr(tracing, "_translate", counted)
    options: dict[str, Any] = {"task": recipe.task, "dtype": recipe.dtype}
    export(recipe.checkpoint(), tmp_path / "other", funnel=ALL_LAYERS.funnel, **options)
    shared = export(recipe.checkpoint(), tmp_path / "shared", funnel=recipe.funnel, **options)
    trace_anew(monkeypatch)
    anew = export(recipe.checkpoint(), tmp_path / "anew", funnel=recipe.funnel, **options)
    assert translated[1] < translated[2]
    for role, graph in anew.graphs.items():
        assert computations(graph.path) == computations(shared.graphs[role].path)


def computations(graph: Path) -> Counter[str]:
    """What each node of a graph computes from the graph's inputs, whatever the order and names of nodes and values.

    Sums and products are equal in both orders of their operands.
    """
    model = ir.load(graph)
    known = {value: str(value.name) for value in model.graph.inputs}
    for value in model.graph.initializers.values():
        stored = value.const_value
        by_name = isinstance(stored, ir.ExternalTensor)
        known[value] = str(value.name) if by_name else f"{stored.dtype} {stored.shape} {stored.tobytes()!r}"
    found: Counter[str] = Counter()
    for node in model.graph:
        given = ["" if value is None else known[value] for value in node.inputs]
        if node.op_type in ("Add", "Mul"):
            given.sort()
        attributes = sorted((name, str(each.value)) for name, each in node.attributes.items())
        digest = hashlib.sha256(f"{node.op_type} {attributes} {given}".encode()).hexdigest()
        known |= {value: f"{digest} {index}" for index, value in enumerate(node.outputs)}
        found[digest] += 1
    found.update(known[value] for value in model.graph.outputs)
    return found


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
