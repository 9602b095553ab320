"""What the engine inspector tells of a plan: its layers by kind, and whether its tensors have the graph's dtype.

Engines that were to compute in 16 bits and computed in 32 have been shipped, which the network's types do not show.
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
"""How inspectors of several versions write the dtypes of tensors."""


def inspect_plan(trt: Any, logger: Any, plan: Path, dtype: Dtype) -> dict[str, Any] | None:
    """Layers by kind and tensors by dtype of a plan that was just built; None where there is no GPU to load it.

    Raises:
        TargetRefusedError: if the plan does not compute in this dtype.
    """
    try:
        find_gpu()
    except TargetUnavailableError:
        return None
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # it was built a moment ago, here
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        engine = runtime.deserialize_cuda_engine(content)
    if engine is None:  # a plan for other GPUs than this one
        return None
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    found = summarise(json.loads(information))
    check_precision(found["tensors"], dtype)
    return found


def summarise(information: dict[str, Any]) -> dict[str, Any]:
    """Layers by kind and their tensors by dtype, from the inspector's JSON; only names, if no more was kept."""
    layers = [layer for layer in information.get("Layers", []) if isinstance(layer, dict)]
    tensors = [tensor for layer in layers for end in ("Inputs", "Outputs") for tensor in layer.get(end, [])]
    return {
        "layers": dict(Counter(str(layer.get("LayerType", "unknown")) for layer in layers).most_common()),
        "tensors": dict(Counter(filter(None, map(_dtype, tensors))).most_common()),
    }


def check_precision(tensors: dict[str, int], dtype: Dtype) -> None:
    """Raise `TargetRefusedError` if tensors are known, and none of them has the bundle's dtype."""
    if tensors and dtype not in tensors:
        raise TargetRefusedError(
            "the plan does not compute in the bundle's dtype",
            got=", ".join(f"{count} tensors in {name}" for name, count in tensors.items()),
            wanted=f"some in {dtype}",
            hint="report this with the versions that `funnel-export doctor` prints",
        )


def _dtype(tensor: dict[str, Any]) -> str | None:
    """A tensor's floating dtype; None for integers and what is not known."""
    said = " ".join(str(value) for key, value in tensor.items() if "datatype" in key.lower())
    return next((name for name, words in WORDS.items() if words.search(said)), None)
