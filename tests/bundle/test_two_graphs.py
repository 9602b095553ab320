"""A bundle of several graphs: a model that is cut in the middle is loaded, inspected and compiled graph by graph."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from breaks import weights_of
from exported import Recipe
from numpy.typing import NDArray

from funnel_export import (
    Bundle,
    BundleError,
    SpecError,
    bench,
    check,
    compile_bundle,
    load_bundle,
    package,
)
from funnel_export.bundle.engine import load_engine
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.commands.inspect import inspect
from funnel_export.exporter.build import BuiltGraph, build_graphs
from funnel_export.exporter.write import write_bundle
from funnel_export.report.pages import write_reports
from funnel_export.system.place import Placing
from funnel_export.targets.registry import get_target

CUT = "layers.1"
IDS = np.array([[5, 6, 7, 8, 9, 10, 11], [9, 8, 7, 0, 0, 0, 0]])
VALUES: dict[PortKind, NDArray[Any]] = {PortKind.TOKENS: IDS, PortKind.MASK: (IDS != 0).astype(np.int64)}


def part(model: ir.Model, inputs: list[str], outputs: list[str], checkpoint: Checkpoint) -> BuiltGraph:
    """The nodes between some values of a graph, as a graph of its own."""
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    for value in (*graph.inputs, *graph.outputs):
        if value.name == CUT:
            value.shape = ir.Shape(["batch_size", "sequence_length", 40])
    kinds = {
        "input_ids": PortKind.TOKENS,
        "attention_mask": PortKind.MASK,
        CUT: PortKind.STATE,
        "logits": PortKind.LOGITS,
    }
    made = ir.Model(graph, ir_version=model.ir_version)
    return BuiltGraph(made, weights_of(made, checkpoint), kinds)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model in two graphs: `first` up to the cut, `second` from there to the logits."""
    checkpoint, spec = Checkpoint.open(Recipe().checkpoint()), Recipe(funnel=None).bundle().spec
    whole = build_graphs(checkpoint, spec)["model"].model
    graphs = {
        "first": part(whole.clone(), ["input_ids", "attention_mask"], [CUT], checkpoint),
        "second": part(whole.clone(), [CUT, "attention_mask"], ["logits"], checkpoint),
    }
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(folder, graphs, checkpoint, spec, source="a model cut in two", placing=Placing.COPY)
    return folder


@pytest.fixture
def bundle(cut: Path, tmp_path: Path) -> Bundle:
    """A copy for a test to add to or spoil."""
    return load_bundle(shutil.copytree(cut, tmp_path / "bundle"))


def run_both(bundle: Bundle, target: str, engines: dict[str, str]) -> NDArray[Any]:
    """The logits of both graphs, one after the other."""
    values = dict(VALUES)
    for role, graph in bundle.graphs.items():
        engine = load_engine(bundle, engines[role]) if engines else None
        outputs = get_target(target).load(graph, engine=engine).run(feed(graph.inputs, values))
        values[graph.output.kind] = outputs[graph.output.name]
    return values[PortKind.LOGITS]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_graphs_run_one_after_the_other_as_they_are_and_compiled(bundle: Bundle, target: str) -> None:
    whole = Recipe(funnel=None).bundle().model
    wanted = get_target(target).load(whole).run(feed(whole.inputs, VALUES))["logits"]
    np.testing.assert_allclose(run_both(bundle, target, {}), wanted, atol=2e-5)
    made = [compile_bundle(bundle, target, graph=role) for role in bundle.graphs]
    assert [engine.name for engine in made] == [f"first-{target}-cpu", f"second-{target}-cpu"]
    assert [engine.manifest.graph for engine in made] == ["first", "second"]
    engines = dict(zip(bundle.graphs, (engine.name for engine in made), strict=True))
    np.testing.assert_allclose(run_both(bundle, target, engines), wanted, atol=2e-5)


def test_the_manifest_says_what_goes_in_and_out(bundle: Bundle) -> None:
    graphs = json.loads((bundle.path / "manifest.json").read_text())["graphs"]
    kinds = {role: [(port["name"], port["kind"]) for port in graph["inputs"]] for role, graph in graphs.items()}
    assert kinds == {
        "first": [("input_ids", "tokens"), ("attention_mask", "mask")],
        "second": [(CUT, "state"), ("attention_mask", "mask")],
    }
    assert [(graph.path.name, graph.output.kind) for graph in bundle.graphs.values()] == [
        ("first.onnx", PortKind.STATE),
        ("second.onnx", PortKind.LOGITS),
    ]


