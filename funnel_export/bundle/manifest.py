"""Manifests: what a bundle says of itself, as `manifest.json`, and how files with a schema version are read."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from funnel_export.bundle.ports import Port
from funnel_export.bundle.record import SCHEMA, Digest, FileSize, Funnel, Record, Role, SchemaVersion
from funnel_export.bundle.weights import WeightName, WeightRecords
from funnel_export.errors import BundleError, describe_invalid
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.files import LARGEST_JSON, read_bytes

MANIFEST, REPORTS, ENGINES = "manifest.json", "reports", "engines"
MODEL = "model"
"""Role of the graph that takes whole texts."""
MOST_GRAPHS, MOST_PORTS = 16, 4096

GraphName = Annotated[str, Field(pattern=r"^[^/\\\x00]+\.onnx$", max_length=255)]
RecordT = TypeVar("RecordT", bound=BaseModel)


class GraphRecord(Record):
    """An ONNX graph of the bundle."""

    file: GraphName
    sha256: Digest
    inputs: Annotated[list[Port], Field(min_length=1, max_length=MOST_PORTS)]
    outputs: Annotated[list[Port], Field(min_length=1, max_length=MOST_PORTS)]


class Manifest(Record):
    """What a bundle is and what it was made from: `manifest.json`."""

    schema_version: SchemaVersion = SCHEMA
    task: Task
    dtype: Dtype
    opset: int
    logits: Logits = Logits.ALL
    """For which tokens the graph of a language model gives logits."""
    funnel: Funnel | None
    graphs: Annotated[dict[Role, GraphRecord], Field(min_length=1, max_length=MOST_GRAPHS)]
    """By their roles."""
    weights: Annotated[WeightRecords, Field(min_length=1)]
    config_sha256: Digest
    """Digest of `config.json`, which says what the model is."""
    source: str
    """The checkpoint that was exported, as it was named."""
    versions: dict[str, str]
    """Versions of the tools that made the bundle."""

    def export_spec(self) -> ExportSpec:
        """What the graphs compute; `SpecError` for what no export computes."""
        funnel = None if self.funnel is None else FunnelSpec.from_dict(self.funnel)
        return ExportSpec(task=self.task, dtype=self.dtype, funnel=funnel, opset=self.opset, logits=self.logits)


def read_manifest(folder: Path, kind: type[RecordT], name: str, command: str) -> RecordT:
    """The manifest of a folder that one of our commands writes; `name` says what such a folder is.

    Raises:
        BundleError: if there is none, or it is of another make or version.
    """
    path = inside(folder, MANIFEST)
    try:
        content = read_bytes(path, LARGEST_JSON)
    except OSError as err:
        raise BundleError(
            f"there is no {name} here", got=err, wanted=f"a folder with {MANIFEST}", hint=command
        ) from err
    return parse_record(content, kind, path, "a manifest of this version of funnel_export", f"{command} again")


def parse_record(content: bytes, kind: type[RecordT], path: Path, what: str, hint: str) -> RecordT:
    """A manifest or report, from its JSON.

    Args:
        content: what the file holds.
        kind: its schema, with a `schema_version`.
        path: the file, for messages.
        what: what it should be.
        hint: how it is made again.

    Raises:
        BundleError: if it is not of this schema, or was written by another version.
    """
    version = _schema_version(content)
    if version not in (None, SCHEMA):
        raise BundleError(
            f"{path.name} was written by {'an earlier' if version < SCHEMA else 'a later'} version of funnel_export",
            got=f"{path}: schema version {version}",
            wanted=f"schema version {SCHEMA}",
            hint=hint,
        )
    try:
        return kind.model_validate_json(content)
    except ValidationError as err:
        details = "; ".join(describe_invalid(err)[:5])
        raise BundleError(
            f"{path.name} is not {what}", got=f"{path}: {details}", wanted=f"schema version {SCHEMA}", hint=hint
        ) from err


def _schema_version(content: bytes) -> Any:
    try:
        value = from_json(content)
    except ValueError:
        return None
    version = value.get("schema_version") if isinstance(value, dict) else None
    return version if type(version) is int else None


class _NamedGraph(BaseModel):
    file: GraphName
    sha256: Digest


class _NamedWeights(BaseModel):
    file: WeightName
    size: FileSize


class NamedFiles(BaseModel):
    """The files that a bundle's manifest names, whatever version wrote it: what may be replaced together with it.

    Every version has these keys; a folder is replaced only if all of them are there.
    """

    schema_version: Annotated[int, Field(ge=1)]
    task: Task
    dtype: Dtype
    config_sha256: Digest
    graphs: Annotated[dict[Role, _NamedGraph] | list[_NamedGraph], Field(min_length=1)]
    weights: Annotated[list[_NamedWeights], Field(min_length=1)]
    versions: dict[str, str]

    @property
    def names(self) -> set[str]:
        """Names of graphs and weight files."""
        return self.graph_digests.keys() | self.weight_names

    @property
    def graph_digests(self) -> dict[str, str]:
        """Digests of graphs by the names of their files."""
        graphs = self.graphs.values() if isinstance(self.graphs, dict) else self.graphs
        return {each.file: each.sha256 for each in graphs}

    @property
    def weight_names(self) -> set[str]:
        """Names of weight files."""
        return {each.file for each in self.weights}

    @classmethod
    def read(cls, path: Path) -> "NamedFiles | None":
        """What the manifest at a path names; None if it is no bundle's manifest."""
        try:
            return None if path.is_symlink() else cls.model_validate_json(read_bytes(path, LARGEST_JSON))
        except (OSError, ValidationError):
            return None


def inside(folder: Path, file: str) -> Path:
    """The path of a bundle's file, which must be a real file in the folder and not a link out of it."""
    path = folder / file
    if path.is_symlink():
        raise BundleError("a file of the bundle is a symbolic link", got=path, wanted="a file", hint="--weights copy")
    return path
