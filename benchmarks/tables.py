"""Tables of the READMEs and docs, made from the result files.

python benchmarks/tables.py           write them
"""

import json
import math
import re
import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import decode_table
import quality_table
import real_table
import repeat
import shapes_table
from bits_table import bits
from choosing import choosing
from heads_table import heads
from peers_table import render
from summary import summary
from tabulate import tabulate

from funnel_export.latency.latency_report import LatencyReport
from funnel_export.report.text import describe_latency

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def listed(conditions: Mapping[str, Any]) -> str:
    """Conditions in a row."""
    return ", ".join(f"{name} {value}" for name, value in conditions.items())


def demo() -> str:
    """The demo's latencies with their conditions."""
    report = LatencyReport.model_validate_json((RESULTS / "demo.json").read_text())
    assert report.passed
    return f"```text\n{describe_latency(report)}\n```\n\n({listed(report.conditions)}; parity passed)"


def gemma2_2b() -> str:
    """Parity and latency at Gemma2-2B shapes; what export costs is measured elsewhere."""
    result: dict[str, Any] = json.loads((RESULTS / "gemma2_2b.json").read_text())
    rows = []
    for kind in ("dense", "funnel"):
        parity, openvino = (result[kind][step] for step in ("parity", "openvino"))
        rows.append(
            (
                f"{kind} ({result[kind]['spec']})",
                f"{'' if parity['passed'] else 'FAILED '}{parity['rms_rel']:.1e} of {parity['limit_rms_rel']:.1e}",
                f"{openvino['load_s']:.0f} s, {openvino['peak_gb']:.1f} GB",
                ", ".join(f"{run['length']}: {run['median_s']:.2f} s" for run in openvino["runs"]),
            )
        )
    headers = ("", "rms error and its limit", "OpenVINO load", "latency at length")
    ratios = ", ".join(f"{ratio:.2f} at {length}" for length, ratio in result["funnel_over_dense"].items())
    conditions = listed({"cpu": result["funnel"]["openvino"]["device"]} | result["conditions"])
    return (
        f"{tabulate(rows, headers, tablefmt='github')}\n\n"
        f"{result['weights_gb']} GB of weights. Funnel/dense: {ratios}. "
        f"Each kind ran in a process of its own, one after the other, so the ratio is rougher than the demo's.\n\n"
        f"({conditions})"
    )


AGREES = 1e-4
"""The largest error, of the largest output, at which a float32 graph computes what PyTorch computes."""

LABELS = {
    "dense": "funnel_export, dense",
    "funnel": "funnel_export, funnel",
    "torch.onnx": "torch.onnx.export",
    "genai": "onnxruntime-genai builder",
    "optimum": "optimum-cli export onnx",
}


def seconds(result: dict[str, Any]) -> str:
    """A median and its range."""
    times = [run["seconds"] for run in result["runs"]]
    return f"{result['seconds']:.1f} s ({min(times):.1f} to {max(times):.1f})"


def agreement(parity: dict[str, float] | str) -> str:
    """What a comparison with eager PyTorch gave."""
    if isinstance(parity, str):
        return parity
    return f"{parity['max_rel']:.0e}" + ("" if parity["max_rel"] <= AGREES else ": DIFFERS")


def verdict(value: float, limit: float, unit: str) -> str:
    """A budget and whether it is met."""
    return f"{value:.2f} of {limit:.2f} {unit}: {'met' if value <= limit else 'MISSED'}"


def export_peers() -> str:
    """This package's export and others' on one checkpoint."""
    result: dict[str, Any] = json.loads((RESULTS / "export.json").read_text())
    peers = result["peers"]
    results = peers["results"]
    labels = LABELS | {"funnel": f"{LABELS['funnel']} {peers['funnel']}"}
    rows = []
    for name, label in labels.items():
        found = results[name]
        if found["state"] != "run":
            rows.append((label, found["state"]))
            continue
        figures = (f"{found['call_seconds']:.1f} s", f"{found['peak_gb']:.2f} GB", f"{found['disk_gb']:.2f} GB")
        rows.append((label, seconds(found), *figures, agreement(found["parity"])))
    headers = ("", "whole process", "without imports", "peak memory", "new on disk", "largest error")
    text = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return f"{text}\n\n{_peers_budget(results)}\n\n({listed(result['conditions'])})" + "".join(
        f"\n({LABELS[name]}: {listed(versions)})" for name, versions in peers["versions"].items()
    )


