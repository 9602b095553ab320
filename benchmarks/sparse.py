"""Checkpoints of published shapes in sparse files: tens of GB of weights without values, which take no disk space."""

import json
from math import prod
from pathlib import Path
from typing import Any

import torch

from funnel_export.families.registry import get_family
from funnel_export.spec.choices import Task

SHAPES: dict[str, dict[str, Any]] = {
    "2B": {},  # what Gemma2Config gives without arguments
    "9B": {
        "num_hidden_layers": 42,
        "hidden_size": 3584,
        "intermediate_size": 14336,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
    },
    "27B": {
        "num_hidden_layers": 46,
        "hidden_size": 4608,
        "intermediate_size": 36864,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 144,
    },
}
"""Of Gemma2."""
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Gemma 1, 7B": ("gemma", {}),  # what GemmaConfig gives without arguments
    "Gemma 3, 27B": (
        "gemma3_text",
        {
            "num_hidden_layers": 62,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
            "sliding_window": 1024,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
    ),
}
"""Of other families, with their `model_type`."""
SHARD_BYTES = 5_000_000_000
"""The most that one file holds, as on the Hub."""


def make_sparse_checkpoint(folder: Path, shape: str = "2B") -> int:
    """Write a bfloat16 checkpoint of one of the shapes in shards; returns the bytes that its weights seem to have."""
    folder.mkdir(parents=True)
    model_type, values = OTHERS[shape] if shape in OTHERS else ("gemma2", SHAPES[shape])
    family = get_family(model_type)
    model_class: Any = family.model_class(Task.TEXT_GENERATION)
    config = family.make_config(architectures=[model_class.__name__], dtype="bfloat16", **values)
    with torch.device("meta"):
        shapes = {name: list(p.shape) for name, p in model_class(config).named_parameters()}
    shards = _shards(shapes)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_holes(folder / file, {name: shapes[name] for name in names})
        weight_map |= dict.fromkeys(names, file)
    total = sum(map(_nbytes, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    return total


def _nbytes(shape: list[int]) -> int:
    return 2 * prod(shape)


def _shards(shapes: dict[str, list[int]]) -> list[list[str]]:
    """Names in order, file by file."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        if shards[-1] and size + _nbytes(shape) > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += _nbytes(shape)
    return shards


def _write_holes(path: Path, shapes: dict[str, list[int]]) -> None:
    """A safetensors file with its header and nothing behind it."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + _nbytes(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + offset)
