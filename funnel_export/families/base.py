"""What a family of architectures is: everything that the rest of the package asks about one kind of Gemma."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from funnel_export.errors import CheckpointError, describe_invalid
from funnel_export.families.rope import Length
from funnel_export.spec.choices import Task

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel

Width = Annotated[int, Field(gt=0, le=1 << 20, strict=True)]
Count = Annotated[int, Field(gt=0, le=1 << 12, strict=True)]
Layers = Annotated[int, Field(gt=0, le=1 << 8, strict=True)]
Vocabulary = Annotated[int, Field(gt=0, le=1 << 24, strict=True)]
Window = Annotated[int, Field(gt=0, le=1 << 24, strict=True)]
HeadDim = Annotated[int, Field(gt=0, le=1 << 12, multiple_of=2, strict=True)]
Epsilon = Annotated[float, Field(gt=0, le=1, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Bool = Annotated[bool, Field(strict=True)]
TokenId = Annotated[int, Field(ge=0, strict=True)]
LayerType = Literal["sliding_attention", "full_attention"]
Activation = Literal["gelu_pytorch_tanh", "gelu", "gelu_new", "silu", "relu"]

SLIDING: LayerType = "sliding_attention"
FULL: LayerType = "full_attention"


class Architecture(BaseModel):
    """What a `config.json` says, checked without transformers: every value that anything computes with.

    A family's schema gives the fields the defaults that its Hugging Face config has, and adds its own.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: ClassVar[str]
    """What such a model is called in messages."""

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Layers
    num_attention_heads: Count
    num_key_value_heads: Count
    head_dim: HeadDim
    hidden_activation: Activation
    rms_norm_eps: Epsilon
    attention_bias: Bool
    max_position_embeddings: Length
    sliding_window: Window | None
    tie_word_embeddings: Bool
    pad_token_id: TokenId | None
    layer_types: list[LayerType] = []
    """The attention of each layer; what a config leaves out, the family fills in."""
    architectures: list[str] | None = None
    """Names of the Hugging Face classes that the checkpoint was made for."""
    id2label: Annotated[dict[str | int, str], Field(min_length=1, max_length=1 << 20)] | None = None
    labels: Annotated[Width | None, Field(alias="num_labels")] = None
    """Classes of a classification head, where they have no names."""
    per_layer_config: None = None
    """Layers of different shapes; no family here has them."""

    @property
    def num_labels(self) -> int:
        """Classes of a classification head; two unless they are named or counted."""
        return len(self.id2label) if self.id2label else self.labels or 2

    @classmethod
    def default_layer_types(cls, num_layers: int) -> list[LayerType]:
        """The attention of each layer where `config.json` does not say it."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _fill_layer_types(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("layer_types") is None:
            layers = values.get("num_hidden_layers", cls.model_fields["num_hidden_layers"].default)
            if isinstance(layers, int):
                return values | {"layer_types": cls.default_layer_types(min(layers, 1 << 8))}
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
        """Read a `config.json`; `CheckpointError` names every invalid value."""
        try:
            return cls.model_validate(config)
        except ValidationError as err:
            found = describe_invalid(err)
            raise CheckpointError(
                f"config.json does not describe a {cls.title}", got="; ".join(found[:5]), wanted=f"a {cls.title}Config"
            ) from err

    @classmethod
    def checked_keys(cls) -> frozenset[str]:
        """The keys of a `config.json` that Hugging Face is given: it would set any other as an attribute, unchecked."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items()) - {"architectures"}


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What the graph of one decoder layer must show."""

    sliding_window: int | None
    """Positions that a query sees, itself included; None for full attention."""
    softcap: float | None
    """The cap c in tanh(scores / c) * c, None without one."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """What one decoder layer multiplies; a multiplication with its addition counts as two operations."""

    weights: int
    """Weights of the projections of attention and MLP, each used once for a position."""
    attention: int
    """Multiplications of scores and weighted values for one pair of positions."""


class Family(ABC):
    """One architecture: its config, its Hugging Face classes, its names, and what its layers compute.

    Families have no state. Each is one file of this folder; `registry` finds it by `model_type`.
    """

    model_type: ClassVar[str]
    """As `config.json` names it."""
    title: ClassVar[str]
    """What such a model is called in messages."""
    schema: ClassVar[type[Architecture]]
    """What its `config.json` may say."""
    module: ClassVar[str] = "transformers"
    """The module that has its classes."""
    config_name: ClassVar[str]
    """Class of its Hugging Face config."""
    class_names: ClassVar[Mapping[Task, str]]
    """Its Hugging Face classes by task."""
    embedding: ClassVar[str] = "model.embed_tokens.weight"
    """Parameter of the embedding in a model with a head."""
    head: ClassVar[str] = "lm_head.weight"
    """Parameter of a language model's head, which may be tied to the embedding."""
    task_heads: ClassVar[tuple[str, ...]] = ("score.",)
    """How the parameters of heads begin that only a fine-tuned checkpoint has."""

    # Hugging Face

    def config_class(self) -> "type[PreTrainedConfig]":
        """The class of its config."""
        kind: type[PreTrainedConfig] = getattr(import_module(self.module), self.config_name)
        return kind

    def make_config(self, **values: Any) -> "PreTrainedConfig":
        """A config of these values; the others are its class's defaults."""
        return self.config_class()(**values)

    def model_class(self, task: Task) -> "type[PreTrainedModel]":
        """The class of its models for a task."""
        kind: type[PreTrainedModel] = getattr(import_module(self.module), self.class_names[task])
        return kind

    def task_of(self, model: object) -> Task | None:
        """The task of a model, None for one of another class; subclasses may compute something else."""
        return next((task for task in self.class_names if type(model) is self.model_class(task)), None)

    def base_of(self, model: Any) -> Any:
        """The model without its head: embedding, layers and final norm."""
        return getattr(model, "model", model)

    def read_config(self, config: Mapping[str, Any]) -> "PreTrainedConfig":
        """A `config.json` as Hugging Face reads it, without the keys that do not change what the model computes.

        Raises:
            CheckpointError: if it does not describe a model of this family.
        """
        from huggingface_hub.errors import StrictDataclassError

        self.schema.of(dict(config))
        kept = {key: config[key] for key in sorted(self.schema.checked_keys() & config.keys())}
        try:
            return self.config_class().from_dict(copy.deepcopy(kept))
        except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as err:
            raise CheckpointError(
                f"config.json does not describe a {self.title}", got=err, wanted=f"a {self.config_name}"
            ) from err

    @abstractmethod
    def make_buffers(self, base: Any, config: "PreTrainedConfig", dtype: "torch.dtype") -> None:
        """Give the buffers of a model that was made of fake tensors their values."""

    # Names of parameters

    def stored_names(self, parameter: str) -> Sequence[str]:
        """What a checkpoint may call a model's parameter, whether it was saved from a bare model or one with a head."""
        bare = parameter.removeprefix("model.")
        return tuple(dict.fromkeys((parameter, bare, f"model.{bare}")))

    # What the forward computes

    @abstractmethod
    def angles(self, base: Any, x: "Tensor", positions: "Tensor") -> "Mapping[str, tuple[Tensor, Tensor]]":
        """Cosines and sines of RoPE, each [batch, length, head_dim], by layer type.

        Args:
            base: the model without its head.
            x: [batch, length, width] hidden states, for their dtype and device.
            positions: [batch, length], not negative.
        """

    def layer_type_of(self, config: Any, layer: int) -> str:
        """The attention of a layer."""
        return str(config.layer_types[layer])

    def window_of(self, config: Any, layer_type: str) -> int | None:
        """How many positions a query sees in layers of a type, itself included; None if all before it."""
        window: int | None = config.sliding_window if layer_type == SLIDING else None
        return window

    def final_norm(self, base: Any) -> "nn.Module":
        """The norm after the last layer."""
        norm: nn.Module = base.norm
        return norm

    # What the audit wants

    @abstractmethod
    def layer_facts(self, architecture: Any, layer: int) -> LayerFacts:
        """What the graph of a layer must show."""

    @abstractmethod
    def logits_softcap(self, architecture: Any) -> float | None:
        """The cap on a language model's logits, None without one."""

    # Operations

    def layer_cost(self, architecture: Any) -> LayerCost:
        """What a layer multiplies: hidden*(2*heads + 2*kv_heads)*head_dim + 3*hidden*intermediate weights."""
        hidden, heads, kv_heads = (
            architecture.hidden_size,
            architecture.num_attention_heads,
            architecture.num_key_value_heads,
        )
        projections = hidden * 2 * (heads + kv_heads) * architecture.head_dim
        mlp = 3 * hidden * architecture.intermediate_size
        return LayerCost(weights=projections + mlp, attention=2 * heads * architecture.head_dim)
