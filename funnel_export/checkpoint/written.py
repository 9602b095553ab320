"""Writes the JSON files of a checkpoint as Hugging Face has them: the config, and an index of several weight files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from funnel_export.checkpoint.checkpoint import CONFIG, INDEX
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.spec.funnel import FunnelSpec


def write_config(folder: Path, config: Mapping[str, Any], funnel: FunnelSpec | None) -> None:
    """Write a config with the given funnel in place of its own."""
    written = {key: value for key, value in config.items() if key != "funnel"}
    if funnel is not None:
        written["funnel"] = funnel.to_dict()
    (folder / CONFIG).write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_index(folder: Path, files: Mapping[str, Mapping[str, StoredTensor]]) -> None:
    """Write the index of weight files, each with its tensors by name, so that Hugging Face loads them together."""
    sizes = [tensor.nbytes for tensors in files.values() for tensor in tensors.values()]
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {name: file for file, tensors in files.items() for name in tensors},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
