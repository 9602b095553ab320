"""Data that lies outside a graph's own file: which files a graph reads, judged before any runtime opens it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from funnel_export.bundle.form import check_form
from funnel_export.errors import BundleError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto, ValueInfoProto


def read_graph(content: bytes, files: Mapping[str, int], what: str, *, check: bool) -> "ModelProto":
    """Read an ONNX graph, and judge the external data that it names.

    Args:
        content: the graph's file.
        files: sizes of the files beside it that it may read, by name.
        what: what those files are, for messages.
        check: whether it must be as an export makes it, and onnx's checker judges it too.

    Returns:
        The graph, with empty tensors in place of external ones.

    Raises:
        BundleError: if it is no graph, or refers to anything outside of these files.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(content)
        _check_external_data(model, files, what)
        if check:
            check_form(model)
            onnx.checker.check_model(model)  # order, names and ops
    except (DecodeError, KeyError, ValueError, onnx.checker.ValidationError) as err:
        raise BundleError("a graph of the bundle cannot be read", got=err, wanted="an ONNX model") from err
    return model


def describe_values(values: Iterable["ValueInfoProto"]) -> list[tuple[str, str, list[int | str]]]:
    """Name, dtype and shape of inputs or outputs, dynamic axes by name, as ports have them.

    What is no tensor of a known dtype has its type's number for a dtype, which equals no port's.
    """
    import onnx_ir as ir

    described = []
    for value in values:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in kind.shape.dim]
        try:
            dtype = ir.DataType(kind.elem_type).numpy().name
        except (TypeError, ValueError):
            dtype = f"type {kind.elem_type}"
        described.append((value.name, dtype, shape))
    return described


def _check_external_data(model: "ModelProto", files: Mapping[str, int], what: str) -> None:
    """See `read_graph`. External tensors become empty ones: the checker would look for them in the working folder."""
    import onnx

    for tensor in _external_tensors(model):
        place = {entry.key: entry.value for entry in tensor.external_data}
        file, offset, length = place["location"], int(place.get("offset", 0)), int(place["length"])
        if file not in files or offset < 0 or length < 0 or offset + length > files[file]:
            raise BundleError(
                f"a graph refers to data outside {what}",
                got=f"{tensor.name}: {file!r}, {length} bytes from {offset}",
                wanted=f"within {sorted(files)}",
            )
        tensor.CopyFrom(onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[0]))


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
