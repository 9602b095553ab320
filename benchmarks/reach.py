"""From which length of a cache on it pays to gather the entries of a sliding window before the attention.

    python benchmarks/reach.py --out benchmarks/results/reach.json

The checkpoint is that of `decode.py` with a window of 512, dense in float32. It is exported twice: with layers that
gather their window's entries, and with layers that read their whole cache and mask the rest. Steps of the two take
turns in one process, in ONNX Runtime and OpenVINO. The last line of stdout is the result.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from export import DIMENSIONS, make_checkpoint
from measure import conditions, record

from funnel_export import export
from funnel_export.latency.latency_report import compare, summarize
from funnel_export.runtime.load import load_stepper
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec import reach
from funnel_export.spec.choices import Dtype, Task

WINDOW, PASTS = 512, (256, 512, 1024, 1536, 2048, 4096)
WARMUP, STEPS = 3, 20
TARGETS = ("onnxruntime", "openvino")
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "numpy", "funnel-export")
WAYS = {"window": 4, "whole cache": 1 << 30}
"""From how many windows on the entries are gathered."""


def measure(steppers: Mapping[str, Stepper], past: int) -> dict[str, Any]:
    """Times of one step after a text of `past` tokens, and the ratio of the two ways."""
    text, tokens = np.random.default_rng(0).integers(1, DIMENSIONS["vocab_size"], size=(1, past)), np.array([[7]])
    states = {}
    for way, stepper in steppers.items():
        states[way] = stepper.new_state(1)
        stepper.step(states[way], text)
    seconds: dict[str, list[float]] = {way: [] for way in steppers}
    for number in range(WARMUP + STEPS):
        for way, stepper in steppers.items():
            start = time.perf_counter()
            stepper.step(states[way], tokens)
            if number >= WARMUP:
                seconds[way].append(time.perf_counter() - start)
    gathered, whole = seconds["window"], seconds["whole cache"]
    return {
        "past": past,
        "milliseconds": {way: round(1e3 * statistics.median(each), 2) for way, each in seconds.items()},
        "seconds": {way: summarize(each).model_dump() for way, each in seconds.items()},
        "ratio": compare(gathered, whole).model_dump(),
    }


def main() -> None:
    """Export, time, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    options = parser.parse_args()
    result: dict[str, Any] = {"dimensions": DIMENSIONS | {"sliding_window": WINDOW}, "conditions": conditions(PACKAGES)}
    with tempfile.TemporaryDirectory() as name:
        checkpoint, bundles = Path(name) / "checkpoint", {}
        make_checkpoint(checkpoint)
        config = checkpoint / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"sliding_window": WINDOW}))
        for way, worth in WAYS.items():
            with patch.object(reach, "WORTH", worth):
                out = Path(name) / way.replace(" ", "-")
                bundles[way] = export(
                    checkpoint, out, funnel=None, dtype=Dtype.FLOAT32, task=Task.TEXT_GENERATION_WITH_PAST
                )
        for target in TARGETS:
            steppers = {way: load_stepper(bundle, target) for way, bundle in bundles.items()}
            result[target] = [measure(steppers, past) for past in PASTS]
            record(result, options.out)


if __name__ == "__main__":
    main()
