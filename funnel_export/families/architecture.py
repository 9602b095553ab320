"""What a `config.json` says, checked without transformers: the fields that all families have."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from funnel_export.errors import CheckpointError, describe_invalid
from funnel_export.families.rope import Length, Rope, Theta

Width = Annotated[int, Field(gt=0, le=1 << 20, strict=True)]
Count = Annotated[int, Field(gt=0, le=1 << 12, strict=True)]
Layers = Annotated[int, Field(gt=0, le=1 << 8, strict=True)]
Vocabulary = Annotated[int, Field(gt=0, le=1 << 24, strict=True)]
Window = Annotated[int, Field(gt=0, le=1 << 24, strict=True)]
HeadDim = Annotated[int, Field(gt=0, le=1 << 12, multiple_of=2, strict=True)]
Epsilon = Annotated[float, Field(gt=0, le=1, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Bool = Annotated[bool, Field(strict=True)]
TokenId = Annotated[int, Field(ge=-1, strict=True)]
"""-1 is no token: some configs say so where there is no padding."""
LayerType = Literal["sliding_attention", "full_attention"]
Activation = Literal["gelu_pytorch_tanh", "gelu", "gelu_new", "silu", "relu"]

SLIDING: LayerType = "sliding_attention"
FULL: LayerType = "full_attention"
NO_FACTS = frozenset(
    {
        *("architectures", "id2label", "labels", "pad_token_id", "bos_token_id"),
        *("rope_parameters", "rope_scaling", "rope_theta", "rope_local_base_freq", "sliding_window_pattern"),
    }
)
"""Fields that `Architecture.facts` leaves out: hidden states do not depend on them, or files write them differently."""


class Architecture(BaseModel, ABC):
    """What a `config.json` says, checked without transformers: every value that anything computes with.

    The defaults are those that all of Hugging Face's configs share. A family's schema adds its own fields and defaults.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: ClassVar[str]
    """Name of such a model in messages."""
    slides: ClassVar[bool] = True
    """Whether Hugging Face's model needs a `sliding_window`, even where no layer slides."""
    may_be_bidirectional: ClassVar[bool] = False
    """Whether Hugging Face computes `use_bidirectional_attention` for it."""

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: HeadDim = 256
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: Bool = False
    max_position_embeddings: Length
    sliding_window: Window | None
    use_bidirectional_attention: Bool | None = None
    tie_word_embeddings: Bool = True
    pad_token_id: TokenId | None = 0
    bos_token_id: TokenId | None = 2
    """The token that a tokenizer puts before a text; only the parity check uses it."""
    layer_types: list[LayerType] = []
    """The attention of each layer; the family fills in what a config leaves out."""
    architectures: list[str] | None = None
    """Names of the Hugging Face classes that the checkpoint was made for."""
    id2label: Annotated[dict[str | int, str | int | float], Field(min_length=1, max_length=1 << 20)] | None = None
    labels: Annotated[Width | None, Field(alias="num_labels")] = None
    """Classes of a classification head, where they have no names."""
    per_layer_config: None = None
    """Layers of different shapes; no family here has them."""

    @property
    def num_labels(self) -> int:
        """Classes of a classification head; two unless they are named or counted."""
        return len(self.id2label) if self.id2label else self.labels or 2

    @property
    def scale(self) -> float:
        """Factor of the attention scores."""
        return float(self.head_dim**-0.5)

    @property
    def attention_softcap(self) -> float | None:
        """The cap c in tanh(scores / c) * c, None without one."""
        return None

    @property
    def logits_softcap(self) -> float | None:
        """The cap on a language model's logits, None without one."""
        return None

    @abstractmethod
    def rope(self, layer_type: LayerType) -> Rope:
        """The rotary embedding of layers of a type."""

    @property
    def window(self) -> int | None:
        """Positions that a query of a sliding layer sees on one side, itself included."""
        return self.sliding_window

    @property
    def bidirectional(self) -> bool:
        """Whether a token sees the tokens after it."""
        return bool(self.use_bidirectional_attention)

    def facts(self) -> dict[str, Any]:
        """What two models of the same weights must agree on to compute the same, however their files write it."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in NO_FACTS}
        values["use_bidirectional_attention"] = self.bidirectional
        for layer_type in sorted(set(self.layer_types)):
            values |= {f"{name} of {layer_type}": value for name, value in self.rope(layer_type).facts().items()}
        return values

    @classmethod
    @abstractmethod
    def default_layer_types(cls, num_layers: int, config: Mapping[str, Any]) -> list[LayerType]:
        """The attention of each layer where `config.json` does not say it."""

    @model_validator(mode="before")
    @classmethod
    def _fill_layer_types(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("layer_types") is None:
            layers = values.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default)
            if isinstance(layers, int):
                return values | {"layer_types": cls.default_layer_types(min(layers, 1 << 8), values)}
        return values

    @model_validator(mode="after")
    def _values_fit_each_other(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"{len(self.layer_types)} layer_types for {self.num_hidden_layers} layers")
        if self.sliding_window is None and self.slides:
            raise ValueError(
                f"sliding_window is null: Hugging Face's {self.title} needs a number, even where no layer slides"
            )
        if self.bidirectional and not self.may_be_bidirectional:
            raise ValueError(
                f"use_bidirectional_attention is true, and only causal attention is supported for {self.title}"
            )
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size}, num_attention_heads {self.num_attention_heads} and "
                f"num_key_value_heads {self.num_key_value_heads} should be multiples, each of the next"
            )
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} among {self.vocab_size} tokens")
        return self

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Read a `config.json`; `CheckpointError` names every invalid value."""
        try:
            return cls.model_validate(config)
        except ValidationError as err:
            found = describe_invalid(err)
            raise CheckpointError(
                f"config.json does not describe a {cls.title} that can be exported",
                got="; ".join(found[:5]),
                wanted=f"a {cls.title}Config",
            ) from err

    @classmethod
    def checked_keys(cls) -> frozenset[str]:
        """The keys of a `config.json` that Hugging Face gets; it would set any other key as an unchecked attribute."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items()) - {"architectures"}


class UniformRope(Architecture):
    """An architecture whose layers all have the same rotary embedding."""

    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    """Name of `rope_parameters` in older files; it counts if both are there."""
    rope_theta: Theta = 10000.0

    def rope(self, layer_type: LayerType) -> Rope:  # noqa: ARG002 - the same for all
        """See `Architecture.rope`."""
        parameters = self.rope_scaling if self.rope_scaling and self.rope_scaling.model_fields_set else None
        return (parameters or self.rope_parameters or Rope()).with_theta(self.rope_theta)


class ScaledArchitecture(Architecture):
    """An architecture since Gemma2: sliding layers, a scale of its own for the scores, perhaps a cap on the logits."""

    query_pre_attn_scalar: Width = 256
    hidden_activation: Activation = "gelu_pytorch_tanh"
    sliding_window: Window | None = 4096
    final_logit_softcapping: Positive | None = None

    @property
    def scale(self) -> float:
        """See `Architecture.scale`."""
        return float(self.query_pre_attn_scalar**-0.5)

    @property
    def logits_softcap(self) -> float | None:
        """See `Architecture.logits_softcap`."""
        return self.final_logit_softcapping
