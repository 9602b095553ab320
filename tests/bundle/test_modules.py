"""A bundle for feature extraction has the modules of sentence-transformers, verifies them and replaces its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from embedder import FILES, save_modules
from exported import Recipe
from tamper import listing, rewrite_json

from funnel_export import Bundle, compile_bundle, export, load_bundle, package
from funnel_export.errors import BundleError
from funnel_export.spec.choices import Task

RECIPE = Recipe(task=Task.FEATURE_EXTRACTION, funnel=None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_modules(shutil.copytree(RECIPE.checkpoint(), tmp_path / "checkpoint"), width=40)


@pytest.fixture
def bundle(checkpoint: Path) -> Bundle:
    return export(checkpoint, checkpoint.parent / "bundle", funnel=None)


def test_the_files_are_where_the_checkpoint_has_them(checkpoint: Path, bundle: Bundle) -> None:
    before, after = listing(checkpoint), listing(bundle.path)
    assert {name: after[name] for name in FILES} == {name: before[name] for name in FILES}
    assert {module.file for module in bundle.manifest.modules} == set(FILES)
    assert {name for name in after if "/" in name} <= set(FILES), "no other files in folders"
    assert (bundle.path / "2_Dense" / "model.safetensors").stat().st_nlink == 1


@pytest.mark.parametrize("task", [Task.TEXT_GENERATION, Task.FEATURE_EXTRACTION])
def test_without_modules_nothing_else_changes(task: Task, checkpoint: Path) -> None:
    other = shutil.copytree(Recipe(task=task).checkpoint(), checkpoint.parent / "other")
    plain = export(other, checkpoint.parent / "plain", funnel=None, task=task)
    assert plain.manifest.modules == []
    if task is Task.TEXT_GENERATION:
        save_modules(other, width=40)
        assert listing(export(other, checkpoint.parent / "again", funnel=None, task=task).path) == listing(plain.path)


def test_a_bundle_is_a_checkpoint_with_modules(bundle: Bundle) -> None:
    again = export(bundle.path, bundle.path.parent / "again", funnel=None)
    assert again.manifest.modules == bundle.manifest.modules


def forget(file: str) -> Callable[[Path], object]:
    """Take a file out of the manifest."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["modules"] = [module for module in manifest["modules"] if module["file"] != file]

    return lambda folder: rewrite_json(folder / "manifest.json", change)


def rename(file: str) -> Callable[[Path], object]:
    """Let the manifest name another file."""
    return lambda folder: rewrite_json(folder / "manifest.json", lambda m: m["modules"][3].update(file=file))


def link(name: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to(folder.parent / "elsewhere")

    return spoil


SPOILS: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"changed {file}": (lambda f, file=file: (f / file).write_bytes((f / file).read_bytes() + b" "), "not the one")
        for file in FILES
    },
    "missing": (lambda f: (f / "1_Pooling" / "config.json").unlink(), r"1_Pooling/config\.json is missing"),
    "link": (link("2_Dense/model.safetensors"), "is a symbolic link"),
    "link to a folder": (link("2_Dense"), "is a symbolic link"),
    **{
        f"file {file!r}": (rename(file), "is not a manifest")
        for file in (
            "../x",
            "/etc/passwd",
            "1_Pooling/../config.json",
            "1_Pooling/x.py",
            "tokenizer.json",
            "a/config.json",
        )
    },
}


@pytest.mark.parametrize("name", SPOILS)
def test_a_spoiled_bundle_is_refused(name: str, bundle: Bundle) -> None:
    spoil, message = SPOILS[name]
    load_bundle(bundle.path)
    spoil(bundle.path)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle.path)


def test_a_manifest_of_before_has_no_modules(bundle: Bundle) -> None:
    rewrite_json(bundle.path / "manifest.json", lambda manifest: manifest.pop("modules"))
    assert load_bundle(bundle.path).manifest.modules == []


def test_an_export_replaces_its_own_modules(checkpoint: Path, bundle: Bundle) -> None:
    compile_bundle(bundle, "onnxruntime")
    (checkpoint / "modules.json").unlink()
    again = export(checkpoint, bundle.path, funnel=None)
    assert again.manifest.modules == []
    assert {path.name for path in bundle.path.iterdir()}.isdisjoint({"modules.json", "1_Pooling", "2_Dense"})
    assert (bundle.path / "engines" / "onnxruntime-cpu").is_dir(), "the graph is the same"


@pytest.mark.parametrize("file", FILES)
def test_an_export_removes_no_changed_module_unasked(file: str, checkpoint: Path, bundle: Bundle) -> None:
    (bundle.path / file).write_bytes((bundle.path / file).read_bytes() + b" ")
    before = listing(bundle.path)
    with pytest.raises(BundleError, match=f"(?s)would remove.*got: {file} in {bundle.path}.*--overwrite"):
        export(checkpoint, bundle.path, funnel=None)
    assert listing(bundle.path) == before
    export(checkpoint, bundle.path, funnel=None, overwrite=True)
    load_bundle(bundle.path)


def test_a_change_that_the_checkpoint_has_too_is_not_lost(checkpoint: Path, bundle: Bundle) -> None:
    for folder in (checkpoint, bundle.path):
        rewrite_json(folder / "sentence_bert_config.json", lambda options: options.update(max_seq_length=9))
    export(checkpoint, bundle.path, funnel=None)
    assert json.loads((bundle.path / "sentence_bert_config.json").read_text())["max_seq_length"] == 9


@pytest.mark.parametrize("file", ["1_Pooling/notes.txt", "2_Dense/pytorch_model.bin", "5_Mine/config.json", "5_Mine"])
def test_an_export_removes_no_other_file(file: str, checkpoint: Path, bundle: Bundle) -> None:
    mine = bundle.path / file
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(BundleError, match=r"(?s)holds something else.*export to another name"):
        export(checkpoint, bundle.path, funnel=None, overwrite=True)
    assert mine.read_text() == "mine"


def test_modules_that_a_user_has_added_are_kept(checkpoint: Path, bundle: Bundle) -> None:
    """To a bundle of an earlier version, which did not copy them."""
    rewrite_json(bundle.path / "manifest.json", lambda manifest: manifest.pop("modules"))
    before = listing(bundle.path)
    with pytest.raises(BundleError, match="holds something else"):
        export(checkpoint, bundle.path, funnel=None, overwrite=True)
    assert listing(bundle.path) == before


def test_a_folder_of_modules_that_is_a_link_is_kept(checkpoint: Path, bundle: Bundle) -> None:
    link("1_Pooling")(bundle.path)
    with pytest.raises(BundleError, match="holds something else"):
        export(checkpoint, bundle.path, funnel=None, overwrite=True)
    assert (bundle.path / "1_Pooling").is_symlink()


def test_a_package_has_only_the_graph(bundle: Bundle, tmp_path: Path) -> None:
    made = package(bundle, tmp_path / "models", name="m")
    assert made.files() == ["1/model.onnx", "1/model.safetensors", "config.pbtxt", "manifest.json"]
    package(bundle, tmp_path / "models", name="m")
