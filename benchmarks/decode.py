"""Decoding: milliseconds a token with a cache, dense and with funnels, beside other tools.

    python benchmarks/decode.py --out benchmarks/results/decode.json \\
        --genai-python E/bin/python --intel-python E/bin/python --llama-python E/bin/python

The environments have what `constraints-genai.txt`, `constraints-intel.txt` and `constraints-llama.txt` pin; a tool
without an interpreter is left out by name. The checkpoint is that of `export.py`, 12 layers and hidden size 1024.

Each runner has a process of its own. One kind of call reads a prompt into an empty cache: the time to the first
token. The other reads 8 tokens one by one after a text of some tokens. Calls are interleaved: those of float32, and
those of fewer bits with eager float32, which the others are compared with; of long texts one runtime at a time, since
memory is short. All read the same tokens, except llama.cpp, which picks its own: its call reads the last token of the
text again, and then 7 of its own. onnxruntime-genai's text grows by 8 tokens a call. optimum-intel's model keeps its
cache inside, and each call puts it back; what that takes is in the times. The result is written after each part, and
a second run goes on.

Two limits stand beside the times: the bytes that a token reads (weights, caches) over the bandwidth of a matrix-vector
product, and the share of bytes that a funnel needs of the dense model's.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import DIMENSIONS, Exporter, helper, make_checkpoint
from measure import conditions, record
from peers import named, other_runner
from peers_groups import Watch, run_trials_by_group, say

from funnel_export import export
from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.latency.latency_report import Model, compare, summarize
from funnel_export.latency.runner import RunnerSetup
from funnel_export.latency.shape import Shape, steps_of
from funnel_export.latency.traffic import step_bytes
from funnel_export.latency.trials import Runner, RunnerRecord, run_trials
from funnel_export.latency.verdict import distance
from funnel_export.spec.choices import Dtype, Task
from funnel_export.verify.cases import Case

FUNNELS = {"dense": "none", "S=2": "3:9:2", "S=4": "3:9:4"}
"""Half of the layers run on slots."""
PASTS, STEPS, ROUNDS = (512, 1024, 2048), steps_of(4), 11
PROMPT, PROMPT_ROUNDS = 512, 6
TOGETHER = 512
"""Longest text at which all processes of a part live at once."""
MATRIX = (8192, 16384)
"""Of the product that measures the bandwidth: 0.5 GB, far more than any cache of a processor."""
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "numpy", "funnel-export")
OTHERS = {
    "genai": {"float32": "genai", "int4": "genai_int4"},
    "intel": {"float32": "intel", "bfloat16": "intel", "int8": "intel_int8", "int4": "intel_int4"},
    "llama": {"float32": "llama_f32", "int8": "llama_q8_0", "int4": "llama_q4_0"},
}
"""Names in `exporters.py` by tool and precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A model in a runtime in a precision."""

    runtime: str
    precision: str
    model: str = "dense"
    """A key of `FUNNELS`."""
    runner: Runner | None = None
    """None if it cannot run here."""
    missing: str = ""
    """Why it cannot."""
    bundle: Bundle | None = None
    """The bundle that it runs, for the bytes that it reads."""
    weight_bytes: int | None = None
    """Bytes of the weights of another tool's model; all are read in a step."""

    @property
    def is_reference(self) -> bool:
        """Whether other entries are compared with its outputs."""
        return self.runtime == "eager" and self.precision == "float32"

    @property
    def name(self) -> str:
        """For example `openvino bfloat16` or `openvino bfloat16, S=2`."""
        return named(self.runtime, self.model, self.precision)


def export_bundles(checkpoint: Path, folder: Path) -> dict[tuple[str, Dtype], Bundle]:
    """The checkpoint by this package: dense and with each funnel, in both dtypes; weights are hard links."""
    bundles = {}
    for model, funnel in FUNNELS.items():
        for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16):
            say(f"exporting {model} in {dtype}")
            out = folder / f"{model}-{dtype}"
            bundles[model, dtype] = export(
                checkpoint, out, funnel=funnel, dtype=dtype, task=Task.TEXT_GENERATION_WITH_PAST
            )
    return bundles


def own_entries(bundles: Mapping[tuple[str, Dtype], Bundle]) -> list[Entry]:
    """Every runtime that takes this package's bundles; dense and funnels of one run right after each other."""
    full, half = Dtype.FLOAT32, Dtype.BFLOAT16
    kinds = [(None, full), ("onnxruntime", full), ("openvino", full), ("openvino", half)]
    entries = [_own(bundles[model, dtype], model, target) for target, dtype in kinds for model in FUNNELS]
    return [*entries, _own(bundles["dense", half], "dense", None)]


def _own(bundle: Bundle, model: str, target: str | None) -> Entry:
    dtype, runtime = bundle.spec.dtype, target or "eager"
    kind = Model.DENSE if model == "dense" else Model.FUNNEL
    setup = RunnerSetup(bundle=bundle.path, target=target)
    runner = Runner.of(named(runtime, model, dtype), kind, dtype, setup)
    return Entry(runtime=runtime, precision=dtype, model=model, runner=runner, bundle=bundle)


