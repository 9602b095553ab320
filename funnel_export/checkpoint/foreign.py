"""Checkpoints that others quantized: what `quantization_config` in their `config.json` says.

Taken are integer weights with a scale for each output, or for each group of its inputs: those of GPTQ (AutoGPTQ,
GPTQModel), AWQ (AutoAWQ) and compressed-tensors (LLM Compressor).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from funnel_export.errors import CheckpointError, describe_invalid
from funnel_export.spec.quantization import BITS, BLOCKS, Origin

KEY = "quantization_config"
TAKEN = (
    "gptq with 4 or 8 bits; awq with 4 bits in gemm's layout; "
    "compressed-tensors with weights in pack-quantized, 4 or 8 bits, or int-quantized, 8 bits"
)
QUANTIZE = "use the original checkpoint: funnel-export export CHECKPOINT BUNDLE --bits 4"
"""The remedy for formats that are not taken."""
REMEDIES = {
    "bitsandbytes": "load it with transformers, then model.dequantize() and model.save_pretrained(NEW_FOLDER); "
    f"or {QUANTIZE}",
}
"""Remedies by `quant_method`, for those that have one of their own."""


class Packing(Enum):
    """Where a code lies in the stored tensor."""

    INPUTS = auto()
    """GPTQ: words of 32 bits hold codes of consecutive inputs, [inputs / n, outputs], the first in the low bits."""
    INTERLEAVED = auto()
    """AWQ: words hold codes of consecutive outputs, [inputs, outputs / n], the even ones first."""
    ROWS = auto()
    """compressed-tensors: words hold codes of consecutive inputs, [outputs, inputs / n], the first in the low bits."""
    BYTES = auto()
    """compressed-tensors: signed bytes, [outputs, inputs]."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How others store the weights that they quantized; the same for all weights of a checkpoint."""

    origin: Origin
    packing: Packing
    bits: int
    group_size: int | None
    """Inputs of an output that share a scale; None if all do."""
    symmetric: bool
    """Whether all zero points are the middle code."""
    zero_offset: int = 0
    """What is added to a stored zero point: GPTQ's first version stores one less."""


class _Settings(BaseModel):
    """Settings in a config; what the layout does not depend on is ignored."""

    model_config = ConfigDict(strict=True)


S = TypeVar("S", bound=_Settings)


class _Gptq(_Settings):
    bits: int
    group_size: int
    sym: bool = True
    format: str = Field("gptq", validation_alias=AliasChoices("checkpoint_format", "format"))
    is_marlin_format: bool = False


class _Awq(_Settings):
    bits: int = Field(validation_alias=AliasChoices("bits", "w_bit"))
    group_size: int = Field(validation_alias=AliasChoices("group_size", "q_group_size"))
    zero_point: bool = True
    version: str = Field("gemm", validation_alias=AliasChoices("version", "format", "checkpoint_format"))
    backend: str | None = None


class _Weights(_Settings):
    num_bits: int
    type: str = "int"
    symmetric: bool = True
    strategy: str
    group_size: int | None = None
    actorder: str | bool | None = None
    dynamic: bool | str = False


class _Scheme(_Settings):
    weights: _Weights | None = None
    input_activations: dict[str, Any] | None = None
    output_activations: dict[str, Any] | None = None
    format: str | None = None


class _Compressed(_Settings):
    config_groups: dict[str, _Scheme]
    format: str
    quantization_status: str = "compressed"
    kv_cache_scheme: dict[str, Any] | None = None
    sparsity_config: dict[str, Any] | None = None
    transform_config: dict[str, Any] | None = None


def read_layout(config: Mapping[str, Any]) -> Layout | None:
    """How `config.json` says that others store their quantized weights, None if it does not name a method.

    Raises:
        CheckpointError: if the method or one of its settings is not taken.
    """
    found = config.get(KEY)
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or not isinstance(method, str):
        return None
    if method not in tuple(Origin):
        raise not_taken(f"quant_method {method}", REMEDIES.get(method, QUANTIZE))
    readers = {Origin.GPTQ: _gptq, Origin.AWQ: _awq, Origin.COMPRESSED_TENSORS: _compressed}
    layout = readers[Origin(method)](found)
    if layout.bits not in BITS:
        raise not_taken(f"{layout.origin} with {layout.bits} bits")
    if layout.group_size is not None and layout.group_size not in BLOCKS:
        raise CheckpointError(
            "weights of this group size cannot be exported",
            got=f"{layout.origin} with groups of {layout.group_size}",
            wanted="groups of " + " | ".join(map(str, BLOCKS)) + ", or one scale for each output",
            hint=QUANTIZE,
        )
    return layout


