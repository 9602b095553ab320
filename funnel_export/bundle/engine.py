"""Engines: files that a target compiled from a bundle, with a manifest that ties them to it.

An engine is code for a particular machine. Before it is loaded, its manifest must match the bundle and every file must
have the recorded digest; a target also requires the recorded version and device.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from funnel_export.bundle.external import count_nodes, read_graph
from funnel_export.bundle.form import check_engine_form
from funnel_export.bundle.load import Bundle, Graph, check_made_from
from funnel_export.bundle.manifest import ENGINES, MANIFEST, inside, read_manifest
from funnel_export.bundle.ports import dynamic_axes
from funnel_export.bundle.products import Products
from funnel_export.bundle.record import SCHEMA, Digest, Record, Role, SchemaVersion
from funnel_export.bundle.weights import WeightRecords
from funnel_export.errors import BundleError, SpecError
from funnel_export.spec.choices import Dtype
from funnel_export.spec.profile import MOST_PROFILES, Profile
from funnel_export.system.claims import is_partial
from funnel_export.system.files import LARGEST_GRAPH, LARGEST_JSON, read_bytes, regular_size, sha256_of

CACHES = ("runtime.cache", "runtime.cache.json")
"""Optional files beside an engine, not listed in its manifest and verified separately."""

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
    """CUDA compute capabilities that the engine runs on, for example 8.9."""
    driver: str | None = None
    """CUDA version of the driver that the engine was built with."""


class BuiltFor(Record):
    """The machines on which an engine runs."""

    device: str
    """Name of the processor or GPU; a description for an engine that runs on several kinds of GPU."""
    platform: str
    """Operating system and processor architecture."""
    gpus: Gpus | None = None
    """GPUs that run an engine of TensorRT or TensorRT-RTX; None for other targets."""

    @property
    def compute_capabilities(self) -> list[str]:
        """CUDA compute capabilities that the engine runs on; empty if it does not need a GPU."""
        return [] if self.gpus is None else self.gpus.compute_capabilities


class EngineManifest(Record):
    """The `manifest.json` of an engine: its files, what it was made from, and where it runs."""

    schema_version: SchemaVersion = SCHEMA
    target: str
    version: str
    """Version of the runtime; engines load only in the version that built them."""
    built_for: BuiltFor
    dtype: Dtype
    graph: Role
    """Role of the graph that it was compiled from."""
    graph_sha256: Digest
    weights: WeightRecords
    profiles: Annotated[list[Profile], Field(max_length=MOST_PROFILES)]
    """Optimization profiles in the engine's order; empty if it accepts any shape."""
    options: dict[str, OptionValue]
    """Options that differ from the defaults, under the runtime's names."""
    files: Annotated[list[FileRecord], Field(min_length=1)]
    """The first is the file to load."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Facts about the build: seconds, layers by kind and dtype, warnings."""
    versions: dict[str, str]
    """Versions of the tools that made the engine."""

    @property
    def graph_digests(self) -> dict[str, str]:
        """See `MadeFromBundle`."""
        return {self.graph: self.graph_sha256}

    @property
    def sha256(self) -> str:
        """Digest of the whole manifest, which identifies one build."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine whose files match its manifest, and which was built from its bundle. Make one with `load_engine`."""

    path: Path
    manifest: EngineManifest

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.path.name

    @property
    def set_name(self) -> str:
        """The name that the engines of a bundle's graphs share: its name without the role of its graph."""
        return set_name(self.name, self.manifest.graph)

    @property
    def file(self) -> Path:
        """The file to load."""
        return self.path / self.manifest.files[0].file


def set_name(name: str, role: str) -> str:
    """The name that the engine of one graph, of this role, shares with those of the others; see `Engine.set_name`."""
    return name.removeprefix(f"{role}-")


def engine_names(bundle: Bundle) -> list[str]:
    """The names of the engines in a bundle, in alphabetical order; they are not verified."""
    folder = bundle.path / ENGINES
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))


def engines_named(bundle: Bundle, name: str) -> list[str]:
    """The engine with a name, or the engines of the bundle's graphs that share it; empty if there is none.

    `openvino-cpu` names `entry-openvino-cpu`, `middle-openvino-cpu` and `exit-openvino-cpu`.
    """
    present = engine_names(bundle)
    return [name] if name in present else [each for role in bundle.graphs if (each := f"{role}-{name}") in present]


