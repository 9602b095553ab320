"""How a plan is loaded and run, on a GPU and a TensorRT that tests make: the real ones have not been had."""

import hashlib
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from exported import Recipe
from fakes import Cuda, Diagnostics, make_module

from funnel_export import Bundle, check, load_bundle
from funnel_export.bundle.engine import BuiltFor, Engine, EngineManifest, Gpus, load_engine, record_file
from funnel_export.errors import BundleError, SpecError, TargetRefusedError
from funnel_export.spec.profile import Profile
from funnel_export.system.machine import this_platform
from funnel_export.targets.base import check_fits
from funnel_export.targets.registry import get_target
from funnel_export.targets.tensorrt.gpu import Gpu

pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed", exc_type=ImportError)

L40S = Gpu("NVIDIA L40S", "8.9", "13.0")
PROFILES = ["step:batch=1:2:4,sequence=1", "prompt:batch=1:1:4,sequence=1:8:32"]
VERSIONS = {"tensorrt": "11.4.0.106", "tensorrt-rtx": "1.7.1.116"}


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A GPU."""
    made = Cuda()
    monkeypatch.setattr("funnel_export.targets.tensorrt.device.call", made)
    for module in ("target", "session", "runtime_cache"):
        monkeypatch.setattr(f"funnel_export.targets.tensorrt.{module}.find_gpu", lambda: L40S)
    return made


Install = Callable[..., tuple[Bundle, Engine]]


@pytest.fixture
def install(cuda: Cuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Gives a bundle with an engine of a target, and the module that runs it."""

    def make(target: str = "tensorrt", *, plan: bytes = b"", options: Any = None, **module: Any) -> Any:
        bundle = load_bundle(shutil.copytree(Recipe().bundle().path, tmp_path / "bundle"))
        kinds = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
        monkeypatch.setitem(sys.modules, kinds[target], make_module(cuda, VERSIONS[target], **module))
        folder = bundle.path / "engines" / "built"
        folder.mkdir(parents=True)
        (folder / "model.plan").write_bytes(b"vtrt\n" + str(bundle.model.path).encode() + b"\n" + plan)
        manifest = EngineManifest(
            target=target,
            version=VERSIONS[target],
            built_for=BuiltFor(
                device=L40S.name,
                platform=this_platform(),
                gpus=Gpus(compute_capabilities=["8.9"], driver=L40S.driver),
            ),
            dtype=bundle.spec.dtype,
            graph="model",
            graph_sha256=bundle.model.sha256,
            weights=bundle.manifest.weights,
            profiles=[Profile.parse(text) for text in PROFILES],
            options=options or {},
            files=[record_file(folder / "model.plan")],
            versions={},
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json())
        return bundle, load_engine(bundle, "built")

    return make


def tokens(rows: int, length: int, seed: int = 0) -> dict[str, Any]:
    ids = np.random.default_rng(seed).integers(1, 60, (rows, length))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def wanted(bundle: Bundle, inputs: dict[str, Any]) -> Any:
    return get_target("onnxruntime").load(bundle.model).run(inputs)["logits"]


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_check_runs_an_engine_as_it_runs_any_target(target: str, install: Install) -> None:
    bundle, _ = install(target)
    report = check(bundle, targets=[target])
    assert report.passed
    (result,) = report.targets
    assert (result.target, result.engine, result.device) == (target, "built", "NVIDIA L40S")
    assert len(result.cases) > 8
    assert result.left_out == []


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_a_graph_is_not_run_without_an_engine(target: str, install: Install) -> None:
    bundle, _ = install(target)
    with pytest.raises(TargetRefusedError, match=rf"(?s){target} runs engines, not graphs.*compile the bundle first"):
        get_target(target).load(bundle.model)


def test_check_says_what_the_profiles_have_no_room_for(install: Install) -> None:
    bundle, _ = install()
    (result,) = check(bundle, targets=["tensorrt"], lengths=[40]).targets
    assert "1x40" in result.left_out
    assert result.passed


