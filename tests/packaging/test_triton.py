"""Packages for Triton: that a model runs where it was put, what is replaced, and what is refused or left alone."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from exported import Recipe
from serving import BF16, FP32, INT64, PLAN, add_engine, config, read, tensor
from tamper import listing, rewrite_json
from tiers import slow_but
from tokenizers_of_words import speaking

from funnel_export import Bundle, Quantization, export, load_bundle
from funnel_export.commands.package import package
from funnel_export.errors import BundleError, SpecError, TargetUnavailableError
from funnel_export.spec.choices import Backend, Task
from funnel_export.spec.triton import TritonOptions

PAST = Task.TEXT_GENERATION_WITH_PAST
SHARDED = Recipe(dtype="bfloat16", shards="20KB")
ON_TENSORRT = TritonOptions(backend=Backend.TENSORRT)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of its own for a test to change."""
    return load_bundle(shutil.copytree(Recipe().bundle().path, tmp_path / "my-bundle"))


@pytest.mark.parametrize("recipe", [Recipe(), SHARDED], ids=["float32", "bfloat16"])
def test_a_config_fits_what_was_exported(recipe: Recipe, tmp_path: Path) -> None:
    made = package(recipe.bundle(), tmp_path / "models", name="m")
    found = read(tmp_path / "models" / "m" / "config.pbtxt")
    assert found == made.config
    assert (found.name, found.backend, found.platform, found.max_batch_size) == ("m", "onnxruntime", "", 8)
    assert list(map(tensor, found.output)) == [("logits", FP32, [-1, 61])]
    (group,) = found.instance_group
    assert (group.count, list(group.gpus), list(group.profile)) == (1, [], [])
    assert not found.HasField("dynamic_batching")
    graph = onnx.load(made.path / "1" / "model.onnx", load_external_data=False).graph
    ends = [*zip(found.input, graph.input, strict=True), *zip(found.output, graph.output, strict=True)]
    kinds = {INT64: onnx.TensorProto.INT64, FP32: onnx.TensorProto.FLOAT}
    for told, real in ends:
        dims = [size.dim_value or -1 for size in real.type.tensor_type.shape.dim]
        assert (told.name, kinds[told.data_type]) == (real.name, real.type.tensor_type.elem_type)
        assert [-1, *told.dims] == dims


def batch() -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(1, 60, (3, 7))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs_of(graph: Path) -> Any:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, batch())[0]


@pytest.mark.parametrize("linked", [True, False])
def test_a_package_links_what_is_linked_already(linked: bool, tmp_path: Path) -> None:
    """A bundle whose weights were copied keeps them without a second name, which onnx.load refuses."""
    checkpoint, kind = Recipe().checkpoint(), "link" if linked else "copy"
    bundle = export(checkpoint, tmp_path / "bundle", funnel="1:3:2", task="text-generation", weights=kind)
    made = package(bundle, tmp_path / "models", name="m")
    assert (made.path / "1/model.safetensors").samefile(bundle.path / "model.safetensors") == linked
    if not linked:
        onnx.load(bundle.model.path)
        onnx.load(made.path / "1" / "model.onnx")


@pytest.mark.parametrize("weights", ["link", "copy"])
def test_the_packaged_graph_runs_where_it_lies(weights: str, tmp_path: Path) -> None:
    bundle = Recipe().bundle()
    made = package(bundle, tmp_path / "models", name="m", weights=weights)
    assert made.files() == ["1/model.onnx", "1/model.safetensors", "config.pbtxt", "manifest.json"]
    assert (made.path / "manifest.json").read_bytes() == (bundle.path / "manifest.json").read_bytes()
    assert (made.path / "1/model.safetensors").samefile(bundle.path / "model.safetensors") == (weights == "link")
    assert np.array_equal(outputs_of(bundle.model.path), outputs_of(made.path / "1" / "model.onnx"))


