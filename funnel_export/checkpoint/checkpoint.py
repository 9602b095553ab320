"""Reads a checkpoint without loading its weights: config, tensor offsets, tokenizer files."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

from pydantic_core import from_json

from funnel_export.checkpoint.copied import read_copied
from funnel_export.checkpoint.folder import check_adapter, check_files, check_shards, no_config, no_weights
from funnel_export.checkpoint.foreign import Layout, read_layout
from funnel_export.checkpoint.foreign_tensor import ForeignTensor, describe, foreign_bare_of, foreign_tensor
from funnel_export.checkpoint.quantized import METHOD, QUANTIZED, QuantizedTensor, bare_of, quantized_tensor
from funnel_export.checkpoint.recognise import check_config, check_names
from funnel_export.checkpoint.safetensors import DTYPE_NAMES, DTYPE_SIZES, StoredTensor, WeightFile
from funnel_export.checkpoint.tokenizer import SETTINGS, readable_by_all
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.families.architecture import Architecture
from funnel_export.families.base import Family
from funnel_export.families.registry import get_family
from funnel_export.spec.choices import Dtype, Task
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.quantization import Quantization
from funnel_export.system.files import LARGEST_JSON, permission_hint, read_bytes

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"

GENERATION = "generation_config.json"
COMPANIONS = (
    GENERATION,
    "tokenizer.json",
    "tokenizer.model",
    SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
)
"""Files that are copied into bundles; a tokenizer that is saved again may not load in other versions."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on disk, of a supported family."""

    path: Path
    config: dict[str, Any]
    """The content of `config.json`."""
    family: Family
    architecture: Architecture
    weights: tuple[WeightFile, ...]
    layout: Layout | None = None
    """How others store the weights that they quantized, None if there are none."""

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, foreign: bool = False) -> Self:
        """Open a checkpoint folder; reads JSON files, safetensors headers and a sample of every tensor.

        Args:
            path: the folder.
            foreign: whether to open a checkpoint that others quantized, whose weights only an export converts.

        Raises:
            CheckpointError: if it is not a safetensors checkpoint of a supported family.
        """
        folder = Path(path)
        names = _list(folder)
        check_files(folder, (n for n in names if n in (CONFIG, INDEX, *COMPANIONS) or n.endswith(".safetensors")))
        check_adapter(folder, names)
        if CONFIG not in names:
            raise no_config(folder, names)
        config = read_json(folder / CONFIG)
        family = get_family(config.get("model_type"))
        if config.get("transformers_weights"):
            raise CheckpointError(
                "transformers_weights in config.json is not supported",
                got=config["transformers_weights"],
                wanted=f"{SINGLE} or {INDEX}",
            )
        quantized = quantization_of(config) is not None
        layout = None if quantized else read_layout(config)
        if layout is not None and not foreign:
            raise _only_exported(folder, layout)
        if not quantized:
            check_config(config, foreign=layout is not None)
        architecture = family.read_architecture(config)
        stored = [QUANTIZED] if quantized else _weight_file_names(folder, names)
        files = tuple(WeightFile.read(folder / name) for name in stored)
        checkpoint = cls(folder, config, family, architecture, files, layout)
        check_names(checkpoint.parameters, family)
        return checkpoint

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Every stored tensor by name."""
        return {name: tensor for file in self.weights for name, tensor in file.tensors.items()}

    @property
    def parameters(self) -> list[str]:
        """Names of the weights; of quantized ones without what their tensors' names add."""
        if self.layout is not None:
            return list(dict.fromkeys(foreign_bare_of(name, self.layout) for name in self.tensors))
        if self.quantization is None:
            return list(self.tensors)
        return list(dict.fromkeys(map(bare_of, self.tensors)))

    @property
    def quantized(self) -> dict[str, QuantizedTensor]:
        """Every quantized weight by name, see `funnel_export.checkpoint.quantized`.

        Raises:
            CheckpointError: if one is incomplete.
        """
        tensors = self.tensors
        return {name: found for name in self.parameters if (found := quantized_tensor(tensors, name)) is not None}

    @property
    def quantization(self) -> Quantization | None:
        """How the weights are quantized, None if they are not.

        Raises:
            CheckpointError: if others quantized them in a way that cannot be exported.
        """
        if self.layout is not None:
            return describe(self.layout, self.family, self.tensors, self.parameters)
        return quantization_of(self.config)

    @property
    def funnel(self) -> FunnelSpec | None:
        """The funnel in `config.json`, None if there is none."""
        stored = self.config.get("funnel")
        return None if stored is None else FunnelSpec.from_dict(stored)

    @property
    def task(self) -> Task:
        """The task of the class under `architectures` in `config.json`.

        Raises:
            CheckpointError: if no known class is named there.
        """
        names = self.architecture.architectures or []
        tasks = {name: task for task, name in self.family.class_names.items()} | dict(self.family.other_classes)
        for name in names:
            if name in tasks:
                return tasks[name]
        raise CheckpointError(
            "the task of the checkpoint is unknown",
            got=f"architectures {names} in config.json",
            wanted=" | ".join(tasks),
            hint="give the task, for example --task text-generation",
        )

    @property
    def dtype(self) -> Dtype:
        """The dtype in which the embedding is stored; of a quantized one, that of its scales.

        Hugging Face's `dtype="auto"` reads it from `config.json` first, which may differ from the files.
        """
        found = self.find_weight(self.family.embedding)
        return DTYPE_NAMES[(found if isinstance(found, StoredTensor) else found.scales).dtype]

    def companions(self) -> dict[str, bytes]:
        """The contents of the files that are copied into bundles, by name.

        In the tokenizer's settings, names that only transformers 5 reads are replaced.

        Raises:
            CheckpointError: if files are links out of the checkpoint (lists all of them), or a file cannot be read.
        """
        content = read_copied(self.path, [name for name in COMPANIONS if (self.path / name).exists()])
        return {name: readable_by_all(text) if name == SETTINGS else text for name, text in content.items()}

    def find_weight(self, parameter: str) -> StoredTensor | QuantizedTensor | ForeignTensor:
        """The weight of a model's parameter, quantized or not; `ForeignTensor` only if there is a `layout`.

        Raises:
            CheckpointError: see `find`; or if it is quantized and incomplete.
        """
        tensors, names = self.tensors, self.family.stored_names(parameter)
        found: Iterable[QuantizedTensor | ForeignTensor | None]
        if self.layout is None:
            found = (quantized_tensor(tensors, name) for name in names)
        else:
            found = (foreign_tensor(tensors, name, self.layout) for name in names)
        return next((each for each in found if each is not None), None) or self.find(parameter)

    def find(self, parameter: str) -> StoredTensor:
        """The stored tensor of a model's parameter, for checkpoints of models with and without a head.

        Raises:
            CheckpointError: if it is missing, or its dtype is not supported.
        """
        tensors = self.tensors
        for name in self.family.stored_names(parameter):
            if name in tensors:
                return _usable(name, tensors[name])
        head = parameter.startswith(self.family.task_heads)
        raise CheckpointError(
            "the checkpoint lacks a weight",
            got=f"no {parameter} among {len(tensors)} tensors in {self.path}",
            wanted="a trained head for this task" if head else "every weight of the model",
            hint="use --task feature-extraction, or a checkpoint with that head"
            if head
            else "check config.json and the download",
        )


