"""Weight files of a bundle: files of the checkpoint, and files that the export derived from it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field

from funnel_export.bundle.record import Digest, FileSize, Record
from funnel_export.checkpoint.safetensors import StoredTensor, WeightFile
from funnel_export.errors import CheckpointError
from funnel_export.system.files import regular_size, sha256_of

WeightName = Annotated[str, Field(pattern=r"^[^/\\\x00]+\.safetensors$", max_length=255)]


LISTED = 3
"""Most weights that the text of a recipe names."""


class StoredFile(Record):
    """A safetensors file of the checkpoint, identified by its header and a sample of every tensor."""

    source: Literal["stored"] = "stored"
    file: WeightName
    size: FileSize
    header_sha256: Digest
    sample_sha256: Digest

    @classmethod
    def of(cls, file: WeightFile) -> Self:
        """The record of a file."""
        return cls(file=file.file, size=file.size, header_sha256=file.header_sha256, sample_sha256=file.sample_sha256)

    def mismatch(self, path: Path) -> str | None:
        """A description of the file at a path if it differs from this record, else None.

        Raises:
            CheckpointError: if it is not a valid safetensors file.
        """
        found = StoredFile.of(WeightFile.read(path))
        return None if found == self else str(found)

    def __str__(self) -> str:
        header, sample = self.header_sha256[:12], self.sample_sha256[:12]
        return f"{self.file} ({self.size} bytes, header {header}…, sample {sample}…)"


class Recipe(Record):
    """How derived tensors were made."""

    name: str
    """Name of the operation, for example `transpose`."""
    inputs: list[str]
    """Names of the checkpoint's tensors that it was applied to."""
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)

    def __str__(self) -> str:
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        inputs = ", ".join(self.inputs) if len(self.inputs) <= LISTED else f"{len(self.inputs)} weights"
        return f"{self.name} of {inputs}{settings}"


class DerivedFile(Record):
    """A safetensors file that the export made, identified by its digest."""

    source: Literal["derived"] = "derived"
    file: WeightName
    size: FileSize
    sha256: Digest
    recipe: Recipe

    @classmethod
    def of(cls, path: Path, recipe: Recipe) -> Self:
        """The record of a file that was just written."""
        return cls(file=path.name, size=regular_size(path), sha256=sha256_of(path), recipe=recipe)

    def mismatch(self, path: Path) -> str | None:
        """A description of the file at a path if it differs from this record, else None.

        Raises:
            CheckpointError: if it cannot be read, or is not a valid safetensors file.
        """
        try:
            size = regular_size(path)
            if size != self.size:
                return f"{self.file} ({size} bytes)"
            found = self.model_copy(update={"sha256": sha256_of(path)})
        except OSError as err:
            raise CheckpointError("a derived weight file cannot be read", got=err, wanted=path) from err
        if found != self:
            return str(found)
        WeightFile.read(path)
        return None

    def __str__(self) -> str:
        return f"{self.file} ({self.size} bytes, sha256 {self.sha256[:12]}…)"


WeightRecord = StoredFile | DerivedFile
"""A weight file of a bundle."""
WeightRecords = list[Annotated[WeightRecord, Field(discriminator="source")]]
"""Weight files of a manifest or report; `source` gives the kind of each."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight whose bytes are in a file of the checkpoint."""

    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class Derived:
    """A weight that the export made, in a file that is already in the bundle's folder."""

    tensor: StoredTensor
    file: DerivedFile


WeightSource = Stored | Derived
"""Source of one initializer's bytes."""


def files_of(sources: Iterable[WeightSource], stored: Iterable[WeightFile]) -> list[WeightRecord]:
    """The records of all files with these weights: the checkpoint's in their order, then derived ones by name."""
    all_sources = list(sources)
    used = {source.tensor.file for source in all_sources if isinstance(source, Stored)}
    derived = {source.file.file: source.file for source in all_sources if isinstance(source, Derived)}
    return [
        *(StoredFile.of(file) for file in stored if file.file in used),
        *(derived[name] for name in sorted(derived)),
    ]
