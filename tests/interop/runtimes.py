"""Other people's runtimes, each as a function from a bundle's folder and padded tokens to the graph's one output."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from numpy.typing import NDArray
from optimum.onnxruntime import (
    ORTModelForCausalLM,
    ORTModelForFeatureExtraction,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)

Inputs = Mapping[str, NDArray[np.int64]]
Runtime = Callable[[Path, str, Inputs], NDArray[Any]]

ORT_CLASSES: dict[str, Any] = {
    "feature-extraction": ORTModelForFeatureExtraction,
    "text-generation": ORTModelForCausalLM,
    "text-classification": ORTModelForSequenceClassification,
    "token-classification": ORTModelForTokenClassification,
}


def load_optimum(folder: Path, task: str) -> Any:
    """The bundle as Optimum's model for its task."""
    without_cache = {"use_cache": False} if task == "text-generation" else {}
    return ORT_CLASSES[task].from_pretrained(folder, **without_cache)


def run_optimum(folder: Path, task: str, inputs: Inputs) -> NDArray[Any]:
    """Optimum, called with PyTorch's tensors as a Hugging Face model is."""
    output = load_optimum(folder, task)(**{name: torch.from_numpy(value) for name, value in inputs.items()})
    assert list(output) == ["last_hidden_state" if task == "feature-extraction" else "logits"]
    return output[0].numpy()


def run_onnxruntime(folder: Path, task: str, inputs: Inputs) -> NDArray[Any]:
    """ONNX Runtime with nothing set."""
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, dict(inputs))
    return output


def run_openvino(folder: Path, task: str, inputs: Inputs) -> NDArray[Any]:
    """OpenVINO in float32; left alone, it takes bfloat16 on processors that have it."""
    model = openvino.Core().read_model(folder / "model.onnx")
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (output,) = compiled(dict(inputs)).values()
    return np.array(output)


RUNTIMES: dict[str, Runtime] = {
    "optimum": run_optimum,
    "onnxruntime": run_onnxruntime,
    "openvino": run_openvino,
}
