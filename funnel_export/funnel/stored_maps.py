"""Reads the maps of recovery `linear` from a checkpoint: Hugging Face's models do not know these weights."""

from typing import Any

import torch

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.hub import find_checkpoint
from funnel_export.checkpoint.values import read_values
from funnel_export.errors import CheckpointError
from funnel_export.families.base import Family
from funnel_export.funnel.maps import DropMap, SlotMaps, make_maps
from funnel_export.spec.funnel import MAPS, FunnelSpec


def read_maps(spec: FunnelSpec | None, checkpoint: Checkpoint) -> SlotMaps | DropMap | None:
    """The maps that a checkpoint has for a funnel, in float32; None if the funnel needs none.

    Raises:
        CheckpointError: if the checkpoint lacks a weight of them, or has another shape of it.
    """
    maps = make_maps(spec, checkpoint.architecture.hidden_size)
    for name, parameter in [] if maps is None else maps.named_parameters():
        stored, wanted = checkpoint.find(f"{MAPS}.{name}"), tuple(parameter.shape)
        if stored.shape != wanted:
            raise CheckpointError(
                "a weight of the recovery has another shape than the funnel requires",
                got=f"{MAPS}.{name}: {list(stored.shape)}",
                wanted=list(wanted),
            )
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(read_values(checkpoint.path, stored)))
    return maps


def own_checkpoint(model: Any, family: Family) -> Checkpoint:
    """The checkpoint that a model was loaded from.

    Raises:
        CheckpointError: if it is not known or not there.
    """
    name = str(getattr(model, "name_or_path", "") or "")
    if not name:
        raise CheckpointError(
            "the weights of the recovery are not known",
            got="a model that was not loaded from a folder or from the Hub",
            wanted="a model of from_pretrained",
        )
    commit = getattr(model.config, "_commit_hash", None)
    found = Checkpoint.open(find_checkpoint(name, commit).folder)
    if found.family is not family:
        raise CheckpointError(
            "the model's checkpoint is of another family", got=found.family.title, wanted=family.title
        )
    return found
