"""Engines: what a target compiled from a bundle, and what proves that it belongs to it.

An engine is code for the machine that it was built for. It is read only if its manifest fits the bundle and every file
is the one that was built, and a target reads it only if version and device fit too.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from funnel_export.bundle.external import read_graph
from funnel_export.bundle.load import Bundle, Graph, check_made_from
from funnel_export.bundle.manifest import ENGINES, MANIFEST, inside, read_manifest
from funnel_export.bundle.ports import dynamic_axes
from funnel_export.bundle.record import SCHEMA, Digest, Record, Role, SchemaVersion
from funnel_export.bundle.weights import WeightRecords
from funnel_export.errors import BundleError, SpecError
from funnel_export.spec.choices import Dtype
from funnel_export.spec.profile import Profile
from funnel_export.system.claims import is_partial
from funnel_export.system.files import LARGEST_GRAPH, LARGEST_JSON, read_bytes, regular_size, sha256_of

CACHES = ("runtime.cache", "runtime.cache.json")
"""Files that may come and go beside an engine; each is read only if it proves to be the right one."""

FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=255)]
EngineName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}$")]
OptionValue = str | int | float | bool


class FileRecord(Record):
    """A file of an engine."""

    file: FileName
    size: Annotated[int, Field(ge=0)]
    sha256: Digest


class Gpus(Record):
    """The NVIDIA GPUs on which an engine runs."""

    compute_capabilities: list[str]
    """CUDA compute capabilities that the engine runs on, as 8.9."""
    driver: str | None = None
    """CUDA version of the driver that the engine was built with."""


class BuiltFor(Record):
    """The machines on which an engine runs."""

    device: str
    """Name of the processor, or of the GPU; for a plan that several kinds of GPU run, what they have in common."""
    platform: str
    """Operating system and processor architecture."""
    gpus: Gpus | None = None
    """For an engine of TensorRT or TensorRT-RTX."""

    @property
    def compute_capabilities(self) -> list[str]:
        """CUDA compute capabilities that the engine runs on; none if it is for no particular GPU."""
        return [] if self.gpus is None else self.gpus.compute_capabilities


class EngineManifest(Record):
    """What an engine is and what it was made from: its `manifest.json`."""

    schema_version: SchemaVersion = SCHEMA
    target: str
    version: str
    """Version of the runtime, which reads its own engines only."""
    built_for: BuiltFor
    dtype: Dtype
    graph: Role
    """Role of the graph that it was compiled from."""
    graph_sha256: Digest
    weights: WeightRecords
    profiles: list[Profile]
    """Optimization profiles in the engine's order; empty if it takes any shape."""
    options: dict[str, OptionValue]
    """What was asked for beyond the defaults, by the names of the runtime."""
    files: Annotated[list[FileRecord], Field(min_length=1)]
    """The first is the one to load."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """What the build told: seconds, layers by kind and dtype, warnings."""
    versions: dict[str, str]
    """Versions of the tools that made the engine."""

    @property
    def graph_digests(self) -> dict[str, str]:
        """See `MadeFromBundle`."""
        return {self.graph: self.graph_sha256}

    @property
    def sha256(self) -> str:
        """What identifies one build: the digest of all of this, with options, files and how long it took."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine whose files are what its manifest says, and whose bundle is the one it was built from."""

    path: Path
    manifest: EngineManifest

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.path.name

    @property
    def file(self) -> Path:
        """The file to load."""
        return self.path / self.manifest.files[0].file


def engine_names(bundle: Bundle) -> list[str]:
    """The names of the engines in a bundle, whole or not, in alphabetical order."""
    folder = bundle.path / ENGINES
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def load_engine(bundle: Bundle, name: str) -> Engine:
    """Open an engine of a bundle and verify it, by reading all of its files.

    Raises:
        BundleError: if there is none of that name, it is damaged, or it was built from another bundle.
    """
    folder = bundle.path / ENGINES / name
    if folder.is_symlink() or folder.parent.is_symlink():
        raise BundleError("an engine lies outside its bundle", got=f"a symbolic link at {folder}", wanted="a folder")
    manifest = read_engine_manifest(folder)
    check_made_from(manifest, bundle, f"the engine {folder}", "compile the bundle again")
    for record in manifest.files:
        verify_file(folder / record.file, record)
    _check_graphs(folder, manifest.files)
    check_profiles(manifest, bundle.graphs[manifest.graph])
    return Engine(folder, manifest)


