"""What only a machine with an NVIDIA GPU can show: plans that load, run and agree with eager PyTorch."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import Recipe

from funnel_export import Bundle, FunnelSpec, Quantization, check, compile_bundle, load_bundle
from funnel_export.errors import TargetUnavailableError
from funnel_export.spec.choices import Task
from funnel_export.targets.registry import get_target
from funnel_export.targets.tensorrt.gpu import find_gpu

pytestmark = pytest.mark.gpu

QUANTIZED = Recipe(quantization=Quantization(bits=8))
RECIPES = {
    "float32": Recipe(),
    "bfloat16": Recipe(dtype="bfloat16", stored=torch.bfloat16),
    "dense": Recipe(funnel=None),
    "lookahead": Recipe(task=Task.TOKEN_CLASSIFICATION, funnel=FunnelSpec.parse("1:3:3", lookahead=True)),
    "8 bits": QUANTIZED,
}
ALSO_ON_CUDA = {
    "float16": Recipe(dtype="float16"),
    "4 bits": Recipe(quantization=Quantization(bits=4)),
    "cache": Recipe(task=Task.TEXT_GENERATION_WITH_PAST),
    "cache, bfloat16": Recipe(task=Task.TEXT_GENERATION_WITH_PAST, dtype="bfloat16", stored=torch.bfloat16),
}
"""More bundles for ONNX Runtime on CUDA."""
OPTIONS: dict[str, dict[str, Any]] = {
    "streamed": {"weight_streaming": True},
    "stripped": {"refit": "identical", "strip_plan": True},
    "any version": {"version_compatible": True},
    "any GPU of its kind": {"hardware_compatibility_level": "same_compute_capability"},
}
PROFILES = ["step:batch=1:2:4,sequence=1", "prompt:batch=1:1:8,sequence=1:8:32"]


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def target(request: pytest.FixtureRequest) -> str:
    """A target that compiles and runs here."""
    here = get_target(request.param).availability()
    if not here.available:
        pytest.skip(f"{request.param} does not run here: {here.detail}")
    return str(request.param)


def own(recipe: Recipe, folder: Path) -> Bundle:
    return load_bundle(shutil.copytree(recipe.bundle().path, folder / "bundle"))


@pytest.mark.parametrize("name", RECIPES)
def test_an_engine_agrees_with_eager_pytorch(name: str, target: str, tmp_path: Path) -> None:
    bundle = own(RECIPES[name], tmp_path)
    engine = compile_bundle(bundle, target, profiles=PROFILES)
    assert RECIPES[name].dtype in engine.manifest.facts["inspected"]["tensors"]
    report = check(bundle, targets=[target])
    assert report.passed, report
    assert check(bundle, targets=[target]).passed  # with the kernels that the first check has kept


@pytest.mark.parametrize("name", OPTIONS)
def test_an_engine_with_options_does_too(name: str, target: str, tmp_path: Path) -> None:
    refused = get_target(target).flavour.refuses  # type: ignore[attr-defined]
    if set(OPTIONS[name]) & set(refused):
        pytest.skip(f"{target} has no {', '.join(OPTIONS[name])}")
    bundle = own(Recipe(), tmp_path)
    compile_bundle(bundle, target, profiles=PROFILES, options=OPTIONS[name])
    assert check(bundle, targets=[target]).passed


def test_a_stripped_engine_takes_its_embedding_from_a_quantized_bundle(target: str, tmp_path: Path) -> None:
    bundle = own(QUANTIZED, tmp_path)
    compile_bundle(bundle, target, profiles=PROFILES, options=OPTIONS["stripped"])
    assert check(bundle, targets=[target]).passed


def test_a_second_build_begins_with_the_timings_of_the_first(tmp_path: Path) -> None:
    if not get_target("tensorrt").availability().available:
        pytest.skip("tensorrt does not run here")
    bundle = own(Recipe(), tmp_path)
    first, second = (compile_bundle(bundle, "tensorrt", profiles=PROFILES) for _ in range(2))
    assert [record.file for record in second.manifest.files] == ["model.plan", "timing.cache"]
    assert first.manifest.profiles == second.manifest.profiles


@pytest.fixture
def cuda() -> None:
    """Skip the test where there is no GPU."""
    try:
        find_gpu()
    except TargetUnavailableError as err:
        pytest.skip(err.what)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("name", [*RECIPES, *ALSO_ON_CUDA])
def test_onnx_runtime_on_cuda(name: str, tmp_path: Path) -> None:
    bundle = own((RECIPES | ALSO_ON_CUDA)[name], tmp_path)
    for graph in bundle.graphs:
        engine = compile_bundle(bundle, "onnxruntime", graph=graph, options={"provider": "cuda"})
        assert engine.name.endswith("onnxruntime-cuda")
    assert check(bundle, targets=["onnxruntime"]).passed


@pytest.mark.usefixtures("cuda")
def test_onnx_runtime_on_cuda_cannot_dequantize_to_bfloat16(tmp_path: Path) -> None:
    bundle = own(replace(RECIPES["bfloat16"], quantization=Quantization(bits=4)), tmp_path)
    with pytest.raises(TargetUnavailableError, match="no kernel that dequantizes to bfloat16"):
        compile_bundle(bundle, "onnxruntime", options={"provider": "cuda"})
