"""Gemma2-2B's shapes in 4 bits: time and memory of `quantize`, then a prompt and steps in OpenVINO.

    python benchmarks/quantize_2b.py --out benchmarks/results/quantize_2b.json

The checkpoint has random weights, in bfloat16 on the disk. It is exported with a cache, dense and with a funnel, and
each bundle is quantized by the command line in a process of its own, and decodes in OpenVINO: a prompt of 512 tokens,
read in chunks, and 32 tokens one by one. Activations are exact. The result is written after each step, and a second run
goes on. Needs 12 GB of disk and 6 GB of memory, no network.

Memory is looked at ten times a second: anonymous memory belongs to the process alone; the rest are pages of mapped
files, which the system can take back. `peak_gb` is VmHWM, the most of both together.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from gemma2_2b import FUNNEL, make_checkpoint
from generate_2b import EXPORT
from measure import attempt, conditions, measured, record
from memory import Watch, forget

FUNNELS = {"dense": "none", "funnel": FUNNEL}
BITS, PROMPT, CHUNK, STEPS = 4, 512, 512, 32
PACKAGES = ("torch", "transformers", "onnx", "openvino", "numpy", "funnel-export")
RUN = """
import json, sys, time, numpy as np
from measure import peak_gb
from funnel_export import load_bundle
from funnel_export.runtime.load import load_stepper
folder, prompt, chunk, steps = sys.argv[1], *map(int, sys.argv[2:])
start = time.perf_counter()
stepper = load_stepper(load_bundle(folder), "openvino")
load, loaded_gb = time.perf_counter() - start, peak_gb()
state = stepper.new_state(1)
ids = np.random.default_rng(0).integers(3, 256000, (1, prompt))
start, finite, times = time.perf_counter(), True, []
for at in range(0, prompt, chunk):
    logits = stepper.step(state, ids[:, at : at + chunk])
read = time.perf_counter() - start
for _ in range(steps):
    token = logits[:, -1:].argmax(-1)
    start = time.perf_counter()
    logits = stepper.step(state, token)
    times.append(time.perf_counter() - start)
    finite = finite and bool(np.isfinite(logits).all())
session = list(stepper.sessions.values())[-1]
print(json.dumps({"load_s": load, "loaded_gb": loaded_gb, "prompt_s": read, "tokens_per_s": steps / sum(times),
                   "median_step_s": float(np.median(times)), "precision": session.precision,
                   "device": session.device, "finite": finite, "peak_gb": peak_gb()}))
"""


def quantize(bundle: Path, out: Path) -> dict[str, Any]:
    """Run `funnel-export quantize`: seconds, those of its processors, memory, and bytes of the files that it wrote."""
    load = round(os.getloadavg()[0], 1)
    forget([file for file in bundle.rglob("*") if file.is_file()])
    command = [sys.executable, "-m", "funnel_export", "quantize", str(bundle), str(out), "--bits", str(BITS)]
    start, before = time.perf_counter(), _processor_seconds()
    with Watch("funnel_export quantize") as watch:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, used = time.perf_counter() - start, _processor_seconds() - before
    peak = {key: watch.peak()[key] for key in ("peak_gb", "anonymous_gb", "mapped_gb", "largest_anonymous_gb")}
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        **peak,
        "bytes": size,
        "load_before": load,
    }


def _processor_seconds() -> float:
    """Of all children that have ended: on a busy machine they say more than the seconds that went by."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Make, export, quantize, run, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file, written after each step")
    parser.add_argument("--folder", type=Path, help="where checkpoint and bundles are written; kept, for a next run")
    parser.add_argument("--models", nargs="+", default=list(FUNNELS), choices=list(FUNNELS))
    parser.add_argument("--prepare", action="store_true", help="only make the checkpoint and the bundles in --folder")
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    result |= {"funnels": FUNNELS, "bits": BITS, "prompt": PROMPT, "steps": STEPS, "conditions": conditions(PACKAGES)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        checkpoint = folder / "checkpoint"
        if not checkpoint.exists():
            checkpoint.mkdir(parents=True)
            make_checkpoint(checkpoint)
        result["weights_gb"] = round(sum(file.stat().st_size for file in checkpoint.glob("*.safetensors")) / 1e9, 2)
        for model in options.models:
            bundle, small = folder / model, folder / f"{model}-{BITS}"
            found = result.setdefault(model, {})
            if not bundle.exists():
                measured(EXPORT, str(checkpoint), str(bundle), FUNNELS[model])
            if options.prepare:
                continue
            if "quantize" not in found or not small.exists():
                shutil.rmtree(small, ignore_errors=True)
                found["quantize"] = quantize(bundle, small)
                record(result, options.out)
            if "finite" not in found.get("openvino", {}):
                found["openvino"] = attempt(RUN, str(small), str(PROMPT), str(CHUNK), str(STEPS))
                record(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
