"""A family that the package has never heard of works once it is registered: nothing else knows an architecture."""

from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from families.plain import PLAIN, Plain, PlainArchitecture
from models import main_output, make_batch, random_rows, tiny_config
from tiers import LONG, slow
from torch import nn

from funnel_export import CheckpointError, FunnelSpec, apply_funnel, export, remove_funnel
from funnel_export.commands.check import compare
from funnel_export.commands.inspect import inspect
from funnel_export.families import registry
from funnel_export.families.gemma2 import Gemma2
from funnel_export.spec.choices import Task


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._FAMILIES, "plain", ("families.plain", "PLAIN"))


def capped(self: PlainArchitecture, name: str) -> Any:
    """An architecture whose config asks for a cap on scores."""
    return 2.5 if name == "attn_logit_softcapping" else object.__getattribute__(self, name)


def model_of(task: Task) -> nn.Module:
    """A tiny model with wide weights."""
    values = {key: value for key, value in tiny_config().to_dict().items() if key in PLAIN.schema.checked_keys()}
    torch.manual_seed(0)
    model = PLAIN.model_class(task)._from_config(
        PLAIN.make_config(**values), dtype=torch.float32, attn_implementation="eager"
    )
    for name, parameter in model.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=float("weight" in name), std=0.3)
    return model.eval()


@pytest.fixture
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    model_of(getattr(request, "param", Task.TEXT_GENERATION)).save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("checkpoint", "funnel"),
    [
        (Task.TEXT_GENERATION, "1:3:2"),
        slow(Task.FEATURE_EXTRACTION, None),
        pytest.param(Task.TEXT_GENERATION, None, marks=LONG),
        pytest.param(Task.FEATURE_EXTRACTION, "1:3:2", marks=LONG),
    ],
    indirect=["checkpoint"],
)
def test_it_is_exported_and_agrees(checkpoint: Path, funnel: str | None, tmp_path: Path) -> None:
    bundle = export(checkpoint, tmp_path / "bundle", funnel=funnel, task="text-generation")
    assert bundle.family is PLAIN
    assert inspect(bundle).audits == {"model": []}
    report = compare(bundle, max_length=9)
    assert report.passed
    assert {target.target for target in report.targets} == {"onnxruntime", "openvino"}
    ops = [node.op_type for node in ir.load(bundle.model.path).graph]
    assert ops.count("LayerNormalization") == 4 * 4 + 1, "its own norms, four a layer and a final one"


def test_the_audit_asks_the_family(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph without caps on its scores is right here, and wrong for a family that wants them."""
    bundle = export(checkpoint, tmp_path / "bundle", funnel="1:3:2", task="text-generation")
    monkeypatch.setattr(Plain, "layer_facts", Gemma2.layer_facts)
    monkeypatch.setattr(PlainArchitecture, "__getattribute__", capped)
    (faults,) = inspect(bundle).audits.values()
    assert faults == [f"layers.{index}: softcaps [], and config.json says 2.5" for index in range(4)]


def test_stride_one_is_the_unpatched_model() -> None:
    model, batch = model_of(Task.TEXT_GENERATION), make_batch(random_rows([3, 7, 12]), "right")
    with torch.no_grad():
        dense = main_output(model(batch.input_ids, attention_mask=batch.attention_mask))
        apply_funnel(model, FunnelSpec.parse("1:3:1"))
        funnel = main_output(model(batch.input_ids, attention_mask=batch.attention_mask))
        remove_funnel(model)
    for one, other in zip(batch.real(dense), batch.real(funnel), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_an_unknown_family_is_refused_by_name(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry._FAMILIES, "plain")
    with pytest.raises(CheckpointError, match=r"(?s)not supported.*'plain'.*wanted: .*model_type 'gemma2'"):
        export(checkpoint, checkpoint.parent / "out", funnel="1:3:2", task="text-generation")
    with pytest.raises(CheckpointError, match="PlainForCausalLM"):
        apply_funnel(model_of(Task.TEXT_GENERATION), FunnelSpec.parse("1:3:2"))
