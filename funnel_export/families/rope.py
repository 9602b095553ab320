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
    """Name of `rope_type` in older files; `rope_type` counts if both are there."""
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

    @property
    def kind(self) -> str:
        """Its type, by whichever name the file gives it."""
        return self.rope_type if "rope_type" in self.model_fields_set else self.type

    def with_theta(self, theta: float) -> "Rope":
        """These parameters, with this base unless they name one themselves."""
        return self if "rope_theta" in self.model_fields_set else self.model_copy(update={"rope_theta": theta})

    def facts(self) -> dict[str, Any]:
        """The parameters on which its angles depend, the same however a file writes them."""
        used = {"default": {"rope_theta"}, "linear": {"rope_theta", "factor"}}.get(self.kind)
        return {"rope_type": self.kind} | self.model_dump(include=used, exclude={"rope_type", "type"})

    def frequencies(self, head_dim: int) -> list[float] | None:
        """Radians a position for each pair of dimensions; None for types that Hugging Face alone computes."""
        if self.kind not in ("default", "linear"):
            return None
        factor = self.factor if self.kind == "linear" else 1.0
        return [self.rope_theta ** (-2 * pair / head_dim) / factor for pair in range(head_dim // 2)]

    @field_validator("rope_type", "type")
    @classmethod
    def _fits_a_graph(cls, kind: str) -> str:
        if kind in ("dynamic", "longrope"):
            raise ValueError(f"{kind} RoPE depends on the length of the text, which is not supported")
        if kind not in TYPES:
            raise ValueError(f"should be {', '.join(TYPES)}")
        return kind

    @model_validator(mode="after")
    def _orders(self) -> Self:
        if self.low_freq_factor >= self.high_freq_factor:
            raise ValueError("high_freq_factor should be greater than low_freq_factor")
        return self