def other_entry(tool: str, precision: str, python: str | None, checkpoint: Path, folder: Path) -> Entry:
    """Another tool, with what its own exporter makes of the checkpoint."""
    exporter = Exporter(label=tool, exporter=OTHERS[tool][precision], python=python, checkpoint=checkpoint)
    say(f"exporting with {tool} in {precision}")
    out = folder / f"{tool}-{precision}"
    why = exporter.why_not(out)
    if why or python is None:
        return Entry(runtime=tool, precision=precision, missing=why)
    runtime = f"{tool}_bf16" if precision == Dtype.BFLOAT16 else tool
    runner = other_runner(named(tool, "dense", precision), runtime, python, out)
    sizes = [file.stat().st_size for file in out.rglob("*") if file.suffix in (".data", ".bin", ".gguf")]
    stored = 2 if precision == Dtype.BFLOAT16 else 1  # float32 on the disk, converted when loaded
    return Entry(runtime=tool, precision=precision, runner=runner, weight_bytes=sum(sizes) // stored)


def bandwidth() -> float:
    """Bytes a second of a float32 matrix-vector product."""
    import torch

    matrix, vector = torch.ones(MATRIX), torch.ones(MATRIX[1])
    times = []
    for _ in range(15):
        start = time.perf_counter()
        matrix @ vector
        times.append(time.perf_counter() - start)
    return matrix.nbytes / statistics.median(times)


def read_bytes(entry: Entry, shape: Shape, dense: Bundle) -> float | None:
    """Bytes that a step of an entry reads; None if it was not exported. All caches of other tools are in float32."""
    past = shape.length + shape.steps // 2
    if entry.bundle is not None:
        made = entry.bundle
        return step_bytes(made.family, made.architecture, made.spec, past, shape.batch)
    if entry.weight_bytes is None:
        return None
    sized = (dense.family, dense.architecture, dense.spec)
    return entry.weight_bytes + step_bytes(*sized, past, shape.batch) - step_bytes(*sized, 0)


def row(entry: Entry, records: Mapping[str, RunnerRecord], shape: Shape, dense: Bundle) -> dict[str, Any]:
    """What one entry showed on a shape."""
    facts: dict[str, Any] = {key: getattr(entry, key) for key in ("name", "runtime", "precision", "model")}
    found = records.get(entry.name)
    if found is None:
        return facts | {"state": entry.missing}
    if found.result.error is not None:
        return facts | {"state": f"failed: {found.result.error}"}
    times, memory = found.times[shape], found.result.memory
    assert memory is not None
    each = [seconds / (shape.steps or 1) for seconds in times.seconds]
    baseline = records.get(named(entry.runtime, "dense", entry.precision))
    reference = records[named("eager", entry.model, "float32")]
    ratio = None
    if entry.model != "dense" and baseline is not None and baseline.result.error is None:
        ratio = compare(times.seconds, baseline.times[shape].seconds).model_dump()
    return {
        **facts,
        "state": "run",
        "host_bytes": memory.host_bytes,
        "first_seconds": times.first,
        **summarize(each).model_dump(),
        "bytes": read_bytes(entry, shape, dense) if shape.steps else None,
        "ratio": ratio,
        "error": distance(times.sample, reference.times[shape].sample) if times.sample else None,
    }


def measure(entries: Sequence[Entry], shape: Shape, rounds: int, dense: Bundle) -> list[dict[str, Any]]:
    """The rows of some entries on one shape: all processes at once, or for long texts a runtime at a time."""
    ids = {shape: Case((shape.tokens,) * shape.batch).tokens(dense.architecture, seed=0)[PortKind.TOKENS].tolist()}
    runners = [entry.runner for entry in entries if entry.runner is not None]
    run = run_trials if shape.length <= TOGETHER else run_trials_by_group
    records = {each.runner.runtime: each for each in run(runners, ids, rounds=rounds, progress=Watch())}
    return [row(entry, records, shape, dense) for entry in entries]


def main() -> None:
    """Export, time, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--past", type=int, nargs="+", default=PASTS, help="tokens before the steps")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted calls")
    parser.add_argument("--folder", help="where the checkpoint and bundles are written and removed again")
    for tool in OTHERS:
        parser.add_argument(f"--{tool}-python", help=f"interpreter of an environment with {tool}")
    options = parser.parse_args()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    pythons = {tool: getattr(options, f"{tool}_python") for tool in OTHERS}
    rounds = {Shape(1, PROMPT): PROMPT_ROUNDS} | {Shape(1, past, STEPS): options.rounds for past in options.past}
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, checkpoint = Path(name), Path(name) / "checkpoint"
        make_checkpoint(checkpoint)
        bundles = export_bundles(checkpoint, folder)
        entries = own_entries(bundles) + [
            other_entry(tool, precision, pythons[tool], checkpoint, folder)
            for tool, kinds in OTHERS.items()
            for precision in kinds
        ]
        facts = conditions(PACKAGES)
        result |= {
            "versions": {tool: helper("versions", python=python) for tool, python in pythons.items() if python},
            "dimensions": DIMENSIONS,
            "funnels": FUNNELS,
        }
        for shape, precise in itertools.product(rounds, (True, False)):
            name = f"{shape}, {'float32' if precise else 'fewer bits'}"
            if name in result.setdefault("parts", {}):
                continue
            say(name)
            chosen = [entry for entry in entries if precise == (entry.precision == "float32") or entry.is_reference]
            found = measure(chosen, shape, rounds[shape], bundles["dense", Dtype.FLOAT32])
            part = {**shape._asdict(), "rounds": rounds[shape], "bandwidth_gb_s": bandwidth() / 1e9, "rows": found}
            result["parts"][name] = part | {"conditions": facts}
            record(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
