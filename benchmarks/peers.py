"""Latency of this package beside other people's runtimes, on one checkpoint and the same prompts, interleaved.

    python benchmarks/peers.py --out benchmarks/results/peers.json \\
        --genai-python venv-genai/bin/python --optimum-python venv-optimum/bin/python

The others have environments of their own, since they pin other versions; one that is missing is recorded as not run:

    python -m venv venv-genai
    venv-genai/bin/pip install --requirement benchmarks/constraints-genai.txt
    python -m venv venv-optimum
    venv-optimum/bin/pip install --requirement benchmarks/constraints-optimum.txt

The checkpoint is that of `export.py`. Each shape is a trial of its own, in fresh processes; every runner reads a
prompt, that is, it computes the logits of each row's last token, without sampling and with the settings that its
runtime has by default. optimum-onnx alone computes those of all tokens: its exporter makes no graph that does less.

Memory: a process holds its weights (0.8 GB in float32, once more where a runtime packs them) and keeps what its largest
call took: at 4x1536 a tensor of attention scores is 0.3 GB. Up to `--together` tokens a batch all processes live at
once; above, one group of them at a time, see `peers_groups.py`.

All shapes take over an hour. The result is written after each; with `--resume` a run that was cut off does those that
are missing. The last line of stdout is the result as JSON. Needs 6 GB of disk, no network.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from export import DIMENSIONS, QUIET, Exporter, helper
from measure import HERE, conditions, measured, record
from peers_groups import Watch, default_rounds, run_trials_by_group, say
from peers_judging import LIMITS, judge, with_agreement

from funnel_export import FunnelSpec, load_bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.families.architecture import Architecture
from funnel_export.families.gemma2 import GEMMA2
from funnel_export.latency.latency_report import Model, summarize
from funnel_export.latency.operations import predicted_ratio
from funnel_export.latency.runner import RunnerSetup
from funnel_export.latency.shape import Shape
from funnel_export.latency.trials import Runner, RunnerRecord, run_trials
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.verify.cases import Case

FUNNELS = {"S=2": "3:9:2", "S=4": "3:10:4"}
"""S=2 over half of the 12 layers, S=4 over 7 of them."""
TOGETHER = 512
EXPORTERS = {"genai": "genai_last", "optimum": "optimum"}
"""Names in `exporters.py` by runtime."""
PACKAGES = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino", "funnel-export")
MAKE_CHECKPOINT = """
import json, pathlib, sys, export
print(json.dumps({"weights_bytes": export.make_checkpoint(pathlib.Path(sys.argv[1]))}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Peer:
    """A model in a runtime in a dtype."""

    runtime: str
    model: str
    """`dense` or a key of `FUNNELS`."""
    dtype: Dtype
    runner: Runner | None
    """None if it cannot run here."""
    missing: str = ""
    """Why it cannot."""

    @property
    def name(self) -> str:
        """For example `openvino bfloat16` or `openvino bfloat16, S=2`."""
        return named(self.runtime, self.model, self.dtype)


def named(runtime: str, model: str, precision: str) -> str:
    """A runner in words; dense unless it says otherwise."""
    return f"{runtime} {precision}" + ("" if model == "dense" else f", {model}")


def own(runtime: str, model: str, setup: RunnerSetup, dtype: Dtype) -> Peer:
    """A bundle of this package in PyTorch or in a target."""
    kind = Model.DENSE if model == "dense" else Model.FUNNEL
    runner = Runner.of(named(runtime, model, dtype), kind, dtype, setup)
    return Peer(runtime=runtime, model=model, dtype=dtype, runner=runner)


def own_peers(bundles: Mapping[tuple[str, Dtype], Path]) -> list[Peer]:
    """Every runtime that takes this package's bundles; dense and funnels of one run right after each other."""
    full, half = Dtype.FLOAT32, Dtype.BFLOAT16
    models = ("dense", *FUNNELS)
    dense = bundles["dense", full]
    return [
        *(own("eager", m, RunnerSetup(bundle=bundles[m, full], dtype=full), full) for m in models),
        own("eager", "dense", RunnerSetup(bundle=dense, dtype=half), half),
        *(own("torch.compile", "dense", RunnerSetup(bundle=dense, dtype=d, compiled=True), d) for d in (full, half)),
        *(own("onnxruntime", m, RunnerSetup(bundle=bundles[m, full], target="onnxruntime"), full) for m in models),
        *(
            own("openvino", m, RunnerSetup(bundle=bundles[m, d], target="openvino"), d)
            for d in (full, half)
            for m in models
        ),
    ]


def export_bundles(checkpoint: Path, folder: Path) -> dict[tuple[str, Dtype], Path]:
    """The checkpoint by this package: dense and with each funnel, in both dtypes; weights are hard links."""
    bundles = {}
    for model, funnel in {"dense": "none", **FUNNELS}.items():
        for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16):
            out = folder / f"{model}-{dtype}"
            say(f"exporting {out.name}")
            command = ["-m", "funnel_export", "export", str(checkpoint), str(out), "--funnel", funnel, "--dtype", dtype]
            command += ["--logits", Logits.LAST]
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            bundles[model, dtype] = out
    return bundles


def other_peer(name: str, python: str | None, checkpoint: Path, folder: Path) -> Peer:
    """A runtime of another environment, with what its own exporter makes of the checkpoint."""
    exporter = Exporter(label=name, exporter=EXPORTERS[name], python=python, checkpoint=checkpoint)
    facts: dict[str, Any] = {"runtime": name, "model": "dense", "dtype": Dtype.FLOAT32}
    say(f"exporting with {name}")
    out = folder / name
    why = exporter.why_not(out)
    if why or python is None:
        return Peer(**facts, runner=None, missing=why)
    return Peer(**facts, runner=other_runner(named(name, "dense", Dtype.FLOAT32), name, python, out))


def other_runner(name: str, tool: str, python: str, folder: Path) -> Runner:
    """A runner in another tool's environment: `peer.py` on what its exporter made."""
    return Runner(
        runtime=name,
        model=Model.DENSE,
        dtype=Dtype.FLOAT32,
        request={"runtime": tool, "folder": str(folder)},
        program=(str(HERE / "peer.py"),),
        python=python,
    )


def row(peer: Peer, record: RunnerRecord | None, shape: Shape) -> dict[str, Any]:
    """What one runner showed at one shape."""
    facts: dict[str, Any] = {key: getattr(peer, key) for key in ("name", "runtime", "model", "dtype")}
    if record is None:
        return facts | {"state": peer.missing}
    result = record.result
    if result.error is not None:
        return facts | {"state": f"failed: {result.error}"}
    times = record.times[shape]
    assert result.memory is not None
    return {
        **facts,
        "state": "run",
        "device": result.device,
        "precision": result.precision,
        "load_seconds": result.load_seconds,
        "host_bytes": result.memory.host_bytes,
        "first_seconds": times.first,
        "seconds": times.seconds,
        **summarize(times.seconds).model_dump(),
        "sample": times.sample,
    }


def measure_shape(
    peers: Sequence[Peer], architecture: Architecture, shape: Shape, rounds: int, together: bool
) -> dict[str, Any]:
    """One shape: what each runner showed."""
    ids = Case((shape.length,) * shape.batch).tokens(architecture, seed=0)[PortKind.TOKENS].tolist()
    runners = [peer.runner for peer in peers if peer.runner is not None]
    say(str(shape))
    watch, load = Watch(), os.getloadavg()[0]
    records = (
        run_trials(runners, {shape: ids}, rounds=rounds, progress=watch)
        if together
        else run_trials_by_group(runners, {shape: ids}, rounds=rounds, progress=watch)
    )
    by_name = {record.runner.runtime: record for record in records}
    rows = with_agreement([row(peer, by_name.get(peer.name), shape) for peer in peers])
    return {
        "batch": shape.batch,
        "length": shape.length,
        "rounds": rounds,
        "together": together,
        "load_before": round(load, 1),
        "least_memory_left_gb": round(watch.least_gb, 1),
        "rows": rows,
    }


def predicted(architecture: Architecture, length: int) -> dict[str, float]:
    """Operations of each funnel's prompt over those of the dense model's."""
    prompt = ExportSpec(task=Task.TEXT_GENERATION, dtype=Dtype.FLOAT32, logits=Logits.LAST)
    specs = {model: replace(prompt, funnel=FunnelSpec.parse(funnel)) for model, funnel in FUNNELS.items()}
    return {model: predicted_ratio(GEMMA2, architecture, spec, length) for model, spec in specs.items()}


def by_tokens(shape: Shape) -> tuple[int, Shape]:
    """The order of shapes: by the tokens of a batch."""
    return shape.batch * shape.length, shape


def kept_shapes(out: Path, result: Mapping[str, Any]) -> dict[Shape, dict[str, Any]]:
    """The shapes that a result file already has.

    Raises:
        ValueError: if they were measured under other conditions than `result` names.
    """
    earlier: dict[str, Any] = json.loads(out.read_text())
    differ = [key for key in result if key != "shapes" and earlier.get(key) != result[key]]
    if differ:
        message = (
            f"cannot resume {out}, got: other {', '.join(differ)} than now, wanted: the same; try without --resume"
        )
        raise ValueError(message)
    return {Shape(shape["batch"], shape["length"]): shape for shape in earlier["shapes"]}


def parse_rounds(text: str) -> tuple[Shape | None, int]:
    """`5` for every shape, `4x1536=5` for one."""
    shape, _, rounds = text.rpartition("=")
    batch, _, length = shape.partition("x")
    return (Shape(int(batch), int(length)) if shape else None), int(rounds)


def main() -> None:
    """Export, time shape by shape, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--resume", action="store_true", help="keep the shapes that the result file has")
    parser.add_argument("--length", type=int, nargs="+", default=[128, 512, 1536], help="tokens of a row")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="rows of a batch")
    parser.add_argument(
        "--rounds", type=parse_rounds, nargs="+", default=[], help="counted calls: 5, or 4x1536=5; default 31 down to 6"
    )
    parser.add_argument(
        "--together", type=int, default=TOGETHER, help="most tokens at which all processes live at once"
    )
    parser.add_argument("--genai-python", help="interpreter of an environment with onnxruntime-genai")
    parser.add_argument("--optimum-python", help="interpreter of an environment with optimum-onnx")
    parser.add_argument("--folder", help="where the checkpoint and bundles are written and removed again")
    options = parser.parse_args()
    if options.resume and not (options.out and options.out.exists()):
        parser.error("--resume needs --out with a result file")
    os.environ |= QUIET
    asked = dict(options.rounds)
    shapes = sorted((Shape(b, n) for b in options.batch for n in options.length), key=by_tokens)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, checkpoint = Path(name), Path(name) / "checkpoint"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # first runs compile, whatever ran before
        weights = measured(MAKE_CHECKPOINT, str(checkpoint))["weights_bytes"]
        bundles = export_bundles(checkpoint, folder)
        pythons = {"genai": options.genai_python, "optimum": options.optimum_python}
        others = [other_peer(name, python, checkpoint, folder) for name, python in pythons.items()]
        peers = own_peers(bundles) + others
        here = {o.runtime: o.runner.python for o in others if o.runner is not None}
        result: dict[str, Any] = {
            "conditions": conditions(PACKAGES),
            "versions": {runtime: helper("versions", python=python) for runtime, python in here.items()},
            "dimensions": DIMENSIONS,
            "weights_gb": round(weights / 1e9, 2),
            "funnels": FUNNELS,
            "limits": LIMITS,
            "shapes": [],
        }
        architecture = load_bundle(bundles["dense", Dtype.FLOAT32]).architecture
        found = kept_shapes(options.out, result) if options.resume else {}
        for shape in (shape for shape in shapes if shape not in found):
            rounds = asked.get(shape) or asked.get(None) or default_rounds(shape)
            together = shape.batch * shape.length <= options.together
            found[shape] = measure_shape(peers, architecture, shape, rounds, together)
            result["shapes"] = [
                found[s] | judge(found[s]["rows"], predicted(architecture, s.length))
                for s in sorted(found, key=by_tokens)
            ]
            record(result, options.out)


if __name__ == "__main__":
    main()
