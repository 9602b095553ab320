"""Latency of this package beside other people's runtimes, on one checkpoint and the same prompts, all taking turns.

    python benchmarks/peers.py --out benchmarks/results/peers.json \\
        --genai-python venv-genai/bin/python --optimum-python venv-optimum/bin/python

The others have environments of their own, since they pin other versions; one that is missing is recorded as not run:

    python -m venv venv-genai
    venv-genai/bin/pip install --requirement benchmarks/constraints-genai.txt
    python -m venv venv-optimum
    venv-optimum/bin/pip install --requirement benchmarks/constraints-optimum.txt

The checkpoint is that of `export.py`. Each shape is a race of its own, in fresh processes; every contender computes the
logits of all positions of a prompt, without sampling, with the settings that its runtime has by default.

Memory: a process holds its weights (0.8 GB in float32, once more where a runtime packs them) and keeps what its largest
call took: at 4x1536 the logits alone are 0.8 GB, and a tensor of attention scores is 0.3 GB. Up to `--together` tokens
a batch all processes live at once. Above, they take turns at living too: in each round each contender starts, runs
twice uncounted and once counted, and ends; only one is in memory. That changes no setting of any runtime.

The result is written after each shape; the last line of stdout is the result as JSON. Needs 6 GB of disk, no network.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export import DIMENSIONS, QUIET, helper
from export import Contender as Exporter
from measure import HERE, conditions, failure, measured, record
from peers_judging import LIMITS, judge, with_agreement

from funnel_export import FunnelSpec, load_bundle
from funnel_export.architecture import Architecture
from funnel_export.config import Dtype, Task
from funnel_export.verify.contender import Lineup
from funnel_export.verify.inputs import Case
from funnel_export.verify.latency import Model, summarize
from funnel_export.verify.operations import predicted_ratio
from funnel_export.verify.race import Contender, Entry, race

Shape = tuple[int, int]
"""Rows of a batch, tokens of a row."""

FUNNELS = {"S=2": "3:9:2", "S=4": "3:10:4"}
"""S=2 over half of the 12 layers, S=4 over 7 of them."""
TOGETHER = 512
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
    contender: Contender | None
    """None if it cannot run here."""
    missing: str = ""
    """Why it cannot."""

    @property
    def name(self) -> str:
        """For example `openvino bfloat16` or `openvino bfloat16, S=2`."""
        return named(self.runtime, self.model, self.dtype)


def named(runtime: str, model: str, dtype: Dtype) -> str:
    """A contender in words; dense unless it says otherwise."""
    return f"{runtime} {dtype}" + ("" if model == "dense" else f", {model}")


def own(runtime: str, model: str, lineup: Lineup, dtype: Dtype) -> Peer:
    """A bundle of this package in PyTorch or in a target."""
    kind = Model.DENSE if model == "dense" else Model.FUNNEL
    contender = Contender.of(named(runtime, model, dtype), kind, dtype, lineup)
    return Peer(runtime=runtime, model=model, dtype=dtype, contender=contender)


def own_peers(bundles: Mapping[tuple[str, Dtype], Path]) -> list[Peer]:
    """Every model in every runtime that takes this package's bundles; PyTorch under torch.compile dense only."""
    full, half = Dtype.FLOAT32, Dtype.BFLOAT16
    dense = bundles["dense", full]
    peers = [
        own("eager", "dense", Lineup(bundle=dense, dtype=full), full),
        own("eager", "dense", Lineup(bundle=dense, dtype=half), half),
        own("torch.compile", "dense", Lineup(bundle=dense, dtype=full, compiled=True), full),
        own("torch.compile", "dense", Lineup(bundle=dense, dtype=half, compiled=True), half),
    ]
    for model in ("dense", *FUNNELS):
        if model != "dense":
            peers.append(own("eager", model, Lineup(bundle=bundles[model, full]), full))
        peers.append(own("onnxruntime", model, Lineup(bundle=bundles[model, full], target="onnxruntime"), full))
        peers += [own("openvino", model, Lineup(bundle=bundles[model, d], target="openvino"), d) for d in (full, half)]
    return peers


def export_bundles(checkpoint: Path, folder: Path) -> dict[tuple[str, Dtype], Path]:
    """The checkpoint by this package: dense and with each funnel, in both dtypes; weights are hard links."""
    bundles = {}
    for model, funnel in {"dense": "none", **FUNNELS}.items():
        for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16):
            out = folder / f"{model}-{dtype}"
            say(f"exporting {out.name}")
            command = ["-m", "funnel_export", "export", str(checkpoint), str(out), "--funnel", funnel, "--dtype", dtype]
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            bundles[model, dtype] = out
    return bundles


def other_peer(name: str, python: str | None, checkpoint: Path, folder: Path) -> Peer:
    """A runtime of another environment, with what its own exporter makes of the checkpoint."""
    exporter = Exporter(label=name, exporter=name, python=python, checkpoint=checkpoint)
    facts: dict[str, Any] = {"runtime": name, "model": "dense", "dtype": Dtype.FLOAT32}
    missing = exporter.missing()
    if missing is not None:
        return Peer(**facts, contender=None, missing=missing)
    say(f"exporting with {name}")
    out = folder / name
    try:
        exporter.export(out)
    except (subprocess.CalledProcessError, ValueError, IndexError) as err:
        return Peer(**facts, contender=None, missing=failure(err))
    assert python is not None
    contender = Contender(
        runtime=named(name, "dense", Dtype.FLOAT32),
        model=Model.DENSE,
        dtype=Dtype.FLOAT32,
        order={"runtime": name, "folder": str(out)},
        program=(str(HERE / "peer.py"),),
        python=python,
    )
    return Peer(**facts, contender=contender)


