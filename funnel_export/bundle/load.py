"""Loads a bundle, the folder that an export writes, and verifies it."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from funnel_export.bundle.external import describe_values, read_graph
from funnel_export.bundle.manifest import (
    MANIFEST,
    MODEL,
    GraphRecord,
    Manifest,
    NamedFiles,
    inside,
    read_manifest,
)
from funnel_export.bundle.ports import Port
from funnel_export.bundle.signature import Declared, signatures_of
from funnel_export.bundle.weights import DerivedFile, StoredFile, WeightRecord
from funnel_export.checkpoint.checkpoint import CONFIG, Checkpoint
from funnel_export.errors import BundleError, CheckpointError, SpecError
from funnel_export.families.architecture import Architecture
from funnel_export.families.base import Family
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import Segment, segments_of
from funnel_export.system.files import LARGEST_COMPANION, LARGEST_GRAPH, LARGEST_JSON, read_bytes


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph of a bundle, with everything that a target needs to compile, load and run it."""

    role: str
    path: Path
    """Its file; the weights are in the same folder."""
    record: GraphRecord
    spec: ExportSpec
    """Task, dtype, funnel and opset of the bundle."""
    num_layers: int
    """Layers of the whole model."""

    @property
    def dtype(self) -> Dtype:
        """The dtype that it computes in."""
        return self.spec.dtype

    @property
    def sha256(self) -> str:
        """SHA-256 of its file."""
        return self.record.sha256

    @property
    def inputs(self) -> list[Port]:
        """Its inputs."""
        return self.record.inputs

    @property
    def outputs(self) -> list[Port]:
        """Its outputs."""
        return self.record.outputs

    @property
    def output(self) -> Port:
        """The first output, and the only one of a single-pass graph."""
        return self.record.outputs[0]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files match its manifest. Make one with `load_bundle`."""

    path: Path
    manifest: Manifest
    spec: ExportSpec
    """Task, dtype, funnel and opset of its graphs."""
    family: Family
    architecture: Architecture

    @property
    def graphs(self) -> dict[str, Graph]:
        """Its graphs by role."""
        layers = self.architecture.num_hidden_layers
        return {
            role: Graph(role, self.path / record.file, record, self.spec, layers)
            for role, record in self.manifest.graphs.items()
        }

    @property
    def model(self) -> Graph:
        """The graph that takes whole texts in a single pass.

        Raises:
            BundleError: if the bundle does not have one.
        """
        graphs = self.graphs
        if MODEL not in graphs:
            raise BundleError(
                "the bundle has no graph that takes whole texts",
                got=f"graphs: {', '.join(graphs)}",
                wanted=f"a graph of role {MODEL}",
                hint="use a bundle of a single-pass task",
            )
        return graphs[MODEL]

    @property
    def output(self) -> Port:
        """What the model returns: logits or hidden states, the first output of its last graph."""
        return list(self.graphs.values())[-1].output

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Its layers, in segments that run at one length each."""
        return segments_of(self.spec.funnel, self.architecture.num_hidden_layers)


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify it.

    This checks the manifest, the digest of every graph and of the files of sentence-transformers, the size, header and
    samples of every weight file (the digest of a derived one), and that the graphs refer to no other files.

    Raises:
        BundleError: if there is no bundle, or it does not match its manifest.
    """
    folder = Path(path)
    manifest = read_manifest(folder, Manifest, "bundle", "funnel-export export")
    _read_verified(folder, CONFIG, manifest.config_sha256, LARGEST_JSON)
    for module in manifest.modules:
        _read_verified(folder, module.file, module.sha256, LARGEST_COMPANION)
    for weight in manifest.weights:
        _verify_weight(folder, weight)
    for graph in manifest.graphs.values():
        _verify_graph(folder, graph, manifest.opset, {weight.file: weight.size for weight in manifest.weights})
    try:
        checkpoint = Checkpoint.open(folder)
        _check_weight_files(folder, manifest, {file.file for file in checkpoint.weights})
        spec = manifest.export_spec()
        if checkpoint.funnel != spec.funnel:
            raise SpecError(
                f"{CONFIG} and {MANIFEST} have different funnels", got=checkpoint.funnel, wanted=spec.funnel
            )
        if checkpoint.quantization != spec.quantization:
            raise SpecError(
                f"{CONFIG} and {MANIFEST} have different quantizations",
                got=checkpoint.quantization,
                wanted=spec.quantization,
            )
        segments_of(spec.funnel, checkpoint.architecture.num_hidden_layers)
        _check_signatures(manifest, spec, checkpoint.architecture)
    except (CheckpointError, SpecError) as err:
        raise BundleError(f"{folder} is not a valid bundle: {err}", hint="export it again") from err
    return Bundle(folder, manifest, spec, checkpoint.family, checkpoint.architecture)


def _check_weight_files(folder: Path, manifest: Manifest, found: set[str]) -> None:
    """Raise `CheckpointError` unless the folder has exactly the weight files that the manifest names.

    Files that Hugging Face might load as weights or as an adapter count as weight files.
    """
    stored = {weight.file for weight in manifest.weights if isinstance(weight, StoredFile)}
    derived = {weight.file for weight in manifest.weights if isinstance(weight, DerivedFile)}
    patterns = ("*.safetensors", "*.bin", "adapter_*")
    strange = {path.name for pattern in patterns for path in folder.glob(pattern)} - stored - derived
    if not stored <= found <= stored | derived or strange:
        raise CheckpointError(
            "the weight files differ from the manifest", got=sorted(found | strange), wanted=sorted(stored | derived)
        )


class MadeFromBundle(Protocol):
    """A record of the bundle that something was made from: an engine's manifest or a report."""

    @property
    def graph_digests(self) -> Mapping[str, str]:
        """Digest of each graph that it was made from, by role."""
        ...

    @property
    def weights(self) -> Sequence[WeightRecord]:
        """The weight files that it was made from."""
        ...


