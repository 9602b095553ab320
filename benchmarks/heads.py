"""What benchmarks of models with new heads share: which models and seeds are trained, and what a result file keeps."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from measure import conditions, record

from funnel_export.quality.quality_report import QualityReport
from funnel_export.training.adapt_report import AdaptReport

SEEDS = (0, 1, 2)


def add_options(parser: argparse.ArgumentParser, models: Iterable[str]) -> None:
    """Add the result file, the models and the seeds."""
    parser.add_argument("--out", type=Path, required=True, help="result file")
    parser.add_argument("--models", nargs="+", default=list(models), choices=list(models))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)


def outcome(trained: AdaptReport, measured: QualityReport, packages: Iterable[str]) -> dict[str, Any]:
    """What is kept of a model: its training, what it got right, and the conditions."""
    return {
        "adapt": trained.model_dump(mode="json", exclude={"history"}),
        "measured": measured.model_dump(mode="json", include={"documents", "measures", "device"}),
        "conditions": conditions(packages),
    }


def train_all(options: argparse.Namespace, run: Callable[[Path, str, int], dict[str, Any]]) -> None:
    """Train and measure every model with every seed that the result file lacks; `run` gets a temporary folder."""
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in options.seeds:
        for name in options.models:
            if f"{name}, seed {seed}" not in result:
                with tempfile.TemporaryDirectory() as folder:
                    result[f"{name}, seed {seed}"] = run(Path(folder), name, seed)
                record(result, options.out)
