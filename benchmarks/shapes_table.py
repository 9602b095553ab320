"""The table of exports of large shapes of other families, and with a cache."""

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"


def shapes() -> str:
    """Exports of large shapes of other families and with a cache."""
    result: dict[str, Any] = json.loads((RESULTS / "shapes.json").read_text())
    rows = []
    for found in result["results"]:
        what = (found["shape"] if "Gemma" in found["shape"] else f"Gemma2, {found['shape']}", found["funnel"])
        figures = ("failed", "", "")
        if "peak_gb" in found:
            wall, cpu = found["call_seconds"], found["cpu_seconds"]
            figures = (f"{cpu:.1f} s", f"{wall:.1f} s", f"{found['peak_gb']:.2f} GB")
        rows.append((*what, found["task"], f"{found.get('weights_gb', 0):.1f} GB", *figures))
    conditions = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
    headers = ("", "funnel", "task", "weights", "CPU time", "wall time", "peak memory")
    return f"{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}\n\n({conditions})"