def not_taken(got: str, hint: str = QUANTIZE) -> CheckpointError:
    """The error for a quantized checkpoint in a form that cannot be exported."""
    return CheckpointError("this kind of quantized checkpoint is not supported", got=got, wanted=TAKEN, hint=hint)


def _gptq(found: Mapping[str, Any]) -> Layout:
    settings = _read(_Gptq, found)
    offsets = {"gptq": 1, "gptq_v2": 0}
    kind = "marlin" if settings.is_marlin_format else settings.format.lower()
    if kind not in offsets:
        raise not_taken(f"gptq in the format {kind}")
    group = _group(settings.group_size)
    return Layout(Origin.GPTQ, Packing.INPUTS, settings.bits, group, settings.sym, offsets[kind])


def _awq(found: Mapping[str, Any]) -> Layout:
    settings = _read(_Awq, found)
    version = "llm-awq" if settings.backend == "llm-awq" else settings.version.lower()
    if version != "gemm" or settings.bits != 4:
        raise not_taken(f"awq with {settings.bits} bits in the layout {version}")
    group = _group(settings.group_size)
    return Layout(Origin.AWQ, Packing.INTERLEAVED, settings.bits, group, not settings.zero_point)


def _compressed(found: Mapping[str, Any]) -> Layout:
    settings = _read(_Compressed, found)
    name = Origin.COMPRESSED_TENSORS
    sparse = (settings.sparsity_config or {}).get("format", "dense")
    if settings.quantization_status != "compressed" or sparse != "dense":
        raise not_taken(f"{name} with the status {settings.quantization_status} and the sparsity {sparse}")
    for key in ("kv_cache_scheme", "transform_config"):
        if getattr(settings, key):
            raise not_taken(f"{name} with a {key}")
    layouts = {_scheme_layout(scheme, scheme.format or settings.format) for scheme in settings.config_groups.values()}
    if len(layouts) != 1:
        raise not_taken(f"{name} with {len(layouts)} different schemes in config_groups")
    return layouts.pop()


def _scheme_layout(scheme: _Scheme, form: str) -> Layout:
    """The layout of one group of modules; raises `CheckpointError` if it is not taken."""
    name, weights = Origin.COMPRESSED_TENSORS, scheme.weights
    if scheme.input_activations or scheme.output_activations:
        raise not_taken(f"{name} with quantized activations")
    if weights is None or weights.type != "int" or weights.dynamic is not False:
        raise not_taken(f"{name} with weights that are not integers, in the format {form}")
    if weights.actorder in ("group", "dynamic", True):
        raise reordered(f"{name} with actorder {weights.actorder}")
    packings = {"pack-quantized": Packing.ROWS, "int-quantized": Packing.BYTES, "naive-quantized": Packing.BYTES}
    if form not in packings or (packings[form] is Packing.BYTES and weights.num_bits != 8):
        raise not_taken(f"{name} with {weights.num_bits} bits in the format {form}")
    if weights.strategy not in ("channel", "group"):
        raise not_taken(f"{name} with the strategy {weights.strategy}")
    layout = Layout(name, packings[form], weights.num_bits, None, weights.symmetric)
    return layout if weights.strategy == "channel" else replace(layout, group_size=_group(weights.group_size or 0))


def reordered(got: str) -> CheckpointError:
    """The error for groups of inputs that are not beside each other."""
    return CheckpointError(
        "the weights have groups of inputs that are not beside each other (act-order)",
        got=got,
        wanted="groups of consecutive inputs: desc_act false, or actorder weight",
        hint=f"quantize the model again so; or {QUANTIZE}",
    )


def _group(size: int) -> int | None:
    """A group size, of which -1 means that all inputs share a scale."""
    return None if size == -1 else size


def _read(kind: type[S], found: Mapping[str, Any]) -> S:
    try:
        return kind.model_validate({key: value for key, value in found.items() if value is not None})
    except ValidationError as err:
        raise CheckpointError(
            f"{KEY} in config.json is invalid",
            got="; ".join(describe_invalid(err)[:3]),
            wanted=f"the settings of {found['quant_method']}",
        ) from err
