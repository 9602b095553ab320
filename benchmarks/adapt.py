"""Trains a real Gemma 3 270M for a funnel, and with dropped layers of equal cost, on some millions of tokens.

    python benchmarks/adapt.py --out benchmarks/results/adapt.json --device cuda

Each run begins with the checkpoint that `quality.py` fitted, and trains towards the dense model's predictions, or on
the next tokens. The latter has a control: the dense model, trained on the same tokens. Texts of seven corpora, without
the documents that models are measured on. A run that was killed goes on. `quality.py` measures the results.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from corpora import MEASURED, write_others, write_parts
from measure import record
from quality import fitted
from real_weights import cache, real_checkpoint

from funnel_export import adapt


class Run(NamedTuple):
    """A training run."""

    funnel: str
    objective: str
    part: str
    strides: tuple[int, ...] = ()
    seed: int = 0
    tokens: int | None = None
    """Most tokens of the texts; None for all."""


BEGINNING = 3_400_000
"""Tokens of the runs on the next tokens, held-out ones included."""
RUNS = {
    "6-10-2 kl all": Run("6:10:2", "kl", "all"),
    "8-10-drop kl all": Run("8:10:drop", "kl", "all"),
    "6-10-2 kl lora": Run("6:10:2", "kl", "lora"),
    "8-10-drop kl lora": Run("8:10:drop", "kl", "lora"),
    "6-10-2 targets lora": Run("6:10:2", "targets", "lora", tokens=BEGINNING),
    "8-10-drop targets lora": Run("8:10:drop", "targets", "lora", tokens=BEGINNING),
    "dense targets lora": Run("none", "targets", "lora", tokens=BEGINNING),
    "6-10-2 kl all strides": Run("6:10:2", "kl", "all", strides=(2, 3, 4)),
    "6-10-2 kl all seed 1": Run("6:10:2", "kl", "all", seed=1),
}
"""By name, in order of worth. Those that are not in the result file have not been run."""


def main() -> None:
    """Train, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--tokens", type=int, metavar="N", help="most tokens of the texts; by default those of the run")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="rows of 512 tokens")
    parser.add_argument("--vocabulary", type=int, metavar="N", help="for kl: compare only the N most frequent tokens")
    parser.add_argument("--save-steps", type=int, default=100, metavar="N", help="steps between two saves of the state")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        parts, others = write_parts(Path(name)), write_others(Path(name))
        texts = [*(parts[f"{corpus}-fit"] for corpus in MEASURED), *others]
        for key in options.runs:
            run, folder = RUNS[key], cache() / "adapted" / key.replace(" ", "-")
            if (folder / "config.json").exists():
                continue
            settings: dict[str, Any] = {
                "objective": run.objective,
                "part": run.part,
                "strides": run.strides,
                "seed": run.seed,
                "save_steps": options.save_steps,
                "batch_size": options.batch_size,
                "measure_steps": 100,
                "vocabulary": options.vocabulary if run.objective == "kl" else None,
            }
            report = adapt(
                real_checkpoint() if run.funnel == "none" else fitted(run.funnel),
                folder,
                data=texts,
                funnel="none" if run.funnel == "none" else "auto",
                training=settings,
                tokens=options.tokens or run.tokens,
                device=options.device,
                resume=True,
                progress=lambda step, *_: print(step, file=sys.stderr, flush=True),
            )
            result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
            result[key] = report.model_dump(mode="json")
            record(result, options.out)


if __name__ == "__main__":
    sys.exit(main())
