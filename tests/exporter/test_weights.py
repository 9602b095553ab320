"""Weights by reference: all stored dtypes, compute dtypes and file layouts match Hugging Face."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import Recipe, forward_of_bundle
from models import main_output, make_batch, random_rows
from safetensors.torch import load_file, save_file
from tamper import rewrite_json

from funnel_export import apply_funnel, export
from funnel_export.errors import CheckpointError

UNTIED = (("tie_word_embeddings", False), ("final_logit_softcapping", None), ("attn_logit_softcapping", None))

RECIPES = {
    "bfloat16 in float32": Recipe(stored=torch.bfloat16),
    "float16 shards, untied, no softcaps, in float32": Recipe(
        stored=torch.float16, shards="20KB", overrides=UNTIED, opset=18
    ),
    "bfloat16 in float16": Recipe(stored=torch.bfloat16, dtype="float16"),
    "float32 in bfloat16": Recipe(dtype="bfloat16"),
    "bfloat16 in bfloat16": Recipe(stored=torch.bfloat16, dtype="bfloat16", funnel=None),
}


def errors(recipe: Recipe, target: str) -> tuple[float, float]:
    """Mean error of the target, and of eager PyTorch in the compute dtype, against float32."""
    batch = make_batch(random_rows([4, 9, 17]), "left")
    outputs = {}
    for dtype in (torch.float32, getattr(torch, recipe.dtype)):
        model = recipe.model(dtype)
        if recipe.funnel:
            apply_funnel(model, recipe.funnel)
        positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            out = model(batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions, use_cache=False)
        outputs[dtype] = torch.cat(batch.real(main_output(out))).float()
    reference = outputs[torch.float32]
    run = forward_of_bundle(recipe.bundle(), target)
    got = torch.cat(batch.real(run(batch.input_ids, batch.attention_mask))).float()
    eager = outputs[getattr(torch, recipe.dtype)]
    return float((got - reference).abs().mean()), float((eager - reference).abs().mean())


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.filterwarnings("ignore:Gemma2 is known to overflow")
def test_loses_no_more_than_eager_pytorch(name: str, target: str) -> None:
    recipe = RECIPES[name]
    if target == "onnxruntime" and recipe.dtype == "bfloat16":
        pytest.skip("ONNX Runtime's CPU provider has no bfloat16 kernels")
    error, floor = errors(recipe, target)
    assert error <= 2 * floor + 2e-6


def test_float16_warns(tmp_path: Path) -> None:
    recipe = RECIPES["bfloat16 in float16"]
    with pytest.warns(UserWarning, match="overflow in float16"):
        export(
            recipe.checkpoint(),
            tmp_path / "out",
            funnel=recipe.funnel,
            task=recipe.task,
            dtype=recipe.dtype,
            opset=recipe.opset,
        )


@pytest.mark.parametrize("name", ["bfloat16 in float32", "float16 shards, untied, no softcaps, in float32"])
def test_the_graph_loads_in_plain_onnxruntime(name: str, tmp_path: Path) -> None:
    bundle = RECIPES[name].bundle()
    copied = shutil.copytree(bundle.path, tmp_path / "copy")  # onnx.checker refuses files with several hard links
    onnx.checker.check_model(copied / bundle.model.path.name, full_check=True)
    session = onnxruntime.InferenceSession(str(bundle.model.path), providers=["CPUExecutionProvider"])
    ids = np.array([[5, 6, 7]], dtype=np.int64)
    (logits,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
    assert logits.shape == (1, 3, 61)
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "sequence_length"],
    }


def test_the_graph_contains_no_weights_and_refers_to_each_once() -> None:
    bundle = RECIPES["float16 shards, untied, no softcaps, in float32"].bundle()
    graph = onnx.load(str(bundle.model.path), load_external_data=False).graph
    outside = [t for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    index = json.loads((bundle.path / "model.safetensors.index.json").read_text())
    assert {t.name for t in outside} == set(index["weight_map"])
    assert len({t.name for t in outside}) == len(outside)
    assert bundle.model.path.stat().st_size < 200_000


def test_link_and_copy(tmp_path: Path) -> None:
    recipe = Recipe()
    weights = recipe.checkpoint() / "model.safetensors"
    assert weights.samefile(recipe.bundle().path / "model.safetensors")
    copied = export(recipe.checkpoint(), tmp_path / "copy", funnel=recipe.funnel, task=recipe.task, weights="copy")
    assert not weights.samefile(copied.path / "model.safetensors")
    assert weights.read_bytes() == (copied.path / "model.safetensors").read_bytes()


def _changed(tmp_path: Path, **changes: torch.Tensor | None) -> Path:
    """A copy of the tiny checkpoint with tensors added, replaced or removed."""
    source = Recipe().checkpoint()
    tensors = load_file(source / "model.safetensors")
    tensors |= {name: value for name, value in changes.items() if value is not None}
    kept = {name: value for name, value in tensors.items() if changes.get(name, value) is not None}
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    return tmp_path


def test_all_missing_and_misshapen_weights_are_named_at_once(tmp_path: Path) -> None:
    missing, misshapen = "model.layers.1.mlp.up_proj.weight", "model.layers.2.self_attn.k_proj.weight"
    checkpoint = _changed(tmp_path, **{missing: None, misshapen: torch.zeros(3, 5)})
    with pytest.raises(CheckpointError) as caught:
        export(checkpoint, tmp_path / "out", funnel="1:3:2", task="text-generation")
    assert missing in str(caught.value)
    assert misshapen in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tied_head_that_differs_is_refused(tmp_path: Path) -> None:
    embedding = load_file(Recipe().checkpoint() / "model.safetensors")["model.embed_tokens.weight"]
    checkpoint = _changed(tmp_path, **{"lm_head.weight": embedding + 1})
    with pytest.raises(CheckpointError, match="stored with different values"):
        export(checkpoint, tmp_path / "out", funnel="1:3:2", task="text-generation")


def test_a_causal_lm_checkpoint_has_features_but_no_classes(tmp_path: Path) -> None:
    checkpoint = Recipe().checkpoint()
    bundle = export(checkpoint, tmp_path / "features", funnel=None, task="feature-extraction")
    assert bundle.model.record.outputs[0].name == "last_hidden_state"
    with pytest.raises(CheckpointError, match=r"score\.weight"):
        export(checkpoint, tmp_path / "classes", funnel="1:3:2", task="text-classification")


def with_tensors(folder: Path, *names: str) -> Path:
    """A copy of the checkpoint with additional tensors."""
    checkpoint = shutil.copytree(Recipe().checkpoint(), folder / "checkpoint")
    tensors = load_file(checkpoint / "model.safetensors") | {name: torch.zeros(2, 2) for name in names}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    return checkpoint


def test_an_unused_layer_is_refused(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")

    def drop_a_layer(config: dict[str, Any]) -> None:
        config.update(num_hidden_layers=3, layer_types=config["layer_types"][:3])

    rewrite_json(checkpoint / "config.json", drop_a_layer)
    with pytest.raises(
        CheckpointError, match=r"(?s)does not use.*layers\.3\..*, and \d+ more.*3 layers.*num_hidden_lay"
    ):
        export(checkpoint, tmp_path / "out", funnel="1:3:2", task="text-generation")
    assert not (tmp_path / "out").exists()


def test_an_unused_weight_is_refused(tmp_path: Path) -> None:
    stray = "model.layers.0.self_attn.q_norm.weight"
    checkpoint = with_tensors(tmp_path, stray)
    with pytest.raises(CheckpointError, match=rf"does not use\n  got: {stray}\n"):
        export(checkpoint, tmp_path / "out", funnel="1:3:2", task="text-generation")


def test_a_head_under_another_name_is_named_beside_the_wanted_one(tmp_path: Path) -> None:
    checkpoint = with_tensors(tmp_path, "classifier.weight")
    with pytest.raises(CheckpointError, match=r"(?s)does not use\n  got: classifier\.weight.*no score\.weight"):
        export(checkpoint, tmp_path / "out", funnel="1:3:2", task="text-classification")


def test_heads_of_other_tasks_and_buffers_are_accepted(tmp_path: Path) -> None:
    checkpoint = with_tensors(
        tmp_path, "score.weight", "model.layers.1.self_attn.rotary_emb.inv_freq", "lm_head.weight"
    )
    assert export(checkpoint, tmp_path / "out", funnel="1:3:2", task="feature-extraction").spec.funnel
