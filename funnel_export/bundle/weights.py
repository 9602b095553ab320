"""Where weights come from: a file of the checkpoint, or a file that the export derived from it."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from funnel_export.checkpoint.safetensors import StoredTensor, WeightFile
from funnel_export.errors import CheckpointError
from funnel_export.system.files import open_regular

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
WeightName = Annotated[str, Field(pattern=r"^[^/\\\x00]+\.safetensors$", max_length=255)]
FileSize = Annotated[int, Field(ge=0, lt=1 << 63)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredFile(_Record):
    """A safetensors file of the checkpoint, identified by its header and a sample of every tensor."""

    source: Literal["stored"] = "stored"
    file: WeightName
    size: FileSize
    header_sha256: Digest
    sample_sha256: Digest

    @classmethod
    def of(cls, file: WeightFile) -> Self:
        """What is recorded of a file."""
        return cls(file=file.file, size=file.size, header_sha256=file.header_sha256, sample_sha256=file.sample_sha256)

    def read_again(self, path: Path) -> "StoredFile":
        """What would be recorded of the file at a path.

        Raises:
            CheckpointError: if it is not a whole safetensors file.
        """
        return StoredFile.of(WeightFile.read(path))

    def __str__(self) -> str:
        header, sample = self.header_sha256[:12], self.sample_sha256[:12]
        return f"{self.file} ({self.size} bytes, header {header}…, sample {sample}…)"


class Recipe(_Record):
    """How derived tensors were made."""

    name: str
    """What was done, for example `transpose`."""
    inputs: list[str]
    """The checkpoint's tensors that it was done to."""
    settings: dict[str, str | int | float | bool] = {}

    def __str__(self) -> str:
        settings = "".join(f", {name} {value}" for name, value in self.settings.items())
        return f"{self.name} of {', '.join(self.inputs)}{settings}"


class DerivedFile(_Record):
    """A safetensors file that the export made, identified by the digest of all of it."""

    source: Literal["derived"] = "derived"
    file: WeightName
    size: FileSize
    sha256: Digest
    recipe: Recipe

    @classmethod
    def of(cls, path: Path, recipe: Recipe) -> Self:
        """What is recorded of a file that was just written."""
        return cls(file=path.name, size=path.stat().st_size, sha256=_digest(path), recipe=recipe)

    def read_again(self, path: Path) -> "DerivedFile":
        """What would be recorded of the file at a path; one of another size is not read.

        Raises:
            CheckpointError: if it is not a whole safetensors file.
        """
        try:
            size = path.stat().st_size
            digest = _digest(path) if size == self.size else "0" * 64
        except OSError as err:
            raise CheckpointError("a derived weight file cannot be read", got=err, wanted=path) from err
        return self.model_copy(update={"size": size, "sha256": digest})

    def __str__(self) -> str:
        return f"{self.file} ({self.size} bytes, sha256 {self.sha256[:12]}…)"


WeightRecord = StoredFile | DerivedFile
"""A weight file of a bundle; `source` tells which."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight whose bytes are the checkpoint's."""

    tensor: StoredTensor


@dataclass(frozen=True, slots=True)
class Derived:
    """A weight that the export made, in a file that stands in the bundle's folder already."""

    tensor: StoredTensor
    file: DerivedFile


WeightSource = Stored | Derived
"""Where the bytes of one initializer come from."""


def files_of(sources: Iterable[WeightSource], stored: Iterable[WeightFile]) -> list[WeightRecord]:
    """The records of all files that hold these weights: the checkpoint's in their order, then derived ones by name."""
    all_sources = list(sources)
    used = {source.tensor.file for source in all_sources if isinstance(source, Stored)}
    derived = {source.file.file: source.file for source in all_sources if isinstance(source, Derived)}
    return [
        *(StoredFile.of(file) for file in stored if file.file in used),
        *(derived[name] for name in sorted(derived)),
    ]


def _digest(path: Path) -> str:
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
