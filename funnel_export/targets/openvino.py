"""The target `openvino`: OpenVINO on the CPU; bfloat16 graphs run in float32 if the processor lacks bfloat16."""

import io
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from funnel_export.bundle.engine import BuiltFor, Engine
from funnel_export.bundle.load import Graph
from funnel_export.errors import BundleError, SpecError, TargetRefusedError
from funnel_export.progress import Progress
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.system.extras import install_command
from funnel_export.system.machine import this_platform
from funnel_export.system.worker import SILENCE
from funnel_export.targets.base import Availability, Compiled, CompileRequest, as_float, check_room_for_engine, require
from funnel_export.targets.openvino_products import products_of_model
from funnel_export.targets.options import MOST_THREADS, Options, options_of_engine, validate_allowed

DEVICE, BLOB = "CPU", "model.blob"
PRECISION = "INFERENCE_PRECISION_HINT"
ACTIVATION_GROUP = "DYNAMIC_QUANTIZATION_GROUP_SIZE"
"""Inputs of a product with quantized weights that share a scale when they are rounded to 8 bits; 0 leaves them as they
are, and OpenVINO's own default is 32."""
COUNTS = ("INFERENCE_NUM_THREADS", "NUM_STREAMS", "PERFORMANCE_HINT_NUM_REQUESTS")
PROPERTIES = frozenset(
    {
        "CPU_DENORMALS_OPTIMIZATION",
        "CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE",
        ACTIVATION_GROUP,
        "ENABLE_CPU_PINNING",
        "ENABLE_CPU_RESERVATION",
        "ENABLE_HYPER_THREADING",
        "ENABLE_TENSOR_PARALLEL",
        "EXECUTION_MODE_HINT",
        PRECISION,
        "INFERENCE_NUM_THREADS",
        "MODEL_DISTRIBUTION_POLICY",
        "NUM_STREAMS",
        "PERFORMANCE_HINT",
        "PERFORMANCE_HINT_NUM_REQUESTS",
        "PERF_COUNT",
        "SCHEDULING_CORE_TYPE",
        "TBB_PARTITIONER",
    }
)
"""Allowed properties of the CPU plugin. Others name files, as WEIGHTS_PATH does, or are not useful here."""


class OpenVinoOptions(Options):
    """Properties of OpenVINO's CPU plugin, such as NUM_STREAMS, INFERENCE_NUM_THREADS or PERFORMANCE_HINT."""

    model_config = ConfigDict(frozen=True, extra="allow")


