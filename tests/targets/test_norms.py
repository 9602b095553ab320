"""Runtimes make one operation of each norm, of any family, instead of seven; ONNX Runtime not in bfloat16."""

from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import openvino
import pytest
from exported import PAST, Recipe

RECIPES = {
    "gemma": Recipe(family="gemma"),
    "gemma2": Recipe(),
    "gemma2 with a cache": PAST,
    "gemma2 in float16": Recipe(dtype="float16"),
    "gemma3_text": Recipe(family="gemma3_text"),  # with norms of queries and keys
    "vaultgemma": Recipe(family="vaultgemma"),
}


def operators(graph: Path) -> Counter[str]:
    """How many nodes of each operator a graph has."""
    return Counter(node.op_type for node in onnx.load(graph, load_external_data=False).graph.node)


def norms(graph: Path) -> int:
    """The number of norms in an exported graph, each of which squares its input."""
    return operators(graph)["Pow"]


@pytest.mark.filterwarnings("ignore:.*float16")
@pytest.mark.parametrize("name", RECIPES)
def test_onnxruntime_fuses_norms(name: str, tmp_path: Path) -> None:
    for graph in RECIPES[name].bundle().graphs.values():
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"])
        found = operators(tmp_path / "optimized.onnx")
        assert found["SimplifiedLayerNormalization"] == norms(graph.path) > 0
        assert found["ReduceMean"] == 0


def test_norms_of_bfloat16_graphs_keep_the_reciprocal() -> None:
    """ONNX Runtime's CUDA provider has no kernel for a norm in bfloat16 with a weight in float32."""
    in_bfloat16, in_float32 = (operators(Recipe(dtype=dtype).bundle().model.path) for dtype in ("bfloat16", "float32"))
    assert in_bfloat16["Reciprocal"] == in_float32["Div"] - in_bfloat16["Div"] == in_float32["Pow"] > 0


@pytest.mark.filterwarnings("ignore:.*float16")
@pytest.mark.parametrize("recipe", [*RECIPES.values(), Recipe(dtype="bfloat16")], ids=[*RECIPES, "gemma2 in bfloat16"])
def test_openvino_fuses_norms(recipe: Recipe) -> None:
    core = openvino.Core()
    for graph in recipe.bundle().graphs.values():
        compiled = core.compile_model(core.read_model(graph.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        kinds = [op.get_rt_info()["layerType"].astype(str) for op in compiled.get_runtime_model().get_ordered_ops()]
        assert kinds.count("RMS") == norms(graph.path) > 0
