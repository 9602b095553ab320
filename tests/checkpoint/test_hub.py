"""Checkpoints by Hub id, from a cache folder that the tests create; nothing is downloaded."""

import json
import os
import shutil
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from command_line import run
from embedder import FILES as MODULES
from embedder import save_modules
from exported import Recipe
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects

from funnel_export.checkpoint.hub import FILES, find_checkpoint
from funnel_export.checkpoint.modules import read_modules
from funnel_export.errors import CheckpointError, SpecError
from funnel_export.spec.choices import Task

ID, COMMIT, TAGGED = "somebody/tiny-gemma2", "0" * 39 + "1", "0" * 39 + "2"


def make_cache(cache: Path) -> Path:
    """A Hub cache with two commits of one model: main, and one with the tag v1 and a funnel."""
    model = cache / "models--somebody--tiny-gemma2"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    for commit, ref in ((COMMIT, "main"), (TAGGED, "v1")):
        (model / "refs" / ref).write_text(commit)
        snapshot = model / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in Recipe().checkpoint().iterdir():
            blob = model / "blobs" / f"{file.name}-{ref}"
            shutil.copyfile(file, blob)
            (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    config = model / "blobs" / "config.json-v1"
    funnel = {"pool_layer": 1, "recover_layer": 4, "stride": 3}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"funnel": funnel}))
    return cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use the cache, offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return make_cache(tmp_path / "hub")


def test_an_id_is_found_in_the_cache(cache: Path) -> None:
    found = find_checkpoint(ID)
    assert found.folder == cache / "models--somebody--tiny-gemma2" / "snapshots" / COMMIT
    assert found.name == f"{ID}@{COMMIT}"


@pytest.mark.parametrize("revision", ["v1", TAGGED])
def test_a_revision_is_found_in_the_cache(revision: str, cache: Path) -> None:
    assert find_checkpoint(ID, revision).name == f"{ID}@{TAGGED}"


def test_a_folder_is_taken_before_an_id(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache.parent / "somebody" / "tiny-gemma2"
    folder.mkdir(parents=True)
    monkeypatch.chdir(cache.parent)
    assert find_checkpoint(ID).folder == Path(ID)
    with pytest.raises(SpecError, match="a folder has no revisions"):
        find_checkpoint(ID, "v1")


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("somebody/else", None, "the Hub cannot be reached"),
        (ID, "v2", "at v2, which is not a folder and not in the Hub's cache"),
        ("somebody/else", None, "hf download somebody/else"),
    ],
)
def test_missing_models_are_refused(name: str, revision: str | None, message: str, cache: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(name, revision)


@pytest.mark.parametrize(
    ("name", "missing", "close"),
    [
        ("./chekpoint", "chekpoint", "checkpoint"),
        ("chekpoint", "chekpoint", "checkpoint"),
        ("chekpoint/", "chekpoint", "checkpoint"),
        ("models/gema", "models/gema", "models/gemma"),
        ("./modles/gemma", "modles", "models/gemma"),
        ("modles/gemma/", "modles", "models/gemma"),
        ("models/llama", "models/llama", None),
        ("ROOT/models/gema", "ROOT/models/gema", "ROOT/models/gemma"),
        ("ROOT/modles/gemma", "ROOT/modles", "ROOT/models/gemma"),
        ("../nowhere/else/at/all", "../nowhere", None),
        ("checkpoint/file/inside", "checkpoint/file/inside", None),
        ("~/checkpoint", "~", None),
        ("with spaces", "with spaces", None),
    ],
)
def test_a_mistyped_path(
    name: str, missing: str, close: str | None, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "file").touch()
    (tmp_path / "models" / "gemma").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    name, missing = (each.replace("ROOT", str(tmp_path)) for each in (name, missing))
    with pytest.raises(CheckpointError, match="checkpoint not found") as caught:
        find_checkpoint(name)
    assert caught.value.details["got"] == f"{name}: the folder {missing} does not exist"
    assert caught.value.details.get("hint") == (close and close.replace("ROOT", str(tmp_path)))


def test_the_modules_are_downloaded_and_no_code() -> None:
    wanted = {"config.json", "model.safetensors", "tokenizer.json", *MODULES}
    others = ("2_Dense/pytorch_model.bin", "2_Dense/dense.py", "model.py", "onnx/config.json", "onnx/model.onnx")
    assert set(filter_repo_objects([*wanted, *others], allow_patterns=list(FILES))) == wanted


def test_the_modules_of_a_snapshot_are_read(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "saved").mkdir()
    saved = save_modules(tmp_path / "saved", width=40)
    snapshot = find_checkpoint(ID).folder
    for number, name in enumerate(MODULES):
        (snapshot / name).parent.mkdir(exist_ok=True)
        blob = shutil.copyfile(saved / name, snapshot.parents[1] / "blobs" / str(number))
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    found = read_modules(snapshot, Task.FEATURE_EXTRACTION)
    assert found == {name: (saved / name).read_bytes() for name in MODULES}


def test_an_id_is_found_although_a_folder_has_its_owners_name(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebody" / "tiny-gemma").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(ID).name == f"{ID}@{COMMIT}"
    with pytest.raises(CheckpointError, match="at v2, which is not a folder"):
        find_checkpoint(ID, "v2")


def test_a_name_that_is_too_long(cache: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be accessed"):
        find_checkpoint("x" * 300)


def test_a_lost_connection_is_a_checkpoint_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object, **__: object) -> None:
        raise errors.HTTPError("the connection was lost")

    monkeypatch.setattr("huggingface_hub.snapshot_download", lose)
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        find_checkpoint(ID)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RevisionNotFoundError", r"revision not found\n.*somebody/tiny-gemma2 at v9"),
        ("GatedRepoError", r"the model is gated.*accept the terms at https://huggingface\.co/somebody/tiny-gemma2, "),
        ("RepositoryNotFoundError", r"checkpoint not found\n.*run `hf auth login` if the model is private"),
        ("HfHubHTTPError", r"the model cannot be downloaded\n.*somebody/tiny-gemma2: the Hub's words"),
    ],
)
def test_what_the_hub_refuses_has_a_message_of_its_own(
    error: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise getattr(errors, error)("the Hub's words", response=MagicMock())

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        find_checkpoint(ID, "v9")


def test_export_by_id_on_the_command_line(cache: Path, tmp_path: Path) -> None:
    done = run("export", ID, tmp_path / "out", "--revision", "v1", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    manifest = json.loads(done.stdout)
    assert manifest["source"] == f"{ID}@{TAGGED}"
    assert manifest["funnel"]["stride"] == 3
    weights = tmp_path / "out" / "model.safetensors"
    assert not weights.is_symlink()
    assert weights.samefile(cache / "models--somebody--tiny-gemma2" / "blobs" / "model.safetensors-v1")