def load_engine(bundle: Bundle, name: str) -> Engine:
    """Open an engine of a bundle and verify it; this reads all of its files.

    Raises:
        BundleError: if it does not exist, is damaged, or was built from another bundle.
    """
    folder = bundle.path / ENGINES / name
    if folder.is_symlink() or folder.parent.is_symlink():
        raise BundleError("an engine is outside its bundle", got=f"a symbolic link at {folder}", wanted="a folder")
    manifest = read_engine_manifest(folder)
    check_made_from(manifest, bundle, f"the engine {folder}", "compile the bundle again")
    for record in manifest.files:
        verify_file(folder / record.file, record)
    _check_graphs(folder, manifest.files, bundle.graphs[manifest.graph])
    check_profiles(manifest, bundle.graphs[manifest.graph])
    return Engine(folder, manifest)


def check_profiles(manifest: EngineManifest, graph: Graph) -> None:
    """Raise `BundleError` if the axes of an optimization profile are not the graph's."""
    try:
        for profile in manifest.profiles:
            profile.validate_axes(dynamic_axes(graph.inputs))
    except SpecError as err:
        raise BundleError(
            "an engine has a profile for another graph", got=err, hint="compile the bundle again"
        ) from err


def _check_graphs(folder: Path, files: Sequence[FileRecord], exported: Graph) -> None:
    """Raise `BundleError` if an ONNX graph of an engine cannot be one of the exported graph.

    It may not refer to data outside the engine's files, and must have the form of an optimized export. Files of other
    names hold no graph: `check_kind` of the targets requires that.
    """
    sizes = {record.file: record.size for record in files}
    for record in files:
        if record.file.endswith(".onnx"):
            model = read_graph(_read(folder / record.file), sizes, f"its engine's files ({folder})", check=False)
            check_engine_form(model, count_nodes(_read(exported.path)))


def _read(graph: Path) -> bytes:
    try:
        return read_bytes(graph, LARGEST_GRAPH)
    except OSError as err:
        raise BundleError("a graph of an engine cannot be read", got=err, wanted=graph) from err


def read_engine_manifest(folder: Path) -> EngineManifest:
    """Read an engine's manifest; raise `BundleError` if it is missing or invalid."""
    return read_manifest(folder, EngineManifest, "engine", "funnel-export compile")


def products_of_engines(bundle: Bundle) -> dict[str, Products | None]:
    """What the targets made of the bundle's products, by the name of the engine; None where that was not seen.

    Only the manifests are read: the files of the engines are not verified.
    """
    return {name: _products_of(bundle, name) for name in engine_names(bundle)}


def _products_of(bundle: Bundle, name: str) -> Products | None:
    """See `products_of_engines`; None too for an engine that is damaged, or was built from another bundle."""
    try:
        manifest = read_engine_manifest(bundle.path / ENGINES / name)
        check_made_from(manifest, bundle, f"the engine {name}", "compile the bundle again")
    except BundleError:
        return None
    return Products.read(manifest.facts)


def changed_engines(bundle: Bundle, digests: Mapping[str, str]) -> list[str]:
    """Names of engines that were removed or changed since; `digests` maps names to digests of manifests."""
    return [name for name, digest in digests.items() if _digest_now(bundle, name) != digest]


def _digest_now(bundle: Bundle, name: str) -> str | None:
    try:
        return read_engine_manifest(bundle.path / ENGINES / name).sha256
    except BundleError:
        return None


def verify_file(path: Path, record: FileRecord) -> None:
    """Raise `BundleError` unless a file has the recorded size and digest; this reads the whole file."""
    try:
        if path.is_symlink():
            raise BundleError("a file of an engine is a symbolic link", got=path, wanted="a file")
        size = regular_size(path)
        found = record_file(path) if size == record.size else None  # not read if the size differs
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
    """The part of an engine's manifest that all versions of the schema share.

    A folder is replaced only if its manifest has all of these keys.
    """

    schema_version: Annotated[int, Field(ge=1)]
    target: str
    version: str
    built_for: dict[str, Any]
    graph_sha256: Digest
    files: Annotated[list[FileRecord], Field(min_length=1)]


def is_engine(path: Path) -> bool:
    """Whether this folder holds only an engine, of any version, so that a new engine may replace it."""
    try:
        files = _NamedFiles.model_validate_json(read_bytes(inside(path, MANIFEST), LARGEST_JSON)).files
    except (BundleError, OSError, ValidationError):
        return False
    named = {record.file for record in files} | {MANIFEST, *CACHES}
    return all((entry.name in named and entry.is_file()) or is_partial(entry) for entry in path.iterdir())
