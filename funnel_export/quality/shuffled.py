"""Rows of documents in a drawn order, for what is fitted or calibrated on texts."""

import itertools

import numpy as np

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError
from funnel_export.quality.documents import read_documents
from funnel_export.quality.rows import RowSpec, TokenRows, make_rows
from funnel_export.runtime.tokenizer import load_tokenizer
from funnel_export.spec.choices import Task
from funnel_export.spec.data import DataSpec

SHUFFLED = 10_000
"""Documents that are shuffled; later ones are not used."""


def shuffled_rows(source: Checkpoint, data: DataSpec, *, tokens: int, length: int, seed: int) -> TokenRows:
    """The texts as rows of tokens, cut off after some tokens.

    Args:
        source: the checkpoint, for its tokenizer.
        data: where the texts are.
        tokens: most tokens of all rows.
        length: most tokens of a row.
        seed: seed of the order of the documents.

    Raises:
        SpecError: for a limit that is too small, or rows longer than the model's positions.
        DataError: for data that cannot be used, or without tokens.
        CheckpointError: if the tokenizer cannot be loaded.
    """
    spec = RowSpec(task=Task.TEXT_GENERATION, length=length, max_tokens=tokens)
    documents = list(itertools.islice(read_documents(data, Task.TEXT_GENERATION), SHUFFLED))
    order = np.random.default_rng(seed).permutation(len(documents))
    tokenizer = load_tokenizer(source.path, CheckpointError)
    return make_rows((documents[index] for index in order), tokenizer, source.architecture, spec)
