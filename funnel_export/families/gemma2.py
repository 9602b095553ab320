"""Gemma2: softcaps on scores and logits, four norms a layer, sliding and full attention in turn."""

from collections.abc import Mapping
from typing import Any, ClassVar

from funnel_export.families.architecture import (
    FULL,
    SLIDING,
    Activation,
    Architecture,
    Bool,
    Count,
    Epsilon,
    HeadDim,
    Layers,
    LayerType,
    Positive,
    TokenId,
    UniformRope,
    Vocabulary,
    Width,
    Window,
)
from funnel_export.families.base import Family
from funnel_export.families.rope import Length
from funnel_export.spec.choices import Task


class Gemma2Architecture(UniformRope):
    """A Gemma2's `config.json`; what it leaves out is as in `transformers.Gemma2Config`."""

    title: ClassVar[str] = "Gemma2"

    vocab_size: Vocabulary = 256000
    hidden_size: Width = 2304
    intermediate_size: Width = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: HeadDim = 256
    query_pre_attn_scalar: Width = 256
    hidden_activation: Activation = "gelu_pytorch_tanh"
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: Bool = False
    max_position_embeddings: Length = 8192
    sliding_window: Window | None = 4096
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0
    tie_word_embeddings: Bool = True
    pad_token_id: TokenId | None = 0

    @property
    def scale(self) -> float:
        """See `Architecture.scale`."""
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def attention_softcap(self) -> float | None:
        """See `Architecture.attention_softcap`."""
        return self.attn_logit_softcapping

    @property
    def logits_softcap(self) -> float | None:
        """See `Architecture.logits_softcap`."""
        return self.final_logit_softcapping

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
