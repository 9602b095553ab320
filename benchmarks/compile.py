"""Engines of every task, dtype and kind of funnel, and TensorRT-RTX at Gemma2-2B's shapes.

    python benchmarks/compile.py --out benchmarks/results/compile.json --limit /sys/fs/cgroup/memory

Two parts. `small`: a Gemma2 of 7 million random weights, for every task in three dtypes, dense and with funnels,
compiled for TensorRT-RTX, ONNX Runtime and OpenVINO; the engines of the last two are compared with eager PyTorch. What
is not built is recorded with its reason. `large`: Gemma2-2B's shapes with random bfloat16 weights, dense and with a
funnel, for TensorRT-RTX; time, and the memory of the process that builds. With `--limit` the one with a funnel is built
once more in a control group that may hold twice the weights, mapped and written files included; this needs the rights
to make groups.

Each build of `large`, and each task with each kind of funnel of `small`, is a process of its own, one after the other.
The weights of `large` are taken out of the system's cache before each build. Needs 18 GB of disk and 16 GB of memory;
no GPU, no network. The last line of stdout is the result as JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from building import DIMENSIONS, KINDS, LONGEST, SMALL, TARGETS
from gemma2_2b import FUNNEL, make_checkpoint
from measure import attempt, conditions, record
from memory import Limit, forget

from funnel_export.spec.choices import Dtype, Task

EXPORT = """
import json, sys, funnel_export
bundle = funnel_export.export(sys.argv[1], sys.argv[2], funnel=sys.argv[3], task="text-generation")
print(json.dumps([weight.file for weight in bundle.manifest.weights]))
"""

LARGE = """
import json, os, sys
from pathlib import Path
from building import RTX, build
from funnel_export import load_bundle
if sys.argv[2]:
    Path(sys.argv[2]).write_text(str(os.getpid()))
print(json.dumps(build(load_bundle(sys.argv[1]), RTX)))
"""


def build_all_small(folder: Path) -> dict[str, Any]:
    """Every task with every kind of funnel: in each dtype, for each target."""
    results: dict[str, Any] = {}
    for task in (task for task in Task if not task.has_past):
        for kind in KINDS:
            with tempfile.TemporaryDirectory(dir=folder) as name:
                found = attempt(SMALL, name, task, kind, ",".join(TARGETS))
            found.pop("seconds", None)
            row = {dtype: dict.fromkeys(TARGETS, found) for dtype in Dtype} if "state" in found else found
            results[f"{task}, {kind}"] = row
            print(task, kind, json.dumps(row), file=sys.stderr)
    funnels = {kind: spec and spec.to_dict() for kind, spec in KINDS.items()}
    return {"dimensions": DIMENSIONS, "kinds": funnels, "longest_compared": LONGEST, "results": results}


def build_large(bundle: Path, weights: list[Path], limit: Path | None) -> dict[str, Any]:
    """Compile one bundle for TensorRT-RTX, in a control group inside `limit` if there is one, and remove the engine."""
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    forget(weights)
    load = round(os.getloadavg()[0], 2)
    size = sum(file.stat().st_size for file in weights)
    with nullcontext() if limit is None else Limit(limit, 2 * size) as group:
        found = attempt(LARGE, str(bundle), "" if group is None else str(group.processes))
        under = {} if group is None else {"limit": group.facts()}
    shutil.rmtree(bundle / "engines", ignore_errors=True)
    return {"weights_bytes": size, "load_before": load, **found, **under}


def build_all_large(folder: Path, checkpoint: Path | None, limit: Path | None) -> dict[str, Any]:
    """Dense, with a funnel, and that once more with little memory."""
    if checkpoint is None:
        checkpoint = folder / "checkpoint"
        checkpoint.mkdir()
        make_checkpoint(checkpoint)
    results: dict[str, Any] = {}
    for kind, funnel in (("dense", "none"), ("funnel", FUNNEL)):
        bundle = folder / kind
        exported = subprocess.run(
            [sys.executable, "-c", EXPORT, str(checkpoint), str(bundle), funnel],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        weights = [bundle / file for file in json.loads(exported.stdout.splitlines()[-1])]
        results[kind] = build_large(bundle, weights, None)
        print(kind, json.dumps(results[kind]), file=sys.stderr)
        if kind == "funnel":
            limited = {"state": "not run: no --limit was given"} if limit is None else None
            results["funnel, limited"] = limited or build_large(bundle, weights, limit)
            print("limited", json.dumps(results["funnel, limited"]), file=sys.stderr)
    return {"funnel": FUNNEL, "dtype": "bfloat16", "results": results}


def main() -> None:
    """Build, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file; what it has of the other part is kept")
    parser.add_argument("--part", choices=("small", "large"), help="build one part only")
    parser.add_argument("--folder", type=Path, help="where everything is written and removed again")
    parser.add_argument("--checkpoint", type=Path, help="a Gemma2-2B in bfloat16, else one is made")
    parser.add_argument("--limit", type=Path, help="folder of control groups in which memory can be limited")
    options = parser.parse_args()
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    packages = (
        "torch",
        "transformers",
        "onnx",
        "tensorrt-rtx",
        "polygraphy",
        "onnxruntime",
        "openvino",
        "funnel-export",
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        for part in ("small", "large") if options.part is None else (options.part,):
            load = f"{os.getloadavg()[0]:.1f}"
            if part == "small":
                found = build_all_small(Path(name))
            else:
                found = build_all_large(Path(name), options.checkpoint, options.limit)
            result[part] = {"conditions": {**conditions(packages), "load before": load}, **found}
    record(result, options.out)


if __name__ == "__main__":
    main()
