"""The demo does what the README shows of it."""

from functools import partial
from pathlib import Path

import pytest
from exported import Recipe
from latencies import make_demo, make_latency, make_parity
from tiers import SOAK
from typer.testing import CliRunner

from funnel_export import load_bundle
from funnel_export.bundle.engine import engine_names
from funnel_export.cli import app
from funnel_export.commands.demo import FUNNEL, NEW_TOKENS, PROMPT, describe_demo, make_checkpoint, run_demo
from funnel_export.errors import BundleError
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.targets.registry import get_target


@pytest.mark.skipif(not SOAK, reason="takes long: make soak, and CI runs make demo")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(make_checkpoint, hidden_size=64, intermediate_size=96, head_dim=16, query_pre_attn_scalar=16)
    monkeypatch.setattr("funnel_export.commands.demo.make_checkpoint", small)
    out, steps = tmp_path / "out", []
    found = run_demo(out, lengths=(24,), rounds=6, progress=lambda step, *_: steps.append(step))
    report = found.report
    assert report.parity.passed
    assert load_bundle(out / "funnel").spec.funnel == FUNNEL
    assert load_bundle(out / "dense").spec.funnel is None
    runtimes = ["eager", "onnxruntime-cpu", "openvino-cpu"]
    assert [row.runtime for row in report.rows] == runtimes
    assert report.passed
    assert set(runtimes[1:]) <= set(engine_names(load_bundle(out / "funnel")))
    if get_target("tensorrt-rtx").availability().compiles:
        assert any(name.startswith("tensorrt-rtx-") for name in engine_names(load_bundle(out / "funnel")))
    assert LatencyReport.model_validate_json((out / "demo.json").read_text()) == report
    assert (out / "funnel" / "reports" / "report.html").is_file()
    assert found.cached.passed
    assert load_bundle(out / "writer").spec.task.has_past
    assert len(found.text.tokens) == NEW_TOKENS
    text = describe_demo(out, found)
    for part in (
        "▼ pool: mean of 2 tokens",
        "limits: max",
        "funnel/dense",
        "predicted",
        "onnxruntime-cpu",
        "parity of the graphs with a cache",
        f"{NEW_TOKENS} tokens, ",
        f"{PROMPT}{found.text.text}",
        "reports/report.html",
    ):
        assert part in text
    stages = list(dict.fromkeys(step.partition(":")[0] for step in steps))
    assert stages == [
        *("making a small Gemma2", "dense bundle", "funnel bundle", "writer bundle", "engines", "parity", "latency"),
        *("parity with a cache", "generating a text"),
    ]
    for table in text.split("parity with")[1].split("parity of")[0].split("latency\n"):
        rows = [line for line in table.splitlines() if line.startswith(tuple(runtimes))]
        assert 2 <= len(rows) <= 8


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(BundleError, match="holds something else"):
        run_demo(tmp_path, progress=lambda step: None)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_the_demo_found_is_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = Recipe().bundle()
    good = make_latency(bundle, min_speedup=None)
    broken = good.runners[0].model_copy(update={"error": "out of luck"})
    refusing = good.parity.targets[0].model_copy(update={"passed": False, "refused": True})
    found = {
        0: good,
        1: good.model_copy(update={"runners": [broken]}),
        4: good.model_copy(update={"parity": make_parity(bundle, passed=False, targets=[refusing])}),
    }
    for code, report in found.items():
        demo = make_demo(report, good.parity)
        monkeypatch.setattr("funnel_export.commands.demo.run_demo", lambda *_, demo=demo, **__: demo)
        done = CliRunner().invoke(app, ["demo", str(tmp_path), "--json"])
        assert done.exit_code == code
        assert LatencyReport.model_validate_json(done.stdout) == report
    demo = make_demo(good, make_parity(bundle, passed=False))
    monkeypatch.setattr("funnel_export.commands.demo.run_demo", lambda *_, **__: demo)
    assert CliRunner().invoke(app, ["demo", str(tmp_path), "--json"]).exit_code == 1, "of the graphs with a cache"


@pytest.mark.parametrize("mark", ["{}", '{"name": "my demo"}', "not JSON"])
def test_a_folder_with_somebodys_demo_json_is_left_alone(mark: str, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(mark)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "weights.bin").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        run_demo(tmp_path, progress=lambda step: None)
    assert (tmp_path / "checkpoint" / "weights.bin").read_text() == "mine"


def test_files_that_were_added_to_a_demos_checkpoint_are_kept(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text(make_latency(Recipe().bundle()).model_dump_json())
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match="holds something else"):
        run_demo(tmp_path, progress=lambda step: None)
    assert (tmp_path / "checkpoint" / "notes.txt").read_text() == "mine"
