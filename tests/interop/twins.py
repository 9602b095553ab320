"""Ways to break a bundle on purpose: each changes one thing of a graph or its weights, in place."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

SOFTCAP, WINDOW = 2.5, 5
"""Of the tiny models that make_bundles.py exports."""


def load(folder: Path) -> onnx.ModelProto:
    """The graph without its weights."""
    return onnx.load(folder / "model.onnx", load_external_data=False)


def save(folder: Path, model: onnx.ModelProto) -> None:
    """Write the graph back; it still refers to the same weights."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def unchanged(folder: Path) -> None:
    """Nothing, so that a refusal is not due to the writing."""
    save(folder, load(folder))


def change_constants(folder: Path, old: float, new: float) -> None:
    """Replace a number wherever it stands alone, as an initializer or a constant."""
    model = load(folder)
    tensors = [t for t in model.graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
    tensors += [a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute]
    found = [t for t in tensors if np.prod(t.dims) == 1 and numpy_helper.to_array(t).item() == old]
    assert found, f"no constant {old}"
    for tensor in found:
        changed = numpy_helper.from_array(np.full_like(numpy_helper.to_array(tensor), new), tensor.name)
        tensor.CopyFrom(changed)
    save(folder, model)


def larger_softcap(folder: Path) -> None:
    """Cap attention at another score."""
    change_constants(folder, SOFTCAP, 2 * SOFTCAP)


def shifted_mask(folder: Path) -> None:
    """Take the attention mask one column further left."""
    model = load(folder)
    for node in model.graph.node:
        node.input[:] = ["shifted" if name == "attention_mask" else name for name in node.input]
    bounds = {"zero": [0], "one": [1], "end": [2**31], "axis": [1]}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in bounds.items())
    nodes = [
        helper.make_node("Slice", ["attention_mask", "one", "end", "axis"], ["tail"]),
        helper.make_node("Slice", ["attention_mask", "zero", "one", "axis"], ["head"]),
        helper.make_node("Concat", ["tail", "head"], ["shifted"], axis=1),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    save(folder, model)


def other_weights(folder: Path) -> None:
    """Let every layer norm of one kind refer to that of the next layer."""
    model = load(folder)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    first, second = (weights[f"model.layers.{layer}.input_layernorm.weight"] for layer in (0, 1))
    for entry, other in zip(first.external_data, second.external_data, strict=True):
        entry.value = other.value
    save(folder, model)


TWINS: dict[str, Callable[[Path], None]] = {
    "softcap": larger_softcap,
    "mask": shifted_mask,
    "weights": other_weights,
}
