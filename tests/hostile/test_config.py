"""Values of config.json that a Gemma2 cannot have are refused by name before anything is built from them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from exported import Recipe
from fuzz.watch import limit

from funnel_export import export
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.exporter.skeleton import build_skeleton
from funnel_export.spec.export import ExportSpec

ROPE = {"rope_theta": 10000.0}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"num_hidden_layers": 10_000_000, "layer_types": None}, "num_hidden_layers: Input should be less than"),
    ({"hidden_size": 1 << 24}, "hidden_size: Input should be less than"),
    ({"vocab_size": 61.5}, "vocab_size: Input should be a valid integer"),
    ({"num_key_value_heads": 3}, "num_key_value_heads 3 should be multiples"),
    ({"head_dim": 7}, "head_dim: Input should be a multiple of 2"),
    ({"hidden_activation": "nonesuch"}, "hidden_activation: Input should be 'gelu"),
    ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar: Input should be greater than 0"),
    ({"query_pre_attn_scalar": -3}, "query_pre_attn_scalar: Input should be greater than 0"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps: Input should be greater than 0"),
    ({"attn_logit_softcapping": "2.5"}, "attn_logit_softcapping: Input should be a valid number"),
    ({"attn_logit_softcapping": 10**400}, "attn_logit_softcapping: Input should be a valid number"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: Input should be a valid boolean"),
    ({"pad_token_id": 61}, "pad_token_id 61 among 61 tokens"),
    ({"pad_token_id": -62}, "pad_token_id: Input should be greater than or equal to -1"),
    ({"num_labels": 10**9, "id2label": None}, "num_labels: Input should be less than"),
    ({"id2label": {}}, "id2label: Dictionary should have at least 1 item"),
    ({"architectures": 5}, "architectures: Input should be a valid list"),
    ({"architectures": [["Gemma2ForCausalLM"]]}, "architectures.0: Input should be a valid string"),
    ({"layer_types": []}, "0 layer_types for 4 layers"),
    ({"per_layer_config": {"0": {"hidden_size": 3}}}, "per_layer_config: Input should be None"),
    ({"rope_parameters": [1]}, "rope_parameters: Input should be a valid dictionary"),
    ({"rope_parameters": ROPE | {"rope_type": None}}, "rope_parameters.rope_type"),
    ({"rope_parameters": ROPE | {"rope_type": "nonesuch"}}, "should be default, linear, llama3, yarn"),
    ({"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}}, "depends on the length of the text"),
    ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "depends on the length of the text"),
    ({"rope_parameters": {"rope_theta": 0}}, "rope_theta: Input should be greater than 1"),
    ({"rope_parameters": ROPE | {"rope_type": "yarn", "factor": 0}}, "factor: Input should be greater than"),
    ({"rope_parameters": ROPE | {"rope_type": "linear", "partial_rotary_factor": 0.5}}, "Extra inputs"),
    (
        {"rope_scaling": {"rope_type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
        "high_freq_factor should be greater",
    ),
]

TEXTS: dict[str, tuple[bytes, str]] = {
    "deep": (b'{"model_type": "gemma2", "x": ' + b"[" * 100_000, "recursion limit"),
    "NaN": (b'{"model_type": "gemma2", "x": NaN}', "is not JSON"),
    "infinite": (b'{"model_type": "gemma2", "x": [1e999]}', "is not JSON"),
    "5000 digits": (b'{"model_type": "gemma2", "x": ' + b"9" * 5000 + b"}", "number out of range"),
    "not UTF-8": (b'{"model_type": "gemma2\xff"}', "is not JSON"),
    "half a character": (b'{"model_type": "gemma2", "x": "\\ud800"}', "is not JSON"),
    "a key that is no string": (b'{"model_type": "gemma2", 1: 2}', "key must be a string"),
    "empty": (b"", "is not JSON"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")


def change(folder: Path, values: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(("values", "message"), WRONG, ids=lambda value: str(value)[:60])
def test_wrong_values(values: dict[str, Any], message: str, folder: Path) -> None:
    change(folder, values)
    with pytest.raises(CheckpointError, match=r"config\.json does not describe a Gemma2") as caught, limit():
        Checkpoint.open(folder)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_json(name: str, folder: Path) -> None:
    content, message = TEXTS[name]
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_keys_that_would_hide_a_method_reach_no_model(folder: Path) -> None:
    """Hugging Face sets every key that it does not know as an attribute of its config."""
    change(folder, {"to_dict": 5, "validate_architecture": 5, "__class__": 5, "dtype": "load", "return_dict": False})
    opened = Checkpoint.open(folder)
    config = opened.family.read_config(opened.config)
    assert config.to_dict()["hidden_size"] == 40
    assert config.return_dict is True
    build_skeleton(opened.family, opened.config, ExportSpec(task=opened.task, dtype=opened.dtype))


@pytest.mark.parametrize("stride", [1 << 21, 10**30, 2.0, True, "2", None])
def test_funnels_in_config(stride: object, folder: Path) -> None:
    change(folder, {"funnel": {"pool_layer": 1, "recover_layer": 3, "stride": stride}})
    with pytest.raises(SpecError, match="stride"):
        Checkpoint.open(folder).funnel  # noqa: B018


def test_more_layers_than_weights_are_found_before_tracing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.exporter.build.trace", None)  # to call it would raise a TypeError
    change(folder, {"num_hidden_layers": 12, "layer_types": None, "intermediate_size": 65})
    with pytest.raises(CheckpointError, match=r"another shape(.|\n)*lacks a weight(.|\n)*and \d+ more") as caught:
        export(folder, folder.parent / "out", funnel="1:3:2", task="text-generation")
    assert "[65, 40]" in str(caught.value)
    assert [path.name for path in folder.parent.iterdir()] == ["checkpoint"]
