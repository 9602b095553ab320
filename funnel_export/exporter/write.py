"""Writes a bundle: graphs, weights, files of the tokenizer and of sentence-transformers, manifest."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from funnel_export.bundle.manifest import MANIFEST, GraphRecord, Manifest, ModuleFile
from funnel_export.bundle.ports import Port, PortKind
from funnel_export.bundle.weights import Stored, StoredFile, WeightRecord, files_of
from funnel_export.checkpoint.checkpoint import CONFIG, SINGLE, Checkpoint
from funnel_export.checkpoint.modules import read_modules
from funnel_export.checkpoint.written import write_config, write_index
from funnel_export.errors import BundleError, ExportError
from funnel_export.exporter.build import BuiltGraph
from funnel_export.spec.export import ExportSpec
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
    """Write a bundle into a folder, which may already contain derived weights.

    Weight files are hard-linked, or copied if `placing` says so or the folder is on another file system. `config.json`
    is the checkpoint's with the funnel added. Tokenizer files are copied; only names in their settings change that
    transformers 4 cannot read. Files of sentence-transformers are copied unchanged.

    Args:
        folder: where to write.
        graphs: the graphs by role; each is written as `<role>.onnx`.
        checkpoint: the exported checkpoint.
        spec: what the graphs compute.
        source: name of the checkpoint, for the manifest.
        placing: whether to link or copy weight files.

    Raises:
        BundleError: if writing fails, for example because the disk is full.
    """
    sources = [source for built in graphs.values() for source in built.sources.values()]
    if (
        spec.funnel is not None and spec.funnel.drop and spec.quantization is None
    ):  # eager PyTorch loads dropped layers too
        sources += map(Stored, checkpoint.tensors.values())
    weights = files_of(sources, checkpoint.weights)
    stored = {weight.file for weight in weights if isinstance(weight, StoredFile)}
    files = [file for file in checkpoint.weights if file.file in stored]
    try:
        for role, built in graphs.items():
            ir.save(built.model, folder / graph_file(role))
        for file in files:
            place(checkpoint.path / file.file, folder / file.file, placing)
        write_config(folder, checkpoint.config, spec.funnel)
        if files and [file.file for file in files] != [SINGLE]:
            write_index(folder, {file.file: file.tensors for file in files})
        modules = read_modules(checkpoint.path, spec.task)
        for name, content in (checkpoint.companions() | modules).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        manifest = _manifest(folder, graphs, weights, list(modules), spec, source)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as err:
        raise BundleError("the bundle could not be written", got=err, wanted="disk space and write permission") from err


def _manifest(
    folder: Path,
    graphs: Mapping[str, BuiltGraph],
    weights: list[WeightRecord],
    modules: list[str],
    spec: ExportSpec,
    source: str,
) -> Manifest:
    return Manifest(
        task=spec.task,
        dtype=spec.dtype,
        opset=spec.opset,
        logits=spec.logits,
        funnel=None if spec.funnel is None else spec.funnel.to_dict(),
        quantization=None if spec.quantization is None else spec.quantization.to_dict(),
        graphs={role: _record(folder, role, built) for role, built in graphs.items()},
        weights=weights,
        config_sha256=sha256_of(folder / CONFIG),
        modules=[ModuleFile(file=name, sha256=sha256_of(folder / name)) for name in modules],
        source=source,
        versions={tool: version(tool) for tool in TOOLS},
    )


def graph_file(role: str) -> str:
    """File name of a graph."""
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