class OpenVinoTarget:
    """OpenVINO's CPU plugin, set to compute in the graph's dtype: by default it may run float32 graphs in bfloat16."""

    name: ClassVar[str] = "openvino"
    options: ClassVar[type[Options]] = OpenVinoOptions
    takes_profiles: ClassVar[bool] = False
    runs_graphs: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = (BLOB,)
    reuses: ClassVar[tuple[str, ...]] = ()

    def availability(self) -> Availability:
        """Whether OpenVINO is installed, and for which processor."""
        try:
            import openvino
        except ImportError as err:
            return Availability(available=False, detail=f"not installed: {err}", hint=install_command(self.name))
        core = openvino.Core()
        if DEVICE not in core.available_devices:
            return Availability(available=False, version=openvino.__version__, detail="its CPU plugin does not load")
        name = core.get_property(DEVICE, "FULL_DEVICE_NAME")
        native = "native bfloat16" if _has_bfloat16(core) else "bfloat16 graphs run in float32"
        detail = f"{name}, {native}"
        return Availability(available=True, compiles=True, version=openvino.__version__, detail=detail)

    def supports(self, spec: ExportSpec) -> str | None:  # noqa: ARG002 - a Target's signature
        """See `Target.supports`: the CPU plugin supports all three dtypes."""
        return None

    def built_for(self, request: CompileRequest) -> BuiltFor:
        """See `Target.built_for`."""
        require(self, request.graph.spec)
        import openvino

        core = openvino.Core()
        _settings(core, request.graph, request.options.recorded())
        return BuiltFor(device=core.get_property(DEVICE, "FULL_DEVICE_NAME"), platform=this_platform())

    def engine_name(self, built_for: BuiltFor) -> str:  # noqa: ARG002 - a Target's signature
        """See `Target.engine_name`."""
        return f"{self.name}-cpu"

    def compile(self, request: CompileRequest, folder: Path, progress: Progress) -> Compiled:
        """Compile the graph and write the compiled model as a blob, which includes the weights."""
        import openvino

        check_room_for_engine(request.graph, folder)
        progress("compiling")
        core = openvino.Core()
        start = time.perf_counter()
        compiled = _compile(core, request.graph, (), request.options.recorded())
        progress("writing the blob")
        try:
            with (folder / BLOB).open("wb") as stream:
                writer = _Writer(stream)
                compiled.export_model(writer)
                if writer.failure is not None:
                    raise writer.failure
        except OSError as err:
            raise BundleError("the blob could not be written", got=err, wanted=folder) from err
        seconds = round(time.perf_counter() - start, 2)
        made = None if request.graph.spec.quantization is None else products_of_model(compiled, ACTIVATION_GROUP)
        return Compiled(files=[BLOB], facts={"build_seconds": seconds, **({} if made is None else made.facts())})

    def on_gpu(self, engine: Engine | None) -> bool:  # noqa: ARG002 - a Target's signature
        """See `Target.on_gpu`; always False."""
        return False

    def activation_group(self, engine: Engine) -> int | None:
        """See `Target.activation_group`."""
        return int(engine.manifest.options.get(ACTIVATION_GROUP, 0)) or None

    def misfit(self, engine: Engine) -> str | None:
        """See `Target.misfit`."""
        import openvino

        core, built = openvino.Core(), engine.manifest
        _validate_properties(core, built.options)
        here = core.get_property(DEVICE, "FULL_DEVICE_NAME")
        if built.version != openvino.__version__:
            return f"it was built with OpenVINO {built.version}, but {openvino.__version__} is installed"
        if (built.built_for.device, built.built_for.platform) != (here, this_platform()):
            wanted = f"{built.built_for.device} on {built.built_for.platform}"
            return f"it was built for {wanted}, but this is {here} on {this_platform()}"
        return None

    def load(
        self,
        graph: Graph,
        *,
        outputs: Sequence[str] = (),
        engine: Engine | None = None,
        timeout: float = SILENCE,  # noqa: ARG002 - it builds nothing
    ) -> "OpenVinoSession":
        """See `Target.load`; intermediate values are those of the bundle's graph."""
        require(self, graph.spec)
        import openvino

        core = openvino.Core()
        settings = {} if engine is None else options_of_engine(OpenVinoOptions, engine.manifest.options).recorded()
        if engine is not None and not outputs:
            compiled = _import(core, engine, _settings(core, graph, settings))
        else:
            compiled = _compile(core, graph, outputs, settings)
        names = [*(output.name for output in graph.outputs), *outputs]
        return OpenVinoSession(compiled, names, core.get_property(DEVICE, "FULL_DEVICE_NAME"))


def _settings(core: Any, graph: Graph, settings: Mapping[str, Any]) -> dict[str, str]:
    """The given properties; those that are not among them keep the graph's precision."""
    _validate_properties(core, settings)
    bfloat16 = graph.dtype is Dtype.BFLOAT16 and _has_bfloat16(core)
    exact = {} if graph.spec.quantization is None else {ACTIVATION_GROUP: "0"}
    given = {name: str(value) for name, value in settings.items()}
    chosen = {PRECISION: "bf16" if bfloat16 else "f32", **exact, **given}
    _check_threads(chosen)
    return chosen


def _check_threads(settings: Mapping[str, str]) -> None:
    """Refuse bfloat16 on one thread: OpenVINO 2026.4 ends the whole process with SIGFPE when it compiles such a graph.

    Seen on a processor with AMX, with `INFERENCE_NUM_THREADS=1` and in a process that may use one core.
    """
    asked = settings.get("INFERENCE_NUM_THREADS", "0")
    if settings[PRECISION] == "bf16" and (asked == "1" or (asked == "0" and len(os.sched_getaffinity(0)) == 1)):
        raise SpecError(
            "OpenVINO crashes on bfloat16 graphs with one thread",
            got="INFERENCE_NUM_THREADS=1" if asked == "1" else "a process that may use one core",
            wanted="two threads, or float32",
            hint=f"--option {PRECISION}=f32, or another number of threads",
        )


