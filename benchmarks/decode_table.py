"""The tables of decoding: times of prompts and tokens, where the time of a step goes, and the largest shapes."""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


LIMITS = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.2}
"""The largest error with which a runtime computes what PyTorch computes. In 4 bits, random weights change the logits as
much as another model does, so a runtime is judged by its other precisions."""


def decode(name: str = "decode") -> str:
    """A table for each shape, and what the bytes predict; the run is long, and its file may come later."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "not run yet"
    result: dict[str, Any] = json.loads(file.read_text())
    measured = list(result["parts"].values())
    speeds = [part["bandwidth_gb_s"] for part in measured]
    fastest: dict[str, float] = {}
    for part in measured:  # runs of several days: the machine was not as fast on each
        run = _listed(part["conditions"])
        fastest[run] = max(fastest.get(run, 0.0), part["bandwidth_gb_s"])
    known = json.loads((RESULTS / "decode.json").read_text())["parts"].values()
    differing = _differing((*known, *measured))
    parts = [_table(part, fastest[_listed(part["conditions"])], differing) for part in measured]
    speed = f"between {min(speeds):.1f} and {max(speeds):.1f} GB/s after the parts; the largest of a run counts"
    parts.append(f"Bandwidth of a float32 matrix-vector product: {speed}.")
    different = [
        each["conditions"] for n, each in enumerate(measured) if each["conditions"] != measured[n - 1]["conditions"]
    ]
    conditions = different or [measured[0]["conditions"]]
    parts += [f"({_listed(each)})" for each in (*conditions, *result["versions"].values())]
    return "\n\n".join(parts)


def _table(shape: Mapping[str, Any], gb_s: float, differing: Collection[str]) -> str:
    """The rows of one shape; columns in which no row has anything are left out."""
    after = f"a token after {shape['length']}" if shape["steps"] else f"a prompt of {shape['length']}"
    by_name = {row["name"]: row for row in shape["rows"]}
    rows = [
        _cells(row, by_name, gb_s, differing) if row["state"] == "run" else {"ms": row["state"]}
        for row in shape["rows"]
    ]
    columns = [name for name in COLUMNS if any(row.get(name) for row in rows)]
    shown = [(name, *(row.get(column, "") for column in columns)) for name, row in zip(by_name, rows, strict=True)]
    return tabulate(shown, (after, *columns), tablefmt="github", disable_numparse=True)


COLUMNS = (
    *("ms", "of the bandwidth", "funnel / dense", "bytes", "error", "of its own weights"),
    *("time over others'", "peak memory"),
)


def _cells(row: Row, by_name: Mapping[str, Row], gb_s: float, differing: Collection[str]) -> dict[str, str]:
    """What a table shows of a row, by column."""
    ratio, size, dense = row["ratio"], row["bytes"], by_name.get(row["name"].partition(",")[0], row)
    exact = None if row["precision"] in ("float32", "bfloat16") else row.get("graph_error")
    mark = ": DIFFERS" if row["runtime"] in differing else ""
    return {
        "ms": f"{row['median_ms']:.1f} ({row['low_ms']:.1f} to {row['high_ms']:.1f})",
        "of the bandwidth": f"{size / (gb_s * 1e9) * 1e3 / row['median_ms']:.0%}" if size else "",
        "funnel / dense": f"{ratio['value']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "",
        "bytes": f"{size / dense['bytes']:.2f}" if ratio and size else "",
        "error": "" if row["error"] is None else f"{row['error']:.0e}{mark}",
        "of its own weights": "" if exact is None else f"{exact:.0e}",
        "time over others'": _beside(row, by_name, differing),
        "peak memory": f"{row['host_bytes'] / 1e9:.2f} GB",
    }


def _differing(parts: Iterable[Mapping[str, Any]]) -> set[str]:
    """The runtimes that compute another model."""
    rows = [row for part in parts for row in part["rows"] if row.get("error") is not None]
    return {row["runtime"] for row in rows if not row["error"] <= LIMITS.get(row["precision"], math.inf)}


def _beside(row: Row, by_name: Mapping[str, Row], differing: Collection[str]) -> str:
    """The time of a row over those of its runtime in float32, and of tools that compute the same model."""
    found = {name: ratio for name, ratio in row.get("beside", {}).items() if by_name[name]["runtime"] not in differing}
    words = {name: "float32" if name.startswith(f"{row['runtime']} ") else name.split()[0] for name in found}
    return ", ".join(f"{ratio['value']:.2f} of {words[name]}" for name, ratio in found.items())


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


PRODUCTS = {"MatMul", "FusedMatMul", "Gemm", "FullyConnected", "FullyConnectedCompressed", "MatMulNBits"}
"""Products of matrices, under the names of both runtimes."""
SHOWN = 6
"""Kinds of operations other than products that are listed."""


def profile(file: str = "decode_profile") -> str:
    """What a step spends its time on, in each runtime."""
    result: dict[str, Any] = json.loads((RESULTS / f"{file}.json").read_text())
    lines = []
    for title, name in (("ONNX Runtime", "OnnxRuntimeProfile"), ("OpenVINO", "OpenVinoProfile")):
        found = result[name]
        operations: dict[str, float] = found["operations_ms"]
        products = sum(operations.pop(kind, 0.0) for kind in PRODUCTS)
        rest = sorted(operations.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{kind} {time:.1f}" for kind, time in rest[:SHOWN])
        speed = result["bytes"] / products / 1e6
        share = f"{products:.1f} ms ({speed:.1f} GB/s, {speed / result['bandwidth_gb_s']:.0%} of the bandwidth)"
        others = sum(operations.values())
        lines.append((title, f"{found['step_ms']:.1f} ms", share, f"{others:.1f} ms: {listed}"))
    headers = ("", "a step, profiled", "products", "other operations")
    table = tabulate(lines, headers, tablefmt="github", disable_numparse=True)
    return f"{table}\n\n({_listed(result['conditions'])}; bandwidth {result['bandwidth_gb_s']:.1f} GB/s)"


def generate_2b() -> str:
    """Export, one text and three plans at Gemma2-2B's shapes."""
    result: dict[str, Any] = json.loads((RESULTS / "generate_2b.json").read_text())
    made, run = result["export"], result["openvino"]
    lines = [
        (f"export, {made['dtype']}, {result['funnel']}", f"{made['seconds']:.0f} s", f"{made['peak_gb']:.1f} GB", ""),
        ("OpenVINO, load", f"{run['load_s']:.0f} s", f"{run['peak_gb']:.1f} GB", ""),
        (f"OpenVINO, a prompt of {result['prompt']}", f"{run['prompt_s']:.1f} s", "", ""),
        (f"OpenVINO, a token, median of {result['steps']}", f"{run['median_step_s'] * 1e3:.0f} ms", "", ""),
    ]
    for graph, plan in result["plans"].items():
        if plan["state"] != "built":
            lines.append((f"TensorRT-RTX, {graph}", plan["state"], "", ""))
            continue
        figures = f"{plan['seconds']:.0f} s", f"{plan['peak_gb']:.1f} GB", f"{plan['bytes'] / 1e9:.2f} GB"
        lines.append((f"TensorRT-RTX, {graph}", *figures))
    table = tabulate(lines, ("", "time", "peak memory", "plan"), tablefmt="github", disable_numparse=True)
    weights = f"{result['weights_gb']} GB of weights, a cache of {run['cache_gb'] * 1e3:.0f} MB at the end"
    return f"{table}\n\n{weights}.\n\n({_listed(result['conditions'])})"


