"""Gemma2: softcaps on scores and logits, four norms a layer, sliding and full attention in turn."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

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
    Vocabulary,
    Width,
    Window,
)
from funnel_export.families.base import Family, LayerFacts
from funnel_export.families.rope import Length, Rope, Theta
from funnel_export.spec.choices import Task


class Gemma2Architecture(Architecture):
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
    use_bidirectional_attention: Bool | None = None
    max_position_embeddings: Length = 8192
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    rope_theta: Theta = 10000.0
    sliding_window: Window | None = 4096
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0
    tie_word_embeddings: Bool = True
    pad_token_id: TokenId | None = 0

    @model_validator(mode="after")
    def _has_a_window(self) -> Self:
        if self.sliding_window is None:
            raise ValueError("sliding_window is null: Hugging Face's Gemma2 needs a number, even where no layer slides")
        return self

    @model_validator(mode="after")
    def _is_causal(self) -> Self:
        if self.use_bidirectional_attention:
            raise ValueError("use_bidirectional_attention is true, and only causal attention is supported")
        return self

    @classmethod
    def default_layer_types(cls, num_layers: int) -> list[LayerType]:
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

    def make_buffers(self, base: Any, config: Any, dtype: Any) -> None:
        """The inverse frequencies of RoPE, and the embedding's scale, which is rounded to the model's dtype."""
        import torch
        from transformers.models.gemma2.modeling_gemma2 import Gemma2RotaryEmbedding

        base.rotary_emb = Gemma2RotaryEmbedding(config)
        base.embed_tokens.embed_scale = torch.tensor(base.embed_tokens.scalar_embed_scale, dtype=dtype)

    def angles(self, base: Any, x: Any, positions: Any) -> Mapping[str, tuple[Any, Any]]:
        """The same for all layers."""
        return dict.fromkeys((SLIDING, FULL), base.rotary_emb(x, positions))

    def layer_facts(self, architecture: Gemma2Architecture, layer: int) -> LayerFacts:
        """See `Family.layer_facts`."""
        slides = architecture.layer_types[layer] == SLIDING
        return LayerFacts(
            sliding_window=architecture.sliding_window if slides else None,
            softcap=architecture.attn_logit_softcapping,
        )

    def logits_softcap(self, architecture: Gemma2Architecture) -> float | None:
        """See `Family.logits_softcap`."""
        return architecture.final_logit_softcapping


GEMMA2 = Gemma2()
