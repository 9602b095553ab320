"""Finding a checkpoint: a folder, or a model on the Hugging Face Hub or in its cache."""

import os
from dataclasses import dataclass
from pathlib import Path

from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, INDEX
from funnel_export.errors import CheckpointError, SpecError

FILES = (CONFIG, INDEX, "*.safetensors", *COMPANIONS)
"""What is downloaded: nothing that could run code."""


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint's folder, and what it is called in a manifest."""

    folder: Path
    name: str


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
    if Path(name).exists():
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
    wanted = "a folder with config.json, or the id of a model on the Hub"
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES)))
    except HFValidationError as err:
        raise CheckpointError("there is no such checkpoint", got=name, wanted=wanted) from err
    except GatedRepoError as err:
        raise CheckpointError(
            "access to this model must be asked for",
            got=f"{name} is gated",
            wanted="a token of an account that has accepted its terms",
            hint=f"accept them at https://huggingface.co/{name}, then `hf auth login`",
        ) from err
    except RevisionNotFoundError as err:
        raise CheckpointError("the model has no such revision", got=f"{name} at {revision}", wanted=wanted) from err
    except RepositoryNotFoundError as err:
        raise CheckpointError(
            "there is no such checkpoint", got=name, wanted=wanted, hint="`hf auth login` if it is private"
        ) from err
    except LocalEntryNotFoundError as err:
        raise CheckpointError(
            "there is no such checkpoint here, and the Hub cannot be reached",
            got=f"{name}{f' at {revision}' if revision else ''}, which is no folder and not in the Hub's cache",
            wanted=wanted,
            hint=f"where there is a network: hf download {name}{f' --revision {revision}' if revision else ''}",
        ) from err
    except (HfHubHTTPError, lost, OSError) as err:
        raise CheckpointError("the model cannot be downloaded", got=f"{name}: {err}", wanted=wanted) from err
