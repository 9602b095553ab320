"""The Hugging Face model of a checkpoint with the shapes of its parameters, without their values."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.initialization import no_init_weights

from funnel_export.errors import CheckpointError, ExportError
from funnel_export.families.base import Family
from funnel_export.funnel.maps import attach_maps, make_maps
from funnel_export.spec.choices import Task
from funnel_export.spec.export import ExportSpec


@dataclass(frozen=True, slots=True)
class Skeleton:
    """A model whose parameters have only shapes and whose buffers have values."""

    family: Family
    config: Mapping[str, Any]
    """The checkpoint's `config.json`."""
    model: Any
    mode: FakeTensorMode
    """The mode in which its parameters were created."""

    @property
    def base(self) -> Any:
        """The model without its head."""
        return self.family.base_of(self.model)

    @property
    def base_prefix(self) -> str:
        """Prefix of the base's parameters among the model's parameters, "" or for example "model."."""
        names = (name for name, module in self.model.named_modules() if module is self.base)
        return "".join(f"{name}." for name in names if name)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter, by its name in the model."""
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}


def build_skeleton(family: Family, config: Mapping[str, Any], spec: ExportSpec) -> Skeleton:
    """The Hugging Face model that `config` describes.

    Raises:
        CheckpointError: if `config` does not describe a model that can be exported.
    """
    built = family.read_config(config)
    built._attn_implementation = "eager"
    if spec.task is Task.TEXT_CLASSIFICATION and (built.pad_token_id is None or built.pad_token_id < 0):
        raise CheckpointError(
            "text classification needs a pad_token_id to find the last token of a row",
            got=f"pad_token_id {built.pad_token_id} in config.json",
            wanted="the id of a token",
            hint="set pad_token_id in config.json",
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)  # buffers have values
    compute = getattr(torch, spec.dtype)
    with _default_dtype(compute), mode:
        with no_init_weights():  # numbers that are not kept take most of the time
            model: Any = family.model_class(spec.task)(built)
        model.tie_weights()
        attach_maps(family.base_of(model), make_maps(spec.funnel, built.hidden_size))
        model.eval().requires_grad_(False)
    family.make_buffers(family.base_of(model), built, compute)
    unreal = [name for name, buffer in model.named_buffers() if isinstance(buffer, FakeTensor)]
    if unreal:
        raise ExportError("buffers of the model have no values", got=unreal, wanted="transformers >= 5.10")
    return Skeleton(family, config, model, mode)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