def test_buffers_stay_and_grow_and_graphs_are_captured_once_they_repeat(install: Install, cuda: Cuda) -> None:
    bundle, engine = install()
    session = get_target("tensorrt").load(bundle.model, engine=engine)
    for seed in range(4):  # runs, is captured, and is launched from then on
        inputs = tokens(2, 8, seed)
        np.testing.assert_array_equal(session.run(inputs)["logits"], wanted(bundle, inputs))
    assert cuda.log.count("cudaMalloc") == 3
    assert cuda.log.count("cudaStreamBeginCapture") == 1
    assert cuda.log.count("cudaGraphLaunch") == 3
    for length in (4, 5):  # smaller ones fit into the buffers, and end the graph
        session.run(tokens(1, length))
    assert cuda.log.count("cudaMalloc") == 3
    session.run(tokens(4, 32))  # grows them, so that no graph may be launched that holds an old address
    assert not cuda.graphs
    for seed in range(3):
        inputs = tokens(2, 8, seed)
        np.testing.assert_array_equal(session.run(inputs)["logits"], wanted(bundle, inputs))
    assert len(cuda.memory) == 3
    session.close()
    assert not cuda.memory
    assert not cuda.graphs
    assert cuda.log[-1] == "cudaStreamDestroy"


def test_a_prepared_call_moves_nothing_and_waits(install: Install, cuda: Cuda) -> None:
    bundle, engine = install()
    session = get_target("tensorrt").load(bundle.model, engine=engine)
    inputs = tokens(2, 8)
    call = session.prepare(inputs)
    cuda.log.clear()
    for _ in range(3):
        call()
    assert "cudaMemcpyAsync" not in cuda.log
    assert cuda.log.count("cudaGraphLaunch") == 3
    assert cuda.log[-1] == "cudaStreamSynchronize"
    np.testing.assert_array_equal(session.run(inputs)["logits"], wanted(bundle, inputs))


def test_a_context_has_one_graph_at_a_time(install: Install, cuda: Cuda) -> None:
    bundle, engine = install()
    session = get_target("tensorrt").load(bundle.model, engine=engine)
    session.run(tokens(4, 32))
    for length in (2, 3, 2):
        for seed in range(3):
            inputs = tokens(1, length, seed)
            np.testing.assert_array_equal(session.run(inputs)["logits"], wanted(bundle, inputs))
        assert len(cuda.graphs) == 1


def fail(*_: object) -> bool:
    return False


def test_work_that_cannot_be_captured_is_a_failure(install: Install, cuda: Cuda) -> None:
    bundle, engine = install()
    session: Any = get_target("tensorrt").load(bundle.model, engine=engine)
    session.run(tokens(2, 8))
    work = session._context.execute_async_v3
    session._context.execute_async_v3 = lambda stream: work(stream) and False
    with pytest.raises(TargetRefusedError, match="failed while running"):
        session.run(tokens(2, 8))
    assert not cuda.graphs


@pytest.mark.parametrize("call", ["set_input_shape", "set_tensor_address", "execute_async_v3"])
def test_what_the_context_refuses_is_a_failure(call: str, install: Install) -> None:
    bundle, engine = install()
    session: Any = get_target("tensorrt").load(bundle.model, engine=engine)
    setattr(session._context, call, fail)
    with pytest.raises(
        TargetRefusedError, match=r"(?s)failed while running.*inputs input_ids \[2, 8\], attention_mask"
    ):
        session.run(tokens(2, 8))


