"""The numbers of a Gemma2 `config.json` that the package computes with, read without transformers."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from funnel_export.errors import CheckpointError

Count = Annotated[int, Field(gt=0, le=1 << 24, strict=True)]
Positive = Annotated[float, Field(gt=0)]

SLIDING, FULL = "sliding_attention", "full_attention"


class Architecture(BaseModel):
    """A Gemma2's architecture; what `config.json` leaves out is as in `transformers.Gemma2Config`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    vocab_size: Count = 256000
    hidden_size: Count = 2304
    intermediate_size: Count = 9216
    num_hidden_layers: Count = 26
    num_attention_heads: Count = 8
    num_key_value_heads: Count = 4
    head_dim: Count = 256
    sliding_window: Count | None = 4096
    attn_logit_softcapping: Positive | None = 50.0
    final_logit_softcapping: Positive | None = 30.0
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    layer_types: list[Literal["sliding_attention", "full_attention"]] = []
    """Even layers slide unless `config.json` says otherwise."""
    id2label: dict[str | int, Any] | None = None

    @property
    def num_labels(self) -> int:
        """Classes of a classification head; two unless they are named."""
        return len(self.id2label) if self.id2label else 2

    @model_validator(mode="before")
    @classmethod
    def _alternate(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("layer_types"):
            layers = values.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default)
            if isinstance(layers, int):
                return values | {"layer_types": [FULL if i % 2 else SLIDING for i in range(min(layers, 1 << 16))]}
        return values

    @model_validator(mode="after")
    def _one_type_per_layer(self) -> Self:
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"{len(self.layer_types)} layer_types for {self.num_hidden_layers} layers")
        if self.sliding_window is None and SLIDING in self.layer_types:
            raise ValueError("layers slide, and sliding_window is null")
        return self

    @classmethod
    def of(cls, config: dict[str, Any]) -> Self:
        """Read a `config.json`; `CheckpointError` names every value that cannot be."""
        try:
            return cls.model_validate(config)
        except ValidationError as err:
            found = [f"{'.'.join(map(str, e['loc'])) or 'layers'}: {e['msg']}" for e in err.errors()]
            raise CheckpointError(
                "config.json does not describe a Gemma2", got="; ".join(found[:5]), wanted="a Gemma2Config"
            ) from err
