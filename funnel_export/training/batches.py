"""Rows of tokens as batches of tensors for training."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from funnel_export.quality.rows import Batch, Row


class TrainingBatch(NamedTuple):
    """Rows, padded on the right; see `funnel_export.quality.rows.Batch`. `Trainer` counts tokens by the first names."""

    input_ids: Tensor
    """[rows, longest]"""
    attention_mask: Tensor
    """[rows, longest], 1 for tokens and 0 for padding."""
    rows: Tensor
    """[scored]"""
    columns: Tensor
    """[scored]"""
    targets: Tensor
    """[scored]"""


class RowDataset(Dataset[Row]):
    """Rows as PyTorch's data loader reads them."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class Collator:
    """Makes a batch of rows; `pad` is the padding token."""

    def __init__(self, pad: int) -> None:
        self.pad = pad

    def __call__(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """The fields of a `TrainingBatch` by name."""
        batch = Batch.of(rows, self.pad)
        fields = (batch.tokens, batch.mask, batch.rows, batch.columns, batch.targets)
        return TrainingBatch(*map(torch.from_numpy, fields))._asdict()