def test_no_room_for_a_context_is_told(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, engine = install()
    monkeypatch.setattr("fakes.Engine.create_execution_context", lambda *_: None)
    with pytest.raises(TargetRefusedError, match="could not create an execution context"):
        get_target("tensorrt").load(bundle.model, engine=engine)


def test_rtx_captures_graphs_itself(install: Install, cuda: Cuda) -> None:
    bundle, engine = install("tensorrt-rtx")
    session: Any = get_target("tensorrt-rtx").load(bundle.model, engine=engine)
    for _ in range(3):
        session.run(tokens(2, 8))
    assert "cudaStreamBeginCapture" not in cuda.log
    assert session._plan.config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"


def test_the_profile_is_the_one_tuned_nearest(install: Install) -> None:
    bundle, engine = install()
    session: Any = get_target("tensorrt").load(bundle.model, engine=engine)
    for rows, length in ((2, 1), (2, 8), (1, 9), (4, 1)):
        inputs = tokens(rows, length)
        np.testing.assert_array_equal(session.run(inputs)["logits"], wanted(bundle, inputs))
    assert session._context.profiles == [0, 1, 0]


@pytest.mark.parametrize("shape", [(5, 1), (1, 33)])
def test_a_shape_that_no_profile_takes_is_refused(shape: tuple[int, int], install: Install) -> None:
    bundle, engine = install()
    with pytest.raises(SpecError, match=f"(?s)batch {shape[0]}, sequence {shape[1]}.*step:batch=1:2:4.*or prompt"):
        get_target("tensorrt").load(bundle.model, engine=engine).run(tokens(*shape))


def test_bfloat16_comes_back_as_float32(install: Install) -> None:
    bundle, engine = install(dtype="BF16")
    outputs = [record.model_copy(update={"dtype": "bfloat16"}) for record in bundle.model.record.outputs]
    graph = bundle.model.record.model_copy(update={"outputs": outputs})
    manifest = bundle.manifest.model_copy(update={"graphs": {"model": graph}})
    narrow = replace(bundle, manifest=manifest)
    inputs = tokens(1, 4)
    got = get_target("tensorrt").load(narrow.model, engine=engine).run(inputs)["logits"]
    assert got.dtype == np.float32
    cut = (wanted(bundle, inputs).view(np.uint32) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(got, cut.astype(np.float32))


def test_a_plan_of_another_dtype_is_refused(install: Install) -> None:
    bundle, engine = install(dtype="HALF")
    with pytest.raises(BundleError, match=r"(?s)does not have the graph's inputs and outputs.*float16"):
        get_target("tensorrt").load(bundle.model, engine=engine)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("tensorrt", ["plan"]),
        ("tensorrt", ["timing.cache", "model.plan"]),
        ("tensorrt-rtx", ["model.plan", "timing.cache"]),
    ],
)
def test_a_plan_has_the_name_that_its_target_writes(target: str, names: list[str], install: Install) -> None:
    _, engine = install(target)
    check_fits(get_target(target), engine)
    files = [engine.manifest.files[0].model_copy(update={"file": name}) for name in names]
    other = Engine(engine.path, engine.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=f"has files that {target} does not write"):
        check_fits(get_target(target), other)


def test_host_code_runs_only_in_plans_that_were_built_with_it(install: Install) -> None:
    bundle, engine = install(plan=b"host code")
    with pytest.raises(TargetRefusedError, match=r"(?s)could not be deserialized.*host code is not allowed"):
        get_target("tensorrt").load(bundle.model, engine=engine)


def test_version_compatible_plans_may_bring_host_code(install: Install) -> None:
    bundle, engine = install(plan=b"host code", options={"version_compatible": True})
    assert get_target("tensorrt").load(bundle.model, engine=engine).run(tokens(1, 2))


def test_rtx_refuses_by_the_plans_header(install: Install) -> None:
    bundle, engine = install("tensorrt-rtx", diagnostics=int(Diagnostics.UNSUPPORTED_CC))
    with pytest.raises(BundleError, match=r"(?s)does not run in tensorrt-rtx here.*unsupported_cc.*capability 8\.9"):
        check_fits(get_target("tensorrt-rtx"), engine)
    with pytest.warns(UserWarning, match="an engine is left out"):  # and the other targets are checked
        assert check(bundle, max_length=1).passed


