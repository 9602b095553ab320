"""Export of other families' largest shapes, and of graphs with a cache, from sparse weight files.

    python benchmarks/shapes.py --out benchmarks/results/shapes.json

Each export runs in a process of its own. Beside the seconds stand the CPU seconds, which other programs on the machine
do not add to. The budget is that of Gemma2's shapes: 60 s and 1 GB.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from measure import attempt, conditions

EXPORTS = (
    ("2B", "6:19:2", "text-generation-with-past"),
    ("Gemma 1, 7B", "7:21:2", "text-generation"),
    ("Gemma 1, 7B", "7:21:2", "text-generation-with-past"),
    ("Gemma 3, 27B", "18:48:2", "text-generation"),
    ("Gemma 3, 27B", "18:48:2", "text-generation-with-past"),
)
"""Shape, funnel and task."""
EXPORT = """
import json, sys, tempfile, time
from pathlib import Path
from measure import peak_gb
from sparse import make_sparse_checkpoint
from funnel_export import export
shape, funnel, task = sys.argv[1:]
with tempfile.TemporaryDirectory() as name:
    size = make_sparse_checkpoint(Path(name) / "checkpoint", shape)
    start, used = time.perf_counter(), time.process_time()
    export(Path(name) / "checkpoint", Path(name) / "bundle", funnel=funnel, dtype="bfloat16", task=task)
    found = {"call_seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - used}
    print(json.dumps({**found, "peak_gb": peak_gb(), "weights_gb": size / 1e9}))
"""


def main() -> None:
    """Measure everything, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    results: list[dict[str, Any]] = []
    for shape, funnel, task in EXPORTS:
        found = attempt(EXPORT, shape, funnel, task)
        results.append({"shape": shape, "funnel": funnel, "task": task, **found})
        print(json.dumps(results[-1]), flush=True)
    packages = ("torch", "transformers", "onnx-ir", "onnxscript", "funnel-export")
    out.write_text(json.dumps({"results": results, "conditions": conditions(packages)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
