"""The labels of a classifier: their names, and which label of the model a label of the data is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from funnel_export.errors import DataError
from funnel_export.families.architecture import Architecture
from funnel_export.quality.documents import Document

SPAN = re.compile(r"O|[BIES]-.+")
"""Labels of words that mark spans: outside, or the beginning, inside, end or whole of a span."""
SHOWN = 8


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a model, in the order of its outputs."""

    names: tuple[str, ...]

    @classmethod
    def of(cls, architecture: Architecture) -> Self:
        """The names in `config.json`, or Hugging Face's default names."""
        stored = {str(key): str(name) for key, name in (architecture.id2label or {}).items()}
        return cls(tuple(stored.get(str(index), f"LABEL_{index}") for index in range(architecture.num_labels)))

    @property
    def mark_spans(self) -> bool:
        """Whether the labels of words mark spans, as in named entity recognition."""
        return "O" in self.names and all(map(SPAN.fullmatch, self.names))

    def ids_of(self, document: Document) -> list[int]:
        """The model's numbers of a document's labels.

        A name is looked up among the model's names. So is a number for which the data has a name, if the model has all
        names of the data. Other numbers are the model's own.

        Raises:
            DataError: if the model does not have a label.
        """
        numbers = {name: index for index, name in enumerate(self.names)}
        names = document.label_names if set(document.label_names) <= numbers.keys() else ()
        found = []
        for label in document.labels:
            name = names[label] if isinstance(label, int) and 0 <= label < len(names) else label
            number = numbers.get(name) if isinstance(name, str) else name
            if number is None or not 0 <= number < len(self.names):
                raise DataError(
                    "the model does not have a label of the data",
                    got=f"{document.origin}: {label!r}",
                    wanted=f"0 to {len(self.names) - 1}, or a name: {_listed(self.names)}",
                )
            found.append(number)
        return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
