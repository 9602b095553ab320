"""Rows: documents as tokens that a model reads at once, with the tokens or labels that it should predict."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from funnel_export.errors import DataError, SpecError
from funnel_export.families.architecture import Architecture
from funnel_export.quality.documents import Document
from funnel_export.quality.labels import Labels
from funnel_export.spec.choices import Task

BUDGET = 512
"""Tokens that rows of a batch may have together; a longer row is a batch of its own."""

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Tokens of one document."""

    document: int
    """Number of the document."""
    tokens: Ids
    """[length], what the model reads."""
    columns: Ids
    """[scored], the numbers of the tokens whose outputs are scored; 0 for the output of a text classifier."""
    targets: Ids
    """[scored], the tokens or labels that they should predict."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSpec:
    """How documents become rows."""

    task: Task
    length: int
    """Most tokens of a row."""
    max_documents: int | None = None
    max_tokens: int | None = None
    """Most scored tokens; for language models only."""

    def __post_init__(self) -> None:
        smallest = {"length": 2, "max_documents": 1, "max_tokens": 1}
        for name, least in smallest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise SpecError(f"{name} must be at least {least}", got=value, wanted=f"{name} >= {least}")
        if self.max_tokens is not None and not self.task.generates:
            raise SpecError(
                "max_tokens is for language models",
                got=f"max_tokens {self.max_tokens} for {self.task}",
                wanted="max_documents",
                hint="--max-documents",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenRows:
    """The rows of all documents, in order."""

    rows: Sequence[Row]
    document_bytes: NDArray[np.int64]
    """[documents], bytes in UTF-8 of the scored tokens of each document."""
    skipped: int
    """Documents without tokens, which have no number."""
    cut: int
    """Documents of which only the beginning is in the rows."""

    @cached_property
    def documents(self) -> Ids:
        """[scored], the document of each scored token."""
        return np.concatenate([np.full(len(row.columns), row.document) for row in self.rows])

    @cached_property
    def columns(self) -> Ids:
        """[scored], the number of each scored token in its row."""
        return np.concatenate([row.columns for row in self.rows])

    @cached_property
    def targets(self) -> Ids:
        """[scored], what each scored token should predict."""
        return np.concatenate([row.targets for row in self.rows])

    @property
    def sha256(self) -> str:
        """Digest of all rows: the same for reports of the same tokens, cut in the same way."""
        digest = hashlib.sha256()
        for row in self.rows:
            for part in (np.array([row.document, len(row.tokens)]), row.tokens, row.columns, row.targets):
                digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()


def make_rows(documents: Iterable[Document], tokenizer: Any, architecture: Architecture, spec: RowSpec) -> TokenRows:
    """Tokenize documents and cut them into rows.

    A document is tokenized whole. Each row is the tokenizer's beginning-of-text token, if it has one, and at most
    `length` - 1 tokens of the document. Without such a token, a row of a language model begins with the last token of
    the row before it.

    - Language models: each token is the target of the one before it. Without a beginning-of-text token, the first token
      of a document is no target.
    - Token classification: the first token of each word is scored, as in Hugging Face's examples.
    - Text classification: a document is one row; what is too long is cut off at its end.

    Raises:
        DataError: if a document cannot be read, has a label that the model does not have, or a word without tokens; if
            no document has tokens; if the tokenizer does not fit the model.
        SpecError: if rows may be longer than the model's positions.
    """
    if spec.length > architecture.max_position_embeddings:
        raise SpecError(
            "length exceeds max_position_embeddings",
            got=f"length {spec.length}",
            wanted=f"at most {architecture.max_position_embeddings} tokens",
        )
    labels, rows, sizes, skipped, cut = Labels.of(architecture), list[Row](), list[int](), 0, 0
    left = spec.max_tokens
    for document in documents:
        encoded = _encode(tokenizer, document)
        _check_vocabulary(encoded.ids, tokenizer.bos_token_id, architecture, document)
        made = _made(document, encoded, tokenizer.bos_token_id, labels, spec, left)
        if not made.pieces:
            skipped += 1
            continue
        rows += [Row(len(sizes), *piece) for piece in made.pieces]
        sizes.append(made.size)
        cut += made.cut
        left = None if left is None else left - sum(len(piece.targets) for piece in made.pieces)
        if left == 0 or len(sizes) == spec.max_documents:
            break
    if not rows:
        raise DataError("there are no documents with tokens", got=f"{skipped} empty documents", wanted="texts")
    return TokenRows(rows=rows, document_bytes=np.array(sizes), skipped=skipped, cut=cut)


class _Piece(NamedTuple):
    """A row without the number of its document; see `Row`."""

    tokens: Ids
    columns: Ids
    targets: Ids


class _Made(NamedTuple):
    """The rows of one document."""

    pieces: Sequence[_Piece]
    size: int = 0
    """Bytes in UTF-8 of the scored tokens of a language model."""
    cut: bool = False


def _encode(tokenizer: Any, document: Document) -> Any:
    """A document's tokens, as an `Encoding` of the library `tokenizers`."""
    words = isinstance(document.text, list)
    return tokenizer(document.text, is_split_into_words=words, add_special_tokens=False, verbose=False).encodings[0]


