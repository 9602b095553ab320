"""A bundle's `manifest.json`, and a reader for JSON files with a schema version."""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import from_json

from funnel_export.bundle.ports import Port
from funnel_export.bundle.record import SCHEMA, Digest, FileSize, Funnel, Record, Role, SchemaVersion
from funnel_export.bundle.weights import WeightName, WeightRecords
from funnel_export.checkpoint.checkpoint import CONFIG, SINGLE
from funnel_export.checkpoint.modules import FOLDER, MODULES, OPTIONS
from funnel_export.errors import BundleError, describe_invalid
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.spec.quantization import Quantization
from funnel_export.system.files import LARGEST_JSON, read_bytes

MANIFEST, REPORTS, ENGINES = "manifest.json", "reports", "engines"
MODEL = "model"
"""Role of the graph that takes whole texts."""
MOST_GRAPHS, MOST_PORTS = 16, 4096

GraphName = Annotated[str, Field(pattern=r"^[^/\\\x00]+\.onnx$", max_length=255)]
_BESIDE = "|".join(map(re.escape, (MODULES, *OPTIONS)))
_WITHIN = "|".join(map(re.escape, (CONFIG, SINGLE)))
ModuleFileName = Annotated[str, Field(pattern=rf"^({_BESIDE}|{FOLDER}/({_WITHIN}))$", max_length=255)]
"""Path of a file of sentence-transformers, see `funnel_export.checkpoint.modules`."""
RecordT = TypeVar("RecordT", bound=BaseModel)


class GraphRecord(Record):
    """An ONNX graph of the bundle."""

    file: GraphName
    sha256: Digest
    inputs: Annotated[list[Port], Field(min_length=1, max_length=MOST_PORTS)]
    outputs: Annotated[list[Port], Field(min_length=1, max_length=MOST_PORTS)]


class ModuleFile(Record):
    """A file of the modules of sentence-transformers, copied from the checkpoint."""

    file: ModuleFileName
    """Its path in the bundle, for example `1_Pooling/config.json`."""
    sha256: Digest


class Manifest(Record):
    """The `manifest.json` of a bundle: its files, what they compute, and what they were made from."""

    schema_version: SchemaVersion = SCHEMA
    task: Task
    dtype: Dtype
    opset: int
    logits: Logits = Logits.ALL
    """The tokens for which a language model's graph outputs logits."""
    funnel: Funnel | None
    quantization: dict[str, int | bool | str | list[str] | None] | None = None
    """How the weights are quantized, see `Quantization.to_dict`."""
    graphs: Annotated[dict[Role, GraphRecord], Field(min_length=1, max_length=MOST_GRAPHS)]
    """Graphs by role."""
    weights: Annotated[WeightRecords, Field(min_length=1)]
    config_sha256: Digest
    """Digest of `config.json`, which defines the model."""
    modules: list[ModuleFile] = Field(default_factory=list)
    """Files of sentence-transformers; only for feature extraction."""
    source: str
    """The checkpoint that was exported, as the user named it."""
    versions: dict[str, str]
    """Versions of the tools that made the bundle."""

    def export_spec(self) -> ExportSpec:
        """The spec of the graphs; raises `SpecError` if it is invalid."""
        funnel = None if self.funnel is None else FunnelSpec.from_dict(self.funnel)
        return ExportSpec(
            task=self.task,
            dtype=self.dtype,
            funnel=funnel,
            opset=self.opset,
            logits=self.logits,
            quantization=None if self.quantization is None else Quantization.from_dict(self.quantization),
        )


def read_manifest(folder: Path, kind: type[RecordT], name: str, command: str) -> RecordT:
    """Read the manifest of a folder.

    Args:
        folder: the folder.
        kind: schema of its manifest.
        name: what such a folder is called, for messages.
        command: the command that writes such a folder, for hints.

    Raises:
        BundleError: if the manifest is missing, invalid or of another schema version.
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
    """Parse a manifest or report from JSON.

    Args:
        content: bytes of the file.
        kind: its schema, with a `schema_version`.
        path: the file, for messages.
        what: what the file should be, for messages.
        hint: how to make it again.

    Raises:
        BundleError: if it does not match the schema, or has another schema version.
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


class _NamedModule(BaseModel):
    file: ModuleFileName
    sha256: Digest


class NamedFiles(BaseModel):
    """The part of a bundle's manifest that all versions of the schema share: the files that a new bundle may replace.

    A folder is replaced only if its manifest has all of these keys.
    """

    schema_version: Annotated[int, Field(ge=1)]
    task: Task
    dtype: Dtype
    config_sha256: Digest
    graphs: Annotated[dict[Role, _NamedGraph] | list[_NamedGraph], Field(min_length=1)]
    weights: Annotated[list[_NamedWeights], Field(min_length=1)]
    versions: dict[str, str]
    modules: list[_NamedModule] = Field(default_factory=list)

    @property
    def names(self) -> set[str]:
        """Paths of graphs, weight files and files of sentence-transformers."""
        return self.graph_digests.keys() | self.weight_names | self.module_digests.keys()

    @property
    def graph_digests(self) -> dict[str, str]:
        """Digests of graphs by file name."""
        graphs = self.graphs.values() if isinstance(self.graphs, dict) else self.graphs
        return {each.file: each.sha256 for each in graphs}

    @property
    def weight_names(self) -> set[str]:
        """Names of weight files."""
        return {each.file for each in self.weights}

    @property
    def module_digests(self) -> dict[str, str]:
        """Digests of the files of sentence-transformers by path."""
        return {each.file: each.sha256 for each in self.modules}

    @classmethod
    def read(cls, path: Path) -> "NamedFiles | None":
        """Read the manifest at a path; None if it is not a bundle's manifest."""
        try:
            return None if path.is_symlink() else cls.model_validate_json(read_bytes(path, LARGEST_JSON))
        except (OSError, ValidationError):
            return None


def inside(folder: Path, file: str) -> Path:
    """The path of a bundle's file; raises `BundleError` if it or its folder in the bundle is a symbolic link."""
    path = folder / file
    link = next((each for each in (path, path.parent) if each != folder and each.is_symlink()), None)
    if link is not None:
        raise BundleError(
            "a file of the bundle is a symbolic link",
            got=link,
            wanted="a regular file",
            hint="export with --weights copy",
        )
    return path
