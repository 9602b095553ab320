"""The latency gate passes a funnel that is right and fast enough, and refuses what is not, naming the place."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from breaks import (
    another_dtype,
    another_softcap,
    changed,
    determinant,
    node,
    own,
    scaled,
    shifted_read_out,
    slower,
    wide_window,
    wrong_in_large_batches,
)
from command_line import run
from embedder import save_modules
from exported import Recipe
from latencies import make_latency
from tamper import agree_with_graph
from tiers import slow

from funnel_export import Bundle, bench, check, compile_bundle, export, load_bundle
from funnel_export.bundle.engine import Engine
from funnel_export.commands import bench as benching
from funnel_export.commands.baseline import baseline, check_graph
from funnel_export.errors import BundleError, FunnelExportWarning, SpecError, TargetRefusedError, TargetUnavailableError
from funnel_export.latency.latency_report import LatencyReport, Model, RunnerResult
from funnel_export.progress import no_progress
from funnel_export.report.text import describe_latency
from funnel_export.spec.choices import Device, Task
from funnel_export.system import claims
from funnel_export.system.worker import Worker
from funnel_export.targets.openvino import OpenVinoTarget
from funnel_export.targets.registry import get_target
from funnel_export.verify.candidates import Candidate

QUICK: dict[str, Any] = {"pytorch": ("eager",), "lengths": (7, 20), "rounds": 6}


@pytest.fixture(scope="module")
def benched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, LatencyReport]:
    """A bundle with an engine, timed in both targets; an earlier bench was killed and left its baseline."""
    bundle = own(tmp_path_factory.mktemp("benched"))
    (bundle.path.parent / ".bundle.partial-0a1b2c3d" / "dense").mkdir(parents=True)
    compile_bundle(bundle, "onnxruntime", options={"intra_op_num_threads": 1}, name="one-thread")
    return bundle, bench(bundle, targets=["onnxruntime", "openvino"], min_speedup=1e-6, **QUICK)


def test_rows_of_every_runtime(benched: tuple[Bundle, LatencyReport]) -> None:
    bundle, report = benched
    assert report.passed
    runtimes = ["eager", "onnxruntime", "one-thread", "openvino"]
    assert [(row.length, row.runtime) for row in report.rows] == [(n, r) for n in (7, 20) for r in runtimes]
    assert [(c.runtime, c.model) for c in report.runners] == [(r, m) for r in runtimes for m in Model]
    for row in report.rows:
        assert row.ratio.low <= row.ratio.value <= row.ratio.high
        assert row.ratio.value == pytest.approx(row.funnel.median_ms / row.dense.median_ms)
        assert 0.5 < row.predicted < 1
        assert row.speedup_over_eager is not None
        assert row.funnel.rounds == 6
    for runner in report.runners:
        assert runner.memory is not None
        assert runner.memory.device_bytes is None
    assert LatencyReport.model_validate_json((bundle.path / "reports" / "latency.json").read_text()) == report
    assert sorted(path.name for path in bundle.path.parent.iterdir()) == ["bundle"], "baselines are removed again"


def test_the_baseline_waits_for_no_lock_of_our_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns, turn = [], claims.turn

    @contextmanager
    def watched(folder: Path) -> Iterator[bool]:
        with turn(folder) as alone:
            turns.append(alone)
            yield alone

    monkeypatch.setattr(claims, "turn", watched)
    with baseline(own(tmp_path), None, no_progress):
        assert len(turns) > 1
    assert all(turns)


def test_what_check_said_may_be_given_and_stays(tmp_path: Path) -> None:
    """A bench that looks at less than a check did does not take the place of its report."""
    bundle = own(tmp_path)
    parity = check(bundle, lengths=QUICK["lengths"])
    before = (bundle.path / "reports" / "parity.json").read_bytes()
    options = QUICK | {"pytorch": ()}
    others = [target.model_copy(update={"passed": target.name == "onnxruntime"}) for target in parity.targets]
    parity = parity.model_copy(update={"targets": others, "engines": {"gone": "0" * 64}, "passed": False})
    report = bench(bundle, targets=["onnxruntime"] * 2, parity=parity, **options)
    assert report.passed, "what is not timed is not judged"
    assert report.parity == parity.only(["onnxruntime"])
    assert [row.runtime for row in report.rows] == ["onnxruntime"] * 2, "one for each length"
    alone = bench(bundle, targets=["onnxruntime"], max_length=3, **options).parity
    assert [target.name for target in alone.targets] == ["onnxruntime"]
    assert alone.lengths_left_out, "of 20 tokens there would be none"
    assert (bundle.path / "reports" / "parity.json").read_bytes() == before


def test_what_check_said_of_something_else_is_refused(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    parity = check(bundle, targets=["onnxruntime"], max_length=3)
    with pytest.raises(SpecError, match=r"(?s)does not cover everything that is timed.*without \['openvino'\]"):
        bench(bundle, parity=parity, **QUICK)
    compile_bundle(bundle, "onnxruntime", name="mine")
    parity = check(bundle, targets=["onnxruntime"], max_length=3)
    of_another_build = parity.model_copy(update={"engines": {"mine": "0" * 64}})
    with pytest.raises(SpecError, match=r"without \['mine'\]"):
        bench(bundle, targets=["onnxruntime"], parity=of_another_build, **QUICK)
    with pytest.raises(BundleError, match="the parity report was made from another bundle"):
        bench(changed(tmp_path / "other", slower), targets=["onnxruntime"], parity=parity, **QUICK)


@pytest.mark.parametrize(
    ("change", "place"),
    [(another_softcap, "layers.2"), (shifted_read_out, "funnel.recovered"), (another_dtype, "layers.1")],
)
def test_no_parity_no_number(change: Callable[[ir.Model], None], place: str, tmp_path: Path) -> None:
    report = bench(changed(tmp_path, change), targets=["onnxruntime"], min_speedup=1e-6, **QUICK | {"pytorch": ()})
    assert not report.passed
    assert not report.parity.passed
    assert report.rows == []
    (runner,) = report.runners
    assert runner.name == "onnxruntime, funnel"
    assert runner.error == f"no parity, no number: it differs from eager PyTorch from {place} on"
    assert report.gate is not None
    assert report.gate.failures == ["onnxruntime has no numbers"]


def test_a_slower_funnel_is_refused_by_name(tmp_path: Path) -> None:
    bundle = changed(tmp_path, slower)
    command = ["bench", bundle.path, "--target", "onnxruntime", "--pytorch", "none", "--length", 8, "--rounds", 6]
    done = run(*command, "--min-speedup", 1.0)
    assert done.returncode == 1, done.stderr
    assert "FAILED: onnxruntime at batch 1, length 8: 0." in done.stdout
    assert "parity: FAILED" not in done.stdout
    passed = run(*command, "--json")
    assert passed.returncode == 0
    assert json.loads(passed.stdout)["parity"]["passed"] is True


def test_outputs_on_the_timed_shapes_count_too(tmp_path: Path) -> None:
    """What passed `check` has no number all the same if it computes something else where it is timed."""
    parity = check(own(tmp_path), targets=["onnxruntime"])
    bundle = changed(tmp_path / "other", another_softcap)
    parity = parity.model_copy(update={"graph_digests": {"model": bundle.model.sha256}})
    report = bench(bundle, targets=["onnxruntime"], parity=parity, **QUICK)
    assert not report.passed
    assert report.parity.passed
    (error,) = [runner.error for runner in report.runners if runner.error]
    assert error.startswith("no parity, no number: at batch 1, length 7 its outputs differ ")
    assert {row.runtime for row in report.rows} == {"eager"}


def test_a_graph_that_is_refused_has_one_exit_code(tmp_path: Path) -> None:
    bundle = changed(tmp_path, determinant)
    for command in (["check"], ["bench", "--pytorch", "none", "--length", 8]):
        done = run(command[0], bundle.path, "--target", "openvino", *command[1:])
        assert done.returncode == 4, done.stderr
        assert "refused the graph" in done.stdout


def test_an_engine_without_a_dense_like_costs_no_other_its_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise TargetRefusedError("no room for another engine")

    bundle = own(tmp_path)
    compile_bundle(bundle, "onnxruntime", name="mine")
    monkeypatch.setattr(benching, "compile_bundle", refuse)
    options = QUICK | {"pytorch": (), "lengths": (7,)}
    report = bench(bundle, targets=["onnxruntime"], min_speedup=1e-6, **options)
    assert [row.runtime for row in report.rows] == ["onnxruntime"]
    assert [each.error for each in report.runners if each.error] == [
        "it could not be compiled: no room for another engine"
    ]
    assert report.gate is not None
    assert report.gate.failures == ["mine has no numbers"]


def test_a_counterpart_takes_no_file_from_a_manifest(tmp_path: Path) -> None:
    """A build reads and overwrites the file of timings that its options name."""
    made = compile_bundle(own(tmp_path), "onnxruntime", name="mine")
    options = {"tf32": True, "timing_cache": "/etc/hostname"}
    engine = Engine(made.path, made.manifest.model_copy(update={"options": options}))
    assert benching._options(Candidate(get_target("tensorrt"), {"model": engine})) == {"tf32": True}


def test_the_time_limit_reaches_every_process_and_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[float]] = {}

    def note(kind: Any, name: str, limit: Callable[..., float]) -> None:
        whole = getattr(kind, name)

        def noted(*given: Any, **named: Any) -> Any:
            seen.setdefault(name, set()).add(limit(*given, **named))
            return whole(*given, **named)

        monkeypatch.setattr(kind, name, noted)

    bundle = own(tmp_path)
    compile_bundle(bundle, "openvino", name="mine")
    note(Worker, "send", lambda _, line, seconds=None: seconds)
    note(Worker, "receive", lambda _, seconds=None: seconds)
    note(OpenVinoTarget, "compile", lambda _, request, *rest: request.timeout)
    note(OpenVinoTarget, "load", lambda *_, timeout=None, **rest: timeout)
    command = ["bench", bundle.path, "--engine", "mine", "--length", 7, "--rounds", 6, "--pytorch", "none"]
    done = run(*command, "--timeout", 123)
    assert done.returncode == 0, done.stderr
    assert seen == {"send": {123}, "receive": {123}, "compile": {123}, "load": {123}}
    seen.clear()
    assert run("check", bundle.path, "--engine", "mine", "--max-length", 3, "--timeout", 45).returncode == 0
    assert seen == {"load": {45}}
    assert run("compile", bundle.path, "--target", "openvino", "--name", "mine", "--timeout", 67).returncode == 0
    assert seen["compile"] == {67}


def test_an_engine_is_not_named_like_a_runtime(tmp_path: Path) -> None:
    bundle = own(tmp_path)
    for name in ("eager", "torch.compile", "openvino"):
        with pytest.raises(SpecError, match="has the name of a runtime"):
            compile_bundle(bundle, "onnxruntime", name=name)
    engine = compile_bundle(bundle, "onnxruntime", name="mine")
    for name, message in (("eager", "the name of a runtime"), ("mine copy", "invalid engine name")):
        folder = engine.path.rename(engine.path.with_name(name))
        for command in (check, bench):
            with pytest.raises(BundleError, match=rf"(?s){message}.*rename its folder"):
                command(bundle, targets=["onnxruntime"])
        folder.rename(engine.path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": ()}, "invalid length"),
        ({"batches": (0,)}, "invalid batch"),
        ({"lengths": (8, 10_000)}, r"(?s)exceeds max_position_embeddings.*length 10000.*at most 512"),
        ({"rounds": 0}, "too few rounds for a 95 % interval"),
        ({"min_speedup": float("nan")}, "invalid minimum speedup"),
        ({"rounds": 5}, "too few rounds for a 95 % interval"),
        ({"pytorch": ("jit",)}, "unknown way to run PyTorch"),
        ({"pytorch": ("torch.compile",)}, r"(?s)torch\.compile alone.*eager beside it"),
        ({"device": "tpu"}, "unknown device"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        bench(Recipe().bundle(), **options)


@pytest.mark.parametrize(
    ("task", "longest"),
    [(Task.TEXT_GENERATION, 512), slow(Task.TEXT_GENERATION_WITH_PAST, 504)],
)
def test_default_lengths_fit_the_model(task: Task, longest: int) -> None:
    """With a cache, there is room for the steps after the prompt."""
    shapes = benching.shapes_to_time(Recipe(task=task, funnel=None).bundle(), None, (1,), 6, None)
    assert {shape.length for shape in shapes} == {128, longest}
    assert max(shape.tokens for shape in shapes) == 512


def test_a_dense_bundle_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(SpecError, match="the bundle has no funnel"):
        bench(Recipe(funnel=None).bundle())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(TargetUnavailableError, match=r"(?s)PyTorch finds no GPU.*--device cpu"):
        bench(Recipe().bundle(), device="cuda")


def test_a_target_that_does_not_run_here() -> None:
    with pytest.raises(TargetUnavailableError):
        bench(Recipe(dtype="bfloat16").bundle(), targets=["onnxruntime"])


def test_a_shape_that_nothing_was_compared_on_has_no_number(tmp_path: Path) -> None:
    bundle = changed(tmp_path, wide_window)
    options: dict[str, Any] = {"targets": ["onnxruntime"], "lengths": (64,), "rounds": 6, "min_speedup": 0.01}
    report = bench(bundle, max_length=4, pytorch=(), **options)
    assert report.parity.passed, "within the window it is right"
    assert not report.rows
    assert not report.passed
    (error,) = {runner.error for runner in report.runners}
    assert error is not None
    assert error.startswith(
        "no parity, no number: nothing was compared at batch 1, length 64. The parity check has rows"
    )
    assert report.gate is not None
    assert report.gate.failures == ["onnxruntime has no numbers"]
    text = describe_latency(report)
    assert "parity left out as too long: 5, 6, 8" in text
    sound = bench(own(tmp_path / "sound"), max_length=64, pytorch=(), **options)
    assert sound.passed


def test_batches_are_compared_as_they_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of a check have few rows; a graph may be right for those only."""
    bundle = changed(tmp_path, wrong_in_large_batches)
    options: dict[str, Any] = {"targets": ["onnxruntime"], "rounds": 6, "min_speedup": 0.01, "pytorch": ()}
    report = bench(bundle, batches=(64,), lengths=(64,), **options)
    assert "64x64" in [case.case for case in report.parity.targets[0].cases if not case.passed]
    assert not report.passed
    assert not report.rows
    few = bench(bundle, batches=(2,), lengths=(64,), **options)
    assert few.passed
    assert few.parity.targets[0].shapes >= {(2, 64)}

    seen = len(few.parity.targets[0].cases)
    monkeypatch.setattr("funnel_export.verify.parity.memory_bytes", lambda: 20_000_000)
    report = bench(bundle, batches=(2, 64), lengths=(64,), **options)
    assert report.parity.passed
    assert len(report.parity.targets[0].cases) == seen
    assert not report.rows
    (error,) = {runner.error for runner in report.runners}
    assert "nothing was compared at batch 64, length 64." in str(error)
    assert "Use --pytorch eager, a larger --max-length, or a smaller --batch" in str(error)
    assert report.gate is not None
    assert report.gate.failures == ["onnxruntime has no numbers"]


