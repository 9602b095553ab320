"""What it saves that ONNX Runtime makes one operation of each norm.

    python benchmarks/norms.py --out benchmarks/results/norms.json

The checkpoint is that of `decode.py`, dense, in float32 and in 4 bits with rounded activations. Each is exported twice:
with norms that divide by the root mean square, which the runtimes fuse, and with norms that multiply with its
reciprocal, as torch translates them. Prompts and single steps of both take turns in one process. The last line of
stdout is the result.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
from decode_entries import FORMS, ROUNDED
from export import DIMENSIONS, make_checkpoint
from measure import conditions, record

from funnel_export import compile_bundle, export
from funnel_export.exporter import assemble
from funnel_export.latency.latency_report import compare, summarize
from funnel_export.runtime.load import load_stepper
from funnel_export.runtime.stepper import Stepper
from funnel_export.spec.choices import Task

WAYS = {"divide": assemble.RULES, "multiply": Mock()}
PAST, PROMPT = 512, 128
WARMUP, STEPS, PROMPTS = 3, 100, 20
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "numpy", "funnel-export")


def measure(steppers: Mapping[str, Stepper]) -> dict[str, Any]:
    """Milliseconds of a step after a text, and of a prompt, with the ratio of the two ways."""
    text = np.random.default_rng(0).integers(1, DIMENSIONS["vocab_size"], size=(1, PAST))
    states = {way: stepper.new_state(1) for way, stepper in steppers.items()}
    for way, stepper in steppers.items():
        stepper.step(states[way], text)
    calls: dict[str, tuple[int, Callable[[str], object]]] = {
        f"a token after {PAST}": (STEPS, lambda way: steppers[way].step(states[way], text[:, :1])),
        f"a prompt of {PROMPT}": (
            PROMPTS,
            lambda way: steppers[way].step(steppers[way].new_state(1), text[:, :PROMPT]),
        ),
    }
    return {name: _timed(count, call) for name, (count, call) in calls.items()}


def _timed(count: int, call: Callable[[str], object]) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(WARMUP + count):
        for way, times in seconds.items():
            start = time.perf_counter()
            call(way)
            if number >= WARMUP:
                times.append(time.perf_counter() - start)
    return {
        "milliseconds": {way: round(1e3 * statistics.median(times), 2) for way, times in seconds.items()},
        "seconds": {way: summarize(times).model_dump() for way, times in seconds.items()},
        "ratio": compare(*(seconds[way] for way in WAYS)).model_dump(),
    }


def loaded(checkpoint: Path, folder: Path, form: str) -> Iterator[tuple[str, dict[str, Stepper]]]:
    """For each target the two models; in 4 bits as engines that round activations."""
    bundles = {}
    for way, rules in WAYS.items():
        with patch.object(assemble, "RULES", rules):
            task, made = Task.TEXT_GENERATION_WITH_PAST, FORMS[form]
            out = folder / f"{form}-{way}"
            bundles[way] = export(checkpoint, out, funnel=None, task=task, quantization=made.quantization)
    for target, options in ROUNDED.items():
        engines = [] if FORMS[form].quantization is None else [f"rounded-{target}"]
        for bundle, name in itertools.product(bundles.values(), engines):
            compile_bundle(bundle, target, options=options, name=name)
        yield target, {way: load_stepper(bundle, target, engines) for way, bundle in bundles.items()}


def main() -> None:
    """Export, time, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    options = parser.parse_args()
    result: dict[str, Any] = {"dimensions": DIMENSIONS, "conditions": conditions(PACKAGES), "forms": {}}
    with tempfile.TemporaryDirectory() as name:
        checkpoint = Path(name) / "checkpoint"
        make_checkpoint(checkpoint)
        for form in ("float32", "int4"):
            found = result["forms"][form] = {}
            for target, steppers in loaded(checkpoint, Path(name), form):
                found[target] = measure(steppers)
                for stepper in steppers.values():
                    stepper.close()
            record(result, options.out)


if __name__ == "__main__":
    main()
