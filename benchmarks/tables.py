"""Tables of the READMEs, made from the result files.

python benchmarks/tables.py           write them
"""

import json
import re
from pathlib import Path
from typing import Any

from tabulate import tabulate

from funnel_export.demo import DemoReport, describe_latency

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def demo() -> str:
    """The demo's latencies with their conditions."""
    report = DemoReport.model_validate_json((RESULTS / "demo.json").read_text())
    assert report.parity.passed
    conditions = ", ".join(f"{name} {value}" for name, value in report.conditions.items())
    return f"```\n{describe_latency(report)}\n```\n\n({conditions}; float32, batch 1; parity passed)"


def gemma2_2b() -> str:
    """Export, parity and latency at Gemma2-2B shapes."""
    result: dict[str, Any] = json.loads((RESULTS / "gemma2_2b.json").read_text())
    rows = []
    for kind in ("dense", "funnel"):
        export, parity, openvino = (result[kind][step] for step in ("export", "parity", "openvino"))
        rows.append(
            (
                f"{kind} ({result[kind]['spec']})",
                f"{export['seconds']:.1f} s, {export['peak_gb']:.2f} GB, graph {export['graph_mb']:.2f} MB",
                f"{'' if parity['passed'] else 'FAILED '}{parity['rms_rel']:.1e} of {parity['limit_rms_rel']:.1e}",
                f"{openvino['load_s']:.0f} s, {openvino['peak_gb']:.1f} GB",
                ", ".join(f"{run['length']}: {run['median_s']:.2f} s" for run in openvino["runs"]),
            )
        )
    headers = ("", "export: time, peak memory", "rms error and its limit", "OpenVINO load", "latency at length")
    ratios = ", ".join(f"{ratio:.2f} at {length}" for length, ratio in result["funnel_over_dense"].items())
    device = result["funnel"]["openvino"]["device"]
    conditions = ", ".join(f"{name} {value}" for name, value in result["conditions"].items())
    return (
        f"{tabulate(rows, headers, tablefmt='github')}\n\n"
        f"{result['weights_gb']} GB of weights. Funnel/dense: {ratios}. "
        f"Each kind ran in a process of its own, one after the other, so the ratio is rougher than the demo's.\n\n"
        f"({device}, {conditions})"
    )


TABLES = {"README.md": {"demo": demo}, "benchmarks/README.md": {"gemma2_2b": gemma2_2b}}


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