def _validate_properties(core: Any, settings: Mapping[str, Any]) -> None:
    """Raise `SpecError` for properties that are not allowed, or not known to this version of OpenVINO."""
    known = core.get_property(DEVICE, "SUPPORTED_PROPERTIES")
    validate_allowed("OpenVINO's CPU plugin", settings, {name for name in PROPERTIES if known.get(name) == "RW"})
    many = {name: value for name, value in settings.items() if name in COUNTS and not _is_count(str(value))}
    if many:
        raise SpecError("too many threads or streams for this machine", got=many, wanted=f"at most {MOST_THREADS}")


def _is_count(value: str) -> bool:
    """Whether a value is at most `MOST_THREADS`, or a word such as AUTO, on which OpenVINO decides.

    Other spellings of numbers are refused: OpenVINO reads some of them, such as +1024.
    """
    if not any(map(str.isdigit, value)):
        return True
    plain = re.fullmatch(r"-?[0-9]{1,9}", value)
    return plain is not None and int(value) <= MOST_THREADS


def _compile(core: Any, graph: Graph, outputs: Sequence[str], settings: Mapping[str, Any]) -> Any:
    try:
        model = core.read_model(graph.path)
        model.add_outputs(list(outputs))
        return core.compile_model(model, DEVICE, _settings(core, graph, settings))
    except RuntimeError as err:
        raise TargetRefusedError("OpenVINO refused the graph", got=err) from err


def _import(core: Any, engine: Engine, settings: dict[str, str]) -> Any:
    """Load a compiled model from its blob, which is memory-mapped."""
    import openvino

    blob = openvino.Tensor(np.memmap(engine.file, dtype=np.uint8, mode="r"))
    try:
        return core.import_model(blob, DEVICE, settings)
    except RuntimeError as err:
        raise TargetRefusedError("OpenVINO refused its own blob", got=err, hint="compile the bundle again") from err


class _Writer(io.BytesIO):
    """A `BytesIO`, which OpenVINO's export requires, that writes to a file instead of into memory."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as err:  # OpenVINO would swallow it and leave a truncated file
            self.failure = self.failure or err
            return 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


def _has_bfloat16(core: Any) -> bool:
    return "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


class OpenVinoSession:
    """A graph compiled by OpenVINO."""

    def __init__(self, compiled: Any, names: Sequence[str], device: str) -> None:
        self._request: Any = compiled.create_infer_request()
        self._held: dict[str, NDArray[Any]] = {}
        self._outputs = [(name, compiled.output(name)) for name in names]  # an output may have several names
        self._bfloat16 = {
            port.get_any_name() for port in compiled.inputs if port.get_element_type().to_string() == "bf16"
        }
        self.device = device
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        try:
            self._request.infer(self._tensors(inputs))
        except RuntimeError as err:
            raise TargetRefusedError("OpenVINO failed while running the graph", got=err) from err
        results = {}
        for name, output in self._outputs:
            kind, data = output.get_element_type().to_string(), self._request.get_tensor(output).data
            # The Python API returns bfloat16 data as a float16 array with the right bits.
            results[name] = as_float(data.view(ml_dtypes.bfloat16) if kind == "bf16" else data).copy()
        return results

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """See `Session.prepare`."""
        tensors = self._tensors(inputs)
        held, request = self._held, self._request
        for name, tensor in tensors.items():
            request.set_tensor(name, tensor)

        def infer() -> None:
            assert held  # keeps the arrays alive
            request.infer()

        return infer

    def _tensors(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The inputs as OpenVINO's tensors, on the same memory if they have the graph's dtypes."""
        import openvino

        arrays = {name: self._array(name, array) for name, array in inputs.items()}
        self._held = arrays  # tensors refer to their memory
        bfloat16 = openvino.Type.bf16
        return {
            name: openvino.Tensor(array, array.shape, bfloat16)
            if name in self._bfloat16
            else openvino.Tensor(array, shared_memory=True)
            for name, array in arrays.items()
        }

    def _array(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """An input in contiguous memory; bfloat16 as 16-bit integers, since OpenVINO takes no arrays of ml_dtypes."""
        if name in self._bfloat16:
            return np.ascontiguousarray(array, ml_dtypes.bfloat16).view(np.uint16)
        return np.ascontiguousarray(array)

    def close(self) -> None:
        """See `Session.close`."""
        self._request = None
        self._outputs.clear()
