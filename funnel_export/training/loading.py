"""Loads the dense model of a training run: a checkpoint's as it is, with a new head, or with new weights."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from transformers.utils import logging

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError
from funnel_export.families.architecture import Architecture
from funnel_export.funnel.maps import attach_maps
from funnel_export.funnel.stored_maps import read_maps
from funnel_export.spec.choices import Task
from funnel_export.spec.export import ExportSpec
from funnel_export.training.plan import Plan
from funnel_export.verify.reference import expecting_maps, load_checkpoint, without_progress_bars


def load(plan: Plan, architecture: Architecture) -> Any:
    """The dense model, with the checkpoint's maps if they are trained further.

    Args:
        plan: the run.
        architecture: that of the model, with the labels of a new head.

    Raises:
        CheckpointError: if PyTorch cannot load the model.
    """
    dtype, source = getattr(torch, plan.dtype), plan.source
    kept = plan.funnel if plan.keeps_maps else None
    torch.manual_seed(plan.training.seed)
    if plan.from_scratch:
        kind: Any = source.family.model_class(plan.task)
        config = source.family.read_config(source.config)
        config.update(_labels(architecture))
        model = kind._from_config(config, dtype=dtype, attn_implementation="eager")
    elif plan.has_new_head:
        model = _with_head(source, plan.task, dtype, _labels(architecture))
        attach_maps(source.family.base_of(model), read_maps(kept, source))
    else:
        model = load_checkpoint(source, ExportSpec(task=plan.task, dtype=plan.dtype, funnel=kept), dtype)
    if hasattr(model.config, "funnel"):
        del model.config.funnel  # the model is dense
    return model.eval().requires_grad_(False)


def _with_head(source: Checkpoint, task: Task, dtype: torch.dtype, labels: Mapping[str, Any]) -> Any:
    kind: Any = source.family.model_class(task)
    with without_progress_bars(), _without_table(), expecting_maps(kind):
        model, found = kind.from_pretrained(
            source.path,
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=True,
            output_loading_info=True,
            **labels,
            **source.family.load_options(source.config),
        )
    missing = [name for name in found["missing_keys"] if not name.startswith(source.family.task_heads)]
    if missing:
        raise CheckpointError(
            "the checkpoint lacks a weight", got=f"no {missing[0]}", wanted="every weight of the model"
        )
    return model


@contextlib.contextmanager
def _without_table() -> Iterator[None]:
    """Keep Hugging Face from printing which weights a new head lacks."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _labels(architecture: Architecture) -> dict[str, Any]:
    names = {int(index): str(name) for index, name in (architecture.id2label or {}).items()}
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}} if names else {}
