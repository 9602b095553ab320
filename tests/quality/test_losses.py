"""Losses of language models are those of Hugging Face's model on rows cut by hand, in PyTorch and in every target."""

import functools
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from corpora import BOS, LENGTHS, bundle_of, checkpoint_of, corpus, ids_of, text_of
from exported import Recipe
from freed import uncollected, watch_weights
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import PreTrainedModel

from funnel_export import FunnelSpec, apply_funnel, compile_bundle, evaluate
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.commands.compile import default_profiles
from funnel_export.errors import SpecError
from funnel_export.quality import scorers
from funnel_export.quality.quality_report import Measure, QualityReport
from funnel_export.quality.source import Source
from funnel_export.spec.choices import Task
from funnel_export.targets.registry import get_target
from funnel_export.verify import reference
from funnel_export.verify.candidates import Candidate

FUNNEL = "1:3:3"
SINGLE = Recipe()
PAST = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse(FUNNEL))
DENSE_SINGLE, DENSE_PAST = Recipe(funnel=None), Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=None)
LENGTH = 9
"""Rows of the beginning-of-text token and up to eight words."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(SINGLE, tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("data"), ids_of())


def model_of(checkpoint: Path, funnel: str | None) -> PreTrainedModel:
    """Hugging Face's model, loaded apart from the package."""
    model = SINGLE.cls.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    return model if funnel is None else apply_funnel(model, FunnelSpec.parse(funnel))


def rows_by_hand() -> list[tuple[int, list[int]]]:
    """The rows with the numbers of their documents, from the documents' ids."""
    return [
        (number, [BOS, *ids[begin : begin + LENGTH - 1]])
        for number, ids in enumerate(ids_of())
        for begin in range(0, len(ids), LENGTH - 1)
    ]


@functools.cache
def by_hand(checkpoint: Path, funnel: str | None) -> dict[str, np.ndarray]:
    """For every token but BOS: its document, its position, its logits, its loss."""
    model, found = model_of(checkpoint, funnel), []
    for document, row in rows_by_hand():
        with torch.no_grad():
            logits = model(torch.tensor([row])).logits[0].double()
        for position in range(1, len(row)):
            loss = F.cross_entropy(logits[position - 1], torch.tensor(row[position]))
            found.append((document, position, row[position], float(loss), logits[position - 1].numpy()))
    columns = zip(*found, strict=True)
    return dict(zip(("document", "position", "token", "loss", "logits"), map(np.array, columns), strict=True))


def close(measure: Measure | None, value: float, tolerance: float = 2e-6) -> None:
    assert measure is not None
    assert measure.value == pytest.approx(value, abs=tolerance)


def test_the_dense_model(checkpoint: Path, data: Path) -> None:
    expected = by_hand(checkpoint, None)
    report = evaluate(checkpoint, data, length=LENGTH)
    loss, tokens = expected["loss"].mean(), sum(LENGTHS)
    size = sum(len(text_of(ids).encode()) for ids in ids_of())
    assert (report.documents, report.scored, report.size, report.funnel) == (5, tokens, size, None)
    assert (report.runtime, report.device, report.precision) == ("eager", "cpu", "float32")
    close(report.measures.loss, loss)
    close(report.measures.perplexity, math.exp(loss), 1e-3)
    close(report.measures.bits_per_byte, loss * tokens / size / math.log(2))
    close(report.measures.accuracy, (expected["logits"].argmax(-1) == expected["token"]).mean())
    assert report.dense is None
    assert report.distance is None
    assert report.by_phase == []
    assert report.measures.macro_f1 is None


def test_a_funnel_beside_the_dense_model(checkpoint: Path, data: Path) -> None:
    dense, funnel = by_hand(checkpoint, None), by_hand(checkpoint, FUNNEL)
    report = evaluate(checkpoint, data, funnel=FUNNEL, length=LENGTH)
    p, q = (torch.from_numpy(each["logits"]).log_softmax(-1).numpy() for each in (dense, funnel))
    kl = (np.exp(p) * (p - q)).sum(-1)
    same = dense["logits"].argmax(-1) == funnel["logits"].argmax(-1)
    assert report.dense is not None
    assert report.distance is not None
    assert report.funnel == FunnelSpec.parse(FUNNEL).to_dict()
    close(report.measures.loss, funnel["loss"].mean())
    close(report.dense.loss, dense["loss"].mean())
    close(report.distance.loss, (funnel["loss"] - dense["loss"]).mean())
    close(report.distance.kl, kl.mean())
    close(report.distance.top1, same.mean())
    assert kl.mean() > 0.01, "the funnel changes what the model says"


