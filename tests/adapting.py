"""For tests of training: texts that have structure, batches of them, and short runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from corpora import BOS, save_lines, text_of
from models import PAD, VOCAB, random_rows

from funnel_export.quality.rows import Row
from funnel_export.training.batches import Collator, TrainingBatch

FUNNEL = "1:3:2"
LENGTHS = (9, 4, 12)
"""Tokens of the rows of a batch."""
SHORT: dict[str, Any] = {"length": 24, "dtype": "float32", "device": "cpu"}
"""Options of a short run."""
TRAINING: dict[str, Any] = {"steps": 7, "batch_size": 4, "learning_rate": 3e-3}
"""Settings of a short run."""


def patterns(count: int, seed: int = 0) -> list[list[int]]:
    """Token ids of documents, each five tokens repeated: a model that learns to copy them predicts most of them."""
    rng = np.random.default_rng(seed)
    return [np.tile(rng.integers(3, VOCAB, 5), 5)[:23].tolist() for _ in range(count)]


def save_texts(path: Path, count: int = 40) -> Path:
    """A file of such documents."""
    return save_lines(path, [{"text": text_of(ids)} for ids in patterns(count)])


def save_classes(path: Path, count: int = 40) -> Path:
    """Texts, labeled by whether their last word is one of the first 30."""
    names = ("high", "low")
    return save_lines(path, [{"text": text_of(ids), "label": names[ids[-1] < 30]} for ids in patterns(count)])


def save_tags(path: Path, count: int = 40) -> Path:
    """Lists of words, each labeled by whether it is one of the first 30."""
    names = ("high", "low")
    rows = [{"tokens": text_of(ids).split(), "tags": [names[each < 30] for each in ids]} for ids in patterns(count)]
    return save_lines(path, rows)


def batch_of(rows: Sequence[Row]) -> TrainingBatch:
    """Rows as a batch."""
    return TrainingBatch(**Collator(PAD)(rows))


def language_batch(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> tuple[TrainingBatch, list[list[int]]]:
    """A batch for a language model, and its rows with the last target of each."""
    found = [[BOS, *row] for row in random_rows(lengths, seed)]
    return batch_of([Row(0, ids(row[:-1]), np.arange(len(row) - 1), ids(row[1:])) for row in found]), found


def ids(row: Sequence[int]) -> Any:
    """Tokens or labels as a row has them."""
    return np.array(row, np.int64)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradients of a model's weights by name, of those that have one."""
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
