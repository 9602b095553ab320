"""`check` of bundles that generate text: prompts in chunks and single tokens against one pass of eager PyTorch."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from breaks import scaled, set_constants, shifted_column
from exported import Recipe
from stepping import forgets_the_open_window, reads_one_early, stale_change
from tamper import agree_with_graph
from tiers import LONG

from funnel_export import Bundle, BundleError, FunnelSpec, SpecError, check, compile_bundle, load_bundle
from funnel_export.commands.check import compare
from funnel_export.runtime.state import State
from funnel_export.spec.choices import Task
from funnel_export.verify.cases import Case, kept_positions
from funnel_export.verify.parity_report import ParityReport
from funnel_export.verify.readers import chunks_of

PAST = Task.TEXT_GENERATION_WITH_PAST
DENSE, FUNNEL = Recipe(task=PAST, funnel=None), Recipe(task=PAST, funnel=FunnelSpec.parse("1:3:3"))
NARROW = Recipe(task=PAST, funnel=FunnelSpec.parse("1:3:3"), dtype="bfloat16")


def changed(folder: Path, role: str, change: Callable[[ir.Model], None]) -> Bundle:
    """A bundle whose graph of a role is another, and whose manifest agrees with it."""
    bundle = load_bundle(shutil.copytree(FUNNEL.bundle().path, folder / "bundle"))
    path = bundle.graphs[role].path
    model = ir.load(path)
    change(model)
    path.unlink()
    ir.save(model, path)
    agree_with_graph(bundle.path, role)
    return load_bundle(bundle.path)


@pytest.mark.parametrize(
    "recipe", [DENSE, FUNNEL, pytest.param(NARROW, marks=LONG)], ids=["dense", "funnel", "bfloat16"]
)
def test_correct_exports_pass(recipe: Recipe) -> None:
    report = compare(recipe.bundle(), max_length=40)
    assert report.passed, report.model_dump_json(indent=1)
    assert report.lengths_left_out == [512], "the long text"
    assert report.graph_digests == {role: graph.sha256 for role, graph in recipe.bundle().graphs.items()}
    for target in report.targets:
        names = [place.name for place in target.boundaries]
        inner = ["layers.0", "funnel.pooled", "layers.1", "layers.2", "funnel.recovered", "layers.3"]
        assert names == (inner if recipe is not DENSE else [f"layers.{index}" for index in range(4)])
        assert all(place.passed for place in target.boundaries)


def test_a_long_text_is_read_too() -> None:
    report = compare(FUNNEL.bundle(), targets=["onnxruntime"])
    assert report.passed
    assert report.targets[0].longest == 512, "as long as the model's positions allow"


def _loses_old_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a text that is longer than the first block of the cache shows it."""
    grown = State._grown

    def wrong(self: State, name: str, capacity: int) -> Any:
        array = grown(self, name, capacity)
        return array if self.capacity < 256 else array * 0

    monkeypatch.setattr(State, "_grown", wrong)


