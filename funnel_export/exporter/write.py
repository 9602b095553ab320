"""Writing a bundle: graphs, weights, companions, manifest."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from funnel_export.bundle.manifest import MANIFEST, GraphRecord, Manifest
from funnel_export.bundle.ports import Port, PortKind
from funnel_export.bundle.weights import StoredFile, WeightRecord, files_of
from funnel_export.checkpoint.checkpoint import CONFIG, INDEX, SINGLE, Checkpoint
from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.errors import BundleError, ExportError
from funnel_export.exporter.build import BuiltGraph
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.files import sha256_of
from funnel_export.system.place import Placing, place

TOOLS = ("funnel-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript")


def write_bundle(
    folder: Path,
    graphs: Mapping[str, BuiltGraph],
    checkpoint: Checkpoint,
    spec: ExportSpec,
    *,
    source: str,
    placing: Placing,
) -> None:
    """Fill a folder, in which derived weights may lie already, with a bundle.

    Weight files are hard-linked, or copied where that is asked for or the folder is on another file system.
    `config.json` is the checkpoint's, with the funnel added; tokenizer files are copied, with names in their settings
    that transformers 4 reads too.

    Args:
        folder: where to write.
        graphs: the graphs by role; each is written as `<role>.onnx`.
        checkpoint: what was exported.
        spec: what the graphs compute.
        source: the checkpoint as it was named.
        placing: how weight files get into the bundle.

    Raises:
        BundleError: if the folder cannot be written, because the disk is full, for example.
    """
    weights = files_of((source for built in graphs.values() for source in built.sources.values()), checkpoint.weights)
    stored = {weight.file for weight in weights if isinstance(weight, StoredFile)}
    files = [file for file in checkpoint.weights if file.file in stored]
    try:
        for role, built in graphs.items():
            ir.save(built.model, folder / graph_file(role))
        for file in files:
            place(checkpoint.path / file.file, folder / file.file, placing)
        _write_config(folder, checkpoint, spec.funnel)
        if [file.file for file in files] != [SINGLE]:
            _write_index(folder, files)
        for name, content in checkpoint.companions().items():
            (folder / name).write_bytes(content)
        manifest = _manifest(folder, graphs, weights, spec, source)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as err:
        raise BundleError("the bundle could not be written", got=err, wanted="room and permission to write") from err


def _manifest(
    folder: Path, graphs: Mapping[str, BuiltGraph], weights: list[WeightRecord], spec: ExportSpec, source: str
) -> Manifest:
    return Manifest(
        task=spec.task,
        dtype=spec.dtype,
        opset=spec.opset,
        logits=spec.logits,
        funnel=None if spec.funnel is None else spec.funnel.to_dict(),
        graphs={role: _record(folder, role, built) for role, built in graphs.items()},
        weights=weights,
        config_sha256=sha256_of(folder / CONFIG),
        source=source,
        versions={tool: version(tool) for tool in TOOLS},
    )


def graph_file(role: str) -> str:
    """Name of the file of a graph."""
    return f"{role}.onnx"


def _record(folder: Path, role: str, built: BuiltGraph) -> GraphRecord:
    graph = built.model.graph
    return GraphRecord(
        file=graph_file(role),
        sha256=sha256_of(folder / graph_file(role)),
        inputs=[_port(value, built.kinds) for value in graph.inputs],
        outputs=[_port(value, built.kinds) for value in graph.outputs],
    )


def _port(value: ir.Value, kinds: Mapping[str, PortKind]) -> Port:
    if value.dtype is None or value.shape is None:
        raise ExportError(f"{value.name} has no dtype or shape")
    shape = [d if isinstance(d, int) else str(d.value) for d in value.shape]
    name = str(value.name)
    return Port(name=name, kind=kinds[name], dtype=value.dtype.numpy().name, shape=shape)


def _write_config(folder: Path, checkpoint: Checkpoint, spec: FunnelSpec | None) -> None:
    config = {key: value for key, value in checkpoint.config.items() if key != "funnel"}
    if spec is not None:
        config["funnel"] = spec.to_dict()
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_index(folder: Path, weights: list[WeightFile]) -> None:
    """An index of the files that are in the bundle, so that it is a checkpoint that Hugging Face loads."""
    sizes = [tensor.nbytes for file in weights for tensor in file.tensors.values()]
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {name: file.file for file in weights for name in file.tensors},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
