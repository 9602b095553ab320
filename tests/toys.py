"""Folders like bundles, with graphs of a few nodes: outputs of shapes and dtypes that an export would take long for."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

HEAD = '<ir_version: 9, opset_import: ["": 18]> toy (int64[b, s] input_ids, int64[b, s] attention_mask) => '

LABELS = """(float[b, 3] logits) {
    axes = Constant <value = int64[1] {1}> ()
    weights = Constant <value = float[1, 3] {0.5, 2.0, -1.0}> ()
    ids = Mul (input_ids, attention_mask)
    sums = ReduceSum <keepdims = 1> (ids, axes)
    floats = Cast <to = 1> (sums)
    logits = Mul (floats, weights)
}"""

HIDDEN = """(float[b, s, 2] last_hidden_state) {
    axes = Constant <value = int64[1] {2}> ()
    weights = Constant <value = float[1, 1, 2] {0.5, -2.0}> ()
    ids = Mul (input_ids, attention_mask)
    wide = Unsqueeze (ids, axes)
    floats = Cast <to = 1> (wide)
    last_hidden_state = Mul (floats, weights)
}"""

HALVES = """(float16[b, s, 1] logits) {
    axes = Constant <value = int64[1] {2}> ()
    ids = Mul (input_ids, attention_mask)
    rows = Gather <axis = 0> (table, ids)
    logits = Unsqueeze (rows, axes)
}"""


def save_toy(folder: Path, graph: str, table: NDArray[np.float16] | None = None) -> Path:
    """Write `model.onnx` and a manifest; HALVES looks ids up in a table."""
    model = onnx.parser.parse_model(HEAD + graph)
    if table is not None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(table, "table"))
    return save_files(folder, model.SerializeToString())


def save_files(folder: Path, content: bytes) -> Path:
    """Write a `model.onnx` of any content, and its manifest."""
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    manifest = {
        "schema_version": 2,
        "dtype": "float32",
        "graphs": {"model": {"file": "model.onnx", "sha256": digest, "inputs": []}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2))
    return folder
