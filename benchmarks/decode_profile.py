"""What a step with a cache spends its time on: milliseconds a token by kind of operation, and the bytes it reads.

    python benchmarks/decode_profile.py --out benchmarks/results/decode_profile.json
    python benchmarks/decode_profile.py --bits 4 --out benchmarks/results/decode_profile_int4.json

The checkpoint is that of `decode.py`, dense in float32, or with weights of few bits and activations rounded to 8. ONNX
Runtime and OpenVINO each read a text of 512 tokens, and then tokens one by one while they record how long each
operation takes. The time between the end of the last operation of a step and the first one of the next is what no
operation accounts for. The last line of stdout is the result.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from decode import bandwidth
from export import make_checkpoint
from measure import conditions, record
from numpy.typing import NDArray

from funnel_export import Quantization, export
from funnel_export.bundle.load import Bundle
from funnel_export.bundle.signature import INPUT_IDS
from funnel_export.latency.traffic import step_bytes
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.choices import Dtype, Task
from funnel_export.spec.stages import DECODER

PAST, WARMUP, STEPS = 512, 8, 64
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "numpy", "funnel-export")
Arrays = dict[str, NDArray[Any]]


class OnnxRuntimeProfile:
    """A session of ONNX Runtime that records its operations."""

    device, precision = "cpu", "float32"

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        options.log_severity_level = 3
        self._session = ort.InferenceSession(bundle.graphs[DECODER].path, options, providers=["CPUExecutionProvider"])
        self._names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run it."""
        return dict(zip(self._names, self._session.run(None, dict(inputs)), strict=True))

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Not needed here."""
        return lambda: self.run(inputs)

    def close(self) -> None:
        """Nothing to do."""

    def milliseconds(self) -> dict[str, float]:
        """By kind of operation, of the last steps."""
        events = json.loads(Path(self._session.end_profiling()).read_text())
        runs = [event for event in events if event["name"] == "model_run"][-STEPS:]
        start = runs[0]["ts"]
        totals: dict[str, float] = defaultdict(float)
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= start:
                totals[event["args"]["op_name"]] += event["dur"] / 1e3 / STEPS
        totals["all operations and the session"] = sum(run["dur"] for run in runs) / 1e3 / STEPS
        return dict(totals)


class OpenVinoProfile:
    """A compiled model of OpenVINO that records its operations; its counters are means over all calls.

    The text is read by another compiled model, so that the means are those of steps.
    """

    device, precision = "cpu", "float32"

    def __init__(self, bundle: Bundle, _: Path) -> None:
        import openvino

        core = openvino.Core()
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        path = bundle.graphs[DECODER].path
        self._reading, self._stepping = (
            core.compile_model(path, "CPU", hints | {"PERF_COUNT": counting}).create_infer_request()
            for counting in (False, True)
        )
        self._names = [output.any_name for output in self._stepping.model_outputs]
        self._latencies: list[float] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run it."""
        request = self._stepping if inputs[INPUT_IDS].shape[1] == 1 else self._reading
        request.infer(dict(inputs))
        self._latencies.append(request.latency)
        return {name: request.get_tensor(name).data.copy() for name in self._names}

    def prepare(self, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
        """Not needed here."""
        return lambda: self.run(inputs)

    def close(self) -> None:
        """Nothing to do."""

    def milliseconds(self) -> dict[str, float]:
        """By kind of operation, of the steps."""
        totals: dict[str, float] = defaultdict(float)
        for each in self._stepping.profiling_info:
            totals[each.node_type] += each.real_time.total_seconds() * 1e3
        totals["all operations and the session"] = statistics.fmean(self._latencies[-STEPS:])
        return dict(totals)


def profile(kind: type[OnnxRuntimeProfile] | type[OpenVinoProfile], bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Read a text, generate, and say where the time of a step went."""
    session = kind(bundle, folder)
    stepper = Stepper(bundle, {DECODER: session})
    state = stepper.new_state(1)
    tokens = np.random.default_rng(0).integers(3, bundle.architecture.vocab_size, (1, PAST + WARMUP + STEPS))
    stepper.step(state, tokens[:, :PAST])
    times = []
    for at in range(PAST, tokens.shape[1]):
        start = time.perf_counter()
        stepper.step(state, tokens[:, at : at + 1])
        times.append((time.perf_counter() - start) * 1e3)
    found = session.milliseconds()
    inside = found.pop("all operations and the session")
    operations = dict(sorted(found.items(), key=lambda item: -item[1]))
    return {"step_ms": statistics.fmean(times[-STEPS:]), "inside_ms": inside, "operations_ms": operations}


def main() -> None:
    """Export, profile, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, help="bits of a weight; activations are rounded, as the runtimes do it")
    parser.add_argument("--out", type=Path, help="result file")
    options = parser.parse_args()
    result: dict[str, Any] = {"past": PAST, "steps": STEPS, "bits": options.bits, "conditions": conditions(PACKAGES)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint")
        task = Task.TEXT_GENERATION_WITH_PAST
        bundle = export(
            folder / "checkpoint",
            folder / "dense",
            funnel="none",
            dtype=Dtype.FLOAT32,
            task=task,
            quantization=None if options.bits is None else Quantization(bits=options.bits),
        )
        sized = bundle.family, bundle.architecture, bundle.spec
        result |= {"bytes": step_bytes(*sized, PAST + STEPS // 2), "weight_bytes": step_bytes(*sized, 0)}
        for kind in (OnnxRuntimeProfile, OpenVinoProfile):
            result[kind.__name__] = profile(kind, bundle, folder)
        result["bandwidth_gb_s"] = bandwidth() / 1e9
    record(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
