"""What funnels and dropped layers cost a real Gemma 3 270M: as they are, with a fitted recovery, and after training.

    python benchmarks/quality.py --out benchmarks/results/quality.json

Each funnel is measured on documents that nothing was fitted to or trained on: as it is, with recovery `delta`, and
after `funnel-export fit` on other documents of the same corpora. Beside each funnel stand layers that are dropped, at
equal cost of the layers. Models that `adapt.py` trained are measured too. The result file is written after each
measurement, and a second run goes on. The first run downloads the weights and the corpora.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from corpora import MEASURED, write_parts
from measure import conditions, record
from real_weights import cache, real_checkpoint

from funnel_export import evaluate, fit
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.latency.operations import predicted_ratio
from funnel_export.spec.choices import Dtype, Logits, Task
from funnel_export.spec.export import ExportSpec
from funnel_export.spec.funnel import FunnelSpec

FUNNELS = ("6:8:2", "7:8:drop", "6:10:2", "8:10:drop", "6:10:4", "7:10:drop", "6:14:2", "6:10:drop")
"""Each funnel before the dropped layers of equal cost: one layer's work, two, three, four."""
STRIDES = (2, 3, 4)
"""Trained funnels are measured with all of them."""
PARTS = {512: "measure", 2048: "whole"}
"""Length of rows, and the part of a corpus that has enough such rows."""
FITTED = 30_000
"""Tokens that the recovery is fitted to, held-out ones included."""
PACKAGES = ("torch", "transformers", "funnel-export")


class Model(NamedTuple):
    """A model to measure."""

    name: str
    state: str
    """`delta`, `linear` or `adapted`."""
    folder: Path
    funnel: FunnelSpec | str


def fitted(funnel: str) -> Path:
    """The folder of the fitted checkpoint."""
    return cache() / "fitted" / funnel.replace(":", "-")


def models(length: int) -> Iterator[Model]:
    """All that are measured: the trained ones that are there, those with a funnel as it is, and the fitted ones.

    Trained funnels are measured with other strides too, in the shorter rows.
    """
    for report in sorted((cache() / "adapted").glob("*/adapt.json")):
        folder, own = report.parent, json.loads(report.read_text())["funnel"]
        yield Model(folder.name, "adapted", folder, "none" if own is None else "auto")
        if own is not None and "drop" not in own and length == min(PARTS):
            others = (FunnelSpec.from_dict(own | {"stride": stride}) for stride in STRIDES if stride != own["stride"])
            yield from (Model(f"{folder.name} S={each.stride}", "adapted", folder, each) for each in others)
    for funnel in FUNNELS:
        yield Model(funnel, "delta", real_checkpoint(), FunnelSpec.parse(funnel, recovery="delta"))
        yield Model(funnel, "linear", fitted(funnel), FunnelSpec.parse(funnel, recovery="linear"))


def measure(model: Model, texts: Path, length: int, tokens: int, device: str) -> dict[str, Any]:
    """What `evaluate` says of a model, without the parts that tables do not show."""
    report = evaluate(
        model.folder,
        [texts],
        funnel=model.funnel,
        dtype="bfloat16",
        length=length,
        max_tokens=tokens,
        against=real_checkpoint(),  # training changes the dense model of the same weights too
        batch_size=8 if device == "cuda" else None,
        device=device,
    )
    shown = {"funnel", "documents", "scored", "measures", "dense", "distance", "by_phase", "seconds", "device"}
    return report.model_dump(mode="json", include=shown) | {"conditions": conditions(PACKAGES)}


def operations(length: int, funnels: Iterable[str]) -> dict[str, float]:
    """Operations of a prompt with each funnel, as a share of the dense model's."""
    source = Checkpoint.open(real_checkpoint())
    found = {}
    for funnel in funnels:
        spec = ExportSpec(
            task=Task.TEXT_GENERATION,
            dtype=Dtype.BFLOAT16,
            funnel=FunnelSpec.parse(funnel, recovery="linear"),
            logits=Logits.LAST,
        )
        found[f"{funnel}, {length}"] = predicted_ratio(source.family, source.architecture, spec, length)
    return found


def fit_missing(parts: dict[str, Path], result: dict[str, Any], funnels: Iterable[str]) -> None:
    """Fit the funnels whose fitted checkpoint is not in the cache."""
    for funnel in funnels:
        if not fitted(funnel).exists():
            texts, start = [parts[f"{corpus}-fit"] for corpus in MEASURED], time.perf_counter()
            fit(real_checkpoint(), fitted(funnel), funnel=funnel, data=texts, tokens=FITTED)
            result.setdefault("fit_seconds", {})[funnel] = time.perf_counter() - start


def main() -> None:
    """Fit, measure, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, default=50_000, metavar="N", help="most tokens of each corpus")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="measurements at the same time")
    options = parser.parse_args()
    out = options.out
    result: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    measured = result.setdefault("measured", {})
    with tempfile.TemporaryDirectory() as name:
        parts = write_parts(Path(name))
        missing = {
            key: (model, parts[f"{corpus}-{PARTS[length]}"], length, options.tokens, options.device)
            for length in options.lengths
            for model in models(length)
            for corpus in MEASURED
            if (key := f"{model.name}, {model.state}, {corpus}, {length}") not in measured
        }
        fit_missing(parts, result, dict.fromkeys(m.name for m, *_ in missing.values() if m.state == "linear"))
        with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
            waiting = {pool.submit(measure, *arguments): key for key, arguments in missing.items()}
            for done in as_completed(waiting):
                measured[waiting[done]] = done.result()
                record(result, out)
    funnels = {str(FunnelSpec.from_dict(found["funnel"])): None for found in measured.values() if found["funnel"]}
    result["operations"] = {key: share for length in PARTS for key, share in operations(length, funnels).items()}
    record(result, out)


if __name__ == "__main__":
    sys.exit(main())
