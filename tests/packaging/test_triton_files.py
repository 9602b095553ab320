"""Packages of bundles that generate text: a whole bundle for the Python back end, and which of them are replaced."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from exported import Recipe
from serving import read
from tamper import listing, rewrite_json
from tokenizers_of_words import speaking

from funnel_export import BundleError, FunnelModelForCausalLM, FunnelSpec, SpecError, compile_bundle, load_bundle
from funnel_export.commands.package import package
from funnel_export.packaging.triton_config import INPUTS, OUTPUTS
from funnel_export.spec.choices import Backend, Task
from funnel_export.spec.triton import TritonOptions

FUNNEL = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse("1:3:3"))
SHARDED = Recipe(task=Task.TEXT_GENERATION_WITH_PAST, funnel=None, dtype="bfloat16", shards="20KB")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return speaking(FUNNEL.bundle().path, tmp_path / "my-bundle")


@pytest.mark.parametrize("recipe", [FUNNEL, SHARDED], ids=["funnel", "dense, in shards"])
@pytest.mark.parametrize("weights", ["link", "copy"])
def test_a_package_holds_a_whole_bundle(recipe: Recipe, weights: str, tmp_path: Path) -> None:
    source = speaking(recipe.bundle().path, tmp_path / "bundle")
    made = package(source, tmp_path / "models", name="m", weights=weights)
    folder = made.path / "1" / "bundle"
    opened = load_bundle(folder)
    assert opened.manifest == load_bundle(source).manifest
    names = sorted(path.name for path in source.iterdir())
    assert sorted(path.name for path in folder.iterdir()) == names
    assert made.files() == sorted(["config.pbtxt", "manifest.json", "1/model.py", *(f"1/bundle/{n}" for n in names)])
    for name in names:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
        linked = weights == "link" and name.endswith(".safetensors")
        assert (folder / name).samefile(source / name) == linked
    found = read(made.path / "config.pbtxt")
    assert found == made.config
    assert [each.name for each in found.input] == list(INPUTS)
    assert [each.name for each in found.output] == list(OUTPUTS)


def test_reports_and_engines_that_were_not_asked_for_stay(bundle: Path, tmp_path: Path) -> None:
    opened = load_bundle(bundle)
    compile_bundle(opened, "openvino", graph="entry", name="other")
    (bundle / "reports").mkdir()
    (bundle / "reports" / "parity.json").write_text("{}")
    made = package(bundle, tmp_path / "models")
    assert {path.name for path in (made.path / "1" / "bundle").iterdir()} == {
        path.name for path in bundle.iterdir()
    } - {"engines", "reports"}


def test_engines_are_packaged_together(bundle: Path, tmp_path: Path) -> None:
    opened = load_bundle(bundle)
    names = [compile_bundle(opened, "openvino", graph=role, name=f"{role}-mine").name for role in opened.graphs]
    made = package(bundle, tmp_path / "models", options=TritonOptions(engine="mine"))
    folder = made.path / "1" / "bundle"
    assert sorted(path.name for path in (folder / "engines").iterdir()) == sorted(names)
    assert made.engine == "mine"
    model = FunnelModelForCausalLM.from_pretrained(folder, engines=["mine"])
    model.close()
    package(bundle, tmp_path / "models", options=TritonOptions(engine="entry-mine", target="openvino"))
    assert [path.name for path in (folder / "engines").iterdir()] == ["entry-mine"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "nonesuch"}, r"(?s)no such engine.*entry-mine"),
        ({"engine": "mine", "target": "onnxruntime"}, r"(?s)for another target.*entry-mine of target openvino"),
        ({"target": "nonesuch"}, "nonesuch"),
        ({"target": "tensorrt"}, r"(?s)tensorrt runs engines only.*--engine"),
        ({"backend": Backend.ONNXRUNTIME}, r"(?s)the onnxruntime backend does not run.*--backend python"),
        ({"backend": Backend.TENSORRT}, r"(?s)the tensorrt backend does not run.*--backend python"),
        ({"dynamic_batching": True}, "batches texts itself"),
    ],
    ids=str,
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, object], message: str, bundle: Path, tmp_path: Path
) -> None:
    compile_bundle(load_bundle(bundle), "openvino", graph="entry", name="entry-mine")
    with pytest.raises(SpecError, match=message):
        package(bundle, tmp_path / "models", options=TritonOptions(**options))  # type: ignore[arg-type]
    assert not (tmp_path / "models").exists()


def test_a_bundle_of_whole_texts_has_no_use_for_the_python_backend(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"(?s)the python backend does not run.*text-generation-with-past"):
        package(Recipe().bundle(), tmp_path / "models", options=TritonOptions(backend=Backend.PYTHON))
    with pytest.raises(SpecError, match="only the python backend"):
        package(Recipe().bundle(), tmp_path / "models", options=TritonOptions(target="openvino"))


def test_a_bundle_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="the bundle has no tokenizer"):
        package(FUNNEL.bundle(), tmp_path / "models", name="m")
    assert not (tmp_path / "models").exists()


def serve_once(version: Path) -> None:
    """What the back end's Python leaves behind."""
    (version / "__pycache__").mkdir()
    (version / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"code")


