"""Runs a plan, with buffers that stay on the device, CUDA graphs and TensorRT-RTX's kernel cache."""

import mmap
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.engine import Engine
from funnel_export.bundle.load import Graph
from funnel_export.bundle.ports import sizes_of
from funnel_export.errors import BundleError, SpecError, TargetRefusedError
from funnel_export.spec.profile import SHORT, fitting_profiles
from funnel_export.targets.base import as_float
from funnel_export.targets.tensorrt.device import Device
from funnel_export.targets.tensorrt.flavour import TENSORRT_RTX, Flavour
from funnel_export.targets.tensorrt.gpu import find_gpu
from funnel_export.targets.tensorrt.graph import ReadableGraph, readable_graph, refit
from funnel_export.targets.tensorrt.logger import make_logger
from funnel_export.targets.tensorrt.parse import dtype_name
from funnel_export.targets.tensorrt.runtime_cache import load_cache, save_cache


class TensorRtSession:
    """A loaded plan, with one execution context and one stream."""

    def __init__(self, flavour: Flavour, graph: Graph, engine: Engine, *, keep_kernels: bool = True) -> None:
        self._trt, self._flavour, self._engine = flavour.load(), flavour, engine
        self._logger = make_logger(self._trt)
        self.device = find_gpu().name
        self.precision = str(graph.dtype)
        self._runtime = self._trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = engine.manifest.options.get("version_compatible") is True
        self._plan = self._deserialize(graph)
        self._check_ports(graph)
        self._cache: Any = None
        self._context = self._make_context()
        if self._context is None:
            raise self._refused("could not create an execution context")
        if not keep_kernels:
            self._cache = None
        own_graphs = flavour is not TENSORRT_RTX  # TensorRT-RTX captures CUDA graphs itself
        self._runner = PlanRunner(self._trt, self._plan, self._context, graph, engine, self._logger, own_graphs)

    def _deserialize(self, graph: Graph) -> Any:
        options = self._engine.manifest.options
        with self._engine.file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            loaded = self._runtime.deserialize_cuda_engine(plan)
        if loaded is None:
            raise self._refused("could not be deserialized")
        if options.get("strip_plan") is True:
            source = readable_graph(graph.path)  # it outlives what reads it
            if not self._refit(loaded, source):
                raise self._refused("could not be refitted with the bundle's weights")
        if options.get("weight_streaming") is True:
            loaded.weight_streaming_budget_v2 = loaded.get_weight_streaming_automatic_budget()
        return loaded

    def _refit(self, loaded: Any, source: ReadableGraph) -> bool:
        """Give a plan the weights of a graph; whether it takes them."""
        refitter = self._trt.Refitter(loaded, self._logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        return refit(parser, source) and bool(refitter.refit_cuda_engine())

    def _check_ports(self, graph: Graph) -> None:
        """Raise `BundleError` unless the plan has the graph's inputs and outputs."""
        wanted = {port.name: port.dtype for port in (*graph.inputs, *graph.outputs)}
        names = [self._plan.get_tensor_name(index) for index in range(self._plan.num_io_tensors)]
        found = {name: dtype_name(self._plan.get_tensor_dtype(name)) for name in names}
        if not wanted.items() <= found.items():
            raise BundleError(
                "the engine does not have the graph's inputs and outputs",
                got=found,
                wanted=wanted,
                hint="compile the bundle again",
            )

    def _make_context(self) -> Any:
        if self._flavour is not TENSORRT_RTX:
            return self._plan.create_execution_context()
        config = self._plan.create_runtime_config()
        self._cache = config.create_runtime_cache()
        earlier = load_cache(self._engine)
        if earlier is not None:
            self._cache.deserialize(earlier)
        config.set_runtime_cache(self._cache)
        config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return self._plan.create_execution_context(config)

    def _refused(self, what: str) -> TargetRefusedError:
        said = "\n".join(self._logger.errors[-5:])
        return TargetRefusedError(f"the engine {self._engine.name} {what}", got=said, hint="compile the bundle again")

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        return self._runner.run(inputs)

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """See `Session.prepare`."""
        return self._runner.prepare(inputs)

    def close(self) -> None:
        """See `Session.close`; TensorRT-RTX's kernel cache is saved beside the plan."""
        try:
            if self._cache is not None:
                save_cache(self._engine, bytes(self._cache.serialize()))
        finally:
            self._cache = None
            self._runner.close()


class PlanRunner:
    """Copies inputs and outputs between host and device, and chooses the optimization profile."""

    def __init__(
        self, trt: Any, plan: Any, context: Any, graph: Graph, engine: Engine, logger: Any, use_graphs: bool
    ) -> None:
        self._context, self._logger, self._device = context, logger, Device()
        self._profiles, self._name, self._ports = engine.manifest.profiles, engine.name, graph.inputs
        self._use_graphs = use_graphs
        self._active = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        names = [plan.get_tensor_name(index) for index in range(plan.num_io_tensors)]
        self._inputs = [n for n in names if plan.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if n not in self._inputs]
        self._dtypes = {name: _numpy_dtype(dtype_name(plan.get_tensor_dtype(name))) for name in names}

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run on host arrays; return outputs as host arrays."""
        self._launch(inputs)
        results = {name: np.empty(size, self._dtypes[name]) for name, size in self._shapes.items()}
        self._device.fetch(results)
        return {name: as_float(value) for name, value in results.items()}

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Copy inputs to the device; return a function that runs on them and leaves the outputs on the device."""
        launch = self._launch(inputs)

        def call() -> None:
            launch()
            self._device.wait()

        return call

    def _launch(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], None]:
        """Copy inputs to the device and run once; return a function that runs again on the same buffers."""
        shapes = {name: inputs[name].shape for name in self._inputs}
        self._choose_profile(shapes)
        addresses = {
            name: self._device.put(name, np.ascontiguousarray(inputs[name], dtype=self._dtypes[name]))
            for name in self._inputs
        }
        key = (self._active, tuple(shapes.values())) if self._use_graphs else None
        if not self._device.replays(key):
            self._bind(shapes, addresses)

        def launch() -> None:
            self._must(self._device.launch(self._context.execute_async_v3, key), shapes)

        launch()
        return launch

    def _bind(self, shapes: Mapping[str, tuple[int, ...]], addresses: Mapping[str, int]) -> None:
        """Set the shapes and addresses of this run in the context."""
        for name, address in addresses.items():
            self._must(self._context.set_input_shape(name, shapes[name]), shapes)
            self._must(self._context.set_tensor_address(name, address), shapes)
        self._shapes = {name: tuple(self._context.get_tensor_shape(name)) for name in self._outputs}
        for name, size in self._shapes.items():
            nbytes = int(np.prod(size)) * self._dtypes[name].itemsize
            self._must(self._context.set_tensor_address(name, self._device.reserve(name, nbytes)), shapes)

    def close(self) -> None:
        """Free the device's memory."""
        self._device.close()

    def _must(self, done: bool, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise `TargetRefusedError` unless a call succeeded; `shapes` of the inputs are for the message."""
        if not done:
            asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            said = "\n".join([f"inputs {asked}", *self._logger.errors[-5:]])
            raise TargetRefusedError(f"the engine {self._name} failed while running", got=said)

    def _choose_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        sizes = sizes_of(self._ports, shapes)
        fitting = fitting_profiles(self._profiles, sizes)
        if not fitting:
            raise SpecError(
                f"the engine {self._name} does not accept this shape",
                got=", ".join(f"{SHORT.get(axis, axis)} {size}" for axis, size in sizes.items()),
                wanted=" or ".join(map(str, self._profiles)),
                hint="compile with a --profile that includes it",
            )
        if fitting[0] != self._active:
            self._must(self._context.set_optimization_profile_async(fitting[0], self._device.stream), shapes)
            self._device.wait()
            self._active = fitting[0]


def _numpy_dtype(name: str) -> np.dtype[Any]:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
