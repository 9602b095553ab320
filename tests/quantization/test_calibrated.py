"""Methods that read texts: what they see, what is refused before any work, and what is recorded.

Tests with `Nearest` in place of the library run without it.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run
from corpora import bundle_of, checkpoint_of, corpus, ids_of
from exported import Recipe
from freed import uncollected, watch_weights
from tiers import slow
from torch import Tensor

from funnel_export import CheckpointError, DataError, FunnelSpec, Quantization, SpecError, export, load_bundle, quantize
from funnel_export.checkpoint.quantized import QUANTIZED
from funnel_export.exporter import build
from funnel_export.funnel import patch_forward
from funnel_export.quality import calibration, gptq
from funnel_export.quantization.rounding import Rounded, round_to_nearest
from funnel_export.quantization.write import Plan, scale_dtype
from funnel_export.spec.choices import Task
from funnel_export.spec.quantization import QUANTIZED_OPSET
from funnel_export.verify.reference import load_model

SMALL = Recipe(overrides=(("hidden_size", 48), ("vocab_size", 62)))
UNTIED = replace(SMALL, overrides=(*SMALL.overrides, ("tie_word_embeddings", False)), opset=QUANTIZED_OPSET)
"""It is traced once for both kinds of weights."""
GPTQ = Quantization(bits=4, block_size=16, method="gptq")
TEXTS = ids_of((40, 60, 25, 50))


class Nearest:
    """Rounds to nearest, and keeps what it saw."""

    def __init__(self, plan: Plan, owner: calibration.Calibration) -> None:
        self.plan, self.owner, self.inputs = plan, owner, []

    def see(self, inputs: Tensor) -> None:
        self.inputs.append(inputs[0].clone())

    def finish(self) -> None:
        self.inputs = torch.cat(self.inputs)

    def round(self, weights: Tensor) -> Rounded:
        bits, block, symmetric = self.plan.bits, self.plan.block_size, self.owner.spec.quantization.symmetric
        return round_to_nearest(weights.numpy(), bits, block, scale_dtype(self.owner.spec), symmetric=symmetric)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Nearest]]:
    """What each product saw, by the name of its weight, without the library."""
    made: dict[str, Nearest] = {}

    def product(self: calibration.Calibration, plan: Plan, _: Any) -> Nearest:
        made[plan.name] = Nearest(plan, self)
        return made[plan.name]

    monkeypatch.setattr(calibration.Calibration, "_product", product)
    monkeypatch.setattr(calibration, "library", lambda: "nearest 1")
    monkeypatch.setattr(gptq, "load_gptq", lambda: None)
    return made


@pytest.mark.parametrize(
    "recipe",
    [
        SMALL,
        replace(UNTIED, funnel=FunnelSpec.parse("1:3:drop", recovery="linear")),
        *map(
            slow,
            (
                replace(SMALL, funnel=None),
                replace(
                    UNTIED, funnel=FunnelSpec.parse("1:3:2", recovery="linear"), task=Task.TEXT_GENERATION_WITH_PAST
                ),
                Recipe(task=Task.FEATURE_EXTRACTION),
                Recipe(task=Task.TEXT_CLASSIFICATION, family="gemma3_text"),
            ),
        ),
    ],
)
def test_parts_see_what_the_rounded_parts_before_make_of_the_texts(
    recipe: Recipe, seen: dict[str, Nearest], tmp_path: Path
) -> None:
    """The oracle runs the finished model: there, the inputs of a part's first products are those that were seen."""
    texts = corpus(tmp_path, TEXTS)
    kept = replace(GPTQ, keep=("embedding",))
    made = quantize(bundle_of(recipe, tmp_path / "bundle"), tmp_path / "made", kept, data=texts)
    model, inputs = load_model(made, torch.float32), {}
    patch_forward(model, recipe.funnel)
    for name in seen:
        linear = model.get_submodule(name.removesuffix(".weight"))
        linear.register_forward_pre_hook(lambda _, x, name=name: inputs.setdefault(name, []).append(x[0][0]))
    rows = next(iter(seen.values())).owner.rows.rows
    for row in rows:
        model(input_ids=torch.from_numpy(row.tokens)[None], use_cache=False)
    first = [name for name in seen if "q_proj" in name or "funnel" in name or "head" in name]
    assert len(first) >= 3
    for name in first:
        torch.testing.assert_close(seen[name].inputs, torch.cat(inputs[name]), atol=1e-4, rtol=1e-4)


