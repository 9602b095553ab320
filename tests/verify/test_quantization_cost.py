"""What quantized weights cost: a gate of its own, since parity's reference reads the same weights as the targets."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import run
from corpora import bundle_of, checkpoint_of, corpus, ids_of
from exported import PAST, Recipe, with_weights
from tiers import slow, slow_but

from funnel_export import (
    Bundle,
    CheckpointError,
    DataError,
    Quantization,
    SpecError,
    bench,
    check,
    compile_bundle,
    evaluate,
    quantize,
)
from funnel_export.quantization import write
from funnel_export.quantization.rounding import Rounded, round_to_nearest
from funnel_export.spec.choices import Task
from funnel_export.spec.quantization import QUANTIZED_OPSET
from funnel_export.targets.onnxruntime import OnnxRuntimeTarget
from funnel_export.verify.quantization_report import OutputCost, QuantizationCost, TextCost, WeightError

WIDE = (("hidden_size", 48), ("vocab_size", 62))
UNTIED = (("tie_word_embeddings", False),)
"""With it and with the opset of quantized graphs, a model is traced once for both kinds of weights."""
SMALL = Recipe(overrides=WIDE)
FOUR, EIGHT = Quantization(bits=4, block_size=16), Quantization(bits=8)
ZEROS = replace(FOUR, symmetric=False)
LAYER = "model.layers.0.mlp.up_proj.weight"


def checked(bundle: Bundle, original: Path, tmp_path: Path, **options: Any) -> QuantizationCost:
    """The cost of a bundle's bits, by a check that its graph passes in ONNX Runtime."""
    reports = tmp_path / "reports"
    found = check(bundle, targets=["onnxruntime"], max_length=8, reports=reports, unquantized=original, **options)
    assert all(target.passed for target in found.targets)
    assert found.quantization is not None
    assert found.passed == found.quantization.passed
    return found.quantization


@pytest.mark.parametrize(
    "recipe",
    [
        replace(SMALL, quantization=FOUR),
        Recipe(task=Task.TEXT_CLASSIFICATION, quantization=replace(EIGHT, keep=("embedding",))),
        *map(
            slow,
            (
                replace(SMALL, quantization=ZEROS, dtype="bfloat16", stored=torch.bfloat16, overrides=(*WIDE, *UNTIED)),
                replace(PAST, quantization=EIGHT, overrides=UNTIED),
                Recipe(task=Task.FEATURE_EXTRACTION, quantization=replace(FOUR, block_size=32)),
            ),
        ),
    ],
)
def test_sound_weights_pass_against_bundle_and_checkpoint(recipe: Recipe, tmp_path: Path) -> None:
    targets = ["openvino" if recipe.dtype == "bfloat16" else "onnxruntime"]
    original_bundle = replace(recipe, quantization=None, opset=QUANTIZED_OPSET).bundle()
    for original in (original_bundle.path, recipe.checkpoint()):
        report = check(
            recipe.bundle(), targets=targets, max_length=8, reports=tmp_path / "reports", unquantized=original
        )
        assert report.passed
        assert report.quantization is not None
        assert {weight.bits for weight in report.quantization.weights} >= {None, recipe.quantization.bits}
        assert (report.quantization.outputs.kl is None) == (recipe.task is Task.FEATURE_EXTRACTION)


def test_documents_show_what_evaluate_shows(tmp_path: Path) -> None:
    bundle = bundle_of(replace(SMALL, quantization=FOUR), tmp_path / "bundle")
    original = checkpoint_of(SMALL, tmp_path / "checkpoint")
    texts = [corpus(tmp_path, ids_of())]
    found = check(bundle, targets=["onnxruntime"], max_length=8, unquantized=original, data=texts).quantization
    dense = evaluate(original, texts, funnel=str(SMALL.funnel), dense=False)
    quantized = evaluate(bundle, texts, target="onnxruntime", dense=False)
    assert found is not None
    assert found.text is not None
    assert (found.text.documents, found.text.scored) == (dense.documents, dense.scored)
    assert found.text.original_loss == pytest.approx(dense.measures.loss.value, abs=1e-5)
    assert found.text.original_loss + found.text.loss == pytest.approx(quantized.measures.loss.value, abs=1e-4)
    assert found.text.loss_low is not None
    assert found.text.loss_low < found.text.loss < (found.text.loss_high or 0)
    assert 0 < found.text.kl < 0.5
    with pytest.raises(DataError):
        check(bundle, unquantized=original, data=[tmp_path / "missing.txt"])