def test_a_bfloat16_graph_gives_its_values_as_float32(tmp_path: Path) -> None:
    """By OpenVINO, since ONNX Runtime has no bfloat16 kernels for a CPU; and with weights in several files."""
    bundle = SHARDED.bundle()
    made = package(bundle, tmp_path, name="m")
    names = [f"1/{weight.file}" for weight in bundle.manifest.weights]
    assert len(names) > 1
    assert made.files() == sorted(["1/model.onnx", *names, "config.pbtxt", "manifest.json"])
    core, outputs = openvino.Core(), []
    for graph in (bundle.model.path, made.path / "1" / "model.onnx"):
        compiled = core.compile_model(core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        assert compiled.output(0).get_any_name() == "logits"
        request = compiled.create_infer_request()
        request.infer(batch())
        data = request.get_tensor(compiled.output(0)).data
        outputs.append((data.view(np.uint16).astype(np.uint32) << 16).view(np.float32) if data.itemsize == 2 else data)
    assert outputs[1].dtype == np.float32
    # Told to compute in float32, OpenVINO may leave the rounding to bfloat16 out.
    assert np.allclose(*outputs, rtol=2**-7, atol=1e-6)


def test_a_plan_and_its_profiles(bundle: Bundle, tmp_path: Path) -> None:
    folder = add_engine(bundle, "a:batch=1:1:4,sequence=16:64:128", "b:batch=1:8:16,sequence=1:16:32")
    add_engine(bundle, "c:batch=1,sequence=1", target="tensorrt-rtx", name="rtx")
    made = package(bundle, tmp_path / "models", options=ON_TENSORRT)
    assert made.files() == ["1/model.plan", "config.pbtxt", "engine.json", "manifest.json"]
    assert (made.path / "1" / "model.plan").samefile(folder / "model.plan")
    assert (made.path / "engine.json").read_bytes() == (folder / "manifest.json").read_bytes()
    width = bundle.model.record.outputs[0].shape[-1]
    assert read(made.path / "config.pbtxt") == config(
        'name: "my-bundle" platform: "tensorrt_plan" max_batch_size: 16 '
        'input { name: "input_ids" data_type: TYPE_INT64 dims: -1 } '
        'input { name: "attention_mask" data_type: TYPE_INT64 dims: -1 } '
        f'output {{ name: "logits" data_type: TYPE_FP32 dims: -1 dims: {width} }} '
        'instance_group { count: 1 kind: KIND_GPU profile: "0" profile: "1" }'
    )


def test_a_plan_gives_bfloat16_as_it_is(tmp_path: Path) -> None:
    bundle = load_bundle(shutil.copytree(SHARDED.bundle().path, tmp_path / "bundle"))
    add_engine(bundle, "batch=1:1:2,sequence=1:8:16")
    made = package(bundle, tmp_path / "models", options=ON_TENSORRT)
    assert [output.data_type for output in made.config.output] == [BF16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch_size": 5}, r"(?s)exceeds the engine's.*at most 4, the limit of profile a:batch=1:1:4"),
        ({"engine": "nonesuch"}, "no such engine"),
        ({"engine": "../engines/here"}, "no such engine"),
        ({"engine": "rtx"}, "rtx of target tensorrt-rtx"),
    ],
    ids=str,
)
def test_an_engine_that_does_not_fit_is_refused(
    options: dict[str, Any], message: str, bundle: Bundle, tmp_path: Path
) -> None:
    add_engine(bundle, "a:batch=1:1:4,sequence=1:8:16", "b:batch=1,sequence=1")
    add_engine(bundle, "a:batch=1:1:4,sequence=1:8:16", target="tensorrt-rtx", name="rtx")
    with pytest.raises((SpecError, BundleError), match=message):
        package(bundle, tmp_path / "models", options=TritonOptions(backend=Backend.TENSORRT, **options))
    assert not (tmp_path / "models").exists()


