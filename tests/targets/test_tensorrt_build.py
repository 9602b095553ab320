"""TensorRT-RTX builds for real, on any machine; what it refuses is named with its place, and nothing is left behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exported import CLASSES, PAST, TAGS, Recipe
from onnx import TensorProto, helper
from safetensors.torch import load_file
from tamper import listing, rewrite_graph, rewrite_json
from tiers import LONG, slow_but

from funnel_export import Bundle, FunnelSpec, Quantization, compile_bundle, load_bundle
from funnel_export.bundle.engine import engine_names, load_engine
from funnel_export.checkpoint.quantized import QUANTIZED
from funnel_export.errors import BundleError, SpecError, TargetRefusedError, TargetUnavailableError
from funnel_export.spec.choices import Task
from funnel_export.targets.base import check_fits
from funnel_export.targets.registry import get_target
from funnel_export.targets.tensorrt import process

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed", exc_type=ImportError)

SMALL = "batch=1:1:2,sequence=1:8:16"

BLOCKS = (("hidden_size", 64), ("vocab_size", 62), ("head_dim", 16))
"""Blocks of 64 divide every axis."""
RECIPES = {
    "dense": Recipe(funnel=None),
    "S=2 bfloat16": Recipe(dtype="bfloat16", stored=torch.bfloat16),
    "S=4 float16 features": Recipe(
        task=Task.FEATURE_EXTRACTION, funnel=FunnelSpec.parse("1:4:4", pooling="max"), dtype="float16"
    ),
    "S=3 lookahead": TAGS,
    "classes": CLASSES,
    "4 bits": Recipe(quantization=Quantization(bits=4), overrides=BLOCKS),
    "8 bits bfloat16": Recipe(quantization=Quantization(bits=8), dtype="bfloat16", stored=torch.bfloat16),
    "8 bits, own head kept": Recipe(
        quantization=Quantization(bits=8, keep=("head",)), overrides=(("tie_word_embeddings", False),)
    ),
}
WITH_CACHE = {
    "8 bits": replace(PAST, quantization=Quantization(bits=8)),
    "4 bits bfloat16": replace(
        PAST, quantization=Quantization(bits=4), overrides=BLOCKS, dtype="bfloat16", stored=torch.bfloat16
    ),
}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of its own for a test."""
    return load_bundle(shutil.copytree(Recipe().bundle().path, tmp_path / "bundle"))


def test_asymmetric_weights_are_refused() -> None:
    quantization = Quantization(bits=4, symmetric=False)
    with pytest.raises(SpecError, match=r"(?s)symmetric weights.*quantize BUNDLE OUT --bits 4$"):
        compile_bundle(Recipe(quantization=quantization, overrides=BLOCKS).bundle(), "tensorrt-rtx", profiles=[SMALL])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["8 bits", pytest.param("4 bits bfloat16", marks=LONG)])
def test_graphs_with_a_cache_build_from_quantized_weights(name: str, tmp_path: Path) -> None:
    recipe = WITH_CACHE[name]
    folder = shutil.copytree(recipe.bundle().path, tmp_path / "bundle")
    before = listing(folder)
    for role in ("entry", "middle", "exit"):
        engine = compile_bundle(folder, "tensorrt-rtx", graph=role)
        assert set(engine.manifest.facts["matrix_products"]) == {recipe.dtype}
        assert engine.manifest.graph_sha256 == load_bundle(folder).graphs[role].sha256
    assert {name: content for name, content in listing(folder).items() if "engines" not in name} == before


def has_embedding(plan: bytes, folder: Path) -> bool:
    """Whether a plan has the values of a bundle's embedding, and not its codes."""
    stored = load_file(folder / QUANTIZED)
    codes, scales = (stored[f"model.embed_tokens.weight.row_{part}"] for part in ("codes", "scales"))
    table = codes.to(scales.dtype) * scales
    return table.view(torch.uint8).numpy().tobytes() in plan and codes.numpy().tobytes() not in plan


