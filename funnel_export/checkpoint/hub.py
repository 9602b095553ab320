"""Finds a checkpoint: a folder, or a model on the Hugging Face Hub or in its cache."""

import difflib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, INDEX
from funnel_export.checkpoint.modules import MODULES, OPTIONS
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.system.files import permission_hint

FILES = (CONFIG, INDEX, "*.safetensors", *COMPANIONS, MODULES, *OPTIONS, f"[0-9]*_*/{CONFIG}")
"""Files that are downloaded; none of them can run code. A `*` stands for slashes too."""
WANTED = "a folder with config.json, or the id of a model on the Hub"


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's folder, and its name for the manifest."""

    folder: Path
    name: str


def is_here(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether a file or folder with this path exists; otherwise it may be a Hub id.

    Raises:
        CheckpointError: if the path cannot be accessed.
    """
    try:
        return Path(checkpoint).exists()
    except OSError as err:  # no permission, or the name is too long
        raise CheckpointError(
            "the path of the checkpoint cannot be accessed", got=err, wanted=WANTED, hint=permission_hint(err)
        ) from err


def find_checkpoint(checkpoint: str | os.PathLike[str], revision: str | None = None) -> Found:
    """The folder of a checkpoint: the given folder itself, or the snapshot of a Hub id in the Hub's cache.

    The snapshot is downloaded if it is not in the cache. Without a network, or with `HF_HUB_OFFLINE=1`, only the cache
    is used. The usual variables of Hugging Face apply: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`.

    Args:
        checkpoint: a folder, or a Hub id such as `google/gemma-2-2b`.
        revision: branch, tag or commit of a Hub id; by default `main`.

    Raises:
        CheckpointError: if there is no such folder, and the model is not found or cannot be downloaded.
        SpecError: if a revision is given for a folder.
    """
    name = os.fspath(checkpoint)
    if is_here(name):
        if revision is not None:
            raise SpecError(
                "a folder has no revisions",
                got=f"revision {revision!r} of the folder {name}",
                wanted="a Hub id with a revision, or a folder without one",
            )
        return Found(Path(name), name)
    snapshot = _snapshot(name, revision)
    return Found(snapshot, f"{name}@{snapshot.name}")


def _snapshot(name: str, revision: str | None) -> Path:
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    lost: type[Exception] = vars(errors)["HTTPError"]  # of the HTTP client that the installed version uses
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except HFValidationError as err:
        raise _no_folder(name) from err
    except GatedRepoError as err:
        raise CheckpointError(
            "the model is gated, and you have no access to it",
            got=name,
            wanted="a token of an account that has accepted the model's terms",
            hint=f"accept the terms at https://huggingface.co/{name}, then `hf auth login`",
        ) from err
    except RevisionNotFoundError as err:
        raise CheckpointError("revision not found", got=f"{name} at {revision}", wanted=WANTED) from err
    except (RepositoryNotFoundError, LocalEntryNotFoundError) as err:
        if revision is None and Path(name).parent.is_dir():  # more likely a path than an id
            raise _no_folder(name) from err
        if isinstance(err, RepositoryNotFoundError):
            raise CheckpointError(
                "checkpoint not found", got=name, wanted=WANTED, hint="run `hf auth login` if the model is private"
            ) from err
        raise CheckpointError(
            "checkpoint not found on this machine, and the Hub cannot be reached",
            got=f"{name}{f' at {revision}' if revision else ''}, which is not a folder and not in the Hub's cache",
            wanted=WANTED,
            hint=f"with a network connection: hf download {name}{f' --revision {revision}' if revision else ''}",
        ) from err
    except (HfHubHTTPError, lost, OSError) as err:
        raise CheckpointError("the model cannot be downloaded", got=f"{name}: {err}", wanted=WANTED) from err


def _no_folder(name: str) -> CheckpointError:
    """The error for a missing path, with the first missing part of the path and a similar existing path."""
    path = Path(name)
    missing = next(place for place in (*reversed(path.parents), path) if not place.exists())
    beside: list[str] = []
    with suppress(OSError):  # the parent may be a file, or not readable
        beside = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()]
    names = difflib.get_close_matches(missing.name, beside, n=1)
    close = [place for name in names if (place := missing.parent / name / path.relative_to(missing)).exists()]
    return CheckpointError(
        "checkpoint not found",
        got=f"{name}: the folder {missing} does not exist",
        wanted=WANTED,
        hint=str(close[0]) if close else None,
    )
