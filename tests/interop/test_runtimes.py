"""Every bundle, loaded as it is, computes in every runtime what eager PyTorch computes."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from cases import KINDS, NAMES, SIDES, UNNAMED, Case, assert_close
from runtimes import RUNTIMES
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    Gemma3TextConfig,
)

AUTO_CLASSES = {
    "feature-extraction": AutoModel,
    "text-generation": AutoModelForCausalLM,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
}
"""Those that Optimum's classes stand for."""


def test_nothing_of_ours_is_here() -> None:
    assert importlib.util.find_spec("funnel_export") is None


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_computes_what_pytorch_computes(case: Case, runtime: str, side: str) -> None:
    case.check(side, RUNTIMES[runtime](case.folder, case.task, case.inputs(side)))


@pytest.mark.parametrize("side", SIDES)
def test_transformers_4_reads_the_tokenizer(case: Case, side: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(case.folder)
    assert tokenizer.padding_side == "left"
    batch = tokenizer(case.texts, padding=True, padding_side=side, return_tensors="np")
    for name, wanted in case.inputs(side).items():
        assert batch[name].tolist() == wanted.tolist()
    for text, ids in case.tokens.items():
        assert tokenizer(text)["input_ids"] == ids, repr(text)


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("PreTrainedTokenizerFast", "TokenizersBackend", "TokenizersBackend does not exist"),
        ("additional_special_tokens", "extra_special_tokens", "no attribute 'keys'"),
    ],
)
def test_transformers_4_does_not_know_what_5_writes(
    name: str, written: str, message: str, bundles: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(bundles / UNNAMED, tmp_path / "bundle")
    config = folder / "tokenizer_config.json"
    assert name in config.read_text()
    config.write_text(config.read_text().replace(name, written))
    with pytest.raises((ValueError, AttributeError), match=message):
        AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("task", AUTO_CLASSES)
def test_every_task_of_gemma3_has_a_bundle(task: str) -> None:
    if Gemma3TextConfig not in AUTO_CLASSES[task]._model_mapping:
        pytest.skip(f"transformers {transformers.__version__} has no class of gemma3_text for {task}")
    assert {f"gemma3-{task}-{kind}" for kind in KINDS} <= set(NAMES)


@pytest.mark.parametrize("model", ["text-generation", "gemma3-text-generation"])
def test_as_a_checkpoint_it_is_the_dense_model(model: str, bundles: Path) -> None:
    dense, folder = Case.read(bundles, f"{model}-dense"), bundles / f"{model}-funnel"
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in dense.texts]
    for got, wanted in zip(rows, dense.rows(), strict=True):
        assert_close(got, wanted, "eager PyTorch")