def quantize_2b() -> str:
    """Gemma2-2B's shapes in 4 bits: what `quantize` takes, and steps in OpenVINO."""
    file = RESULTS / "quantize_2b.json"
    if not file.exists():
        return "not run yet"
    result: dict[str, Any] = json.loads(file.read_text())
    lines = []
    for model, funnel in result["funnels"].items():
        if model not in result:
            continue
        name = model if funnel == "none" else f"{model} {funnel}"
        made, run = result[model]["quantize"], result[model].get("openvino", {})
        peak = f"{made['peak_gb']:.2f} GB: {made['anonymous_gb']:.2f} anonymous, {made['mapped_gb']:.2f} mapped"
        figures = (
            (
                f"{run['load_s']:.0f} s",
                f"{run['prompt_s']:.1f} s",
                f"{run['tokens_per_s']:.1f}",
                f"{run['peak_gb']:.1f} GB",
            )
            if run.get("finite")
            else (run.get("why", "not run yet"),)
        )
        lines.append((name, f"{made['seconds']:.0f} s", peak, f"{made['bytes'] / 1e9:.2f} GB", *figures))
    headers = ("", f"quantize to {result['bits']} bits", "peak memory", "bundle", "OpenVINO, load")
    headers += (f"a prompt of {result['prompt']}", "tokens/s", "peak memory")
    shown = [(*line, *[""] * (len(headers) - len(line))) for line in lines]
    table = tabulate(shown, headers, tablefmt="github", disable_numparse=True)
    weights = (
        f"{result['weights_gb']} GB of weights in bfloat16; tokens/s of {result['steps']} steps, exact activations"
    )
    return f"{table}\n\n{weights}.\n\n({_listed(result['conditions'])})"
