"""Graphs and manifests that no export makes are refused at once, whatever a runtime would do with them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from exported import Recipe
from fuzz.watch import limit
from onnx import ModelProto, TensorProto, helper
from tamper import rewrite_graph, rewrite_json

from funnel_export import compile_bundle, load_bundle
from funnel_export.bundle import form
from funnel_export.bundle.engine import load_engine, record_file
from funnel_export.errors import BundleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of its own for a test."""
    return shutil.copytree(Recipe().bundle().path, tmp_path / "bundle")


def foreign_op(model: ModelProto) -> None:
    model.graph.node[0].domain = "com.microsoft"


def subgraph(model: ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])])
    node = helper.make_node("If", ["attention_mask"], ["never"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)


def functions(model: ModelProto) -> None:
    """Each calls the next one twice: ten of them are a thousand calls, and forty never end."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("bomb", 1)]
    for depth in range(40):
        calls = [helper.make_node(f"F{depth + 1}", ["x"], [name], domain="bomb") for name in ("y", "z")]
        model.functions.append(helper.make_function("bomb", f"F{depth}", ["x"], ["y"], calls, opsets))


def too_new(model: ModelProto) -> None:
    model.opset_import[0].version = 10**9


def another_domain(model: ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))


def many_nodes(model: ModelProto) -> None:
    node = helper.make_node("Identity", ["input_ids"], ["never"])
    model.graph.node.extend([node] * form.MOST_NODES)


CHANGES: dict[Callable[[ModelProto], None], str] = {
    foreign_op: r"1 x com\.microsoft\.",
    subgraph: "1 x If with a graph inside",
    functions: "40 functions",
    too_new: "opset 1000000000 of ai.onnx",
    another_domain: "opset 3 of ai.onnx.ml",
    many_nodes: r"\d+ nodes",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_graph_that_no_export_makes(change: Callable[[ModelProto], None], folder: Path) -> None:
    rewrite_graph(folder, change)
    with pytest.raises(BundleError, match=f"(?s)not have the form of an export.*got: {CHANGES[change]}"), limit():
        load_bundle(folder)


def another_runtimes_op(model: ModelProto) -> None:
    model.graph.node[0].domain = "ai.onnx.ml"


def in_proportion(model: ModelProto) -> None:
    """More nodes than any optimization adds, and fewer than the largest export has."""
    nodes = len(onnx.load(Recipe().bundle().model.path, load_external_data=False).graph.node)
    node = helper.make_node("Identity", ["input_ids"], ["never"])
    model.graph.node.extend([node] * (form.GROWTH * nodes + form.EXTRA + 1 - len(model.graph.node)))


ENGINES: dict[Callable[[ModelProto], None], str] = {
    another_runtimes_op: r"1 x ai\.onnx\.ml\.",
    subgraph: "1 x If with a graph inside",
    functions: "40 functions",
    many_nodes: r"\d+ nodes",
    in_proportion: r"\d+ nodes",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an engine; do not change its files."""
    folder = shutil.copytree(Recipe().bundle().path, tmp_path_factory.mktemp("compiled") / "bundle")
    compile_bundle(folder, "onnxruntime", name="mine")
    return folder


@pytest.mark.parametrize("change", ENGINES, ids=lambda change: change.__name__)
def test_an_engines_graph_that_no_optimization_makes(
    change: Callable[[ModelProto], None], compiled: Path, tmp_path: Path
) -> None:
    bundle = load_bundle(shutil.copytree(compiled, tmp_path / "bundle"))
    engine = bundle.path / "engines" / "mine"
    model = onnx.load(engine / "model.onnx", load_external_data=False)
    change(model)
    (engine / "model.onnx").write_bytes(model.SerializeToString())
    files = [record_file(engine / name).model_dump() for name in ("model.onnx", "weights.bin")]
    rewrite_json(engine / "manifest.json", lambda manifest: manifest.update(files=files))
    message = f"(?s)not have the form of an optimized export.*got: {ENGINES[change]}"
    with pytest.raises(BundleError, match=message), limit():
        load_engine(bundle, "mine")


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.filterwarnings("ignore:Gemma2 is known to overflow")
def test_every_engine_has_the_form_of_one(level: str, dtype: str, tmp_path: Path) -> None:
    """Optimizations make ops of ONNX Runtime's own domains, and casts around ops without a float16 kernel."""
    folder = shutil.copytree(Recipe(dtype=dtype).bundle().path, tmp_path / "bundle")
    engine = compile_bundle(folder, "onnxruntime", options={"graph_optimization_level": level}, name="mine")
    nodes, exported = (
        len(onnx.load(path, load_external_data=False).graph.node) for path in (engine.file, folder / "model.onnx")
    )
    assert nodes < form.GROWTH * exported / 2
    assert load_engine(load_bundle(folder), "mine") == engine


def with_graphs(manifest: dict[str, Any]) -> None:
    manifest["graphs"] = {f"role{number}": manifest["graphs"]["model"] for number in range(100_000)}


def with_inputs(manifest: dict[str, Any]) -> None:
    manifest["graphs"]["model"]["inputs"] *= 10_000


@pytest.mark.parametrize("change", [with_graphs, with_inputs])
def test_a_manifest_of_too_many_things(change: Callable[[Any], None], folder: Path) -> None:
    rewrite_json(folder / "manifest.json", change)
    with pytest.raises(BundleError, match=r"at most \d+ items"), limit():
        load_bundle(folder)


def test_graphs_of_exports_stay_far_below_the_limits() -> None:
    nodes = len(onnx.load(Recipe().bundle().model.path, load_external_data=False).graph.node)
    assert nodes * 256 / 4 < form.MOST_NODES, "256 layers, where these are 4"
