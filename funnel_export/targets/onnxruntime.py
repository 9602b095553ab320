"""The target `onnxruntime`: ONNX Runtime on CUDA if that works here, else on the CPU. The reference target."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from funnel_export.bundle.engine import BuiltFor, Engine
from funnel_export.bundle.load import Graph
from funnel_export.bundle.manifest import MODEL
from funnel_export.checkpoint.quantized import CODES
from funnel_export.errors import TargetRefusedError, TargetUnavailableError
from funnel_export.progress import Progress
from funnel_export.spec.choices import Dtype
from funnel_export.spec.export import ExportSpec
from funnel_export.system.extras import install_command
from funnel_export.system.machine import processor, this_platform
from funnel_export.system.worker import SILENCE
from funnel_export.targets.base import Availability, Compiled, CompileRequest, check_room_for_engine, require
from funnel_export.targets.onnxruntime_options import CUDA_OPTIONS, ENTRIES, OnnxRuntimeOptions
from funnel_export.targets.onnxruntime_products import products_of_graph
from funnel_export.targets.options import Options, options_of_engine, validate_allowed

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
OPTIMIZED, WEIGHTS = "model.onnx", "weights.bin"
"""Files of an engine."""
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
NEW_WEIGHTS = "session.optimized_model_external_initializers_file_name"
SPINNING = "session.intra_op.allow_spinning"
ACCURACY = "session.qdq_matmulnbits_accuracy_level"
EXACT = "0"
"""Activations of products with quantized weights stay as they are; ONNX Runtime's default, 4, rounds them to 8 bits."""
ROUNDED = "4"
DEQUANTIZE = "session.disable_quant_qdq"
BLOCK = 32
"""Inputs that share a scale when they are rounded; more if the weights have larger blocks."""
SMALLEST_EXTERNAL = "session.optimized_model_external_initializers_min_size_in_bytes"


