"""The table of decoding: milliseconds a token with a cache."""

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}


def decode() -> str:
    """Milliseconds a token after each number of tokens, and what the bytes predict."""
    result: dict[str, Any] = json.loads((RESULTS / "decode.json").read_text())
    parts = []
    for past, found in result["results"].items():
        runners, needed = found["runners"], found["bytes"]
        rows = []
        for name, run in runners.items():
            runtime, *kind, dtype = name.split()
            dense = runners.get(f"{runtime} dense {dtype}")
            row = [name, f"{run['ms']:.1f} ({run['range_ms'][0]:.1f} to {run['range_ms'][1]:.1f})", "", "", ""]
            if kind:
                read = needed[kind[0]] * WEIGHT_BYTES[dtype] / 4
                row[2] = f"{read / (result['bandwidth_gb_s'] * 1e9) * 1e3 / run['ms']:.0%}"
            if kind and dense is not None and kind != ["dense"]:
                row[3] = f"{run['ms'] / dense['ms']:.2f}"
                row[4] = f"{needed[kind[0]] / needed['dense']:.2f}"
            rows.append((*row, f"{run['prompt_s']:.1f}", f"{run['difference']:.0e}"))
        headers = (
            f"after {past} tokens",
            "ms a token",
            "of the bandwidth",
            "funnel / dense",
            "bytes",
            "prompt, s",
            "difference",
        )
        parts.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    conditions = result["conditions"] | {"rounds": result["rounds"]}
    named = ", ".join(f"{name} {value}" for name, value in conditions.items())
    parts.append(f"Bandwidth of a float32 matrix-vector product: {result['bandwidth_gb_s']:.1f} GB/s.\n\n({named})")
    return "\n\n".join(parts)
