"""Recognises folders without a usable checkpoint: placeholders, dangling links, adapters, shards, other formats."""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from funnel_export.checkpoint.recognise import MERGE
from funnel_export.errors import CheckpointError
from funnel_export.system.files import LARGEST_JSON, open_regular, read_bytes

SHOWN = 8
"""Largest number of files of each kind that a message lists."""
DOWNLOAD = "hf download MODEL --local-dir {folder}"
SAVE = "load it where you trust it, then model.save_pretrained(NEW_FOLDER)"


class Kind(NamedTuple):
    """What a file is instead of a checkpoint's file, and how to get the right one."""

    what: str
    remedy: str


POINTERS = {
    b"version https://git-lfs.github.com/spec/": Kind("a Git LFS pointer", "git -C {folder} lfs pull"),
    b"/annex/objects/": Kind("a git-annex pointer", "git -C {folder} annex get ."),
    b"# xet version": Kind("a Xet pointer", DOWNLOAD),
    b"<!doctype html": Kind("a web page", DOWNLOAD),
    b"<html": Kind("a web page", DOWNLOAD),
}
"""First bytes of placeholder files, in lower case."""
LINKS = {
    "/annex/objects/": Kind("a link to a file that git-annex has not fetched", "git -C {folder} annex get ."),
    ".dvc/cache/": Kind("a link to a file that DVC has not fetched", "dvc --cd {folder} pull"),
    "/files/md5/": Kind("a link to a file that DVC has not fetched", "dvc --cd {folder} pull"),
    "": Kind("a link to a missing file", DOWNLOAD),
}
"""Dangling links, by parts of their targets; the first match counts."""
FORMATS = {
    ("model.*.safetensors", "model.safetensors.index.*.json"): Kind(
        "a variant", 'from_pretrained(..., variant="NAME") in Hugging Face, then save_pretrained without a variant'
    ),
    ("*.incomplete", "*.part", "*.crdownload", "*.aria2"): Kind("an incomplete download", DOWNLOAD),
    ("*.dvc",): Kind("a file that DVC has not fetched", "dvc --cd {folder} pull"),
    ("consolidated*.safetensors",): Kind("a format with other tensor names", "use the model in Hugging Face format"),
    ("*.safetensors",): Kind("a name that Hugging Face does not load", "save the model again with save_pretrained"),
    ("*.bin", "*.pt", "*.pth", "*.ckpt"): Kind("pickle, which can run code and is never read", SAVE),
    ("*.gguf",): Kind(
        "GGUF of llama.cpp", "use the original model, or from_pretrained(..., gguf_file=...) and save it"
    ),
    ("*.h5", "*.ckpt.index", "*.ckpt.data-*"): Kind("TensorFlow", "transformers 4: from_tf=True, then save_pretrained"),
    ("*.msgpack",): Kind("Flax", "transformers 4: from_flax=True, then save_pretrained"),
    ("global_step*", "*fsdp*", "*.distcp"): Kind(
        "shards of a training run", "zero_to_fp32.py or `accelerate merge-weights`, then save_pretrained"
    ),
    ("*.onnx",): Kind("an ONNX graph", "use the checkpoint that it was made from"),
}
"""Formats by patterns of file names; the first match counts."""
OTHERS = ("training_args.*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "adapter_*")
"""Files without a model that training leaves in a checkpoint's folder."""
SHARD = re.compile(r"([^.]+)-(\d{5})-of-(\d{5})\.safetensors")


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse placeholders of files: pointer files, web pages, dangling links.

    Raises:
        CheckpointError: lists all placeholders.
    """
    kinds = {name: kind for name in names if (kind := _stand_in(folder / name)) is not None}
    if kinds:
        raise CheckpointError(
            "files of the checkpoint are only placeholders",
            got=_by_kind(kinds),
            wanted="the real files",
            hint=_remedy(kinds, folder),
        )


def _stand_in(path: Path) -> Kind | None:
    try:
        if path.is_symlink() and not path.exists():
            return next(kind for part, kind in LINKS.items() if part in os.readlink(path))  # noqa: PTH115 - as it is
        with open_regular(path) as stream:
            head = stream.read(64).lstrip().lower()
    except OSError:  # the code that reads the file reports it
        return None
    return next((kind for beginning, kind in POINTERS.items() if head.startswith(beginning)), None)


def check_adapter(folder: Path, names: Collection[str]) -> None:
    """Refuse an adapter, with or without a model: if peft is installed, Hugging Face applies it to the model.

    Raises:
        CheckpointError: if the folder has an adapter.
    """
    found = [name for name in names if name == "adapter_config.json" or name.startswith("adapter_model.")]
    if found:
        beside = " beside a model; Hugging Face applies the adapter if peft is installed"
        raise CheckpointError(
            "the checkpoint has a PEFT adapter that is not merged into the model",
            got=f"{listed(found)} in {folder}{beside if 'config.json' in names else ''}",
            wanted="a model without an adapter",
            hint=f"{MERGE}; to export the model without the adapter, move the adapter to another folder",
        )


def no_config(folder: Path, names: Sequence[str]) -> CheckpointError:
    """The error for a folder without `config.json`, with the folder's content and subfolders that have a model's."""
    kinds = _formats(names)
    places = sorted(filter(_is_model, {*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")}))
    return CheckpointError(
        "there is no config.json in this folder",
        got=_by_kind(kinds) or listed(names) or "an empty folder",
        wanted=folder / "config.json",
        hint=" or ".join(str(place.parent) for place in places[:3]) or _remedy(kinds, folder),
    )


def _is_model(config: Path) -> bool:
    """Whether this may be a model's config; those of other parts, such as a pooling, have no `model_type`."""
    with suppress(OSError):
        return b'"model_type"' in read_bytes(config, LARGEST_JSON)
    return False


def no_weights(folder: Path, names: Sequence[str], index: str, wanted: str) -> CheckpointError:
    """The error for a folder without weights that Hugging Face loads, with the folder's content."""
    shards = [match for match in map(SHARD.fullmatch, names) if match]
    if shards:
        stem, _, total = shards[0].groups()
        whole = [f"{stem}-{number:05}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
        lacking = missing(whole, names) or "none of them is missing"
        return CheckpointError(
            "the checkpoint has shards, but no index",
            got=f"no {index} beside {listed([match[0] for match in shards])}; {lacking}",
            wanted=f"{index} and the files that it lists",
            hint=DOWNLOAD.format(folder=shlex.quote(str(folder))),
        )
    kinds = _formats(names)
    return CheckpointError(
        "the checkpoint has no safetensors file that Hugging Face loads",
        got=_by_kind(kinds) or listed(names),
        wanted=wanted,
        hint=_remedy(kinds, folder) or SAVE,
    )


def check_shards(folder: Path, files: Sequence[str], names: Collection[str], index: str) -> None:
    """Raise `CheckpointError` if the folder lacks files that the index lists."""
    if lacking := missing(files, names):
        raise CheckpointError(
            "the checkpoint lacks weight files",
            got=lacking,
            wanted=f"the {len(files)} files that {index} lists",
            hint=DOWNLOAD.format(folder=shlex.quote(str(folder))),
        )


def missing(files: Sequence[str], names: Collection[str]) -> str:
    """A text that names the `files` that are not in `names`; empty if none is missing."""
    lacking = [file for file in files if file not in names]
    return f"{len(lacking)} of {len(files)} are missing: {listed(lacking)}" if lacking else ""


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """The first names, and the number of further ones."""
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _formats(names: Sequence[str]) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for patterns, kind in FORMATS.items():
        for name in names:
            if _fits(name, patterns) and not _fits(name, OTHERS):
                kinds.setdefault(name, kind)
    return kinds


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _by_kind(kinds: Mapping[str, Kind]) -> str:
    files = {kind: [name for name, its in kinds.items() if its == kind] for kind in kinds.values()}
    return "; ".join(f"{listed(names)}: {kind.what}" for kind, names in files.items())


def _remedy(kinds: Mapping[str, Kind], folder: Path) -> str | None:
    """The remedy of the first kind; kinds are sorted by how easy their remedies are."""
    return next((kind.remedy.format(folder=shlex.quote(str(folder))) for kind in kinds.values()), None)
