"""Rows: every token is scored once, in rows that begin with the beginning-of-text token."""

import numpy as np
import pytest
from corpora import BOS, ids_of, text_of
from models import VOCAB, tiny_config
from tokenizers_of_words import save_tokenizer
from transformers import AutoTokenizer

from funnel_export import DataError, SpecError
from funnel_export.families.registry import get_family
from funnel_export.quality.documents import Document
from funnel_export.quality.rows import RowSpec, TokenRows, make_batches, make_rows
from funnel_export.spec.choices import Task

ARCHITECTURE = get_family("gemma2").read_architecture(tiny_config().to_dict())
GENERATION, CLASSIFICATION, TAGGING = Task.TEXT_GENERATION, Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def without_bos(tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(tokenizer), "bos_token_id", None, raising=False)
    return tokenizer


def rows_of(tokenizer, documents, task: Task = GENERATION, length: int = 5, **limits: int) -> TokenRows:
    return make_rows(documents, tokenizer, ARCHITECTURE, RowSpec(task=task, length=length, **limits))


def language(lengths) -> list[Document]:
    return [Document("here", text_of(ids)) for ids in ids_of(lengths)]


def test_every_token_is_a_target_once(tokenizer) -> None:
    documents = ids_of((9, 4, 1, 5))
    found = rows_of(tokenizer, language((9, 4, 1, 5)))
    assert [len(row.tokens) for row in found.rows] == [4, 4, 1, 4, 1, 4, 1]
    assert all(row.tokens[0] == BOS for row in found.rows)
    assert found.targets.tolist() == [token for ids in documents for token in ids]
    assert found.documents.tolist() == [0] * 9 + [1] * 4 + [2] + [3] * 5
    assert found.columns.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 0, 1, 2, 3, 0, 0, 1, 2, 3, 0]
    for row in found.rows:
        assert row.tokens[1:].tolist() == row.targets[:-1].tolist()
    assert found.document_bytes.tolist() == [len(text_of(ids)) for ids in documents]
    assert (found.skipped, found.cut) == (0, 0)


def test_without_a_beginning_of_text_token_rows_overlap_by_one(without_bos) -> None:
    (ids,) = ids_of((9,))
    found = rows_of(without_bos, [*language((9,)), Document("here", "w5")])
    assert [row.tokens.tolist() for row in found.rows] == [ids[:4], ids[4:8]]
    assert found.targets.tolist() == ids[1:]
    assert found.document_bytes.tolist() == [len(text_of(ids)) - len(f"w{ids[0]}")]
    assert found.skipped == 1, "one token alone is no target"


def test_limits(tokenizer) -> None:
    documents = ids_of((9, 4, 3))
    found = rows_of(tokenizer, language((9, 4, 3)), max_tokens=11)
    assert found.targets.tolist() == [*documents[0], *documents[1][:2]]
    assert found.document_bytes.tolist() == [len(text_of(documents[0])), len(text_of(documents[1][:2]))]
    assert found.cut == 1
    exact = rows_of(tokenizer, language((9, 4, 3)), max_tokens=9)
    assert (len(exact.document_bytes), exact.cut) == (1, 0)
    assert len(rows_of(tokenizer, language((9, 4, 3)), max_documents=2).document_bytes) == 2


def test_documents_are_read_only_as_far_as_needed(tokenizer) -> None:
    def documents():
        yield from language((3, 3))
        pytest.fail("the third document is not needed")

    assert len(rows_of(tokenizer, documents(), max_documents=2).targets) == 6
    assert len(rows_of(tokenizer, documents(), max_tokens=5).targets) == 5


def test_bytes_are_those_of_utf8(tokenizer) -> None:
    found = rows_of(tokenizer, [Document("here", "w5 é w6 é")], max_tokens=3)
    assert found.document_bytes.tolist() == [len("w5 é w6".encode())]