def relay(contenders: Sequence[Contender], batches: Mapping[Shape, list[list[int]]], rounds: int) -> list[Entry]:
    """A race in which only who runs is in memory; what is not of a call is that of the first round."""
    kept: dict[str, Entry] = {}
    for number in range(rounds):
        for contender in contenders:
            first = kept.get(contender.runtime)
            if first is not None and first.result.error is not None:
                continue
            say(f"round {number + 1} of {rounds}: {contender.runtime}")
            (entry,) = race([contender], batches, rounds=1, warmup=0, progress=lambda *_: None)
            if first is None or entry.result.error is not None:
                kept[contender.runtime] = entry
            else:
                for shape, times in entry.times.items():
                    first.times[shape].seconds += times.seconds
    return list(kept.values())


def row(peer: Peer, entry: Entry | None, shape: Shape) -> dict[str, Any]:
    """What one contender showed at one shape."""
    facts: dict[str, Any] = {key: getattr(peer, key) for key in ("name", "runtime", "model", "dtype")}
    if entry is None:
        return facts | {"state": peer.missing}
    result = entry.result
    if result.error is not None:
        return facts | {"state": f"failed: {result.error}"}
    times = entry.times[shape]
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


class Watch:
    """Says the steps of a race, and notes how little memory was left at them."""

    def __init__(self) -> None:
        self.least_gb = available_gb()

    def __call__(self, step: str, *_: object) -> None:
        """Progress, as `race` wants it."""
        self.least_gb = min(self.least_gb, available_gb())
        say(f"{step} ({self.least_gb:.1f} GB left at least)")


def available_gb() -> float:
    """Memory that processes can still have."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    (found,) = (line for line in lines if line.startswith("MemAvailable:"))
    return int(found.split()[1]) * 1024 / 1e9


def say(step: str) -> None:
    """To stderr."""
    print(step, file=sys.stderr, flush=True)


def measure_shape(
    peers: Sequence[Peer], architecture: Architecture, shape: Shape, rounds: int, together: bool
) -> dict[str, Any]:
    """One shape: the race and what it means."""
    batch, length = shape
    ids = Case((length,) * batch).tokens(architecture, seed=0)["input_ids"].tolist()
    contenders = [peer.contender for peer in peers if peer.contender is not None]
    say(f"batch {batch}, length {length}")
    watch, load = Watch(), os.getloadavg()[0]
    entries = (
        race(contenders, {shape: ids}, rounds=rounds, progress=watch)
        if together
        else relay(contenders, {shape: ids}, rounds)
    )
    by_name = {entry.contender.runtime: entry for entry in entries}
    rows = with_agreement([row(peer, by_name.get(peer.name), shape) for peer in peers])
    specs = {model: FunnelSpec.parse(funnel) for model, funnel in FUNNELS.items()}
    predicted = {m: predicted_ratio(architecture, Task.TEXT_GENERATION, spec, length) for m, spec in specs.items()}
    return {
        "batch": batch,
        "length": length,
        "rounds": rounds,
        "together": together,
        "load_before": round(load, 1),
        **({"least_memory_left_gb": round(watch.least_gb, 1)} if together else {}),
        "rows": rows,
        **judge(rows, predicted),
    }


def default_rounds(shape: Shape) -> int:
    """Fewer where calls are long: of 4x1536 one takes 18 seconds in float32 on two cores."""
    tokens = shape[0] * shape[1]
    return next((rounds for limit, rounds in ((512, 9), (1536, 7), (2048, 5)) if tokens <= limit), 3)


def parse_rounds(text: str) -> tuple[Shape | None, int]:
    """`5` for every shape, `4x1536=5` for one."""
    shape, _, rounds = text.rpartition("=")
    batch, _, length = shape.partition("x")
    return ((int(batch), int(length)) if shape else None), int(rounds)


def main() -> None:
    """Export, race shape by shape, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--length", type=int, nargs="+", default=[128, 512, 1536], help="tokens of a row")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="rows of a batch")
    parser.add_argument(
        "--rounds", type=parse_rounds, nargs="+", default=[], help="counted calls: 5, or 4x1536=5; default 9 down to 3"
    )
    parser.add_argument(
        "--together", type=int, default=TOGETHER, help="most tokens at which all processes live at once"
    )
    parser.add_argument("--genai-python", help="interpreter of an environment with onnxruntime-genai")
    parser.add_argument("--optimum-python", help="interpreter of an environment with optimum-onnx")
    parser.add_argument("--folder", help="where the checkpoint and bundles are written and removed again")
    options = parser.parse_args()
    os.environ |= QUIET
    asked = dict(options.rounds)
    shapes = sorted({(b, n) for b in options.batch for n in options.length}, key=lambda s: (s[0] * s[1], s))
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, checkpoint = Path(name), Path(name) / "checkpoint"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # first runs compile, whatever ran before
        weights = measured(MAKE_CHECKPOINT, str(checkpoint))["weights_bytes"]
        bundles = export_bundles(checkpoint, folder)
        pythons = {"genai": options.genai_python, "optimum": options.optimum_python}
        others = [other_peer(name, python, checkpoint, folder) for name, python in pythons.items()]
        peers = own_peers(bundles) + others
        here = {o.runtime: o.contender.python for o in others if o.contender is not None}
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
        for shape in shapes:
            rounds = asked.get(shape) or asked.get(None) or default_rounds(shape)
            together = shape[0] * shape[1] <= options.together
            result["shapes"].append(measure_shape(peers, architecture, shape, rounds, together))
            record(result, options.out)


if __name__ == "__main__":
    main()