@pytest.mark.filterwarnings("ignore:Gemma2 is known to overflow")
@pytest.mark.parametrize("name", slow_but(("dense", "S=3 lookahead", "4 bits"), RECIPES))
def test_every_kind_of_graph_builds(name: str, tmp_path: Path) -> None:
    folder = shutil.copytree(RECIPES[name].bundle().path, tmp_path / "bundle")
    engine = compile_bundle(folder, "tensorrt-rtx", profiles=[SMALL])
    assert load_engine(load_bundle(folder), engine.name) == engine
    assert engine.name == "tensorrt-rtx-sm80-sm86-sm89-sm120"
    assert engine.file.read_bytes()[:4] == b"vtrt"
    products = engine.manifest.facts["matrix_products"]
    assert set(products) == {RECIPES[name].dtype}
    assert engine.manifest.facts["warnings"] == []
    assert "TF32" not in engine.manifest.facts["builder_flags"]
    assert RECIPES[name].quantization is None or has_embedding(engine.file.read_bytes(), folder)


def test_several_profiles_and_options_are_built_and_recorded(bundle: Bundle) -> None:
    steps: list[tuple[str, float | None]] = []

    def progress(step: str, done: float | None = None, /) -> None:
        steps.append((step, done))

    profiles = ["step:batch=1:2:4,sequence=1", "prompt:batch=1,sequence=1:8:32"]
    options = {
        "compute_capabilities": "8.9",
        "builder_optimization_level": "1",
        "workspace": "64MiB",
        "tf32": "true",
        "weight_streaming": "1",
    }
    engine = compile_bundle(bundle, "tensorrt-rtx", profiles=profiles, options=options, name="mine", progress=progress)
    manifest = load_engine(bundle, "mine").manifest
    assert [profile.name for profile in manifest.profiles] == ["step", "prompt"]
    assert manifest.options == {
        "compute_capabilities": "8.9",
        "builder_optimization_level": 1,
        "workspace": 1 << 26,
        "tf32": True,
        "weight_streaming": True,
    }
    assert {"TF32", "WEIGHT_STREAMING"} <= set(manifest.facts["builder_flags"])
    assert manifest.built_for.compute_capabilities == ["8.9"]
    shares = [done for _, done in steps if done is not None]
    assert steps[0] == ("parsing the graph", None)
    assert len(shares) > 5
    assert shares == sorted(shares)
    assert 0 <= shares[0] <= shares[-1] <= 1
    assert engine.manifest.version.startswith("1.")


def attention_with_softcap(model: onnx.ModelProto) -> None:
    """As newer exporters write it: one op for attention, which has no softcap in TensorRT."""
    softmax = next(n for n in model.graph.node if n.op_type == "Softmax" and n.name.startswith("layers.2/"))
    node = helper.make_node(
        "Attention", [softmax.input[0]] * 3, list(softmax.output), name="layers.2/Attention.sdpa", softcap=5.0
    )
    softmax.CopyFrom(node)
    model.opset_import[0].version = 23


def mixed_add(model: onnx.ModelProto) -> None:
    """A float16 operand beside a float32 one."""
    index, add = next(
        (i, n) for i, n in enumerate(model.graph.node) if n.op_type == "Add" and n.name.startswith("funnel/recover/")
    )
    cast = helper.make_node("Cast", [add.input[1]], ["half"], name="funnel/recover/Cast.half", to=TensorProto.FLOAT16)
    add.input[1] = "half"
    model.graph.node.insert(index, cast)


