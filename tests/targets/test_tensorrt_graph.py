"""TensorRT is given a graph in which embeddings of codes are tables: with the same values, and without a file of it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from exported import PAST, Recipe
from onnx import numpy_helper
from safetensors.torch import load_file
from tamper import agree_with_graph, listing

from funnel_export import Quantization, load_bundle
from funnel_export.checkpoint.quantized import QUANTIZED
from funnel_export.targets.base import check_room_for_engine
from funnel_export.targets.tensorrt import graph as module
from funnel_export.targets.tensorrt.graph import ReadableGraph, parse, readable_graph, refit

FOUR, EIGHT = Quantization(bits=4, block_size=16), Quantization(bits=8)
WEIGHT = "model.embed_tokens.weight"
SMALL = Recipe(overrides=(("hidden_size", 48), ("vocab_size", 62)), quantization=FOUR)


def run(model: bytes, folder: Path, inputs: dict[str, Any]) -> list[Any]:
    """Outputs of a graph that refers to files in a folder."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def whole(graph: ReadableGraph) -> bytes:
    """The graph with its tables inside."""
    model = onnx.load_model_from_string(graph.content)
    for tensor in model.graph.initializer:
        if tensor.name in graph.tables:
            tensor.CopyFrom(numpy_helper.from_array(graph.tables[tensor.name], tensor.name))
    return model.SerializeToString()


def test_outputs_are_those_of_the_bundles_graph() -> None:
    bundle = SMALL.bundle()
    before, graph = listing(bundle.path), readable_graph(bundle.model.path)
    assert set(graph.tables) == {WEIGHT}
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6], [0, 0, 53, 58, 61, 7, 9, 3]])
    inputs = {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}
    (expected,) = run(bundle.model.path.read_bytes(), bundle.path, inputs)
    (found,) = run(whole(graph), bundle.path, inputs)
    assert np.array_equal(found, expected)
    assert listing(bundle.path) == before


@pytest.mark.parametrize(
    "recipe",
    [
        SMALL,
        Recipe(quantization=EIGHT, dtype="bfloat16", stored=torch.bfloat16),
        Recipe(quantization=EIGHT, dtype="float16"),
    ],
    ids=lambda recipe: recipe.dtype,
)
@pytest.mark.filterwarnings("ignore:Gemma2 is known to overflow")
def test_a_table_has_the_values_that_the_graph_computes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = recipe.bundle()
    stored = load_file(bundle.path / QUANTIZED)
    scales = stored[f"{WEIGHT}.row_scales"]
    expected = stored[f"{WEIGHT}.row_codes"].to(scales.dtype) * scales
    for chunk in (module.CHUNK, 100):
        monkeypatch.setattr(module, "CHUNK", chunk)
        table = readable_graph(bundle.model.path).tables[WEIGHT]
        assert table.dtype.name == recipe.dtype
        assert np.array_equal(table.astype(np.float32), expected.float().numpy())


def test_nothing_of_the_codes_is_left_and_nothing_else_changes() -> None:
    for graph in replace(PAST, quantization=EIGHT).bundle().graphs.values():
        readable = readable_graph(graph.path)
        if graph.role != "entry":  # the middle reads hidden states, and the head is a product
            assert (readable.tables, readable.content) == ({}, b"")
            continue
        before, after = onnx.load(graph.path, load_external_data=False), onnx.load_model_from_string(readable.content)
        nodes = [{each.name for each in model.graph.node} for model in (before, after)]
        assert nodes[1] - nodes[0] == {f"model/Gather.{WEIGHT}"}
        assert nodes[0] - nodes[1] == {
            f"model/Gather.{WEIGHT}.row_codes",
            f"model/Gather.{WEIGHT}.row_scales",
            f"model/Cast.{WEIGHT}.row_codes",
            f"model/Mul.{WEIGHT}",
        }
        weights = [{each.name for each in model.graph.initializer} for model in (before, after)]
        assert weights[1] - weights[0] == {WEIGHT}
        assert weights[0] - weights[1] == {f"{WEIGHT}.row_codes", f"{WEIGHT}.row_scales"}
        assert list(after.graph.input) == list(before.graph.input)
        assert [each.name for each in after.graph.output] == [each.name for each in before.graph.output]
        assert len(readable.content) < graph.path.stat().st_size + 1000  # the table is not in it


def test_a_graph_without_codes_of_an_embedding_is_read_from_its_file() -> None:
    for quantization in (None, Quantization(bits=8, keep=("embedding",))):
        path = Recipe(quantization=quantization).bundle().model.path
        assert readable_graph(path) == ReadableGraph(path, b"", {})


def test_an_embedding_that_is_read_in_another_way_stays_as_it_is(tmp_path: Path) -> None:
    bundle = load_bundle(shutil.copytree(SMALL.bundle().path, tmp_path / "bundle"))
    model = ir.load(bundle.model.path)
    (gather,) = [each for each in model.graph if each.op_type == "Gather" and "row_scales" in str(each.inputs[0].name)]
    gather.replace_input_with(1, model.graph.inputs[1])  # the scales of other tokens
    bundle.model.path.unlink()
    ir.save(model, bundle.model.path)
    agree_with_graph(bundle.path)
    assert readable_graph(bundle.model.path).tables == {}


class Parser:
    """Records what TensorRT's parser or refitter is asked for, and refuses what it is told to."""

    def __init__(self, refused: str = "") -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._refused = refused

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> bool:
            self.calls.append((name, *arguments))
            return name != self._refused

        return call


@pytest.mark.parametrize(("read", "verb"), [(parse, "parse"), (refit, "refit")])
def test_parser_and_refitter_are_given_the_graph_and_its_tables(read: Any, verb: str) -> None:
    path = SMALL.bundle().model.path
    graph = readable_graph(path)
    table = graph.tables[WEIGHT]
    steps = [
        ("load_model_proto", graph.content, str(path)),
        ("load_initializer", WEIGHT, table.ctypes.data, table.nbytes),
        (f"{verb}_model_proto",),
    ]
    for refused, count in {"": 3, "load_model_proto": 1, "load_initializer": 2, f"{verb}_model_proto": 3}.items():
        parser = Parser(refused)
        assert read(parser, graph) == (not refused)
        assert parser.calls == steps[:count]
    plain, parser = Recipe().bundle().model.path, Parser()
    assert read(parser, readable_graph(plain))
    assert parser.calls == [(f"{verb}_from_file", str(plain))]


def test_the_room_for_a_plan_includes_the_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle, asked = SMALL.bundle(), []
    table = readable_graph(bundle.model.path).tables[WEIGHT]
    monkeypatch.setattr("funnel_export.targets.base.check_room", lambda folder, needed, what: asked.append(needed))
    check_room_for_engine(bundle.model, tmp_path)
    check_room_for_engine(bundle.model, tmp_path, (".row_codes",))
    assert asked[1] - asked[0] == table.nbytes - table.size
