"""A contract changes if the computation of a graph changes, and only then."""

import difflib
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from breaks import another_cap, fixed_axis, loaded, run_audit, swapped_masks
from exported import Recipe

from funnel_export import export
from funnel_export.commands.check import compare
from funnel_export.errors import ExportError
from funnel_export.exporter.contract import describe_contract


def difference(before: str, after: str) -> list[str]:
    """The changed lines of the contract, without the numbers of values."""
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return [re.sub(r"%\d+", "%", line) for line in lines if re.match(r"[-+](?![-+])", line)]


def test_a_changed_cap_is_seen_and_refused() -> None:
    model = loaded(Recipe())
    before = describe_contract(model)
    another_cap(model)  # in layer 2 only, which is then no longer like the others
    lines = difference(before, describe_contract(model))
    assert "+  layers.2 = layer.2(layers.1, %, %, %, %, %, %, %)  # sliding window 5" in lines
    assert "+  % f32 = Div(%, 1.5:f32)" in lines
    with pytest.raises(ExportError, match=r"softcaps \[1\.5\]"):
        run_audit(model, Recipe())


def test_inverted_layer_types_are_seen_and_refused() -> None:
    model = loaded(Recipe())
    before = describe_contract(model)
    swapped_masks(model)
    lines = [line for line in difference(before, describe_contract(model)) if "layers.0 =" in line]
    assert [(line[0], line.split("  # ")[1]) for line in lines] == [("-", "sliding window 5"), ("+", "full attention")]
    with pytest.raises(ExportError, match="its mask slides by None"):
        run_audit(model, Recipe())


def test_a_lost_axis_is_seen_and_refused() -> None:
    model = loaded(Recipe())
    before = describe_contract(model)
    fixed_axis(model)
    assert difference(before, describe_contract(model)) == [
        "-input input_ids i64[batch_size, sequence_length]",
        "+input input_ids i64[batch_size, 7]",
    ]
    with pytest.raises(ExportError, match="input input_ids is"):
        run_audit(model, Recipe())


@pytest.mark.slow
@pytest.mark.traces
def test_another_stride_is_seen_and_fails_parity(tmp_path: Path) -> None:
    one, other = (
        export(Recipe().checkpoint(), tmp_path / f"S={stride}", funnel=f"1:3:{stride}", task="text-generation")
        for stride in (2, 3)
    )
    lines = difference(*(describe_contract(ir.load(bundle.model.path)) for bundle in (one, other)))
    assert "-  % i64 = Div(%, 2:i64)" in lines
    assert "+  % i64 = Div(%, 3:i64)" in lines
    assert "+  % i64 = Add(%, [-2, -1, 0]:i64)" in lines
    assert len(lines) < 20
    shutil.copyfile(other.model.path, one.model.path)
    report = compare(one, targets=["onnxruntime"], max_length=5)
    assert not report.passed
    place = report.targets[0].first_difference
    assert place is not None
    assert place.name == "funnel.pooled"


def renamed(model: ir.Model) -> None:
    """Rename inner values and constants."""
    for index, node in enumerate(model.graph):
        for value in node.outputs:
            if "/" in str(value.name):
                value.name = f"{value.name}_{index}"


def another_producer(model: ir.Model) -> None:
    model.producer_name, model.producer_version = "somebody", "9"


def another_ulp(model: ir.Model) -> None:
    """Change RoPE's frequencies as much as the `pow` of another machine may."""
    constants = [value for value in model.graph.initializers.values() if value.const_value.shape == (4,)]
    (value,) = [value for value in constants if value.dtype is ir.DataType.FLOAT]
    value.const_value = ir.tensor(np.nextafter(value.const_value.numpy(), np.float32(2)), name=value.name)


@pytest.mark.parametrize("change", [renamed, another_producer, another_ulp], ids=lambda f: f.__name__)
def test_irrelevant_changes_do_not_change_the_contract(change: Callable[[ir.Model], None]) -> None:
    model = loaded(Recipe())
    before = describe_contract(model)
    change(model)
    assert describe_contract(model) == before


def test_identical_layers_are_written_once() -> None:
    text = describe_contract(loaded(Recipe(funnel=None)))
    assert "layer (x4):" in text
    assert text.count("Softmax(") == 1
    assert text.count(" = layer(") == 4


def test_long_constants_are_summarised() -> None:
    numbers = ir.tensor(np.arange(17, dtype=np.int64), name="numbers")
    constant = ir.Value(name="numbers", const_value=numbers, type=ir.TensorType(ir.DataType.INT64))
    node = ir.node("Identity", [constant])
    graph = ir.Graph([], node.outputs, nodes=[node], initializers=[constant], opset_imports={"": 20})
    assert "i64[17](0 .. 16, sum 136)" in describe_contract(ir.Model(graph, ir_version=10))
