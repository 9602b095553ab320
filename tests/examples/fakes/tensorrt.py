"""TensorRT's Python API, as far as the example calls it: a plan is the path of a graph, which ONNX Runtime runs.

Wrong use raises, where the real one would say so or compute rubbish. What was chosen is printed to standard error.
"""

import ctypes
import enum
import os
import sys

import numpy as np
import onnxruntime

__version__ = "11.0"
_INPUTS = ("input_ids", "attention_mask")
_HOST_CODE = b"host code:"


def _note(text):
    """What a test wants to know."""
    print(f"fake: {text}", file=sys.stderr)


class DataType(enum.Enum):
    """Types of tensors."""

    FLOAT = np.float32
    HALF = np.float16
    BF16 = "bfloat16"
    INT64 = np.int64


class TensorIOMode(enum.Enum):
    """Directions."""

    INPUT = 1
    OUTPUT = 2


def nptype(trt_type):
    """The numpy type of a DataType."""
    if trt_type is DataType.BF16:
        raise TypeError("numpy has no bfloat16")
    return trt_type.value


class Logger:
    """Takes a severity."""

    WARNING = 2

    def __init__(self, min_severity):
        assert min_severity == self.WARNING


class Runtime:
    """Reads plans."""

    engine_host_code_allowed = False

    def __init__(self, logger):
        self.logger = logger

    def deserialize_cuda_engine(self, serialized_engine):
        """An engine, or None."""
        if serialized_engine.startswith(_HOST_CODE) and not self.engine_host_code_allowed:
            return None
        return _ENGINE(serialized_engine.removeprefix(_HOST_CODE).decode())


class Engine:
    """A graph."""

    streamable_weights_size = 9
    weight_streaming_budget_v2 = None
    num_io_tensors = 3

    def __init__(self, path):
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.output = self.session.get_outputs()[0]

    def get_weight_streaming_automatic_budget(self):
        """A budget."""
        return 5

    def get_tensor_name(self, index):
        """Inputs first."""
        return (*_INPUTS, self.output.name)[index]

    def get_tensor_mode(self, name):
        """Direction of a tensor."""
        return TensorIOMode.INPUT if name in _INPUTS else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        """Type of a tensor; that of the output is what a test asks for."""
        return DataType.INT64 if name in _INPUTS else DataType[os.environ.get("FAKE_DTYPE", "FLOAT")]

    def create_runtime_config(self):
        """TensorRT's has nothing of interest."""
        return object()

    def create_execution_context(self, runtime_config=None):
        """A context; the budget must stand by then."""
        assert self.weight_streaming_budget_v2 == 5
        return Context(self)


class Context:
    """What runs."""

    def __init__(self, engine):
        self.engine, self.shapes, self.addresses, self.profile = engine, {}, {}, None

    def set_optimization_profile_async(self, profile_index, stream_handle):
        """Before any shape."""
        assert not self.shapes
        assert stream_handle == 7
        _note(f"profile {profile_index}")
        self.profile = profile_index
        return True

    def set_input_shape(self, name, shape):
        """After the profile."""
        assert self.profile is not None
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name):
        """Once all inputs have one."""
        assert set(self.shapes) == set(_INPUTS)
        known = [size for size in self.engine.output.shape if isinstance(size, int)]
        return (*self.shapes["input_ids"], *known)

    def set_tensor_address(self, name, memory):
        """Where a tensor lies."""
        assert isinstance(memory, int)
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        """Read the inputs, run, write the output."""
        assert stream_handle == 7
        inputs = {}
        for name in _INPUTS:
            size = int(np.prod(self.shapes[name])) * 8
            inputs[name] = np.frombuffer(ctypes.string_at(self.addresses[name], size), np.int64).reshape(
                self.shapes[name]
            )
        (values,) = self.engine.session.run([self.engine.output.name], inputs)
        dtype = self.engine.get_tensor_dtype(self.engine.output.name)
        values = (
            (values.view(np.uint32) >> 16).astype(np.uint16) if dtype is DataType.BF16 else values.astype(dtype.value)
        )
        ctypes.memmove(self.addresses[self.engine.output.name], values.tobytes(), values.nbytes)
        return True


_ENGINE = Engine
