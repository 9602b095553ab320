"""Classifiers and taggers: as Hugging Face's models say, in PyTorch and in every target."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import BOS, bundle_of, checkpoint_of, ids_of, save_lines, text_of
from exported import CLASSES, TAGS, Recipe
from torch.nn import functional as F

from funnel_export import FunnelSpec, apply_funnel, evaluate
from funnel_export.report.quality_text import describe_quality

NAMES = {CLASSES: ("ham", "spam", "other"), TAGS: ("O", "B-X", "I-X")}
LENGTHS = (3, 9, 1, 6, 14, 2, 7)


@pytest.fixture(scope="module", params=[CLASSES, TAGS], ids=["classes", "tags"])
def recipe(request: pytest.FixtureRequest) -> Recipe:
    return request.param


@pytest.fixture(scope="module")
def checkpoint(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoint_of(recipe, tmp_path_factory.mktemp("checkpoint") / "model")
    return named(folder, recipe)


def named(folder: Path, recipe: Recipe) -> Path:
    """With names of the labels."""
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): name for index, name in enumerate(NAMES[recipe])}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def labels_of(recipe: Recipe) -> list[list[int]]:
    """A label for each document, or for each of its words."""
    generator = np.random.default_rng(0)
    return [generator.integers(0, 3, size=1 if recipe is CLASSES else length).tolist() for length in LENGTHS]


def save_documents(recipe: Recipe, path: Path, names: Sequence[str | int] = (0, 1, 2)) -> Path:
    """The documents with their labels, of these names."""
    rows = []
    for ids, labels in zip(ids_of(LENGTHS), labels_of(recipe), strict=True):
        found = [names[label] for label in labels]
        text = {"text": text_of(ids), "label": found[0]}
        rows.append(text if recipe is CLASSES else {"tokens": text["text"].split(), "tags": found})
    return save_lines(path, rows)


def by_hand(recipe: Recipe, checkpoint: Path, funnel: FunnelSpec | None) -> tuple[np.ndarray, np.ndarray]:
    """The loss and the best label of every label in the data."""
    model = recipe.cls.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    if funnel is not None:
        apply_funnel(model, funnel)
    losses, best = [], []
    for ids, labels in zip(ids_of(LENGTHS), labels_of(recipe), strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([[BOS, *ids]])).logits[0].double()
        logits = logits[None] if recipe is CLASSES else logits[1:]
        losses += F.cross_entropy(logits, torch.tensor(labels), reduction="none").tolist()
        best += logits.argmax(-1).tolist()
    return np.array(losses), np.array(best)


def test_a_checkpoint(recipe: Recipe, checkpoint: Path, tmp_path: Path) -> None:
    data = save_documents(recipe, tmp_path / "data.jsonl", NAMES[recipe])
    report = evaluate(checkpoint, data, funnel=recipe.funnel)
    assert report.dense is not None
    assert report.distance is not None
    targets = np.concatenate(labels_of(recipe))
    (losses, best), (dense_losses, dense_best) = (
        by_hand(recipe, checkpoint, funnel) for funnel in (recipe.funnel, None)
    )
    assert report.measures.loss.value == pytest.approx(losses.mean(), abs=1e-5)
    assert report.measures.accuracy.value == pytest.approx((best == targets).mean())
    assert report.dense.loss.value == pytest.approx(dense_losses.mean(), abs=1e-5)
    assert report.distance.accuracy.value == pytest.approx((best == targets).mean() - (dense_best == targets).mean())
    assert report.distance.top1.value == pytest.approx((best == dense_best).mean())
    assert report.scored == len(targets)
    assert (report.measures.span_f1 is None) == (recipe is CLASSES)
    assert bool(report.by_phase) == (recipe is TAGS)
    assert report.size == 0
    text = describe_quality(report)
    assert f"7 documents, {len(targets)} labels, in rows of at most 512 tokens" in text
    assert "macro-F1" in text
    assert ("span F1" in text) == ("by phase" in text) == (recipe is TAGS)
    assert "perplexity" not in text


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_a_bundle_says_the_same(recipe: Recipe, target: str, tmp_path: Path) -> None:
    """Here the labels have no names."""
    checkpoint, bundle = checkpoint_of(recipe, tmp_path / "checkpoint"), bundle_of(recipe, tmp_path / "bundle")
    data = save_documents(recipe, tmp_path / "data.jsonl")
    one, other = evaluate(checkpoint, data, funnel=recipe.funnel), evaluate(bundle, data, target=target)
    assert other.measures.loss.value == pytest.approx(one.measures.loss.value, abs=1e-4)
    assert other.measures.accuracy == one.measures.accuracy
    assert other.measures.macro_f1 == one.measures.macro_f1
    assert other.measures.span_f1 is None
    assert other.distance is not None
    assert one.distance is not None
    assert other.distance.kl.value == pytest.approx(one.distance.kl.value, abs=1e-4)