def _peers_budget(results: dict[str, Any]) -> str:
    dense, genai = results["dense"], results["genai"]
    if "seconds" not in genai or "seconds" not in dense:
        return "Budget: not known, since one of the two was not run."
    time = verdict(dense["seconds"], genai["seconds"], "s")
    memory = verdict(dense["peak_gb"], genai["peak_gb"] / 2, "GB")
    return f"Budget: no slower than the genai builder ({time}), with at most half of its memory ({memory})."


def peers(name: str = "peers") -> str:
    """This package's latency and others' on one checkpoint; the run is long, and its file may come later."""
    file = RESULTS / f"{name}.json"
    if not file.exists():
        return "not run yet"
    result: dict[str, Any] = json.loads(file.read_text())
    conditions = [f"({listed(result['conditions'])})"]
    conditions += [f"({LABELS[name]}: {listed(versions)})" for name, versions in result["versions"].items()]
    return f"{render(result)}\n\n" + "\n".join(conditions)


def repeated() -> str:
    """Two runs of `bench`, one after the other."""
    file = RESULTS / "repeat.json"
    if not file.exists():
        return "not run yet"
    result: dict[str, Any] = json.loads(file.read_text())
    return f"{repeat.render(result)}\n\n({listed(result['conditions'])})"


BUDGETS = {"2B": 30, "27B": 60}
"""Seconds; 1 GB of memory each."""


def export_shapes() -> str:
    """Export at the published shapes."""
    result: dict[str, Any] = json.loads((RESULTS / "export.json").read_text())
    rows = []
    for shape, facts in result["shapes"]["shapes"].items():
        for kind in ("dense", "funnel"):
            found = result["shapes"]["results"][f"{shape} {kind}"]
            name = f"{shape} {kind}" + (f" {facts['funnel']}" if kind == "funnel" else "")
            weights = f"{facts['weights_gb']:.1f} GB in {facts['files']}"
            if found["state"] != "run":
                rows.append((name, weights, found["state"]))
                continue
            figures = (
                f"{found['call_seconds']:.1f} s",
                f"{found['peak_gb']:.2f} GB",
                f"{found['disk_gb'] * 1e3:.2f} MB",
            )
            rows.append((name, weights, seconds(found), *figures, _shape_budget(found, BUDGETS.get(shape))))
    headers = ("", "weights in files", "whole process", "without imports", "peak memory", "new on disk", "budget")
    text = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return f"{text}\n\n({listed(result['conditions'])}; parity {result['shapes']['parity']})"


def _shape_budget(found: dict[str, Any], limit: float | None) -> str:
    if limit is None:
        return "-"
    met = found["seconds"] <= limit and found["peak_gb"] <= 1
    return f"{limit} s, 1 GB: {'met' if met else 'MISSED'}"


def compile_rtx() -> str:
    """TensorRT-RTX: time and size of each small engine, what was not built, and why."""
    small = json.loads((RESULTS / "compile.json").read_text())["small"]
    rows, reasons = [], {}
    for name, found in small["results"].items():
        rows.append((name, *(_cell(by_target["tensorrt-rtx"]) for by_target in found.values())))
        for dtype, by_target in found.items():
            for target, result in by_target.items():
                if result["state"] != "built":
                    place = name if result["state"] == "refused" else f"{target}, {dtype}"
                    reasons[f"{place}: {_reason(result)}"] = None
    dtypes = list(next(iter(small["results"].values())))
    text = tabulate(rows, ("", *dtypes), tablefmt="github", disable_numparse=True)
    return f"{text}\n\nNot built:\n\n" + "\n".join(f"- {reason}" for reason in reasons)


def _cell(result: dict[str, Any]) -> str:
    if result["state"] != "built":
        return {"refused": "refused", "unavailable": "not here"}.get(result["state"], "FAILED")
    return f"{result['seconds']:.1f} s, {result['bytes'] / 1e6:.0f} MB"


