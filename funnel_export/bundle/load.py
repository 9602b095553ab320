"""The bundle: the folder that an export writes and everything else reads, and what proves that it is whole."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from funnel_export.bundle.manifest import (
    ENGINES,
    MANIFEST,
    REPORTS,
    GraphRecord,
    Manifest,
    WeightRecord,
    _inside,
    read_manifest,
)
from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, INDEX, Checkpoint
from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.errors import BundleError, CheckpointError, SpecError
from funnel_export.families.gemma2 import Architecture
from funnel_export.system.files import LARGEST_GRAPH, LARGEST_JSON, read_bytes

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import TensorProto


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files are what its manifest says. Make one with `load_bundle`."""

    path: Path
    manifest: Manifest
    architecture: Architecture

    @property
    def graph(self) -> Path:
        """The single-pass graph."""
        return self.path / self.manifest.graphs[0].file


def load_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Open a bundle and verify it.

    Checked are the manifest, the digest of every graph, size, header and a sample of every weight file, and that the
    graphs refer to nothing but these files.

    Raises:
        BundleError: if there is no bundle, or it is not what its manifest says.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    _read_verified(folder, CONFIG, manifest.config_sha256, LARGEST_JSON)
    for weight in manifest.weights:
        _verify_weight(folder, weight)
    for graph in manifest.graphs:
        _verify_graph(folder, graph, {weight.file: weight.size for weight in manifest.weights})
    try:
        checkpoint = Checkpoint.open(folder)
        files = {file.file for file in checkpoint.weights}
        strange = _strange_weights(folder, manifest)
        if files != {weight.file for weight in manifest.weights} or strange:
            raise CheckpointError("the weight files are not those of the manifest", got=sorted(files | strange))
        if checkpoint.funnel != manifest.spec:
            raise SpecError(
                f"{CONFIG} and {MANIFEST} name different funnels", got=checkpoint.funnel, wanted=manifest.spec
            )
    except (CheckpointError, SpecError) as err:
        raise BundleError(f"{folder} is not a whole bundle: {err}", hint="export it again") from err
    return Bundle(folder, manifest, checkpoint.architecture)


class MadeFromBundle(Protocol):
    """What names the bundle that it was made from: an engine's manifest, a report."""

    @property
    def graph_sha256(self) -> str: ...

    @property
    def weights(self) -> Sequence[WeightRecord]: ...


def check_made_from(made: MadeFromBundle, bundle: Bundle, what: str, hint: str) -> None:
    """Raise `BundleError` unless something was made from this graph and these weights; `what` names it."""
    graph, weights = bundle.manifest.graphs[0].sha256, bundle.manifest.weights
    if made.graph_sha256 != graph:
        got, wanted = f"graph {made.graph_sha256[:12]}…", f"graph {graph[:12]}…"
    elif made.weights != weights:
        got, wanted = _name_weights(made.weights), _name_weights(weights)
    else:
        return
    raise BundleError(f"{what} was made from another bundle", got=got, wanted=wanted, hint=hint)


def _name_weights(weights: Iterable[WeightRecord]) -> str:
    return "weights " + ", ".join(map(str, weights))


def _strange_weights(folder: Path, manifest: Manifest) -> set[str]:
    """Files that Hugging Face might take for weights or an adapter, and that the manifest does not name."""
    found = {path.name for pattern in ("*.safetensors", "*.bin", "adapter_*") for path in folder.glob(pattern)}
    return found - {weight.file for weight in manifest.weights}


def is_bundle(path: Path) -> bool:
    """Whether this folder is a bundle of ours, whole or not, and nothing else: one that an export may replace."""
    try:
        manifest = _read_manifest(path)
    except BundleError:
        return False
    named = {graph.file for graph in manifest.graphs} | {weight.file for weight in manifest.weights}
    known = named | {MANIFEST, CONFIG, INDEX, REPORTS, ENGINES, *COMPANIONS}
    return {entry.name for entry in path.iterdir()} <= known and _holds_engines_only(path / ENGINES)


def _holds_engines_only(folder: Path) -> bool:
    """Whether a folder is missing, or holds nothing but engines and what a build that was killed has left."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(
        (entry / MANIFEST).is_file() or (entry.name.startswith(".") and ".partial-" in entry.name)
        for entry in folder.iterdir()
    )


def _read_manifest(folder: Path) -> Manifest:
    return read_manifest(folder, Manifest, "bundle", "funnel-export export")


def _read_verified(folder: Path, file: str, sha256: str, largest: int) -> bytes:
    """The content of a bundle's file, if it is the one that was exported."""
    path = _inside(folder, file)
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
    path = _inside(folder, record.file)
    try:
        found = WeightRecord.of(WeightFile.read(path))
    except CheckpointError as err:
        raise BundleError(f"a weight file of the bundle is damaged: {err}") from err
    if found != record:
        raise BundleError(
            "a weight file is not the one that was exported",
            got=f"{found} in {folder}",
            wanted=record,
            hint="export the bundle again",
        )


def _verify_graph(folder: Path, record: GraphRecord, weights: dict[str, int]) -> None:
    import onnx
    from google.protobuf.message import DecodeError

    content = _read_verified(folder, record.file, record.sha256, LARGEST_GRAPH)
    try:
        model = onnx.load_model_from_string(content)
        for tensor in _external_tensors(model):
            place = {entry.key: entry.value for entry in tensor.external_data}
            file, offset, length = place["location"], int(place["offset"]), int(place["length"])
            if file not in weights or offset < 0 or length < 0 or offset + length > weights[file]:
                raise BundleError(
                    "a graph refers to data outside the bundle's weight files",
                    got=f"{tensor.name}: {file!r}, {length} bytes from {offset}",
                    wanted=f"within {sorted(weights)}",
                )
            tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))
        onnx.checker.check_model(model)  # order, names and ops; external data it would look for in the working folder
    except (DecodeError, KeyError, ValueError, onnx.checker.ValidationError) as err:
        raise BundleError(
            "a graph of the bundle cannot be read", got=f"{folder / record.file}: {err}", wanted="an ONNX model"
        ) from err


def _external_tensors(message: "Message") -> Iterator["TensorProto"]:
    """Every tensor that lies outside the model, wherever in it the tensor stands."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) else [value]:
                yield from _external_tensors(child)