MISFITS: dict[str, tuple[dict[str, Any], dict[str, Any], Gpu, str | None]] = {
    "the same": ({}, {}, L40S, None),
    "another version": ({"version": "11.3.0.99"}, {}, L40S, r"11\.3\.0\.99, but 11\.4"),
    "an earlier one, compatible": ({"version": "11.3.0.99"}, {"version_compatible": True}, L40S, None),
    "a later one, compatible": ({"version": "11.5.0.1"}, {"version_compatible": True}, L40S, r"built with"),
    "another major, compatible": ({"version": "10.9.0.1"}, {"version_compatible": True}, L40S, r"built with"),
    "another GPU": ({}, {}, Gpu("NVIDIA L40", "8.9", "13.0"), "but this is NVIDIA L40"),
    "another GPU of its kind": (
        {},
        {"hardware_compatibility_level": "same_compute_capability"},
        Gpu("NVIDIA L40", "8.9", "13.0"),
        None,
    ),
    "of another kind": (
        {},
        {"hardware_compatibility_level": "same_compute_capability"},
        Gpu("NVIDIA B200", "10.0", "13.0"),
        r"capability 8\.9",
    ),
    "Ampere and later": ({}, {"hardware_compatibility_level": "ampere_plus"}, Gpu("RTX", "12.0", "13.0"), None),
    "before Ampere": ({}, {"hardware_compatibility_level": "ampere_plus"}, Gpu("T4", "7.5", "13.0"), "T4"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_plan_runs_only_where_it_was_built_for(case: str, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    changes, options, here, why = MISFITS[case]
    _, engine = install(options=options)
    other = Engine(engine.path, engine.manifest.model_copy(update=changes))
    monkeypatch.setattr("funnel_export.targets.tensorrt.target.find_gpu", lambda: here)
    if why is None:
        check_fits(get_target("tensorrt"), other)
    else:
        with pytest.raises(BundleError, match=why):
            check_fits(get_target("tensorrt"), other)


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_inner_values_come_from_a_plan_that_leaves_nothing(
    target: str, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that the manifest names is neither read nor written."""
    named = tmp_path / "a user's file"
    named.write_text("mine")
    bundle, engine = install(target, options={"tf32": True, "timing_cache": str(named)})
    asked: list[Any] = []

    def build(request: Any, progress: Any, timeout: float) -> dict[str, Any]:
        asked.append((request, timeout))
        request.plan.write_bytes(engine.file.read_bytes())
        if request.new_timing_cache is not None:
            request.new_timing_cache.write_bytes(b"times")
        return {}

    monkeypatch.setattr("funnel_export.targets.tensorrt.target.build_in_process", build)
    session: Any = get_target(target).load(bundle.model, outputs=["layers.0"], engine=engine, timeout=77)
    session.run(tokens(1, 2))
    session.close()
    ((request, timeout),) = asked
    assert request.outputs == ["layers.0"]
    assert request.options.tf32
    assert request.timing_caches == []
    assert timeout == 77
    assert not request.plan.parent.exists()
    assert named.read_text() == "mine"


def test_options_of_a_manifest_are_checked_as_those_of_a_build(install: Install) -> None:
    bundle, engine = install("tensorrt-rtx", options={"version_compatible": True})
    with pytest.raises(SpecError, match="does not support"):
        get_target("tensorrt-rtx").load(bundle.model, outputs=["layers.0"], engine=engine)


def test_kernels_are_kept_beside_the_plan_and_read_again(install: Install) -> None:
    bundle, engine = install("tensorrt-rtx")
    first: Any = get_target("tensorrt-rtx").load(bundle.model, engine=engine)
    first.run(tokens(1, 2))
    assert first._plan.caches == []
    first.close()
    second: Any = get_target("tensorrt-rtx").load(bundle.model, engine=load_engine(bundle, "built"))
    assert second._plan.caches == [b"kernels"]


SPOILT_CACHES: dict[str, Callable[[Path], object]] = {
    "changed": lambda folder: (folder / "runtime.cache").write_bytes(b"other"),
    "without a record": lambda folder: (folder / "runtime.cache.json").unlink(),
    "of another plan": lambda folder: (folder / "runtime.cache.json").write_text(
        (folder / "runtime.cache.json").read_text().replace('"plan_sha256":"', '"plan_sha256":"' + "0" * 64 + '","x":"')
    ),
    "of another GPU": lambda folder: (folder / "runtime.cache.json").write_text(
        (folder / "runtime.cache.json").read_text().replace("L40S", "L40")
    ),
    "with a forged digest of nothing": lambda folder: (folder / "runtime.cache.json").write_text(
        (folder / "runtime.cache.json")
        .read_text()
        .replace(hashlib.sha256(b"kernels").hexdigest(), hashlib.sha256(b"").hexdigest())
    ),
}


@pytest.mark.parametrize("case", SPOILT_CACHES)
def test_a_cache_that_was_changed_is_not_read(case: str, install: Install) -> None:
    bundle, engine = install("tensorrt-rtx")
    session: Any = get_target("tensorrt-rtx").load(bundle.model, engine=engine)
    session.close()
    SPOILT_CACHES[case](engine.path)
    with pytest.warns(UserWarning, match="the runtime cache is not used"):
        again: Any = get_target("tensorrt-rtx").load(bundle.model, engine=engine)
    assert again._plan.caches == []