def test_rounding_to_nearest_this_way_gives_the_same_weights(seen: dict[str, Nearest], tmp_path: Path) -> None:
    bundle, texts = bundle_of(SMALL, tmp_path / "bundle"), corpus(tmp_path, TEXTS)
    calibrated = quantize(bundle, tmp_path / "calibrated", GPTQ, data=texts)
    plain = quantize(bundle, tmp_path / "plain", replace(GPTQ, method="rtn"))
    assert (calibrated.path / QUANTIZED).read_bytes() == (plain.path / QUANTIZED).read_bytes()


def test_the_model_is_freed_before_the_graphs_are_traced(
    seen: dict[str, Nearest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, left = watch_weights(monkeypatch, calibration), []
    build_graphs = build.build_graphs

    def look(*given: Any) -> Any:
        left.extend(weight for weight in weights if weight() is not None)
        return build_graphs(*given)

    monkeypatch.setattr(build, "build_graphs", look)
    bundle = bundle_of(SMALL, tmp_path / "bundle")
    weights.clear()
    with uncollected():
        quantize(bundle, tmp_path / "made", GPTQ, data=corpus(tmp_path, TEXTS))
    assert weights
    assert left == []


def test_the_recipe_says_which_texts_and_which_library(seen: dict[str, Nearest], tmp_path: Path) -> None:
    bundle, texts = bundle_of(SMALL, tmp_path / "bundle"), corpus(tmp_path, TEXTS)
    recipes = [
        load_bundle(quantize(bundle, tmp_path / f"made{tokens}", GPTQ, data=texts, tokens=tokens).path)
        .manifest.weights[0]
        .recipe.settings
        for tokens in (None, 30)
    ]
    assert [each["method"] for each in recipes] == ["gptq", "gptq"]
    assert recipes[0]["library"] == "nearest 1"
    assert recipes[0]["tokens"] == sum(map(len, TEXTS))  # with a beginning-of-text token, without the last one
    assert recipes[1]["tokens"] == 30
    assert recipes[0]["data_sha256"] != recipes[1]["data_sha256"]


@pytest.mark.slow
def test_the_command_line_takes_texts(seen: dict[str, Nearest], tmp_path: Path) -> None:
    texts, options = corpus(tmp_path, TEXTS), ("--bits", 4, "--block", 16, "--method", "gptq", "--tokens", 30)
    checkpoint, bundle = checkpoint_of(SMALL, tmp_path / "checkpoint"), bundle_of(SMALL, tmp_path / "bundle")
    made = run("quantize", bundle, tmp_path / "made", *options, "--data", texts)
    exported = run("export", checkpoint, tmp_path / "exported", "--funnel", SMALL.funnel, *options, "--data", texts)
    for done, name in ((made, "made"), (exported, "exported")):
        assert done.returncode == 0, done.stderr
        assert load_bundle(tmp_path / name).manifest.weights[0].recipe.settings["tokens"] == 30
    assert run("quantize", bundle, tmp_path / "other", "--bits", 4, "--data", texts).returncode == 2


def test_texts_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    out, texts = tmp_path / "made", corpus(tmp_path, TEXTS)
    for options in ({"data": texts}, {"tokens": 5}):
        with pytest.raises(SpecError, match="nothing reads them"):
            quantize(SMALL.bundle(), out, replace(GPTQ, method="rtn"), **options)
        with pytest.raises(SpecError, match="nothing reads them"):
            export(SMALL.checkpoint(), out, **options)
    with pytest.raises(SpecError, match="needs texts"):
        quantize(SMALL.bundle(), out, GPTQ)
    assert not out.exists()


def test_bad_texts_are_refused_before_any_work(
    seen: dict[str, Nearest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration.Calibration, "solve", None)
    bundle, empty, binary = bundle_of(SMALL, tmp_path / "bundle"), tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.touch()
    binary.write_bytes(b"\xff\xfe\x00")
    for data in (tmp_path / "missing.txt", empty, binary):
        with pytest.raises(DataError):
            quantize(bundle, tmp_path / "made", GPTQ, data=data)
    with pytest.raises(SpecError, match="max_tokens"):
        quantize(bundle, tmp_path / "made", GPTQ, data=corpus(tmp_path, TEXTS), tokens=0)
    with pytest.raises(CheckpointError, match="no tokenizer"):
        quantize(SMALL.bundle(), tmp_path / "made", GPTQ, data=corpus(tmp_path, TEXTS))
    assert not (tmp_path / "made").exists()


def test_a_missing_library_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neural_compressor", None)
    monkeypatch.delitem(sys.modules, "neural_compressor.torch.algorithms.weight_only.gptq", raising=False)
    with pytest.raises(SpecError, match="neural_compressor is not installed") as raised:
        quantize(SMALL.bundle(), tmp_path / "made", GPTQ, data=corpus(tmp_path, TEXTS))
    assert "neural-compressor" in str(raised.value) or "gptq" in str(raised.value)
    assert not (tmp_path / "made").exists()
