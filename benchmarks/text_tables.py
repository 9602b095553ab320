"""Tables of decoding, of a model with trained weights, and of exports of large shapes."""

import json
from pathlib import Path
from typing import Any

from tabulate import tabulate

RESULTS = Path(__file__).parent / "results"
WEIGHT_BYTES = {"float32": 4, "bfloat16": 2}


def listed(conditions: dict[str, Any]) -> str:
    """Conditions in a row."""
    return ", ".join(f"{name} {value}" for name, value in conditions.items())


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
    conditions = result["conditions"] | {"threads": 1, "rounds": result["rounds"]}
    parts.append(
        f"Bandwidth of a float32 matrix-vector product: {result['bandwidth_gb_s']:.1f} GB/s on one thread.\n\n"
        f"({listed(conditions)})"
    )
    return "\n\n".join(parts)


def real() -> str:
    """Gemma 3 270M: loss, texts, parity, largest values and latencies."""
    result: dict[str, Any] = json.loads((RESULTS / "real.json").read_text())
    loss, greedy = result["loss"], result["greedy"]
    lines = [
        f"Loss on {result['tokens']:,} tokens of Brown: {loss['eager']:.6f} nats in eager PyTorch, "
        f"{loss['onnxruntime']:.6f} in ONNX Runtime; the largest difference at one token is "
        f"{loss['largest_difference']:.1e}.",
        f"Of {result['written']} greedy tokens, "
        + " and ".join(f"{greedy[name]['equal']} in {name}" for name in ("onnxruntime", "openvino"))
        + " equal Hugging Face's.",
    ]
    rows = [
        (
            kind,
            f"{found['floor']['rms_rel']:.1e}",
            *(_share(found["of_limit"].get(name), found["passed"].get(name)) for name in TARGETS),
        )
        for kind, found in result["parity"].items()
    ]
    headers = ("rows of up to " + str(result["length"]) + " tokens", "eager's rms error", *TARGETS)
    values = result["largest_values"]
    over = [name for name, value in values.items() if value > 65504]
    lines += [
        tabulate(rows, headers, tablefmt="github", disable_numparse=True),
        f"Largest absolute value in the text: {max(values.values()):,.0f} at {max(values, key=values.__getitem__)}; "
        f"above float16's largest, 65,504: {', '.join(over) or 'none'}.",
        _latencies(result["latency"], result["funnel"]),
        f"({listed(result['conditions'])})",
    ]
    return "\n\n".join(lines)


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
    headers = ("", "funnel", "task", "weights", "CPU time", "wall time", "peak memory")
    return f"{tabulate(rows, headers, tablefmt='github', disable_numparse=True)}\n\n({listed(result['conditions'])})"


TARGETS = ("onnxruntime", "openvino", "openvino-cpu")


def _share(errors: dict[str, float] | None, passed: bool | None) -> str:
    """The largest errors of a target as shares of their limits."""
    if errors is None:
        return ""
    return f"max {errors['max']:.2f}, rms {errors['rms']:.2f} of the limit" + ("" if passed else ": FAILED")


def _latencies(rows: list[dict[str, Any]], funnel: str) -> str:
    cells = [
        (
            row["runtime"],
            str(row["length"]),
            f"{row['dense']['median_ms']:.0f} ms",
            f"{row['funnel']['median_ms']:.0f} ms",
            f"{row['ratio']['value']:.2f} ({row['ratio']['low']:.2f} to {row['ratio']['high']:.2f})",
            f"{row['predicted']:.2f}",
        )
        for row in rows
    ]
    headers = ("float32", "length", "dense", f"funnel {funnel}", "funnel / dense", "predicted")
    return tabulate(cells, headers, tablefmt="github", disable_numparse=True)
