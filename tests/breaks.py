"""Graphs broken on purpose, for the checks that must refuse them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exported import Recipe
from numpy.typing import NDArray
from tamper import agree_with_graph

from funnel_export import Bundle, load_bundle
from funnel_export.bundle.weights import Stored, WeightSource
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.exporter.audit import audit
from funnel_export.exporter.build import BuiltGraph


def broken(bundle: Bundle, folder: Path, change: Callable[[ir.Model], None]) -> Bundle:
    """A bundle whose graph was changed, as if the export had made it so; load_bundle would refuse it."""
    for file in bundle.path.iterdir():
        if file.is_file():
            (folder / file.name).hardlink_to(file)
    model = ir.load(bundle.model.path)
    change(model)
    (folder / bundle.model.path.name).unlink()
    ir.save(model, folder / bundle.model.path.name)
    return replace(bundle, path=folder)


def own(folder: Path, recipe: Recipe | None = None) -> Bundle:
    """A copy of a bundle, without the reports that other tests may have left in it."""
    bundle = (recipe or Recipe()).bundle().path
    return load_bundle(shutil.copytree(bundle, folder / "bundle", ignore=shutil.ignore_patterns("reports")))


def changed(folder: Path, change: Callable[[ir.Model], None]) -> Bundle:
    """A bundle with another graph, whose manifest agrees with it: what an export that went wrong would write."""
    bundle = own(folder)
    model = ir.load(bundle.model.path)
    change(model)
    bundle.model.path.unlink()
    ir.save(model, bundle.model.path)
    agree_with_graph(bundle.path)
    return load_bundle(bundle.path)


def loaded(recipe: Recipe) -> ir.Model:
    return ir.load(recipe.bundle().model.path)


def weights_of(model: ir.Model, checkpoint: Checkpoint) -> dict[str, WeightSource]:
    """Where the weights that a graph refers to come from, if all are the checkpoint's."""
    weights = [v for v in model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)]
    return {str(value.name): Stored(checkpoint.find(str(value.name))) for value in weights}


def run_audit(model: ir.Model, recipe: Recipe, **changes: Any) -> None:
    """Audit a graph as one of a recipe's export; `changes` are of what was to be exported."""
    bundle = recipe.bundle()
    sources = weights_of(model, Checkpoint.open(bundle.path))
    built = {"model": BuiltGraph(model, sources, {})}
    audit(built, bundle.family, bundle.architecture, replace(bundle.spec, **changes))


def set_constants(model: ir.Model, op_type: str, prefix: str, old: float, new: float) -> None:
    """Give the constant operands of some nodes another value, as constants of their own."""
    for node in list(model.graph):
        if node.op_type != op_type or not str(node.name).startswith(prefix):
            continue
        for index, value in enumerate(node.inputs):
            tensor = None if value is None else value.const_value
            if tensor is not None and tensor.size == 1 and tensor.numpy().item() == pytest.approx(old):
                array = np.full_like(tensor.numpy(), new)
                constant = ir.Value(name=f"changed.{node.name}", const_value=ir.tensor(array))
                model.graph.register_initializer(constant)
                node.replace_input_with(index, constant)


def replace_constant(value: ir.Value, array: NDArray[Any]) -> None:
    """Give a constant another value."""
    value.const_value = ir.tensor(array, name=value.name)


def another_cap(model: ir.Model) -> None:
    set_constants(model, "Div", "layers.2/", 2.5, 1.5)
    set_constants(model, "Mul", "layers.2/", 2.5, 1.5)


def swapped_masks(model: ir.Model) -> None:
    adds = [softmax.inputs[0].producer() for softmax in model.graph if softmax.op_type == "Softmax"]
    first, last = adds[0], adds[3]  # layers 0 and 3: sliding and full, both on tokens
    one, other = first.inputs[1], last.inputs[1]
    first.replace_input_with(1, other)
    last.replace_input_with(1, one)


def fixed_axis(model: ir.Model) -> None:
    model.graph.inputs[0].shape = ir.Shape(["batch_size", 7])


def node(model: ir.Model, name: str, op_type: str) -> ir.Node:
    return next(n for n in model.graph if str(n.name).startswith(name) and n.op_type == op_type)


def scaled(model: ir.Model, owner: ir.Node, index: int, change: float, *, add: bool = False) -> None:
    """Multiply an operand by a constant, or add it."""
    value = owner.inputs[index]
    assert value is not None
    kind = (ir.DataType.FLOAT if value.dtype is None else value.dtype).numpy()
    constant = ir.Value(name="changed", const_value=ir.tensor(np.array(change, kind)))
    model.graph.register_initializer(constant)
    changed = ir.node("Add" if add else "Mul", [value, constant], name="changed")
    model.graph.insert_before(owner, changed)
    owner.replace_input_with(index, changed.outputs[0])


def another_softcap(model: ir.Model) -> None:
    scaled(model, node(model, "layers.2/", "Tanh"), 0, 0.8)


def shifted_read_out(model: ir.Model) -> None:
    scaled(model, node(model, "funnel/recover/", "Gather"), 1, -1, add=True)


def shifted_window(model: ir.Model) -> None:
    scaled(model, node(model, "funnel/pool/", "Gather"), 1, -1, add=True)


