"""Scores: what models say about every scored token, beside what the dense model says about it."""

import itertools
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funnel_export.errors import FunnelExportError
from funnel_export.families.architecture import Architecture
from funnel_export.progress import Progress
from funnel_export.quality.rows import Batch, TokenRows, make_batches
from funnel_export.quality.scorers import Scorer

LOGITS = 1 << 25
"""Most logits of a model that are made at once, 134 MB in float32."""

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """What a model says about every scored token, in the order of the rows."""

    nats: Values
    """[scored], negative logarithm of the probability of the target."""
    predicted: NDArray[np.int64]
    """[scored], the token or label with the highest logit."""

    @classmethod
    def empty(cls, count: int) -> "Scores":
        """Scores to be filled."""
        return cls(np.full(count, np.nan), np.full(count, -1, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Compared:
    """Scores of a model, and those of the dense model on the same tokens."""

    model: Scores
    dense: Scores | None
    kl: Values | None
    """[scored], KL(dense || model) in nats."""


def score(
    rows: TokenRows,
    model: Scorer,
    dense: Scorer | None,
    *,
    architecture: Architecture,
    batch_size: int | None = None,
    columns: int | None = None,
    progress: Progress,
) -> Compared:
    """Run models on all rows.

    Args:
        rows: the rows.
        model: the model.
        dense: the dense model to compare with, if any.
        architecture: that of the models, for the padding token.
        batch_size: rows that run together; by default as many as have `BUDGET` tokens.
        columns: most columns of logits that the model gives at once; by default as many as fit into memory.
        progress: called with the share of the scored tokens that is done.

    Raises:
        FunnelExportError: if a model gives values that are not finite.
    """
    count, done = len(rows.targets), 0
    compared = Compared(
        Scores.empty(count),
        None if dense is None else Scores.empty(count),
        None if dense is None else np.full(count, np.nan),
    )
    for batch in make_batches(rows.rows, max(0, architecture.pad_token_id or 0), batch_size):
        progress("evaluating", done / count)
        chunk = max(1, LOGITS // (len(batch.lengths) * architecture.vocab_size))
        _score_batch(batch, model, dense, compared, done, min(chunk, columns or chunk))
        _check_finite(rows, compared, done)
        done += len(batch.targets)
    return compared


def _score_batch(batch: Batch, model: Scorer, dense: Scorer | None, found: Compared, begin: int, chunk: int) -> None:
    """Fill in the scores of a batch, whose first scored token has the number `begin`."""
    others = itertools.repeat(None) if dense is None else dense.outputs(batch, chunk)
    at = 0
    for logits, other in zip(model.outputs(batch, chunk), others, strict=False):
        inside = (batch.columns >= at) & (batch.columns < at + logits.shape[1])
        places = torch.from_numpy(batch.rows[inside]), torch.from_numpy(batch.columns[inside] - at)
        numbers, targets = begin + np.flatnonzero(inside), torch.from_numpy(batch.targets[inside])
        own = _Logits.of(logits, places)
        own.fill(found.model, targets, numbers)
        if other is not None and found.dense is not None and found.kl is not None:
            theirs = _Logits.of(other, places)
            theirs.fill(found.dense, targets, numbers)
            found.kl[numbers] = theirs.divergence(own).cpu().numpy()
        at += logits.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class _Logits:
    """The logits of scored tokens.

    In float32, `logsumexp` is exact to 1e-6; `log_softmax` to 3e-5, in a third of float64's time.
    """

    values: Tensor
    """[scored, width] in float32."""
    total: Tensor
    """[scored], the logarithm of the sum of their exponentials."""

    @classmethod
    def of(cls, logits: Tensor, places: tuple[Tensor, Tensor]) -> Self:
        """The logits at some rows and columns of [rows, columns, width]."""
        every = len(places[0]) == logits.shape[0] * logits.shape[1]
        values = (logits.flatten(0, 1) if every else logits[places]).float()  # no copy if all are scored
        return cls(values, values.logsumexp(-1))

    def fill(self, scores: Scores, targets: Tensor, numbers: NDArray[np.int64]) -> None:
        """Fill in the scores of these numbers."""
        chosen = self.values.gather(-1, targets.to(self.values.device)[:, None])[:, 0]
        scores.nats[numbers] = (self.total - chosen).cpu().numpy()
        scores.predicted[numbers] = self.values.argmax(-1).cpu().numpy()

    def divergence(self, other: "_Logits") -> Tensor:
        """[scored], KL(self || other) in nats."""
        values, total = other.values.to(self.values.device), other.total.to(self.values.device)
        shares = (self.values - self.total[:, None]).exp()
        found = torch.einsum("ij,ij->i", shares, self.values - values) - self.total + total
        return found.clamp(min=0)  # negative by rounding only


def _check_finite(rows: TokenRows, found: Compared, begin: int) -> None:
    """Raise `FunnelExportError` if a score of the tokens from `begin` on that are filled in is not finite."""
    for name, scores in (("model", found.model), ("dense model", found.dense)):
        if scores is None:
            continue
        wrong = begin + np.flatnonzero(~np.isfinite(scores.nats[begin:]) & (scores.predicted[begin:] >= 0))
        if wrong.size:
            document, column = rows.documents[wrong[0]] + 1, rows.columns[wrong[0]]
            raise FunnelExportError(
                f"the {name} gives values that are not finite",
                got=f"{scores.nats[wrong[0]]} nats, from token {column} of a row of document {document}",
                wanted="finite logits",
                hint="float16 overflows in these models: use bfloat16 or float32",
            )
