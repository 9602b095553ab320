"""Measures of a model over documents, with bootstrap intervals: losses, accuracies and F1 scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funnel_export.intervals import interval
from funnel_export.quality.labels import Labels
from funnel_export.quality.packages import load_package
from funnel_export.quality.quality_report import Distance, Group, Measure, ModelMeasures
from funnel_export.quality.rows import TokenRows
from funnel_export.quality.scores import Compared, Scores
from funnel_export.spec.choices import Task

Values = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measuring:
    """Computes the measures of one evaluation from the scores of all tokens.

    Every measure is a function of sums over documents, so a draw of documents is a draw of their sums.
    """

    rows: TokenRows
    task: Task
    labels: Labels
    seed: int

    def of_model(self, scores: Scores) -> ModelMeasures:
        """The measures of a model."""
        loss = self._mean(scores.nats)
        return ModelMeasures(
            loss=loss,
            accuracy=self._mean(self._right(scores)),
            perplexity=_map(loss, math.exp) if self.task.generates else None,
            bits_per_byte=self._bits_per_byte(scores) if self.task.generates else None,
            macro_f1=None if self.task.generates else self._measure(macro_f1, self._classes(scores)),
            span_f1=self._measure(ratio, self._spans(scores)) if self._has_spans else None,
        )

    def of_distance(self, found: Compared) -> Distance | None:
        """The measures of a model against the dense model; None if there is no dense model."""
        if found.dense is None or found.kl is None:
            return None
        pair = (found.model, found.dense)
        return Distance(
            loss=self._mean(found.model.nats - found.dense.nats),
            accuracy=self._mean(self._right(found.model) - self._right(found.dense)),
            macro_f1=None if self.task.generates else self._difference(macro_f1, *map(self._classes, pair)),
            span_f1=self._difference(ratio, *map(self._spans, pair)) if self._has_spans else None,
            kl=self._mean(found.kl),
            top1=self._mean(found.model.predicted == found.dense.predicted),
        )

    def by_phase(self, found: Compared, stride: int) -> list[Group]:
        """The tokens by the number of the predicting token in its row, modulo the stride."""
        phases = self.rows.columns % stride
        return [self._group(found, phases == phase, phase, phase) for phase in np.unique(phases).tolist()]

    def by_position(self, found: Compared) -> list[Group]:
        """The tokens by how many tokens of its row a prediction has seen: 1, 2 to 3, 4 to 7, ..."""
        powers = np.frexp(self.rows.columns + 1)[1] - 1
        return [
            self._group(found, powers == power, 1 << power, (2 << power) - 1) for power in np.unique(powers).tolist()
        ]

    @property
    def _has_spans(self) -> bool:
        return self.task is Task.TOKEN_CLASSIFICATION and self.labels.mark_spans

    def _right(self, scores: Scores) -> Values:
        right: Values = (scores.predicted == self.rows.targets).astype(np.float64)
        return right

    def _mean(self, values: NDArray[Any], chosen: NDArray[np.bool_] | None = None) -> Measure:
        """The mean over all scored tokens, or over the chosen ones."""
        chosen = np.ones(len(values), np.bool_) if chosen is None else chosen
        return self._measure(ratio, [self._sums(values, chosen), self._sums(chosen, chosen)])

    def _bits_per_byte(self, scores: Scores) -> Measure:
        bits = self._sums(scores.nats / math.log(2), np.ones(len(scores.nats), np.bool_))
        return self._measure(ratio, [bits, self.rows.document_bytes.astype(np.float64)])

    def _group(self, found: Compared, chosen: NDArray[np.bool_], first: int, last: int) -> Group:
        dense = found.dense
        return Group(
            first=first,
            last=last,
            scored=int(chosen.sum()),
            documents=len(np.unique(self.rows.documents[chosen])),
            loss=self._mean(found.model.nats, chosen),
            over_dense=None if dense is None else self._mean(found.model.nats - dense.nats, chosen),
            kl=None if found.kl is None else self._mean(found.kl, chosen),
            top1=None if dense is None else self._mean(found.model.predicted == dense.predicted, chosen),
        )

    def _sums(self, values: NDArray[Any], chosen: NDArray[np.bool_]) -> Values:
        """[documents with chosen tokens], the sum over the chosen tokens of each."""
        documents = self.rows.documents[chosen]
        counts = np.bincount(documents)
        sums: Any = np.bincount(documents, weights=values[chosen].astype(np.float64))
        found: Values = sums[counts > 0]
        return found

    def _classes(self, scores: Scores) -> list[Values]:
        """[documents] for each label, twice the hits, then for each label, how often it is predicted and right."""
        hits = self._counts(self.rows.targets, scores.predicted == self.rows.targets)
        return [*2 * hits, *self._counts(scores.predicted) + self._counts(self.rows.targets)]

    def _counts(self, labels: NDArray[np.int64], chosen: NDArray[np.bool_] | None = None) -> Values:
        """[labels, documents], how often each document has each label, in all or in the chosen places."""
        documents, width = self.rows.documents, len(self.labels.names)
        shape = len(self.rows.document_bytes), width
        places = documents * width + labels
        found = np.bincount(places if chosen is None else places[chosen], minlength=math.prod(shape))
        counts: Values = found.reshape(shape).T.astype(np.float64)
        return counts

    def _spans(self, scores: Scores) -> list[Values]:
        """[documents], twice the hits, and how many spans are predicted and right; 0 if a document has none."""
        (right, predicted) = (self._entities(labels) for labels in (self.rows.targets, scores.predicted))
        hits = [2 * len(one & other) for one, other in zip(right, predicted, strict=True)]
        totals = [len(one) + len(other) for one, other in zip(right, predicted, strict=True)]
        return [np.array(hits, np.float64), np.array(totals, np.float64)]

    def _entities(self, labels: NDArray[np.int64]) -> list[set[Any]]:
        """The spans of every document, from the labels of its words."""
        get_entities = load_package("seqeval.metrics.sequence_labeling", "scores of spans").get_entities
        ends = np.flatnonzero(np.diff(self.rows.documents)) + 1
        return [set(get_entities([self.labels.names[each] for each in part])) for part in np.split(labels, ends)]

    def _difference(self, statistic: Callable[..., Any], one: Sequence[Values], other: Sequence[Values]) -> Measure:
        def difference(*samples: Values, axis: int) -> Any:
            return statistic(*samples[: len(one)], axis=axis) - statistic(*samples[len(one) :], axis=axis)

        return self._measure(difference, [*one, *other])

    def _measure(self, statistic: Callable[..., Any], samples: Sequence[Values]) -> Measure:
        low, value, high = interval(statistic, samples, self.seed)
        return Measure(value=value) if len(samples[0]) < 2 else Measure(value=value, low=low, high=high)


def ratio(numerators: Values, denominators: Values, axis: int) -> Any:
    """The sum of the numerators over that of the denominators; 0 if there is nothing to count."""
    totals = denominators.sum(axis)
    return numerators.sum(axis) / np.where(totals > 0, totals, 1)


def macro_f1(*samples: Values, axis: int) -> Any:
    """The mean of the F1 scores of all labels that are predicted or right somewhere.

    Args:
        samples: for each label, twice the hits, and then for each label, how often it is predicted and right.
        axis: the documents.
    """
    sums = [sample.sum(axis) for sample in samples]
    hits, totals = np.array(sums[: len(sums) // 2]), np.array(sums[len(sums) // 2 :])
    return np.mean(hits / np.maximum(totals, 1), axis=0, where=totals > 0)


def _map(measure: Measure, function: Callable[[float], float]) -> Measure:
    """An increasing function of a measure."""
    if measure.low is None or measure.high is None:
        return Measure(value=function(measure.value))
    return Measure(value=function(measure.value), low=function(measure.low), high=function(measure.high))
