"""The Hugging Face model of a checkpoint: shapes of parameters, and no weight in memory."""

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import Gemma2Config
from transformers.models.gemma2.modeling_gemma2 import Gemma2RotaryEmbedding

from funnel_export.errors import CheckpointError, ExportError
from funnel_export.families.gemma2 import CHECKED, Architecture
from funnel_export.funnel import TASK_CLASSES
from funnel_export.spec.choices import Dtype, Task


def read_config(config: dict[str, Any]) -> Gemma2Config:
    """A `config.json` as Hugging Face reads it, without the keys that do not change what a Gemma2 computes.

    Raises:
        CheckpointError: if it does not describe a Gemma2.
    """
    Architecture.of(config)
    try:
        return Gemma2Config.from_dict(copy.deepcopy({key: config[key] for key in sorted(CHECKED & config.keys())}))
    except (ValueError, TypeError, KeyError, AttributeError, StrictDataclassError) as err:
        raise CheckpointError("config.json does not describe a Gemma2", got=err, wanted="a Gemma2Config") from err


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model with parameters that have shapes only, and buffers that have values."""

    model: Any
    mode: FakeTensorMode
    """The mode in which its parameters were made."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by its name in the model."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}


def build_skeleton(config: dict[str, Any], task: Task, dtype: Dtype) -> Skeleton:
    """The Hugging Face model that `config` describes.

    Raises:
        CheckpointError: if `config` does not describe a Gemma2 that can be exported.
    """
    built = read_config(config)
    built._attn_implementation = "eager"
    if task is Task.TEXT_CLASSIFICATION and built.pad_token_id is None:
        raise CheckpointError(
            "text classification reads the last token that is not padding",
            got="no pad_token_id in config.json",
            wanted="a pad_token_id",
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # buffers have values
    compute = getattr(torch, dtype)
    with _default_dtype(compute), mode:
        model: Any = TASK_CLASSES[task](built)
        model.eval().requires_grad_(False)
    base = getattr(model, "model", model)
    base.rotary_emb = Gemma2RotaryEmbedding(built)
    base.embed_tokens.embed_scale = torch.tensor(base.embed_tokens.scalar_embed_scale, dtype=compute)
    unreal = [name for name, buffer in model.named_buffers() if isinstance(buffer, FakeTensor)]
    if unreal:
        raise ExportError("a buffer of the model has no value", got=unreal, wanted="a version of transformers >= 5.10")
    return Skeleton(model, mode)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
