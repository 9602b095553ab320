"""External data of graphs, which is checked before any runtime opens a graph."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from funnel_export.bundle.form import check_form
from funnel_export.errors import BundleError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto, ValueInfoProto


def read_graph(content: bytes, files: Mapping[str, int], what: str, *, check: bool) -> "ModelProto":
    """Parse an ONNX graph and check its references to external data.

    Args:
        content: bytes of the graph's file.
        files: sizes in bytes of the files beside it that it may refer to, by name.
        what: what those files are, for messages.
        check: whether to run `check_form` and onnx's checker too.

    Returns:
        The graph, with empty tensors in place of external ones.

    Raises:
        BundleError: if it is not a valid graph, or refers to data outside these files.
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


def count_nodes(content: bytes) -> int:
    """The number of nodes of a graph, from the bytes of its verified file."""
    import onnx

    return len(onnx.load_model_from_string(content).graph.node)


def describe_values(values: Iterable["ValueInfoProto"]) -> list[tuple[str, str, list[int | str]]]:
    """Name, dtype and shape of inputs or outputs in the form of ports, with dynamic axes by name.

    The dtype of anything but a tensor of a known dtype is `type NUMBER`, which differs from every port's.
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
    """See `read_graph`. External tensors become empty, since the checker would read them from the working folder."""
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
    """All tensors with external data, at any depth of the message."""
    import onnx

    if isinstance(message, onnx.TensorProto):
        if message.data_location == onnx.TensorProto.EXTERNAL:
            yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in value if isinstance(value, Sequence) else [value]:
                yield from _external_tensors(child)
