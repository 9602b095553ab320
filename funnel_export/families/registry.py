"""The families by the `model_type` that a `config.json` names."""

from importlib import import_module
from typing import Any

from funnel_export.errors import CheckpointError
from funnel_export.families.base import Family
from funnel_export.spec.choices import Task

_FAMILIES = {
    "gemma": ("funnel_export.families.gemma", "GEMMA"),
    "gemma2": ("funnel_export.families.gemma2", "GEMMA2"),
    "gemma3_text": ("funnel_export.families.gemma3", "GEMMA3_TEXT"),
    "gemma3": ("funnel_export.families.gemma3", "GEMMA3"),
    "vaultgemma": ("funnel_export.families.vaultgemma", "VAULTGEMMA"),
}
_REASONS = {
    "gemma3n": "its layers share keys and values and take an embedding of their own for each token",
    "gemma4": "its layers have different shapes and share keys and values",
    "paligemma": "it reads images with the text, and its prefix is not causal",
    "recurrent_gemma": "its recurrent blocks carry a state from token to token, which pooling would break",
    "t5gemma": "it is an encoder with a decoder, and a funnel is defined for a decoder alone",
}
"""Why relatives of these families are not supported, by what their model type begins with."""


def get_family(model_type: object) -> Family:
    """A family by its model type; `CheckpointError` for one that is not supported."""
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        reason = next((why for kind, why in _REASONS.items() if str(model_type).startswith(kind)), None)
        raise CheckpointError(
            "this kind of model is not supported" + (f": {reason}" if reason else ""),
            got=f"model_type {model_type!r} in config.json",
            wanted=" or ".join(f"model_type {name!r}" for name in _FAMILIES),
        )
    module, name = _FAMILIES[model_type]
    family: Family = getattr(import_module(module), name)
    return family


def families() -> list[Family]:
    """All families."""
    return [get_family(name) for name in _FAMILIES]


def family_of(model: Any) -> tuple[Family, Task]:
    """The family and the task of a loaded Hugging Face model.

    Raises:
        CheckpointError: if its class is not supported.
    """
    for family in families():
        task = family.task_of(model)
        if task is not None:
            return family, task
    raise CheckpointError(
        "funnels are not supported for this class of model",
        got=type(model).__name__,
        wanted=", ".join(name for family in families() for name in family.class_names.values()),
    )
