"""A bundle of several graphs is loaded, inspected and compiled graph by graph."""

import json
import shutil
from pathlib import Path

import pytest
from exported import PAST
from stepping import largest_error, read, texts

from funnel_export import Bundle, BundleError, SpecError, compile_bundle, load_bundle
from funnel_export.bundle.engine import load_engine
from funnel_export.bundle.ports import PortKind
from funnel_export.commands.inspect import inspect
from funnel_export.report.pages import write_reports
from funnel_export.runtime.load import load_stepper

ROLES = ["entry", "middle", "exit"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy for a test to add to or spoil."""
    return load_bundle(shutil.copytree(PAST.bundle().path, tmp_path / "bundle"))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_graphs_run_as_they_are_and_compiled(bundle: Bundle, target: str) -> None:
    rows, chunks = texts([9, 7]), [[6, 4], [1, 1], [2, 2]]
    _, wanted = read(load_stepper(bundle, target), rows, chunks)
    made = [compile_bundle(bundle, target, graph=role) for role in bundle.graphs]
    assert [engine.name for engine in made] == [f"{role}-{target}-cpu" for role in ROLES]
    assert [engine.manifest.graph for engine in made] == ROLES
    _, found = read(load_stepper(bundle, engines=[engine.name for engine in made]), rows, chunks)
    assert largest_error(found, wanted) < 2e-5


def test_the_manifest_says_what_goes_in_and_out(bundle: Bundle) -> None:
    graphs = json.loads((bundle.path / "manifest.json").read_text())["graphs"]
    kinds = {
        role: [(port["name"], port["kind"]) for port in graph["inputs"] if port["kind"] != "past"]
        for role, graph in graphs.items()
    }
    assert kinds == {
        "entry": [("input_ids", "tokens"), ("past_length", "index")],
        "middle": [
            ("open", "state"),
            ("hidden", "state"),
            ("carried", "state"),
            ("past_length", "index"),
            ("slots", "index"),
        ],
        "exit": [
            ("hidden", "state"),
            ("changes", "state"),
            ("reads", "index"),
            ("past_length", "index"),
            ("logit_columns", "index"),
        ],
    }
    past = {
        role: [port["name"] for port in graph["inputs"] if port["kind"] == "past"] for role, graph in graphs.items()
    }
    assert past == {
        role: [f"past_key_values.{layer}.{which}" for layer in layers for which in ("key", "value")]
        for role, layers in (("entry", [0]), ("middle", [1, 2]), ("exit", [3]))
    }
    assert [(graph.path.name, graph.output.kind) for graph in bundle.graphs.values()] == [
        ("entry.onnx", PortKind.STATE),
        ("middle.onnx", PortKind.STATE),
        ("exit.onnx", PortKind.LOGITS),
    ]


def test_each_weight_is_in_one_graph(bundle: Bundle) -> None:
    import onnx_ir as ir

    assert [weight.file for weight in bundle.manifest.weights] == ["model.safetensors"]
    names = [
        name
        for graph in bundle.graphs.values()
        for name, value in ir.load(graph.path).graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    ]
    assert [name for name in names if names.count(name) > 1] == ["model.embed_tokens.weight"] * 2, "the tied head"
    assert len(set(names)) == len(list(PAST.model().parameters()))


def test_inspect_shows_and_audits_all(bundle: Bundle) -> None:
    found = inspect(bundle)
    assert found.audits == {role: [] for role in ROLES}
    for text in (*(f"{role}.onnx" for role in ROLES), "hidden float32 [batch_size, sequence_length, 40]"):
        assert text in found.to_text()
    assert json.loads(found.to_json())["audit"] == []


def test_the_report_names_all(bundle: Bundle) -> None:
    write_reports(bundle)
    text = (bundle.path / "reports" / "report.md").read_text()
    assert all(bundle.graphs[role].sha256[:12] in text for role in ROLES)


def test_a_graph_is_named_where_there_are_several(bundle: Bundle) -> None:
    with pytest.raises(SpecError, match=r"(?s)has several graphs.*entry, middle, exit.*--graph entry"):
        compile_bundle(bundle, "onnxruntime")
    with pytest.raises(SpecError, match=r"(?s)no such graph.*'third'.*entry, middle, exit"):
        compile_bundle(bundle, "onnxruntime", graph="third")


def test_an_engine_of_a_graph_that_has_changed_is_refused(bundle: Bundle) -> None:
    engine = compile_bundle(bundle, "onnxruntime", graph="exit")
    text = (engine.path / "manifest.json").read_text()
    (engine.path / "manifest.json").write_text(text.replace('"graph": "exit"', '"graph": "entry"'))
    with pytest.raises(BundleError, match="made from another bundle"):
        load_engine(bundle, engine.name)
    (engine.path / "manifest.json").write_text(text.replace('"graph": "exit"', '"graph": "third"'))
    with pytest.raises(BundleError, match=r"(?s)made from another bundle.*graph third none"):
        load_engine(bundle, engine.name)


def test_a_graph_for_whole_texts_is_missing(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no graph that takes whole texts"):
        _ = bundle.model


def test_a_changed_graph_is_refused(bundle: Bundle) -> None:
    with (bundle.path / "exit.onnx").open("ab") as stream:
        stream.write(b"\x00")
    with pytest.raises(BundleError, match=r"exit\.onnx is not the one that was exported"):
        load_bundle(bundle.path)


def test_tensorrt_profiles_have_a_range_for_each_axis_of_the_graph(bundle: Bundle) -> None:
    pytest.importorskip("tensorrt_rtx")
    ranges = "batch=1:1:2,sequence=1:8:16,past_sequence_length=1:16:32"
    engine = compile_bundle(bundle, "tensorrt-rtx", graph="entry", profiles=[ranges])
    assert engine.manifest.graph == "entry"
    assert list(engine.manifest.profiles[0].axes) == ["batch_size", "sequence_length", "past_sequence_length"]
    with pytest.raises(SpecError, match="missing past_sequence_length"):
        compile_bundle(bundle, "tensorrt-rtx", graph="entry", profiles=["batch=1,sequence=8"])


def test_an_engine_with_a_profile_of_other_axes_is_refused(bundle: Bundle) -> None:
    engine = compile_bundle(bundle, "onnxruntime", graph="entry")
    manifest = json.loads((engine.path / "manifest.json").read_text())
    manifest["profiles"] = [{"axes": {"columns": {"min": 1, "opt": 1, "max": 1}}}]
    (engine.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        BundleError,
        match=r"(?s)a profile for another graph.*missing batch, sequence, past_sequence_length; unknown columns",
    ):
        load_engine(bundle, engine.name)