def test_an_engine_is_found_or_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"(?s)a bundle without engines.*compile"):
        package(bundle, tmp_path / "models", options=ON_TENSORRT)
    add_engine(bundle, "batch=1:1:4,sequence=1:8:16", target="tensorrt-rtx", name="rtx")
    with pytest.raises(BundleError, match="rtx of target tensorrt-rtx"):
        package(bundle, tmp_path / "models", options=ON_TENSORRT)
    for name in ("one", "two"):
        add_engine(bundle, "batch=1:1:4,sequence=1:8:16", name=name)
    with pytest.raises(SpecError, match=r"(?s)several engines.*--engine one"):
        package(bundle, tmp_path / "models", options=ON_TENSORRT)
    made = package(bundle, tmp_path / "models", options=TritonOptions(backend=Backend.TENSORRT, engine="two"))
    assert made.engine == "two"


def test_how_a_plan_was_built_is_minded(bundle: Bundle, tmp_path: Path) -> None:
    folder = add_engine(bundle, "batch=1:1:4,sequence=1:8:16")
    rewrite_json(folder / "manifest.json", lambda manifest: manifest.update(options={"strip_plan": True}))
    with pytest.raises(BundleError, match="built without weights"):
        package(bundle, tmp_path / "models", options=ON_TENSORRT)
    rewrite_json(folder / "manifest.json", lambda manifest: manifest.update(options={"version_compatible": True}))
    with pytest.warns(UserWarning, match="version-compatible=true"):
        package(bundle, tmp_path / "models", options=ON_TENSORRT)


def test_a_damaged_plan_takes_no_models_place(bundle: Bundle, tmp_path: Path) -> None:
    engine = add_engine(bundle, "batch=1:1:4,sequence=1:8:16")
    package(bundle, tmp_path / "models", options=ON_TENSORRT, weights="copy")
    before = listing(tmp_path / "models")
    (engine / "model.plan").write_bytes(PLAN[:-1] + b"!")
    with pytest.raises(BundleError, match="not the one that was built"):
        package(bundle, tmp_path / "models", options=ON_TENSORRT)
    assert listing(tmp_path / "models") == before


def test_batches_that_no_profile_takes_are_told_of(bundle: Bundle, tmp_path: Path) -> None:
    add_engine(bundle, "one:batch=1,sequence=8", "four:batch=4,sequence=8")
    with pytest.warns(UserWarning, match="no optimization profile takes batches of 2, 3; Triton"):
        package(bundle, tmp_path, name="m", options=ON_TENSORRT)


def test_a_quantized_graph_may_be_rounded_by_triton(tmp_path: Path) -> None:
    quantized = Recipe(quantization=Quantization(bits=8)).bundle()
    with pytest.warns(UserWarning, match="may round activations to 8 bits"):
        package(quantized, tmp_path, name="quantized")
    assert (tmp_path / "quantized" / "1" / "quantized.safetensors").is_file()


def test_two_models_in_one_repository_and_one_is_replaced(tmp_path: Path) -> None:
    bundle = Recipe().bundle()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.pbtxt").write_text('name: "theirs"')
    package(bundle, tmp_path, name="one")
    one = listing(tmp_path / "one")
    package(bundle, tmp_path, name="two", options=TritonOptions(max_batch_size=2))
    assert listing(tmp_path / "one") == one
    package(SHARDED.bundle(), tmp_path, name="two", options=TritonOptions(max_batch_size=4))
    assert read(tmp_path / "two" / "config.pbtxt").max_batch_size == 4
    assert listing(tmp_path / "one") == one
    assert (tmp_path / "theirs" / "config.pbtxt").read_text() == 'name: "theirs"'
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "theirs", "two"]