def _check_vocabulary(ids: Sequence[int], bos: int | None, architecture: Architecture, document: Document) -> None:
    largest = max([*ids, bos or 0])
    if largest >= architecture.vocab_size:
        raise DataError(
            "the tokenizer does not fit the model",
            got=f"token {largest} in {document.origin}",
            wanted=f"0 to {architecture.vocab_size - 1}",
            hint="use the tokenizer with which the model was trained",
        )


def _made(document: Document, encoded: Any, bos: int | None, labels: Labels, spec: RowSpec, most: int | None) -> _Made:
    ids = np.array(encoded.ids, np.int64)
    if spec.task.generates:
        return _for_language_model(document, ids, encoded.offsets, bos, spec.length, most)
    before = np.array([] if bos is None else [bos], np.int64)
    if spec.task is Task.TEXT_CLASSIFICATION:
        tokens = np.concatenate([before, ids])
        piece = _Piece(tokens[: spec.length], np.zeros(1, np.int64), np.array(labels.ids_of(document)))
        return _Made([piece] if len(tokens) else [], cut=len(tokens) > spec.length)
    return _Made(list(_for_tagger(document, ids, encoded.word_ids, before, labels, spec.length)))


def _for_language_model(
    document: Document, ids: Ids, offsets: Sequence[tuple[int, int]], bos: int | None, length: int, most: int | None
) -> _Made:
    unscored = 1 if bos is None else 0
    kept = len(ids) if most is None else min(len(ids), most + unscored)
    whole = np.concatenate([[] if bos is None else [bos], ids[:kept]]).astype(np.int64)
    if bos is None:
        rows = [whole[at : at + length] for at in range(0, len(whole) - 1, length - 1)]
    else:
        rows = [np.append(whole[:1], whole[at : at + length - 1]) for at in range(1, len(whole), length - 1)]
    pieces = [_Piece(row[:-1], np.arange(len(row) - 1), row[1:]) for row in rows]
    if not pieces:
        return _Made([])
    begin = offsets[0][1] if unscored else 0
    end = len(document.text) if kept == len(ids) else offsets[kept - 1][1]
    assert isinstance(document.text, str)
    return _Made(pieces, len(document.text[begin:end].encode()), kept < len(ids))


def _for_tagger(
    document: Document, ids: Ids, words: Sequence[int | None], before: Ids, labels: Labels, length: int
) -> Iterator[_Piece]:
    numbers = np.array(words, np.int64)
    firsts = np.flatnonzero(np.diff(numbers, prepend=-1))
    if len(firsts) < len(document.text):
        (missing, *_) = sorted(set(range(len(document.text))) - set(words))
        raise DataError(
            "a word has no tokens",
            got=f"{document.origin}: {document.text[missing]!r}",
            wanted="words that are not empty",
        )
    targets, step = np.array(labels.ids_of(document), np.int64), length - len(before)
    for at in range(0, len(ids), step):
        inside = (firsts >= at) & (firsts < at + step)
        if inside.any():
            columns = firsts[inside] - at + len(before)
            yield _Piece(np.concatenate([before, ids[at : at + step]]), columns, targets[inside])


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Consecutive rows, padded on the right."""

    tokens: Ids
    """[rows, longest]"""
    lengths: Ids
    """[rows], without padding."""
    rows: Ids
    """[scored], the row of each scored token in the batch."""
    columns: Ids
    """[scored], see `Row.columns`."""
    targets: Ids
    """[scored]"""

    @property
    def mask(self) -> Ids:
        """[rows, longest], 1 for tokens and 0 for padding."""
        return (np.arange(self.tokens.shape[1])[None] < self.lengths[:, None]).astype(np.int64)

    @classmethod
    def of(cls, rows: Sequence[Row], pad: int) -> Self:
        """Rows as a batch; `pad` is the padding token."""
        lengths = np.array([len(row.tokens) for row in rows])
        tokens = np.full((len(rows), lengths.max()), pad, np.int64)
        for line, row in zip(tokens, rows, strict=True):
            line[: len(row.tokens)] = row.tokens
        numbers = np.repeat(np.arange(len(rows)), [len(row.columns) for row in rows])
        columns, targets = (np.concatenate([getattr(row, name) for row in rows]) for name in ("columns", "targets"))
        return cls(tokens, lengths, numbers, columns, targets)


def make_batches(rows: Sequence[Row], pad: int, size: int | None = None) -> Iterator[Batch]:
    """Consecutive rows as batches.

    Args:
        rows: rows of any lengths.
        pad: the padding token.
        size: rows of a batch; by default as many as have at most `BUDGET` tokens together, with padding.
    """
    taken = list[Row]()
    for row in rows:
        longest = max(len(each.tokens) for each in (*taken, row))
        full = len(taken) == size if size is not None else longest * (len(taken) + 1) > BUDGET
        if taken and full:
            yield Batch.of(taken, pad)
            taken = []
        taken.append(row)
    if taken:
        yield Batch.of(taken, pad)
