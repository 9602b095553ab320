"""Reads the engine inspector's report on a plan: layers by kind, and tensors by dtype.

The network's types do not prove the plan's precision: plans meant for 16 bits have been shipped that compute in 32.
"""

import json
import mmap
import re
from collections import Counter
from pathlib import Path
from typing import Any

from funnel_export.errors import TargetRefusedError, TargetUnavailableError
from funnel_export.spec.choices import Dtype
from funnel_export.targets.tensorrt.gpu import find_gpu

WORDS = {
    "bfloat16": re.compile(r"\b(BFloat16|BF16)\b", re.IGNORECASE),
    "float16": re.compile(r"\b(Half|FP16|Float16)\b", re.IGNORECASE),
    "float32": re.compile(r"\b(Float|FP32|Float32)\b", re.IGNORECASE),
}
"""Names of dtypes in the reports of several versions."""


def inspect_plan(trt: Any, logger: Any, plan: Path, dtype: Dtype) -> dict[str, Any] | None:
    """Layers by kind and tensors by dtype of a plan that was just built; None without a GPU that can load it.

    Raises:
        TargetRefusedError: if no tensor of the plan has this dtype.
    """
    try:
        find_gpu()
    except TargetUnavailableError:
        return None
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # safe, since this process has just built the plan
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:  # a plan for other GPUs than this one
        return None
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    found = summarise(json.loads(information))
    check_precision(found["tensors"], dtype)
    return found


def summarise(information: dict[str, Any]) -> dict[str, Any]:
    """Counts of layers by kind and of tensors by dtype, from the inspector's JSON; empty if the plan has only names."""
    layers = [layer for layer in information.get("Layers", []) if isinstance(layer, dict)]
    tensors = [tensor for layer in layers for end in ("Inputs", "Outputs") for tensor in layer.get(end, [])]
    return {
        "layers": dict(Counter(str(layer.get("LayerType", "unknown")) for layer in layers).most_common()),
        "tensors": dict(Counter(filter(None, map(_dtype, tensors))).most_common()),
    }


def check_precision(tensors: dict[str, int], dtype: Dtype) -> None:
    """Raise `TargetRefusedError` if the report lists tensors, but none in the bundle's dtype."""
    if tensors and dtype not in tensors:
        raise TargetRefusedError(
            "the plan does not compute in the bundle's dtype",
            got=", ".join(f"{count} tensors in {name}" for name, count in tensors.items()),
            wanted=f"some in {dtype}",
            hint="report this with the versions that `funnel-export doctor` prints",
        )


def _dtype(tensor: dict[str, Any]) -> str | None:
    """A tensor's floating-point dtype; None for integers and unknown dtypes."""
    said = " ".join(str(value) for key, value in tensor.items() if "datatype" in key.lower())
    return next((name for name, words in WORDS.items() if words.search(said)), None)
