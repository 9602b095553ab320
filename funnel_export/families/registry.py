"""The families by the `model_type` that a `config.json` names."""

from importlib import import_module
from typing import Any

from funnel_export.errors import CheckpointError
from funnel_export.families.base import Family
from funnel_export.spec.choices import Task

_FAMILIES = {"gemma2": ("funnel_export.families.gemma2", "GEMMA2")}


def get_family(model_type: object) -> Family:
    """A family by its model type; `CheckpointError` for one that is not supported."""
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise CheckpointError(
            "this kind of model is not supported",
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
        CheckpointError: if it is of no class that can carry a funnel.
    """
    for family in families():
        task = family.task_of(model)
        if task is not None:
            return family, task
    raise CheckpointError(
        "this is not a model that can carry a funnel",
        got=type(model).__name__,
        wanted=", ".join(name for family in families() for name in family.class_names.values()),
    )
