"""Measures from scores: equal to those of scikit-learn and seqeval, with intervals over documents."""

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics

from funnel_export.quality.labels import Labels
from funnel_export.quality.measures import Measuring
from funnel_export.quality.rows import Row, TokenRows
from funnel_export.quality.scores import Compared, Scores
from funnel_export.spec.choices import Task

SPANS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
PLAIN = ("NOUN", "VERB", "ADJ", "ADV", "X")


def measuring(targets, documents, names=PLAIN, task: Task = Task.TOKEN_CLASSIFICATION, columns=None) -> Measuring:
    """Measures of tokens with these targets, in one row for each document."""
    targets, documents = np.asarray(targets), np.asarray(documents)
    rows = []
    for number in range(documents.max() + 1):
        inside = documents == number
        own = np.arange(inside.sum()) if columns is None else np.asarray(columns)[inside]
        rows.append(Row(number, np.zeros(1, np.int64), own, targets[inside]))
    sizes = np.array([10 * (1 + number) for number in range(len(rows))])
    tokens = TokenRows(rows=rows, document_bytes=sizes, skipped=0, cut=0)
    return Measuring(rows=tokens, task=task, labels=Labels(names), seed=0)


def scores(predicted, nats=None) -> Scores:
    predicted = np.asarray(predicted)
    return Scores(np.ones(len(predicted)) if nats is None else np.asarray(nats, np.float64), predicted)


def random_labels(seed: int = 0):
    """Documents, targets and predictions that are right in about half of the places."""
    generator = np.random.default_rng(seed)
    documents = np.repeat(np.arange(12), generator.integers(1, 30, size=12))
    targets = generator.integers(0, 5, size=len(documents))
    predicted = np.where(generator.random(len(documents)) < 0.5, targets, generator.integers(0, 5, len(documents)))
    return documents, targets, predicted


def test_accuracy_and_macro_f1_as_scikit_learn_computes_them() -> None:
    documents, targets, predicted = random_labels()
    found = measuring(targets, documents).of_model(scores(predicted))
    assert found.accuracy.value == pytest.approx(sklearn.metrics.accuracy_score(targets, predicted))
    assert found.macro_f1 is not None
    assert found.macro_f1.value == pytest.approx(sklearn.metrics.f1_score(targets, predicted, average="macro"))
    assert found.span_f1 is None, "these labels do not mark spans"
    assert found.perplexity is found.bits_per_byte is None


def test_labels_that_nowhere_occur_do_not_count() -> None:
    found = measuring([0, 0, 1, 1], [0, 0, 1, 1]).of_model(scores([0, 1, 1, 1]))
    assert found.macro_f1 is not None
    assert found.macro_f1.value == pytest.approx((2 / 3 + 4 / 5) / 2)


def test_span_f1_as_seqeval_computes_it() -> None:
    documents, targets, predicted = random_labels()
    found = measuring(targets, documents, SPANS).of_model(scores(predicted))
    lists = [
        [[SPANS[label] for label in labels[documents == number]] for number in range(documents.max() + 1)]
        for labels in (targets, predicted)
    ]
    assert found.span_f1 is not None
    assert found.span_f1.value == pytest.approx(seqeval.metrics.f1_score(*lists))
    assert 0 < found.span_f1.low < found.span_f1.value < found.span_f1.high < 1


def test_spans_do_not_reach_from_one_document_into_the_next() -> None:
    found = measuring([1, 2, 2, 2], [0, 0, 1, 1], SPANS).of_model(scores([1, 2, 2, 2]))
    assert found.span_f1 is not None
    assert found.span_f1.value == 1
    nothing = measuring([0, 0], [0, 1], SPANS).of_model(scores([0, 0]))
    assert nothing.span_f1 is not None
    assert nothing.span_f1.value == 0, "as seqeval says of texts without spans"