def test_an_unchanged_package_is_replaced(bundle: Path, tmp_path: Path) -> None:
    made = package(bundle, tmp_path / "models", name="m")
    serve_once(made.path / "1")
    rewrite_json(bundle / "generation_config.json", lambda config: config.update(top_k=5))
    package(bundle, tmp_path / "models", name="m", options=TritonOptions(max_batch_size=3))
    assert json.loads((made.path / "1" / "bundle" / "generation_config.json").read_text())["top_k"] == 5
    assert read(made.path / "config.pbtxt").parameters["max_rows"].string_value == "3"
    assert not (made.path / "1" / "__pycache__").exists()


def test_packages_of_both_kinds_replace_each_other(bundle: Path, tmp_path: Path) -> None:
    for source in (bundle, Recipe().bundle().path, bundle):
        made = package(source, tmp_path / "models", name="m", weights="copy")
        assert (made.path / "1" / "bundle").exists() == (source == bundle)


def append(path: Path) -> None:
    with path.open("a") as stream:
        stream.write("\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "an edited config": lambda f: append(f / "config.pbtxt"),
    "an edited model": lambda f: append(f / "1" / "model.py"),
    "an edited generation config": lambda f: append(f / "1" / "bundle" / "generation_config.json"),
    "an edited tokenizer": lambda f: append(f / "1" / "bundle" / "tokenizer.json"),
    "an edited graph": lambda f: append(f / "1" / "bundle" / "entry.onnx"),
    "a chat template": lambda f: (f / "1" / "bundle" / "chat_template.json").write_text("{}"),
    "another file in the bundle": lambda f: (f / "1" / "bundle" / "notes.txt").write_text("mine"),
    "another file in the version": lambda f: (f / "1" / "notes.txt").write_text("mine"),
    "another file in the cache": lambda f: (serve_once(f / "1"), (f / "1" / "__pycache__" / "a.txt").write_text("")),
    "a report in the bundle": lambda f: (
        (f / "1" / "bundle" / "reports").mkdir(),
        (f / "1" / "bundle" / "reports" / "parity.json").write_text("{}"),
    ),
    "another engine": lambda f: (f / "1" / "bundle" / "engines" / "mine").mkdir(parents=True),
    "no model": lambda f: (f / "1" / "model.py").unlink(),
    "no tokenizer": lambda f: (f / "1" / "bundle" / "tokenizer.json").unlink(),
    "a second version": lambda f: (f / "2").mkdir(),
    "a bundle elsewhere": lambda f: (
        (f / "1" / "bundle").rename(f.parent / "b") and (f / "1" / "bundle").symlink_to(f.parent / "b")
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_package_is_left(change: Callable[[Path], object], bundle: Path, tmp_path: Path) -> None:
    made = package(bundle, tmp_path / "models", name="m")
    change(made.path)
    before = listing(tmp_path / "models")
    with pytest.raises(BundleError, match="was changed, or was not written by package"):
        package(bundle, tmp_path / "models", name="m")
    assert listing(tmp_path / "models") == before


def test_the_command(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "funnel_export", "package", str(bundle), str(tmp_path / "models"), "--json"]
    options = ["--max-batch-size", "4", "--max-bytes", "1000000", "--target", "onnxruntime", "--instances", "2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    made = json.loads(done.stdout)
    assert (made["name"], made["backend"], made["engine"]) == ("my-bundle", "python", None)
    found = read(Path(made["path"]) / "config.pbtxt")
    assert {key: value.string_value for key, value in found.parameters.items()} == {
        "max_rows": "4",
        "max_bytes": "1000000",
        "target": "onnxruntime",
    }
    assert found.instance_group[0].count == 2