def quantization_of(config: Mapping[str, Any]) -> Quantization | None:
    """How `config.json` says that the weights are quantized, None if they are not or if others quantized them.

    Raises:
        CheckpointError: if it is invalid.
    """
    found = config.get("quantization_config")
    if not isinstance(found, dict) or found.get("quant_method") != METHOD:
        return None
    try:
        return Quantization.from_dict({name: value for name, value in found.items() if name != "quant_method"})
    except SpecError as err:
        raise CheckpointError(
            "quantization_config in config.json is invalid", got=err, wanted="what `quantize` wrote"
        ) from err


def _only_exported(folder: Path, layout: Layout) -> CheckpointError:
    """The error for a checkpoint of others where its weights cannot be used."""
    return CheckpointError(
        "a checkpoint that others quantized can only be exported",
        got=f"{folder}: quant_method {layout.origin}",
        wanted="weights in float32, float16 or bfloat16, or a bundle",
        hint="use its bundle: funnel-export export CHECKPOINT BUNDLE --funnel none; or the original checkpoint",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raise `CheckpointError` if it cannot be read or is not an object."""
    try:
        value = from_json(read_bytes(path, LARGEST_JSON), allow_inf_nan=False)
        json.dumps(value, allow_nan=False)  # refuses 1e999 too, which the parser turns into infinity
    except OSError as err:
        raise CheckpointError(f"{path.name} cannot be read", got=err, wanted=path, hint=permission_hint(err)) from err
    except ValueError as err:
        raise CheckpointError(f"{path.name} is not JSON", got=f"{path}: {err}", wanted="a JSON object") from err
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} is not a JSON object", got=type(value).__name__, wanted="an object")
    return value


def _list(folder: Path) -> list[str]:
    """Sorted names of a folder's entries."""
    try:
        return sorted(os.listdir(folder))  # noqa: PTH208 - names, which `iterdir` would make paths of
    except NotADirectoryError as err:
        raise CheckpointError(
            "the checkpoint is not a folder", got=folder, wanted=f"a folder with {CONFIG}", hint=str(folder.parent)
        ) from err
    except FileNotFoundError as err:
        raise CheckpointError("checkpoint not found", got=folder, wanted=f"a folder with {CONFIG}") from err
    except OSError as err:
        raise CheckpointError(
            "the checkpoint's folder cannot be read", got=err, wanted="a readable folder", hint=permission_hint(err)
        ) from err


def _weight_file_names(folder: Path, names: list[str]) -> list[str]:
    if (folder / SINGLE).is_file():  # like Hugging Face, prefer a single file to an index
        return [SINGLE]
    if INDEX in names:
        stored = read_json(folder / INDEX).get("weight_map")
        if not isinstance(stored, dict) or not stored or not all(isinstance(n, str) for n in stored.values()):
            raise CheckpointError(
                f"{INDEX} has no valid weight_map",
                got=folder / INDEX,
                wanted="an object of tensor names and file names",
            )
        files = sorted(set(stored.values()))
        for file in files:
            if Path(file).name != file or "\0" in file:
                raise CheckpointError("a weight file is outside the checkpoint", got=repr(file), wanted="a file name")
            if not file.endswith(".safetensors"):  # other names could collide with a bundle's files, like manifest.json
                raise CheckpointError(
                    "a weight file does not have the suffix of safetensors files",
                    got=repr(file),
                    wanted="a name that ends in .safetensors",
                )
        check_shards(folder, files, names, INDEX)
        return files
    if SINGLE in names:  # not a regular file; reading it raises the error
        return [SINGLE]
    raise no_weights(folder, names, INDEX, f"{SINGLE} or {INDEX}")


def _usable(name: str, tensor: StoredTensor) -> StoredTensor:
    if tensor.dtype not in DTYPE_SIZES or prod(tensor.shape) * DTYPE_SIZES[tensor.dtype] != tensor.nbytes:
        raise CheckpointError(
            "a weight has an unsupported dtype",
            got=f"{name}: {tensor.dtype} {list(tensor.shape)}, {tensor.nbytes} bytes",
            wanted=" | ".join(DTYPE_SIZES),
            hint="save the model in one of these: model.to(torch.bfloat16).save_pretrained(NEW_FOLDER)",
        )
    return tensor
