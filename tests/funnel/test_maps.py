"""Recovery `linear`: its maps in a model, in a checkpoint, and what they compute at first."""

from pathlib import Path
from typing import Any

import pytest
import torch
from models import base_of, random_rows, save_tiny_checkpoint, tiny_model, with_random_maps
from properties import alone, assert_close, forward_of, funnelled
from safetensors.torch import load_file
from torch import nn
from transformers import Gemma2ForCausalLM, PreTrainedModel

from funnel_export import FunnelSpec, apply_funnel, export, remove_funnel
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.funnel.maps import maps_of

SLOTS, DROPPED = (FunnelSpec.parse(text, recovery="linear") for text in ("1:3:2", "1:3:drop"))
[ROW] = random_rows([12])


def load(folder: Path) -> PreTrainedModel:
    return Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("spec", [SLOTS, DROPPED], ids=str)
def test_new_maps_equal_delta(spec: FunnelSpec) -> None:
    linear, delta = (apply_funnel(tiny_model(), each) for each in (spec, FunnelSpec.parse(str(spec))))
    assert_close(alone(forward_of(linear))(ROW), alone(forward_of(delta))(ROW), 0.0, "new maps")


def test_dropped_layers_are_as_if_they_were_not_there() -> None:
    shorter = tiny_model()
    shorter.model.layers = nn.ModuleList(shorter.model.layers[index] for index in (0, 3))
    shorter.config.layer_types = [shorter.config.layer_types[index] for index in (0, 3)]
    shorter.config.num_hidden_layers = 2
    dropped = apply_funnel(tiny_model(), FunnelSpec.parse("1:3:drop"))
    assert_close(alone(forward_of(dropped))(ROW), alone(forward_of(shorter))(ROW), 1e-5, "dropped layers")


@pytest.mark.parametrize("spec", [SLOTS, DROPPED], ids=str)
def test_maps_are_saved_and_read_back(spec: FunnelSpec, tmp_path: Path) -> None:
    model = funnelled(Gemma2ForCausalLM, spec, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    assert any(name.startswith("model.funnel.") for name in load_file(tmp_path / "model.safetensors"))
    again = apply_funnel(load(tmp_path))
    assert_close(alone(forward_of(again))(ROW), alone(forward_of(model))(ROW), 0.0, "read back")
    assert maps_of(base_of(remove_funnel(again))) is None


def test_maps_of_one_stride_serve_another(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, maps=SLOTS)
    weights = load_file(tmp_path / "model.safetensors")
    maps: Any = maps_of(base_of(apply_funnel(load(tmp_path), FunnelSpec.parse("1:3:4", recovery="linear"))))
    assert maps.stride == 4
    assert torch.equal(maps.stale.weight, weights["model.funnel.stale.weight"])


@pytest.mark.parametrize("text", ["1:4:2", "1:3:drop"])
def test_maps_of_another_funnel_are_refused(text: str, tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", maps=SLOTS)
    spec = FunnelSpec.parse(text, recovery="linear")
    with pytest.raises(SpecError, match="made for another funnel"):
        apply_funnel(load(checkpoint), spec)
    with pytest.raises(SpecError, match="made for another funnel"):
        export(checkpoint, tmp_path / "bundle", funnel=spec)


def test_a_checkpoint_without_maps_is_refused(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(SpecError, match="no maps for recovery linear"):
        export(checkpoint, tmp_path / "bundle", funnel=SLOTS)


def test_lost_weights_of_maps_are_refused_and_the_model_stays(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path, maps=SLOTS)
    model = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_tiny_checkpoint(tmp_path / "other").joinpath("model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"funnel\.closed\.weight"):
        apply_funnel(model)
    assert maps_of(base_of(model)) is None
    assert "forward" not in vars(base_of(model))


def test_a_dense_export_leaves_maps_out(tmp_path: Path) -> None:
    checkpoint = save_tiny_checkpoint(tmp_path / "checkpoint", maps=SLOTS)
    bundle = export(checkpoint, tmp_path / "bundle", funnel=None, task="text-generation")
    assert bundle.spec.funnel is None


def test_maps_can_be_trained() -> None:
    model = with_random_maps(apply_funnel(tiny_model(), SLOTS)).train()
    ids = torch.tensor([ROW])
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    maps: Any = maps_of(base_of(model))
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in maps.parameters())
