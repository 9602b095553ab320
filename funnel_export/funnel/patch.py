"""Apply a funnel to a loaded model, and remove it."""

import copy
from dataclasses import replace
from types import MethodType
from typing import Any, TypeVar

from transformers.modeling_utils import PreTrainedModel

from funnel_export.errors import CheckpointError, SpecError
from funnel_export.families.base import Family
from funnel_export.families.registry import family_of
from funnel_export.funnel.maps import DropMap, SlotMaps, attach_maps, detach_maps, make_maps, maps_of
from funnel_export.funnel.model import Plan, funnel_forward
from funnel_export.funnel.parts import PartRunner, call_part
from funnel_export.funnel.stored_maps import own_checkpoint, read_maps
from funnel_export.spec.choices import Recovery, Task
from funnel_export.spec.funnel import FunnelSpec, segments_of

M = TypeVar("M", bound=PreTrainedModel)


def apply_funnel(model: M, spec: FunnelSpec | None = None) -> M:
    """Apply a funnel to a model, in place. Its parameters, their names and all other models stay unchanged.

    Args:
        model: a loaded Hugging Face model of a supported family, with eager attention.
        spec: the funnel; by default the one under "funnel" in the model's config. Recovery `linear` takes its maps from
            the checkpoint that the model was loaded from; they are new ones, which equal `delta`, if that has none.

    Returns:
        The same model. Its config now has the funnel, so `save_pretrained` writes it to `config.json`.

    Raises:
        SpecError: if the funnel does not fit the model or its task, or the model already has one.
        CheckpointError: if the model's family, attention or forward is not supported, or maps cannot be read.
    """
    if spec is None:
        stored = getattr(model.config, "funnel", None)
        if stored is None:
            raise SpecError(
                "no funnel given, and the model's config has none",
                got=f"a {type(model).__name__} without config.funnel",
                wanted="a FunnelSpec",
                hint='apply_funnel(model, FunnelSpec.parse("6:20:2"))',
            )
        spec = FunnelSpec.from_dict(stored)
    spec.validate(model.config.num_hidden_layers)
    family, task = family_of(model)
    spec.validate_task(task)
    base, own = family.base_of(model), model.config
    patch_forward(model, spec, maps=None if maps_of(base) is not None else _stored_maps(model, spec, family))
    base.funnel_plan = replace(base.funnel_plan, config=own)
    model.config = base.config = copy.deepcopy(own)  # other models may have been made from the same config object
    model.config.funnel = spec.to_dict()
    return model


def _stored_maps(model: PreTrainedModel, spec: FunnelSpec, family: Family) -> SlotMaps | DropMap | None:
    """The maps of the model's checkpoint for a funnel; None if it needs none, or the checkpoint has none."""
    values = getattr(model.config, "funnel", None)
    stored = None if values is None else FunnelSpec.from_dict(values)
    if stored is None or not (spec.recovery is stored.recovery is Recovery.LINEAR):
        return None
    spec.validate_maps(stored)
    return read_maps(spec, own_checkpoint(model, family))


def remove_funnel(model: M) -> M:
    """Remove the funnel, in place: the model gets its original forward and config back.

    Raises:
        SpecError: if the model has no funnel.
    """
    family, _ = family_of(model)
    base = family.base_of(model)
    own = base.funnel_plan.config if is_patched(base) else None
    unpatch_forward(model)
    detach_maps(base)
    if own is not None:
        model.config = base.config = own
    if hasattr(model.config, "funnel"):
        del model.config.funnel
    return model


