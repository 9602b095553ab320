"""Gemma2-2B shapes with random bfloat16 weights and a cache: a prompt and steps in OpenVINO, plans of TensorRT-RTX.

    python benchmarks/generate_2b.py --out benchmarks/results/generate_2b.json

A funnel is exported; OpenVINO reads a prompt of 512 tokens and generates 32; TensorRT-RTX builds a plan of each graph,
with its two default profiles. Needs 17 GB of disk and 20 GB of memory, no GPU, no network. The result file is written
after each step, and a second run goes on. The last line of stdout is the result as JSON.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from gemma2_2b import FUNNEL, make_checkpoint
from measure import attempt, conditions, measured, record

PROMPT, STEPS = 512, 32
PACKAGES = ("torch", "transformers", "onnx", "openvino", "tensorrt-rtx", "funnel-export")
EXPORT = """
import json, sys, funnel_export
from measure import peak_gb
bundle = funnel_export.export(sys.argv[1], sys.argv[2], funnel=sys.argv[3], task="text-generation-with-past")
print(json.dumps({"peak_gb": peak_gb(), "dtype": bundle.spec.dtype, "graphs": list(bundle.graphs)}))
"""
RUN = """
import json, sys, time, numpy as np
from measure import peak_gb
from funnel_export import load_bundle
from funnel_export.runtime.load import load_stepper
folder, prompt, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
start = time.perf_counter()
stepper = load_stepper(load_bundle(folder), "openvino")
times = [time.perf_counter() - start]
state = stepper.new_state(1)
token, finite = np.random.default_rng(0).integers(3, 256000, (1, prompt)), True
for _ in range(1 + steps):
    start = time.perf_counter()
    logits = stepper.step(state, token)
    times.append(time.perf_counter() - start)
    finite = finite and bool(np.isfinite(logits).all())
    token = logits[:, -1:].argmax(-1)
print(json.dumps({"load_s": times[0], "prompt_s": times[1], "median_step_s": float(np.median(times[2:])),
                   "finite": finite, "cache_gb": state.nbytes / 1e9, "peak_gb": peak_gb()}))
"""
BUILD = """
import json, sys
from building import RTX, build
from funnel_export import load_bundle
found = build(load_bundle(sys.argv[1]), RTX, sys.argv[2])
found.pop("course", None)
print(json.dumps(found))
"""


def main() -> None:
    """Make, export, run, build, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file, written after each step")
    parser.add_argument("--folder", type=Path, help="where checkpoint and bundle are written; kept, for a next run")
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    result |= {"funnel": FUNNEL, "prompt": PROMPT, "steps": STEPS, "conditions": conditions(PACKAGES)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        checkpoint, bundle = folder / "checkpoint", folder / "bundle"
        if not checkpoint.exists():
            checkpoint.mkdir(parents=True)
            result["weights_gb"] = round(make_checkpoint(checkpoint) / 1e9, 2)
        result["export"] = measured(EXPORT, str(checkpoint), str(bundle), FUNNEL)
        record(result, options.out)
        if "openvino" not in result:
            result["openvino"] = attempt(RUN, str(bundle), str(PROMPT), str(STEPS))
            record(result, options.out)
        plans = result.setdefault("plans", {})
        for graph in result["export"]["graphs"]:
            if plans.get(graph, {}).get("state") != "built":
                plans[graph] = attempt(BUILD, str(bundle), graph)
                shutil.rmtree(bundle / "engines", ignore_errors=True)
                record(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
