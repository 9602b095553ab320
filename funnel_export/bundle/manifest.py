"""Manifests: what a bundle says of itself, as `manifest.json`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.errors import BundleError, describe_invalid
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.files import LARGEST_JSON, read_bytes

if TYPE_CHECKING:
    pass

MANIFEST, GRAPH, REPORTS, ENGINES = "manifest.json", "model.onnx", "reports", "engines"
GraphName = Annotated[str, Field(pattern=r"^[^/\\\x00]+\.onnx$", max_length=255)]
WeightName = Annotated[str, Field(pattern=r"^[^/\\\x00]+\.safetensors$", max_length=255)]
ManifestT = TypeVar("ManifestT", bound=BaseModel)
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorRecord(_Record):
    """An input or output of a graph."""

    name: str
    dtype: str
    shape: list[int | str]
    """Sizes; dynamic axes by name."""


class GraphRecord(_Record):
    """An ONNX graph of the bundle."""

    file: GraphName
    sha256: Digest
    inputs: Annotated[list[TensorRecord], Field(min_length=1)]
    outputs: Annotated[list[TensorRecord], Field(min_length=1)]


class WeightRecord(_Record):
    """A safetensors file of the bundle, identified by its header and a sample of every tensor."""

    file: WeightName
    size: Annotated[int, Field(ge=0)]
    header_sha256: Digest
    sample_sha256: Digest

    @classmethod
    def of(cls, file: WeightFile) -> Self:
        """What is recorded of a file."""
        digests = {"header_sha256": file.header_sha256, "sample_sha256": file.sample_sha256}
        return cls(file=file.file, size=file.size, **digests)

    def __str__(self) -> str:
        header, sample = self.header_sha256[:12], self.sample_sha256[:12]
        return f"{self.file} ({self.size} bytes, header {header}…, sample {sample}…)"


class Manifest(_Record):
    """What a bundle is and what it was made from: `manifest.json`."""

    schema_version: Literal[1] = 1
    task: Task
    dtype: Dtype
    opset: int
    logits: Logits = Logits.ALL
    """For which tokens the graph of a language model gives logits."""
    funnel: dict[str, int | str | bool] | None
    graphs: Annotated[list[GraphRecord], Field(min_length=1)]
    weights: Annotated[list[WeightRecord], Field(min_length=1)]
    config_sha256: Digest
    """Digest of `config.json`, which says what the model is."""
    source: str
    """The checkpoint that was exported, as it was named."""
    versions: dict[str, str]
    """Versions of the tools that made the bundle."""

    @property
    def spec(self) -> FunnelSpec | None:
        """The funnel, None for a dense bundle."""
        return None if self.funnel is None else FunnelSpec.from_dict(self.funnel)


def read_manifest(folder: Path, kind: type[ManifestT], name: str, command: str) -> ManifestT:
    """The manifest of a folder that one of our commands writes; `name` says what such a folder is.

    Raises:
        BundleError: if there is none, or it is of another make.
    """
    try:
        return kind.model_validate_json(read_bytes(_inside(folder, MANIFEST), LARGEST_JSON))
    except OSError as err:
        raise BundleError(
            f"there is no {name} here", got=err, wanted=f"a folder with {MANIFEST}", hint=command
        ) from err
    except ValidationError as err:
        details = "; ".join(describe_invalid(err)[:5])
        raise BundleError(
            f"{MANIFEST} is not a manifest of this version of funnel_export",
            got=f"{folder / MANIFEST}: {details}",
            wanted="schema version 1",
            hint=f"{command} again",
        ) from err


def _inside(folder: Path, file: str) -> Path:
    """The path of a bundle's file, which must be a real file in the folder and not a link out of it."""
    path = folder / file
    if path.is_symlink():
        raise BundleError("a file of the bundle is a symbolic link", got=path, wanted="a file", hint="--weights copy")
    return path