def test_the_dense_model_of_another_checkpoint(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    other = shutil.copytree(checkpoint, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: weight * 1.1 for name, weight in weights.items()}, other / "model.safetensors", {"format": "pt"})
    alone = evaluate(checkpoint, data, length=LENGTH, funnel=FUNNEL, dense=False)
    found = evaluate(checkpoint, data, length=LENGTH, funnel=FUNNEL, against=other)
    own = evaluate(other, data, length=LENGTH)
    assert found.against == str(other)
    assert found.dense is not None
    assert found.distance is not None
    assert found.measures == alone.measures
    assert found.dense == own.measures
    assert found.distance.loss is not None
    assert found.distance.loss.value == pytest.approx(found.measures.loss.value - own.measures.loss.value, abs=1e-9)
    same = evaluate(checkpoint, data, length=LENGTH, funnel=FUNNEL, against=checkpoint)
    assert same.distance == evaluate(checkpoint, data, length=LENGTH, funnel=FUNNEL).distance


def test_another_checkpoint_must_fit(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    classifier = checkpoint_of(Recipe(task=Task.TEXT_CLASSIFICATION), tmp_path / "classifier")
    with pytest.raises(SpecError, match="the models have different tasks"):
        evaluate(checkpoint, data, against=classifier)
    with pytest.raises(SpecError, match="the comparison with it is turned off"):
        evaluate(checkpoint, data, against=checkpoint, dense=False)


def test_phases_and_positions_counted_by_hand(checkpoint: Path, data: Path) -> None:
    """A token is predicted by the one before it: that one's window has just closed in phase 0."""
    expected = by_hand(checkpoint, FUNNEL)
    report = evaluate(checkpoint, data, funnel=FUNNEL, length=LENGTH, dense=False)
    assert [(group.first, group.last) for group in report.by_phase] == [(0, 0), (1, 1), (2, 2)]
    assert [(group.first, group.last) for group in report.by_position] == [(1, 1), (2, 3), (4, 7), (8, 15)]
    # Rows of 8, 3, 8, 8, 8, 6, 1, 8, 8, 7 and 8 words.
    assert [group.scored for group in report.by_phase] == [28, 26, 19]
    assert [group.scored for group in report.by_position] == [11, 20, 35, 7]
    assert [group.documents for group in report.by_position] == [5, 4, 4, 4]
    for group in report.by_phase:
        close(group.loss, expected["loss"][(expected["position"] - 1) % 3 == group.first].mean())
    for group in report.by_position:
        inside = (expected["position"] >= group.first) & (expected["position"] <= group.last)
        close(group.loss, expected["loss"][inside].mean())
        assert group.over_dense is None


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "recipe", [SINGLE, PAST, DENSE_SINGLE, DENSE_PAST], ids=["funnel", "cache", "dense", "dense cache"]
)
def test_a_bundle_has_the_losses_of_its_checkpoint(
    recipe: Recipe, target: str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    bundle = bundle_of(recipe, tmp_path / "bundle")
    expected = by_hand(checkpoint, str(recipe.funnel) if recipe.funnel else None)
    report = evaluate(bundle, data, target=target, length=LENGTH)
    assert report.runtime == target
    assert set(report.graph_digests) == set(recipe.bundle().graphs)
    close(report.measures.loss, expected["loss"].mean(), 1e-4)
    for group in report.by_position:
        inside = (expected["position"] >= group.first) & (expected["position"] <= group.last)
        close(group.loss, expected["loss"][inside].mean(), 1e-4)
    if recipe.funnel:
        assert report.distance is not None
        close(report.distance.loss, (expected["loss"] - by_hand(checkpoint, None)["loss"]).mean(), 1e-4)


def test_an_engine_and_the_distance_of_a_dense_bundle(data: Path, tmp_path: Path) -> None:
    bundle = bundle_of(DENSE_SINGLE, tmp_path / "bundle")
    compile_bundle(bundle, "onnxruntime", name="mine")
    report = evaluate(bundle, data, engine="mine", length=LENGTH, dense=True)
    assert report.runtime == "mine"
    assert report.distance is not None
    close(report.distance.loss, 0, 1e-5)
    close(report.distance.kl, 0, 1e-5)
    close(report.distance.top1, 1)


@pytest.mark.parametrize("recipe", [SINGLE, PAST], ids=["one pass", "cache"])
def test_chunks_and_batches_change_nothing(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from funnel_export.quality import scores

    bundle = bundle_of(recipe, tmp_path / "bundle")
    whole = evaluate(bundle, data, length=LENGTH)
    monkeypatch.setattr(scores, "LOGITS", 61 * 8)
    for size in (1, 3, 100):
        report = evaluate(bundle, data, length=LENGTH, batch_size=size)
        assert report.rows_sha256 == whole.rows_sha256
        assert near(report, whole)


def test_engines_with_profiles_take_no_more_than_these_allow() -> None:
    """Only TensorRT has such engines, so the profiles are those that `compile` gives to one."""
    bundle = PAST.bundle()
    profiles = [each for graph in bundle.graphs.values() for each in default_profiles(bundle, graph)]
    engine: Any = SimpleNamespace(manifest=SimpleNamespace(profiles=profiles))
    source = Source(
        "here", Checkpoint.open(bundle.path), bundle.spec, bundle, Candidate(get_target("tensorrt"), {"exit": engine})
    )
    assert source.most("batch_size") == 4
    assert source.most("num_logits") == 16
    assert Source("here", source.checkpoint, bundle.spec).most("batch_size") is None


def near(one: QualityReport, other: QualityReport) -> bool:
    """Whether two reports have the same values, up to rounding."""
    values = [[group.loss.value for group in (*each.by_phase, *each.by_position)] for each in (one, other)]
    return np.allclose(*values, atol=1e-5)


def test_logits_that_are_shifted_by_one_position_have_another_loss(
    checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = evaluate(checkpoint, data, length=LENGTH)
    original = scorers.InPyTorch.outputs
    monkeypatch.setattr(
        scorers.InPyTorch, "outputs", lambda *given: (logits.roll(1, dims=1) for logits in original(*given))
    )
    wrong = evaluate(checkpoint, data, length=LENGTH)
    assert abs(wrong.measures.loss.value - right.measures.loss.value) > 0.05


def test_the_funnel_in_the_config_is_the_default(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    model = model_of(checkpoint, FUNNEL)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    assert evaluate(tmp_path, data, dense=False).funnel == FunnelSpec.parse(FUNNEL).to_dict()
    assert evaluate(tmp_path, data, funnel="none").funnel is None


def test_bfloat16_is_near_float32(checkpoint: Path, data: Path) -> None:
    one, other = (evaluate(checkpoint, data, dtype=dtype, length=LENGTH) for dtype in ("float32", "bfloat16"))
    assert other.precision == "bfloat16"
    difference = abs(one.measures.loss.value - other.measures.loss.value)
    assert 1e-6 < difference < 0.1


def test_progress(checkpoint: Path, data: Path) -> None:
    steps: list[tuple[str, float | None]] = []
    evaluate(checkpoint, data, length=LENGTH, batch_size=4, progress=lambda step, done=None: steps.append((step, done)))
    assert steps == [
        ("opening the model", None),
        ("reading the data", None),
        ("loading the model in PyTorch", None),
        ("evaluating", 0),
        ("evaluating", 27 / 73),
        ("evaluating", 50 / 73),
        ("intervals", None),
    ]


def test_the_models_are_freed_at_once(checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = watch_weights(monkeypatch, reference)
    with uncollected():
        evaluate(checkpoint, [data], funnel="1:3:2")
        assert {weight() for weight in weights} == {None}


def test_the_dense_model_is_untouched_by_the_funnel(checkpoint: Path) -> None:
    """Both share their parameters, and only one has a funnel."""
    model = model_of(checkpoint, None)
    twin = apply_funnel(scorers.with_same_weights(model), FunnelSpec.parse(FUNNEL))
    ids = torch.tensor([[BOS, *ids_of()[0]]])
    with torch.no_grad():
        before, funnel, after = (each(ids).logits for each in (model, twin, model))
    assert torch.equal(before, after)
    assert not torch.allclose(before, funnel)
    assert {id(each) for each in model.parameters()} == {id(each) for each in twin.parameters()}
