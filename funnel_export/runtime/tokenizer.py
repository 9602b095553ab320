"""Loads a bundle's tokenizer."""

from pathlib import Path
from typing import Any

from funnel_export.errors import BundleError

VOCABULARIES = ("tokenizer.json", "tokenizer.model")
HINT = "put the model's tokenizer files into the checkpoint, and export again"


def check_tokenizer(folder: Path) -> None:
    """Raise `BundleError` unless a bundle has a tokenizer."""
    if not any((folder / name).exists() for name in VOCABULARIES):
        raise BundleError("the bundle has no tokenizer", got=folder, wanted=" or ".join(VOCABULARIES), hint=HINT)


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in a bundle's folder; raises `BundleError` if there is none, or it is damaged."""
    from transformers import AutoTokenizer

    check_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as err:  # the tokenizer's file may be anything
        raise BundleError("the tokenizer cannot be loaded", got=f"{type(err).__name__}: {err}", hint=HINT) from err
