"""Hugging Face's and Optimum's pipelines on a bundle give eager PyTorch's labels, scores, features and tokens."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import Case, assert_close, names_of
from numpy.typing import NDArray
from optimum.pipelines import pipeline as optimum_pipeline
from runtimes import load_optimum
from transformers import AutoTokenizer, pipeline

LABELS = ("ACTION", "OBJECT", "OTHER")


def softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Probabilities over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def run(case: Case, **options: Any) -> list[Any]:
    """All texts through the task's pipeline, in one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    model = load_optimum(case.folder, case.task)
    return pipeline(case.task, model=model, tokenizer=tokenizer)(case.texts, batch_size=len(case.texts), **options)


def check_classes(case: Case, results: list[Any]) -> None:
    """Each text's labels with their scores, best first."""
    for result, logits in zip(results, case.rows(), strict=True):
        scores = softmax(logits[0])
        assert [entry["label"] for entry in result] == [LABELS[n] for n in np.argsort(-scores)]
        assert_close(np.array([entry["score"] for entry in result]), -np.sort(-scores), "eager PyTorch")


@pytest.mark.parametrize("name", names_of("feature-extraction"))
def test_features(bundles: Path, name: str) -> None:
    case = Case.read(bundles, name)
    rows = np.concatenate([np.array(row) for row in run(case)])
    case.check("left", rows)


@pytest.mark.parametrize("name", names_of("text-classification"))
def test_classes(bundles: Path, name: str) -> None:
    case = Case.read(bundles, name)
    check_classes(case, run(case, top_k=None))


@pytest.mark.parametrize("name", names_of("token-classification"))
def test_tags(bundles: Path, name: str) -> None:
    case = Case.read(bundles, name)
    for result, logits in zip(run(case, ignore_labels=[]), case.rows(), strict=True):
        scores = softmax(logits[1:])  # the pipeline leaves out the begin-of-sequence token
        assert [entry["entity"] for entry in result] == [LABELS[n] for n in scores.argmax(axis=-1)]
        assert_close(np.array([entry["score"] for entry in result]), scores.max(axis=-1), "eager PyTorch")


@pytest.mark.parametrize("name", names_of("text-generation"))
def test_text(bundles: Path, name: str) -> None:
    case = Case.read(bundles, name)
    wanted = case.reference["written"]
    count = wanted.shape[1]
    # Without a cache here, with one in PyTorch: a token too many or too few in a window would show.
    results = run(case, min_new_tokens=count, max_new_tokens=count, do_sample=False, return_tensors=True)
    assert [result[0]["generated_token_ids"][-count:] for result in results] == wanted.tolist()
    assert len(np.unique(wanted)) > count, "the reference is too monotonous to show anything"


def test_optimum_finds_the_model_and_its_tokenizer(bundles: Path) -> None:
    case = Case.read(bundles, "text-classification-funnel")
    classify = optimum_pipeline(case.task, model=str(case.folder), accelerator="ort")
    check_classes(case, classify(case.texts, top_k=None))


def test_optimum_must_be_told_that_there_is_no_cache(bundles: Path) -> None:
    folder = str(bundles / "text-generation-funnel")
    write = optimum_pipeline("text-generation", model=folder, accelerator="ort")
    with pytest.raises(ValueError, match="does not support pkv cache"):
        write("An iterator", max_new_tokens=1)
