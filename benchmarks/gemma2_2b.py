"""Gemma2-2B shapes with random bfloat16 weights: export without loading them, then run in OpenVINO.

    python benchmarks/gemma2_2b.py --out benchmarks/results/gemma2_2b.json

Needs 6 GB of disk and 16 GB of memory, no download. The last line of stdout is the result as JSON.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import conditions, measured, record

LAYERS, FUNNEL = 26, "6:20:2"


def make_checkpoint(folder: Path) -> int:
    """Write a Gemma2-2B of random weights, nine layers at a time so that it never lies in memory whole."""
    import torch
    from safetensors.torch import save_file
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(num_hidden_layers=LAYERS, architectures=["Gemma2ForCausalLM"], dtype="bfloat16")
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in Gemma2ForCausalLM(config).named_parameters()}
    torch.manual_seed(0)
    shards: dict[str, dict[str, Any]] = {}
    for name, shape in shapes.items():
        shard = f"layers-{int(name.split('.')[2]) // 9}" if ".layers." in name else "rest"
        shards.setdefault(shard, {})[name] = shape
    weight_map: dict[str, str] = {}
    total = 0
    for index, (_, names) in enumerate(sorted(shards.items()), 1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        tensors = {n: torch.randn(s, dtype=torch.float32).mul_(0.03).to(torch.bfloat16) for n, s in names.items()}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    config.save_pretrained(folder)
    return total


EXPORT = """
import json, sys, funnel_export
from measure import peak_gb
checkpoint, out, funnel = sys.argv[1:]
bundle = funnel_export.export(checkpoint, out, funnel=funnel, task="text-generation")
graph_mb = bundle.model.path.stat().st_size / 1e6
print(json.dumps({"peak_gb": peak_gb(), "graph_mb": graph_mb, "dtype": bundle.spec.dtype}))
"""

RUN = """
import json, sys, time, numpy as np
from measure import peak_gb
from funnel_export import load_bundle
from funnel_export.targets.registry import get_target
start = time.perf_counter()
session = get_target("openvino").load(load_bundle(sys.argv[1]).model)
load = time.perf_counter() - start
rows = []
for length in map(int, sys.argv[2].split(",")):
    ids = np.random.default_rng(0).integers(3, 256000, (1, length))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        logits = session.run({"input_ids": ids, "attention_mask": np.ones_like(ids)})["logits"]
        seconds.append(time.perf_counter() - start)
    finite = bool(np.isfinite(logits).all())
    rows.append({"length": length, "median_s": float(np.median(seconds[1:])), "finite": finite})
print(json.dumps({"load_s": load, "precision": session.precision, "device": session.device,
                   "peak_gb": peak_gb(), "runs": rows}))
"""

CHECK = """
import json, sys, funnel_export
from measure import peak_gb
report = funnel_export.check(sys.argv[1], targets=["openvino"], max_length=8)
worst = max(case.metrics.rms_rel for case in report.targets[0].cases)
print(json.dumps({"passed": report.passed, "rms_rel": worst, "limit_rms_rel": report.limit_rms_rel,
                   "floor_rms_rel": report.floor.rms_rel, "lengths_left_out": report.lengths_left_out,
                   "peak_gb": peak_gb()}))
"""


def main() -> None:
    """Make, export, run, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--lengths", default="128,512")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        size = make_checkpoint(checkpoint)
        result: dict[str, Any] = {
            "weights_gb": round(size / 1e9, 2),
            "conditions": conditions(("torch", "transformers", "onnx", "onnxscript", "openvino", "funnel-export")),
        }
        for kind, funnel in (("dense", "none"), ("funnel", FUNNEL)):
            bundle = folder / kind
            result[kind] = {
                "spec": funnel,
                "export": measured(EXPORT, str(checkpoint), str(bundle), funnel),
                "parity": measured(CHECK, str(bundle)),
                "openvino": measured(RUN, str(bundle), options.lengths),
            }
            print(kind, json.dumps(result[kind]), file=sys.stderr)
    ratios = zip(result["funnel"]["openvino"]["runs"], result["dense"]["openvino"]["runs"], strict=True)
    result["funnel_over_dense"] = {str(f["length"]): round(f["median_s"] / d["median_s"], 3) for f, d in ratios}
    record(result, options.out)


if __name__ == "__main__":
    main()