def test_losses_weigh_tokens_and_not_documents() -> None:
    """Documents of 1 and 3 tokens, and of 10 and 20 bytes."""
    own, dense = scores([0, 0, 0, 0], [4, 1, 2, 1]), scores([0, 0, 1, 1], [3, 1, 1, 1])
    tool = measuring([0, 1, 0, 1], [0, 1, 1, 1], task=Task.TEXT_GENERATION)
    found = tool.of_model(own)
    assert found.loss.value == pytest.approx(2.0)
    assert (found.loss.low, found.loss.high) == pytest.approx((4 / 3, 4.0)), "either document may be drawn twice"
    assert found.perplexity is not None
    assert found.bits_per_byte is not None
    assert found.perplexity.value == pytest.approx(np.exp(2.0))
    assert found.perplexity.high == pytest.approx(np.exp(4.0))
    assert found.bits_per_byte.value == pytest.approx(8 / np.log(2) / 30)
    assert found.accuracy.value == 0.5
    distance = tool.of_distance(Compared(own, dense, np.array([0.5, 0, 0, 0.1])))
    assert distance is not None
    assert distance.loss.value == pytest.approx(0.5)
    assert (distance.loss.low, distance.loss.high) == pytest.approx((1 / 3, 1.0))
    assert distance.kl.value == pytest.approx(0.15)
    assert distance.top1.value == 0.5
    assert distance.accuracy.value == 0.0
    assert tool.of_distance(Compared(own, None, None)) is None


def test_a_difference_is_that_of_paired_documents() -> None:
    """Documents differ much more from each other than the models do: only pairs show that."""
    generator = np.random.default_rng(0)
    documents = np.repeat(np.arange(30), 10)
    nats = 3 + generator.normal(size=30)[documents]
    predicted = np.zeros(300, np.int64)
    own, dense = scores(predicted, nats + 0.1), scores(predicted, nats)
    tool = measuring(predicted, documents, task=Task.TEXT_GENERATION)
    found, distance = tool.of_model(own), tool.of_distance(Compared(own, dense, np.zeros(300)))
    assert distance is not None
    assert found.loss.high - found.loss.low > 0.3
    assert (distance.loss.low, distance.loss.value, distance.loss.high) == pytest.approx((0.1, 0.1, 0.1))


def test_f1_scores_of_equal_models_do_not_differ() -> None:
    documents, targets, predicted = random_labels()
    tool, same = measuring(targets, documents, SPANS), scores(predicted)
    distance = tool.of_distance(Compared(same, same, np.zeros(len(targets))))
    assert distance is not None
    for measure in (distance.macro_f1, distance.span_f1, distance.accuracy):
        assert measure is not None
        assert (measure.low, measure.value, measure.high) == (0, 0, 0)


def test_one_document_has_no_interval_and_equal_ones_have_no_width() -> None:
    one = measuring([0, 1], [0, 0]).of_model(scores([0, 0]))
    assert (one.loss.low, one.loss.high) == (None, None)
    equal = measuring([0, 1] * 5, np.repeat(np.arange(5), 2)).of_model(scores([0, 0] * 5, [1.5, 2.5] * 5))
    assert (equal.loss.low, equal.loss.value, equal.loss.high) == (2.0, 2.0, 2.0)
    assert (equal.accuracy.low, equal.accuracy.high) == (0.5, 0.5)


def test_groups_count_only_documents_that_have_such_tokens() -> None:
    documents, nats = np.repeat([0, 1, 2], [1, 2, 5]), np.arange(8.0)
    tool = measuring(np.zeros(8, np.int64), documents, task=Task.TEXT_GENERATION)
    groups = tool.by_position(Compared(scores(np.zeros(8, np.int64), nats), None, None))
    assert [(group.first, group.last, group.scored, group.documents) for group in groups] == [
        (1, 1, 3, 3),
        (2, 3, 3, 2),
        (4, 7, 2, 1),
    ]
    assert [group.loss.value for group in groups] == pytest.approx([(0 + 1 + 3) / 3, (2 + 4 + 5) / 3, 6.5])
    assert groups[-1].loss.low is None, "one document"
    phases = tool.by_phase(Compared(scores(np.zeros(8, np.int64), nats), None, None), 2)
    assert [(group.first, group.scored) for group in phases] == [(0, 5), (1, 3)]
    assert phases[1].loss.value == pytest.approx((2 + 4 + 6) / 3)


@pytest.mark.parametrize(
    ("names", "marks"),
    [(SPANS, True), (PLAIN, False), (("O", "PER"), False), (("B-A", "I-A"), False), (("O", "S-A", "E-A"), True)],
)
def test_which_labels_mark_spans(names: tuple[str, ...], marks: bool) -> None:
    assert Labels(names).mark_spans is marks
