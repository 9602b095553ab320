"""The numbers read from config.json are those that transformers reads, for every family."""

import copy
import json
from typing import Any

import pytest
import torch
from models import TINY, tiny_config
from transformers import Gemma2Config, Gemma3Config, Gemma3TextConfig, GemmaConfig, PreTrainedConfig, VaultGemmaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.gemma2.modeling_gemma2 import Gemma2RotaryEmbedding
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding

from funnel_export.errors import CheckpointError
from funnel_export.families.registry import get_family

OLD_GEMMA: dict[str, Any] = {
    "architectures": ["GemmaForCausalLM"],
    "hidden_act": "gelu",
    "hidden_activation": None,
    "head_dim": 256,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "model_type": "gemma",
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
}
OLD_GEMMA2: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3584,
    "model_type": "gemma2",
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.42.0.dev0",
}
"""As transformers 4.42 wrote it: no layer types, no tied embeddings, defaults left out."""
REWRITTEN = {
    "id2label", "labels", "architectures", "rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq",
    "per_layer_config", "sliding_window_pattern", "sliding_window", "layer_types", "hidden_act",
}  # fmt: skip
"""What transformers rewrites while reading; what of it a graph depends on is compared beside."""

CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "gemma": (GemmaConfig, {}),
    "gemma of 4.38": (GemmaConfig, OLD_GEMMA),
    "gemma2": (Gemma2Config, {}),
    "gemma2 of 4.42": (Gemma2Config, OLD_GEMMA2),
    "gemma2 tiny": (Gemma2Config, tiny_config(num_labels=5).to_dict()),
    "gemma2 with old RoPE": (Gemma2Config, {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}}),
    "vaultgemma": (VaultGemmaConfig, {}),
    "gemma3": (Gemma3TextConfig, {}),
    "gemma3 of 4.50": (
        Gemma3TextConfig,
        {
            "rope_theta": 2e6,
            "rope_local_base_freq": 5e3,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 4,
            "num_hidden_layers": 9,
            "sliding_window": 1024,
        },
    ),
    "gemma3 of both sides": (Gemma3TextConfig, {"use_bidirectional_attention": True, "sliding_window": 512}),
    "gemma3 tiny": (Gemma3TextConfig, TINY[Gemma3TextConfig]),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_as_transformers_reads_it(name: str) -> None:
    kind, values = CONFIGS[name]
    family = get_family(kind.model_type)
    ours, theirs = family.read_architecture(values), kind.from_dict(copy.deepcopy(values))
    for field in set(type(ours).model_fields) - REWRITTEN:
        assert getattr(ours, field) == getattr(theirs, field, getattr(ours, field)), field
    assert ours.num_labels == theirs.num_labels
    layers = range(ours.num_hidden_layers)
    assert [*ours.layer_types] == [family.layer_type_of(theirs, layer) for layer in layers]
    for layer in layers:
        kind_of_layer = ours.layer_types[layer]
        facts = family.layer_facts(ours, layer)
        assert facts.sliding_window == family.window_of(theirs, kind_of_layer)
        assert facts.causal is not family.is_bidirectional(theirs)
        frequencies = facts.rope.frequencies(ours.head_dim)
        assert frequencies is not None
        torch.testing.assert_close(torch.tensor(frequencies), _frequencies(theirs, kind_of_layer), rtol=1e-5, atol=0)


def _frequencies(config: PreTrainedConfig, layer_type: str) -> torch.Tensor:
    if isinstance(config, Gemma3TextConfig):
        return getattr(Gemma3RotaryEmbedding(config), f"{layer_type}_inv_freq")
    rope: Any = Gemma2RotaryEmbedding(config)  # the other families' is the same
    return rope.inv_freq


@pytest.mark.parametrize("name", CONFIGS)
def test_the_facts_stay_when_transformers_writes_it_again(name: str) -> None:
    kind, values = CONFIGS[name]
    family = get_family(kind.model_type)
    again = json.loads(kind.from_dict(copy.deepcopy(values)).to_json_string(use_diff=False))
    facts = family.read_architecture(values).facts()
    assert facts == family.read_architecture(again).facts()
    wider = family.read_architecture(again | {"rms_norm_eps": 0.5}).facts()
    assert {key for key in facts if facts[key] != wider[key]} == {"rms_norm_eps"}


def test_what_a_graph_cannot_promise_is_left_to_hugging_face() -> None:
    """Frequencies of yarn are computed by transformers alone: the audit does not judge them."""
    assert "yarn" in ROPE_INIT_FUNCTIONS
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}
    facts = get_family("gemma2").layer_facts(get_family("gemma2").read_architecture({"rope_parameters": rope}), 0)
    assert facts.rope.frequencies(8) is None


@pytest.mark.parametrize(
    ("model_type", "wrong", "message"),
    [
        ("gemma", {"layer_types": ["sliding_attention"] * 28}, "full attention in every layer"),
        ("gemma", {"use_bidirectional_attention": True}, "only causal attention is supported for Gemma"),
        ("gemma2", {"use_bidirectional_attention": True}, "only causal attention is supported for Gemma2"),
        ("gemma2", {"hidden_size": "wide"}, "hidden_size"),
        ("gemma2", {"hidden_size": 0}, "hidden_size"),
        ("gemma2", {"num_hidden_layers": -1}, "num_hidden_layers"),
        ("gemma2", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("gemma2", {"head_dim": None}, "head_dim"),
        ("gemma2", {"sliding_window": 0}, "sliding_window"),
        ("gemma2", {"attn_logit_softcapping": 0}, "attn_logit_softcapping"),
        ("gemma2", {"layer_types": ["full_attention"]}, "1 layer_types for 26 layers"),
        ("gemma2", {"layer_types": ["diagonal"] * 26}, "layer_types"),
        ("vaultgemma", {"sliding_window": None}, "sliding_window is null: Hugging Face's VaultGemma"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping: Input should be None"),
        ("gemma3_text", {"rope_parameters": {"rope_theta": 1e4}}, "rope_parameters"),
        ("gemma3_text", {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "depends on the length"),
        ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern: Input should be greater than 0"),
        ("gemma3", {}, "lacks its text model"),
        ("gemma3", {"text_config": {"hidden_size": -1}}, "hidden_size"),
    ],
)
def test_invalid_values_are_named(model_type: str, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        get_family(model_type).read_architecture(wrong)


def test_the_text_part_of_a_multimodal_config() -> None:
    text = {"num_hidden_layers": 3, "hidden_size": 640, "num_attention_heads": 4}
    config = Gemma3Config(text_config=text).to_dict() | {"architectures": ["Gemma3ForConditionalGeneration"]}
    ours = get_family("gemma3").read_architecture(config)
    assert (ours.num_hidden_layers, ours.hidden_size) == (3, 640)
    assert ours.architectures == ["Gemma3ForConditionalGeneration"]


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("gemma3n", "share keys and values"),
        ("gemma3n_text", "share keys and values"),
        ("gemma4", "different shapes"),
        ("gemma4_text", "different shapes"),
        ("paligemma", "images"),
        ("recurrent_gemma", "recurrent"),
        ("t5gemma", "encoder"),
        ("t5gemma2", "encoder"),
    ],
)
def test_relatives_are_refused_by_name(model_type: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=f"(?s)not supported: .*{reason}.*got: model_type '{model_type}'"):
        get_family(model_type)


def test_a_stranger_is_refused_without_a_reason() -> None:
    with pytest.raises(CheckpointError, match="this kind of model is not supported\n"):
        get_family("llama")
