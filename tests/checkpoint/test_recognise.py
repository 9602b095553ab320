"""Unsupported models are recognised by their config and tensors, and refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint.spoiled import configured, copied, renamed, retensor
from exported import Recipe
from torch import Tensor

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError
from funnel_export.families.gemma2 import Gemma2
from funnel_export.spec.choices import Task

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copied(tmp_path)


def refused(checkpoint: Path) -> dict[str, str]:
    """The parts of the error."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(checkpoint)
    return {"what": caught.value.what, **caught.value.details}


PREFIXES = {
    "base_model.model.": "merge_and_unload()",
    "pretrained_model.": "model.pretrained_model.save_pretrained(NEW_FOLDER)",
    "_orig_mod.": "model._orig_mod.save_pretrained(NEW_FOLDER)",
    "module.": "model.module.save_pretrained(NEW_FOLDER)",
    "module._orig_mod.": "model.module._orig_mod.save_pretrained(NEW_FOLDER)",
    "language_model.": "model.language_model.save_pretrained(NEW_FOLDER)",
    "student.": "model.student.save_pretrained(NEW_FOLDER)",
}


@pytest.mark.parametrize(
    ("prefix", "task"),
    [*((prefix, Task.TEXT_GENERATION) for prefix in PREFIXES), ("module.", Task.FEATURE_EXTRACTION)],
)
def test_a_prefix_before_all_names(prefix: str, task: Task, tmp_path: Path) -> None:
    checkpoint = copied(tmp_path, Recipe(task=task))
    renamed(checkpoint, lambda name: prefix + name)
    error = refused(checkpoint)
    assert repr(prefix) in error["what"]
    got, wanted = error["got"].split(", "), error["wanted"].split(", ")
    assert len(got) == 2
    assert got == [prefix + name for name in wanted]
    assert set(wanted) <= Checkpoint.open(Recipe(task=task).checkpoint()).tensors.keys()
    assert PREFIXES[prefix] in error["hint"]


