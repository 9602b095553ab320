"""Exports of every family: equal to the oracle in every runtime, and refused once they are broken."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from breaks import broken, loaded, replace_constant, run_audit, set_constants
from exported import Recipe, float32_limit, forward_of_bundle
from models import random_rows
from properties import check_causal, check_padding, check_rows, lengths_around, oracle_of
from tiers import LONG, slow, slow_but

from funnel_export import FunnelSpec
from funnel_export.commands.check import compare
from funnel_export.errors import ExportError
from funnel_export.spec.choices import Task

CAUSAL, AHEAD = FunnelSpec.parse("1:3:2"), FunnelSpec.parse("1:3:3", lookahead=True)
DEEP = FunnelSpec.parse("2:6:2")
"""Of a Gemma 3: slots in sliding layers and in the full one."""
BOTH_SIDES = (("use_bidirectional_attention", True),)

RECIPES = {
    "gemma dense": Recipe(family="gemma", funnel=None),
    "gemma funnel": Recipe(family="gemma", funnel=CAUSAL),
    "gemma classes": Recipe(family="gemma", task=Task.TEXT_CLASSIFICATION, funnel=CAUSAL),
    "gemma tags": Recipe(family="gemma", task=Task.TOKEN_CLASSIFICATION, funnel=AHEAD),
    "gemma features": Recipe(family="gemma", task=Task.FEATURE_EXTRACTION, funnel=None),
    "vaultgemma dense": Recipe(family="vaultgemma", funnel=None),
    "vaultgemma funnel": Recipe(family="vaultgemma", funnel=CAUSAL),
    "vaultgemma features": Recipe(family="vaultgemma", task=Task.FEATURE_EXTRACTION, funnel=CAUSAL),
    "gemma3 dense": Recipe(family="gemma3_text", funnel=None),
    "gemma3 funnel": Recipe(family="gemma3_text", funnel=DEEP),
    "gemma3 classes": Recipe(family="gemma3_text", task=Task.TEXT_CLASSIFICATION, funnel=AHEAD),
    "gemma3 both sides": Recipe(family="gemma3_text", task=Task.FEATURE_EXTRACTION, funnel=None, overrides=BOTH_SIDES),
    "gemma3 both sides, funnel": Recipe(
        family="gemma3_text", task=Task.FEATURE_EXTRACTION, funnel=AHEAD, overrides=BOTH_SIDES
    ),
}

MORE = ("gemma classes", "gemma tags", "gemma features", "vaultgemma features")
"""Heads that other recipes have, and Gemma 3 or Gemma 2 as well: in `make soak`."""
QUICK = ("gemma funnel", "vaultgemma funnel", "gemma3 funnel", "gemma3 both sides, funnel")
"""One of each family, and of attention to both sides."""


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "name",
    [
        *slow_but(QUICK, (name for name in RECIPES if name not in MORE)),
        *(pytest.param(name, marks=LONG) for name in MORE),
    ],
)
def test_equals_the_oracle_however_it_is_padded(name: str, target: str) -> None:
    recipe = RECIPES[name]
    run, rows = forward_of_bundle(recipe.bundle(), target), random_rows(lengths_around(3))
    check_rows(run, oracle_of(recipe.model(), recipe.funnel), rows, float32_limit(run, rows))
    check_padding(run, rows[-3:], float32_limit(run, rows))


@pytest.mark.parametrize(
    "name", slow_but(QUICK, ("gemma funnel", "vaultgemma funnel", "gemma3 funnel", "gemma3 dense"))
)
def test_causal(name: str) -> None:
    check_causal(forward_of_bundle(RECIPES[name].bundle()), random_rows([13], seed=2)[0])


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("gemma", "float16"),
        ("gemma3_text", "bfloat16"),
        slow("vaultgemma", "bfloat16"),
        pytest.param("gemma", "bfloat16", marks=LONG),
        pytest.param("vaultgemma", "float16", marks=LONG),
        pytest.param("gemma3_text", "float16", marks=LONG),
    ],
)
@pytest.mark.filterwarnings("ignore:.*float16")
def test_16_bits_keep_parity(family: str, dtype: str) -> None:
    report = compare(Recipe(family=family, dtype=dtype, funnel=CAUSAL).bundle(), max_length=9)
    assert report.passed, [target.error for target in report.targets]


def no_key_norm(model: ir.Model) -> None:
    """Layer 0's keys go on as they went into their norm."""
    weight = model.graph.initializers["model.layers.0.self_attn.k_norm.weight"]
    (plus_one,) = (use.node for use in weight.uses())
    (scaled,) = (use.node for use in plus_one.outputs[0].uses())
    inner = next(value for value in scaled.inputs if value is not plus_one.outputs[0])
    norm = inner.producer() if inner is not None else None
    assert norm is not None
    assert norm.op_type == "Div", "x over its root mean square"
    ir.convenience.replace_all_uses_with(scaled.outputs[0], norm.inputs[0])
    for node in (scaled, norm):
        model.graph.remove(node, safe=True)
    ir.passes.common.RemoveUnusedNodesPass()(model)