def _reason(result: dict[str, Any]) -> str:
    lines = [line.strip() for line in result["why"].splitlines()]
    shown = {"refused": lines[:1], "unavailable": lines[:2]}.get(result["state"], lines)
    return f"{result['state']}: {', '.join(shown)}"


def compile_targets() -> str:
    """All small engines of a target and a dtype in a row."""
    small = json.loads((RESULTS / "compile.json").read_text())["small"]
    rows = []
    for target in ("tensorrt-rtx", "onnxruntime", "openvino"):
        for dtype in next(iter(small["results"].values())):
            asked = [found[dtype][target] for found in small["results"].values()]
            asked = [result for result in asked if result["state"] != "refused"]
            rows.append((target, dtype, *_summary([result for result in asked if result["state"] == "built"], asked)))
            if target == "tensorrt-rtx":
                rows[-1] = (*rows[-1][:-1], f"not run; {_products(asked, dtype)}")
    headers = ("target", "dtype", "built", "seconds", "size", "checked")
    text = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    return f"{text}\n\n({listed(small['conditions'])})"


def _summary(built: list[dict[str, Any]], asked: list[dict[str, Any]]) -> tuple[str, ...]:
    count = f"{len(built)} of {len(asked)}"
    if not built:
        return (count, "-", "-", "-")
    times, sizes = [result["seconds"] for result in built], [result["bytes"] / 1e6 for result in built]
    parity = [result["parity"] for result in built if "parity" in result]
    worst = max((p["rms_rel"] / p["limit_rms_rel"] for p in parity if p.get("rms_rel") is not None), default=math.nan)
    passed = sum(p["passed"] for p in parity)
    return (
        count,
        f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})",
        f"{min(sizes):.0f} to {max(sizes):.0f} MB",
        f"{passed} of {len(built)} pass; rms error at most {worst:.2f} of its limit",
    )


def _products(results: list[dict[str, Any]], dtype: str) -> str:
    counts = [result["matrix_products"] for result in results if result["state"] == "built"]
    own, total = sum(count.get(dtype, 0) for count in counts), sum(sum(count.values()) for count in counts)
    return f"{own} of {total} matrix products in {dtype}"


def compile_large() -> str:
    """TensorRT-RTX at Gemma2-2B's shapes: time, plan, and the memory of the process that builds."""
    large = json.loads((RESULTS / "compile.json").read_text())["large"]
    labels = {"funnel": f"funnel {large['funnel']}", "funnel, limited": "the same, limited"}
    rows = []
    for name, found in large["results"].items():
        limit = found.get("limit")
        under = f"{limit['limit_gb']:.2f} GB, {limit['most_used_gb']:.2f} GB used" if limit else "-"
        if found["state"] != "built":
            rows.append((labels.get(name, name), ": ".join(found[k] for k in ("state", "why") if k in found), under))
            continue
        plan = f"{found['bytes'] / 1e9:.2f} GB, {found['bytes'] / found['weights_bytes']:.3f} of the weights"
        peak = f"{found['peak_gb']:.1f} GB: {found['anonymous_gb']:.1f} anonymous, {found['mapped_gb']:.1f} mapped"
        anonymous = f"{found['largest_anonymous_gb']:.1f} GB"
        rows.append((labels.get(name, name), f"{found['seconds']:.0f} s", under, plan, peak, anonymous))
    headers = ("", "compile", "limit of memory", "plan", "peak memory", "anonymous at most")
    text = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
    weights = large["results"]["dense"]["weights_bytes"] / 1e9
    return (
        f"{text}\n\n{weights:.2f} GB of weights in {large['dtype']}; one build each.\n\n({listed(large['conditions'])})"
    )


def gpu_parity() -> str:
    """Small engines that ran on a GPU, compared with eager PyTorch."""
    found = json.loads((RESULTS / "gpu.json").read_text())["parity"]
    rows = []
    for case in (name for name in found if name not in ("conditions", "seconds")):
        parities = {dtype: found[case][dtype]["onnxruntime"]["parity"] for dtype in ("float32", "float16", "bfloat16")}
        rows.append((case, *map(_share_of_limit, parities.values())))
    headers = ("ONNX Runtime, CUDA", "float32", "float16", "bfloat16")
    return f"{tabulate(rows, headers, tablefmt='github')}\n\n({listed(found['conditions'])})"


