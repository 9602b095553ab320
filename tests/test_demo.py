"""The demo does what the README shows of it."""

import json
from pathlib import Path

import pytest

from funnel_export import load_bundle
from funnel_export.demo import FUNNEL, describe_demo, run_demo
from funnel_export.errors import BundleError


def test_demo(tmp_path: Path) -> None:
    out, steps = tmp_path / "out", []
    report = run_demo(out, lengths=(24,), rounds=1, progress=steps.append)
    assert report.parity.passed
    assert load_bundle(out / "funnel").manifest.spec == FUNNEL
    assert load_bundle(out / "dense").manifest.spec is None
    assert [row.runtime for row in report.latency] == ["eager PyTorch", "onnxruntime", "openvino"]
    assert all(row.ratio == row.funnel.median_ms / row.dense.median_ms for row in report.latency)
    assert json.loads((out / "demo.json").read_text())["parity"]["passed"] is True
    text = describe_demo(out, report)
    for part in ("▼ pool: mean of 2 tokens", "limits: max", "funnel/dense", "predicted"):
        assert part in text
    assert any(step.startswith("parity:") for step in steps)


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(BundleError, match="holds something else"):
        run_demo(tmp_path, progress=lambda step: None)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
