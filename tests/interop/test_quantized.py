"""Quantized bundles, loaded as they are by other people's software, compute what eager PyTorch computes."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import pytest
from cases import QUANTIZED, SIDES, Case
from numpy.typing import NDArray

ACCURACY, GROUP = "qdq_matmulnbits_accuracy_level", "DYNAMIC_QUANTIZATION_GROUP_SIZE"
SCRIPT = Path(__file__).with_name("run_in_node.mjs")
Inputs = dict[str, NDArray[np.int64]]


@pytest.fixture(params=QUANTIZED)
def quantized(request: pytest.FixtureRequest, bundles: Path) -> Case:
    """Each quantized bundle with its reference."""
    return Case.read(bundles, request.param)


def in_onnxruntime(case: Case, inputs: Inputs, level: str) -> NDArray[Any]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(f"session.{ACCURACY}", level)
    session = onnxruntime.InferenceSession(case.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, inputs)
    return output


def in_openvino(case: Case, inputs: Inputs, group: str) -> NDArray[Any]:
    settings = {"INFERENCE_PRECISION_HINT": "f32", GROUP: group}
    compiled = openvino.compile_model(openvino.Core().read_model(case.folder / "model.onnx"), "CPU", settings)
    (output,) = compiled(inputs).values()
    return np.array(output)


def in_node(case: Case, inputs: Inputs, level: str, packages: Path) -> NDArray[Any]:
    request = {
        "graph": str(case.folder / "model.onnx"),
        "inputs": {name: value.tolist() for name, value in inputs.items()},
        "entries": {ACCURACY: level},
    }
    done = subprocess.run(
        [str(shutil.which("node")), SCRIPT, packages.resolve()],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    return np.array(answer["data"], np.float32).reshape(answer["dims"])


@pytest.mark.parametrize("side", SIDES)
def test_onnxruntime_computes_what_pytorch_computes(quantized: Case, side: str) -> None:
    quantized.check(side, in_onnxruntime(quantized, quantized.inputs(side), "0"))


@pytest.mark.parametrize("side", SIDES)
def test_openvino_computes_what_pytorch_computes(quantized: Case, side: str) -> None:
    quantized.check(side, in_openvino(quantized, quantized.inputs(side), "0"))


@pytest.mark.parametrize("side", SIDES)
def test_onnxruntime_node_computes_what_pytorch_computes(
    quantized: Case, side: str, pytestconfig: pytest.Config
) -> None:
    packages = pytestconfig.getoption("--node")
    if shutil.which("node") is None or packages is None or not (packages / "node_modules").is_dir():
        pytest.skip("onnxruntime-node is not installed: needs node and npm")
    quantized.check(side, in_node(quantized, quantized.inputs(side), "0", packages))


def test_rounded_activations_are_seen(quantized: Case) -> None:
    """What ONNX Runtime 1.32 and OpenVINO 2026.4 do if nothing is set."""
    inputs = quantized.inputs("left")
    for output in (in_onnxruntime(quantized, inputs, "4"), in_openvino(quantized, inputs, "32")):
        with pytest.raises(AssertionError, match="differs from eager PyTorch"):
            quantized.check("left", output)
