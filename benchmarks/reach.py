"""From which length of a cache on it pays to gather the entries of a sliding window, and how steps grow with the past.

    python benchmarks/reach.py --out benchmarks/results/reach.json

The checkpoint is that of `decode.py`, dense in float32, with a window of 512 and with its own of 128. Each is exported
twice: with layers that gather their window's entries, and with layers that read their whole cache and mask the rest.
Steps of both take turns in one process at every length of the past, in ONNX Runtime and OpenVINO. The last line of
stdout is the result.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from export import DIMENSIONS, make_checkpoint
from measure import conditions, record

from funnel_export import export
from funnel_export.bundle.load import Bundle
from funnel_export.latency.latency_report import compare, summarize
from funnel_export.latency.traffic import step_bytes
from funnel_export.runtime.load import load_stepper
from funnel_export.spec import reach
from funnel_export.spec.choices import Dtype, Task

PASTS = {512: (256, 512, 1024, 1536, 2048, 4096), 128: (512, 1024, 2048)}
"""Tokens before the steps, by sliding window."""
WARMUP, STEPS = 3, 20
TARGETS = ("onnxruntime", "openvino")
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "numpy", "funnel-export")
WAYS = {"window": reach.WORTH, "whole cache": 1 << 30}
"""From how many windows on the entries are gathered."""


def measure(bundles: Mapping[str, Bundle], target: str, pasts: Sequence[int]) -> list[dict[str, Any]]:
    """Times of single steps after texts, the ratio of the two ways, and the bytes of a step, by length of the text."""
    steppers = {way: load_stepper(bundle, target) for way, bundle in bundles.items()}
    text, tokens = np.random.default_rng(0).integers(1, DIMENSIONS["vocab_size"], size=(1, max(pasts))), [[7]]
    states, seconds = {}, {}
    for past, (way, stepper) in itertools.product(pasts, steppers.items()):
        states[past, way], seconds[past, way] = stepper.new_state(1), []
        stepper.step(states[past, way], text[:, :past])
    for number in range(WARMUP + STEPS):
        for (past, way), state in states.items():
            start = time.perf_counter()
            steppers[way].step(state, np.array(tokens))
            if number >= WARMUP:
                seconds[past, way].append(time.perf_counter() - start)
    bundle = bundles["window"]
    return [
        {
            "past": past,
            "milliseconds": {way: round(1e3 * statistics.median(seconds[past, way]), 2) for way in WAYS},
            "seconds": {way: summarize(seconds[past, way]).model_dump() for way in WAYS},
            "ratio": compare(*(seconds[past, way] for way in WAYS)).model_dump(),
            "growth": compare(seconds[past, "window"], seconds[pasts[0], "window"]).model_dump(),
            "bytes": step_bytes(bundle.family, bundle.architecture, bundle.spec, past),
        }
        for past in pasts
    ]


def main() -> None:
    """Export, time, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    options = parser.parse_args()
    result: dict[str, Any] = {"dimensions": DIMENSIONS, "conditions": conditions(PACKAGES), "windows": {}}
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "checkpoint"
        make_checkpoint(checkpoint)
        config = checkpoint / "config.json"
        for window, pasts in PASTS.items():
            config.write_text(json.dumps(json.loads(config.read_text()) | {"sliding_window": window}))
            bundles = {}
            for way, worth in WAYS.items():
                with patch.object(reach, "WORTH", worth):
                    out = Path(name) / f"{window}-{way.replace(' ', '-')}"
                    task = Task.TEXT_GENERATION_WITH_PAST
                    bundles[way] = export(checkpoint, out, funnel=None, dtype=Dtype.FLOAT32, task=task)
            result["windows"][window] = {target: measure(bundles, target, pasts) for target in TARGETS}
            record(result, options.out)


if __name__ == "__main__":
    main()
