"""Derived weights: tensors that an export computes from the checkpoint's, stored in a separate file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from funnel_export.bundle.weights import Derived, DerivedFile, Recipe
from funnel_export.checkpoint.safetensors import WeightFile


def derive_weights(folder: Path, file: str, tensors: Mapping[str, Tensor], recipe: Recipe) -> dict[str, Derived]:
    """Write derived tensors into a safetensors file, so that a graph can refer to them.

    Args:
        folder: folder of the unfinished bundle.
        file: name of the file; it ends in .safetensors.
        tensors: the tensors by the names of their initializers.
        recipe: how they were derived.

    Returns:
        The source of each tensor, by name.
    """
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    record = DerivedFile.of(folder / file, recipe)
    return {name: Derived(tensor, record) for name, tensor in WeightFile.read(folder / file).tensors.items()}
