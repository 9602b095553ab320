"""Decoding: milliseconds a token with a cache, dense and with funnels, beside other tools.

    python benchmarks/decode.py --out benchmarks/results/decode.json \\
        --genai-python E/bin/python --intel-python E/bin/python --llama-python E/bin/python

The environments have what `constraints-genai.txt`, `constraints-intel.txt` and `constraints-llama.txt` pin; a tool
without an interpreter is left out by name. The checkpoint is that of `export.py`, 12 layers and hidden size 1024.

Each runner has a process of its own. One kind of call reads a prompt into an empty cache: the time to the first
token. The other reads 8 tokens one by one after a text of some tokens. Calls are interleaved, those of a group of
precisions together; of long texts one runtime at a time, since memory is short. All read the same tokens, except
llama.cpp, which picks its own: its call reads the last token of the text again, and then 7 of its own.
onnxruntime-genai's text grows by 8 tokens a call. optimum-intel's model keeps its cache inside, and each call puts it
back; what that takes is in the times.

A part is a shape and a group. The result is written after each part, and a second run goes on with those that are
missing, which it names. A short race picks its parts, and its exports can be made before, on a busy machine:

    python benchmarks/decode.py --folder F --groups int4 --past 512 --prompts 128 512 ... --prepare
    python benchmarks/decode.py --folder F --groups int4 --past 512 --prompts 128 512 ... --out O

Models with weights in 8 and 4 bits run with exact activations, as this package sets them, and with activations that
are rounded to 8 bits ("rounded"), as the other tools do it. Those with rounded ones are engines, so their memory is not
that of a compilation. Errors are from eager PyTorch in float32; and from eager PyTorch with the very weights that a
bundle stores, which says whether the graph is right.

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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from decode_entries import FUNNELS, OWN, TOOLS, Entry, Exports, forms_of
from decode_reference import Ids, References
from export import DIMENSIONS, helper, make_checkpoint
from measure import commit, conditions, record
from peers import named
from peers_groups import Watch, run_trials_by_group, say

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind
from funnel_export.latency.latency_report import compare, summarize
from funnel_export.latency.shape import Shape, steps_of
from funnel_export.latency.traffic import step_bytes
from funnel_export.latency.trials import RunnerRecord, run_trials
from funnel_export.latency.verdict import distance
from funnel_export.verify.cases import Case

PASTS, STEPS, ROUNDS = (512, 4096), steps_of(4), 11
PROMPTS, PROMPT_ROUNDS = (128, 512, 1536), 6
TOGETHER = 512
"""Longest text at which all processes of a part live at once."""
MATRIX = (8192, 16384)
"""Of the product that measures the bandwidth: 0.5 GB, far more than any cache of a processor."""
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "numpy", "funnel-export")


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


class Part:
    """A shape and a group: what each entry showed."""

    def __init__(
        self, entries: Sequence[Entry], records: Sequence[RunnerRecord], shape: Shape, references: References
    ) -> None:
        self._entries = entries
        self._records = {each.runner.runtime: each for each in records}
        self._shape = shape
        self._references = references

    def rows(self, dense: Bundle) -> list[dict[str, Any]]:
        """A row for each entry."""
        return [self._row(entry, dense) for entry in self._entries]

    def _row(self, entry: Entry, dense: Bundle) -> dict[str, Any]:
        facts: dict[str, Any] = {key: getattr(entry, key) for key in ("name", "runtime", "precision", "model")}
        found = self._records.get(entry.name)
        if found is None:
            return facts | {"state": entry.missing}
        if found.result.error is not None:
            return facts | {"state": f"failed: {found.result.error}"}
        times, memory = found.times[self._shape], found.result.memory
        assert memory is not None
        baseline = None if entry.model == "dense" else named(entry.runtime, "dense", entry.precision)
        return {
            **facts,
            "state": "run",
            "host_bytes": memory.host_bytes,
            "first_seconds": times.first,
            **summarize([seconds / (self._shape.steps or 1) for seconds in times.seconds]).model_dump(),
            "bytes": read_bytes(entry, self._shape, dense) if self._shape.steps else None,
            "ratio": self._over(entry, baseline),
            "beside": self._beside(entry),
            **self._errors(entry, times.sample),
        }

    def _over(self, entry: Entry, other: str | None) -> dict[str, Any] | None:
        """The time of an entry over another's; None if that has none."""
        found = self._records.get(other or "")
        if found is None or found.result.error is not None:
            return None
        one, baseline = (each.times[self._shape].seconds for each in (self._records[entry.name], found))
        return compare(one, baseline).model_dump()

    def _beside(self, entry: Entry) -> dict[str, Any]:
        """The time of an entry of this package over those of other tools, and of its own runtime in float32."""
        if entry.form is None:
            return {}
        whole = named(entry.runtime, "dense", "float32")
        others = [each.name for each in self._entries if each.form is None or each.name == whole != entry.name]
        ratios = {other: self._over(entry, other) for other in others}
        return {other: ratio for other, ratio in ratios.items() if ratio is not None}

    def _errors(self, entry: Entry, sample: list[float]) -> dict[str, float | None]:
        """From eager PyTorch in float32, and with the weights that the bundle stores; None without outputs."""
        forms = {"error": "float32", "graph_error": entry.form}
        return {
            name: distance(sample, self._references.sample(entry.model, form, self._shape)) if sample and form else None
            for name, form in forms.items()
        }


