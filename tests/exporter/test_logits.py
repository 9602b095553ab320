"""`logits="last"`: the same values as with all tokens, and the head runs on the last tokens only."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from breaks import another_softcap, broken, shifted_column
from exported import Recipe
from models import tiny_config
from numpy.typing import NDArray
from tiers import LONG, slow, slow_but

from funnel_export import FunnelSpec, bench, export
from funnel_export.bundle.load import Graph
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.commands.check import compare
from funnel_export.errors import SpecError
from funnel_export.exporter.audit import find_faults
from funnel_export.families.gemma2 import GEMMA2, Gemma2Architecture
from funnel_export.latency.operations import count_operations
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.targets.registry import get_target
from funnel_export.verify.cases import Case

FUNNELS = {"dense": None, "S=2": FunnelSpec.parse("1:3:2"), "S=3 to the end": FunnelSpec.parse("1:4:3")}
CASES = [Case((1,)), Case((17,)), Case((1, 4, 17), "left"), Case((17, 4, 1), "right")]


@pytest.mark.parametrize("name", slow_but(("dense", "S=2"), FUNNELS))
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_logits_are_those_of_the_last_real_token(name: str, target: str) -> None:
    funnel = FUNNELS[name]
    every, last = Recipe(funnel=funnel).bundle(), Recipe(funnel=funnel, logits="last").bundle()
    assert last.manifest.logits is Logits.LAST
    assert last.model.output.shape == ["batch_size", 1, every.architecture.vocab_size]
    for_every, for_last = (get_target(target).load(bundle.model) for bundle in (every, last))
    for case in CASES:
        inputs = feed(every.model.inputs, case.tokens(every.architecture, seed=3))
        wanted, got = for_every.run(inputs)["logits"], for_last.run(inputs)["logits"]
        columns = [int(np.flatnonzero(row)[-1]) for row in case.real]
        assert got.shape == (len(columns), 1, wanted.shape[2])
        np.testing.assert_allclose(got[:, 0], wanted[np.arange(len(columns)), columns], rtol=0, atol=1e-5)


@pytest.mark.parametrize("funnel", [None, FunnelSpec.parse("1:3:2")], ids=str)
def test_parity_holds_and_can_fail(funnel: FunnelSpec | None, tmp_path: Path) -> None:
    bundle = Recipe(funnel=funnel, logits="last").bundle()
    report = compare(bundle, targets=["onnxruntime"])
    assert report.passed
    assert any("left" in case.case for case in report.targets[0].cases)
    refused = compare(broken(bundle, tmp_path, another_softcap), targets=["onnxruntime"])
    assert not refused.passed
    assert refused.targets[0].first_difference is not None
    assert refused.targets[0].first_difference.name == "layers.2"


@pytest.mark.parametrize(
    ("funnel", "whole"), [(None, ["k_proj", "v_proj"]), ("1:4:3", [])], ids=["dense", "S=3 to the end"]
)
def test_one_row_for_each_text_is_multiplied(funnel: str | None, whole: list[str]) -> None:
    """By the head, and by all of the last layer but the projections of keys and values, unless it runs on slots."""
    bundle = Recipe(funnel=None if funnel is None else FunnelSpec.parse(funnel), logits="last").bundle()
    rows = rows_of_products(bundle.model, Case((5, 5)).tokens(bundle.architecture, seed=3))
    assert rows.pop("embed_tokens") == 1
    last = {name.split(".")[-1]: count for name, count in rows.items() if name.startswith("layers.3.")}
    slots = 2 if funnel else None
    assert last == {name: slots or (5 if name in whole else 1) for name in PROJECTIONS}
    assert {count for name, count in rows.items() if name.startswith("layers.0.")} == {5}


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def rows_of_products(graph: Graph, tokens: Mapping[PortKind, NDArray[np.int64]]) -> dict[str, int]:
    """How many positions of each text every weight multiplies, by the weight's module."""
    results = {}
    for node in ir.load(graph.path).graph:
        transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        weight = None if transpose is None else transpose.inputs[0]
        if weight is not None and str(weight.name).endswith(".weight"):
            results[str(node.outputs[0].name)] = str(weight.name).removeprefix("model.").removesuffix(".weight")
    found = get_target("onnxruntime").load(graph, outputs=[*results]).run(feed(graph.inputs, tokens))
    return {weight: found[result].shape[1] for result, weight in results.items()}


