"""Derived weights: tensors that an export makes of the checkpoint's, in a file of their own."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from funnel_export.bundle.weights import Derived, DerivedFile, Recipe
from funnel_export.checkpoint.safetensors import WeightFile


def derive_weights(folder: Path, file: str, tensors: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Derived]:
    """Write tensors that are made of the checkpoint's into a file of their own, before a graph refers to them.

    Args:
        folder: the bundle's folder, while it is being written.
        file: name of the file, which ends in .safetensors.
        tensors: by the names of their initializers.
        recipe: how they were made.

    Returns:
        Where each lies, by name.
    """
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    record = DerivedFile.of(folder / file, recipe)
    return {name: Derived(tensor, record) for name, tensor in WeightFile.read(folder / file).tensors.items()}
