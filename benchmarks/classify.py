"""A classifier with and without a funnel: Gemma 3 270M, trained to tell spam from ham by the bodies of mails.

    python benchmarks/classify.py --out benchmarks/results/classify.json --device cuda

Each model gets a new head and low-rank adapters, and is trained on the same mails in as many steps: dense, with a
funnel, and with a funnel that has lookahead. Three seeds each, measured on other mails.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from corpora import write_mails
from heads import add_options, outcome, train_all
from real_weights import real_checkpoint

from funnel_export import FunnelSpec, adapt, evaluate

MODELS = {
    "dense": "none",
    "6:10:2": FunnelSpec.parse("6:10:2"),
    "6:10:2, lookahead": FunnelSpec.parse("6:10:2", lookahead=True),
    "6:14:4": FunnelSpec.parse("6:14:4"),
    "6:14:4, lookahead": FunnelSpec.parse("6:14:4", lookahead=True),
    "6:12:drop": FunnelSpec.parse("6:12:drop"),
}
PACKAGES = ("torch", "transformers", "peft", "funnel-export")


def run(folder: Path, name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train a model and measure it."""
    train, measured = write_mails(folder)
    report = adapt(
        real_checkpoint(),
        folder / "adapted",
        data=train,
        funnel=MODELS[name],
        task="text-classification",
        length=options.length,
        training={"batch_size": options.batch_size, "steps": options.steps, "seed": seed},
        device=options.device,
    )
    found = evaluate(
        folder / "adapted",
        measured,
        dense=False,
        max_documents=options.mails,
        length=options.length,
        device=options.device,
        dtype="bfloat16",
    )
    return outcome(report, found, PACKAGES)


def main() -> None:
    """Run what the result file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--steps", type=int, default=300, metavar="N")
    parser.add_argument("--batch-size", type=int, default=16, metavar="N", help="mails of a step")
    parser.add_argument("--length", type=int, default=256, metavar="N", help="most tokens of a mail")
    parser.add_argument("--mails", type=int, metavar="N", help="most mails to measure on; by default all")
    add_options(parser, MODELS)
    options = parser.parse_args()
    train_all(options, lambda folder, name, seed: run(folder, name, seed, options))


if __name__ == "__main__":
    sys.exit(main())
