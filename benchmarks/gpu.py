"""What a machine with an NVIDIA GPU shows: parity on CUDA, and latency at Gemma2-2B's shapes in bfloat16.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json

Steps, in order of worth. `parity`: small models in three dtypes, dense and with funnels, compiled for every target that
is installed and compared with eager PyTorch. `S=2`, `S=4`: prompts with Gemma2-2B's shapes, random weights and a funnel
over more than half of the layers, beside the dense model: eager PyTorch, torch.compile, and every target on the GPU.
`decode S=2`, `decode S=4`: the same with a cache, the prompt and the steps after it, without torch.compile. `decode
S=2, 4 bits`: with quantized weights, in float32.

The result file is written after each step; a second run goes on with the steps that are missing or failed. Needs 80 GB
of the GPU's memory (75 GB were held on an H200), no network. `--prepare` only exports, which needs no GPU; a run with
`--prepared` times what it exported. Without a GPU: `--shape tiny --device cpu`.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from building import SMALL, make_checkpoint
from gemma2_2b import make_checkpoint as make_gemma2_2b
from measure import attempt, conditions, record

from funnel_export import Quantization, bench, compile_bundle, export, load_bundle
from funnel_export.bundle.load import Bundle
from funnel_export.errors import FunnelExportError
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.targets.base import availability_of
from funnel_export.targets.registry import get_target
from funnel_export.targets.tensorrt.gpu import find_gpu

GPU_TARGETS = ("onnxruntime", "tensorrt", "tensorrt-rtx")
CASES = (
    (Task.TEXT_GENERATION, "dense"),
    (Task.TEXT_GENERATION, "S=2"),
    (Task.TEXT_GENERATION, "S=4"),
    (Task.TOKEN_CLASSIFICATION, "lookahead, S=2"),
)


class Timed(NamedTuple):
    """A funnel that is timed beside the dense model."""

    stride: int
    task: Task = Task.TEXT_GENERATION
    dtype: Dtype = Dtype.BFLOAT16
    quantization: Quantization | None = None


TIMED = {
    "S=2": Timed(2),
    "decode S=2": Timed(2, Task.TEXT_GENERATION_WITH_PAST),
    "S=4": Timed(4),
    "decode S=4": Timed(4, Task.TEXT_GENERATION_WITH_PAST),
    "decode S=2, 4 bits": Timed(2, Task.TEXT_GENERATION_WITH_PAST, Dtype.FLOAT32, Quantization(bits=4)),
}
PARITY = "parity"
STEPS = (PARITY, *TIMED)
LONGEST = 8000
"""Most tokens of a prompt with a cache: the model has 8,192 positions, and steps follow."""
FUNNELS = {"2B": "6:20", "tiny": "2:5"}
PACKAGES = ("torch", "transformers", "onnx", "funnel-export")


def parity(folder: Path) -> dict[str, Any]:
    """Compile and compare small models, side by side, since nothing is timed."""

    def run(case: tuple[Task, str]) -> tuple[str, Any]:
        task, kind = case
        with tempfile.TemporaryDirectory(dir=folder) as name:
            return f"{task}, {kind}", attempt(SMALL, name, task, kind, ",".join(GPU_TARGETS))

    with ThreadPoolExecutor(len(CASES)) as pool:
        return dict(pool.map(run, CASES))


def exported(folder: Path, options: argparse.Namespace, step: str) -> Bundle:
    """The bundle of a step, in a folder: exported, or with `--prepared` as it is there."""
    timed, out = TIMED[step], folder / f"{options.shape} {step}"
    if options.prepared:
        return load_bundle(out)
    checkpoint = folder / f"{options.shape} checkpoint"
    if not checkpoint.exists():
        partial = folder / f"{options.shape} partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        if options.shape == "2B":
            make_gemma2_2b(partial)
        else:
            make_checkpoint(partial, Task.TEXT_GENERATION, Dtype.BFLOAT16)
        partial.rename(checkpoint)
    return export(
        checkpoint,
        out,
        funnel=f"{FUNNELS[options.shape]}:{timed.stride}",
        task=timed.task,
        dtype=timed.dtype,
        logits=Logits.ALL if timed.task.has_past else Logits.LAST,  # with a cache, the caller chooses the tokens
        quantization=timed.quantization,
        overwrite=True,
        progress=say,
    )


def latency(folder: Path, options: argparse.Namespace, step: str) -> dict[str, Any]:
    """Time a funnel beside the dense model, with engines of the targets that need one."""
    bundle = exported(folder, options, step)
    lengths = options.lengths
    if bundle.spec.task.has_past:
        lengths = [min(length, LONGEST) for length in lengths]
    targets, not_built = None, {}
    if options.device == "cuda":
        targets = [name for name in GPU_TARGETS if availability_of(get_target(name)).available]
        not_built = compile_engines(bundle, targets, lengths)
    report = bench(
        bundle,
        targets=targets and [name for name in targets if name not in not_built],
        lengths=lengths,
        rounds=options.rounds,
        max_length=8,  # the reference runs on the CPU; the timed lengths are compared with eager PyTorch on the GPU
        device=options.device,
        progress=say,
    )
    return {"not_built": not_built, "passed": report.passed, "report": report.model_dump(mode="json")}


def compile_engines(bundle: Bundle, targets: Sequence[str], lengths: Sequence[int]) -> dict[str, str]:
    """Compile engines for the targets that run nothing else; the reason for each that failed."""
    profile = f"batch=1,sequence=1:{min(lengths)}:{max(lengths)}"
    profiles = () if bundle.spec.task.has_past else (profile,)  # the default ones take texts of up to 2048 tokens
    failed = {}
    for name in targets:
        if not get_target(name).runs_graphs:
            try:
                for role in bundle.graphs:
                    compile_bundle(bundle, name, graph=role, profiles=profiles, progress=say)
            except FunnelExportError as err:
                failed[name] = str(err)
    return failed


def gpu_facts() -> dict[str, str]:
    """The GPU that is measured."""
    gpu = find_gpu()
    return {"gpu": gpu.name, "compute_capability": gpu.compute_capability, "driver": f"CUDA {gpu.driver}"}


def say(step: str, *_: object) -> None:
    """Show progress on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {step}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the steps that the result file lacks, as long as there is time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file, written after each step")
    parser.add_argument("--folder", type=Path, help="where checkpoint and bundles are written; kept, for a next run")
    parser.add_argument("--shape", choices=FUNNELS, default="2B")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 2048, 8192], help="tokens of a prompt")
    parser.add_argument("--rounds", type=int, default=15, help="counted calls")
    parser.add_argument("--prepare", action="store_true", help="only export to --folder")
    parser.add_argument("--prepared", action="store_true", help="take the bundles that --prepare exported")
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS, help="what to run, in this order")
    parser.add_argument("--minutes", type=float, default=20, help="no step begins after this time")
    options = parser.parse_args()
    if (options.prepare or options.prepared) and options.folder is None:
        parser.error("--prepare and --prepared need --folder")
    if options.prepare:
        options.folder.mkdir(parents=True, exist_ok=True)
        for name in options.steps:
            if name in TIMED:
                exported(options.folder, options, name)
        return
    if options.out is None:
        parser.error("--out is needed")
    end = time.monotonic() + 60 * options.minutes
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    facts = {**conditions(PACKAGES), **(gpu_facts() if options.device == "cuda" else {})}
    versions = {name: availability_of(get_target(name)).version for name in GPU_TARGETS}
    facts |= {name: version for name, version in versions.items() if version}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in options.steps:
            if (name in result and "error" not in result[name]) or time.monotonic() > end:
                continue
            say(name)
            start = time.monotonic()
            try:
                found = parity(folder) if name == PARITY else latency(folder, options, name)
            except FunnelExportError as err:  # the next steps run all the same
                found = {"error": str(err)}
            result[name] = {"conditions": facts, "seconds": round(time.monotonic() - start), **found}
            record(result, options.out)


if __name__ == "__main__":
    main()
