"""Putting a funnel on a loaded model, and taking it off."""

import copy
from dataclasses import replace
from types import MethodType
from typing import TypeVar

from transformers.modeling_utils import PreTrainedModel

from funnel_export.errors import CheckpointError, SpecError
from funnel_export.families.registry import family_of
from funnel_export.funnel.model import PartRunner, Plan, call_part, funnel_forward
from funnel_export.spec.funnel import FunnelSpec, segments_of

M = TypeVar("M", bound=PreTrainedModel)


def apply_funnel(model: M, spec: FunnelSpec | None = None) -> M:
    """Put a funnel on this model, in place; parameters, their names and every other model stay as they are.

    Args:
        model: a loaded Hugging Face model of one of the families, with eager attention.
        spec: the funnel; by default the one that the model's `config.json` carries under "funnel".

    Returns:
        The same model. Its config carries the funnel from now on, so that `save_pretrained` writes it.

    Raises:
        SpecError: if the funnel does not fit the model or its task, or the model has one already.
        CheckpointError: if the model is of no family that can carry a funnel.
    """
    if spec is None:
        stored = getattr(model.config, "funnel", None)
        if stored is None:
            raise SpecError(
                "no funnel was given, and the model's config has none",
                got=f"a {type(model).__name__} without config.funnel",
                wanted="a FunnelSpec",
                hint='apply_funnel(model, FunnelSpec.parse("6:20:2"))',
            )
        spec = FunnelSpec.from_dict(stored)
    spec.validate(model.config.num_hidden_layers)
    family, task = family_of(model)
    spec.validate_task(task)
    patch_forward(model, spec)
    base, own = family.base_of(model), model.config
    base.funnel_plan = replace(base.funnel_plan, config=own)
    model.config = base.config = copy.deepcopy(own)  # other models may have been made from the same config object
    model.config.funnel = spec.to_dict()
    return model


def remove_funnel(model: M) -> M:
    """Take the funnel off again: the model runs as it did, and its config has no funnel.

    Raises:
        SpecError: if the model has no funnel.
    """
    family, _ = family_of(model)
    base = family.base_of(model)
    own = base.funnel_plan.config if "funnel_plan" in base.__dict__ else None
    unpatch_forward(model)
    if own is not None:
        model.config = base.config = own
    if hasattr(model.config, "funnel"):
        del model.config.funnel
    return model


def patch_forward(
    model: PreTrainedModel, spec: FunnelSpec | None, run: PartRunner = call_part, *, last_only: bool = False
) -> None:
    """Replace the forward of this model without its head; with no funnel it computes what the dense model computes.

    With `last_only` it gives the hidden states of each row's last token only, [batch, 1, width].

    Raises:
        SpecError: if it is replaced already.
        CheckpointError: if the model is of no family here, or has another attention than the eager one.
    """
    family, _ = family_of(model)
    base = family.base_of(model)
    if "funnel_plan" in base.__dict__:
        raise SpecError(
            "the model has a funnel already",
            got=f"{base.funnel_plan.spec}",
            wanted="a model without one",
            hint="remove_funnel(model) first",
        )
    attention = base.config._attn_implementation
    if attention != "eager":
        raise CheckpointError(
            "a funnel needs eager attention: other kinds drop softcaps in some versions of transformers",
            got=f"attn_implementation={attention!r}",
            wanted="attn_implementation='eager'",
            hint=f"{type(model).__name__}.from_pretrained(..., attn_implementation='eager')",
        )
    if getattr(base.config, "use_bidirectional_attention", False):
        raise CheckpointError(
            "bidirectional attention is not supported",
            got="use_bidirectional_attention=true",
            wanted=f"a causal {family.title}",
        )
    if "forward" in base.__dict__:
        raise CheckpointError(
            "something else has replaced this model's forward, and the two would undo each other",
            got=f"{type(model).__name__} with a forward of its own",
            wanted="the class's forward",
            hint="load it without device_map and other hooks, then apply the funnel",
        )
    segments = segments_of(spec, model.config.num_hidden_layers)
    base.funnel_plan = Plan(family, spec, segments, run, last_only=last_only)
    base.forward = MethodType(funnel_forward, base)
    # The proof that it took: what a call of the model reaches is this forward, with this funnel.
    if getattr(base.forward, "__func__", None) is not funnel_forward or base.funnel_plan.spec is not spec:
        raise CheckpointError("the funnel did not take", got=type(base).__name__, wanted="a model loaded as it is")


def unpatch_forward(model: PreTrainedModel) -> None:
    """Give the model its own forward back; `SpecError` if it has it."""
    base = family_of(model)[0].base_of(model)
    if "funnel_plan" not in base.__dict__:
        raise SpecError("the model has no funnel", got=type(model).__name__, wanted="a model after apply_funnel")
    del base.funnel_plan
    del base.forward
