"""What a Gemma2 `config.json` says, checked without transformers: every value that anything computes with."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from funnel_export.errors import CheckpointError, describe_invalid
from funnel_export.families.rope import Length, Rope, Theta

Width = Annotated[int, Field(gt=0, le=1 << 20, strict=True)]
Count = Annotated[int, Field(gt=0, le=1 << 12, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Bool = Annotated[bool, Field(strict=True)]

SLIDING, FULL = "sliding_attention", "full_attention"


class Architecture(BaseModel):
    """A Gemma2's architecture; what `config.json` leaves out is as in `transformers.Gemma2Config`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: Annotated[int, Field(gt=0, le=1 << 24, strict=True)] = 256000
    hidden_size: Width = 2304
    intermediate_size: Width = 9216
    num_hidden_layers: Annotated[Count, Field(le=1 << 8)] = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: Annotated[Count, Field(multiple_of=2)] = 256
    query_pre_attn_scalar: Width = 256
    hidden_activation: Literal["gelu_pytorch_tanh", "gelu", "gelu_new", "silu", "relu"] = "gelu_pytorch_tanh"
    rms_norm_eps: Annotated[float, Field(gt=0, le=1, strict=True)] = 1e-6
    attention_bias: Bool = False
    use_bidirectional_attention: Bool | None = None
    max_position_embeddings: Length = 8192
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None
    rope_theta: Theta = 10000.0
    sliding_window: Annotated[int, Field(gt=0, le=1 << 24, strict=True)] | None = 4096
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0
    tie_word_embeddings: Bool = True
    pad_token_id: Annotated[int, Field(ge=0, strict=True)] | None = 0
    layer_types: list[Literal["sliding_attention", "full_attention"]] = []
    """Even layers slide unless `config.json` says otherwise."""
    architectures: list[str] | None = None
    """Names of the Hugging Face classes that the checkpoint was made for."""
    id2label: Annotated[dict[str | int, str], Field(min_length=1, max_length=1 << 20)] | None = None
    labels: Annotated[Width | None, Field(alias="num_labels")] = None
    """Classes of a classification head, where they have no names."""
    per_layer_config: None = None
    """Layers of different shapes; no Gemma2 has them."""

    @property
    def num_labels(self) -> int:
        """Classes of a classification head; two unless they are named or counted."""
        return len(self.id2label) if self.id2label else self.labels or 2

    @model_validator(mode="before")
    @classmethod
    def _alternate(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("layer_types") is None:
            layers = values.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default)
            if isinstance(layers, int):
                return values | {"layer_types": [FULL if i % 2 else SLIDING for i in range(min(layers, 1 << 8))]}
        return values

    @model_validator(mode="after")
    def _values_fit_each_other(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"{len(self.layer_types)} layer_types for {self.num_hidden_layers} layers")
        if self.sliding_window is None and SLIDING in self.layer_types:
            raise ValueError("layers slide, and sliding_window is null")
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
        """Read a `config.json`; `CheckpointError` names every value that cannot be."""
        try:
            return cls.model_validate(config)
        except ValidationError as err:
            found = describe_invalid(err)
            raise CheckpointError(
                "config.json does not describe a Gemma2", got="; ".join(found[:5]), wanted="a Gemma2Config"
            ) from err


CHECKED = frozenset(field.alias or name for name, field in Architecture.model_fields.items()) - {"architectures"}
"""The keys of a `config.json` that Hugging Face is given: it would set any other as an attribute, whatever it hides."""
