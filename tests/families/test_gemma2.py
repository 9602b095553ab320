"""The numbers read from config.json are those that transformers reads."""

import json

import pytest
from models import tiny_config
from transformers import Gemma2Config

from funnel_export.errors import CheckpointError
from funnel_export.families.gemma2 import Gemma2Architecture

OLD = """{"architectures": ["Gemma2ForCausalLM"], "attn_logit_softcapping": 50.0, "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3584, "model_type": "gemma2",
    "intermediate_size": 14336, "num_attention_heads": 16, "num_hidden_layers": 42, "num_key_value_heads": 8,
    "rope_theta": 10000.0, "torch_dtype": "bfloat16", "transformers_version": "4.42.0.dev0"}"""
"""As transformers 4.42 wrote it: no layer types, no tied embeddings, defaults left out."""

UNLIKE = {"id2label", "labels", "architectures", "rope_parameters", "rope_scaling", "rope_theta", "per_layer_config"}
"""What transformers rewrites while reading."""


@pytest.mark.parametrize(
    "config", [{}, json.loads(OLD), tiny_config(num_labels=5).to_dict()], ids=["defaults", "4.42", "tiny"]
)
def test_as_transformers_reads_it(config: dict[str, object]) -> None:
    ours, theirs = Gemma2Architecture.of(config), Gemma2Config.from_dict(dict(config))
    for name in set(Gemma2Architecture.model_fields) - UNLIKE:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.num_labels == theirs.num_labels


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": "wide"},
        {"hidden_size": 0},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": 10**9},
        {"head_dim": None},
        {"sliding_window": 0},
        {"attn_logit_softcapping": 0},
        {"layer_types": ["full_attention"]},
        {"layer_types": ["diagonal"] * 26},
    ],
    ids=str,
)
def test_what_cannot_be_is_named(wrong: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="does not describe a Gemma2"):
        Gemma2Architecture.of(wrong)
