"""Tiny models of every family for tests, ragged batches of tokens, and arithmetic in float64 throughout.

The models are small but not tame: large weights, small softcaps, short sliding windows, norm weights away from zero and
a query scale unlike the head size, so that leaving out any one of them changes the outputs.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2ForTokenClassification,
    Gemma2Model,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    Gemma3TextModel,
    GemmaConfig,
    GemmaForCausalLM,
    GemmaForSequenceClassification,
    GemmaForTokenClassification,
    GemmaModel,
    PreTrainedConfig,
    PreTrainedModel,
    VaultGemmaConfig,
    VaultGemmaForCausalLM,
    VaultGemmaModel,
)
from transformers.models.gemma import modeling_gemma
from transformers.models.gemma2 import modeling_gemma2
from transformers.models.gemma3 import modeling_gemma3
from transformers.models.vaultgemma import modeling_vaultgemma

from funnel_export import FunnelSpec
from funnel_export.funnel import apply_funnel
from funnel_export.funnel.maps import maps_of

Side = Literal["left", "right"]
M = TypeVar("M", bound=PreTrainedModel)

ALL_CLASSES: tuple[type[PreTrainedModel], ...] = (
    Gemma2Model,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma2ForTokenClassification,
)
OTHER_CLASSES: tuple[type[PreTrainedModel], ...] = (
    GemmaModel,
    GemmaForCausalLM,
    GemmaForSequenceClassification,
    GemmaForTokenClassification,
    Gemma3TextModel,
    Gemma3ForCausalLM,
    Gemma3TextForSequenceClassification,
    VaultGemmaModel,
    VaultGemmaForCausalLM,
)
"""The classes of the other families."""
PAD = 0
VOCAB = 61

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "max_position_embeddings": 512,
    "pad_token_id": PAD,
    "num_labels": 3,
}
_SLIDING: dict[str, Any] = _COMMON | {"query_pre_attn_scalar": 12, "sliding_window": 5}
_CAPPED: dict[str, Any] = _SLIDING | {"attn_logit_softcapping": 2.5, "final_logit_softcapping": 3.0}
TINY: dict[type[PreTrainedConfig], dict[str, Any]] = {
    GemmaConfig: _COMMON,
    Gemma2Config: _CAPPED,
    Gemma3TextConfig: _SLIDING
    | {
        "num_hidden_layers": 7,  # five sliding layers, a full one, and the next
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
        },
    },
    VaultGemmaConfig: _CAPPED,
}
"""Values of a configuration of a few thousand weights, by its class."""


def tiny_config(**overrides: Any) -> Gemma2Config:
    """A Gemma2 configuration of a few thousand weights; `overrides` are its fields."""
    return Gemma2Config(**(TINY[Gemma2Config] | overrides))


def tiny_config_of(cls: type[PreTrainedModel], **overrides: Any) -> PreTrainedConfig:
    """A configuration of a few thousand weights for a class of models; `overrides` are its fields."""
    kind = cls.config_class
    assert kind is not None
    return kind(**(TINY[kind] | overrides))


def tiny_model(
    cls: type[M] = Gemma2ForCausalLM,  # type: ignore[assignment]  # the default is one of the bound's classes
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **overrides: Any,
) -> M:
    """A seeded tiny model in eval mode with eager attention; the same seed and overrides give the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls._from_config(tiny_config_of(cls, **overrides), dtype=dtype, attn_implementation="eager")
        for name, parameter in model.named_parameters():
            # Zeros hide a norm weight or a bias that is left out.
            if "norm" in name or "bias" in name:
                nn.init.normal_(parameter, std=0.3)
    return model.eval()


def save_tiny_checkpoint(
    path: Path,
    cls: type[PreTrainedModel] = Gemma2ForCausalLM,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: str | None = None,
    maps: FunnelSpec | None = None,
    **overrides: Any,
) -> Path:
    """Write a tiny model's checkpoint as safetensors, in shards if `max_shard_size` ("20KB") says so.

    With random maps if `maps`, a funnel of recovery `linear`, is given.
    """
    model = tiny_model(cls, seed=seed, dtype=dtype, **overrides)
    if maps is not None:
        with_random_maps(apply_funnel(model, maps))
    model.save_pretrained(path, **({"max_shard_size": max_shard_size} if max_shard_size else {}))
    return path


