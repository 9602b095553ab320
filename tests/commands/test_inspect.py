"""`inspect` says what targets made of the products of a quantized graph, and nothing that was not seen."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exported import Recipe
from onnx import numpy_helper
from tamper import rewrite_graph, rewrite_json

from funnel_export import Bundle, Quantization, compile_bundle, load_bundle
from funnel_export.bundle.engine import Engine, engine_names, load_engine
from funnel_export.bundle.products import Products, Weights
from funnel_export.commands.inspect import inspect
from funnel_export.report.text import describe_engine

FOUR = Recipe(quantization=Quantization(bits=4), overrides=(("hidden_size", 64), ("vocab_size", 62), ("head_dim", 16)))
EIGHT = replace(FOUR, quantization=Quantization(bits=8))
TARGETS = ("onnxruntime", "openvino", "tensorrt-rtx")
SMALL = {"tensorrt-rtx": ("batch=1,sequence=1:8:16",)}
NETWORK = "in the network that the builder was given; the plan was not read"
SEEN = {
    "onnxruntime": "29 in 4 bits in blocks of 64 in the optimized graph; activations are not rounded "
    "(accuracy_level 0)",
    "openvino": "29 in 4 bits in the runtime graph; activations are not rounded (DYNAMIC_QUANTIZATION_GROUP_SIZE 0)",
    "tensorrt-rtx": f"29 in 4 bits {NETWORK}",
}


def own(recipe: Recipe, folder: Path) -> Bundle:
    return load_bundle(shutil.copytree(recipe.bundle().path, folder / "bundle"))


def built(bundle: Bundle, target: str, **options: str) -> Engine:
    """An engine called `mine`."""
    if target == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)
    return compile_bundle(bundle, target, profiles=SMALL.get(target, ()), options=options, name="mine")


def told(bundle: Bundle) -> str:
    """What the text says of the engine; the JSON must say it too."""
    found = inspect(bundle)
    (line,) = [line for line in found.to_text().splitlines() if line.startswith("engine")]
    name, _, words = line.removeprefix("engine").strip().partition(", products: ")
    assert name == "mine"
    said = json.loads(found.to_json())["engines"]["mine"]
    assert str(Products.read(said) or "") == words
    assert bool(said) == bool(words)
    return words


@pytest.mark.parametrize("target", TARGETS)
def test_products_are_counted_by_their_bits(target: str, tmp_path: Path) -> None:
    bundle = own(FOUR, tmp_path)
    engine = built(bundle, target)
    assert told(bundle) == SEEN[target]
    (line,) = [line for line in describe_engine(engine).splitlines() if line.startswith("products")]
    assert line.removeprefix("products").strip() == SEEN[target]


@pytest.mark.parametrize("target", TARGETS)
def test_a_product_that_is_left_in_float32_is_shown(target: str, tmp_path: Path) -> None:
    def leave(model: onnx.ModelProto) -> None:
        """Make the first layer's up projection a plain weight, which the manifest does not tell."""
        (node,) = [each for each in model.graph.node if each.name.endswith("layers.0.mlp.up_proj.weight")]
        shape = next(each.dims for each in model.graph.initializer if each.name == node.input[0])
        model.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), node.output[0]))
        model.graph.node.remove(node)

    bundle = own(FOUR, tmp_path)
    rewrite_graph(bundle.path, leave)
    bundle = load_bundle(bundle.path)
    built(bundle, target)
    first, _, rest = SEEN[target].partition(" in the ")
    assert told(bundle) == f"{first.replace('29', '28')}, 1 in float32 in the {rest}"


@pytest.mark.parametrize(
    ("target", "option", "value", "words"),
    [
        ("onnxruntime", "session.qdq_matmulnbits_accuracy_level", "4", "may be rounded (accuracy_level 4)"),
        ("openvino", "DYNAMIC_QUANTIZATION_GROUP_SIZE", "32", "may be rounded (DYNAMIC_QUANTIZATION_GROUP_SIZE 32)"),
    ],
)
def test_rounded_activations_are_told(target: str, option: str, value: str, words: str, tmp_path: Path) -> None:
    bundle = own(EIGHT, tmp_path)
    built(bundle, target, **{option: value})
    assert told(bundle).startswith("29 in 8 bits")
    assert told(bundle).endswith(f"; activations {words}")


def test_onnxruntime_computes_8_bits_exactly_with_float_weights(tmp_path: Path) -> None:
    """Its product with codes of 8 bits and exact activations takes ten times as long."""
    bundle = own(EIGHT, tmp_path)
    built(bundle, "onnxruntime")
    assert told(bundle).startswith("29 in float32 in the optimized graph")
    engine = load_engine(bundle, engine_names(bundle)[0])
    assert sum(file.size for file in engine.manifest.files) > sum(file.size for file in bundle.manifest.weights)


def test_kept_parts_are_in_the_graphs_dtype(tmp_path: Path) -> None:
    kept = replace(FOUR, quantization=Quantization(bits=4, keep=("mlp", "head")))
    bundle = own(kept, tmp_path)
    built(bundle, "openvino")
    assert told(bundle).startswith("16 in 4 bits, 13 in float32 in the runtime graph;")


def test_nothing_is_claimed_of_codes_that_a_session_may_still_put_into_products(tmp_path: Path) -> None:
    bundle = own(FOUR, tmp_path)
    built(bundle, "onnxruntime", graph_optimization_level="basic")
    assert told(bundle) == ""


def test_nothing_is_claimed_of_a_graph_that_is_not_quantized(tmp_path: Path) -> None:
    bundle = own(Recipe(), tmp_path)
    for target in TARGETS:
        built(bundle, target)
        assert told(bundle) == ""


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(graph_sha256="0" * 64),  # of another bundle
        lambda manifest: manifest["facts"]["products"].update(seen="in a dream"),
        lambda manifest: manifest["facts"]["products"].update(setting="\x1b[2J"),
        lambda manifest: manifest["facts"]["products"]["weights"][0].update(count=-1),
        lambda manifest: manifest["facts"].update(products=[]),
        lambda manifest: manifest["facts"].pop("products"),  # of an earlier version
        lambda manifest: manifest.clear(),
    ],
)
def test_nothing_is_claimed_from_a_record_that_does_not_fit(change: Callable[[Any], object], tmp_path: Path) -> None:
    bundle = own(FOUR, tmp_path)
    rewrite_json(built(bundle, "onnxruntime").path / "manifest.json", change)
    assert told(bundle) == ""


def test_products_of_an_unknown_kind_are_not_counted_at_all() -> None:
    assert Products.count([Weights(bits=4), None], seen="network") is None
    assert Products.count([], seen="network") is None
    assert Weights.codes(3) is None
    assert Weights.codes(4, 0) is None
    assert Weights.plain("float64") is None