def shifted_column(model: ir.Model) -> None:
    """Let a trimmed layer run on the column before each chosen one."""
    gathers = [each for each in model.graph if str(each.name).startswith("model/Gather")]
    states = [each for each in gathers if each.outputs[0].dtype != ir.DataType.INT64]
    scaled(model, states[-1], 1, -1, add=True)  # the embedding is gathered before them


def swapped_weights(model: ir.Model) -> None:
    one, other = (model.graph.initializers[f"model.layers.3.mlp.{name}_proj.weight"] for name in ("gate", "up"))
    one.const_value, other.const_value = other.const_value, one.const_value


def no_final_softcap(model: ir.Model) -> None:
    scaled(model, node(model, "model/", "Tanh"), 0, 1.1)


def not_a_number(model: ir.Model) -> None:
    scaled(model, node(model, "layers.1/", "Tanh"), 0, float("nan"))


def wide_window(model: ir.Model) -> None:
    """A sliding window of 500 in place of 5: right up to 5 tokens, and wrong beyond."""
    set_constants(model, "Sub", "model/", 5, 500)


def wrong_in_large_batches(model: ir.Model) -> None:
    """Another softcap in one layer, in batches of more than 4 rows only."""
    owner, constants = node(model, "layers.2/", "Tanh"), {"four": np.array([4]), "share": np.float32(0.2)}
    for name, number in constants.items():
        model.graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(np.array(number))))
    four, share = (model.graph.initializers[name] for name in constants)
    rows = ir.node("Shape", [model.graph.inputs[0]], attributes={"start": 0, "end": 1})
    many = ir.node("Greater", [rows.outputs[0], four])
    cast = ir.node("Cast", [many.outputs[0]], attributes={"to": ir.DataType.FLOAT})
    part = ir.node("Mul", [cast.outputs[0], share])
    less = ir.node("Mul", [owner.inputs[0], part.outputs[0]])
    changed = ir.node("Sub", [owner.inputs[0], less.outputs[0]])
    for number, made in enumerate(chain := [rows, many, cast, part, less, changed]):
        made.name = made.outputs[0].name = f"batch{number}"
    model.graph.insert_before(owner, chain)
    owner.replace_input_with(0, changed.outputs[0])


def first_token_only(model: ir.Model) -> None:
    """Let the logits be those of each row's first token, which broadcast over those of all."""
    logits = model.graph.outputs[0]
    bounds = [ir.Value(name=f"bound{number}", const_value=ir.tensor(np.array([number]))) for number in (0, 1)]
    for bound in bounds:
        model.graph.register_initializer(bound)
    first = ir.node("Slice", [logits, bounds[0], bounds[1], bounds[1]], name="first")
    first.outputs[0].name, logits.name = logits.name, "logits_of_all"
    first.outputs[0].dtype, first.outputs[0].shape = logits.dtype, logits.shape
    model.graph.append(first)
    model.graph.outputs[0] = first.outputs[0]


def unknown_op(model: ir.Model) -> None:
    """Let an op be one of a domain that no runtime here knows: ONNX's checker lets it pass."""
    model.opset_imports["org.example"] = 1
    cap = node(model, "layers.1/", "Tanh")
    cap.domain, cap.op_type = "org.example", "Nonesuch"


def determinant(model: ir.Model) -> None:
    """A standard op that OpenVINO does not have, in place of a softcap's."""
    node(model, "layers.1/", "Tanh").op_type = "Det"


def sine_for_tanh(model: ir.Model) -> None:
    for each in model.graph:
        if each.op_type == "Tanh":
            each.op_type = "Sin"


def another_dtype(model: ir.Model) -> None:
    """Let the second layer's MLP begin in float16."""
    gelu = node(model, "layers.1/", "Gelu")
    down = ir.node("Cast", [gelu.inputs[0]], attributes={"to": ir.DataType.FLOAT16}, name="down")
    up = ir.node("Cast", [down.outputs[0]], attributes={"to": ir.DataType.FLOAT}, name="up")
    model.graph.insert_before(gelu, [down, up])
    gelu.replace_input_with(0, up.outputs[0])


def slower(model: ir.Model) -> None:
    """Let the recovery wait for sines of 4 million numbers, and add nothing of them."""
    owner = next(n for n in model.graph if n.outputs[0].name == "funnel.recovered")
    value = owner.inputs[0]
    assert value is not None
    constants = {"wide": [1 << 22], "axes": [0], "one": [1], "nothing": np.float32(1e-30)}
    for name, number in constants.items():
        model.graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(np.array(number))))
    wide, axes, one, nothing = (model.graph.initializers[name] for name in constants)
    flat = ir.node("Reshape", [value, ir.Value(name="minus", const_value=ir.tensor(np.array([-1])))])
    model.graph.register_initializer(flat.inputs[1])
    first = ir.node("Slice", [flat.outputs[0], axes, one])
    expanded = ir.node("Expand", [first.outputs[0], wide])
    sines = ir.node("Sin", [expanded.outputs[0]])
    again = ir.node("Sin", [sines.outputs[0]])
    mean = ir.node("ReduceMean", [again.outputs[0], axes], attributes={"keepdims": 0})
    less = ir.node("Mul", [mean.outputs[0], nothing])
    added = ir.node("Add", [value, less.outputs[0]])
    for number, made in enumerate(chain := [flat, first, expanded, sines, again, mean, less, added]):
        made.name = made.outputs[0].name = f"slower{number}"
    model.graph.insert_before(owner, chain)
    owner.replace_input_with(0, added.outputs[0])