REFUSED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "attention with softcap": (
        attention_with_softcap,
        ("Attention 'layers.2/Attention.sdpa' in layer 2, middle, on 1/2 of the length", "softcap", "decompose it"),
    ),
    "float16 + float32": (
        mixed_add,
        (
            "Add 'funnel/recover/",
            "in the recovery before layer 3",
            "must have same input types",
            "cast one of the inputs",
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_graph_that_is_refused_is_named_with_node_op_place_and_remedy(name: str, bundle: Bundle) -> None:
    change, parts = REFUSED[name]
    rewrite_graph(bundle.path, change)  # after it was loaded: one of another opset would be refused
    with pytest.raises(TargetRefusedError) as caught:
        compile_bundle(bundle, "tensorrt-rtx")
    assert caught.value.exit_code == 4
    for part in parts:
        assert part in str(caught.value)
    assert "driver" not in str(caught.value)  # the builder looks for one that it does not need
    assert not (bundle.path / "engines").exists() or list((bundle.path / "engines").iterdir()) == []


def test_what_the_builder_refuses_is_named_with_its_place(bundle: Bundle) -> None:
    with pytest.raises(TargetRefusedError, match="MatMul") as caught:
        compile_bundle(bundle, "tensorrt-rtx", profiles=[SMALL], options={"compute_capabilities": "7.5"})
    assert "is in layer 0, entry, at full length" in str(caught.value)
    assert "leave 7.5 out" in str(caught.value)


REFUSED_OPTIONS = {
    "timing_cache=x.cache": "timing_cache: it times no kernels",
    "version_compatible=true": "version_compatible: it has no lean runtime",
    "hardware_compatibility_level=ampere_plus": "hardware_compatibility_level: .*compute_capabilities",
    "builder_optimization_level=9": "builder_optimization_level: .*less than or equal to 5",
    "exclude_lean_runtime=true": "together: .*requires version_compatible=true",
    "compute_capabilities=9": "compute_capabilities: ",
    "compute_capabilities=9.0": "got: SM90",
    "workspace=lots": "workspace: ",
    "fp16=true": "fp16: unknown option",
}


@pytest.mark.parametrize("option", REFUSED_OPTIONS)
def test_options_that_cannot_be_honoured_are_refused_by_name(option: str, bundle: Bundle) -> None:
    key, _, value = option.partition("=")
    with pytest.raises(SpecError, match=f"(?s){REFUSED_OPTIONS[option]}"):
        compile_bundle(bundle, "tensorrt-rtx", options={key: value})
    assert engine_names(bundle) == []


def test_profiles_need_names_of_their_own(bundle: Bundle) -> None:
    with pytest.raises(SpecError, match="several optimization profiles have the same name"):
        compile_bundle(bundle, "tensorrt-rtx", profiles=[SMALL, SMALL])


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a driver, whatever this one has."""

    def find() -> None:
        raise TargetUnavailableError("there is no NVIDIA driver here")

    monkeypatch.setattr("funnel_export.targets.tensorrt.target.find_gpu", find)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("option", ["refit=all", "refit=identical", "strip_plan=true"])
def test_what_needs_a_gpu_is_not_available_without_one(option: str, bundle: Bundle) -> None:
    key, _, value = option.partition("=")
    with pytest.raises(
        TargetUnavailableError, match=rf"(?s)needs a GPU for builds with these options.*{key}: .*no NVIDIA driver"
    ):
        compile_bundle(bundle, "tensorrt-rtx", options={key: value})


@pytest.mark.usefixtures("no_gpu")
def test_an_engine_is_refused_where_it_cannot_run(bundle: Bundle) -> None:
    engine = compile_bundle(bundle, "tensorrt-rtx", profiles=[SMALL])
    target = get_target("tensorrt-rtx")
    with pytest.raises(TargetUnavailableError, match="no NVIDIA driver"):
        check_fits(target, engine)
    with pytest.raises(TargetUnavailableError, match="no NVIDIA driver"):
        target.load(bundle.model, engine=engine)
    manifest = engine.path / "manifest.json"
    rewrite_json(manifest, lambda values: values.update(version="1.6.0.1"))
    with pytest.raises(BundleError, match=r"built with tensorrt-rtx 1\.6\.0\.1, but 1\."):
        check_fits(target, load_engine(bundle, engine.name))
    rewrite_json(manifest, lambda values: values.update(version=engine.manifest.version))
    rewrite_json(manifest, lambda values: values["built_for"].update(platform="windows-amd64"))
    with pytest.raises(BundleError, match="built for windows-amd64"):
        check_fits(target, load_engine(bundle, engine.name))


def test_modules_that_lie_where_somebody_compiles_are_not_imported(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("polygraphy", "onnx", "funnel_export", "tensorrt_rtx", "typing"):
        (bundle.path / f"{module}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(bundle.path)
    assert compile_bundle(bundle, "tensorrt-rtx", profiles=[SMALL]).file.stat().st_size


def test_the_death_of_the_building_process_is_told(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = "import os, signal, sys; sys.stderr.write('last words'); sys.stderr.flush(); os.kill(os.getpid(), 9)"
    monkeypatch.setattr(process, "PROGRAM", ("-c", dying))
    with pytest.raises(TargetRefusedError, match=r"(?s)died.*signal SIGKILL.*last words.*more memory"):
        compile_bundle(bundle, "tensorrt-rtx")
    assert engine_names(bundle) == []


def children(pid: int) -> list[int]:
    """Building processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and b"tensorrt.worker" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended since
            continue
    return found


def test_an_interrupt_ends_the_build_and_leaves_nothing(bundle: Bundle) -> None:
    def interrupt(step: str, done: float | None = None, /) -> None:
        if done is not None:
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compile_bundle(bundle, "tensorrt-rtx", progress=interrupt)
    assert time.monotonic() - start < 60
    assert list((bundle.path / "engines").iterdir()) == []
    assert children(os.getpid()) == []


def test_the_building_process_ends_with_its_parent(bundle: Bundle) -> None:
    code = (
        "import sys, os, signal; from funnel_export import compile_bundle\n"
        "def show(step, done=None, /):\n"
        "    print(step, flush=True)\n"
        f"compile_bundle({str(bundle.path)!r}, 'tensorrt-rtx', progress=show)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "parsing the graph\n"
        (worker,) = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    for _ in range(300):
        if not Path(f"/proc/{worker}").exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the building process lives on")


def test_a_plan_that_cannot_be_written_is_told(bundle: Bundle, tmp_path: Path) -> None:
    request = {
        "target": "tensorrt-rtx",
        "graph": str(bundle.model.path),
        "plan": str(tmp_path / "missing" / "model.plan"),
        "dtype": "float32",
        "inputs": bundle.model.inputs,
        "outputs": [],
        "funnel": bundle.manifest.funnel,
        "num_layers": 4,
        "profiles": [],
        "options": {},
    }
    from funnel_export.targets.tensorrt.request import BuildRequest

    with pytest.raises(BundleError, match="the plan could not be written, or"):
        process.build_in_process(BuildRequest.model_validate(request), lambda *_: None)


@pytest.mark.parametrize(
    ("program", "timeout", "message"),
    [
        ("import time; time.sleep(600)", 1, r"(?s)timed out.*no answer in 1 s.*--timeout"),
        ("print('hello')", 60, "sent an invalid message"),
        ("print()", 60, "sent an invalid message"),
        ("import sys; sys.exit(5)", 60, r"(?s)died.*exit code 5"),
    ],
    ids=["silent", "no answer", "an empty line", "at an end"],
)
def test_a_builder_that_hangs_or_talks_nonsense_is_ended(
    program: str, timeout: int, message: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "PROGRAM", ("-c", program))
    with pytest.raises(TargetRefusedError, match=message):
        compile_bundle(bundle, "tensorrt-rtx", profiles=[SMALL], timeout=timeout)
    assert not list((bundle.path / "engines").glob("*"))


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_is_a_number_of_seconds(timeout: float, bundle: Bundle) -> None:
    with pytest.raises(SpecError, match="invalid time limit"):
        compile_bundle(bundle, "tensorrt-rtx", profiles=[SMALL], timeout=timeout)
