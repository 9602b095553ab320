"""Weights by reference: initializers that name a place in the checkpoint's safetensors files."""

from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir

from funnel_export.bundle.weights import Stored, WeightSource
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.safetensors import StoredTensor
from funnel_export.errors import CheckpointError
from funnel_export.spec.choices import Dtype

STORED_DTYPES = {"F32": ir.DataType.FLOAT, "F16": ir.DataType.FLOAT16, "BF16": ir.DataType.BFLOAT16}
COMPUTE_DTYPES = {
    Dtype.FLOAT32: ir.DataType.FLOAT,
    Dtype.FLOAT16: ir.DataType.FLOAT16,
    Dtype.BFLOAT16: ir.DataType.BFLOAT16,
}


def refer_to_weights(
    model: ir.Model, parameters: Sequence[ir.Value], checkpoint: Checkpoint
) -> dict[str, WeightSource]:
    """Turn each parameter, an input of the graph so far, into an initializer that refers to the checkpoint.

    A weight stored in another dtype than the graph computes in is cast in the graph; an embedding is gathered first and
    cast then, so that no runtime makes a second table of it.

    Returns:
        Where each weight comes from, by name.

    Raises:
        CheckpointError: as `find_weights` does.
    """
    shapes = {str(value.name): tuple(value.shape.numpy()) if value.shape is not None else () for value in parameters}
    stored = find_weights(shapes, checkpoint)
    kept = [value for value in model.graph.inputs if value not in parameters]
    model.graph.inputs.clear()
    model.graph.inputs.extend(kept)
    for value in parameters:
        _refer(model, value, stored[str(value.name)])
    return {name: Stored(tensor) for name, tensor in stored.items()}


def find_weights(shapes: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint) -> dict[str, StoredTensor]:
    """Where the checkpoint stores these parameters.

    Raises:
        CheckpointError: with the weights that are missing or of another shape, some dozens at once.
    """
    findings, stored = [], {}
    for name, wanted in shapes.items():
        try:
            stored[name] = checkpoint.find(name)
        except CheckpointError as err:
            findings.append(err)
            continue
        if stored[name].shape != wanted:
            findings.append(
                CheckpointError(
                    "a weight has another shape than config.json says",
                    got=f"{name}: {list(stored[name].shape)}",
                    wanted=list(wanted),
                )
            )
    if findings:
        more = [f"and {len(findings) - 24} more"] if len(findings) > 24 else []
        raise (
            findings[0] if len(findings) == 1 else CheckpointError("\n".join([*(str(f) for f in findings[:24]), *more]))
        )
    return stored


def check_all_used(parameters: Iterable[str], checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint with weights that the model has no place for: config.json would describe another model.

    Raises:
        CheckpointError: with their names.
    """
    family = checkpoint.family
    used = {stored for parameter in parameters for stored in family.stored_names(parameter)}
    unused = [name for name in checkpoint.tensors if name not in used and not family.may_be_unused(name)]
    if unused:
        more = f", and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise CheckpointError(
            "the checkpoint has weights that the model does not use",
            got=", ".join(unused[:3]) + more,
            wanted=f"the weights of a {family.title} with {checkpoint.architecture.num_hidden_layers} layers",
            hint="correct config.json (num_hidden_layers, for example), or save the model without them",
        )


def _refer(model: ir.Model, value: ir.Value, tensor: StoredTensor) -> None:
    compute, dtype = value.dtype, STORED_DTYPES[tensor.dtype]
    assert compute is not None
    value.const_value = reference(str(value.name), tensor)
    value.dtype = dtype
    model.graph.register_initializer(value)
    if dtype != compute:
        _cast_uses(model, value, dtype, compute)


def reference(name: str, tensor: StoredTensor) -> ir.ExternalTensor:
    """An initializer's value: a place in a safetensors file beside the graph."""
    shape, dtype = ir.Shape(tensor.shape), STORED_DTYPES[tensor.dtype]
    return ir.ExternalTensor(tensor.file, tensor.offset, tensor.nbytes, dtype, shape=shape, name=name)


def _cast_uses(model: ir.Model, value: ir.Value, stored: ir.DataType, compute: ir.DataType) -> None:
    """Let every use of `value` see it in the compute dtype."""
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
    """Refuse a checkpoint whose config ties the head to the embedding while its files hold two different ones.

    Hugging Face then loads both in some versions and one in others.

    Raises:
        CheckpointError: if they differ.
    """
    tensors, family = checkpoint.tensors, checkpoint.family
    embedding = tensors.get(family.embedding)
    head = tensors.get(family.head)
    if not checkpoint.architecture.tie_word_embeddings or embedding is None or head is None:
        return
    if (embedding.dtype, embedding.shape) == (head.dtype, head.shape) and _same_bytes(checkpoint, embedding, head):
        return
    raise CheckpointError(
        "config.json ties the head to the embedding, and the files hold two different ones",
        got=f"{family.head} differs from {family.embedding}",
        wanted="one of them, or two equal ones",
        hint='"tie_word_embeddings": false in config.json if the head is meant to be its own',
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