def with_random_maps(model: M, seed: int = 0) -> M:
    """The model, with random values in the maps of its recovery, if it has some: zeros hide one that is left out."""
    maps = maps_of(base_of(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in () if maps is None else maps.parameters():
            nn.init.normal_(parameter, std=0.2)
    return model


def base_of(model: PreTrainedModel) -> Any:
    """The model inside a model with a head, or the model itself."""
    return getattr(model, "model", model)


def main_output(output: Any) -> Tensor:
    """A model's logits, or the last hidden state of a model without a head."""
    return output.logits if "logits" in output else output.last_hidden_state


def random_rows(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Rows of real token ids, never the padding's."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]


@dataclass(frozen=True)
class Batch:
    """Rows of different lengths, padded on one side."""

    input_ids: Tensor
    """int64 [batch, columns]."""
    attention_mask: Tensor
    """int64 [batch, columns], 1 for real tokens."""

    def real(self, outputs: Tensor) -> list[Tensor]:
        """Each row's outputs at its real tokens, from [batch, columns, ...]."""
        return [row[mask.bool()] for row, mask in zip(outputs, self.attention_mask, strict=True)]


def make_batch(rows: Sequence[Sequence[int]], side: Side = "left", extra: int = 0) -> Batch:
    """Pad `rows` on `side` to the longest of them and `extra` columns more."""
    width = max(map(len, rows)) + extra
    ids, mask = [], []
    for row in rows:
        pads = width - len(row)
        before, after = (pads, 0) if side == "left" else (0, pads)
        ids.append([PAD] * before + list(row) + [PAD] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
    return Batch(torch.tensor(ids), torch.tensor(mask))


def _norm_float64(self: Any, x: Tensor) -> Tensor:
    """The forward of a family's norm without the detour over float32."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


def _rotary_float64(self: Any, x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> tuple[Tensor, Tensor]:
    """The forward of a family's rotary embedding, frequencies included, in float64."""
    rope = self.config.rope_parameters
    rope = rope if layer_type is None else rope[layer_type]
    dim = self.config.head_dim
    exponents = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angles = position_ids[..., None].double() * rope["rope_theta"] ** -exponents / rope.get("factor", 1.0)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def _softmax_in_input_dtype(softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """torch's softmax, deaf to the wish for float32."""

    def forward(scores: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
        return softmax(scores, dim=dim)

    return forward


def _attention_float64(eager: Callable[..., Any]) -> Callable[..., Any]:
    """Hugging Face's eager attention with its softmax in the input's dtype: everything else stays theirs."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        with mock.patch.object(nn.functional, "softmax", _softmax_in_input_dtype(nn.functional.softmax)):
            return eager(*args, **kwargs)

    return forward


_MODULES: dict[str, Any] = {
    "Gemma": modeling_gemma,
    "Gemma2": modeling_gemma2,
    "Gemma3": modeling_gemma3,
    "VaultGemma": modeling_vaultgemma,
}


@contextlib.contextmanager
def true_float64() -> Iterator[None]:
    """Let Hugging Face's norm, softmax and rotary embedding compute in float64, so that 1e-10 can be asked for.

    They use float32 whatever the model's dtype. Only their classes are patched, and only while the context lasts, so it
    serves dense and funnel models alike.
    """
    with contextlib.ExitStack() as stack:
        for name, module in _MODULES.items():
            eager = _attention_float64(module.eager_attention_forward)
            stack.enter_context(mock.patch.object(getattr(module, f"{name}RMSNorm"), "forward", _norm_float64))
            stack.enter_context(
                mock.patch.object(getattr(module, f"{name}RotaryEmbedding"), "forward", _rotary_float64)
            )
            stack.enter_context(mock.patch.object(module, "eager_attention_forward", eager))
        yield