def test_a_given_report_must_have_the_timed_batches(tmp_path: Path) -> None:
    bundle = changed(tmp_path, wrong_in_large_batches)
    parity = check(bundle, targets=["onnxruntime"], lengths=[7])
    options: dict[str, Any] = {"targets": ["onnxruntime"], "lengths": (7,), "rounds": 6, "pytorch": ()}
    report = bench(bundle, parity=parity, batches=(64,), **options)
    assert parity.passed
    assert not report.passed
    (error,) = {runner.error for runner in report.runners}
    assert "nothing was compared at batch 64, length 7." in str(error)


def change_dense(folder: Path, change: Callable[[ir.Model], None]) -> None:
    """Change the graph of a bundle, and let its manifest agree."""
    model = ir.load(folder / "model.onnx")
    change(model)
    (folder / "model.onnx").unlink()
    ir.save(model, folder / "model.onnx")
    agree_with_graph(folder)


def test_a_gate_has_no_slower_baseline(tmp_path: Path) -> None:
    """A graph with the same outputs and more work would make every funnel fast."""
    bundle = own(tmp_path / "funnel")
    dense = shutil.copytree(Recipe(funnel=None).bundle().path, tmp_path / "dense")
    check_graph(bundle, load_bundle(dense), no_progress)
    change_dense(dense, lambda model: scaled(model, node(model, "layers.2/", "Tanh"), 0, 1.0))
    with pytest.raises(SpecError, match=r"(?s)not the one that this version exports.*export the dense bundle again"):
        bench(bundle, dense=dense, min_speedup=1.2, **QUICK)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense", "funnel"]


