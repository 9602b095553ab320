"""Gemma 3's text model: norms on queries and keys, two RoPE bases, five sliding layers before each full one."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from funnel_export.errors import CheckpointError
from funnel_export.families.architecture import (
    FULL,
    SLIDING,
    Architecture,
    Bool,
    Count,
    Layers,
    LayerType,
    ScaledArchitecture,
    Vocabulary,
    Width,
)
from funnel_export.families.base import Family
from funnel_export.families.rope import Length, Rope, Theta
from funnel_export.spec.choices import Task


class Gemma3Architecture(ScaledArchitecture):
    """A Gemma 3 text model's `config.json`; what it leaves out is as in `transformers.Gemma3TextConfig`."""

    title: ClassVar[str] = "Gemma3Text"
    may_be_bidirectional: ClassVar[bool] = True

    vocab_size: Vocabulary = 262208
    hidden_size: Width = 2304
    intermediate_size: Width = 9216
    num_hidden_layers: Layers = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    max_position_embeddings: Length = 131072
    rope_parameters: dict[LayerType, Rope | None] | None = None
    rope_scaling: Rope | None = None
    """In older files: RoPE of the layers with full attention only."""
    rope_theta: Theta = 1e6
    """In older files: the RoPE base of layers with full attention."""
    rope_local_base_freq: Theta = 1e4
    """In older files: the RoPE base of sliding layers."""
    sliding_window_pattern: Annotated[int, Field(gt=0, le=1 << 8, strict=True)] = 6
    """In older files: every layer whose number is a multiple of this has full attention."""
    use_bidirectional_attention: Bool | None = False
    attn_logit_softcapping: None = None
    """Hugging Face's Gemma 3 does not compute it."""

    @property
    def window(self) -> int | None:
        """Half of `sliding_window`, and the token itself, where attention has two sides."""
        if self.sliding_window is None or not self.bidirectional:
            return self.sliding_window
        return self.sliding_window // 2 + 1

    def rope(self, layer_type: LayerType) -> Rope:
        """See `Architecture.rope`."""
        given = (self.rope_parameters or {}).get(layer_type) or Rope()
        if layer_type == SLIDING:
            return given.with_theta(self.rope_local_base_freq)
        if self.rope_scaling is not None:
            given = Rope(**given.model_dump(exclude_unset=True) | self.rope_scaling.model_dump(exclude_unset=True))
        return given.with_theta(self.rope_theta)

    @classmethod
    def default_layer_types(cls, num_layers: int, config: Mapping[str, Any]) -> list[LayerType]:
        """Every sixth layer has full attention, unless an older file names another number."""
        every = config.get("sliding_window_pattern", cls.model_fields["sliding_window_pattern"].default)
        every = every if isinstance(every, int) and every > 0 else 1  # an invalid one is named with its field
        return [SLIDING if (index + 1) % every else FULL for index in range(num_layers)]


class Gemma3Text(Family):
    """The family of `Gemma3ForCausalLM` and `Gemma3TextModel`; Hugging Face has no token classifier of it."""

    model_type: ClassVar[str] = "gemma3_text"
    title: ClassVar[str] = "Gemma3Text"
    schema: ClassVar[type[Architecture]] = Gemma3Architecture
    config_name: ClassVar[str] = "Gemma3TextConfig"
    class_names: ClassVar[Mapping[Task, str]] = {
        Task.FEATURE_EXTRACTION: "Gemma3TextModel",
        Task.TEXT_GENERATION: "Gemma3ForCausalLM",
        Task.TEXT_CLASSIFICATION: "Gemma3TextForSequenceClassification",
    }
    norms: ClassVar[int] = 6
    contract_prefix: ClassVar[str] = "gemma3-"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 7,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 12,
        "sliding_window": 6,
        "max_position_embeddings": 128,
        "num_labels": 3,
    }

    def angles(self, base: Any, x: Any, positions: Any) -> Mapping[str, tuple[Any, Any]]:
        """Sliding and full layers have RoPE bases of their own."""
        return {kind: base.rotary_emb(x, positions, kind) for kind in sorted(set(base.config.layer_types))}


_OF_THE_WHOLE = frozenset({"architectures", "id2label", "num_labels"})
"""Keys that count at the top of a multimodal `config.json`, and not in its `text_config`."""


class Gemma3(Gemma3Text):
    """The text part of `Gemma3ForConditionalGeneration`: its tensors and its config are nested; images are left out."""

    model_type: ClassVar[str] = "gemma3"
    title: ClassVar[str] = "Gemma3"
    nested: ClassVar[bool] = True
    other_classes: ClassVar[Mapping[str, Task]] = {
        "Gemma3ForConditionalGeneration": Task.TEXT_GENERATION,
        "Gemma3ForSequenceClassification": Task.TEXT_CLASSIFICATION,
        "Gemma3Model": Task.FEATURE_EXTRACTION,
    }
    other_parts: ClassVar[tuple[str, ...]] = tuple(
        f"{prefix}{part}." for prefix in ("", "model.") for part in ("vision_tower", "multi_modal_projector")
    )

    def text_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Family.text_config`."""
        nested = config.get("text_config")
        if not isinstance(nested, Mapping):
            raise CheckpointError(
                "config.json of a Gemma3 lacks its text model",
                got=f"text_config {nested!r}",
                wanted="an object of a Gemma3TextConfig's values",
            )
        own = {key: value for key, value in nested.items() if key not in _OF_THE_WHOLE}
        return own | {key: config[key] for key in _OF_THE_WHOLE & config.keys()}

    def load_options(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """See `Family.load_options`: what stored names begin with, and the labels, which are the whole model's."""
        names = {r"^(model\.)?language_model\.(model\.)?(?!lm_head)": "model.", r"^language_model\.lm_head": "lm_head"}
        return {"key_mapping": names, "num_labels": self.read_architecture(config).num_labels}

    def stored_names(self, parameter: str) -> tuple[str, ...]:
        """See `Family.stored_names`; transformers 4 and 5 nest the text model in different places."""
        bare = parameter.removeprefix("model.")
        head = parameter == self.head or parameter.startswith(self.task_heads)
        nested = [f"language_model.{bare}"] if head else []
        nested += [] if head else [f"{place}.{bare}" for place in ("language_model.model", "model.language_model")]
        return (*nested, *super().stored_names(parameter))


GEMMA3_TEXT = Gemma3Text()
GEMMA3 = Gemma3()
