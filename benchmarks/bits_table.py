"""The table of what weights in 8 and 4 bits cost a real model, dense and with a fitted funnel."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quality_table import CORPORA
from tabulate import tabulate

FILE = Path(__file__).parent / "results" / "bits.json"


def bits() -> str:
    """Losses and divergences from the model as it is stored; the run is long, and its file may come later."""
    if not FILE.exists():
        return "not run yet"
    measured: dict[str, Any] = json.loads(FILE.read_text())["measured"]
    rows = []
    for name in dict.fromkeys(key.rpartition(", ")[0] for key in measured):
        found = [measured.get(f"{name}, {corpus}") for corpus in CORPORA]
        size = next(f"{each['bytes'] / 1e6:.0f} MB" for each in found if each)
        rows.append((name, size, *(cell for each in found for cell in _cells(each))))
    measures = ("loss above", "KL", "same top-1")
    headers = ("", "weights", *(f"{corpus}, {measure}" for corpus in CORPORA.values() for measure in measures))
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    scored = sum(measured.get(f"dense, float32, {corpus}", {}).get("scored", 0) for corpus in CORPORA)
    facts = (", ".join(f"{name} {value}" for name, value in each["conditions"].items()) for each in measured.values())
    runs = "\n".join(f"({each})" for each in dict.fromkeys(facts))
    return f"{table}\n\n{scored:,} tokens were scored.\n\n{runs}"


def _cells(found: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if found is None:
        return "not run", "", ""
    loss, kl, top1 = (found["distance"][name] for name in ("loss", "kl", "top1"))
    interval = f"{loss['value']:.3f} ({loss['low']:.3f} to {loss['high']:.3f})"
    return interval, f"{kl['value']:.3f}", f"{top1['value']:.1%}"
