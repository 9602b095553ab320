"""Tasks of lm-evaluation-harness without a network: the figures are those of Hugging Face's own model."""

import json
from pathlib import Path

import datasets
import lm_eval
import numpy as np
import pytest
import torch
import yaml
from corpora import BOS, bundle_of, checkpoint_of, ids_of, text_of
from exported import CLASSES, Recipe
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager
from torch.nn import functional as F
from transformers import PreTrainedModel

from funnel_export import FunnelSpec, SpecError, apply_funnel
from funnel_export.quality.harness import FunnelLM
from funnel_export.spec.choices import Task

FUNNEL = "1:3:3"
SINGLE = Recipe()
PAST = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse(FUNNEL))
TASKS = {
    "perplexity": {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}"},
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["w5 w6", "w7", "w8 w9 w10"],
        "doc_to_target": 0,
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "w5",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
    },
}
METRICS = {"perplexity": ["word_perplexity", "bits_per_byte"], "choice": ["acc"], "writing": ["exact_match"]}
DOCUMENTS = ids_of((7, 12, 20))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint_of(SINGLE, tmp_path_factory.mktemp("checkpoint") / "model")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tasks, on a file of documents."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text_of(ids)}) + "\n" for ids in DOCUMENTS))
    for name, options in TASKS.items():
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "metric_list": [{"metric": metric} for metric in METRICS[name]],
            **options,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return folder


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def model_of(checkpoint: Path, funnel: str = FUNNEL) -> PreTrainedModel:
    """Hugging Face's model with a funnel."""
    model = SINGLE.cls.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()
    return apply_funnel(model, FunnelSpec.parse(funnel))


@torch.no_grad()
def nats(model: PreTrainedModel, context: list[int], continuation: list[int]) -> float:
    """The loss of a continuation, of which no text here is too long."""
    ids = torch.tensor([context + continuation])
    logits = model(ids).logits[0, len(context) - 1 : -1].double()
    return float(F.cross_entropy(logits, ids[0, len(context) :], reduction="sum"))


def run(tasks: Path, names: list[str], **options: str) -> dict:
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    return lm_eval.simple_evaluate("funnel_export", options, tasks=names, task_manager=manager, bootstrap_iters=0)


@pytest.mark.parametrize("kind", ["checkpoint", "bundle", "bundle with a cache"])
def test_tasks(kind: str, checkpoint: Path, tasks: Path, tmp_path: Path) -> None:
    recipe = SINGLE if kind == "bundle" else PAST
    model = model_of(checkpoint, str(recipe.funnel))
    if kind == "checkpoint":
        options = {"pretrained": str(checkpoint), "funnel": FUNNEL}
    else:
        options = {"pretrained": str(bundle_of(recipe, tmp_path / "bundle")), "target": "onnxruntime"}
    names = ["perplexity", "choice"] + ["writing"] * (kind != "bundle")
    found = run(tasks, names, **options)
    losses = [nats(model, [BOS], ids) for ids in DOCUMENTS]
    figures = found["results"]["perplexity"]
    words, size = sum(map(len, DOCUMENTS)), sum(len(text_of(ids)) for ids in DOCUMENTS)
    assert figures["word_perplexity,none"] == pytest.approx(np.exp(sum(losses) / words), rel=1e-4)
    assert figures["bits_per_byte,none"] == pytest.approx(sum(losses) / size / np.log(2), rel=1e-4)
    choices = [[5, 6], [7], [8, 9, 10]]
    for ids, sample in zip(DOCUMENTS, found["samples"]["choice"], strict=True):
        expected = [-nats(model, [BOS, *ids], choice) for choice in choices]
        assert [float(answer[0]) for answer in sample["filtered_resps"]] == pytest.approx(expected, abs=1e-3)
    for ids, sample in zip(DOCUMENTS, found["samples"].get("writing", DOCUMENTS), strict=True):
        if "writing" in names:
            prompt = torch.tensor([[BOS, *ids]])
            text = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2)
            wanted = text_of([token for token in text[0, len(ids) + 1 :].tolist() if token > 2])
            assert sample["filtered_resps"] == [wanted]


def test_long_texts_are_read_in_pieces(checkpoint: Path) -> None:
    """Each token is predicted once; the last piece has as much context as fits, as the harness has it."""
    ours, theirs = FunnelLM(str(checkpoint), funnel=FUNNEL, max_length=8), model_of(checkpoint)
    ids = ids_of((19,))[0]
    pieces = [([BOS], ids[:8]), (ids[7:8], ids[8:16]), (ids[10:16], ids[16:])]
    (found,) = ours.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text_of(ids),), 0)])
    assert found == pytest.approx(-sum(nats(theirs, *piece) for piece in pieces), abs=1e-3)


def test_a_context_that_is_too_long_loses_its_beginning(checkpoint: Path) -> None:
    ours, theirs = FunnelLM(str(checkpoint), funnel=FUNNEL, max_length=8), model_of(checkpoint)
    ids = ids_of((19,))[0]
    ((found, greedy),) = ours._loglikelihood_tokens([(None, ids[:17], ids[17:])])
    assert found == pytest.approx(-nats(theirs, ids[10:17], ids[17:]), abs=1e-3)
    assert greedy is False
    best = theirs(torch.tensor([ids])).logits[0, -1].argmax().item()
    assert ours._loglikelihood_tokens([(None, ids, [best]), (None, ids, [])])[0][1] is True


def test_beginning_of_text_is_never_there_twice(checkpoint: Path) -> None:
    model = FunnelLM(str(checkpoint))
    assert model.tok_encode("w5") == model.tok_encode("<s> w5") == [BOS, 5]
    assert model.tok_encode("w5", add_special_tokens=False) == [5]


def test_a_bundle_without_a_cache_does_not_write(tmp_path: Path) -> None:
    model = FunnelLM(str(bundle_of(SINGLE, tmp_path / "bundle")))
    with pytest.raises(SpecError, match="no graphs with a cache"):
        model.generate_until([Instance("generate_until", {}, ("w5", {"until": ["w6"]}), 0)])
    with pytest.raises(SpecError, match="not a language model"):
        FunnelLM(str(checkpoint_of(CLASSES, tmp_path / "classes")))