def _share_of_limit(parity: dict[str, Any]) -> str:
    verdict = "passes" if parity["passed"] else "FAILS"
    return f"{verdict}, {parity['rms_rel'] / parity['limit_rms_rel']:.2f} of the limit"


def gpu_latency() -> str:
    """Gemma2-2B's shapes on a GPU: dense and funnel by runtime and length, a table for each stride."""
    found = json.loads((RESULTS / "gpu.json").read_text())
    parts = []
    for name in ("S=2", "S=4"):
        report = LatencyReport.model_validate(found[name]["report"])
        assert report.passed
        rows = [
            (
                f"{row.runtime} {row.batch}x{row.length}",
                f"{row.dense.median_ms:.1f} ms",
                f"{row.funnel.median_ms:.1f} ms",
                f"{row.ratio.value:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})",
                f"{row.predicted:.2f}",
            )
            for row in report.rows
        ]
        label = "funnel {pool_layer}:{recover_layer}:{stride}".format_map(report.funnel)
        headers = ("", "dense", label, "funnel / dense", "predicted")
        parts.append(tabulate(rows, headers, tablefmt="github", disable_numparse=True))
    parts.append(f"({listed(found['S=2']['conditions'] | {'rounds': report.rounds})})")
    return "\n\n".join(parts)


def gpu_decode() -> str:
    """Gemma2-2B's shapes with a cache on a GPU: a prompt, and milliseconds a token after it."""
    found = json.loads((RESULTS / "gpu.json").read_text())["decode S=2"]
    report = LatencyReport.model_validate(found["report"])
    rows = [
        (
            f"{row.runtime}, {f'a token after {row.length}' if row.steps else f'prompt of {row.length}'}",
            f"{row.dense.median_ms:.1f} ms",
            f"{row.funnel.median_ms:.1f} ms",
            f"{row.ratio.value:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})",
            f"{row.predicted:.2f}",
        )
        for row in report.rows
    ]
    headers = ("", "dense", "funnel {pool_layer}:{recover_layer}:{stride}".format_map(report.funnel), "funnel / dense")
    table = tabulate(rows, (*headers, "predicted"), tablefmt="github", disable_numparse=True)
    return f"{table}\n\n({listed(found['conditions'] | {'rounds': report.rounds})})"


TABLES = {
    "README.md": {"summary": summary, "demo": demo},
    "docs/choosing.md": {"choosing": choosing},
    "docs/quantize.md": {"bits": bits},
    "docs/quality.md": {
        "quality_512": partial(quality_table.quality, 512),
        "quality_2048": partial(quality_table.quality, 2048),
        "training": quality_table.training,
        "trained": quality_table.trained,
        "strides": quality_table.strides,
        "tag": partial(heads, "tag", "sentences"),
        "classify": partial(heads, "classify", "mails"),
    },
    "benchmarks/README.md": {
        "export_peers": export_peers,
        "export_shapes": export_shapes,
        "peers": peers,
        "peers_amx": partial(peers, "peers_amx"),
        "repeat": repeated,
        "gemma2_2b": gemma2_2b,
        "compile_rtx": compile_rtx,
        "compile_targets": compile_targets,
        "compile_large": compile_large,
        "gpu_parity": gpu_parity,
        "gpu_latency": gpu_latency,
        "gpu_decode": gpu_decode,
        "shapes": shapes_table.shapes,
        "decode": decode_table.decode,
        "decode_bits": partial(decode_table.decode, "decode_bits"),
        "decode_profile": decode_table.profile,
        "decode_profile_int4": partial(decode_table.profile, "decode_profile_int4"),
        "generate_2b": decode_table.generate_2b,
        "quantize_2b": decode_table.quantize_2b,
        "real": real_table.real,
    },
}


def rendered(file: str) -> str:
    """A README with its tables made anew."""
    text = (ROOT / file).read_text()
    for name, make in TABLES[file].items():
        section = f"<!-- {name} -->\n{make()}\n<!-- /{name} -->"
        text, found = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, s=section: s, text, flags=re.DOTALL)
        assert found == 1, f"{file} has no place for {name}"
    return text


if __name__ == "__main__":
    for file in TABLES:
        (ROOT / file).write_text(rendered(file))