def test_a_dense_baseline_that_computes_something_else_has_no_number(tmp_path: Path) -> None:
    """Without eager PyTorch, nothing else compares it."""
    bundle = own(tmp_path / "funnel")
    compile_bundle(bundle, "onnxruntime", name="mine")
    dense = shutil.copytree(Recipe(funnel=None).bundle().path, tmp_path / "dense")
    change_dense(dense, another_softcap)
    options: dict[str, Any] = {"targets": ["onnxruntime"], "lengths": (7,), "rounds": 6, "pytorch": ()}
    report = bench(bundle, dense=dense, **options)
    assert report.parity.passed
    assert not report.passed
    assert not report.rows
    errors = {(each.runtime, each.model): each.error for each in report.runners}
    why = "no parity, no number: it differs from eager PyTorch from layers.2 on"
    assert errors == {("onnxruntime", Model.DENSE): why, ("mine", Model.DENSE): why}


def test_pytorch_decides_nothing_but_what_is_compared_with_it() -> None:
    report = make_latency(Recipe().bundle())
    assert report.passed
    for runtime, passed in (("torch.compile", True), ("eager", False), ("openvino", False)):
        failed = RunnerResult(runtime=runtime, model=Model.FUNNEL, dtype="float32", error="no compiler")
        assert report.model_copy(update={"runners": [*report.runners, failed]}).passed is passed


