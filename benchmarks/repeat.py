"""Does `bench` agree with itself? It runs twice, one run after the other, and the intervals of both are compared.

    make demo
    python benchmarks/repeat.py demo-out/funnel --out benchmarks/results/repeat.json

The last line of stdout is the result as JSON.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import conditions, record
from tabulate import tabulate

PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "scipy", "funnel-export")
WANTED = 0.9
"""The share of rows in which two runs are to overlap; of two true 95 % intervals more would."""


def overlap(one: Mapping[str, float], other: Mapping[str, float]) -> bool:
    """Whether two intervals have a point in common."""
    low, high = ("low", "high") if "low" in one else ("low_ms", "high_ms")
    return one[low] <= other[high] and other[low] <= one[high]


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The same row of two runs: the ratio, and the medians that it is made of."""
    name = {key: first[key] for key in ("runtime", "batch", "length", "predicted")}
    if any(first[key] != second[key] for key in name):
        raise ValueError("the two runs have other rows")
    figures = ("ratio", "dense", "funnel")
    return name | {f: {"runs": [first[f], second[f]], "overlap": overlap(first[f], second[f])} for f in figures}


def render(result: Mapping[str, Any]) -> str:
    """A row for each runtime and shape, and how many rows overlap."""
    rows = []
    for row in result["rows"]:
        place = f"{row['runtime']} {row['batch']}x{row['length']}"
        ratios = [f"{r['value']:.3f} ({r['low']:.3f} to {r['high']:.3f})" for r in row["ratio"]["runs"]]
        overlaps = ["yes" if row[figure]["overlap"] else "NO" for figure in ("ratio", "dense", "funnel")]
        rows.append((place, *ratios, f"{row['predicted']:.3f}", *overlaps))
    headers = ("", "first run", "second run", "predicted", "ratios overlap", "dense medians", "funnel medians")
    table = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    count, total = sum(row["ratio"]["overlap"] for row in result["rows"]), len(result["rows"])
    medians = sum(row[figure]["overlap"] for row in result["rows"] for figure in ("dense", "funnel"))
    met = "met" if total and count >= WANTED * total else "MISSED"
    verdict = f"Intervals of the ratio overlap in {count} of {total} rows, at least {WANTED:.0%}: {met}."
    return f"{table}\n\n{verdict} Those of the medians do in {medians} of {2 * total}."


def main() -> None:
    """Bench twice, compare, record."""
    from funnel_export import bench, load_bundle
    from funnel_export.commands import check as checking
    from funnel_export.report.text import describe_latency

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="a bundle with a funnel")
    parser.add_argument("--length", type=int, nargs="+", default=[128, 512], help="tokens of a row")
    parser.add_argument("--rounds", type=int, default=9, help="counted calls")
    parser.add_argument("--out", type=Path, help="result file")
    options = parser.parse_args()
    bundle = load_bundle(options.bundle)
    parity = checking.compare(bundle, max_length=max(options.length))
    runs = []
    for number in (1, 2):
        print(f"run {number} of 2", file=sys.stderr)
        report = bench(
            bundle,
            pytorch=("eager",),
            lengths=options.length,
            rounds=options.rounds,
            parity=parity,
        )
        if not report.passed or not report.rows:
            sys.exit(f"a bench did not pass, and its numbers count for nothing:\n{describe_latency(report)}")
        runs.append(report.model_dump(mode="json")["rows"])
    rows = [compare(*pair) for pair in zip(*runs, strict=True)]
    record({"conditions": {**conditions(PACKAGES), "rounds": options.rounds}, "rows": rows}, options.out)


if __name__ == "__main__":
    main()
