"""`bench` of bundles that generate text: prompts and steps, of graphs and of the engines of all graphs together."""

import shutil
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
from breaks import set_constants
from command_line import run
from exported import Recipe
from tamper import agree_with_graph

from funnel_export import Bundle, FunnelSpec, SpecError, bench, compile_bundle, load_bundle
from funnel_export.commands.bench import shapes_to_time
from funnel_export.latency.latency_report import LatencyReport
from funnel_export.latency.shape import Shape
from funnel_export.report.text import describe_latency
from funnel_export.spec.choices import Task

PAST = Task.TEXT_GENERATION_WITH_PAST
FUNNEL = Recipe(task=PAST, funnel=FunnelSpec.parse("1:3:3"))
QUICK: dict[str, Any] = {"lengths": (7,), "rounds": 6, "max_length": 16}
STAGES = ("entry", "middle", "exit")


def own(folder: Path) -> Bundle:
    """A copy of a bundle."""
    return load_bundle(shutil.copytree(FUNNEL.bundle().path, folder / "bundle"))


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, LatencyReport]:
    """A bundle with engines of its three graphs, timed in both targets."""
    bundle = own(tmp_path_factory.mktemp("benched"))
    for role in STAGES:
        compile_bundle(bundle, "onnxruntime", graph=role, options={"intra_op_num_threads": 1})
    return bundle, bench(bundle, min_speedup=1e-6, **QUICK)


def test_prompts_and_steps_of_every_runtime(benched: tuple[Bundle, LatencyReport]) -> None:
    bundle, report = benched
    assert report.passed, describe_latency(report)
    runtimes = ["eager", "onnxruntime", "onnxruntime-cpu", "openvino"]
    places = [(row.runtime, row.shape) for row in report.rows]
    assert places == [(runtime, Shape(1, 7, steps)) for steps in (0, 9) for runtime in runtimes]
    assert report.not_timed == []
    sizes = {runner.runtime: runner.cache_bytes_per_token for runner in report.runners if runner.model == "funnel"}
    assert sizes["eager"] is None
    assert sizes["onnxruntime"] == sizes["onnxruntime-cpu"] == sizes["openvino"]
    assert LatencyReport.model_validate_json((bundle.path / "reports" / "latency.json").read_text()) == report


def test_a_step_is_the_share_of_its_call(benched: tuple[Bundle, LatencyReport]) -> None:
    """The first call of a shape with steps reads the text before them too, and takes longer than a step."""
    _, report = benched
    for row in report.rows:
        assert row.tokens_per_second(row.funnel) == pytest.approx(1000 * (1 if row.steps else 7) / row.funnel.median_ms)
        if row.steps:
            assert row.funnel_first_ms > 3 * row.funnel.median_ms


def test_the_reports_tell_prompts_from_steps(benched: tuple[Bundle, LatencyReport]) -> None:
    bundle, report = benched
    told = describe_latency(report)
    head, _, first, *_ = told.splitlines()
    assert head.split()[:4] == ["runtime", "batch", "phase", "length"]
    assert first.split()[:4] == ["eager", "1", "prompt", "7"]
    assert "step: time a token, the average of 9 after a text of that length" in told
    page = (bundle.path / "reports" / "report.md").read_text()
    assert "cache for a token" in page
    assert "openvino, step: " in page
    assert "for steps that of the bytes that are read" in page


def softer(model: ir.Model) -> None:
    """Another softcap in attention."""
    set_constants(model, "Div", "layers.3", 2.5, 2.0)
    set_constants(model, "Mul", "layers.3", 2.5, 2.0)


def test_a_wrong_stage_has_no_number(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    path = bundle.graphs["exit"].path
    model = ir.load(path)
    before = path.read_bytes()
    softer(model)
    path.unlink()
    ir.save(model, path)
    assert path.read_bytes() != before
    agree_with_graph(bundle.path, "exit")
    report = bench(load_bundle(bundle.path), targets=["onnxruntime"], pytorch=(), **QUICK)
    assert not report.passed
    assert report.rows == []
    assert report.runners[0].error == "no parity, no number: it differs from eager PyTorch from layers.3 on"


def test_engines_without_a_dense_counterpart_have_no_number(tmp_path: Path) -> None:
    """The dense model has one graph, which cannot have the options of two."""
    bundle = own(tmp_path)
    for threads, role in enumerate(STAGES, 1):
        compile_bundle(bundle, "onnxruntime", graph=role, options={"intra_op_num_threads": threads})
    report = bench(bundle, engines=["onnxruntime-cpu"], pytorch=(), min_speedup=1e-6, **QUICK)
    assert report.rows == []
    (runner,) = report.runners
    assert "the engines were compiled with different options" in str(runner.error)
    assert report.gate is not None
    assert report.gate.failures == ["onnxruntime-cpu has no numbers"]


def test_shapes_with_their_steps() -> None:
    bundle = FUNNEL.bundle()
    found = shapes_to_time(bundle, (20, 7), (2, 1), 6, None)
    assert found == [Shape(b, n, s) for b, n in ((1, 7), (2, 7), (1, 20), (2, 20)) for s in (0, 9)]
    with pytest.raises(SpecError, match=r"(?s)max_position_embeddings.*length 504.*at most 503 tokens, and 9 steps"):
        shapes_to_time(bundle, (504,), (1,), 6, None)
    assert shapes_to_time(Recipe().bundle(), (504,), (1,), 6, None) == [Shape(1, 504)]


def test_torch_compile_is_refused_with_a_cache() -> None:
    done = run("bench", FUNNEL.bundle().path, "--pytorch", "torch.compile", "--length", 7)
    assert done.returncode == 2
    assert "torch.compile is not timed with a cache" in done.stderr
    assert "--pytorch eager" in done.stderr


def test_a_dense_bundle_with_a_cache_is_refused() -> None:
    with pytest.raises(SpecError, match="the bundle has no funnel"):
        bench(Recipe(task=PAST, funnel=None).bundle(), **QUICK)
