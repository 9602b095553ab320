"""`fit`: a checkpoint with fitted maps is written whole or not at all, and everything else takes it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from models import VOCAB, random_rows, save_tiny_checkpoint
from properties import alone, assert_close, forward_of
from safetensors.torch import load_file
from tiers import slow_but
from tokenizers_of_words import save_tokenizer
from transformers import Gemma2ForCausalLM

from funnel_export import FunnelSpec, apply_funnel, check, evaluate, export, fit
from funnel_export.commands.fit import REPORT
from funnel_export.errors import BundleError, CheckpointError, DataError, SpecError

SPEC = FunnelSpec.parse("1:3:2", recovery="linear")
OPTIONS = {"tokens": 2000, "length": 40, "dtype": "float32"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint"))
    save_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten documents of random words."""
    file, rng = tmp_path_factory.mktemp("texts") / "texts.jsonl", np.random.default_rng(0)
    documents = [" ".join(f"w{word}" for word in rng.integers(3, VOCAB, 200)) for _ in range(10)]
    file.write_text("\n".join(json.dumps({"text": text}) for text in documents))
    return file


@pytest.fixture(scope="module")
def fitted(checkpoint: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "checkpoint"
    fit(checkpoint, folder, funnel="1:3:2", data=texts, **OPTIONS)
    return folder


def test_the_report_counts_tokens_and_losses_fall(fitted: Path) -> None:
    report = json.loads((fitted / REPORT).read_text())
    assert report["funnel"] == SPEC.to_dict()
    assert (report["tokens"], report["held_out"]) == (1600, 400)  # eight and two documents, each in six rows with BOS
    assert report["maps"]["closed"]["tokens"] + report["maps"]["stale"]["tokens"] == 8 * (200 - 6)
    losses = report["losses"]
    assert losses["fitted"] < losses["before"]


def test_hugging_face_loads_it_as_the_dense_model(checkpoint: Path, fitted: Path) -> None:
    one, other = (
        Gemma2ForCausalLM.from_pretrained(each, attn_implementation="eager").eval() for each in (checkpoint, fitted)
    )
    [row] = random_rows([20])
    assert_close(alone(forward_of(other))(row), alone(forward_of(one))(row), 0.0, "the dense model")
    mapped, delta = apply_funnel(other), apply_funnel(one, FunnelSpec.parse("1:3:2"))
    assert (alone(forward_of(mapped))(row) - alone(forward_of(delta))(row)).abs().max() > 1e-2


@pytest.mark.parametrize("task", slow_but(("text-generation",), ("text-generation", "text-generation-with-past")))
def test_it_is_exported_with_its_funnel(fitted: Path, task: str, tmp_path: Path) -> None:
    bundle = export(fitted, tmp_path / "bundle", task=task)
    assert bundle.spec.funnel == SPEC
    assert check(bundle, targets=["onnxruntime"]).passed


def test_the_same_texts_give_the_same_bytes(checkpoint: Path, texts: Path, fitted: Path, tmp_path: Path) -> None:
    fit(checkpoint, tmp_path / "again", funnel="1:3:2", data=[texts], **OPTIONS)
    names = sorted(path.name for path in fitted.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (fitted / name).read_bytes(), name


def test_layers_can_be_dropped_and_fitted_again(checkpoint: Path, texts: Path, fitted: Path, tmp_path: Path) -> None:
    report = fit(fitted, tmp_path / "dropped", funnel="1:3:drop", data=texts, **OPTIONS)
    assert set(report.maps) == {"rest"}
    weights = load_file(tmp_path / "dropped" / "funnel.safetensors")
    assert {name: tuple(weight.shape) for name, weight in weights.items()} == {
        "model.funnel.first": (40,),
        "model.funnel.rest.weight": (40, 40),
        "model.funnel.rest.bias": (40,),
    }
    assert all(weight.dtype == torch.float32 for weight in weights.values())
    assert check(
        export(tmp_path / "dropped", tmp_path / "bundle", task="text-generation"), targets=["onnxruntime"]
    ).passed


def test_an_output_with_content_is_kept(checkpoint: Path, texts: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(BundleError):
        fit(checkpoint, tmp_path, funnel="1:3:2", data=texts, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


REFUSED = {
    "funnel beyond the layers": ({"funnel": "1:9:2"}, SpecError, "beyond the model's layers"),
    "too long": ({"length": 513}, SpecError, "max_position_embeddings"),
    "too little text": ({"tokens": 30}, DataError, "too little text"),
    "no data": ({"data": "/nowhere.txt"}, DataError, "not found"),
}


@pytest.mark.parametrize(("change", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_and_nothing_is_written(
    change: dict[str, object], error: type[Exception], says: str, checkpoint: Path, texts: Path, tmp_path: Path
) -> None:
    options = {"funnel": "1:3:2", "data": texts} | OPTIONS | change
    with pytest.raises(error, match=says):
        fit(checkpoint, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_fitted_checkpoint_is_evaluated_with_its_maps(checkpoint: Path, texts: Path, fitted: Path) -> None:
    mapped, delta = (
        evaluate(each, texts, funnel="1:3:2" if each == checkpoint else "auto") for each in (fitted, checkpoint)
    )
    assert mapped.rows_sha256 == delta.rows_sha256
    assert mapped.dense == delta.dense
    assert mapped.distance.kl.value < delta.distance.kl.value
    with pytest.raises(SpecError, match="no maps for recovery linear"):
        evaluate(checkpoint, texts, funnel=SPEC)


def test_maps_among_other_weights_are_refused(texts: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", maps=SPEC)
    save_tokenizer(checkpoint)
    with pytest.raises(CheckpointError, match="maps of an earlier funnel"):
        fit(checkpoint, tmp_path / "out", funnel="1:3:2", data=texts, **OPTIONS)
    assert not (tmp_path / "out").exists()
