"""Model configurations of Triton Inference Server (`config.pbtxt`), written and parsed with its protobuf schema."""

import hashlib
from collections.abc import Sequence
from typing import Any

from funnel_export.bundle.manifest import GraphRecord
from funnel_export.bundle.ports import Port
from funnel_export.errors import BundleError, TargetUnavailableError
from funnel_export.spec.choices import Backend, Dtype
from funnel_export.spec.profile import Profile
from funnel_export.spec.triton import BATCH_OF_A_GRAPH, TritonOptions
from funnel_export.system.extras import install_command

DATA_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}
"""Dtypes of a bundle's inputs and outputs, and Triton's names of them."""
FILES = "# and while the other files but weights and engines have sha256 "
INPUTS = {
    "text_input": ("TYPE_STRING", 1),
    "input_ids": ("TYPE_INT64", -1),
    "max_tokens": ("TYPE_INT32", 1),
    "temperature": ("TYPE_FP32", 1),
    "top_k": ("TYPE_INT32", 1),
    "top_p": ("TYPE_FP32", 1),
    "seed": ("TYPE_INT64", 1),
    "stop": ("TYPE_STRING", -1),
    "stream": ("TYPE_BOOL", 1),
}
"""Data type and size of the inputs of a model that generates text; all are optional."""
OUTPUTS = {
    "text_output": ("TYPE_STRING", 1),
    "output_ids": ("TYPE_INT64", -1),
    "finish_reason": ("TYPE_STRING", 1),
    "num_input_tokens": ("TYPE_UINT32", 1),
    "num_output_tokens": ("TYPE_UINT32", 1),
}
"""Data type and size of the outputs of such a model; every response has all of them."""
MADE = "# Made by funnel-export package, which replaces it only while the rest has sha256 "


def schema() -> Any:
    """Triton's protobuf schema of model configurations, `model_config_pb2`.

    Raises:
        TargetUnavailableError: if `tritonclient` is not installed, or does not load here.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except Exception as err:  # the type of error for a missing or incompatible dependency differs by version
        raise TargetUnavailableError(
            "Triton's schema of model configurations is not available here",
            got=f"{type(err).__name__}: {err}",
            wanted="the package tritonclient, with grpcio",
            hint=install_command("triton"),
        ) from err
    return model_config_pb2


def model_config(
    name: str, graph: GraphRecord, dtype: Dtype, profiles: Sequence[Profile], options: TritonOptions
) -> Any:
    """The configuration of a model, a `ModelConfig` of `schema()`.

    Args:
        name: name of the model, which clients use.
        graph: names, dtypes and shapes [batch, ...] of the inputs and outputs; dynamic axes become -1.
        dtype: dtype in which the model computes.
        profiles: optimization profiles of the engine; every instance gets all of them.
        options: how Triton runs the model.

    Raises:
        SpecError: if the options do not fit the model.
        BundleError: if an input or output has no batch axis or an unsupported dtype.
        TargetUnavailableError: if the schema is not installed.
    """
    pb = schema()
    chosen = options.settled(dtype, profiles)
    assert chosen.max_batch_size is not None
    config = pb.ModelConfig(name=name, max_batch_size=chosen.max_batch_size)
    if chosen.backend is Backend.TENSORRT:
        config.platform = "tensorrt_plan"
    else:
        config.backend = "onnxruntime"
    batched = chosen.max_batch_size > 0
    for tensor in graph.inputs:
        config.input.add(name=tensor.name, data_type=_data_type(pb, tensor), dims=_dims(tensor, batched))
    for tensor in graph.outputs:
        config.output.add(name=tensor.name, data_type=_data_type(pb, tensor), dims=_dims(tensor, batched))
    config.instance_group.add(
        count=chosen.instances,
        kind=pb.ModelInstanceGroup.Kind.Value(f"KIND_{chosen.kind.upper()}"),
        gpus=chosen.gpus,
        profile=[str(index) for index in range(len(profiles))],
    )
    if chosen.batches:
        config.dynamic_batching.SetInParent()  # an empty message turns batching on too
        config.dynamic_batching.preferred_batch_size.extend(chosen.preferred_batch_size)
        if chosen.max_queue_delay_us is not None:
            config.dynamic_batching.max_queue_delay_microseconds = chosen.max_queue_delay_us
    return config


def generation_config(name: str, options: TritonOptions) -> Any:
    """The configuration of a model that generates text with the Python back end, a `ModelConfig` of `schema()`.

    The model batches texts itself, so Triton does not; a request gets any number of responses.

    Args:
        name: name of the model, which clients use.
        options: how the model runs, with the back end `python`.

    Raises:
        TargetUnavailableError: if the schema is not installed.
    """
    pb = schema()
    config = pb.ModelConfig(name=name, backend=str(Backend.PYTHON), max_batch_size=0)
    for tensor, (data_type, size) in INPUTS.items():
        config.input.add(name=tensor, data_type=pb.DataType.Value(data_type), dims=[size], optional=True)
    for tensor, (data_type, size) in OUTPUTS.items():
        config.output.add(name=tensor, data_type=pb.DataType.Value(data_type), dims=[size])
    config.instance_group.add(count=options.instances, kind=pb.ModelInstanceGroup.KIND_MODEL)
    config.model_transaction_policy.decoupled = True
    parameters = {
        "max_rows": BATCH_OF_A_GRAPH if options.max_batch_size is None else options.max_batch_size,
        "max_bytes": options.max_bytes,
        "target": options.target,
        "engine": options.engine,
    }
    for key, value in parameters.items():
        if value is not None:
            config.parameters[key].string_value = str(value)
    return config


def _data_type(pb: Any, tensor: Port) -> int:
    if tensor.dtype not in DATA_TYPES:
        raise BundleError(f"{tensor.name} has an unsupported dtype", got=tensor.dtype, wanted=list(DATA_TYPES))
    return int(pb.DataType.Value(DATA_TYPES[tensor.dtype]))


def _dims(tensor: Port, batched: bool) -> list[int]:
    """A tensor's sizes, without the batch axis if Triton batches along it."""
    if len(tensor.shape) < 2 or not isinstance(tensor.shape[0], str):
        raise BundleError(f"{tensor.name} has no dynamic batch axis", got=tensor.shape, wanted="[batch, ...]")
    dims = [-1 if isinstance(size, str) else size for size in tensor.shape]
    return dims[1:] if batched else dims


def write_config(config: Any, files: str | None = None) -> str:
    """A configuration as the text of `config.pbtxt`, with a digest for `is_as_written`, and one for `noted_digest`."""
    from google.protobuf import text_format

    text = ("" if files is None else f"{FILES}{files}\n") + text_format.MessageToString(config)
    return f"{MADE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def noted_digest(text: str) -> str | None:
    """The digest of the package's files that a `config.pbtxt` notes; None if it does not."""
    lines = text.splitlines()
    return lines[1].removeprefix(FILES) if len(lines) > 1 and lines[1].startswith(FILES) else None


def parse_config(text: str) -> Any:
    """Parse a `config.pbtxt`; raise `BundleError` if it does not fit Triton's schema."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, schema().ModelConfig())
    except text_format.ParseError as err:
        raise BundleError("config.pbtxt is not a valid Triton model configuration", got=err) from err


def is_as_written(text: str) -> bool:
    """Whether a `config.pbtxt` was written by `package` and is unchanged."""
    first, _, rest = text.partition("\n")
    return first == MADE + hashlib.sha256(rest.encode()).hexdigest()
