"""`DataSpec`: where documents are, and what their columns are called."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from funnel_export.errors import SpecError
from funnel_export.spec.choices import Task

Places = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One place of documents, or several."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """Documents with which a model is evaluated."""

    places: tuple[str, ...]
    """Files, folders, or ids of data sets on the Hugging Face Hub."""
    split: str | None = None
    """Split of a data set; by default the only one, or `test`."""
    subset: str | None = None
    """Subset of a data set on the Hub."""
    text_column: str | None = None
    """Column of the texts, by default `text`; for token classification, of the lists of words, by default `tokens`."""
    label_column: str | None = None
    """Column of the labels, by default `label`; for token classification, of the lists of labels, by default `tags`."""

    def __post_init__(self) -> None:
        if not self.places:
            raise SpecError("no data was given", wanted="files, folders or the id of a data set", hint="--data FILE")

    @classmethod
    def of(cls, data: "DataSpec | Places") -> "DataSpec":
        """The documents at some places, or as they are described already."""
        if isinstance(data, DataSpec):
            return data
        return cls(places=tuple(os.fspath(each) for each in ([data] if isinstance(data, (str, os.PathLike)) else data)))

    def columns(self, task: Task) -> tuple[str, str | None]:
        """The names of the columns with texts and with labels; language models have no labels."""
        text, label = ("tokens", "tags") if task is Task.TOKEN_CLASSIFICATION else ("text", "label")
        return self.text_column or text, None if task.generates else self.label_column or label
