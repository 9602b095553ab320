"""Writes a checkpoint with maps for recovery `linear` beside another checkpoint's weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from funnel_export.checkpoint.checkpoint import SINGLE, Checkpoint
from funnel_export.checkpoint.modules import read_modules
from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.checkpoint.written import write_config, write_index
from funnel_export.errors import CheckpointError
from funnel_export.spec.choices import Task
from funnel_export.spec.funnel import MAPS, FunnelSpec
from funnel_export.system.place import Placing, place

if TYPE_CHECKING:
    from torch import Tensor

FITTED = "funnel.safetensors"
"""The file of the maps."""
RENAMED = "model-00001-of-00001.safetensors"
"""Name of a single weight file in the new checkpoint: Hugging Face reads an index only if there is no single file."""


def write_fitted(
    folder: Path, source: Checkpoint, spec: FunnelSpec, maps: "Mapping[str, Tensor]", placing: Placing
) -> None:
    """Write a checkpoint into a folder: weights and tokenizer of another one, a funnel in its config, and its maps.

    Args:
        folder: an empty folder.
        source: the checkpoint whose weights are used, each file as it is.
        spec: the funnel.
        maps: weights of the maps, by their names in the module.
        placing: whether to link or copy weight files.

    Raises:
        CheckpointError: if the source has maps in a file with other weights.
    """
    from safetensors.torch import save_file

    prefix = _prefix(source)
    save_file({f"{prefix}{MAPS}.{name}": tensor.contiguous() for name, tensor in maps.items()}, folder / FITTED)
    files = {FITTED: WeightFile.read(folder / FITTED)}
    for file in files_without_maps(source):
        name = RENAMED if file.file == SINGLE else file.file
        place(source.path / file.file, folder / name, placing)
        files[name] = file
    write_config(folder, source.config, spec)
    write_index(folder, {name: file.tensors for name, file in sorted(files.items())})
    for name, content in (source.companions() | read_modules(source.path, Task.FEATURE_EXTRACTION)).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)


def _prefix(source: Checkpoint) -> str:
    """What the names of a checkpoint's weights of the model without its head begin with, for example `model.`."""
    wanted = source.family.embedding.removeprefix("model.")
    stored = next(name for name in source.family.stored_names(source.family.embedding) if name in source.tensors)
    return stored.removesuffix(wanted)


def files_without_maps(source: Checkpoint) -> list[WeightFile]:
    """The weight files of a checkpoint except one of maps, which others will replace.

    Raises:
        CheckpointError: if maps are in a file with other weights.
    """
    maps, kept = f"{_prefix(source)}{MAPS}.", []
    for file in source.weights:
        found = [name for name in file.tensors if name.startswith(maps)]
        if found and len(found) < len(file.tensors):
            raise CheckpointError(
                "the checkpoint has maps of an earlier funnel among its other weights",
                got=f"{found[0]} in {file.file}",
                wanted="a checkpoint without maps, or with maps in a file of their own",
                hint="use the checkpoint that was fitted or adapted",
            )
        if not found:
            kept.append(file)
    return kept