def test_empty_documents_are_counted_and_have_no_number(tokenizer) -> None:
    found = rows_of(tokenizer, [Document("a", ""), *language((2,)), Document("b", " "), *language((1,))])
    assert found.documents.tolist() == [0, 0, 1]
    assert found.skipped == 2
    with pytest.raises(DataError, match=r"no documents with tokens\n.*2 empty documents"):
        rows_of(tokenizer, [Document("a", ""), Document("b", " ")])


def test_texts_of_a_classifier_are_one_row(tokenizer) -> None:
    documents = [Document("a", "w5 w6", [2]), Document("b", text_of(range(5, 15)), [0]), Document("c", "", [1])]
    found = rows_of(tokenizer, documents, CLASSIFICATION)
    assert [row.tokens.tolist() for row in found.rows] == [[BOS, 5, 6], [BOS, 5, 6, 7, 8], [BOS]]
    assert (found.targets.tolist(), found.columns.tolist(), found.cut) == ([2, 0, 1], [0, 0, 0], 1)


def test_the_first_token_of_each_word_is_scored(tokenizer) -> None:
    """The words "w5 w6" and "w9 w10" have two tokens; a piece without the beginning of a word has no row."""
    words = Document("a", ["w5 w6", "w7", "w8", "w9 w10 w11 w12 w13 w14 w15 w16 w17", "w18"], [0, 1, 2, 1, 0])
    found = rows_of(tokenizer, [words], TAGGING)
    assert [row.tokens.tolist() for row in found.rows] == [[BOS, 5, 6, 7, 8], [BOS, 9, 10, 11, 12], [BOS, 17, 18]]
    assert [row.columns.tolist() for row in found.rows] == [[1, 3, 4], [1], [2]]
    assert [row.targets.tolist() for row in found.rows] == [[0, 1, 2], [1], [0]]


def test_a_tokenizer_that_does_not_fit_the_model(tokenizer) -> None:
    small = ARCHITECTURE.model_copy(update={"vocab_size": VOCAB - 1})
    spec = RowSpec(task=GENERATION, length=5)
    make_rows([Document("here", "w59")], tokenizer, small, spec)
    with pytest.raises(DataError, match=r"does not fit the model\n.*token 60 in here"):
        make_rows([Document("here", "w59 w60")], tokenizer, small, spec)


@pytest.mark.parametrize("limits", [{"length": 1}, {"max_documents": 0}, {"max_tokens": 0}])
def test_impossible_limits(limits: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="must be at least"):
        RowSpec(**{"task": GENERATION, "length": 5, **limits})
    with pytest.raises(SpecError, match="max_tokens is for language models"):
        RowSpec(task=TAGGING, length=5, max_tokens=3)


def test_batches_have_all_rows_in_order(tokenizer) -> None:
    found = rows_of(tokenizer, language((9, 4, 1, 5)))
    for size in (None, 1, 2, 100):
        batches = list(make_batches(found.rows, 0, size))
        assert np.concatenate([batch.targets for batch in batches]).tolist() == found.targets.tolist()
        assert sum(len(batch.lengths) for batch in batches) == len(found.rows)
        for batch in batches:
            assert batch.tokens[batch.mask == 0].tolist() == [0] * int((batch.mask == 0).sum())
            assert (batch.tokens[batch.mask == 1] > 0).all()
    assert [len(batch.lengths) for batch in make_batches(found.rows, 0, 2)] == [2, 2, 2, 1]


def test_a_batch_has_a_budget_of_tokens(tokenizer) -> None:
    long = rows_of(tokenizer, language((300, 200, 100, 100)), length=512)
    assert [batch.tokens.shape for batch in make_batches(long.rows, 0)] == [(1, 300), (2, 200), (1, 100)]


def test_the_digest_depends_on_the_rows_alone(tokenizer) -> None:
    one, same = rows_of(tokenizer, language((9, 4))), rows_of(tokenizer, language((9, 4)))
    others = rows_of(tokenizer, language((9, 4)), length=6), rows_of(tokenizer, language((9, 3)))
    assert one.sha256 == same.sha256
    assert len({one.sha256, *(other.sha256 for other in others)}) == 3
