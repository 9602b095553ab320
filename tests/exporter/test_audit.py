"""The audit refuses graphs that do not match the checkpoint and the funnel."""

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from breaks import another_cap, fixed_axis, loaded, run_audit, set_constants, swapped_masks
from exported import CLASSES, Recipe

from funnel_export.errors import ExportError
from funnel_export.exporter.audit import find_faults
from funnel_export.spec.choices import Task
from funnel_export.spec.stages import DECODER


def no_cap(model: ir.Model) -> None:
    tanh = next(n for n in model.graph if n.op_type == "Tanh" and str(n.name).startswith("layers.1/"))
    ir.convenience.replace_all_uses_with(tanh.outputs[0], tanh.inputs[0])
    model.graph.remove(tanh, safe=True)


def lopsided_cap(model: ir.Model) -> None:
    set_constants(model, "Mul", "model/", 3.0, 4.0)


def another_window(model: ir.Model) -> None:
    set_constants(model, "Sub", "model/", 5, 6)


def token_mask_on_slots(model: ir.Model) -> None:
    adds = [softmax.inputs[0].producer() for softmax in model.graph if softmax.op_type == "Softmax"]
    adds[2].replace_input_with(1, adds[0].inputs[1])  # layer 2 slides as layer 0 does, but on slots


def control_flow(model: ir.Model) -> None:
    model.graph.append(ir.node("NonZero", [model.graph.inputs[0]], name="model/NonZero"))


def foreign_op(model: ir.Model) -> None:
    next(n for n in model.graph if n.op_type == "Gelu").domain = "com.microsoft"


def no_pooling(model: ir.Model) -> None:
    next(v for n in model.graph for v in n.outputs if v.name == "funnel.pooled").name = "something"


def weight_in_the_graph(model: ir.Model) -> None:
    value = model.graph.initializers["model.embed_tokens.weight"]
    value.const_value = ir.tensor(np.zeros((61, 400), np.float32), name=value.name)


def half_softmax(model: ir.Model) -> None:
    softmax = next(n for n in model.graph if n.op_type == "Softmax")
    softmax.inputs[0].dtype = ir.DataType.FLOAT16


def lost_output_axis(model: ir.Model) -> None:
    model.graph.outputs[0].shape = ir.Shape([1, "sequence_length", 61])


def doubling_masks(model: ir.Model) -> None:
    """Add a chain of nodes that use the previous one twice: the number of paths through it is exponential."""
    where = next(n for n in model.graph if n.op_type == "Where" and n.outputs[0].dtype is ir.DataType.FLOAT)
    value = where.inputs[0]
    for index in range(64):
        step = ir.node("And", [value, value], name=f"model/And.{index}")
        model.graph.insert_before(where, step)
        value = step.outputs[0]
    where.replace_input_with(0, value)
    set_constants(model, "Sub", "model/", 5, 6)


def mistyped_value(model: ir.Model) -> None:
    """Declare the wrong dtype, as torch does for a maximum of 16-bit values."""
    node = next(n for n in model.graph if n.op_type == "Add" and str(n.name).startswith("layers.2/"))
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT16)


BREAKS: dict[Callable[[ir.Model], None], str] = {
    another_cap: r"layers\.2: softcaps \[1\.5\], and config\.json says 2\.5",
    no_cap: r"layers\.1: softcaps \[\]",
    lopsided_cap: r"model: softcaps \[None\]",
    another_window: r"its mask slides by 6, and sliding_attention means 5",
    doubling_masks: "its mask slides by 6",
    swapped_masks: r"layers\.0: its mask slides by None.*\n.*layers\.3: its mask slides by 5",
    token_mask_on_slots: "one mask for tokens and slots",
    fixed_axis: "input input_ids is",
    control_flow: "NonZero makes shapes depend on data",
    foreign_op: "com.microsoft::Gelu is not a standard op",
    no_pooling: r"funnel\.pooled and nodes under funnel/pool/",
    weight_in_the_graph: "puts 97600 bytes into the graph",
    half_softmax: "Softmax of",
    lost_output_axis: "output logits is logits",
    mistyped_value: "dtypes or shapes are not what the ops give: .*layers.2/Add",
}


@pytest.mark.parametrize("break_", BREAKS, ids=lambda f: f.__name__)
def test_refuses_a_broken_graph(break_: Callable[[ir.Model], None]) -> None:
    recipe = Recipe()
    model = loaded(recipe)
    break_(model)
    with pytest.raises(ExportError, match=BREAKS[break_]):
        run_audit(model, recipe)


def test_names_all_findings_at_once() -> None:
    model = loaded(Recipe())
    for break_ in (another_cap, fixed_axis, control_flow):
        break_(model)
    with pytest.raises(ExportError) as caught:
        run_audit(model, Recipe())
    assert all(part in str(caught.value) for part in ("layers.2: softcaps", "input input_ids", "NonZero"))


@pytest.mark.parametrize(
    "recipe",
    [Recipe(), Recipe(funnel=None), CLASSES],
    ids=lambda r: str(r.task),
)
def test_accepts_what_was_exported(recipe: Recipe) -> None:
    run_audit(loaded(recipe), recipe)


def test_refuses_a_dense_graph_for_a_funnel_and_the_reverse() -> None:
    with pytest.raises(ExportError, match=r"funnel\.recovered"):
        run_audit(loaded(Recipe()), Recipe(), funnel=None)
    with pytest.raises(ExportError, match=r"funnel\.recovered"):
        run_audit(loaded(Recipe(funnel=None)), Recipe())


def _gathers_fewer(model: ir.Model) -> None:
    set_constants(model, "Min", "model/", 4, 3)


def _reads_whole_caches(model: ir.Model) -> None:
    """Let the layers that slide gather as many entries as their caches have."""
    least = next(node for node in model.graph if node.op_type == "Min")
    ir.convenience.replace_all_uses_with(least.outputs[0], least.inputs[0])
    model.graph.remove(least, safe=True)


@pytest.mark.parametrize(
    ("break_", "found"), [(_gathers_fewer, r"\{3\}"), (_reads_whole_caches, "all")], ids=["fewer", "all"]
)
def test_refuses_another_number_of_entries_before_a_chunk(break_: Callable[[ir.Model], None], found: str) -> None:
    recipe = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=None)
    bundle = recipe.bundle()
    model = ir.load(bundle.graphs[DECODER].path)
    given = bundle.family, bundle.architecture, bundle.spec, ["weights.safetensors"]
    assert not [fault for fault in find_faults(DECODER, model, *given) if "entries" in fault]
    break_(model)
    faults = [fault for fault in find_faults(DECODER, model, *given) if "entries" in fault]
    assert len(faults) == 2, "of the layers that slide"
    assert all(re.search(f"reads {found} entries of its cache, and 4 are wanted", fault) for fault in faults)
