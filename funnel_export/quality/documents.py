"""Documents: the texts and labels in tables, with types checked before any model is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from funnel_export.errors import DataError
from funnel_export.quality.tables import Row, Table, find_tables, open_table
from funnel_export.spec.choices import Task
from funnel_export.spec.data import DataSpec

Label = int | str


@dataclass(frozen=True, slots=True)
class Document:
    """A text, or for token classification its words, with its label or the labels of the words."""

    origin: str
    """The file or data set and the number of the row, for messages."""
    text: str | list[str]
    labels: Sequence[Label] = ()
    """Labels of the words, or the label of the text; empty for language models."""
    label_names: Sequence[str] = ()
    """Names of the labels 0, 1, ... in the data; empty if they have none."""


def read_documents(data: DataSpec, task: Task) -> Iterator[Document]:
    """The documents in order. Their places are looked up at once; the documents are read one after the other.

    Raises:
        DataError: if a place is missing, or a file or data set is unreadable, empty or not UTF-8, lacks a column or has
            a value of the wrong type.
        SpecError: for a split of plain files, or if the package `datasets` is needed and not installed.
    """
    tables = find_tables(data)
    return (document for table in tables for document in _documents(table, data, task))


def _documents(table: Table, data: DataSpec, task: Task) -> Iterator[Document]:
    text, label = data.columns(task)
    with open_table(table) as opened:
        names = opened.label_names(label) if label else ()
        for number, row in enumerate(opened.rows, 1):
            origin = table.name if table.is_text else f"{table.name}, row {number}"
            if label is None:
                yield Document(origin, _text(_value(row, text, origin), origin))
                continue
            found, labels = _value(row, text, origin), _value(row, label, origin)
            if task is Task.TOKEN_CLASSIFICATION:
                words, labels = _words(found, labels, origin)
                yield Document(origin, words, [_label(each, origin) for each in labels], names)
            else:
                yield Document(origin, _text(found, origin), [_label(labels, origin)], names)


def _value(row: Row, column: str, origin: str) -> Any:
    if column not in row:
        raise DataError(
            f"the data has no column {column!r}",
            got=f"{origin}: {', '.join(map(repr, row))}",
            wanted=f"a column {column!r}",
            hint="--text-column or --label-column with the name of a column",
        )
    return row[column]


def _text(value: Any, origin: str) -> str:
    if not isinstance(value, str):
        raise DataError("a text is missing or is not a text", got=f"{origin}: {value!r}", wanted="a string")
    return value


def _words(words: Any, labels: Any, origin: str) -> tuple[list[str], Sequence[Any]]:
    for name, value in (("words", words), ("labels", labels)):
        if not isinstance(value, (list, tuple)):
            raise DataError(f"the {name} are not a list", got=f"{origin}: {value!r}", wanted=f"a list of {name}")
    if len(words) != len(labels):
        raise DataError(
            "a text has different numbers of words and labels",
            got=f"{origin}: {len(words)} words, {len(labels)} labels",
            wanted="one label for each word",
        )
    return [_text(word, origin) for word in words], labels


def _label(value: Any, origin: str) -> Label:
    if not isinstance(value, (int, str)):
        raise DataError(
            "a label is missing or is neither a number nor a name", got=f"{origin}: {value!r}", wanted="an int or a str"
        )
    return int(value) if isinstance(value, bool) else value