def test_each_weight_file_is_in_the_bundle_once(bundle: Bundle) -> None:
    assert [weight.file for weight in bundle.manifest.weights] == ["model.safetensors"]


def test_inspect_shows_and_audits_both(bundle: Bundle) -> None:
    found = inspect(bundle)
    assert found.audits == {"first": [], "second": []}
    for text in ("first.onnx", "second.onnx", f"{CUT} float32 [batch_size, sequence_length, 40]"):
        assert text in found.to_text()
    assert json.loads(found.to_json())["audit"] == []


def test_the_report_names_both(bundle: Bundle) -> None:
    write_reports(bundle)
    text = (bundle.path / "reports" / "report.md").read_text()
    assert all(bundle.graphs[role].sha256[:12] in text for role in ("first", "second"))


def test_a_graph_is_named_where_there_are_several(bundle: Bundle) -> None:
    with pytest.raises(SpecError, match=r"(?s)has several graphs.*first, second.*--graph first"):
        compile_bundle(bundle, "onnxruntime")
    with pytest.raises(SpecError, match=r"(?s)no such graph.*'third'.*first, second"):
        compile_bundle(bundle, "onnxruntime", graph="third")


def test_an_engine_of_a_graph_that_has_changed_is_refused(bundle: Bundle) -> None:
    engine = compile_bundle(bundle, "onnxruntime", graph="second")
    text = (engine.path / "manifest.json").read_text()
    (engine.path / "manifest.json").write_text(text.replace('"graph": "second"', '"graph": "first"'))
    with pytest.raises(BundleError, match="made from another bundle"):
        load_engine(bundle, engine.name)
    (engine.path / "manifest.json").write_text(text.replace('"graph": "second"', '"graph": "third"'))
    with pytest.raises(BundleError, match=r"(?s)made from another bundle.*graph third none"):
        load_engine(bundle, engine.name)


@pytest.mark.parametrize("command", [check, bench, lambda bundle: package(bundle, bundle.path.parent / "models")])
def test_commands_for_whole_texts_say_what_is_missing(command: Any, bundle: Bundle) -> None:
    with pytest.raises((BundleError, SpecError), match=r"no graph that takes whole texts|no funnel"):
        command(bundle)


def test_a_changed_second_graph_is_refused(bundle: Bundle) -> None:
    with (bundle.path / "second.onnx").open("ab") as stream:
        stream.write(b"\x00")
    with pytest.raises(BundleError, match=r"second\.onnx is not the one that was exported"):
        load_bundle(bundle.path)


def test_tensorrt_profiles_have_a_range_for_each_axis_of_the_graph(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = compile_bundle(bundle, "tensorrt-rtx", graph="second", profiles=["batch=1:1:2,sequence=1:8:16"])
    assert engine.manifest.graph == "second"
    assert list(engine.manifest.profiles[0].axes) == ["batch_size", "sequence_length"]
    with pytest.raises(SpecError, match="batch=MIN:OPT:MAX,sequence=MIN:OPT:MAX"):
        compile_bundle(bundle, "tensorrt-rtx", graph="second", profiles=["batch=1,sequence=8,past=1:8:16"])


def test_engines_of_another_graph_are_not_taken_for_those_of_the_model(tmp_path: Path) -> None:
    """A bundle with a graph for whole texts and one for their first half: each has its own engines."""
    checkpoint, spec = Checkpoint.open(Recipe().checkpoint()), Recipe(funnel=None).bundle().spec
    whole = build_graphs(checkpoint, spec)["model"]
    half = part(whole.model.clone(), ["input_ids", "attention_mask"], [CUT], checkpoint)
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(folder, {"model": whole, "half": half}, checkpoint, spec, source="both", placing=Placing.COPY)
    both = load_bundle(folder)
    compile_bundle(both, "onnxruntime", graph="half")
    compile_bundle(both, "openvino", graph="model")
    report = check(both, max_length=3)
    assert report.passed
    assert [target.name for target in report.targets] == ["onnxruntime", "openvino", "openvino-cpu"]


def test_an_engine_with_a_profile_of_other_axes_is_refused(bundle: Bundle) -> None:
    engine = compile_bundle(bundle, "onnxruntime", graph="first")
    manifest = json.loads((engine.path / "manifest.json").read_text())
    manifest["profiles"] = [{"axes": {"columns": {"min": 1, "opt": 1, "max": 1}}}]
    (engine.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"(?s)a profile for another graph.*missing batch, sequence; unknown columns"):
        load_engine(bundle, engine.name)
