"""Documents in the words of the tests' tokenizer, and checkpoints and bundles that have this tokenizer."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from exported import Recipe
from models import random_rows
from tokenizers_of_words import save_tokenizer

BOS = 1
LENGTHS = (11, 30, 1, 23, 8)
"""Words of each document."""


def ids_of(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[list[int]]:
    """Token ids of documents, without special tokens."""
    return [[max(3, token) for token in row] for row in random_rows(lengths, seed)]


def text_of(ids: Sequence[int]) -> str:
    """The text that the tokenizer reads as these tokens."""
    return " ".join(f"w{token}" for token in ids)


def save_lines(path: Path, rows: Sequence[object]) -> Path:
    """Write JSON lines."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def corpus(folder: Path, documents: Sequence[Sequence[int]]) -> Path:
    """A file with these documents."""
    return save_lines(folder / "corpus.jsonl", [{"text": text_of(ids)} for ids in documents])


def checkpoint_of(recipe: Recipe, folder: Path) -> Path:
    """A copy of a recipe's checkpoint with the tokenizer."""
    shutil.copytree(recipe.checkpoint(), folder)
    save_tokenizer(folder)
    return folder


def bundle_of(recipe: Recipe, folder: Path) -> Path:
    """A copy of a recipe's bundle with the tokenizer."""
    shutil.copytree(recipe.bundle().path, folder)
    save_tokenizer(folder)
    return folder
