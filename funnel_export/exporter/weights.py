"""Weights by reference: initializers that point into the checkpoint's safetensors files."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from funnel_export.bundle.weights import Derived, DerivedFile, Stored, WeightSource
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.folder import listed
from funnel_export.checkpoint.foreign_tensor import ForeignTensor
from funnel_export.checkpoint.quantized import QuantizedTensor
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.errors import CheckpointError
from funnel_export.exporter.dequantize import dequantize
from funnel_export.exporter.reference import STORED_DTYPES, reference
from funnel_export.spec.choices import Dtype

COMPUTE_DTYPES = {
    Dtype.FLOAT32: ir.DataType.FLOAT,
    Dtype.FLOAT16: ir.DataType.FLOAT16,
    Dtype.BFLOAT16: ir.DataType.BFLOAT16,
}
SHOWN = 24
"""Largest number of faults that one message lists."""


def refer_to_weights(
    model: ir.Model, parameters: Sequence[ir.Value], checkpoint: Checkpoint, derived: DerivedFile | None = None
) -> dict[str, WeightSource]:
    """Turn each parameter from an input of the graph into an initializer that refers to the checkpoint.

    If a weight is stored in another dtype than the graph computes in, the graph casts it. An embedding is cast after
    the gather, so that no runtime keeps a second copy of the table. A quantized weight becomes several initializers,
    from which the graph computes it (`funnel_export.exporter.dequantize`).

    Returns:
        The source of each initializer, by name.

    Raises:
        CheckpointError: if a weight is missing; `match_weights` lists all missing ones.
    """
    names = [str(value.name) for value in parameters]
    found = {name: checkpoint.find_weight(name) for name in names}
    stored: dict[str, StoredTensor] = {}
    kept = [value for value in model.graph.inputs if value not in parameters]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    for value in parameters:
        name = str(value.name)
        weight = found[name]
        assert not isinstance(weight, ForeignTensor)  # an export converts them before
        if isinstance(weight, QuantizedTensor):
            stored |= dequantize(model, value, weight)
        else:
            _refer(model, value, weight)
            stored[name] = weight
    return {name: Stored(tensor) if derived is None else Derived(tensor, derived) for name, tensor in stored.items()}


def match_weights(shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> None:
    """Check that the checkpoint has exactly these parameters, with these shapes.

    Unused weights are refused too: they would be dropped without notice, and config.json describes another model.

    Raises:
        CheckpointError: lists up to `SHOWN` weights that are missing, have another shape or are not used.
    """
    findings = [*_unused(shapes, checkpoint), *_missing(shapes, checkpoint)]
    if len(findings) == 1:
        raise findings[0]
    if findings:
        more = [f"and {len(findings) - SHOWN} more"] if len(findings) > SHOWN else []
        raise CheckpointError("\n".join([*(str(finding) for finding in findings[:SHOWN]), *more]))


def _missing(shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> Iterator[CheckpointError]:
    """An error for each parameter that is missing or has another shape."""
    for name, wanted in shapes.items():
        try:
            shape = checkpoint.find_weight(name).shape
        except CheckpointError as err:
            yield err
            continue
        if shape != wanted:
            yield CheckpointError(
                "a weight has another shape than config.json requires",
                got=f"{name}: {list(shape)}",
                wanted=list(wanted),
            )


def _unused(parameters: Iterable[str], checkpoint: Checkpoint) -> Iterator[CheckpointError]:
    """One error for all stored weights that the model does not use, except those that the family expects."""
    family = checkpoint.family
    used = {stored for parameter in parameters for stored in family.stored_names(parameter)}
    unused = [name for name in checkpoint.parameters if name not in used and not family.may_be_unused(name)]
    if unused:
        yield CheckpointError(
            "the checkpoint has weights that the model does not use",
            got=listed(unused, 3),
            wanted=f"the weights of a {family.title} with {checkpoint.architecture.num_hidden_layers} layers",
            hint="correct config.json (for example num_hidden_layers), or save the model without these weights",
        )


def _refer(model: ir.Model, value: ir.Value, tensor: StoredTensor) -> None:
    compute, dtype = value.dtype, STORED_DTYPES[tensor.dtype]
    assert compute is not None
    value.const_value = reference(str(value.name), tensor)
    value.type = ir.TensorType(dtype)  # a new one: setting the dtype would change that of other graphs' values too
    model.graph.register_initializer(value)
    if dtype != compute:
        _cast_uses(model, value, dtype, compute)


def _cast_uses(model: ir.Model, value: ir.Value, stored: ir.DataType, compute: ir.DataType) -> None:
    """Cast `value` to the compute dtype for all its uses."""
    uses = list(value.uses())
    gathers = [use.node for use in uses if use.node.op_type == "Gather" and use.idx == 0]
    for gather in gathers:
        rows = gather.outputs[0]
        cast = _cast(rows, compute)
        ir.convenience.replace_all_uses_with(rows, cast.outputs[0])
        cast.replace_input_with(0, rows)
        rows.dtype = stored
        model.graph.insert_after(gather, cast)
    rest = [use for use in uses if use.node not in gathers]
    if rest:
        cast = _cast(value, compute)
        for use in rest:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        model.graph.insert_before(model.graph[0], cast)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    name = str(value.name)
    node = ir.node("Cast", [value], attributes={"to": dtype}, name=f"weights/Cast.{name}")
    node.outputs[0].name = f"weights/{name}"
    node.outputs[0].dtype = dtype
    return node


def check_head(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose config ties head and embedding, but whose files have two different tensors for them.

    Some versions of Hugging Face load both of them, others only one.

    Raises:
        CheckpointError: if the tensors differ.
    """
    tensors, family = checkpoint.tensors, checkpoint.family
    embedding = tensors.get(family.embedding)
    head = tensors.get(family.head)
    if not checkpoint.architecture.tie_word_embeddings or embedding is None or head is None:
        return
    if (embedding.dtype, embedding.shape) == (head.dtype, head.shape) and _same_bytes(checkpoint, embedding, head):
        return
    raise CheckpointError(
        "config.json ties the head to the embedding, but the two are stored with different values",
        got=f"{family.head} differs from {family.embedding}",
        wanted="only one of them, or equal values",
        hint='set "tie_word_embeddings": false in config.json if the head is meant to differ',
    )


def _same_bytes(checkpoint: Checkpoint, one: StoredTensor, other: StoredTensor, chunk: int = 1 << 24) -> bool:
    with (checkpoint.path / one.file).open("rb") as first, (checkpoint.path / other.file).open("rb") as second:
        first.seek(one.offset)
        second.seek(other.offset)
        left = one.nbytes
        while left > 0:
            size = min(chunk, left)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True
