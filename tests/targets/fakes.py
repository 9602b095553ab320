"""A GPU and a TensorRT for machines without: memory is the host's, and a plan names a graph that ONNX Runtime runs.

What they check is how our code uses the two: wrong use raises where the real ones would fail or compute rubbish.
"""

import ctypes
from collections.abc import Callable
from enum import Enum, IntEnum, IntFlag
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

INPUTS = ("input_ids", "attention_mask")
STREAM = 7


class Cuda:
    """The functions of the CUDA runtime that our code calls; `log` has their names."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.log: list[str] = []

    def __call__(self, function: str, *arguments: Any) -> Any:
        self.log.append(function)
        return getattr(self, function)(*arguments)

    def put(self, work: Callable[[], None], stream: int) -> None:
        """Work on the stream: done at once, or captured."""
        assert stream == STREAM
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def cudaStreamCreate(self) -> int:  # noqa: N802 - CUDA's names
        return STREAM

    def cudaStreamDestroy(self, stream: int) -> None:  # noqa: N802
        assert stream == STREAM
        assert not self.memory

    def cudaStreamSynchronize(self, stream: int) -> None:  # noqa: N802
        assert stream == STREAM
        assert self.captured is None

    def cudaMalloc(self, size: int) -> int:  # noqa: N802
        assert self.captured is None
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def cudaFree(self, address: int) -> None:  # noqa: N802
        del self.memory[address]

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: int) -> None:  # noqa: N802
        device = to if kind.name.endswith("HostToDevice") else source
        assert size <= len(self.memory[device])
        self.put(lambda: ctypes.memmove(to, source, size) and None, stream)

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:  # noqa: N802
        assert stream == STREAM
        self.captured = []

    def cudaStreamEndCapture(self, stream: int) -> list[Callable[[], None]]:  # noqa: N802
        captured, self.captured = self.captured, None
        assert captured
        return captured

    def cudaGraphInstantiate(self, graph: list[Callable[[], None]], flags: int) -> int:  # noqa: N802
        self.graphs[id(graph)] = graph
        return id(graph)

    def cudaGraphDestroy(self, graph: list[Callable[[], None]]) -> None:  # noqa: N802
        assert graph

    def cudaGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        for work in self.graphs[graph]:
            self.put(work, stream)

    def cudaGraphExecDestroy(self, graph: int) -> None:  # noqa: N802
        del self.graphs[graph]


class Severity(IntEnum):
    """Of messages."""

    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class Logger:
    """Base of loggers."""

    Severity = Severity


class Diagnostics(IntFlag):
    """Why a plan is not valid."""

    UNSUPPORTED_CC = 2
    OLD_CUDA_DRIVER = 4


ComputeCapability = Enum("ComputeCapability", "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121")
DataType = Enum("DataType", "FLOAT HALF BF16 INT64")
Mode = Enum("Mode", "INPUT OUTPUT")
Validity = Enum("Validity", "VALID INVALID")
LayerInformationFormat = Enum("LayerInformationFormat", "ONELINE JSON")


def make_module(cuda: Cuda, version: str, dtype: str = "FLOAT", diagnostics: int = 0) -> Any:
    """A module that reads plans, all of one dtype; `diagnostics` are what it finds in every plan's header."""

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            content = bytes(serialized_engine)
            if b"host code" in content and not self.engine_host_code_allowed:
                self.logger.log(Severity.ERROR, "host code is not allowed")
                return None
            if b"for another GPU" in content:
                return None
            kind = RtxEngine if is_rtx else Engine
            return kind(cuda, content.split(b"\n")[1].decode(), DataType[dtype])

    class RtxRuntime(Runtime):
        engine_header_size = 4

        def get_engine_validity(self, buffer: bytes) -> tuple[Validity, int]:
            assert buffer == b"vtrt"
            return (Validity.INVALID if diagnostics else Validity.VALID), diagnostics

    is_rtx = version.startswith("1.")
    module = SimpleNamespace(
        __name__="tensorrt",
        __version__=version,
        ILogger=Logger,
        Runtime=RtxRuntime if is_rtx else Runtime,
        TensorIOMode=Mode,
        LayerInformationFormat=LayerInformationFormat,
    )
    if is_rtx:  # what TensorRT-RTX has and TensorRT has not
        module.EngineValidity, module.EngineInvalidityDiagnostics = Validity, Diagnostics
        module.CudaGraphStrategy = Enum("CudaGraphStrategy", "DISABLED WHOLE_GRAPH_CAPTURE")
        module.ComputeCapability = ComputeCapability
    return module


class Engine:
    """A graph."""

    num_io_tensors = 3

    def __init__(self, cuda: Cuda, graph: str, dtype: DataType) -> None:
        self.cuda, self.dtype = cuda, dtype
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.output = self.session.get_outputs()[0].name
        self.caches: list[bytes] = []

    def get_tensor_name(self, index: int) -> str:
        return (*INPUTS, self.output)[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name in INPUTS else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType["INT64"] if name in INPUTS else self.dtype

    def create_engine_inspector(self) -> "Inspector":
        return Inspector()

    def create_execution_context(self, runtime_config: Any = None) -> "Context":
        self.config = runtime_config
        return Context(self)


class RtxEngine(Engine):
    """A graph whose contexts have settings."""

    def create_runtime_config(self) -> "Config":
        return Config(self)


class Inspector:
    """Tells what was set; an engine knows nothing of its layers."""

    _information = "{}"

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002 - TensorRT's name
        assert format is LayerInformationFormat["JSON"]
        return self._information


class Config:
    """Settings of a context."""

    cuda_graph_strategy: Any = None

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def create_runtime_cache(self) -> "Cache":
        return Cache(self.engine)

    def set_runtime_cache(self, cache: "Cache") -> bool:
        return True


class Cache:
    """Compiled kernels."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def deserialize(self, blob: bytes) -> None:
        self.engine.caches.append(blob)

    def serialize(self) -> memoryview:
        return memoryview(b"kernels")


class Context:
    """What runs; `profiles` are those that were set."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.profiles = engine, [0]
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        assert stream_handle == STREAM
        self.profiles.append(profile_index)
        self.shapes.clear()
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        assert memory in self.engine.cuda.memory
        self.addresses[name] = memory
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        assert set(self.shapes) == set(INPUTS)
        fixed = [size for size in self.engine.session.get_outputs()[0].shape if isinstance(size, int)]
        return (*self.shapes["input_ids"], *fixed)

    def execute_async_v3(self, stream_handle: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)  # as a captured graph keeps them
        self.engine.cuda.put(lambda: self._execute(shapes, addresses), stream_handle)
        return True

    def _execute(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        inputs = {
            name: np.frombuffer(ctypes.string_at(addresses[name], 8 * int(np.prod(shape))), np.int64).reshape(shape)
            for name, shape in shapes.items()
        }
        (values,) = self.engine.session.run([self.engine.output], inputs)
        if self.engine.dtype is DataType["BF16"]:
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        ctypes.memmove(addresses[self.engine.output], values.tobytes(), values.nbytes)
