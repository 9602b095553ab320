"""What a family of architectures is: everything that the rest of the package asks about one kind of Gemma."""

import copy
import re
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from funnel_export.errors import CheckpointError
from funnel_export.families.architecture import FULL, SLIDING, Architecture
from funnel_export.families.rope import Rope
from funnel_export.spec.choices import Task
from funnel_export.spec.funnel import MAPS
from funnel_export.spec.quantization import Part

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import PreTrainedConfig, PreTrainedModel


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """Properties that the graph of one decoder layer must have."""

    sliding_window: int | None
    """Positions that a query sees on one side, itself included; None for full attention."""
    causal: bool
    """Whether a query sees no later positions."""
    scale: float
    """Factor of the scores."""
    softcap: float | None
    """The cap c in tanh(scores / c) * c, None without one."""
    norms: int
    """Root-mean-square norms."""
    rope: Rope
    """The rotary embedding of its queries and keys."""


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Multiplications of one decoder layer; a multiplication with its addition counts as two operations."""

    weights: int
    """Weights of the projections of attention and MLP, each used once for a position."""
    keys: int
    """Weights of the projections to keys and values."""
    attention: int
    """Multiplications of scores and weighted values for one pair of positions."""


class Family(ABC):
    """One architecture: its config, its Hugging Face classes, its names, and what its layers compute.

    Families have no state. Each is one file of this folder; `registry` finds it by `model_type`.
    """

    model_type: ClassVar[str]
    """The family's name in `config.json`."""
    title: ClassVar[str]
    """Name of such a model in messages."""
    schema: ClassVar[type[Architecture]]
    """Schema of its `config.json`."""
    module: ClassVar[str] = "transformers"
    """The Python module of its classes."""
    config_name: ClassVar[str]
    """Class of its Hugging Face config."""
    class_names: ClassVar[Mapping[Task, str]]
    """Its Hugging Face classes by task."""
    embedding: ClassVar[str] = "model.embed_tokens.weight"
    """Parameter of the embedding in a model with a head."""
    head: ClassVar[str] = "lm_head.weight"
    """Parameter of a language model's head, which may be tied to the embedding."""
    other_classes: ClassVar[Mapping[str, Task]] = {}
    """Tasks of further classes that `architectures` in config.json may name: the text part of them is exported."""
    norms: ClassVar[int]
    """Root-mean-square norms in a decoder layer."""
    nested: ClassVar[bool] = False
    """Whether it is the text part of a larger model; its graphs are those of the text model alone."""
    per_layer_attributes: ClassVar[frozenset[str]] = frozenset(
        {"layer_idx", "layer_type", "sliding_window", "is_sliding"}
    )
    """Attributes of a layer that reach its computation only through its mask and angles."""
    contract_prefix: ClassVar[str] = ""
    """Prefix of the names of its reviewed graphs."""
    tiny: ClassVar[Mapping[str, Any]]
    """Values of a config whose graph is small enough to be reviewed: its constants are printed."""
    task_heads: ClassVar[tuple[str, ...]] = ("score.",)
    """Prefixes of the parameters of heads that only fine-tuned checkpoints have."""
    buffers: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)
    """Suffixes of the names of stored tensors that the model computes and does not read."""
    other_parts: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of stored tensors that do not belong to the text model."""

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
        kind: type[PreTrainedModel] = getattr(import_module(self.module), self.class_names[task.single_pass])
        return kind

    def task_of(self, model: object) -> Task | None:
        """The task of a model, None for one of another class; subclasses may compute something else."""
        return next((task for task in self.class_names if type(model) is self.model_class(task)), None)

    def base_of(self, model: Any) -> Any:
        """The model without its head: embedding, layers and final norm."""
        return getattr(model, "model", model)

    def text_config(self, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """The part of a `config.json` that describes the text model: all of it, unless the model has other parts."""
        return config

    def load_options(self, config: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG002 - most need none
        """What `from_pretrained` of the text model's class needs for a checkpoint with this `config.json`."""
        return {}

    def read_architecture(self, config: Mapping[str, Any]) -> Architecture:
        """What a `config.json` says; `CheckpointError` names every invalid value."""
        return self.schema.of(dict(self.text_config(config)))

    def read_config(self, config: Mapping[str, Any]) -> "PreTrainedConfig":
        """A `config.json` as Hugging Face reads it, without the keys that do not change what the model computes.

        Raises:
            CheckpointError: if it does not describe a model of this family.
        """
        from huggingface_hub.errors import StrictDataclassError

        self.read_architecture(config)
        values = self.text_config(config)
        kept = {key: values[key] for key in sorted(self.schema.checked_keys() & values.keys())}
        try:
            return self.config_class().from_dict(copy.deepcopy(kept))
        except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as err:
            raise CheckpointError(
                f"config.json does not describe a {self.title}", got=err, wanted=f"a {self.config_name}"
            ) from err

    def make_buffers(self, base: Any, config: "PreTrainedConfig", dtype: "torch.dtype") -> None:
        """Give the buffers of a model that was made of fake tensors their values.

        They are the inverse frequencies of RoPE, and the embedding's scale, which is rounded to the model's dtype.
        """
        import torch

        base.rotary_emb = type(base.rotary_emb)(config)
        base.embed_tokens.embed_scale = torch.tensor(base.embed_tokens.scalar_embed_scale, dtype=dtype)

    # Names of parameters

    def stored_names(self, parameter: str) -> Sequence[str]:
        """What a checkpoint may call a model's parameter, whether it was saved from a bare model or one with a head."""
        bare = parameter.removeprefix("model.")
        return tuple(dict.fromkeys((parameter, bare, f"model.{bare}")))

    def bare_name(self, stored: str) -> str:
        """The name of a stored tensor without its prefix, which depends on the class and the version that saved it."""
        heads = (name.removesuffix(self.head) for name in self.stored_names(self.head))
        prefixes = sorted({*self.stored_names("model."), *heads}, key=len, reverse=True)
        return stored.removeprefix(next(prefix for prefix in prefixes if stored.startswith(prefix)))

    def part_of(self, parameter: str) -> Part | None:
        """The part of the model whose weights are quantized that a parameter belongs to; None for all others."""
        bare = self.bare_name(parameter)
        if not bare.endswith(".weight"):
            return None
        if bare in (self.bare_name(self.embedding), self.bare_name(self.head)):
            return Part.EMBEDDING if bare == self.bare_name(self.embedding) else Part.HEAD
        found = re.search(r"^layers\.\d+\.(self_attn|mlp)\.\w+_proj\.", bare)
        return None if found is None else {"self_attn": Part.ATTENTION, "mlp": Part.MLP}[found.group(1)]

    def may_be_unused(self, stored: str) -> bool:
        """Whether a checkpoint may have this tensor without using it: a head, maps of a funnel, what is computed."""
        begins = (*self.task_heads, *self.other_parts, *self.stored_names(f"{MAPS}."))
        return stored in self.stored_names(self.head) or stored.startswith(begins) or stored.endswith(self.buffers)

    # What the forward computes

    def angles(self, base: Any, x: "Tensor", positions: "Tensor") -> "Mapping[str, tuple[Tensor, Tensor]]":
        """Cosines and sines of RoPE, each [batch, length, head_dim], by layer type; by default the same for all layers.

        Args:
            base: the model without its head.
            x: [batch, length, width] hidden states, for their dtype and device.
            positions: [batch, length], not negative.
        """
        return dict.fromkeys((SLIDING, FULL), base.rotary_emb(x, positions))

    def layer_type_of(self, config: Any, layer: int) -> str:
        """The attention of a layer."""
        return str(config.layer_types[layer])

    def window_of(self, config: Any, layer_type: str) -> int | None:
        """How many positions a query sees in layers of a type, itself included; None if all before it."""
        window: int | None = config.sliding_window if layer_type == SLIDING else None
        return window

    def is_bidirectional(self, config: Any) -> bool:
        """Whether a token sees the tokens after it."""
        return bool(getattr(config, "use_bidirectional_attention", False))

    def final_norm(self, base: Any) -> "nn.Module":
        """The norm after the last layer."""
        norm: nn.Module = base.norm
        return norm

    # What the audit wants

    def layer_facts(self, architecture: Architecture, layer: int) -> LayerFacts:
        """The properties that the graph of a layer must have."""
        layer_type = architecture.layer_types[layer]
        return LayerFacts(
            sliding_window=architecture.window if layer_type == SLIDING else None,
            causal=not architecture.bidirectional,
            scale=architecture.scale,
            softcap=architecture.attention_softcap,
            norms=self.norms,
            rope=architecture.rope(layer_type),
        )

    # Operations

    def windows(self, architecture: Any) -> set[int]:
        """The sliding windows of all layers."""
        facts = (self.layer_facts(architecture, index) for index in range(architecture.num_hidden_layers))
        return {fact.sliding_window for fact in facts if fact.sliding_window is not None}

    def layer_cost(self, architecture: Any, layer: int) -> LayerCost:  # noqa: ARG002 - all layers of most are alike
        """What a layer multiplies: hidden*(2*heads + 2*kv_heads)*head_dim + 3*hidden*intermediate weights."""
        hidden, heads, kv_heads = (
            architecture.hidden_size,
            architecture.num_attention_heads,
            architecture.num_key_value_heads,
        )
        keys, queries = (hidden * 2 * each * architecture.head_dim for each in (kv_heads, heads))
        mlp = 3 * hidden * architecture.intermediate_size
        return LayerCost(weights=keys + queries + mlp, keys=keys, attention=2 * heads * architecture.head_dim)
