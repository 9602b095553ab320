"""Checks that checkpoints are of the same model, and finds each weight in all of them."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.folder import listed
from funnel_export.checkpoint.safetensors import DTYPE_SIZES, StoredTensor
from funnel_export.errors import CheckpointError
from funnel_export.spec.funnel import MAPS

SHOWN = 3
"""Largest number of faults of one kind that a message lists."""
ROUNDING = 1e-6
"""Largest relative difference of two numbers in config.json that mean the same; some formats store them in float32."""


@dataclass(frozen=True, slots=True)
class Place:
    """Location of a weight in a checkpoint."""

    path: Path
    """The safetensors file."""
    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class Weight:
    """Locations of the same weight in an adapted checkpoint, its base model and the instruct model of that."""

    adapted: Place
    base: Place
    instruct: Place


def find_weights(adapted: Checkpoint, base: Checkpoint, instruct: Checkpoint) -> dict[str, Weight]:
    """The weights of an adapted checkpoint that its base and instruct model have too, by their names in it.

    Names may differ in a prefix, which depends on the class and the version of Hugging Face that saved the checkpoint.
    Maps of a recovery and buffers are left out. A head that is tied to the embedding need not be stored everywhere.

    Raises:
        CheckpointError: if the checkpoints differ in their family, their architecture, or the names or shapes of their
            tensors, or if a dtype is not supported.
    """
    checkpoints = {"adapted": adapted, "base": base, "instruct": instruct}
    for role in ("base", "instruct"):
        _check_architecture(adapted, role, checkpoints[role])
    tensors = {role: _by_bare_name(each) for role, each in checkpoints.items()}
    for role in ("base", "instruct"):
        _check_names(adapted, tensors["adapted"], role, tensors[role])
    found = {}
    for name in adapted.tensors:
        bare = adapted.family.bare_name(name)
        if not _is_own(adapted, bare):
            places = {role: _place(each, tensors[role], bare) for role, each in checkpoints.items()}
            _check_tensors(name, places)
            found[name] = Weight(**places)
    return found


def has_maps(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint has weights of a recovery."""
    return any(_is_map(checkpoint.family.bare_name(name)) for name in checkpoint.tensors)


def _check_architecture(adapted: Checkpoint, role: str, other: Checkpoint) -> None:
    if adapted.family is not other.family:
        raise CheckpointError(
            f"the adapted checkpoint and the {role} model are of different families",
            got=f"{adapted.family.title} and {other.family.title}",
            wanted="checkpoints of one family",
            hint=f"load the {role} model with the class of the adapted one, and save it with save_pretrained"
            if adapted.family.schema is other.family.schema
            else None,
        )
    mine, theirs = adapted.architecture.facts(), other.architecture.facts()
    differing = [name for name in mine.keys() | theirs.keys() if not _equal(mine.get(name), theirs.get(name))]
    if differing:
        shown = sorted(differing)[: 2 * SHOWN]
        raise CheckpointError(
            f"the adapted checkpoint and the {role} model have different architectures",
            got="; ".join(f"{name}: {mine.get(name)} and {theirs.get(name)}" for name in shown),
            wanted="the same values in both config.json",
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two values of config.json are equal, apart from rounding."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING)
    return bool(one == other)


def _check_names(adapted: Checkpoint, tensors: Collection[str], role: str, others: Collection[str]) -> None:
    """Raise `CheckpointError` unless both have the same weights; the other model must not have maps."""
    mine = {bare for bare in tensors if not _may_be_missing(adapted, bare)}
    theirs = {bare for bare in others if _is_map(bare) or not _may_be_missing(adapted, bare)}
    if mine != theirs:
        only = {"the adapted checkpoint": sorted(mine - theirs), f"the {role} model": sorted(theirs - mine)}
        raise CheckpointError(
            f"the adapted checkpoint and the {role} model have different weights",
            got="; ".join(f"only {who} has {listed(names, SHOWN)}" for who, names in only.items() if names),
            wanted="the same names of tensors, apart from maps of the recovery",
        )


def _check_tensors(name: str, places: Mapping[str, Place]) -> None:
    """Raise `CheckpointError` if a weight has different shapes, or a dtype that is not supported."""
    wanted = places["adapted"].tensor.shape
    for role, place in places.items():
        if place.tensor.dtype not in DTYPE_SIZES:
            raise CheckpointError(
                "a weight has an unsupported dtype",
                got=f"{name} of the {role} model: {place.tensor.dtype}",
                wanted=" | ".join(DTYPE_SIZES),
                hint="save the model in one of these: model.to(torch.bfloat16).save_pretrained(NEW_FOLDER)",
            )
        if place.tensor.shape != wanted:
            raise CheckpointError(
                f"a weight has different shapes in the adapted checkpoint and the {role} model",
                got=f"{name}: {list(wanted)} and {list(place.tensor.shape)}",
                wanted="the same shape",
            )


def _place(checkpoint: Checkpoint, tensors: Mapping[str, StoredTensor], bare: str) -> Place:
    """Location of a weight; of the embedding, for a tied head that is not stored."""
    family = checkpoint.family
    tensor = tensors[bare if bare in tensors else family.bare_name(family.embedding)]
    return Place(checkpoint.path / tensor.file, tensor)


def _by_bare_name(checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    return {checkpoint.family.bare_name(name): tensor for name, tensor in checkpoint.tensors.items()}


def _is_map(bare: str) -> bool:
    return bare.startswith(f"{MAPS}.")


def _is_own(checkpoint: Checkpoint, bare: str) -> bool:
    """Whether a tensor is not a weight of the dense model: it belongs to a recovery, or is a buffer."""
    return _is_map(bare) or bare.endswith(checkpoint.family.buffers)


def _may_be_missing(checkpoint: Checkpoint, bare: str) -> bool:
    """Whether another checkpoint of the same model need not have a tensor."""
    tied = checkpoint.architecture.tie_word_embeddings and bare == checkpoint.family.bare_name(checkpoint.family.head)
    return tied or _is_own(checkpoint, bare)