def swapped_bases(model: ir.Model) -> None:
    """Sliding layers turn by the base of the full ones, and the other way round."""
    names = [
        str(value.name)
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.size == 4 and value.dtype is ir.DataType.FLOAT
    ]
    one, other = (model.graph.initializers[name] for name in names)
    first, second = one.const_value.numpy().copy(), other.const_value.numpy().copy()
    replace_constant(one, second)
    replace_constant(other, first)


def shifted_pattern(model: ir.Model) -> None:
    """The full layer is layer 4 in place of layer 5."""
    adds = [node.inputs[0].producer() for node in model.graph if node.op_type == "Softmax"]
    one, other = adds[4].inputs[1], adds[5].inputs[1]
    adds[4].replace_input_with(1, other)
    adds[5].replace_input_with(1, one)


def softcap(model: ir.Model) -> None:
    """Layer 1's scores are capped."""
    softmax = next(n for n in model.graph if n.op_type == "Softmax" and str(n.name).startswith("layers.1/"))
    add = softmax.inputs[0].producer()
    scores, cap = add.inputs[0], ir.Value(name="cap", const_value=ir.tensor([2.0], ir.DataType.FLOAT))
    model.graph.register_initializer(cap)
    down = ir.node("Div", [scores, cap], name="layers.1/Div.cap")
    squashed = ir.node("Tanh", [down.outputs[0]], name="layers.1/Tanh.cap")
    up = ir.node("Mul", [squashed.outputs[0], cap], name="layers.1/Mul.cap")
    for node in (down, squashed, up):
        node.outputs[0].dtype = ir.DataType.FLOAT
        model.graph.insert_before(add, node)
    add.replace_input_with(0, up.outputs[0])


def another_scale(model: ir.Model) -> None:
    """Scores are scaled by the head's size, and not by query_pre_attn_scalar."""
    set_constants(model, "Mul", "layers.", 12**-0.5, 8**-0.5)


def one_sided(model: ir.Model) -> None:
    """No query of a sliding layer sees beyond itself."""
    for node in model.graph:
        if node.op_type == "Less":
            node.op_type = "LessOrEqual"
            node.replace_input_with(1, node.inputs[1].producer().inputs[0])


BREAKS: dict[Callable[[ir.Model], None], tuple[str, str]] = {
    no_key_norm: ("gemma3 funnel", r"layers\.0: 5 norms, and a Gemma3Text has 6"),
    swapped_bases: ("gemma3 dense", r"layers\.0: RoPE's frequencies .* config\.json says .* \(base 10\)"),
    shifted_pattern: ("gemma3 dense", r"layers\.4: its mask slides by None(?s:.*)layers\.5: its mask slides by 5"),
    softcap: ("gemma dense", r"layers\.1: softcaps \[2\.0\], and config\.json says None"),
    another_scale: ("gemma3 dense", r"layers\.0: scores are scaled by \[0\.35.*config\.json says 0\.288675"),
    one_sided: ("gemma3 both sides", r"layers\.0: its mask is causal, and the model is not"),
}


@pytest.mark.parametrize("break_", BREAKS, ids=lambda f: f.__name__)
def test_a_broken_graph_is_refused_by_audit_and_check(break_: Callable[[ir.Model], None], tmp_path: Path) -> None:
    name, message = BREAKS[break_]
    recipe = RECIPES[name]
    model = loaded(recipe)
    break_(model)
    with pytest.raises(ExportError, match=message):
        run_audit(model, recipe)
    report = compare(broken(recipe.bundle(), tmp_path, break_), targets=["onnxruntime"], max_length=12)
    assert not report.passed
    assert report.targets[0].error is None, "it ran, and gave something else"
