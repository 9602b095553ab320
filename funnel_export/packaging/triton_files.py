"""The files of a package for Triton's Python back end: a whole bundle, and a few lines that import its model."""

import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from funnel_export.bundle.engine import Engine
from funnel_export.bundle.load import Bundle
from funnel_export.bundle.manifest import ENGINES, MANIFEST, NamedFiles
from funnel_export.bundle.replace import foreign_entry
from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, INDEX
from funnel_export.system.files import sha256_of
from funnel_export.system.place import Placing, place

MODEL_FILE, BUNDLE = "model.py", "bundle"
CACHE = "__pycache__"
"""What the back end's Python writes beside `model.py`."""
MODEL = '''\
"""Generates text with the bundle beside this file; written by funnel-export package."""

from funnel_export.packaging.triton_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def digest_of(bundle: Bundle) -> str:
    """The digest that `digest_in` will find in the version."""
    files = {f"{BUNDLE}/{name}": sha256_of(bundle.path / name) for name in _copied(bundle)}
    return _digest(files | {MODEL_FILE: hashlib.sha256(MODEL.encode()).hexdigest()})


def write_version(version: Path, bundle: Bundle, engines: Iterable[Engine], weights: Placing, plans: Placing) -> None:
    """Write a version's folder.

    Args:
        version: the folder, which exists and is empty.
        bundle: the bundle; its reports and other engines are left out.
        engines: engines of the bundle.
        weights: how weight files get there.
        plans: how the engines' files get there.

    Raises:
        OSError: if a file cannot be read or written.
    """
    (version / MODEL_FILE).write_text(MODEL, encoding="utf-8")
    folder = version / BUNDLE
    folder.mkdir()
    for name in _copied(bundle):
        shutil.copyfile(bundle.path / name, folder / name)
    for weight in bundle.manifest.weights:
        place(bundle.path / weight.file, folder / weight.file, weights)
    for engine in engines:
        kept = folder / ENGINES / engine.name
        kept.mkdir(parents=True)
        shutil.copyfile(engine.path / MANIFEST, kept / MANIFEST)
        for record in engine.manifest.files:
            place(engine.path / record.file, kept / record.file, plans)


def digest_in(version: Path) -> str | None:
    """A digest of all copied files of a version; None if there are others, or no bundle.

    Weights and engines are left out: they have digests of their own, which `load_bundle` and `load_engine` check.

    Raises:
        OSError: if a file cannot be read.
    """
    folder = version / BUNDLE
    named = NamedFiles.read(folder / MANIFEST)
    if named is None or folder.is_symlink() or foreign_entry(folder, ()) is not None:
        return None
    if not {entry.name for entry in version.iterdir()} <= {MODEL_FILE, BUNDLE, CACHE}:
        return None
    if any(entry.suffix != ".pyc" for entry in (version / CACHE).glob("*")):
        return None
    copied = [entry for entry in folder.iterdir() if entry.is_file() and entry.name not in named.weight_names]
    files = {f"{BUNDLE}/{entry.name}": sha256_of(entry) for entry in copied}
    return _digest(files | {MODEL_FILE: sha256_of(version / MODEL_FILE)})


def _copied(bundle: Bundle) -> list[str]:
    """The files of a bundle that are always copied."""
    graphs = [record.file for record in bundle.manifest.graphs.values()]
    return [name for name in (MANIFEST, CONFIG, INDEX, *COMPANIONS, *graphs) if (bundle.path / name).exists()]


def _digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
