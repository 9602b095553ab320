"""What a folder holds in place of a checkpoint: pointers, links that lead nowhere, adapters, shards, other formats."""

import os
import re
import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from funnel_export.checkpoint.recognise import MERGE
from funnel_export.errors import CheckpointError
from funnel_export.system.files import open_regular

SHOWN = 8
"""Files that a message lists of each kind."""
DOWNLOAD = "hf download MODEL --local-dir {folder}"
SAVE = "load it where you trust it, then model.save_pretrained(NEW_FOLDER)"


class Kind(NamedTuple):
    """What a file is in place of a checkpoint's, and what to do."""

    what: str
    remedy: str


POINTERS = {
    b"version https://git-lfs.github.com/spec/": Kind("a Git LFS pointer", "git -C {folder} lfs pull"),
    b"/annex/objects/": Kind("a git-annex pointer", "git -C {folder} annex get ."),
    b"# xet version": Kind("a Xet pointer", DOWNLOAD),
    b"<!doctype html": Kind("a web page", DOWNLOAD),
    b"<html": Kind("a web page", DOWNLOAD),
}
"""How files begin that stand in for others, in lower case."""
LINKS = {
    "/annex/objects/": Kind("a link to what git-annex has not fetched", "git -C {folder} annex get ."),
    ".dvc/cache/": Kind("a link to what DVC has not fetched", "dvc --cd {folder} pull"),
    "/files/md5/": Kind("a link to what DVC has not fetched", "dvc --cd {folder} pull"),
    "": Kind("a link that leads nowhere", DOWNLOAD),
}
"""What is in the target of a link that leads nowhere."""
FORMATS = {
    ("model.*.safetensors", "model.safetensors.index.*.json"): Kind(
        "a variant", 'from_pretrained(..., variant="NAME") in Hugging Face, then save_pretrained without a variant'
    ),
    ("*.incomplete", "*.part", "*.crdownload", "*.aria2"): Kind("a download that did not end", DOWNLOAD),
    ("*.dvc",): Kind("what DVC has not fetched", "dvc --cd {folder} pull"),
    ("consolidated*.safetensors",): Kind("a format with other names than Hugging Face's", "the Hugging Face format"),
    ("*.safetensors",): Kind("a name that Hugging Face does not look for", "save it again with save_pretrained"),
    ("*.bin", "*.pt", "*.pth", "*.ckpt"): Kind("pickle, which can run code and is never read", SAVE),
    ("*.gguf",): Kind("GGUF, of llama.cpp", "the original model, or from_pretrained(..., gguf_file=...) and save it"),
    ("*.h5", "*.ckpt.index", "*.ckpt.data-*"): Kind("TensorFlow", "transformers 4: from_tf=True, then save_pretrained"),
    ("*.msgpack",): Kind("Flax", "transformers 4: from_flax=True, then save_pretrained"),
    ("global_step*", "*fsdp*", "*.distcp"): Kind(
        "shards of a training run", "zero_to_fp32.py or `accelerate merge-weights`, then save_pretrained"
    ),
    ("*.onnx",): Kind("an ONNX graph", "the checkpoint that it was made from"),
}
"""What files are, by patterns of their names; the first that fits counts."""
OTHERS = ("training_args.*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "random_states*", "adapter_*")
"""What is beside a model and holds none."""
SHARD = re.compile(r"([^.]+)-(\d{5})-of-(\d{5})\.safetensors")


def check_files(folder: Path, names: Iterable[str]) -> None:
    """Refuse files that stand in for those of a model: pointers, web pages, links that lead nowhere.

    Raises:
        CheckpointError: with all of them.
    """
    kinds = {name: kind for name in names if (kind := _stand_in(folder / name)) is not None}
    if kinds:
        raise CheckpointError(
            "files of the checkpoint are not here, and others stand in for them",
            got=_by_kind(kinds),
            wanted="the files themselves",
            hint=_remedy(kinds, folder),
        )


def _stand_in(path: Path) -> Kind | None:
    try:
        if path.is_symlink() and not path.exists():
            return next(kind for part, kind in LINKS.items() if part in os.readlink(path))  # noqa: PTH115 - as it is
        with open_regular(path) as stream:
            head = stream.read(64).lstrip().lower()
    except OSError:  # what reads the file says why
        return None
    return next((kind for beginning, kind in POINTERS.items() if head.startswith(beginning)), None)


def check_adapter(folder: Path, names: Collection[str]) -> None:
    """Refuse an adapter, alone or beside a model: Hugging Face puts it on the model wherever peft is installed.

    Raises:
        CheckpointError: if there is one.
    """
    found = [name for name in names if name == "adapter_config.json" or name.startswith("adapter_model.")]
    if found:
        beside = " beside a model, which Hugging Face puts on it where peft is installed"
        raise CheckpointError(
            "the checkpoint has a PEFT adapter, which is not merged into the model",
            got=f"{listed(found)} in {folder}{beside if 'config.json' in names else ''}",
            wanted="one model",
            hint=f"{MERGE}; without the adapter, if it is not meant: move it to another folder",
        )


def no_config(folder: Path, names: Sequence[str]) -> CheckpointError:
    """What is wrong with a folder without `config.json`: what is in it, and which folders in it have one."""
    kinds = _formats(names)
    places = sorted({*folder.glob("*/config.json"), *folder.glob("snapshots/*/config.json")})
    return CheckpointError(
        "there is no config.json in this folder",
        got=_by_kind(kinds) or listed(names) or "an empty folder",
        wanted=folder / "config.json",
        hint=" or ".join(str(place.parent) for place in places[:3]) or _remedy(kinds, folder),
    )


def no_weights(folder: Path, names: Sequence[str], index: str, wanted: str) -> CheckpointError:
    """What is wrong with a folder without the weights that Hugging Face looks for: what is in it instead."""
    shards = [match for match in map(SHARD.fullmatch, names) if match]
    if shards:
        stem, _, total = shards[0].groups()
        whole = [f"{stem}-{number:05}-of-{total}.safetensors" for number in range(1, int(total) + 1)]
        lacking = missing(whole, names) or "none of them is missing"
        return CheckpointError(
            "the checkpoint has shards without their index",
            got=f"no {index} beside {listed([match[0] for match in shards])}; {lacking}",
            wanted=f"{index} and the files that it names",
            hint=DOWNLOAD.format(folder=shlex.quote(str(folder))),
        )
    kinds = _formats(names)
    return CheckpointError(
        "the checkpoint has no safetensors that Hugging Face looks for",
        got=_by_kind(kinds) or listed(names),
        wanted=wanted,
        hint=_remedy(kinds, folder) or SAVE,
    )


def check_shards(folder: Path, files: Sequence[str], names: Collection[str], index: str) -> None:
    """Raise `CheckpointError` with all files that an index names and the folder lacks."""
    if lacking := missing(files, names):
        raise CheckpointError(
            "the checkpoint lacks weight files",
            got=lacking,
            wanted=f"the {len(files)} files that {index} names",
            hint=DOWNLOAD.format(folder=shlex.quote(str(folder))),
        )


def missing(files: Sequence[str], names: Collection[str]) -> str:
    """Which files are not among those of a folder; nothing if all are."""
    lacking = [file for file in files if file not in names]
    return f"{len(lacking)} of {len(files)} are missing: {listed(lacking)}" if lacking else ""


def listed(names: Sequence[str], shown: int = SHOWN) -> str:
    """Some names, and how many more there are."""
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
    """What to do about the first kind, which is done most easily."""
    return next((kind.remedy.format(folder=shlex.quote(str(folder))) for kind in kinds.values()), None)