@pytest.mark.parametrize(
    ("fault", "longest"),
    [(reads_one_early, 20), (stale_change, 20), (forgets_the_open_window, 20), (_loses_old_entries, None)],
)
def test_faults_between_the_graphs_are_refused(
    fault: Callable[[pytest.MonkeyPatch], None], longest: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault(monkeypatch)
    report = compare(FUNNEL.bundle(), targets=["onnxruntime"], max_length=longest)
    assert not report.passed


FAULTS: dict[str, tuple[str, Callable[[ir.Model], None], str]] = {
    "softcap": ("entry", lambda model: set_constants(model, "Mul", "layers.0/", 2.5, 2.4), "layers.0"),
    "window": ("middle", lambda model: _wider_window(model), "layers.2"),
    "entries of a window": ("entry", lambda model: set_constants(model, "Min", "model/", 4, 3), ""),
    "pooling": ("middle", lambda model: _first_of_window(model), "funnel.pooled"),
    "column": ("exit", shifted_column, "layers.3"),
    "position": ("exit", lambda model: _shifted_position(model), "layers.3"),
    "logits": ("exit", lambda model: set_constants(model, "Mul", "model/", 3.0, 2.9), ""),
}


def _shifted_position(model: ir.Model) -> None:
    """Let the last layer's queries have the position before theirs, in RoPE and masks."""
    reshape = next(n for n in model.graph if n.op_type == "Reshape" and _gathers_positions(n))
    scaled(model, reshape, 0, -1, add=True)


def _gathers_positions(reshape: ir.Node) -> bool:
    gathered = reshape.inputs[0].producer() if reshape.inputs[0] is not None else None
    return gathered is not None and gathered.op_type == "Gather" and reshape.outputs[0].dtype == ir.DataType.INT64


def _wider_window(model: ir.Model) -> None:
    for node in model.graph:
        if node.op_type == "Greater":
            begin = node.inputs[1].producer()
            assert begin.op_type == "Sub"
            set_constants(model, "Sub", str(begin.name), 2, 3)


def _first_of_window(model: ir.Model) -> None:
    next(node for node in model.graph if node.name.startswith("funnel/pool/Div")).op_type = "Mul"


@pytest.mark.parametrize(("role", "change", "place"), FAULTS.values(), ids=FAULTS.keys())
def test_a_broken_graph_is_refused_with_its_place(
    role: str, change: Callable[[ir.Model], None], place: str, tmp_path: Path
) -> None:
    report = compare(changed(tmp_path, role, change), targets=["onnxruntime"], max_length=20)
    (target,) = report.targets
    assert not target.passed
    assert (target.first_difference.name if target.first_difference else "") == place


@pytest.fixture
def own(tmp_path: Path) -> Bundle:
    """A copy for engines and reports."""
    return load_bundle(shutil.copytree(FUNNEL.bundle().path, tmp_path / "bundle"))


def test_engines_of_the_graphs_are_compared_as_one(own: Bundle) -> None:
    for role in own.graphs:
        compile_bundle(own, "openvino", graph=role)
    compile_bundle(own, "onnxruntime", graph="middle")
    report = check(own, max_length=10)
    assert [target.name for target in report.targets] == [
        "onnxruntime", "onnxruntime-cpu", "openvino", "openvino-cpu"
    ]  # fmt: skip
    assert report.passed
    assert sorted(report.engines) == ["entry-openvino-cpu", "exit-openvino-cpu", "middle-onnxruntime-cpu",
                                      "middle-openvino-cpu"]  # fmt: skip
    stored = ParityReport.model_validate_json((own.path / "reports" / "parity.json").read_text())
    assert stored == report
    alone = check(own, engines=["openvino-cpu"], max_length=3)
    assert [target.name for target in alone.targets] == ["openvino-cpu"]
    with pytest.raises(SpecError, match="no such engine"):
        check(own, engines=["abacus"])


def test_engines_of_a_target_without_graphs_must_be_complete(own: Bundle) -> None:
    from funnel_export.runtime.load import load_stepper

    with pytest.raises(BundleError, match=r"(?s)no engine of tensorrt-rtx.*entry, middle, exit.*compile"):
        load_stepper(own, "tensorrt-rtx")


@pytest.mark.parametrize("padding", ["left", "right"])
def test_every_token_is_read_once(padding: str) -> None:
    case = Case((1, 7, 30), padding)
    chunks = [*chunks_of(case, 3)]
    assert sum(chunks).tolist() == [1, 7, 30]  # type: ignore[attr-defined]
    assert all((chunk >= 0).all() and chunk.max() > 0 for chunk in chunks)
    if padding == "left":
        assert chunks[0].tolist() == [1, 6, 29], "at once"
    else:
        assert sum(int(chunk.max() == 1) for chunk in chunks) >= 8, "two windows token by token"


def test_positions_of_long_rows() -> None:
    assert kept_positions(64).tolist() == [*range(64)]
    kept = kept_positions(4000)
    assert len(kept) == len(set(kept.tolist())) == 64
    assert kept[0] == 0
    assert kept[-32:].tolist() == [*range(3968, 4000)]
