"""Finding a checkpoint: a folder, or a model on the Hugging Face Hub or in its cache."""

import difflib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, INDEX
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.system.files import permission_hint

FILES = (CONFIG, INDEX, "*.safetensors", *COMPANIONS)
"""What is downloaded: nothing that could run code."""
WANTED = "a folder with config.json, or the id of a model on the Hub"


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's folder, and what it is called in a manifest."""

    folder: Path
    name: str


def is_here(checkpoint: str | os.PathLike[str]) -> bool:
    """Whether there is something of this name on this machine; otherwise it may be a Hub id.

    Raises:
        CheckpointError: if this user may not look.
    """
    try:
        return Path(checkpoint).exists()
    except OSError as err:  # no permission, or a name longer than names may be
        raise CheckpointError(
            "the checkpoint cannot be looked for", got=err, wanted=WANTED, hint=permission_hint(err)
        ) from err


def find_checkpoint(checkpoint: str | os.PathLike[str], revision: str | None = None) -> Found:
    """The folder of a checkpoint: a folder as it is, a Hub id as its snapshot in the Hub's cache.

    A snapshot is downloaded unless the cache has it. Without a network, or with `HF_HUB_OFFLINE=1`, the cache alone is
    asked. Cache and access are set up as for every Hugging Face library: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`.

    Args:
        checkpoint: a folder, or a Hub id such as `google/gemma-2-2b`.
        revision: branch, tag or commit of a Hub id; by default `main`.

    Raises:
        CheckpointError: if there is no such folder, and no such model that can be had.
        SpecError: if a revision of a folder is asked for.
    """
    name = os.fspath(checkpoint)
    if is_here(name):
        if revision is not None:
            raise SpecError(
                "a folder has no revisions",
                got=f"revision {revision!r} of the folder {name}",
                wanted="a Hub id with a revision, or a folder without",
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
            "access to this model must be asked for",
            got=f"{name} is gated",
            wanted="a token of an account that has accepted its terms",
            hint=f"accept them at https://huggingface.co/{name}, then `hf auth login`",
        ) from err
    except RevisionNotFoundError as err:
        raise CheckpointError("the model has no such revision", got=f"{name} at {revision}", wanted=WANTED) from err
    except (RepositoryNotFoundError, LocalEntryNotFoundError) as err:
        if revision is None and Path(name).parent.is_dir():  # a path, more likely than an id
            raise _no_folder(name) from err
        if isinstance(err, RepositoryNotFoundError):
            raise CheckpointError(
                "there is no such checkpoint", got=name, wanted=WANTED, hint="`hf auth login` if it is private"
            ) from err
        raise CheckpointError(
            "there is no such checkpoint here, and the Hub cannot be reached",
            got=f"{name}{f' at {revision}' if revision else ''}, which is no folder and not in the Hub's cache",
            wanted=WANTED,
            hint=f"where there is a network: hf download {name}{f' --revision {revision}' if revision else ''}",
        ) from err
    except (HfHubHTTPError, lost, OSError) as err:
        raise CheckpointError("the model cannot be downloaded", got=f"{name}: {err}", wanted=WANTED) from err


def _no_folder(name: str) -> CheckpointError:
    """What is said of a path that leads nowhere: the first part of it that is missing, and a name like it."""
    path = Path(name)
    missing = next(place for place in (*reversed(path.parents), path) if not place.exists())
    beside: list[str] = []
    with suppress(OSError):  # the place before it may be a file, or not be readable
        beside = [entry.name for entry in missing.parent.iterdir() if entry.is_dir()]
    names = difflib.get_close_matches(missing.name, beside, n=1)
    close = [place for name in names if (place := missing.parent / name / path.relative_to(missing)).exists()]
    return CheckpointError(
        "there is no such checkpoint",
        got=f"{name}: the folder {missing} does not exist",
        wanted=WANTED,
        hint=str(close[0]) if close else None,
    )
