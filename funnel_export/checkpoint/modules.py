"""The modules of sentence-transformers, which turn the hidden states of a model into one embedding of the text.

`modules.json` lists them: first the model, in the checkpoint's folder, then pooling, dense layers and others, each in a
folder of its own (https://sbert.net/docs/sentence_transformer/usage/custom_models.html).
"""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from funnel_export.checkpoint.checkpoint import CONFIG, INDEX, SINGLE, read_json
from funnel_export.checkpoint.copied import read_copied
from funnel_export.checkpoint.folder import DOWNLOAD, check_files, missing, no_weights
from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.errors import CheckpointError, describe_invalid
from funnel_export.spec.choices import Task
from funnel_export.system.files import LARGEST_JSON

MODULES = "modules.json"
OPTIONS = ("config_sentence_transformers.json", "sentence_bert_config.json")
"""Optional files beside it, with prompts, the similarity function and the largest number of tokens."""
LIBRARY, MODEL = "sentence_transformers", "Transformer"
"""The package of all classes that `modules.json` may name, and the class of the model, which the graph replaces."""
FILES = {
    "Pooling": (CONFIG,),
    "Dense": (CONFIG, SINGLE),
    "LayerNorm": (CONFIG, SINGLE),
    "Dropout": (CONFIG,),
    "Normalize": (),
}
"""The files of each module that can follow the model, by its class."""
FOLDER = r"[0-9]{1,3}_[A-Za-z0-9_-]{1,100}"
"""Regular expression of a module's folder, its number and usually its class; no other entry of a bundle matches it."""
ALONE = f"to export the model without its modules, export a copy without {MODULES}"


class _Module(BaseModel):
    """The keys of a module in `modules.json` that decide which files belong to it."""

    type: str
    path: str

    @property
    def kind(self) -> str:
        """Its class, without the modules of Python that contain it; empty if it is not in the library."""
        return self.type.rpartition(".")[2] if self.type.startswith(f"{LIBRARY}.") else ""


_LIST = TypeAdapter(list[_Module])


def read_modules(checkpoint: Path, task: Task) -> dict[str, bytes]:
    """The contents of sentence-transformers' files in a checkpoint, by path.

    Args:
        checkpoint: the checkpoint's folder.
        task: what the model is exported for; only feature extraction has the outputs that the modules read.

    Returns:
        The files, none for other tasks and for checkpoints without `modules.json`. Pickles are never among them.

    Raises:
        CheckpointError: if `modules.json` is invalid or names folders outside the checkpoint, other modules than those
            in `FILES` or custom code; if files are missing or invalid, or are links out of the checkpoint.
    """
    if task is not Task.FEATURE_EXTRACTION or not os.path.lexists(checkpoint / MODULES):
        return {}
    check_files(checkpoint, [MODULES])
    modules = _parse(checkpoint, read_copied(checkpoint, [MODULES], LARGEST_JSON)[MODULES])
    needed = [f"{module.path}/{name}" for module in modules for name in FILES[module.kind]]
    names = [MODULES, *(name for name in OPTIONS if os.path.lexists(checkpoint / name)), *dict.fromkeys(needed)]
    check_files(checkpoint, names)
    _check_complete(checkpoint, needed)
    contents = read_copied(checkpoint, names)
    for name in names[1:]:
        if name.endswith(SINGLE):
            WeightFile.read(checkpoint / name)
        else:
            read_json(checkpoint / name)
    return contents


def _parse(checkpoint: Path, content: bytes) -> list[_Module]:
    """The modules after the model; raises `CheckpointError` if one of them is not supported."""
    try:
        modules = _LIST.validate_json(content)
    except ValidationError as err:
        raise CheckpointError(
            f"{MODULES} is not a list of modules",
            got=f"{checkpoint / MODULES}: {'; '.join(describe_invalid(err)[:5])}",
            wanted='[{"type": CLASS, "path": FOLDER}, ...]',
        ) from err
    first = [(module.kind, module.path) for module in modules[:1]]
    if first != [(MODEL, "")]:
        raise CheckpointError(
            f"the first module in {MODULES} is not the model of this folder",
            got=", ".join(f"{module.type} in {module.path!r}" for module in modules[:1]) or "no modules",
            wanted=f"{LIBRARY}...{MODEL} in ''",
            hint=ALONE,
        )
    if others := [module.type for module in modules[1:] if module.kind not in FILES]:
        raise CheckpointError(
            f"{MODULES} has modules that a bundle cannot contain",
            got=", ".join(others),
            wanted=f"{' | '.join(FILES)} of {LIBRARY}; code in a checkpoint is never run or copied",
            hint=ALONE,
        )
    if outside := [module.path for module in modules[1:] if not re.fullmatch(FOLDER, module.path)]:
        raise CheckpointError(
            f"{MODULES} has modules whose path is not the name of a module's folder",
            got=", ".join(map(repr, outside)),
            wanted="names such as 1_Pooling, of folders in the checkpoint",
            hint=ALONE,
        )
    return modules[1:]


def _check_complete(checkpoint: Path, needed: Sequence[str]) -> None:
    """Raise `CheckpointError` if the folder lacks files of modules, or has a pickle in place of their weights."""
    there = [name for name in needed if _is_there(checkpoint / name)]
    for file in [checkpoint / name for name in needed if name.endswith(SINGLE) and name not in there]:
        others = sorted({entry.name for entry in file.parent.glob("*")} - {CONFIG})
        if others:
            raise no_weights(file.parent, others, INDEX, str(file))
    if lacking := missing(needed, there):
        raise CheckpointError(
            "the checkpoint lacks files of its modules",
            got=lacking,
            wanted=f"the files of the modules in {MODULES}",
            hint=DOWNLOAD.format(folder=shlex.quote(str(checkpoint))),
        )


def _is_there(file: Path) -> bool:
    """Whether a file exists; True if that is unknown, since reading it reports the reason."""
    try:
        file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
