"""What Triton Inference Server is told of a model: `config.pbtxt`, made and read with Triton's own protobuf schema."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Self

from funnel_export.bundle.manifest import GraphRecord
from funnel_export.bundle.ports import Port
from funnel_export.errors import BundleError, SpecError, TargetUnavailableError
from funnel_export.spec.choices import Dtype
from funnel_export.spec.profile import BATCH, Profile

DATA_TYPES = {"int64": "TYPE_INT64", "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}
"""Triton's names of the dtypes that inputs and outputs of a bundle have."""
BATCH_OF_A_GRAPH = 8
"""Default of `max_batch_size` where no optimization profile says more."""
LARGEST = 1 << 20
"""Of any count below; Triton's own fields end at 2^31 - 1."""
MADE = "# Made by funnel-export package, which replaces it only while the rest has sha256 "


class Backend(StrEnum):
    """What of Triton runs the model."""

    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"


class Kind(StrEnum):
    """Where instances of the model run."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonOptions:
    """How Triton is to run a model."""

    backend: Backend = Backend.ONNXRUNTIME
    """What runs it: `onnxruntime` the bundle's graph, `tensorrt` an engine that was compiled from it."""
    engine: str | None = None
    """Name of the engine to take; None is the bundle's only one for TensorRT."""
    max_batch_size: int | None = None
    """Rows that Triton may batch together; 0 leaves batches to the client, None is the engine's largest or 8."""
    dynamic_batching: bool = False
    """Whether Triton puts requests that wait together into one batch; the next two fields imply it."""
    preferred_batch_size: tuple[int, ...] = ()
    """Sizes of batches that need not wait for more."""
    max_queue_delay_us: int | None = None
    """Microseconds that a request may wait for others; None is Triton's own default, not to wait."""
    instances: int = 1
    """Copies of the model, on every GPU if it runs there."""
    kind: Kind = Kind.AUTO
    """Where they run; `auto` is a GPU where only that can run the model, and Triton's own choice elsewhere."""
    gpus: tuple[int, ...] = ()
    """Numbers of the GPUs to use; none named are all."""

    def __post_init__(self) -> None:
        """Refuse with `SpecError` what Triton would refuse or misunderstand."""
        _bounded("max_batch_size", self.max_batch_size, 0)
        _bounded("instances", self.instances, 1)
        _bounded("max_queue_delay_us", self.max_queue_delay_us, 0)
        for size in self.preferred_batch_size:
            _bounded("preferred_batch_size", size, 1)
        for gpu in self.gpus:
            _bounded("gpu", gpu, 0)
        if len(set(self.gpus)) < len(self.gpus):
            raise SpecError("a GPU is named twice", got=list(self.gpus), wanted="each number once")
        if self.backend is Backend.ONNXRUNTIME and self.engine is not None:
            raise SpecError("an engine is for another back end", got=self.engine, hint="--backend tensorrt")
        self._validate_place()
        self._validate_batches()

    def _validate_place(self) -> None:
        if self.kind is Kind.CPU and self.gpus:
            raise SpecError("instances on the CPU use no GPU", got=f"GPUs {list(self.gpus)}", hint="--kind gpu")
        if self.kind is Kind.CPU and self.backend is Backend.TENSORRT:
            raise SpecError("TensorRT runs on GPUs only", got="--kind cpu", hint="--kind gpu")

    def _validate_batches(self) -> None:
        if self.max_batch_size is None or not self.batches:
            return
        if self.max_batch_size < 2:
            raise SpecError(
                "dynamic batching puts at least two rows together",
                got=f"max_batch_size {self.max_batch_size}",
                wanted="max_batch_size > 1",
                hint="a larger --max-batch-size, or no dynamic batching",
            )
        if max(self.preferred_batch_size, default=0) > self.max_batch_size:
            raise SpecError(
                "a preferred batch is larger than any batch may be",
                got=f"preferred_batch_size {list(self.preferred_batch_size)}, max_batch_size {self.max_batch_size}",
                wanted="preferred_batch_size <= max_batch_size",
            )

    @property
    def batches(self) -> bool:
        """Whether Triton makes batches of requests."""
        return self.dynamic_batching or bool(self.preferred_batch_size) or self.max_queue_delay_us is not None

    def settled(self, dtype: Dtype, profiles: Sequence[Profile]) -> Self:
        """These options with nothing left open, for a model of a dtype and the optimization profiles of its engine.

        Raises:
            SpecError: if they do not fit the model.
        """
        only_gpu = self.backend is Backend.TENSORRT or dtype is Dtype.BFLOAT16
        if only_gpu and self.kind is Kind.CPU:
            raise SpecError(
                "ONNX Runtime has no bfloat16 kernels for the CPU",
                got=f"--kind cpu for a {dtype} graph",
                wanted="--kind gpu",
                hint="export with --dtype float32 to run on the CPU",
            )
        largest = max(profiles, key=lambda profile: profile.axes[BATCH].max, default=None)
        limit = BATCH_OF_A_GRAPH if largest is None else largest.axes[BATCH].max
        size = limit if self.max_batch_size is None else self.max_batch_size
        if largest is not None and size > limit:
            raise SpecError(
                "no optimization profile of the engine takes batches as large",
                got=f"max_batch_size {size}",
                wanted=f"at most {limit}, of the profile {largest}",
                hint="a smaller --max-batch-size, or compile with a larger profile",
            )
        kind = Kind.GPU if only_gpu else self.kind
        return replace(self, max_batch_size=size, kind=kind)  # which checks them again