def edit_config(folder: Path) -> None:
    with (folder / "config.pbtxt").open("a") as stream:
        stream.write("# tuned by hand\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "an edited config": edit_config,
    "a second version": lambda f: shutil.copytree(f / "1", f / "2"),
    "another file": lambda f: (f / "labels.txt").write_text("yes\nno\n"),
    "another file in the version": lambda f: (f / "1" / "notes.txt").write_text("mine"),
    "no manifest": lambda f: (f / "manifest.json").unlink(),
    "no config": lambda f: (f / "config.pbtxt").unlink(),
    "a config that is no text": lambda f: (f / "config.pbtxt").write_bytes(b"\xff\xfe"),
    "a version elsewhere": lambda f: (f / "1").rename(f.parent / "1") and (f / "1").symlink_to(f.parent / "1"),
    "a folder for a graph": lambda f: (f / "1" / "model.onnx").unlink() or (f / "1" / "model.onnx").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_folder_that_is_not_ours_alone_is_left(change: Callable[[Path], object], tmp_path: Path) -> None:
    made = package(Recipe().bundle(), tmp_path, name="m", weights="copy")
    change(made.path)
    before = listing(tmp_path)
    with pytest.raises(BundleError, match=r"was not (replaced|changed)"):
        package(Recipe().bundle(), tmp_path, name="m")
    assert listing(tmp_path) == before
    assert made.path.is_dir()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "../a", "/a", "a\\b", ".hidden", "-m", "a b", "ä", "a\n", "x" * 129]
)
def test_strange_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="invalid model name"):
        package(Recipe().bundle(), tmp_path / "models", name=name)
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_no_repository(bundle: Bundle, tmp_path: Path) -> None:
    other = shutil.copytree(bundle.path, tmp_path / "other")
    before = listing(tmp_path)
    for out in (bundle.path, bundle.path / "models", bundle.path / ".." / "my-bundle" / "reports", other):
        with pytest.raises(BundleError, match="is inside a bundle"):
            package(bundle, out, name="m")
    with pytest.raises(BundleError, match="would replace the bundle"):
        package(bundle, tmp_path)
    assert listing(tmp_path) == before


def test_an_unknown_way_to_place_weights_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unknown weights"):
        package(bundle, tmp_path / "models", weights="move")
    assert not (tmp_path / "models").exists()


def test_without_tritonclient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(TargetUnavailableError, match=r"(?s)wanted: .*pip install 'tritonclient>=") as caught:
        package(Recipe().bundle(), tmp_path / "models", name="m")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "models").exists()


def test_a_failed_write_leaves_the_earlier_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(Recipe().bundle(), tmp_path, name="m")
    before = listing(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("funnel_export.packaging.triton.place", full)
    with pytest.raises(BundleError, match=r"(?s)no space left.*No space left"):
        package(Recipe().bundle(), tmp_path, name="m", options=TritonOptions(max_batch_size=2))
    assert listing(tmp_path) == before


@pytest.mark.parametrize("task", slow_but((Task.TEXT_GENERATION,), (Task.TEXT_GENERATION, PAST)))
def test_a_killed_packaging_harms_nothing(task: Task, tmp_path: Path) -> None:
    bundle = speaking(Recipe(task=task).bundle().path, tmp_path / "bundle")
    command = [sys.executable, str(Path(__file__).parents[1] / "package_crash.py"), str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["killed"] == 12
    assert result["old"] + result["new"] == 12
    assert result["old"] >= 6
    assert (result["lost"], result["uncleaned"]) == (0, 0)


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "funnel_export", "package", str(bundle.path), str(tmp_path / "models")]
    batching = ["--preferred-batch-size", "2", "--preferred-batch-size", "4", "--max-queue-delay-us", "100"]
    where = ["--instances", "2", "--kind", "gpu", "--gpu", "0", "--gpu", "1", "--name", "m", "--json"]
    done = subprocess.run(
        [*command, "--format", "triton", *batching, *where], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout)
    assert (made["name"], made["backend"], made["max_batch_size"]) == ("m", "onnxruntime", 8)
    assert made["files"] == ["1/model.onnx", "1/model.safetensors", "config.pbtxt", "manifest.json"]
    found = read(Path(made["path"]) / "config.pbtxt")
    assert (
        found.dynamic_batching
        == config(
            "dynamic_batching { preferred_batch_size: [2, 4] max_queue_delay_microseconds: 100 }"
        ).dynamic_batching
    )
    assert (found.instance_group[0].count, list(found.instance_group[0].gpus)) == (2, [0, 1])
    refused = subprocess.run([*command, "--format", "torchserve"], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'torchserve' is not one of 'triton'" in " ".join(refused.stderr.replace("│", " ").split())
