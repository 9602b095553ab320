"""The table of what funnels and dropped layers cost a real model, as they are and fitted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

from funnel_export.spec.funnel import FunnelSpec

RESULTS = Path(__file__).parent / "results"
CORPORA = ("brown", "sotu")


def quality() -> str:
    """Losses above the dense model's, by the cost of the layers that are saved."""
    result: dict[str, Any] = json.loads((RESULTS / "quality.json").read_text())
    rows = []
    for key in dict.fromkeys(name.split(", ")[0] for name in result["measured"]):
        spec = FunnelSpec.parse(key)
        saved = (spec.recover_layer - spec.pool_layer) * (1 if spec.drop else 1 - 1 / spec.stride)
        cells = [
            _difference(result["measured"].get(f"{key}, {recovery}, {corpus}"))
            for corpus in CORPORA
            for recovery in ("delta", "linear")
        ]
        seconds = result.get("fit_seconds", {}).get(key)
        rows.append((saved, spec.drop, key, *cells, "" if seconds is None else f"{seconds:.0f} s"))
    rows.sort()
    headers = (
        "layers saved",
        "funnel",
        *(f"{c}, {how}" for c in ("Brown", "speeches") for how in ("as it is", "fitted")),
    )
    table = tabulate(
        [(f"{saved:g}", *rest) for saved, _, *rest in rows],
        (*headers, "fit"),
        tablefmt="github",
        disable_numparse=True,
    )
    return "\n\n".join((table, _dense(result), f"({', '.join(f'{k} {v}' for k, v in result['conditions'].items())})"))


def _difference(found: Mapping[str, Any] | None) -> str:
    """The loss above that of the dense model with its interval, and on how many tokens."""
    if found is None:
        return "–"
    loss = found["distance"]["loss"]
    return f"{loss['value']:+.3f} ({loss['low']:+.3f} to {loss['high']:+.3f}), {found['scored'] // 1000}k"


def _dense(result: Mapping[str, Any]) -> str:
    """The dense model's losses on the larger parts."""
    texts = []
    for corpus, name in zip(CORPORA, ("Brown", "speeches"), strict=True):
        found = max(
            (each for key, each in result["measured"].items() if key.endswith(corpus)), key=lambda each: each["scored"]
        )
        loss, documents = found["dense"]["loss"], found["documents"]
        texts.append(f"{loss['value']:.3f} nats on {found['scored']:,} tokens of {name} ({documents} documents)")
    return f"Dense: {', '.join(texts)}."