def patch_forward(
    model: PreTrainedModel,
    spec: FunnelSpec | None,
    run: PartRunner = call_part,
    *,
    last_only: bool = False,
    maps: SlotMaps | DropMap | None = None,
) -> None:
    """Replace the forward of the model's base, in place. Without a funnel it computes the same as the dense model.

    With `last_only` it returns the hidden states of each row's last token only, [batch, 1, width]. Recovery `linear`
    uses the maps that the model already has, the given ones, or new ones.

    Raises:
        SpecError: if the forward is already replaced.
        CheckpointError: if the model's family, attention or forward is not supported.
    """
    family, task = family_of(model)
    base = family.base_of(model)
    if is_patched(base):
        raise SpecError(
            "the model already has a funnel",
            got=f"{base.funnel_plan.spec}",
            wanted="a model without a funnel",
            hint="call remove_funnel(model) first",
        )
    attention = base.config._attn_implementation
    if attention != "eager":
        raise CheckpointError(
            "a funnel needs eager attention: other implementations drop softcaps in some versions of transformers",
            got=f"attn_implementation={attention!r}",
            wanted="attn_implementation='eager'",
            hint=f"{type(model).__name__}.from_pretrained(..., attn_implementation='eager')",
        )
    if family.is_bidirectional(base.config):
        _check_bidirectional(family, task, spec)
    if "forward" in base.__dict__:
        raise CheckpointError(
            "the model's forward was already replaced by other code",
            got=f"a {type(model).__name__} with a replaced forward",
            wanted="the forward of its class",
            hint="load the model without device_map and other hooks, then apply the funnel",
        )
    segments = segments_of(spec, model.config.num_hidden_layers)
    without_maps = maps_of(base) is None
    if without_maps:
        attach_maps(base, maps or make_maps(spec, base.config.hidden_size))
    used = maps_of(base) if spec is not None and spec.recovery is Recovery.LINEAR else None
    base.funnel_plan = Plan(family, spec, segments, run, last_only=last_only, maps=used)
    base.forward = MethodType(funnel_forward, base)
    # A class can override attribute access, so check that calls reach this forward with this funnel.
    if getattr(base.forward, "__func__", None) is not funnel_forward or base.funnel_plan.spec is not spec:
        del base.__dict__["forward"], base.__dict__["funnel_plan"]
        if without_maps:
            detach_maps(base)
        raise CheckpointError(
            "the forward of this model cannot be replaced", got=type(base).__name__, wanted="an unmodified model"
        )


def _check_bidirectional(family: Family, task: Task, spec: FunnelSpec | None) -> None:
    if not family.schema.may_be_bidirectional:
        raise CheckpointError(
            f"bidirectional attention is not supported for {family.title}",
            got="use_bidirectional_attention true",
            wanted="false, or a Gemma3 text model",
        )
    if task.generates:
        raise CheckpointError(
            "a model with bidirectional attention cannot generate text",
            got=f"use_bidirectional_attention true for {task}",
            wanted=f"{Task.FEATURE_EXTRACTION} or {Task.TEXT_CLASSIFICATION}",
            hint=f"--task {Task.FEATURE_EXTRACTION}",
        )
    if spec is not None and not spec.lookahead:
        raise SpecError(
            "a funnel on a model with bidirectional attention needs lookahead",
            got=f"the funnel {spec} without lookahead: the last tokens of a text would be in no slot",
            wanted="a funnel with lookahead",
            hint="--lookahead",
        )


def is_patched(base: Any) -> bool:
    """Whether `patch_forward` has replaced the forward of a model's base."""
    return "funnel_plan" in base.__dict__


def unpatch_forward(model: PreTrainedModel) -> None:
    """Restore the model's original forward; raise `SpecError` if it is not replaced."""
    base = family_of(model)[0].base_of(model)
    if not is_patched(base):
        raise SpecError("the model has no funnel", got=type(model).__name__, wanted="a model after apply_funnel")
    del base.funnel_plan
    del base.forward


def set_stride(model: PreTrainedModel, stride: int) -> None:
    """Give the funnel of a model another stride, in place; the funnel in its config stays."""
    base = family_of(model)[0].base_of(model)
    plan = base.funnel_plan
    spec = replace(plan.spec, stride=stride)
    if isinstance(plan.maps, SlotMaps):
        plan.maps.stride = stride
    base.funnel_plan = replace(plan, spec=spec, segments=segments_of(spec, model.config.num_hidden_layers))
