"""The text part of a multimodal Gemma 3: found behind its names, exported, and equal to the whole model on texts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import forward_of_bundle
from models import TINY, VOCAB, random_rows
from safetensors.torch import load_file, save_file
from tiers import LONG, slow, slow_but
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ForSequenceClassification,
    Gemma3TextConfig,
    PreTrainedModel,
)

from funnel_export import CheckpointError, FunnelSpec, export
from funnel_export.commands.check import compare
from funnel_export.families.registry import get_family
from funnel_export.spec.choices import Task

IMAGES = {
    "model_type": "siglip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def save(folder: Path, cls: type[PreTrainedModel]) -> Any:
    """A tiny model with eyes; its checkpoint is in the folder."""
    torch.manual_seed(0)
    config = Gemma3Config(
        text_config=TINY[Gemma3TextConfig],
        vision_config=IMAGES,
        mm_tokens_per_image=4,
        image_token_index=VOCAB - 1,
        boi_token_index=VOCAB - 2,
        eoi_token_index=VOCAB - 3,
        num_labels=5,
    )
    model = cls._from_config(config, attn_implementation="eager").eval()
    for name, parameter in model.named_parameters():
        if "language_model" in name and "norm" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def as_transformers_5_nests_it(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head", "lm_head")
        .replace("vision_tower.", "model.vision_tower.")
        .replace("multi_modal_projector.", "model.multi_modal_projector."): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def test_bare_names_do_not_depend_on_the_version(tmp_path: Path) -> None:
    save(tmp_path, Gemma3ForConditionalGeneration)
    family, before = get_family("gemma3"), set(load_file(tmp_path / "model.safetensors"))
    as_transformers_5_nests_it(tmp_path)
    after = set(load_file(tmp_path / "model.safetensors"))
    assert {family.bare_name(name) for name in before} == {family.bare_name(name) for name in after}
    assert len({family.bare_name(name) for name in before}) == len(before)
    assert family.bare_name("language_model.lm_head.weight") == family.bare_name("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize("nested_anew", slow_but((False,), (False, True)))
def test_language_model(nested_anew: bool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    whole = save(folder, Gemma3ForConditionalGeneration)
    if nested_anew:
        as_transformers_5_nests_it(folder)
    bundle = export(folder, tmp_path / "bundle", funnel="none", task="text-generation")
    assert bundle.spec.task is Task.TEXT_GENERATION
    run = forward_of_bundle(bundle)
    for row in random_rows([1, 7, 13]):
        ids = torch.tensor([row]).clamp(max=VOCAB - 4)  # the last three mean images
        with torch.no_grad():
            want = whole(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        torch.testing.assert_close(run(ids, None), want, rtol=0, atol=2e-5 * float(want.abs().max()))
    assert compare(bundle, max_length=9).passed
    assert json.loads((bundle.path / "config.json").read_text())["model_type"] == "gemma3"


@pytest.mark.parametrize(
    "cls",
    [
        pytest.param(Gemma3ForConditionalGeneration, marks=LONG),
        slow(Gemma3ForSequenceClassification),
    ],
)
def test_with_a_funnel(cls: type[PreTrainedModel], tmp_path: Path) -> None:
    save(tmp_path / "checkpoint", cls)
    bundle = export(tmp_path / "checkpoint", tmp_path / "bundle", funnel=FunnelSpec.parse("2:6:2"))
    assert compare(bundle, max_length=9).passed


def test_a_dropped_layer_is_seen_behind_the_names(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    save(folder, Gemma3ForConditionalGeneration)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].update(num_hidden_layers=6, layer_types=config["text_config"]["layer_types"][:6])
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"(?s)does not use.*language_model\.model\.layers\.6"):
        export(folder, tmp_path / "bundle", funnel="none", task="text-generation")
