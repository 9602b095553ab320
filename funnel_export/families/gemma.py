"""Gemma, the first: no softcaps, two norms a layer, full attention everywhere."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import model_validator

from funnel_export.families.architecture import (
    FULL,
    Activation,
    Architecture,
    Count,
    Layers,
    LayerType,
    UniformRope,
    Vocabulary,
    Width,
    Window,
)
from funnel_export.families.base import Family
from funnel_export.families.rope import Length
from funnel_export.spec.choices import Task


class GemmaArchitecture(UniformRope):
    """A Gemma's `config.json`; what it leaves out is as in `transformers.GemmaConfig`."""

    title: ClassVar[str] = "Gemma"
    slides: ClassVar[bool] = False

    vocab_size: Vocabulary = 256000
    hidden_size: Width = 3072
    intermediate_size: Width = 24576
    num_hidden_layers: Layers = 28
    num_attention_heads: Count = 16
    num_key_value_heads: Count = 16
    hidden_act: Activation = "gelu_pytorch_tanh"
    """Hugging Face reads `gelu` as `gelu_pytorch_tanh`, which the first checkpoints meant."""
    max_position_embeddings: Length = 8192
    sliding_window: Window | None = None

    @model_validator(mode="after")
    def _has_full_attention(self) -> Self:
        if set(self.layer_types) != {FULL}:
            raise ValueError("layer_types: Hugging Face's Gemma has full attention in every layer")
        return self

    def facts(self) -> dict[str, Any]:
        """See `Architecture.facts`."""
        act = "gelu_pytorch_tanh" if self.hidden_act == "gelu" else self.hidden_act
        return super().facts() | {"hidden_act": act}

    @classmethod
    def default_layer_types(cls, num_layers: int, config: Mapping[str, Any]) -> list[LayerType]:  # noqa: ARG003
        """No layer slides."""
        return [FULL] * num_layers


class Gemma(Family):
    """The family of `GemmaForCausalLM` and its siblings."""

    model_type: ClassVar[str] = "gemma"
    title: ClassVar[str] = "Gemma"
    schema: ClassVar[type[Architecture]] = GemmaArchitecture
    config_name: ClassVar[str] = "GemmaConfig"
    class_names: ClassVar[Mapping[Task, str]] = {
        Task.FEATURE_EXTRACTION: "GemmaModel",
        Task.TEXT_GENERATION: "GemmaForCausalLM",
        Task.TEXT_CLASSIFICATION: "GemmaForSequenceClassification",
        Task.TOKEN_CLASSIFICATION: "GemmaForTokenClassification",
    }
    norms: ClassVar[int] = 2
    contract_prefix: ClassVar[str] = "gemma-"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 128,
        "num_labels": 3,
    }

    def layer_type_of(self, config: Any, layer: int) -> str:  # noqa: ARG002 - its config has no layer types
        """See `Family.layer_type_of`."""
        return FULL


GEMMA = Gemma()