def test_the_audit_refuses_logits_of_other_tokens() -> None:
    for logits, other, norms in (("all", Logits.LAST, "4 norms"), ("last", Logits.ALL, "5 norms")):
        bundle = Recipe(logits=logits).bundle()
        model, files = ir.load(bundle.model.path), {weight.file for weight in bundle.manifest.weights}
        assert find_faults("model", model, bundle.family, bundle.architecture, bundle.spec, files) == []
        meant = replace(bundle.spec, logits=other)
        output, layer = find_faults("model", model, bundle.family, bundle.architecture, meant, files)
        assert output.startswith("output logits is logits")
        assert layer.startswith(f"layers.3: {norms}")


@pytest.mark.parametrize(
    ("funnel", "layer", "end"),
    [
        slow("1:3:2", "layers.3", "layers.3"),
        ("2:4:drop", "layers.1", "funnel.recovered"),
    ],
)
def test_parity_at_the_trimmed_layer(funnel: str, layer: str, end: str, tmp_path: Path) -> None:
    """From its boundary on there is one position of each row; a layer one column off is seen there."""
    bundle = Recipe(funnel=FunnelSpec.parse(funnel, recovery="linear"), logits="last").bundle()
    report = compare(bundle, targets=["onnxruntime"])
    assert report.passed
    assert [place.name for place in report.targets[0].boundaries][-1] == end
    assert all(place.passed for place in report.targets[0].boundaries)
    refused = compare(broken(bundle, tmp_path, shifted_column), targets=["onnxruntime"])
    assert not refused.passed
    assert refused.targets[0].first_difference is not None
    assert refused.targets[0].first_difference.name == layer


@pytest.mark.parametrize("funnel", [None, "1:3:2", "1:4:2", "2:4:drop"], ids=str)
def test_operations_after_the_last_keys_are_those_of_one_token(funnel: str | None) -> None:
    architecture = Gemma2Architecture.of(tiny_config().to_dict())
    spec = ExportSpec(
        task=Task.TEXT_GENERATION,
        dtype=Dtype.FLOAT32,
        funnel=None if funnel is None else FunnelSpec.parse(funnel, recovery="linear"),
    )
    every, last = (count_operations(GEMMA2, architecture, replace(spec, logits=logits), 40) for logits in Logits)
    past = count_operations(GEMMA2, architecture, replace(spec, task=Task.TEXT_GENERATION_WITH_PAST), 40)
    assert past == last
    assert every.head == 40 * last.head
    if funnel == "1:4:2":  # the last layer runs on slots
        assert (every.layers, every.attention) == (last.layers, last.attention)
        return
    cost = GEMMA2.layer_cost(architecture, 3)
    assert cost.keys == 2 * 40 * 16
    maps = 40 * 40 if funnel == "2:4:drop" else 0  # those of a funnel before the last layer are for all tokens
    assert every.layers - last.layers == 2 * 39 * (cost.weights - cost.keys + maps)
    assert every.attention - last.attention == 2 * 40 * 39 * cost.attention


@LONG
def test_bench_times_pytorch_with_the_last_logits_too(tmp_path: Path) -> None:
    recipe = Recipe(logits="last")
    bundle = export(recipe.checkpoint(), tmp_path / "bundle", funnel=recipe.funnel, logits="last")
    report = bench(bundle, targets=["onnxruntime"], pytorch=("eager",), lengths=(9,), batches=(2,), rounds=6)
    assert report.passed
    assert {row.runtime for row in report.rows} == {"eager", "onnxruntime"}


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.TEXT_GENERATION])
def test_other_tasks_refuse_last_logits(task: Task, tmp_path: Path) -> None:
    checkpoint = Recipe(task=task, stored=torch.float32).checkpoint()
    with pytest.raises(SpecError, match="only text generation"):
        export(checkpoint, tmp_path / "bundle", funnel="1:3:2", task=task, logits="last")
    assert list(tmp_path.iterdir()) == []