def test_the_command_line_shows_it_and_its_exit_code_is_1(tmp_path: Path) -> None:
    bundle = bundle_of(replace(SMALL, quantization=FOUR), tmp_path / "bundle")
    options = ("--target", "onnxruntime", "--max-length", 8, "--unquantized", SMALL.bundle().path)
    sound = run("check", bundle, *options)
    assert sound.returncode == 0
    assert f"quantized weights against {SMALL.bundle().path}: passed" in sound.stdout
    broken = run("check", bundle, *options, "--max-kl", 0.001)
    assert broken.returncode == 1
    assert "FAILED: the mean KL divergence on the batches of the check is" in broken.stdout
    page = (bundle / "reports" / "report.md").read_text()
    assert "Cost of 4 bits" in page
    assert "0.001 is allowed" in page
    assert json.loads((bundle / "reports" / "parity.json").read_text())["passed"] is False


def test_bench_shows_the_cost_beside_the_numbers(tmp_path: Path) -> None:
    bundle = replace(SMALL, quantization=FOUR).bundle()
    options = {"targets": ["onnxruntime"], "pytorch": [], "lengths": [8], "rounds": 6, "reports": tmp_path / "reports"}
    found = bench(bundle, unquantized=SMALL.bundle().path, **options)
    assert found.passed
    assert found.parity.quantization is not None
    assert "Cost of 4 bits" in (tmp_path / "reports" / "report.md").read_text()


def _rolled(made: Rounded) -> Rounded:
    return replace(made, scales=np.roll(made.scales, 1, axis=1))


def _off_by_one(made: Rounded) -> Rounded:
    return replace(made, zeros=made.zeros + np.int16(1))


def _one_scale_wrong(made: Rounded) -> Rounded:
    scales = made.scales.copy()
    scales[0] *= 2
    return replace(made, scales=scales)


