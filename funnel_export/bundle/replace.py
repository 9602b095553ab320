"""Replacing an earlier bundle: which folders an export may replace, and which engines it keeps."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from funnel_export.bundle.engine import is_engine, read_engine_manifest
from funnel_export.bundle.load import Bundle, check_made_from
from funnel_export.bundle.manifest import ENGINES, MANIFEST, REPORTS, Manifest, NamedFiles, read_manifest
from funnel_export.bundle.weights import WeightRecord
from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, INDEX
from funnel_export.errors import BundleError, CheckpointError
from funnel_export.system.claims import is_hidden, is_partial
from funnel_export.system.files import sha256_of
from funnel_export.system.place import Placing, place


def foreign_entry(folder: Path, report_files: Collection[str]) -> Path | None:
    """The first entry of a bundle's folder that no command has written; the folder itself if it is not a bundle.

    Args:
        folder: a folder that may be a bundle, of any version, complete or not.
        report_files: names of the files that commands write into `reports`.

    Returns:
        None if every entry was written by a command.
    """
    named = NamedFiles.read(folder / MANIFEST)
    if named is None:
        return folder
    files = named.names | {MANIFEST, CONFIG, INDEX, *COMPANIONS}
    folders = {file.partition("/")[0] for file in named.module_digests if "/" in file}
    for entry in sorted(entry for entry in folder.iterdir() if not is_hidden(entry)):
        if entry.name == ENGINES:
            foreign = _first_foreign(entry, is_engine)
        elif entry.name == REPORTS:
            foreign = _first_foreign(entry, lambda file: file.name in report_files and file.is_file())
        elif entry.name in folders:
            foreign = _first_foreign(entry, lambda file: f"{file.parent.name}/{file.name}" in files and file.is_file())
        else:
            foreign = None if entry.name in files and entry.is_file() else entry
        if foreign is not None:
            return foreign
    return None


def reports_of(folder: Path) -> list[str]:
    """The files in a bundle's `reports`, without partial files of killed commands."""
    reports = folder / REPORTS
    return sorted(f"{REPORTS}/{file.name}" for file in reports.glob("*") if not is_partial(file))


def changed_files(earlier: Path, bundle: Bundle) -> list[str]:
    """Files of an earlier bundle that the user may have changed, and that differ in the new bundle.

    These are graphs, weights, modules and `config.json` that do not match the earlier manifest, and tokenizer files,
    whose digests are in no manifest.

    Args:
        earlier: folder of the earlier bundle, of any version; nothing counts as changed if it has no manifest.
        bundle: the new bundle.

    Raises:
        BundleError: if a file cannot be read.
    """
    named = NamedFiles.read(earlier / MANIFEST)
    if named is None:
        return []
    exported = {
        CONFIG: named.config_sha256,
        **named.graph_digests,
        **named.module_digests,
        **dict.fromkeys(COMPANIONS),
    }
    try:
        digests = {file: sha256_of(earlier / file) for file in exported if (earlier / file).exists()}
        changed = {file: digest for file, digest in digests.items() if digest != exported[file]}
        kept = {file for file, digest in changed.items() if _has(bundle.path / file, digest)}
    except OSError as err:
        raise BundleError(
            "a file of the earlier bundle cannot be read", got=err, hint="export to another name"
        ) from err
    return sorted([*(changed.keys() - kept), *_changed_weights(earlier, bundle)])


def _changed_weights(earlier: Path, bundle: Bundle) -> list[str]:
    """See `changed_files`; files that are no longer valid safetensors are not counted."""
    with contextlib.suppress(BundleError):  # another schema version
        exported = read_manifest(earlier, Manifest, "bundle", "funnel-export export").weights
        fresh = {weight.file: weight for weight in bundle.manifest.weights}
        return [
            weight.file
            for weight in exported
            if _differs(weight, earlier / weight.file)
            and (weight.file not in fresh or _differs(fresh[weight.file], earlier / weight.file))
        ]
    return []


def _differs(weight: WeightRecord, file: Path) -> bool:
    try:
        return weight.mismatch(file) is not None
    except CheckpointError:
        return False


def _has(file: Path, digest: str) -> bool:
    return file.exists() and sha256_of(file) == digest


def take_engines(earlier: Path, bundle: Bundle) -> list[str]:
    """Link or copy the engines that were compiled from the same graph and weights into a new bundle.

    Args:
        earlier: folder of the earlier bundle; its engines are linked if the file system can, else copied.
        bundle: the new bundle, without engines.

    Returns:
        Names of the engines that were not taken, in alphabetical order.

    Raises:
        BundleError: if an engine cannot be linked or copied.
    """
    left = []
    for folder in sorted(_engine_folders(earlier)):
        try:
            check_made_from(read_engine_manifest(folder), bundle, f"the engine {folder}", "compile the bundle again")
        except BundleError:
            left.append(folder.name)
            continue
        kept = bundle.path / ENGINES / folder.name
        try:
            kept.mkdir(parents=True)
            for file in folder.iterdir():
                if not is_partial(file):
                    place(file, kept / file.name, Placing.LINK)
        except OSError as err:
            raise BundleError("an engine could not be kept", got=err, wanted=f"{folder} in the new bundle") from err
    return left


def _engine_folders(bundle: Path) -> Iterator[Path]:
    return (file.parent for file in (bundle / ENGINES).glob(f"*/{MANIFEST}") if not is_partial(file.parent))


def _first_foreign(folder: Path, is_known: Callable[[Path], bool]) -> Path | None:
    """The first entry that is neither known nor partial; `folder` itself if it is a link or not a folder."""
    if folder.is_symlink() or not folder.is_dir():
        return folder
    return next((entry for entry in sorted(folder.iterdir()) if not (is_partial(entry) or is_known(entry))), None)
