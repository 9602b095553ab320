"""OpenVINO on the CPU: float32, and bfloat16 where the processor has it."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import ml_dtypes
from numpy.typing import NDArray

from funnel_export.bundle import Bundle
from funnel_export.config import Dtype
from funnel_export.errors import TargetRefusedError
from funnel_export.targets.base import Availability, as_float, require

DEVICE = "CPU"


class OpenVinoTarget:
    """OpenVINO's CPU plugin, told to compute in the graph's dtype: left alone it takes bfloat16 for float32 graphs."""

    name: ClassVar[str] = "openvino"

    def availability(self) -> Availability:
        """Whether OpenVINO is installed, and for which processor."""
        try:
            import openvino
        except ImportError as err:
            return Availability(
                available=False, detail=f"not installed: {err}", hint="pip install 'funnel-export[openvino]'"
            )
        core = openvino.Core()
        if DEVICE not in core.available_devices:
            return Availability(available=False, version=openvino.__version__, detail="its CPU plugin does not load")
        name = core.get_property(DEVICE, "FULL_DEVICE_NAME")
        native = "native bfloat16" if _has_bfloat16(core) else "bfloat16 graphs run in float32"
        return Availability(available=True, version=openvino.__version__, detail=f"{name}, {native}")

    def supports(self, dtype: Dtype) -> str | None:  # noqa: ARG002 - a Target's signature
        """The CPU plugin takes all three."""
        return None

    def load(self, bundle: Bundle, *, outputs: Sequence[str] = ()) -> "OpenVinoSession":
        """See `Target.load`."""
        require(self, bundle.manifest.dtype)
        import openvino

        core = openvino.Core()
        bfloat16 = bundle.manifest.dtype is Dtype.BFLOAT16 and _has_bfloat16(core)
        try:
            model = core.read_model(bundle.graph)
            if outputs:
                model.add_outputs(list(outputs))
            settings = {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"}
            compiled = core.compile_model(model, DEVICE, settings)
        except RuntimeError as err:
            raise TargetRefusedError("OpenVINO refused the graph", got=err) from err
        names = [*(output.name for output in bundle.manifest.graphs[0].outputs), *outputs]
        return OpenVinoSession(compiled, names, core.get_property(DEVICE, "FULL_DEVICE_NAME"))


def _has_bfloat16(core: Any) -> bool:
    return "BF16" in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")


class OpenVinoSession:
    """A graph compiled by OpenVINO."""

    def __init__(self, compiled: Any, names: Sequence[str], device: str) -> None:
        self._request = compiled.create_infer_request()
        self._outputs = [(name, compiled.output(name)) for name in names]  # an output may have several names
        self.device = device
        self.precision = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Session.run`."""
        try:
            self._request.infer(dict(inputs))
        except RuntimeError as err:
            raise TargetRefusedError("OpenVINO failed while running the graph", got=err) from err
        results = {}
        for name, output in self._outputs:
            kind, data = output.get_element_type().to_string(), self._request.get_tensor(output).data
            # The Python API hands bfloat16 out as float16: the right bits under the wrong name.
            results[name] = as_float(data.view(ml_dtypes.bfloat16) if kind == "bf16" else data).copy()
        return results