def _bounded(name: str, value: int | None, least: int) -> None:
    if value is not None and not least <= value <= LARGEST:
        raise SpecError(f"invalid {name}", got=value, wanted=f"{least} to {LARGEST}")


def schema() -> Any:
    """Triton's protobuf schema of model configurations, `model_config_pb2`.

    Raises:
        TargetUnavailableError: if `tritonclient` is not installed, or does not load here.
    """
    try:
        from tritonclient.grpc import model_config_pb2
    except Exception as err:  # what a part that is missing or of another version raises, differs by version
        raise TargetUnavailableError(
            "Triton's schema of model configurations is not available here",
            got=f"{type(err).__name__}: {err}",
            wanted="the package tritonclient, with grpcio",
            hint="pip install 'funnel-export[triton]'",
        ) from err
    return model_config_pb2


def model_config(
    name: str, graph: GraphRecord, dtype: Dtype, profiles: Sequence[Profile], options: TritonOptions
) -> Any:
    """The configuration of a model, a `ModelConfig` of `schema()`.

    Args:
        name: of the model, as clients ask for it.
        graph: names, dtypes and shapes [batch, ...] of the inputs and outputs; dynamic axes become -1.
        dtype: what the model computes in.
        profiles: optimization profiles of the engine; every instance gets all of them.
        options: how to run it.

    Raises:
        SpecError: if the options do not fit the model.
        BundleError: if a tensor is none that Triton can be told of.
        TargetUnavailableError: if there is no schema.
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
        config.dynamic_batching.SetInParent()  # an empty message is a wish too
        config.dynamic_batching.preferred_batch_size.extend(chosen.preferred_batch_size)
        if chosen.max_queue_delay_us is not None:
            config.dynamic_batching.max_queue_delay_microseconds = chosen.max_queue_delay_us
    return config


def _data_type(pb: Any, tensor: Port) -> int:
    if tensor.dtype not in DATA_TYPES:
        raise BundleError(f"{tensor.name} is of a dtype that is not served", got=tensor.dtype, wanted=list(DATA_TYPES))
    return int(pb.DataType.Value(DATA_TYPES[tensor.dtype]))


def _dims(tensor: Port, batched: bool) -> list[int]:
    """A tensor's sizes, without the batch axis if Triton batches along it."""
    if len(tensor.shape) < 2 or not isinstance(tensor.shape[0], str):
        raise BundleError(
            f"{tensor.name} has no batch axis", got=tensor.shape, wanted="[batch, ...], the batch dynamic"
        )
    dims = [-1 if isinstance(size, str) else size for size in tensor.shape]
    return dims[1:] if batched else dims


def write_config(config: Any) -> str:
    """A configuration as the text of `config.pbtxt`, with the digest that `is_as_written` wants."""
    from google.protobuf import text_format

    text = text_format.MessageToString(config)
    return f"{MADE}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def parse_config(text: str) -> Any:
    """The configuration that a `config.pbtxt` holds; `BundleError` if Triton's schema does not take it."""
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, schema().ModelConfig())
    except text_format.ParseError as err:
        raise BundleError("config.pbtxt is not a model configuration of Triton", got=err) from err


def is_as_written(text: str) -> bool:
    """Whether a `config.pbtxt` was written by `package` and not changed since."""
    first, _, rest = text.partition("\n")
    return first == MADE + hashlib.sha256(rest.encode()).hexdigest()
