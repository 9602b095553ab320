"""`doctor` tells the truth, whatever is missing: package, library, driver or GPU."""

import json
import sys
from types import ModuleType
from typing import Any

import pytest
from command_line import run
from exported import Recipe
from fakes import ComputeCapability

from funnel_export.errors import TargetUnavailableError
from funnel_export.system.extras import install_command
from funnel_export.targets.base import CompileRequest
from funnel_export.targets.onnxruntime import CUDA, cuda_works
from funnel_export.targets.registry import get_target, target_names
from funnel_export.targets.tensorrt import flavour, gpu
from funnel_export.targets.tensorrt.gpu import Gpu

runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed", exc_type=ImportError)
SUCCESS = runtime.cudaError_t.cudaSuccess
NO_DEVICE = runtime.cudaError_t.cudaErrorNoDevice
H200 = Gpu("NVIDIA H200", "9.0", "13.0")


def without(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Let an import of a module fail, as if it were not installed."""
    monkeypatch.setitem(sys.modules, module, None)


@pytest.mark.parametrize(
    ("target", "module"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("tensorrt", "tensorrt")]
)
def test_without_its_package_a_target_neither_runs_nor_compiles(
    target: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, module)
    here = get_target(target).availability()
    assert (here.available, here.compiles) == (False, False)
    assert "not installed" in here.detail
    assert here.hint == install_command(target)
    assert f"'{target}>=" in here.hint


def test_a_package_whose_library_does_not_load_is_said_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flavour, "version", lambda _: "11.4.0.106")
    without(monkeypatch, "tensorrt")
    here = get_target("tensorrt").availability()
    assert (here.available, here.compiles, here.version) == (False, False, "11.4.0.106")
    assert "installed but does not load" in here.detail


def cuda(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> None:
    """Let functions of the CUDA runtime answer as on another machine."""
    for function, answer in answers.items():
        monkeypatch.setattr(runtime, function, lambda *_, answer=answer: answer)


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, cudaDriverGetVersion=(SUCCESS, 0))
    with pytest.raises(TargetUnavailableError, match="there is no NVIDIA driver here"):
        gpu.find_gpu()


def test_a_machine_with_a_driver_and_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda(monkeypatch, cudaDriverGetVersion=(SUCCESS, 13000), cudaGetDeviceCount=(NO_DEVICE, 0))
    with pytest.raises(TargetUnavailableError, match=r"(?s)no NVIDIA GPU here.*cudaErrorNoDevice: no CUDA-capable"):
        gpu.find_gpu()


def test_a_machine_without_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "cuda.bindings")
    with pytest.raises(
        TargetUnavailableError, match=r"(?s)cannot be queried.*not installed.*pip install cuda-bindings"
    ):
        gpu.find_gpu()


def test_a_machine_with_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor = b"NVIDIA H200", 9, 0

    cuda(
        monkeypatch,
        cudaDriverGetVersion=(SUCCESS, 13000),
        cudaGetDeviceCount=(SUCCESS, 1),
        cudaGetDevice=(SUCCESS, 0),
        cudaGetDeviceProperties=(SUCCESS, Properties()),
    )
    assert gpu.find_gpu() == H200


MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
L40S = Gpu("NVIDIA L40S", "8.9", "13.0")


def with_gpu(target: str, found: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a target find its module and a GPU."""
    module = ModuleType(MODULES[target])
    module.ComputeCapability = ComputeCapability  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULES[target], module)
    monkeypatch.setattr("funnel_export.targets.tensorrt.target.find_gpu", lambda: found)


@pytest.mark.parametrize(("target", "compiles"), [("tensorrt", False), ("tensorrt-rtx", True)])
def test_with_the_package_and_no_gpu_only_rtx_compiles(
    target: str, compiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, MODULES[target], ModuleType(MODULES[target]))

    def find() -> Gpu:
        raise TargetUnavailableError("there is no NVIDIA driver here")

    monkeypatch.setattr("funnel_export.targets.tensorrt.target.find_gpu", find)
    here = get_target(target).availability()
    assert (here.available, here.compiles) == (False, compiles)
    assert "there is no NVIDIA driver here" in here.detail


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_with_package_and_gpu_both_compile_and_run(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(target, L40S, monkeypatch)
    here = get_target(target).availability()
    assert (here.available, here.compiles) == (True, True)
    assert here.detail == "NVIDIA L40S, compute capability 8.9, driver for CUDA 13.0"


@pytest.mark.parametrize(
    ("capability", "runs"), [("7.5", True), ("8.7", False), ("9.0", False), ("10.0", False), ("13.0", True)]
)
def test_tensorrt_rtx_runs_on_gpus_that_it_names_and_on_later_ones(
    capability: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpu("tensorrt-rtx", Gpu("a GPU", capability, "13.0"), monkeypatch)
    here = get_target("tensorrt-rtx").availability()
    assert (here.available, here.compiles) == (runs, True)
    refusal = f"compiles here for other GPUs: it does not run on a GPU, compute capability {capability}"
    assert (here.detail == refusal) is not runs
    with_gpu("tensorrt", Gpu("a GPU", capability, "13.0"), monkeypatch)
    assert get_target("tensorrt").availability().available


@pytest.mark.parametrize("target", ["tensorrt", "tensorrt-rtx"])
def test_without_polygraphy_engines_run_and_none_is_built(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(target, L40S, monkeypatch)
    monkeypatch.setattr(flavour, "find_spec", lambda _: None)
    monkeypatch.setattr("funnel_export.targets.tensorrt.target.has_polygraphy", lambda: False)
    here = get_target(target).availability()
    assert (here.available, here.compiles) == (True, False)
    assert here.detail.endswith("does not compile without Polygraphy")
    with pytest.raises(TargetUnavailableError, match="needs Polygraphy for builds"):
        get_target(target).built_for(CompileRequest(graph=Recipe().bundle().model))


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_what_the_runtime_prints_about_missing_libraries_stays_off_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ort = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: sys.stdout.write("Failed to load libcublas.so.13"))
    cuda_works.cache_clear()
    try:
        here = get_target("onnxruntime").availability()
    finally:
        cuda_works.cache_clear()
    assert here.detail == "CPUExecutionProvider; this build has CUDA, but it does not work here"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "libcublas" in shown.err


def test_doctor_shows_every_target_as_text_and_as_json() -> None:
    shown, in_json = run("doctor"), run("doctor", "--json")
    assert (shown.returncode, in_json.returncode) == (0, 0)
    text, facts = shown.stdout, json.loads(in_json.stdout)["targets"]
    assert list(facts) == target_names()
    for name, fact in facts.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[1:3] == [("no", "yes")[fact["available"]], ("no", "yes")[fact["compiles"]]]