class OnnxRuntimeTarget:
    """ONNX Runtime with one provider: CUDA if it works here, else the CPU. It never falls back silently."""

    name: ClassVar[str] = "onnxruntime"
    options: ClassVar[type[Options]] = OnnxRuntimeOptions
    takes_profiles: ClassVar[bool] = False
    runs_graphs: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = (OPTIMIZED, WEIGHTS)
    reuses: ClassVar[tuple[str, ...]] = ()

    def availability(self) -> Availability:
        """Whether ONNX Runtime is installed, and with which providers."""
        try:
            import onnxruntime as ort
        except ImportError as err:
            return Availability(available=False, detail=f"not installed: {err}", hint=install_command(self.name))
        unused = CUDA in ort.get_available_providers() and not cuda_works()
        detail = self.provider() + ("; this build has CUDA, but it does not work here" if unused else "")
        return Availability(available=True, compiles=True, version=ort.__version__, detail=detail)

    def provider(self) -> str:
        """The provider that sessions run on."""
        return CUDA if cuda_works() else CPU

    def supports(self, spec: ExportSpec) -> str | None:
        """See `Target.supports`: not all providers have all kernels for bfloat16 (seen in version 1.31)."""
        if spec.dtype is not Dtype.BFLOAT16:
            return None
        if self.provider() == CPU:
            return "ONNX Runtime's CPU provider has no bfloat16 kernels"
        if spec.quantization is not None:
            return "ONNX Runtime's CUDA provider has no kernel that dequantizes to bfloat16"
        return None

    def built_for(self, request: CompileRequest) -> BuiltFor:
        """See `Target.built_for`."""
        require(self, request.graph.spec)
        options = request.options_as(OnnxRuntimeOptions)
        provider = self._provider(options)
        exact = options.graph_optimization_level == "all"
        return BuiltFor(device=f"{provider}, {processor()}" if exact else provider, platform=this_platform())

    def engine_name(self, built_for: BuiltFor) -> str:
        """See `Target.engine_name`."""
        return f"{self.name}-{'cuda' if built_for.device.startswith(CUDA) else 'cpu'}"

    def compile(self, request: CompileRequest, folder: Path, progress: Progress) -> Compiled:
        """Optimise the graph as a session does, and save it with a copy of the weights in a new layout."""
        import onnxruntime as ort

        quantization = request.graph.spec.quantization
        exact = DEQUANTIZE in _exact_entries(request.options_as(OnnxRuntimeOptions), request.graph)
        check_room_for_engine(request.graph, folder, plain=(CODES,) if exact else ())
        progress("optimising the graph")
        options = request.options_as(OnnxRuntimeOptions)
        session = _session_options(options, request.graph)
        level = f"ORT_ENABLE_{options.graph_optimization_level.upper()}"
        session.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        session.optimized_model_filepath = str(folder / OPTIMIZED)
        session.add_session_config_entry(NEW_WEIGHTS, WEIGHTS)
        session.add_session_config_entry(SMALLEST_EXTERNAL, "1024")
        start = time.perf_counter()
        _make_session(str(request.graph.path), session, self._provider(options), options.provider_options)
        files = [name for name in self.files if (folder / name).exists()]
        seconds = round(time.perf_counter() - start, 2)
        made = None if quantization is None else products_of_graph(folder / OPTIMIZED)
        return Compiled(files=files, facts={"build_seconds": seconds, **({} if made is None else made.facts())})

    def on_gpu(self, engine: Engine | None) -> bool:
        """See `Target.on_gpu`."""
        return self._provider(OnnxRuntimeOptions() if engine is None else _options_of(engine)) == CUDA

    def activation_group(self, engine: Engine) -> int | None:
        """See `Target.activation_group`; the CUDA provider has no such kernels."""
        rounds = _options_of(engine).entries.get(ACCURACY, EXACT) == ROUNDED
        return BLOCK if rounds and not self.on_gpu(engine) else None

    def misfit(self, engine: Engine) -> str | None:
        """See `Target.misfit`."""
        here, built = self.availability(), engine.manifest
        if built.version != here.version:
            return f"it was built with version {built.version}, but {here.version} is installed"
        wanted, found = built.built_for, f"{self._provider(_options_of(engine))}, {processor()}"
        if wanted.platform != this_platform() or not f"{found},".startswith(f"{wanted.device},"):
            return f"it was built for {wanted.device} on {wanted.platform}, but this is {found} on {this_platform()}"
        return None

    def load(
        self,
        graph: Graph,
        *,
        outputs: Sequence[str] = (),
        engine: Engine | None = None,
        timeout: float = SILENCE,  # noqa: ARG002 - it builds nothing
    ) -> "OnnxRuntimeSession":
        """See `Target.load`; intermediate values are those of the bundle's graph, not of the optimised one."""
        require(self, graph.spec)
        chosen = OnnxRuntimeOptions() if engine is None else _options_of(engine)
        path = graph.path if engine is None or outputs else engine.file
        options = _session_options(chosen, graph)
        if graph.role != MODEL and (engine is None or SPINNING not in engine.manifest.options):
            # The next graph's session has threads of its own: spinning ones of this session would take their cores.
            options.add_session_config_entry(SPINNING, "0")
        model: str | bytes = str(path)
        if outputs or graph.dtype is Dtype.BFLOAT16:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(path.parent))
            model = _with_outputs(path, outputs)
        session = _make_session(model, options, self._provider(chosen), chosen.provider_options)
        return OnnxRuntimeSession(session, graph.dtype)

    def _provider(self, options: OnnxRuntimeOptions) -> str:
        if options.provider == "cuda" and not cuda_works():
            raise TargetUnavailableError(
                "ONNX Runtime has no CUDA here", hint="use --option provider=cpu, or a machine with a GPU"
            )
        provider = self.provider() if options.provider is None else {"cpu": CPU, "cuda": CUDA}[options.provider]
        settings = CUDA_OPTIONS if provider == CUDA else frozenset()
        allowed = {*OnnxRuntimeOptions.model_fields, *ENTRIES, *settings}
        validate_allowed("ONNX Runtime", (*options.entries, *options.provider_options), allowed)
        return provider


def _options_of(engine: Engine) -> OnnxRuntimeOptions:
    return options_of_engine(OnnxRuntimeOptions, engine.manifest.options)


def _session_options(options: OnnxRuntimeOptions, graph: Graph) -> Any:
    """Session options, the same for builds and runs."""
    import onnxruntime as ort

    session = ort.SessionOptions()
    session.log_severity_level = 3
    session.intra_op_num_threads = options.intra_op_num_threads
    session.inter_op_num_threads = options.inter_op_num_threads
    session.execution_mode = getattr(ort.ExecutionMode, f"ORT_{options.execution_mode.upper()}")
    for name, value in (_exact_entries(options, graph) | options.entries).items():
        session.add_session_config_entry(name, value)
    return session


def _exact_entries(options: OnnxRuntimeOptions, graph: Graph) -> dict[str, str]:
    """Entries with which products with quantized weights compute with exact activations, unless the options differ.

    With 8 bits, the product with codes and exact activations takes ten times as long as one with float weights (seen in
    version 1.32). Without the optimization of such products the weights become float ones when a session is made.
    """
    if graph.spec.quantization is None:
        return {}
    slow = graph.spec.quantization.bits == 8 and options.entries.get(ACCURACY, EXACT) != ROUNDED
    return {ACCURACY: EXACT} | ({DEQUANTIZE: "1"} if slow else {})


