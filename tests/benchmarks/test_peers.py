"""Trials of peers: what does not agree counts for nothing, and a promise that is not kept is said to be missed."""

import json
from pathlib import Path
from typing import Any

import peers
import peers_judging
import peers_table
import pytest

from funnel_export.latency.shape import Shape

PREDICTED = {"S=2": 0.8, "S=4": 0.6}


def row(runtime: str, dtype: str, model: str, ms: float, sample: float = 1.0) -> dict[str, Any]:
    """A runner that took so long in both of its rounds."""
    facts = {"name": f"{runtime} {dtype}, {model}", "runtime": runtime, "dtype": dtype, "model": model}
    times = {"seconds": [ms / 1000] * 2, "median_ms": ms, "low_ms": ms, "high_ms": ms}
    rest = {"precision": dtype, "load_seconds": 1.0, "host_bytes": 10**9}
    return {**facts, **times, **rest, "state": "run", "sample": [sample, -1.0]}


def judged(*more: dict[str, Any]) -> dict[str, Any]:
    """A shape with eager of each model, OpenVINO in bfloat16, and more."""
    rows = [row("eager", "float32", model, 100) for model in ("dense", "S=2", "S=4")]
    rows += [row("openvino", "bfloat16", model, ms) for model, ms in (("dense", 50), ("S=2", 42), ("S=4", 25))]
    agreed = peers_judging.with_agreement([*rows, *more])
    shape = {"batch": 1, "length": 8, "rounds": 2, "together": True, "rows": agreed}
    return {**shape, **peers_judging.judge(agreed, PREDICTED)}


def test_ratios_are_those_of_one_runtime_and_dtype() -> None:
    found = {(r["runtime"], r["model"]): r for r in judged()["ratios"]}
    assert found["openvino", "S=2"]["value"] == 0.84
    assert found["openvino", "S=2"]["beside"] == "above"
    assert found["openvino", "S=4"]["beside"] == "under"


def test_a_ratio_whose_interval_holds_the_predicted_one_is_neither_under_nor_above() -> None:
    assert peers_judging.beside({"low": 0.7, "high": 0.8, "predicted": 0.75}) == "as predicted"


def test_promises() -> None:
    shape = judged()
    assert shape["over_best_peer"]["peer"] == "openvino bfloat16, dense"
    assert not shape["over_best_peer"]["met"]
    assert (shape["saved"]["target"], shape["saved"]["value"]) == ("openvino bfloat16", 0.5)
    assert shape["saved"]["met"]


def test_what_differs_is_no_peer_and_has_no_ratio() -> None:
    wrong = row("optimum", "float32", "dense", 1, sample=1.01)
    assert judged(wrong)["over_best_peer"]["peer"] == "openvino bfloat16, dense"
    nan = row("openvino", "float32", "dense", 1, sample=float("nan"))
    ratios = judged(nan, row("openvino", "float32", "S=2", 1))["ratios"]
    assert ratios[-1]["state"].startswith("not known")


def test_table() -> None:
    missing = {**row("genai", "float32", "dense", 1), "state": "not run: there is none"}
    shapes = [judged(row("optimum", "float32", "dense", 7, sample=1.01), missing)]
    text = peers_table.render({"shapes": shapes, "funnels": {"S=4": "3:10:4"}})
    assert "(7) DIFFERS" in text
    assert "| not run" in text
    assert "0.84 (0.84 to 0.84) of 0.80, ABOVE" in text
    assert (
        "Of the 2 on ONNX Runtime and OpenVINO, 1 are at most what was predicted; by their intervals 1 lie under"
        in text
    )
    assert "0.50 (0.50 to 0.50) on openvino bfloat16, at least 0.44: met" in text


def test_a_run_that_was_cut_off_goes_on_under_the_same_conditions_only(tmp_path: Path) -> None:
    out = tmp_path / "peers.json"
    out.write_text(json.dumps({"conditions": {"cpus": 2}, "shapes": [judged()]}))
    kept = peers.kept_shapes(out, {"conditions": {"cpus": 2}, "shapes": []})
    assert kept[Shape(1, 8)]["over_best_peer"]["peer"] == "openvino bfloat16, dense"
    with pytest.raises(ValueError, match="other conditions than now"):
        peers.kept_shapes(out, {"conditions": {"cpus": 4}, "shapes": []})
