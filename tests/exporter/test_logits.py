"""`logits="last"`: the same values as with all tokens, and the head runs on the last tokens only."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from breaks import another_softcap, broken
from exported import Recipe
from models import tiny_config
from soak import LONG

from funnel_export import FunnelSpec, bench, export
from funnel_export.bundle.ports import feed
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


@pytest.mark.parametrize("funnel", FUNNELS.values(), ids=FUNNELS)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_logits_are_those_of_the_last_real_token(funnel: FunnelSpec | None, target: str) -> None:
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


def test_the_head_multiplies_one_row_for_each_text() -> None:
    model = ir.load(Recipe(logits="last").bundle().model.path)
    (head,) = [node for node in model.graph if node.op_type == "MatMul" and str(node.name).startswith("model/")]
    seen, value = set(), head.inputs[0]
    while value is not None and value.producer() is not None and not str(value.name).startswith("layers."):
        seen.add(value.producer().op_type)
        value = value.producer().inputs[0]
    assert "Gather" in seen


def test_the_audit_refuses_logits_of_other_tokens() -> None:
    for logits, other in (("all", Logits.LAST), ("last", Logits.ALL)):
        bundle = Recipe(logits=logits).bundle()
        model, files = ir.load(bundle.model.path), {weight.file for weight in bundle.manifest.weights}
        assert find_faults("model", model, bundle.family, bundle.architecture, bundle.spec, files) == []
        meant = replace(bundle.spec, logits=other)
        (fault,) = find_faults("model", model, bundle.family, bundle.architecture, meant, files)
        assert fault.startswith("output logits is logits")


def test_operations_of_the_head_are_those_of_one_token() -> None:
    architecture = Gemma2Architecture.of(tiny_config().to_dict())
    specs = (ExportSpec(task=Task.TEXT_GENERATION, dtype=Dtype.FLOAT32, logits=logits) for logits in Logits)
    every, last = (count_operations(GEMMA2, architecture, spec, 40) for spec in specs)
    assert every.head == 40 * last.head
    assert every.layers == last.layers


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