def test_a_prefix_that_a_family_knows_is_accepted(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family may list names with a prefix, for models that are part of a larger one."""
    plain = Gemma2.stored_names
    monkeypatch.setattr(Gemma2, "stored_names", lambda _, p: (*plain(_, p), f"language_model.{p}"))
    renamed(checkpoint, lambda name: f"language_model.{name}")
    opened = Checkpoint.open(checkpoint)
    assert opened.find(f"{Q_PROJ}.weight") == opened.tensors[f"language_model.{Q_PROJ}.weight"]


def test_a_head_beside_the_prefix(checkpoint: Path) -> None:
    """TRL stores models with a value head like this."""

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"pretrained_model.{name}": t for name, t in tensors.items()} | {"v_head.summary.bias": torch.ones(1)}

    retensor(checkpoint, change)
    assert "'pretrained_model.'" in refused(checkpoint)["what"]


@pytest.mark.parametrize("part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"])
def test_a_wrapper_within_the_names(part: str, checkpoint: Path) -> None:
    """torch.compile, FSDP and checkpointing add such parts when single layers are wrapped."""
    renamed(checkpoint, lambda name: name.replace("layers.1.", f"layers.1.{part}."))
    error = refused(checkpoint)
    assert "wrapper" in error["what"]
    assert error["wanted"] == error["got"].replace(f"{part}.", "")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("model.embed_tokens", "token_embd").replace("model.layers", "blk"),
        lambda name: name.replace("model.embed_tokens", "embedder").replace("layers.", "layer_"),
    ],
    ids=["as in GGUF", "as in Flax"],
)
def test_names_of_another_format(rename: Callable[[str], str], checkpoint: Path) -> None:
    renamed(checkpoint, rename)
    error = refused(checkpoint)
    assert "not those of Hugging Face's Gemma2" in error["what"]
    assert len(error["got"].split(", ")) == len(error["wanted"].split(", ")) == 2


ADAPTED: dict[str, list[str]] = {
    "a head": ["score.modules_to_save.default.weight", "score.original_module.weight"],
    "LoRA": [f"{Q_PROJ}.lora_A.default.weight", f"{Q_PROJ}.lora_B.default.weight", f"{Q_PROJ}.base_layer.weight"],
    "LoRA of the embedding": ["model.embed_tokens.lora_embedding_A.default"],
    "DoRA": [f"{Q_PROJ}.lora_magnitude_vector.default.weight"],
    "a prefix too": [f"base_model.model.{Q_PROJ}.lora_A.weight"],
}


@pytest.mark.parametrize("name", ADAPTED)
def test_adapters_in_the_weights(name: str, checkpoint: Path) -> None:
    retensor(checkpoint, lambda tensors: tensors | {name: torch.ones(2, 2) for name in ADAPTED[name]})
    error = refused(checkpoint)
    assert "adapter that is not merged" in error["what"]
    assert set(error["got"].split(", ")) == set(ADAPTED[name])
    assert "merge_and_unload().save_pretrained" in error["hint"]


QUANTIZED: dict[str, dict[str, torch.dtype]] = {
    "GPTQ": dict.fromkeys(("qweight", "qzeros", "g_idx"), torch.int32) | {"scales": torch.float16},
    "AWQ": {"qweight": torch.int32, "scales": torch.float16},
    "bitsandbytes, 4 bits": {"weight.absmax": torch.uint8, "weight.quant_map": torch.float32},
    "bitsandbytes, its state": {"weight.quant_state.bitsandbytes__nf4": torch.uint8},
    "bitsandbytes, 8 bits": {"SCB": torch.float32, "weight_format": torch.uint8},
    "compressed-tensors": {"weight_packed": torch.int32, "weight_scale": torch.bfloat16},
    "FP8": {"weight_scale_inv": torch.float32},
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights_without_quantization_in_the_config(name: str, checkpoint: Path) -> None:
    added = {f"{Q_PROJ}.{part}": torch.ones(2, dtype=dtype) for part, dtype in QUANTIZED[name].items()}
    retensor(checkpoint, lambda tensors: tensors | added)
    error = refused(checkpoint)
    assert error["what"] == "quantized checkpoints are not supported"
    assert set(error["got"].split(", ")) <= added.keys()
    assert "dequantize()" in error["hint"]


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
def test_a_config_of_quantized_weights(key: str, checkpoint: Path) -> None:
    configured(checkpoint, **{key: {"bits": 4, "group_size": 64}})
    assert refused(checkpoint)["got"] == f"{key} in config.json"


@pytest.mark.parametrize(
    "code",
    [
        {"AutoModelForCausalLM": "modeling_gemma2.Gemma2ForCausalLM"},
        {"AutoConfig": "configuration.Gemma2Config", "AutoTokenizer": ["tokenization.T", None]},
        "modeling.Gemma2Model",
        ["AutoModel"],
    ],
    ids=str,
)
def test_custom_code_of_a_model_is_refused(code: Any, checkpoint: Path) -> None:
    configured(checkpoint, auto_map=code)
    error = refused(checkpoint)
    assert "custom code" in error["what"]
    assert "remove auto_map" in error["hint"]


@pytest.mark.parametrize(
    "code", [None, {}, {"AutoTokenizer": ["tokenization.T", None], "AutoProcessor": "p.P"}], ids=str
)
def test_custom_code_of_a_tokenizer_is_accepted(code: Any, checkpoint: Path) -> None:
    configured(checkpoint, auto_map=code)
    Checkpoint.open(checkpoint)


def test_attention_in_both_directions(checkpoint: Path) -> None:
    configured(checkpoint, use_bidirectional_attention=True)
    error = refused(checkpoint)
    assert error["got"].endswith(
        "use_bidirectional_attention is true, and only causal attention is supported for Gemma2"
    )
    assert "funnel" not in str(error)
