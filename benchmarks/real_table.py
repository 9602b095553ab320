"""The tables of the run with trained weights: losses, greedy tokens, parity as shares of the limits, latency."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from funnel_export.latency.latency_report import Row

RESULTS = Path(__file__).parent / "results"


def real() -> str:
    """What Gemma 3 270M shows."""
    found: dict[str, Any] = json.loads((RESULTS / "real.json").read_text())
    loss = found["loss"]
    return "\n\n".join(
        (
            f"Loss on {found['tokens']:,} tokens of Brown: {loss['eager']:.8f} nats a token in eager PyTorch, "
            f"{loss['onnxruntime']:.8f} in ONNX Runtime in float32, dense; the largest difference at one token is "
            f"{loss['largest_difference']:.1e}.",
            _texts(found),
            _parity(found["parity"]),
            _latency(found["latency"]),
            f"({', '.join(f'{name} {value}' for name, value in found['conditions'].items())})",
        )
    )


def _texts(found: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{each['tokens_per_s']:.1f}", f"{each['equal']} of {found['written']}" if "equal" in each else "")
        for name, each in found["greedy"].items()
    ]
    return tabulate(
        rows, ("greedy text, dense", "tokens/s", "equal to eager's"), tablefmt="github", disable_numparse=True
    )


def _parity(found: Mapping[str, Any]) -> str:
    rows = []
    for case, result in found.items():
        for target, shares in result["of_limit"].items():
            verdict = "passes" if result["passed"][target] else "FAILS"
            rows.append((case, target, verdict, f"{shares['max']:.2f}", f"{shares['rms']:.2f}"))
        rows += [(case, error, "", "", "") for error in result["errors"]]
    headers = ("", "target", "check", "max error, of the limit", "rms error, of the limit")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _latency(found: list[dict[str, Any]]) -> str:
    rows = []
    for row in map(Row.model_validate, found):
        kind = f"a token after {row.length}" if row.steps else f"a prompt of {row.length}"
        ratio = f"{row.ratio.value:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"
        times = (f"{row.dense.median_ms:.1f}", f"{row.funnel.median_ms:.1f}")
        rows.append((row.runtime, kind, *times, ratio, f"{row.predicted:.2f}"))
    headers = ("", "", "dense ms", "funnel ms", "funnel / dense", "predicted")
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)
