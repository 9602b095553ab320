"""What a `config.json` says of RoPE, checked before Hugging Face computes with it."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Theta = Annotated[float, Field(gt=1, le=1e15, strict=True)]
Factor = Annotated[float, Field(ge=1e-6, le=1e6, strict=True)]
Length = Annotated[int, Field(gt=0, le=1 << 32, strict=True)]

TYPES = ("default", "linear", "llama3", "yarn")


class Rope(BaseModel):
    """RoPE's parameters; which of them a type needs, Hugging Face says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rope_type: str = "default"
    type: str = "default"
    """As older files call `rope_type`, which counts if both are there."""
    rope_theta: Theta = 10000.0
    factor: Annotated[Factor, Field(ge=1)] = 1.0
    original_max_position_embeddings: Length = 1
    low_freq_factor: Factor = 1.0
    high_freq_factor: Factor = 4.0
    attention_factor: Factor | None = None
    beta_fast: Factor | None = None
    beta_slow: Factor | None = None
    mscale: Factor | None = None
    mscale_all_dim: Factor | None = None
    truncate: Annotated[bool, Field(strict=True)] = True
    short_factor: Any = None
    long_factor: Any = None

    @field_validator("rope_type", "type")
    @classmethod
    def _fits_a_graph(cls, kind: str) -> str:
        if kind in ("dynamic", "longrope"):
            raise ValueError(f"{kind} RoPE depends on the length of the text, which no graph can hold")
        if kind not in TYPES:
            raise ValueError(f"should be {', '.join(TYPES)}")
        return kind

    @model_validator(mode="after")
    def _orders(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("high_freq_factor should be greater than low_freq_factor")
        return self