@pytest.mark.parametrize(
    ("quantization", "fault"),
    [(FOUR, _rolled), (replace(EIGHT, block_size=16), _rolled), (ZEROS, _off_by_one), (EIGHT, _one_scale_wrong)],
)
def test_weights_that_are_not_rounded_right_are_refused(
    quantization: Quantization, fault: Callable[[Rounded], Rounded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parity passes: its reference reads the same wrong weights."""
    monkeypatch.setattr(write, "round_to_nearest", lambda *args, **kwargs: fault(round_to_nearest(*args, **kwargs)))
    broken = quantize(SMALL.bundle(), tmp_path / "broken", quantization)
    found = checked(broken, SMALL.checkpoint(), tmp_path)
    assert any(LAYER in each and "is allowed" in each for each in found.faults)


def test_swapped_nibbles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = write.pack
    monkeypatch.setattr(write, "pack", lambda codes: (pack(codes) >> 4) | (pack(codes) << 4))
    broken = quantize(SMALL.bundle(), tmp_path / "broken", FOUR)
    assert any(LAYER in each for each in checked(broken, SMALL.checkpoint(), tmp_path).faults)


def test_one_wrong_weight_of_many_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong weight in 8 bits, that the outputs hardly show."""
    filled = write._filled

    def wrong(plan: write.Plan, rows: write.Rows) -> Any:
        made = filled(plan, rows)
        if plan.name == LAYER:
            made[".codes"][0] += 1
        return made

    monkeypatch.setattr(write, "_filled", wrong)
    found = checked(quantize(SMALL.bundle(), tmp_path / "broken", EIGHT), SMALL.checkpoint(), tmp_path)
    assert [each.name for each in found.weights if not each.passed] == [LAYER]
    assert found.outputs.kl is not None
    assert found.outputs.kl < 0.01


def test_weights_of_another_training_are_refused(tmp_path: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] += 0.5

    other = with_weights(SMALL, change)
    found = checked(replace(SMALL, quantization=EIGHT).bundle(), other.path, tmp_path)
    assert found.faults == ["model.norm.weight is not quantized, but differs from the original weight"]


def test_the_limit_of_the_divergence_is_the_users(tmp_path: Path) -> None:
    bundle = replace(SMALL, quantization=FOUR).bundle()
    found = checked(bundle, SMALL.checkpoint(), tmp_path, max_kl=1e-4)
    assert len(found.faults) == 1
    assert "and 0.0001 is allowed" in found.faults[0]
    for wrong in (0, float("nan"), float("inf")):
        with pytest.raises(SpecError, match="invalid limit"):
            check(bundle, unquantized=SMALL.checkpoint(), max_kl=wrong)


@pytest.mark.parametrize("kl", [0.6, float("nan"), float("inf")])
def test_each_divergence_can_fail(kl: float) -> None:
    weight = WeightError(name="a", bits=4, rms_rel=0.1, limit=0.1)
    text = TextCost(documents=1, scored=2, original_loss=3.0, loss=0.1, kl=0.1, top1=0.9)
    sound = QuantizationCost(
        original="here", weights=[weight], outputs=OutputCost(rms_rel=0.1, kl=0.1), text=text, max_kl=0.5
    )
    assert sound.passed
    assert not sound.model_copy(update={"outputs": OutputCost(rms_rel=0.1, kl=kl)}).passed
    assert not sound.model_copy(update={"text": text.model_copy(update={"kl": kl})}).passed
    for value in (0.11, float("nan")):
        assert not sound.model_copy(update={"weights": [weight.model_copy(update={"rms_rel": value})]}).passed
    assert not sound.model_copy(update={"weights": [weight.model_copy(update={"limit": float("inf")})]}).passed


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    bundle, original = replace(SMALL, quantization=FOUR).bundle(), SMALL.checkpoint()
    with pytest.raises(SpecError, match="not quantized"):
        check(SMALL.bundle(), unquantized=original)
    with pytest.raises(SpecError, match="without the unquantized model"):
        check(bundle, data=["text.txt"])
    with pytest.raises(CheckpointError, match="quantized already"):
        check(bundle, unquantized=bundle.path)
    with pytest.raises(CheckpointError, match=r"not the one that was quantized[\s\S]*hidden_size: 48 and 40"):
        check(bundle, unquantized=Recipe().checkpoint())
    with pytest.raises(CheckpointError, match="not the one that was quantized"):
        check(bundle, unquantized=Recipe(family="gemma3_text").checkpoint())
    assert not (bundle.path / "reports" / "parity.json").exists()


ROUNDING = {
    "onnxruntime": {"session.qdq_matmulnbits_accuracy_level": "4"},
    "openvino": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "32"},
}
"""Options with which products with quantized weights round their activations to 8 bits."""


@pytest.mark.parametrize("quantization", slow_but((EIGHT,), (Quantization(bits=4), EIGHT)))
def test_engines_that_round_activations_have_a_floor_of_their_own(
    quantization: Quantization, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = quantize(
        Recipe(overrides=(("hidden_size", 64), *WIDE[1:], *UNTIED), opset=QUANTIZED_OPSET).bundle(),
        tmp_path / "bundle",
        quantization,
    )
    for target, options in ROUNDING.items():
        compile_bundle(bundle, target, name=f"{target}-rounded", options=options)
    report = check(bundle, max_length=8)
    assert report.passed
    for target in report.targets:
        rounds = target.name.endswith("-rounded")
        assert target.precision.endswith("activations in 8 bits") == rounds
        assert (target.limits is not None) == rounds
        worst = max(case.metrics.rms_rel for case in target.cases)
        assert (worst > 100 * report.limit_rms_rel) == rounds
        if target.limits is not None:
            assert target.limits.floor.rms_rel / 4 < worst < 2 * target.limits.floor.rms_rel
    monkeypatch.setattr(OnnxRuntimeTarget, "activation_group", lambda *_: None)
    unknown = check(bundle, engines=["onnxruntime-rounded"], max_length=8)
    assert not unknown.passed
