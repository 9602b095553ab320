"""The texts of a training run: rows of tokens to train on, and rows that are held out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError, DataError, SpecError
from funnel_export.families.architecture import Architecture
from funnel_export.quality.documents import Document, read_documents
from funnel_export.quality.rows import Row, RowSpec, TokenRows, make_rows
from funnel_export.runtime.tokenizer import load_tokenizer
from funnel_export.spec.choices import Task
from funnel_export.spec.data import DataSpec

HELD_OUT = 20
"""One of this number of documents is held out; if there are fewer documents, one of this number of rows."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Rows of tokens, and the model's architecture with their labels."""

    training: TokenRows
    held_out: TokenRows
    sha256: str
    """Digest of all rows."""
    architecture: Architecture

    @property
    def tokens(self) -> int:
        """Tokens to train on."""
        return sum(len(row.tokens) for row in self.training.rows)


def read_texts(
    source: Checkpoint,
    task: Task,
    data: DataSpec,
    *,
    length: int,
    tokens: int | None,
    held_out: int,
    seed: int,
) -> Texts:
    """Read documents in an order that the seed draws, and divide their rows.

    Args:
        source: the checkpoint, for its tokenizer and its labels.
        task: what the model is trained for. If it is not the checkpoint's own, the labels are those of the data.
        data: where the documents are.
        length: most tokens of a row.
        tokens: most tokens of all rows of a language model; None for all.
        held_out: most tokens of the rows that are held out; one row is used in any case.
        seed: seed of the order.

    Raises:
        CheckpointError: if the checkpoint has no tokenizer.
        SpecError: for a number of tokens if it is no language model, or rows longer than the model's positions.
        DataError: for data that cannot be used, or too little of it.
    """
    if tokens is not None and not task.generates:
        raise SpecError("tokens is for language models", got=f"tokens {tokens} for {task}", wanted="all texts")
    documents = list(read_documents(data, task))
    architecture = source.architecture
    if task is not source.task:
        architecture = source.family.read_architecture({**source.config, "id2label": label_names(documents)})
    order = np.random.default_rng(seed).permutation(len(documents))
    spec = RowSpec(task=task, length=length, max_tokens=tokens)
    tokenizer = load_tokenizer(source.path, CheckpointError)
    rows = make_rows((documents[index] for index in order), tokenizer, architecture, spec)
    training, kept = _split(rows)
    if not training.rows or not kept.rows:
        raise DataError(
            "there is too little text to train on",
            got=f"{len(rows.rows)} row of at most {length} tokens",
            wanted="several rows, of which some are held out",
            hint="more texts, or a smaller --length",
        )
    return Texts(training, _beginning(kept, held_out), rows.sha256, architecture)


def label_names(documents: Sequence[Document]) -> dict[str, str]:
    """The names of all labels of the data, by number: those that it states, or the different labels in order."""
    stated = next((each.label_names for each in documents if each.label_names), ())
    names = list(stated) or sorted({str(label) for each in documents for label in each.labels}, key=_in_order)
    if len(names) < 2:
        raise DataError(
            "the data has too few labels", got=", ".join(names) or "no labels", wanted="at least 2 different labels"
        )
    return {str(index): name for index, name in enumerate(names)}


def _in_order(name: str) -> tuple[bool, int, str]:
    """Numbers by value, then names."""
    return (False, int(name), "") if name.isdecimal() else (True, 0, name)


def _split(rows: TokenRows) -> tuple[TokenRows, TokenRows]:
    """Rows to train on, and held-out ones: whole documents, if there are enough of them."""
    by_document = len(rows.document_bytes) >= HELD_OUT
    step = HELD_OUT if by_document or len(rows.rows) >= HELD_OUT else 2
    numbers = [row.document if by_document else index for index, row in enumerate(rows.rows)]
    parts: Mapping[bool, list[Row]] = {True: [], False: []}
    for row, number in zip(rows.rows, numbers, strict=True):
        parts[number % step == step - 1].append(row)
    return replace(rows, rows=parts[False]), replace(rows, rows=parts[True])


def _beginning(rows: TokenRows, tokens: int) -> TokenRows:
    """The first rows that have at most `tokens` tokens together, but at least one row."""
    ends = np.cumsum([len(row.tokens) for row in rows.rows])
    return replace(rows, rows=rows.rows[: max(1, int(np.searchsorted(ends, tokens, side="right")))])


def commonest(rows: TokenRows, count: int, vocab_size: int) -> Tensor | None:
    """The `count` most frequent tokens of rows, in order of their numbers; None if these are all tokens."""
    if count >= vocab_size:
        return None
    counts = np.bincount(np.concatenate([row.tokens for row in rows.rows]), minlength=vocab_size)
    kept: Any = np.sort(np.argsort(-counts, kind="stable")[:count])
    return torch.from_numpy(kept)
