"""Time and peak memory of export: this package, and others on the same checkpoint.

    python benchmarks/export.py --out benchmarks/results/export.json \\
        --genai-python venv-genai/bin/python --optimum-python venv-optimum/bin/python

The others have environments of their own, since they pin other versions; one that is missing is recorded as not run:

    python -m venv venv-genai
    venv-genai/bin/pip install --requirement benchmarks/constraints-genai.txt
    python -m venv venv-optimum
    venv-optimum/bin/pip install --requirement benchmarks/constraints-optimum.txt

Two parts. `peers`: a 12-layer Gemma2 of 0.82 GB float32, exported by each, loaded in ONNX Runtime and compared with
eager PyTorch on one row. `shapes`: Gemma2 2B, 9B and 27B in bfloat16, exported by this package from sparse files,
dense and with a funnel.

Every run is a process of its own. A first run of each is not counted: it warms the disk cache, and its result is what
is compared. Then they take turns. Seconds are of the whole process; those "in the call" are without imports. Peak
memory is VmHWM, in which mapped files count; no exporter here starts processes. Needs 8 GB of disk and of memory, no
network. The last line of stdout is the result as JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measure import HERE, conditions, failure, record, timed

EXPORTERS = HERE / "exporters.py"
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
DIMENSIONS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 1024,
    "intermediate_size": 3648,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "query_pre_attn_scalar": 128,
    "sliding_window": 128,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "initializer_range": 0.06,
}
"""Wide weights and small caps: an exporter that leaves out a softcap or a sliding window is seen."""
FUNNEL = "3:9:2"
LARGE = {"2B": "6:19:2", "9B": "10:31:2", "27B": "11:34:2"}
"""Shapes with a funnel over half of their layers."""
HOLES = "not compared: the weight files are sparse, without values"


def environment(python: str) -> dict[str, str]:
    """Offline; an interpreter of another environment does not look for packages where this one was told to."""
    own = python == sys.executable
    return {name: value for name, value in os.environ.items() if own or name != "PYTHONPATH"} | QUIET


@dataclass(frozen=True, kw_only=True, slots=True)
class Exporter:
    """An exporter at one setting."""

    label: str
    exporter: str
    """Name in `exporters.py`."""
    python: str | None
    """The interpreter that has it; None if there is none."""
    checkpoint: Path
    funnel: str = "none"

    def missing(self) -> str | None:
        """Why it cannot run here, if it cannot."""
        if self.python is None:
            return f"not run: no --{self.label}-python was given"
        if shutil.which(self.python) is None:
            return f"not run: there is no {self.python}"
        return None

    def export(self, out: Path) -> dict[str, Any]:
        """Run it once."""
        assert self.python
        os.sync()  # what an earlier run wrote is not written at this one's cost
        result = timed(
            [self.python, str(EXPORTERS), "export", self.exporter, str(self.checkpoint), str(out), self.funnel],
            env=environment(self.python),
            stderr=subprocess.PIPE,
        )
        return {**result, "disk_gb": new_bytes(out, self.checkpoint) / 1e9}

    def why_not(self, out: Path) -> str:
        """Run it once; why nothing came out, empty if something did."""
        missing = self.missing()
        if missing is not None:
            return missing
        try:
            self.export(out)
        except (subprocess.CalledProcessError, ValueError, IndexError) as err:
            return failure(err)
        return ""


def helper(*arguments: str, python: str | None = sys.executable) -> dict[str, Any]:
    """Run another command of `exporters.py`."""
    assert python
    result = timed([python, str(EXPORTERS), *arguments], env=environment(python), stderr=subprocess.PIPE)
    del result["seconds"]
    return result


def new_bytes(out: Path, checkpoint: Path) -> int:
    """Bytes of the files in `out` that are not files of the checkpoint too, by another hard link."""
    old = {(file.stat().st_dev, file.stat().st_ino) for file in checkpoint.iterdir()}
    files = (file.stat() for file in out.rglob("*") if file.is_file())
    return sum(file.st_size for file in files if (file.st_dev, file.st_ino) not in old)


def make_checkpoint(folder: Path) -> int:
    """Write the small checkpoint with a tokenizer that transformers 4.57 reads too; returns its bytes of weights."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from funnel_export.commands.demo import make_tokenizer

    tokenizer = make_tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "eos", "bos")}
    torch.manual_seed(0)
    model = Gemma2ForCausalLM(Gemma2Config(**DIMENSIONS, **special))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    named = folder / "tokenizer_config.json"
    text = json.loads(named.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    named.write_text(json.dumps(text, indent=2))
    return sum(p.nbytes for p in model.parameters())


def first_run(exporter: Exporter, out: Path, reference: Path | None) -> dict[str, Any]:
    """Run an exporter without counting, and compare what comes out; or why that is not possible."""
    why = exporter.why_not(out)
    if why:
        return {"state": why}
    if reference is None:
        return {"state": "run", "parity": HOLES}
    try:
        return {"state": "run", "parity": helper("compare", str(out), str(reference), python=exporter.python)}
    except (subprocess.CalledProcessError, ValueError, IndexError) as err:
        return {"state": "run", "parity": f"not compared: {failure(err)}"}


def interleave(exporters: list[Exporter], folder: Path, rounds: int, references: dict[str, Path]) -> dict[str, Any]:
    """Each exporter once without counting, then all of them in turns; medians by label."""
    results: dict[str, Any] = {}
    out = folder / "out"
    for exporter in exporters:
        print("first run:", exporter.label, file=sys.stderr)
        results[exporter.label] = first_run(exporter, out, references.get(exporter.funnel)) | {"runs": []}
        shutil.rmtree(out, ignore_errors=True)
    running = [exporter for exporter in exporters if results[exporter.label]["state"] == "run"]
    for number in range(rounds):
        for exporter in running:
            run = exporter.export(out)
            shutil.rmtree(out)
            print(f"round {number + 1}:", exporter.label, json.dumps(run), file=sys.stderr)
            results[exporter.label]["runs"].append(run)
    return {label: result | medians(result["runs"]) for label, result in results.items()}


def medians(runs: list[dict[str, Any]]) -> dict[str, float]:
    """The median of each figure."""
    return {key: round(statistics.median(run[key] for run in runs), 4) for key in runs[0]} if runs else {}


def race_peers(folder: Path, rounds: int, pythons: dict[str, str | None]) -> dict[str, Any]:
    """This package and the others on the small checkpoint."""
    checkpoint = folder / "checkpoint"
    size = make_checkpoint(checkpoint)
    references = {funnel: folder / f"{funnel.replace(':', '-')}.npz" for funnel in ("none", FUNNEL)}
    for funnel, file in references.items():
        assert helper("reference", str(checkpoint), str(file), funnel)["finite"]
    own: dict[str, Any] = {"python": sys.executable, "checkpoint": checkpoint}
    exporters = [
        Exporter(label="dense", exporter="funnel_export", **own),
        Exporter(label="funnel", exporter="funnel_export", funnel=FUNNEL, **own),
        Exporter(label="torch.onnx", exporter="torch_onnx", **own),
        *(Exporter(label=k, exporter=k, python=python, checkpoint=checkpoint) for k, python in pythons.items()),
    ]
    found = {c.label: helper("versions", python=c.python) for c in exporters if c.python and not c.missing()}
    return {
        "dimensions": DIMENSIONS,
        "weights_gb": round(size / 1e9, 2),
        "funnel": FUNNEL,
        "versions": {name: found[name] for name in pythons if name in found},
        "results": interleave(exporters, folder, rounds, references),
    }


def race_shapes(folder: Path, rounds: int) -> dict[str, Any]:
    """This package at the published shapes."""
    from sparse import SHAPES, make_sparse_checkpoint

    exporters, shapes = [], {}
    for shape, funnel in LARGE.items():
        checkpoint = folder / shape
        size = make_sparse_checkpoint(checkpoint, shape)
        files = len(list(checkpoint.glob("*.safetensors")))
        shapes[shape] = {
            "dimensions": SHAPES[shape],
            "weights_gb": round(size / 1e9, 2),
            "files": files,
            "funnel": funnel,
        }
        own: dict[str, Any] = {"exporter": "funnel_export", "python": sys.executable, "checkpoint": checkpoint}
        exporters.append(Exporter(label=f"{shape} dense", **own))
        exporters.append(Exporter(label=f"{shape} funnel", funnel=funnel, **own))
    return {"parity": HOLES, "shapes": shapes, "results": interleave(exporters, folder, rounds, {})}


def main() -> None:
    """Measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--rounds", type=int, default=3, help="counted runs of each exporter")
    parser.add_argument("--genai-python", help="interpreter of an environment with onnxruntime-genai")
    parser.add_argument("--optimum-python", help="interpreter of an environment with optimum-onnx")
    parser.add_argument("--part", choices=("peers", "shapes"), help="measure one part only")
    parser.add_argument("--folder", help="where the checkpoints and bundles are written and removed again")
    options = parser.parse_args()
    packages = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "funnel-export")
    result: dict[str, Any] = {"conditions": {**conditions(packages), "rounds": options.rounds}}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.part != "shapes":
            pythons = {"genai": options.genai_python, "optimum": options.optimum_python}
            result["peers"] = race_peers(folder, options.rounds, pythons)
        if options.part != "peers":
            result["shapes"] = race_shapes(folder, options.rounds)
    record(result, options.out)


if __name__ == "__main__":
    main()
