"""The tables of decoding: the time to the first token, and milliseconds a token with a cache."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def decode() -> str:
    """A table for each shape, and what the bytes predict."""
    result: dict[str, Any] = json.loads((RESULTS / "decode.json").read_text())
    measured = list(result["parts"].values())
    speeds = [part["bandwidth_gb_s"] for part in measured]
    parts = [_table(part, max(speeds)) for part in measured]
    speed = f"between {min(speeds):.1f} and {max(speeds):.1f} GB/s after the parts; the largest counts"
    parts.append(f"Bandwidth of a float32 matrix-vector product: {speed}.")
    parts += [f"({_listed(each)})" for each in (measured[0]["conditions"], *result["versions"].values())]
    return "\n\n".join(parts)


def _table(shape: Mapping[str, Any], gb_s: float) -> str:
    """The rows of one shape."""
    dense = {(row["runtime"], row["precision"]): row for row in shape["rows"] if row["model"] == "dense"}
    after = f"a token after {shape['length']}" if shape["steps"] else f"a prompt of {shape['length']}"
    rows = []
    for row in shape["rows"]:
        if row["state"] != "run":
            rows.append((row["name"], row["state"]))
            continue
        time = f"{row['median_ms']:.1f} ({row['low_ms']:.1f} to {row['high_ms']:.1f})"
        share = f"{row['bytes'] / (gb_s * 1e9) * 1e3 / row['median_ms']:.0%}" if row["bytes"] else ""
        other, ratio = dense[row["runtime"], row["precision"]], row["ratio"]
        ratios = f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else ""
        bytes_ratio = f"{row['bytes'] / other['bytes']:.2f}" if ratio and row["bytes"] else ""
        error = "" if row["error"] is None else f"{row['error']:.0e}"
        rows.append((row["name"], time, share, ratios, bytes_ratio, error, f"{row['host_bytes'] / 1e9:.2f} GB"))
    headers = (after, "ms", "of the bandwidth", "funnel / dense", "bytes", "error", "peak memory")
    used = range(len(headers)) if shape["steps"] else (0, 1, 3, 5, 6)
    shown = [[row[index] if index < len(row) else "" for index in used] for row in rows]
    return tabulate(shown, [headers[index] for index in used], tablefmt="github", disable_numparse=True)


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())
