"""ONNX Runtime: on the CPU, or on CUDA where its provider works. The reference among the targets."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from numpy.typing import NDArray

from funnel_export.bundle import Bundle
from funnel_export.config import Dtype
from funnel_export.errors import TargetRefusedError, TargetUnavailableError
from funnel_export.targets.base import Availability, require

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxRuntimeTarget:
    """ONNX Runtime with one provider: CUDA if this build has it, else the CPU. It never falls back silently."""

    name: ClassVar[str] = "onnxruntime"

    def availability(self) -> Availability:
        """Whether ONNX Runtime is installed, and with which providers."""
        try:
            import onnxruntime as ort
        except ImportError as err:
            return Availability(
                available=False, detail=f"not installed: {err}", hint="pip install 'funnel-export[onnxruntime]'"
            )
        unused = CUDA in ort.get_available_providers() and not cuda_works()
        detail = self.provider() + ("; this build has CUDA, and it does not work here" if unused else "")
        return Availability(available=True, version=ort.__version__, detail=detail)

    def provider(self) -> str:
        """The provider that sessions run on."""
        return CUDA if cuda_works() else CPU

    def supports(self, dtype: Dtype) -> str | None:
        """The CPU provider has no bfloat16 kernels."""
        if dtype is Dtype.BFLOAT16 and self.provider() == CPU:
            return "ONNX Runtime's CPU provider has no bfloat16 kernels"
        return None

    def load(self, bundle: Bundle, *, outputs: Sequence[str] = ()) -> "OnnxRuntimeSession":
        """See `Target.load`."""
        require(self, bundle.manifest.dtype)
        import onnxruntime as ort

        provider = self.provider()
        options = ort.SessionOptions()
        options.log_severity_level = 3
        model: str | bytes = str(bundle.graph)
        if outputs or bundle.manifest.dtype is Dtype.BFLOAT16:
            options.add_session_config_entry(WEIGHTS_FOLDER, str(bundle.path))
            model = _with_outputs(bundle, outputs)
        settings = {"use_tf32": "0"} if provider == CUDA else {}  # float32 is to mean float32
        try:
            session = ort.InferenceSession(model, options, providers=[(provider, settings)])
        except ort_errors() as err:
            raise TargetRefusedError("ONNX Runtime refused the graph", got=err) from err
        if session.get_providers()[0] != provider:
            raise TargetUnavailableError(
                "ONNX Runtime fell back to another provider",
                got=", ".join(session.get_providers()),
                wanted=provider,
                hint="install the CUDA and cuDNN versions that this onnxruntime-gpu was built for",
            )
        return OnnxRuntimeSession(session, bundle.manifest.dtype)


class OnnxRuntimeSession:
    """A graph loaded in ONNX Runtime."""

    def __init__(self, session: Any, dtype: Dtype) -> None:
        self._session = session
        self._names = [output.name for output in session.get_outputs()]
        self.device = session.get_providers()[0]
        self.precision = str(dtype)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        try:
            values = self._session.run(None, dict(inputs))
        except ort_errors() as err:
            raise TargetRefusedError("ONNX Runtime failed while running the graph", got=err) from err
        return {name.removesuffix(_CAST): value for name, value in zip(self._names, values, strict=True)}


def ort_errors() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises: classes without a common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [getattr(state, name) for name in dir(state)]
    return tuple(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Exception))


@functools.cache
def cuda_works() -> bool:
    """Whether a session really runs on CUDA here: a build may have the provider on a machine without a GPU."""
    import onnxruntime as ort
    from onnx import TensorProto, helper

    if CUDA not in ort.get_available_providers():
        return False
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


def _with_outputs(bundle: Bundle, names: Sequence[str]) -> bytes:
    """The graph with more outputs; bfloat16 ones, which numpy does not know, are cast."""
    import onnx_ir as ir

    model = ir.load(bundle.graph)
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
