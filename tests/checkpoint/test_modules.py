"""Modules of sentence-transformers: which files are read, and which lists and folders are refused before any work."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from embedder import FILES, save_modules
from exported import Recipe
from tamper import listing, rewrite_json

from funnel_export import export
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.modules import read_modules
from funnel_export.errors import CheckpointError
from funnel_export.spec.choices import Task

RECIPE = Recipe(task=Task.FEATURE_EXTRACTION, funnel=None)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_modules(shutil.copytree(RECIPE.checkpoint(), tmp_path / "checkpoint"), width=40)


def read(checkpoint: Path) -> dict[str, bytes]:
    return read_modules(checkpoint, Task.FEATURE_EXTRACTION)


def test_all_files_are_read_unchanged(checkpoint: Path) -> None:
    assert read(checkpoint) == {name: (checkpoint / name).read_bytes() for name in FILES}


def test_the_model_is_the_one_without_modules(checkpoint: Path) -> None:
    assert Checkpoint.open(checkpoint).tensors == Checkpoint.open(RECIPE.checkpoint()).tensors


@pytest.mark.parametrize("task", [task for task in Task if task is not Task.FEATURE_EXTRACTION])
def test_other_tasks_have_none(task: Task, checkpoint: Path) -> None:
    (checkpoint / "modules.json").write_text("not even JSON")
    assert read_modules(checkpoint, task) == {}


def test_without_a_list_there_are_none(checkpoint: Path) -> None:
    (checkpoint / "modules.json").unlink()
    assert read(checkpoint) == {}


@pytest.mark.parametrize("optional", ["config_sentence_transformers.json", "sentence_bert_config.json"])
def test_options_may_be_missing(optional: str, checkpoint: Path) -> None:
    (checkpoint / optional).unlink()
    assert read(checkpoint).keys() == set(FILES) - {optional}


@pytest.mark.parametrize("place", ["models", "base.modules.dense", "sentence_transformer.modules"])
def test_versions_of_the_library_name_modules_differently(place: str, checkpoint: Path) -> None:
    def move(modules: list[dict[str, Any]]) -> None:
        for module in modules:
            module["type"] = module["type"].replace(".models.", f".{place}.")

    rewrite_json(checkpoint / "modules.json", move)
    assert read(checkpoint).keys() == set(FILES)


def test_other_files_of_a_module_stay_behind(checkpoint: Path) -> None:
    for name in ("pytorch_model.bin", "notes.txt", "model.py"):
        (checkpoint / "2_Dense" / name).write_bytes(b"mine")
    assert read(checkpoint).keys() == set(FILES)


@pytest.mark.parametrize("folder", ["2_Dense", "2_Dense_1024", "2_dense-a"])
def test_folders_with_other_names(folder: str, checkpoint: Path) -> None:
    (checkpoint / "2_Dense").rename(checkpoint / folder)
    rewrite_json(checkpoint / "modules.json", lambda modules: modules[2].update(path=folder))
    assert f"{folder}/model.safetensors" in read(checkpoint)


def kubernetes(checkpoint: Path) -> None:
    """Links to folders through a link to an inner folder."""
    inner = checkpoint / "..2024_01_01"
    inner.mkdir()
    (checkpoint / "..data").symlink_to(inner.name)
    for path in [path for path in checkpoint.iterdir() if path.name[0] in "123m"]:
        path.rename(inner / path.name)
        path.symlink_to(f"..data/{path.name}")


def test_links_within_the_checkpoint_are_followed(checkpoint: Path) -> None:
    before = read(checkpoint)
    kubernetes(checkpoint)
    assert (checkpoint / "2_Dense").is_symlink()
    assert read(checkpoint) == before


def change(number: int, **values: Any) -> Callable[[Path], object]:
    """Change one module of the list."""
    return lambda folder: rewrite_json(folder / "modules.json", lambda modules: modules[number].update(values))


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def link_out(name: str) -> Callable[[Path], object]:
    """Move a file or folder out of the checkpoint, and link to it."""

    def link(folder: Path) -> None:
        (folder / name).rename(folder.parent / "elsewhere")
        (folder / name).symlink_to("../elsewhere" if "/" not in name else "../../elsewhere")

    return link


def link_to_itself(folder: Path) -> None:
    shutil.rmtree(folder / "1_Pooling")
    (folder / "1_Pooling").symlink_to("1_Pooling")


def pickle(folder: Path) -> None:
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")


def pipe(folder: Path) -> None:
    (folder / "1_Pooling" / "config.json").unlink()
    os.mkfifo(folder / "1_Pooling" / "config.json")


def large_list(folder: Path) -> None:
    os.truncate(folder / "modules.json", 1 << 30)


OUTSIDE = "whose path is not the name of a module's folder"
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{
        f"path {path!r}": (change(1, path=path), OUTSIDE)
        for path in (
            *("..", "../1_Pooling", "/etc", ".", "", "1_Pooling/..", "1_Pooling/", "./1_Pooling", "2_Dense/../../x"),
            *("engines", "reports", "model.onnx", ".hidden", "1_\0", "1_Pooling\n", "1_..", "1_" + "x" * 300),
        )
    },
    "not JSON": (write("modules.json", b"["), r"is not a list of modules(?s:.)*Invalid JSON"),
    "an object": (write("modules.json", b"{}"), "is not a list of modules"),
    "no path": (write("modules.json", b'[{"type": "x"}]'), r"is not a list of modules(?s:.)*0\.path: Field required"),
    "numbers": (change(1, path=1), r"is not a list of modules(?s:.)*1\.path"),
    "deep": (write("modules.json", b"[" * 100_000), "is not a list of modules"),
    "empty list": (write("modules.json", b"[]"), r"first module in modules\.json is not the model(?s:.)*no modules"),
    "large list": (large_list, "larger than the limit"),
    "model in a folder": (change(0, path="0_Transformer"), "is not the model of this folder"),
    "no model": (change(0, type="sentence_transformers.models.Pooling"), "is not the model of this folder"),
    "custom model": (change(0, type="custom_st.Transformer"), "is not the model of this folder"),
    "custom code": (change(2, type="custom.Dense"), r"a bundle cannot contain(?s:.)*got: custom\.Dense"),
    "name like the library's": (change(2, type="sentence_transformers_x.Dense"), "a bundle cannot contain"),
    "other module": (change(2, type="sentence_transformers.models.LSTM"), "a bundle cannot contain"),
    "second model": (change(2, type="sentence_transformers.models.Transformer"), "a bundle cannot contain"),
    "pickle": (pickle, r"no safetensors file(?s:.)*pytorch_model\.bin: pickle, which can run code"),
    "no weights": (remove("2_Dense/model.safetensors"), r"lacks files of its modules(?s:.)*2_Dense/model\.safetensors"),
    "no folder": (lambda f: shutil.rmtree(f / "1_Pooling"), r"lacks files of its modules(?s:.)*1_Pooling/config\.json"),
    "file as folder": (lambda f: (shutil.rmtree(f / "1_Pooling"), (f / "1_Pooling").touch()), "lacks files of its"),
    "link to itself": (link_to_itself, "cannot be read|lacks files"),
    "link out": (link_out("2_Dense/model.safetensors"), "links out of it"),
    "folder link out": (link_out("2_Dense"), "links out of it"),
    "list link out": (link_out("modules.json"), "links out of it"),
    "options link out": (link_out("sentence_bert_config.json"), "links out of it"),
    "dangling list": (lambda f: (remove("modules.json")(f), (f / "modules.json").symlink_to("x")), "placeholders"),
    "LFS pointer": (
        write("2_Dense/model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        r"placeholders(?s:.)*2_Dense/model\.safetensors: a Git LFS pointer",
    ),
    "config not JSON": (write("1_Pooling/config.json", b"mean"), r"config\.json is not JSON"),
    "options not JSON": (write("sentence_bert_config.json", b"[]"), r"sentence_bert_config\.json is not a JSON object"),
    "no safetensors": (write("3_Dense/model.safetensors", b"\x80\x04."), "weight file cannot be read"),
    "pipe": (pipe, "file of the checkpoint cannot be read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_refused_before_any_work(name: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil, message = HOSTILE[name]
    monkeypatch.setattr("funnel_export.exporter.build.build_graphs", None)  # calling it would raise a TypeError
    spoil(checkpoint)
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, checkpoint.parent / "out", funnel=None)
    assert not (checkpoint.parent / "out").exists()


def test_the_hint_for_another_model_leaves_the_list_out(checkpoint: Path) -> None:
    change(2, type="custom.Dense")(checkpoint)
    with pytest.raises(CheckpointError) as caught:
        read(checkpoint)
    assert caught.value.details["hint"].endswith("export a copy without modules.json")
    (checkpoint / "modules.json").unlink()
    assert read(checkpoint) == {}


@pytest.mark.parametrize("folder", ["1_Pooling", "2_Dense"])
def test_a_modules_folder_is_no_checkpoint(folder: str, checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match="this kind of model is not supported"):
        Checkpoint.open(checkpoint / folder)


def test_only_models_are_proposed_in_place_of_a_folder_without_one(checkpoint: Path) -> None:
    (checkpoint / "4_Transformer").mkdir()
    for name in ("config.json", "model.safetensors"):
        (checkpoint / name).rename(checkpoint / "4_Transformer" / name)
    with pytest.raises(CheckpointError, match=r"no config\.json in this folder") as caught:
        Checkpoint.open(checkpoint)
    assert caught.value.details["hint"] == str(checkpoint / "4_Transformer")


def test_reading_changes_nothing(checkpoint: Path) -> None:
    before = listing(checkpoint)
    read(checkpoint)
    assert listing(checkpoint) == before
    assert json.loads(before["modules.json"])[4]["path"] == "4_Normalize"
