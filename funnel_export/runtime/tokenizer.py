"""Loads the tokenizer of a bundle or a checkpoint."""

from pathlib import Path
from typing import Any

from funnel_export.errors import BundleError, FunnelExportError

VOCABULARIES = ("tokenizer.json", "tokenizer.model")
HINT = "put the model's tokenizer files into the checkpoint, and export again"


def check_tokenizer(folder: Path, error: type[FunnelExportError] = BundleError) -> None:
    """Raise an error, for a bundle `BundleError`, unless a folder has a tokenizer."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        what = "the bundle has no tokenizer" if error is BundleError else "the checkpoint has no tokenizer"
        raise error(what, got=folder, wanted=" or ".join(VOCABULARIES), hint=HINT)


def load_tokenizer(folder: Path, error: type[FunnelExportError] = BundleError) -> Any:
    """The fast tokenizer in a folder; raises an error, for a bundle `BundleError`, if it is missing or damaged."""
    from transformers import AutoTokenizer

    check_tokenizer(folder, error)
    try:
        # Without an answer to the last, transformers asks at the terminal whether to run code of the folder.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as err:  # the tokenizer's file may be anything
        raise error("the tokenizer cannot be loaded", got=f"{type(err).__name__}: {err}", hint=HINT) from err