def check_profiles(manifest: EngineManifest, graph: Graph) -> None:
    """Raise `BundleError` for an optimization profile of other axes than the graph's."""
    try:
        for profile in manifest.profiles:
            profile.validate_axes(dynamic_axes(graph.inputs))
    except SpecError as err:
        raise BundleError(
            "an engine has a profile for another graph", got=err, hint="compile the bundle again"
        ) from err


def _check_graphs(folder: Path, files: Sequence[FileRecord]) -> None:
    """Raise `BundleError` if a graph among an engine's files reads anything but these files."""
    sizes = {record.file: record.size for record in files}
    for record in files:
        if record.file.endswith(".onnx"):
            try:
                content = read_bytes(folder / record.file, LARGEST_GRAPH)
            except OSError as err:
                raise BundleError("a graph of an engine cannot be read", got=err, wanted=folder / record.file) from err
            read_graph(content, sizes, f"its engine's files ({folder})", check=False)


def read_engine_manifest(folder: Path) -> EngineManifest:
    """An engine's manifest; `BundleError` if there is none, or it is of another make."""
    return read_manifest(folder, EngineManifest, "engine", "funnel-export compile")


def changed_engines(bundle: Bundle, digests: Mapping[str, str]) -> list[str]:
    """Names of engines that are not in the bundle any more, or not as they were; `digests` are of their manifests."""
    return [name for name, digest in digests.items() if _digest_now(bundle, name) != digest]


def _digest_now(bundle: Bundle, name: str) -> str | None:
    try:
        return read_engine_manifest(bundle.path / ENGINES / name).sha256
    except BundleError:
        return None


def verify_file(path: Path, record: FileRecord) -> None:
    """Raise `BundleError` unless a file has the size and the digest that were recorded, by reading it whole."""
    try:
        if path.is_symlink():
            raise BundleError("a file of an engine is a symbolic link", got=path, wanted="a file")
        size = regular_size(path)
        found = record_file(path) if size == record.size else None  # one of another size is not read
    except OSError as err:
        raise BundleError("a file of an engine cannot be read", got=err, wanted=f"a file at {path}") from err
    if found != record:
        digest = "" if found is None else f", sha256 {found.sha256[:12]}…"
        raise BundleError(
            "a file of an engine is not the one that was built",
            got=f"{path}: {size} bytes{digest}",
            wanted=f"{record.size} bytes, sha256 {record.sha256[:12]}…",
            hint="compile the bundle again",
        )


def record_file(path: Path) -> FileRecord:
    """Size and digest of a regular file."""
    return FileRecord(file=path.name, size=regular_size(path), sha256=sha256_of(path))


class _NamedFiles(BaseModel):
    """The files that an engine's manifest names, whatever version wrote it.

    Every version has these keys; a folder is replaced only if all of them are there.
    """

    schema_version: Annotated[int, Field(ge=1)]
    target: str
    version: str
    built_for: dict[str, Any]
    graph_sha256: Digest
    files: Annotated[list[FileRecord], Field(min_length=1)]


def is_engine(path: Path) -> bool:
    """Whether this folder is an engine of any version and nothing else: one that a new one may replace."""
    try:
        files = _NamedFiles.model_validate_json(read_bytes(inside(path, MANIFEST), LARGEST_JSON)).files
    except (BundleError, OSError, ValidationError):
        return False
    named = {record.file for record in files} | {MANIFEST, *CACHES}
    return all((entry.name in named and entry.is_file()) or is_partial(entry) for entry in path.iterdir())