def check_made_from(made: MadeFromBundle, bundle: Bundle, what: str, hint: str) -> None:
    """Raise `BundleError` unless `made`, called `what` in messages, was made from this bundle's graphs and weights."""
    error = f"{what} was made from another bundle"
    for role, digest in made.graph_digests.items():
        graph = bundle.manifest.graphs.get(role)
        found = "none" if graph is None else f"{graph.sha256[:12]}…"
        if graph is None or graph.sha256 != digest:
            raise BundleError(error, got=f"{_graph(role)} {digest[:12]}…", wanted=f"{_graph(role)} {found}", hint=hint)
    if list(made.weights) != bundle.manifest.weights:
        got, wanted = (f"weights {', '.join(map(str, each))}" for each in (made.weights, bundle.manifest.weights))
        raise BundleError(error, got=got, wanted=wanted, hint=hint)


def _graph(role: str) -> str:
    return "graph" if role == MODEL else f"graph {role}"


def is_bundle(path: Path) -> bool:
    """Whether a folder has a bundle's manifest, of any version."""
    return NamedFiles.read(path / MANIFEST) is not None


def _read_verified(folder: Path, file: str, sha256: str, largest: int) -> bytes:
    """The content of a bundle's file; raises `BundleError` unless it has this digest."""
    path = inside(folder, file)
    try:
        content = read_bytes(path, largest)
    except FileNotFoundError as err:
        raise BundleError(f"the bundle's {file} is missing", got=err, wanted=path) from err
    except OSError as err:
        raise BundleError(f"the bundle's {file} cannot be read", got=err, wanted=f"a file at {path}") from err
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise BundleError(
            f"{file} is not the one that was exported",
            got=f"{path}: sha256 {digest[:12]}…",
            wanted=f"sha256 {sha256[:12]}…",
            hint="export the bundle again",
        )
    return content


def _verify_weight(folder: Path, record: WeightRecord) -> None:
    path = inside(folder, record.file)
    try:
        found = record.mismatch(path)
    except CheckpointError as err:
        raise BundleError(f"a weight file of the bundle is damaged: {err}") from err
    if found is not None:
        raise BundleError(
            "a weight file is not the one that was exported",
            got=f"{found} in {folder}",
            wanted=record,
            hint="export the bundle again",
        )


def _verify_graph(folder: Path, record: GraphRecord, opset: int, weights: dict[str, int]) -> None:
    content = _read_verified(folder, record.file, record.sha256, LARGEST_GRAPH)
    model = read_graph(content, weights, f"the bundle's weight files ({folder / record.file})", check=True)
    opsets = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    for what, found, named in (
        ("inputs", describe_values(model.graph.input), _described(record.inputs)),
        ("outputs", describe_values(model.graph.output), _described(record.outputs)),
        ("opset", opsets, [opset]),
    ):
        if found != named:
            raise BundleError(
                f"{MANIFEST} and {record.file} have different {what}",
                got=named,
                wanted=found,
                hint="export the bundle again",
            )


def _described(ports: Sequence[Port]) -> list[tuple[str, str, list[int | str]]]:
    return [(port.name, port.dtype, port.shape) for port in ports]


def _check_signatures(manifest: Manifest, spec: ExportSpec, architecture: Architecture) -> None:
    """Raise `SpecError` unless the graphs are those of the task, with its inputs and outputs."""
    signatures = signatures_of(spec, architecture)
    if manifest.graphs.keys() != signatures.keys():
        raise SpecError(
            f"the graphs are not those of {spec.task}",
            got=", ".join(manifest.graphs),
            wanted=", ".join(signatures),
        )
    for role, record in manifest.graphs.items():
        found = [_in_words(port, port.shape) for port in (*record.inputs, *record.outputs)]
        wanted = [_in_words(port, port.axes) for port in signatures[role].ports]
        if found != wanted or len(record.inputs) != len(signatures[role].inputs):
            raise SpecError(
                f"the graph {record.file} does not have the inputs and outputs of {spec.task} in {spec.dtype}",
                got=", ".join(each for each in found if each not in wanted) or f"{len(record.inputs)} inputs",
                wanted=", ".join(each for each in wanted if each not in found) or f"{len(signatures[role].inputs)}",
            )


def _in_words(port: Port | Declared, shape: Sequence[int | str]) -> str:
    return f"{port.name} {port.kind} {port.dtype} {[*shape]}"
