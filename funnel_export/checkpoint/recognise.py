"""Recognises unsupported models by their config and the names of their tensors."""

from collections.abc import Collection, Mapping
from typing import Any

from funnel_export.checkpoint.foreign import KEY, TAKEN
from funnel_export.errors import CheckpointError
from funnel_export.families.base import Family
from funnel_export.spec.funnel import layer_name

MERGE = "merge it with PEFT: model.merge_and_unload().save_pretrained(NEW_FOLDER), and export NEW_FOLDER"

QUANTIZED_KEYS = (KEY, "compression_config", "quantization")
"""Keys in `config.json` of Hugging Face, old compressed-tensors and MLX."""
QUANTIZED = {
    *("qweight", "qzeros", "scales", "g_idx"),  # GPTQ, AWQ, MLX
    *(
        "absmax",
        "quant_map",
        "nested_absmax",
        "nested_quant_map",
        "quant_state",
        "SCB",
        "weight_format",
    ),  # bitsandbytes
    *("weight_scale", "weight_scale_inv", "weight_packed", "weight_zero_point", "input_scale"),  # compressed-tensors
    *("W_q", "_data", "_scale", "codebooks"),  # HQQ, Quanto, AQLM
    *("codes", "row_codes", "row_scales", "zeros"),  # this project's, without its quantization_config
}
"""Parts of the names of quantized tensors."""
ADAPTED = {
    *("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector"),
    *("base_layer", "modules_to_save", "original_module"),
    *("ia3_l", "oft_r", "oft_R", "hada_w1_a", "lokr_w1", "vera_lambda_b"),
}
"""Parts of the names of tensors in PEFT models."""
WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
"""Parts of names that torch.compile, DataParallel and FSDP add."""
BESIDE_THE_MODEL = {
    "AutoTokenizer",
    "AutoProcessor",
    "AutoImageProcessor",
    "AutoFeatureExtractor",
    "AutoVideoProcessor",
}
"""Keys of `auto_map` whose code does not affect what a model computes."""


def check_config(config: Mapping[str, Any], *, foreign: bool = False) -> None:
    """Refuse the config of a quantized model or of a model with custom code.

    Custom code may compute something else from the same weights, whatever `model_type` says.

    Args:
        config: the content of `config.json`.
        foreign: whether its `quantization_config` is one of those that are taken.

    Raises:
        CheckpointError: if the config is one of these.
    """
    for key in QUANTIZED_KEYS:
        if config.get(key) and not (foreign and key == KEY):
            raise _quantized(f"{key} in config.json")
    code = config.get("auto_map")
    if code and not (isinstance(code, dict) and code.keys() <= BESIDE_THE_MODEL):
        raise CheckpointError(
            "config.json names custom code for the model, which may compute something else",
            got=f"auto_map: {code}",
            wanted="a model that uses Hugging Face's own classes",
            hint="if the model needs no custom code, remove auto_map from config.json",
        )


def check_names(names: Collection[str], family: Family) -> None:
    """Refuse tensors of adapters and quantized models, and tensor names that the model does not have.

    Such names come from another format, from a prefix before the model's names, or from a wrapper of modules.

    Raises:
        CheckpointError: gives some of the names, and the expected ones if they are known.
    """
    adapted = _with_parts(names, ADAPTED)
    if adapted:
        raise CheckpointError(
            "the weights contain an adapter that is not merged",
            got=", ".join(adapted[:3]),
            wanted=f"the weights of a {family.title}, with its names",
            hint=MERGE,
        )
    quantized = _with_parts(names, QUANTIZED)
    if quantized:
        raise _quantized(", ".join(quantized[:3]))
    embeddings = family.stored_names(family.embedding)
    if names and set(embeddings).isdisjoint(names):
        _check_prefix(names, embeddings)
        _check_format(names, family)
    wrapped = _with_parts(names, WRAPPERS)
    if wrapped:
        raise _other_names(
            "the names of tensors contain parts that a module wrapper added",
            {name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in wrapped},
            "save the model without torch.compile, DataParallel or FSDP: model.save_pretrained(NEW_FOLDER)",
        )


def _with_parts(names: Collection[str], parts: Collection[str]) -> list[str]:
    return [name for name in names if not set(name.split(".")).isdisjoint(parts)]


def _check_prefix(names: Collection[str], embeddings: Collection[str]) -> None:
    for embedding in sorted(embeddings, key=len, reverse=True):
        found = next((name for name in names if name.endswith(f".{embedding}")), None)
        if found is None:
            continue
        prefix = found.removesuffix(embedding)
        raise _other_names(
            f"the names of tensors have the prefix {prefix!r}",
            {name: name.removeprefix(prefix) for name in names if name.startswith(prefix)},
            MERGE
            if prefix.startswith("base_model.")
            else f"save the inner model: model.{prefix}save_pretrained(NEW_FOLDER)",
        )


def _check_format(names: Collection[str], family: Family) -> None:
    layer = f"model.{layer_name(0)}."
    if not any(name.startswith(tuple(family.stored_names(layer))) for name in names):
        raise CheckpointError(
            f"the names of tensors are not those of Hugging Face's {family.title}",
            got=", ".join(sorted(names)[:2]),
            wanted=f"{family.embedding}, {layer}…",
            hint="convert it with its format's own tool, or load it and save it with Hugging Face's class",
        )


def _other_names(what: str, names: Mapping[str, str], hint: str) -> CheckpointError:
    """An error with two of the stored names and the names that the model expects."""
    two = dict(sorted(names.items())[:2])
    return CheckpointError(what, got=", ".join(two), wanted=", ".join(two.values()), hint=hint)


def _quantized(got: str) -> CheckpointError:
    return CheckpointError(
        "quantized checkpoints are not supported",
        got=got,
        wanted=f"weights in float32, float16 or bfloat16; or {KEY} in config.json with quant_method: {TAKEN}",
        hint="use the original checkpoint, or model.dequantize(), then model.save_pretrained(NEW_FOLDER)",
    )
