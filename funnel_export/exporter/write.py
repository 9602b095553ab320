"""Writing a bundle: graph, weights, companions, manifest."""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from funnel_export.bundle.manifest import GRAPH, MANIFEST, GraphRecord, Manifest, TensorRecord, WeightRecord
from funnel_export.checkpoint.checkpoint import COMPANIONS, CONFIG, INDEX, SINGLE, Checkpoint
from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.errors import BundleError, ExportError
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.system.place import Placing, place

TOOLS = ("funnel-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript")


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What the manifest says of an export."""

    task: Task
    dtype: Dtype
    spec: FunnelSpec | None
    logits: Logits
    source: str
    """The checkpoint as it was named."""


def write_bundle(folder: Path, model: ir.Model, checkpoint: Checkpoint, facts: Facts, placing: Placing) -> None:
    """Fill an empty folder with a bundle.

    Weight files are hard-linked, or copied where that is asked for or the folder is on another file system.
    `config.json` is the checkpoint's, with the funnel added; tokenizer files are copied as they are.

    Raises:
        BundleError: if the folder cannot be written, for want of space for example.
    """
    used = {
        value.const_value.location
        for value in model.graph.initializers.values()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    weights = [file for file in checkpoint.weights if file.file in used]
    try:
        ir.save(model, folder / GRAPH)
        for file in weights:
            place(checkpoint.path / file.file, folder / file.file, placing)
        _write_config(folder, checkpoint, facts.spec)
        if [file.file for file in weights] != [SINGLE]:
            _write_index(folder, weights)
        for name in COMPANIONS:
            if (checkpoint.path / name).exists():
                (folder / name).write_bytes(checkpoint.companion(name))
        manifest = _manifest(folder, model, weights, facts)
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    except OSError as err:
        raise BundleError("the bundle could not be written", got=err, wanted="room and permission to write") from err


def _manifest(folder: Path, model: ir.Model, weights: list[WeightFile], facts: Facts) -> Manifest:
    graph = GraphRecord(
        file=GRAPH,
        sha256=hashlib.sha256((folder / GRAPH).read_bytes()).hexdigest(),
        inputs=[_record(value) for value in model.graph.inputs],
        outputs=[_record(value) for value in model.graph.outputs],
    )
    return Manifest(
        task=facts.task,
        dtype=facts.dtype,
        opset=model.opset_imports[""],
        logits=facts.logits,
        funnel=None if facts.spec is None else facts.spec.to_dict(),
        graphs=[graph],
        weights=[WeightRecord.of(file) for file in weights],
        config_sha256=hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest(),
        source=facts.source,
        versions={tool: version(tool) for tool in TOOLS},
    )


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


def _record(value: ir.Value) -> TensorRecord:
    if value.dtype is None or value.shape is None:
        raise ExportError(f"{value.name} has no dtype or shape")
    shape = [d if isinstance(d, int) else str(d.value) for d in value.shape]
    return TensorRecord(name=str(value.name), dtype=value.dtype.numpy().name, shape=shape)
