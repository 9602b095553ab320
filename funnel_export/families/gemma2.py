"""Gemma2: softcaps on scores and logits, four norms a layer, sliding and full attention in turn."""

from collections.abc import Mapping
from typing import Any, ClassVar

from funnel_export.families.architecture import (
    FULL,
    SLIDING,
    Architecture,
    Count,
    Layers,
    LayerType,
    Positive,
    ScaledArchitecture,
    UniformRope,
    Vocabulary,
    Width,
)
from funnel_export.families.base import Family
from funnel_export.families.rope import Length
from funnel_export.spec.choices import Task


class Gemma2Architecture(ScaledArchitecture, UniformRope):
    """A Gemma2's `config.json`; what it leaves out is as in `transformers.Gemma2Config`."""

    title: ClassVar[str] = "Gemma2"

    vocab_size: Vocabulary = 256000
    hidden_size: Width = 2304
    intermediate_size: Width = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    max_position_embeddings: Length = 8192
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0

    @property
    def attention_softcap(self) -> float | None:
        """See `Architecture.attention_softcap`."""
        return self.attn_logit_softcapping

    @classmethod
    def default_layer_types(cls, num_layers: int, config: Mapping[str, Any]) -> list[LayerType]:  # noqa: ARG003
        """Even layers slide."""
        return [FULL if index % 2 else SLIDING for index in range(num_layers)]


class Gemma2(Family):
    """The family of `Gemma2ForCausalLM` and its siblings."""

    model_type: ClassVar[str] = "gemma2"
    title: ClassVar[str] = "Gemma2"
    schema: ClassVar[type[Architecture]] = Gemma2Architecture
    config_name: ClassVar[str] = "Gemma2Config"
    class_names: ClassVar[Mapping[Task, str]] = {
        Task.FEATURE_EXTRACTION: "Gemma2Model",
        Task.TEXT_GENERATION: "Gemma2ForCausalLM",
        Task.TEXT_CLASSIFICATION: "Gemma2ForSequenceClassification",
        Task.TOKEN_CLASSIFICATION: "Gemma2ForTokenClassification",
    }
    norms: ClassVar[int] = 4
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 6,
        "max_position_embeddings": 128,
        "num_labels": 3,
    }


GEMMA2 = Gemma2()