def test_pytorch_runs_where_the_targets_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    on_cpu = [Candidate(get_target("openvino"))]
    assert benching._chosen_device(Device.AUTO, on_cpu) == "cpu"
    with pytest.warns(FunnelExportWarning, match="PyTorch runs on cuda, and openvino on another device"):
        assert benching._chosen_device(Device.CUDA, on_cpu) == "cuda"
    monkeypatch.setattr(OpenVinoTarget, "on_gpu", lambda *_: True)
    assert benching._chosen_device(Device.AUTO, on_cpu) == "cuda"


def test_a_dense_bundle_that_is_there_is_the_baseline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.commands.baseline.export", None)  # nothing is exported
    bundle = own(tmp_path)
    compile_bundle(bundle, "onnxruntime", name="mine")
    dense = shutil.copytree(Recipe(funnel=None).bundle().path, tmp_path / "dense")
    before = {path: path.read_bytes() for path in dense.rglob("*") if path.is_file()}
    options = QUICK | {"pytorch": (), "lengths": (7,)}
    report = bench(bundle, engines=["mine"], dense=dense, **options)
    assert report.passed
    assert [(runner.runtime, runner.model) for runner in report.runners] == [("mine", model) for model in Model]
    assert [row.runtime for row in report.rows] == ["mine"]
    assert {path: path.read_bytes() for path in dense.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "dense"], "its copy is removed again"


