"""Derived weights are written, verified, audited, compiled and packaged like the checkpoint's weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from breaks import node
from exported import Recipe
from safetensors.torch import load_file

from funnel_export import Bundle, BundleError, ExportError, check, compile_bundle, export, load_bundle, package
from funnel_export.bundle.engine import load_engine
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.bundle.weights import Derived, DerivedFile
from funnel_export.bundle.weights import Recipe as WeightRecipe
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.commands.inspect import inspect
from funnel_export.exporter.audit import audit
from funnel_export.exporter.build import BuiltGraph, build_graphs
from funnel_export.exporter.derive import derive_weights
from funnel_export.exporter.reference import reference
from funnel_export.exporter.write import write_bundle
from funnel_export.report.pages import write_reports
from funnel_export.system.place import Placing
from funnel_export.targets.registry import get_target

FILE, NAME, HEAD = "derived.safetensors", "lm_head.transposed", "model.embed_tokens.weight"


def with_transposed_head(built: BuiltGraph, checkpoint: Checkpoint, folder: Path) -> BuiltGraph:
    """The same graph, with a transposed copy of the embedding as the head."""
    table = load_file(checkpoint.path / "model.safetensors")[HEAD]
    recipe = WeightRecipe(name="transpose", inputs=[HEAD])
    derived = derive_weights(folder, FILE, {NAME: table.T}, recipe)
    tensor = derived[NAME].tensor
    value = ir.Value(name=NAME, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(tensor.shape))
    value.const_value = reference(NAME, tensor)
    built.model.graph.register_initializer(value)
    transpose = node(built.model, "model/", "Transpose")
    assert transpose.inputs[0] is built.model.graph.initializers[HEAD]
    ir.convenience.replace_all_uses_with(transpose.outputs[0], value)
    built.model.graph.remove(transpose, safe=True)
    return replace(built, sources={**built.sources, **derived})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a derived weight, written by the code that `export` uses."""
    checkpoint, spec = Checkpoint.open(Recipe().checkpoint()), Recipe().bundle().spec
    folder = tmp_path_factory.mktemp("bundle")
    built = with_transposed_head(build_graphs(checkpoint, spec)["model"], checkpoint, folder)
    audit({"model": built}, checkpoint.family, checkpoint.architecture, spec)
    write_bundle(folder, {"model": built}, checkpoint, spec, source="a derived head", placing=Placing.LINK)
    return folder


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Bundle:
    """A copy that a test may change."""
    return load_bundle(shutil.copytree(made, tmp_path / "bundle"))


def test_the_manifest_tells_stored_from_derived(bundle: Bundle) -> None:
    stored, derived = bundle.manifest.weights
    assert (stored.source, stored.file) == ("stored", "model.safetensors")
    assert isinstance(derived, DerivedFile)
    assert (derived.file, derived.recipe.name, derived.recipe.inputs) == (FILE, "transpose", [HEAD])


def test_every_target_computes_the_same(bundle: Bundle) -> None:
    compile_bundle(bundle, "onnxruntime")
    compile_bundle(bundle, "openvino")
    report = check(bundle, max_length=9)
    assert report.passed
    assert [target.name for target in report.targets] == ["onnxruntime", "onnxruntime-cpu", "openvino", "openvino-cpu"]
    assert report.weights == bundle.manifest.weights


def test_tensorrt_builds_it(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = compile_bundle(bundle, "tensorrt-rtx", profiles=["batch=1,sequence=1:4:8"])
    assert engine.manifest.weights == bundle.manifest.weights


def test_a_changed_byte_is_refused(bundle: Bundle) -> None:
    compile_bundle(bundle, "onnxruntime")
    content = bytearray((bundle.path / FILE).read_bytes())
    content[-1] ^= 1
    (bundle.path / FILE).write_bytes(content)
    with pytest.raises(BundleError, match=rf"(?s)not the one that was exported.*{FILE} .*sha256"):
        load_bundle(bundle.path)


def test_a_file_of_another_size_is_refused_unread(bundle: Bundle) -> None:
    with (bundle.path / FILE).open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: to read it would take minutes
    with pytest.raises(BundleError, match="not the one that was exported"):
        load_bundle(bundle.path)


def test_an_engine_is_of_the_derived_weights_too(bundle: Bundle) -> None:
    """The same graph and checkpoint with other derived weights are another bundle."""
    compile_bundle(bundle, "onnxruntime")
    weights = [w.model_copy(update={"sha256": "0" * 64}) if w.file == FILE else w for w in bundle.manifest.weights]
    other = replace(bundle, manifest=bundle.manifest.model_copy(update={"weights": weights}))
    with pytest.raises(BundleError, match="made from another bundle"):
        load_engine(other, "onnxruntime-cpu")


def test_a_package_has_it(bundle: Bundle, tmp_path: Path) -> None:
    made = package(bundle, tmp_path / "models", name="derived")
    assert f"1/{FILE}" in made.files()
    ids = np.array([[5, 6, 7]])
    inputs = feed(bundle.model.inputs, {PortKind.TOKENS: ids, PortKind.MASK: np.ones_like(ids)})
    import onnxruntime

    served = onnxruntime.InferenceSession(made.path / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = get_target("onnxruntime").load(bundle.model).run(inputs)["logits"]
    np.testing.assert_array_equal(served.run(["logits"], inputs)[0], wanted)


def test_inspect_and_the_report_mention_it(bundle: Bundle) -> None:
    assert f"{FILE}: transpose of {HEAD}" in inspect(bundle).to_text()
    write_reports(bundle)
    html = (bundle.path / "reports" / "report.html").read_text()
    assert f"transpose of {HEAD}" in html


def test_the_checkpoint_in_a_bundle_is_exported_without_it(bundle: Bundle, tmp_path: Path) -> None:
    """A bundle is also a checkpoint: Hugging Face and another export read its stored weights."""
    again = export(bundle.path, tmp_path / "again", task="text-generation")
    assert [weight.file for weight in again.manifest.weights] == ["model.safetensors"]
    assert export(bundle.path, tmp_path / "again", task="text-generation").path == again.path, "replaced"
    shutil.copytree(bundle.path, tmp_path / "taken")
    assert export(Recipe().checkpoint(), tmp_path / "taken", funnel="1:3:2", task="text-generation"), (
        "a derived file is the bundle's own"
    )


def test_the_audit_refuses_a_weight_without_a_source(bundle: Bundle) -> None:
    model, checkpoint = ir.load(bundle.model.path), Checkpoint.open(bundle.path)
    sources = dict(build_graphs(checkpoint, bundle.spec)["model"].sources)
    assert not any(isinstance(source, Derived) for source in sources.values())
    sources["gone"] = next(iter(sources.values()))
    with pytest.raises(
        ExportError,
        match=rf"(?s){NAME} refers to {FILE}, which is not a weight file.*not at its source.*gone: a source",
    ):
        audit({"model": BuiltGraph(model, sources, {})}, bundle.family, bundle.architecture, bundle.spec)
