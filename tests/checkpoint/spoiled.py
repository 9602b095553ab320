"""Copies of the tiny checkpoint, and functions that change their tensors and config."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from exported import Recipe
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"


def copied(folder: Path, recipe: Recipe | None = None) -> Path:
    """A copy of the checkpoint, with an empty tokenizer file."""
    checkpoint = shutil.copytree((recipe or Recipe()).checkpoint(), folder / "checkpoint")
    (checkpoint / "tokenizer.json").write_text("{}")
    return checkpoint


def retensor(checkpoint: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Replace the stored tensors by `change` of them."""
    save_file(change(load_file(checkpoint / WEIGHTS)), checkpoint / WEIGHTS, metadata={"format": "pt"})


def renamed(checkpoint: Path, rename: Callable[[str], str]) -> None:
    """Rename the stored tensors."""
    retensor(checkpoint, lambda tensors: {rename(name): tensor for name, tensor in tensors.items()})


def configured(checkpoint: Path, **values: object) -> None:
    """Change values of config.json."""
    file = checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