def texts(shapes: Sequence[Shape], dense: Bundle) -> dict[Shape, Ids]:
    """The tokens of each shape."""
    cases = {shape: Case((shape.tokens,) * shape.batch) for shape in shapes}
    return {shape: case.tokens(dense.architecture, seed=0)[PortKind.TOKENS].tolist() for shape, case in cases.items()}


def parse() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="result file")
    parser.add_argument("--groups", nargs="+", default=list(OWN), choices=list(OWN), help="precisions to race")
    parser.add_argument("--past", type=int, nargs="*", default=PASTS, help="tokens before the steps")
    parser.add_argument("--prompts", type=int, nargs="*", default=PROMPTS, help="tokens of prompts")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="counted calls with steps")
    parser.add_argument("--prompt-rounds", type=int, default=PROMPT_ROUNDS, help="counted calls with prompts")
    parser.add_argument("--folder", type=Path, help="where exports are written, and used again by a next run")
    parser.add_argument("--prepare", action="store_true", help="export and run eager PyTorch, but time nothing")
    for tool in TOOLS:
        parser.add_argument(f"--{tool}-python", help=f"interpreter of an environment with {tool}")
    return parser.parse_args()


def race(options: argparse.Namespace, folder: Path) -> None:
    """Export, time, record."""
    rounds = {Shape(1, length): options.prompt_rounds for length in options.prompts}
    rounds |= {Shape(1, past, STEPS): options.rounds for past in options.past}
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out and options.out.exists() else {}
    measured = result.setdefault("parts", {})
    asked = {f"{shape}, {group}": (shape, group) for shape, group in itertools.product(rounds, options.groups)}
    missing = {name: part for name, part in asked.items() if name not in measured}
    say(f"missing: {'; '.join(missing) or 'nothing'}")
    made_by = folder / "commit"
    if not made_by.exists():
        make_checkpoint(folder / "checkpoint")
        made_by.write_text(commit())  # last: a checkpoint without it is made again
    pythons = {tool: getattr(options, f"{tool}_python") for tool in TOOLS}
    exports = Exports(folder / "checkpoint", folder, pythons)
    dense = exports.bundle("dense", "float32")
    entries = {group: exports.entries(group) for group in options.groups}
    for entry in (each for group in entries.values() for each in group if each.runner is None):
        say(f"missing: {entry.name}: {entry.missing}")
    batches, references = texts(list(rounds), dense), References(exports, folder / "references.json")
    references.make([*((model, "float32") for model in FUNNELS), *forms_of(options.groups)], batches)
    if options.prepare:
        return
    result |= {
        "versions": {tool: helper("versions", python=python) for tool, python in pythons.items() if python},
        "dimensions": DIMENSIONS,
        "funnels": FUNNELS,
    }
    facts = conditions(PACKAGES) | {"exported by": made_by.read_text()}
    for name, (shape, group) in missing.items():
        say(name)
        runners = [entry.runner for entry in entries[group] if entry.runner is not None]
        run = run_trials if shape.length <= TOGETHER else run_trials_by_group
        records = run(runners, {shape: batches[shape]}, rounds=rounds[shape], progress=(watch := Watch()))
        rows = Part(entries[group], records, shape, references).rows(dense)
        speed = {"bandwidth_gb_s": bandwidth() / 1e9, "least_memory_left_gb": round(watch.least_gb, 1)}
        measured[name] = {**shape._asdict(), "rounds": rounds[shape], **speed, "rows": rows, "conditions": facts}
        record(result, options.out)


def main() -> None:
    """Race in a folder that is kept, or in one that is removed at the end."""
    options = parse()
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        race(options, folder)


if __name__ == "__main__":
    sys.exit(main())