def _make_session(model: str | bytes, options: Any, provider: str, settings: Mapping[str, str]) -> Any:
    """A session on this provider only; on CUDA, TF32 is off unless the settings enable it."""
    import onnxruntime as ort

    exact = {"use_tf32": "0"} if provider == CUDA else {}
    try:
        session = ort.InferenceSession(model, options, providers=[(provider, {**exact, **settings})])
    except ort_errors() as err:
        raise TargetRefusedError("ONNX Runtime refused the graph, or an option", got=err) from err
    if session.get_providers()[0] != provider:
        raise TargetUnavailableError(
            "ONNX Runtime fell back to another provider",
            got=", ".join(session.get_providers()),
            wanted=provider,
            hint="install the CUDA and cuDNN versions that this onnxruntime-gpu was built for",
        )
    return session


class OnnxRuntimeSession:
    """A graph loaded in ONNX Runtime."""

    def __init__(self, session: Any, dtype: Dtype) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self._bfloat16 = {each.name for each in session.get_inputs() if each.type == "tensor(bfloat16)"}
        self.device = session.get_providers()[0]
        self.precision = str(dtype)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        try:
            if self._bfloat16:
                held = self._values(inputs, "cpu")
                values = [value.numpy() for value in self._session.run_with_ort_values(None, held)]
            else:
                values = self._session.run(None, dict(inputs))
        except ort_errors() as err:
            raise TargetRefusedError("ONNX Runtime failed while running the graph", got=err) from err
        return {name.removesuffix(_CAST): value for name, value in zip(self._names, values, strict=True)}

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """See `Session.prepare`. Inputs in bfloat16 stay in host memory, so on a GPU every call copies them."""
        device = "cuda" if self.device == CUDA else "cpu"
        binding = self._session.io_binding()
        held = self._values(inputs, device)
        for name, value in held.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._names:
            binding.bind_output(name, device)

        def call() -> None:
            assert held  # keeps the arrays alive: on a CPU, the binding refers to their memory
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return call

    def close(self) -> None:
        """See `Session.close`."""
        self._session = None

    def _values(self, inputs: Mapping[str, NDArray[Any]], device: str) -> dict[str, Any]:
        """Arrays as values of ONNX Runtime, which takes bfloat16 as 16-bit integers, in host memory only.

        Arrays for inputs in bfloat16 may be in float32: the graph before returns hidden states so.
        """
        import onnxruntime as ort
        from onnx import TensorProto

        values = {}
        for name, array in inputs.items():
            if name in self._bfloat16:
                plain = np.ascontiguousarray(array, ml_dtypes.bfloat16).view(np.uint16)
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(plain, TensorProto.BFLOAT16)
            else:
                values[name] = ort.OrtValue.ortvalue_from_numpy(array, device)
        return values


def ort_errors() -> tuple[type[Exception], ...]:
    """Exception classes of ONNX Runtime, which have no common base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [getattr(state, name) for name in dir(state)]
    own = tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))
    return (*own, RuntimeError)  # raised for invalid values of session configuration entries


@functools.cache
def cuda_works() -> bool:
    """Whether a session runs on CUDA here; it is tried, since a build may have the provider without a GPU."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    if CUDA not in ort.get_available_providers():
        return False
    if hasattr(ort, "preload_dlls"):  # the provider does not find CUDA and cuDNN installed by pip on its own
        with contextlib.redirect_stdout(sys.stderr):  # it prints the libraries that it does not find
            ort.preload_dlls()
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "probe", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=[CUDA])
    except ort_errors():
        return False
    return bool(session.get_providers()[0] == CUDA)


_CAST = ".float32"


def _with_outputs(graph: Path, names: Sequence[str]) -> bytes:
    """The graph with more outputs; bfloat16 outputs are cast to float32, since numpy has no bfloat16."""
    import onnx_ir as ir

    model = ir.load(graph)
    values = {value.name: value for node in model.graph for value in node.outputs}
    wanted = [*model.graph.outputs, *(values[name] for name in names)]
    model.graph.outputs.clear()
    for value in wanted:
        if value.dtype is ir.DataType.BFLOAT16:
            cast = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
            cast.outputs[0].name = f"{value.name}{_CAST}"
            cast.outputs[0].dtype = ir.DataType.FLOAT
            model.graph.append(cast)
            value = cast.outputs[0]
        model.graph.outputs.append(value)
    content: bytes = ir.to_proto(model).SerializeToString()
    return content