@pytest.mark.parametrize("shards", [None, "40KB"])
def test_only_the_files_of_a_dense_bundle_are_copied(shards: str | None, tmp_path: Path) -> None:
    """A stranger's folder may have links to the user's own files; modules are files in folders."""
    recipe = Recipe(task=Task.FEATURE_EXTRACTION, funnel=None, shards=shards)
    checkpoint = shutil.copytree(recipe.checkpoint(), tmp_path / "checkpoint")
    save_modules(checkpoint, width=40)
    dense = export(checkpoint, tmp_path / "dense", funnel=None)
    (tmp_path / "secret").write_text("mine")
    (dense.path / "notes").symlink_to(tmp_path / "secret")
    (dense.path / "large").write_text("of somebody")
    with baseline(dense, dense, no_progress) as twin:
        files = {str(path.relative_to(twin.path)) for path in twin.path.rglob("*") if path.is_file()}
        assert {"manifest.json", "config.json", "modules.json", "1_Pooling/config.json"} <= files
        assert not {"notes", "large"} & files
        assert twin.manifest == dense.manifest
    assert (tmp_path / "secret").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        (Recipe(), "the baseline has a funnel"),
        (Recipe(funnel=None, dtype="bfloat16"), "dtype: bfloat16"),
        (Recipe(funnel=None, logits="last"), "logits: last"),
        slow(Recipe(funnel=None, opset=18), "opset: 18"),
        (Recipe(funnel=None, task=Task.FEATURE_EXTRACTION), "task: feature-extraction"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_baseline_of_something_else_is_refused(recipe: Recipe, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        bench(Recipe().bundle(), dense=recipe.bundle(), **QUICK)


def test_a_baseline_of_other_weights_is_refused(tmp_path: Path) -> None:
    dense = Recipe(funnel=None).bundle()
    (record,) = dense.manifest.weights
    other = replace(
        dense, manifest=dense.manifest.model_copy(update={"weights": [record.model_copy(update={"size": 1})]})
    )
    capped = replace(dense, architecture=dense.architecture.model_copy(update={"sliding_window": 3}))
    with pytest.raises(SpecError, match=r"(?s)not the dense counterpart.*weights: model.safetensors \(1 bytes"):
        bench(Recipe().bundle(), dense=other, **QUICK)
    with pytest.raises(SpecError, match=r"(?s)got: config, sliding_window: 3.*wanted: config, sliding_window: 5"):
        bench(Recipe().bundle(), dense=capped, **QUICK)
