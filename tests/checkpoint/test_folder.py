"""Folders without a usable checkpoint: the error names every fault, before anything is traced."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoint.spoiled import WEIGHTS, copied
from embedder import save_modules
from exported import Recipe

from funnel_export import export
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError

SHARDED = Recipe(stored=torch.float16, shards="20KB")
INDEX = "model.safetensors.index.json"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return copied(tmp_path)


def refused(checkpoint: Path) -> dict[str, str]:
    """The parts of the error."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(checkpoint)
    return {"what": caught.value.what, "hint": "", **caught.value.details}


POINTERS = {
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n": "git -C {} lfs pull",
    "/annex/objects/SHA256E-s5--2cf2.safetensors\n": "git -C {} annex get .",
    "# xet version 0\nfilesize = 12345\nhash = '4d7a'\n": "hf download MODEL --local-dir {}",
    "\n<!DOCTYPE html>\n<html><head>": "hf download MODEL --local-dir {}",
}


@pytest.mark.parametrize("text", POINTERS, ids=["Git LFS", "git-annex", "Xet", "a page"])
@pytest.mark.parametrize("files", [[WEIGHTS, "tokenizer.json"], ["config.json"], ["tokenizer.json"]], ids=str)
def test_pointers(text: str, files: list[str], checkpoint: Path) -> None:
    for file in files:
        (checkpoint / file).write_text(text)
    error = refused(checkpoint)
    assert all(file in error["got"] for file in files)
    assert error["hint"] == POINTERS[text].format(checkpoint)


def test_pointers_in_place_of_shards(tmp_path: Path) -> None:
    checkpoint = copied(tmp_path, SHARDED)
    shards = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    for shard in shards:
        (checkpoint / shard).write_text(next(iter(POINTERS)))
    assert refused(checkpoint)["got"].startswith(", ".join(shards[:3]))


LINKS = {
    "../.git/annex/objects/Xx/Yy/SHA256E-s5--2cf2/SHA256E-s5--2cf2": "git -C {} annex get .",
    "../../.dvc/cache/files/md5/ab/cdef": "dvc --cd {} pull",
    "/mnt/shared/files/md5/ab/cdef": "dvc --cd {} pull",
    "../../blobs/cdef": "hf download MODEL --local-dir {}",
}


@pytest.mark.parametrize("target", LINKS)
def test_links_that_lead_nowhere(target: str, checkpoint: Path) -> None:
    for name in (WEIGHTS, "config.json", "tokenizer.json"):
        (checkpoint / name).unlink()
        (checkpoint / name).symlink_to(target)
    error = refused(checkpoint)
    assert error["got"].startswith("config.json, model.safetensors, tokenizer.json: a link")
    assert error["hint"] == LINKS[target].format(checkpoint)


def stored_elsewhere(checkpoint: Path) -> Path:
    """Move the files into a store outside the checkpoint and link to them, as DVC and git-annex do."""
    store = checkpoint.parent / ".dvc" / "cache" / "files" / "md5"
    store.mkdir(parents=True)
    (checkpoint / "tokenizer_config.json").write_text("{}")
    for number, file in enumerate(sorted(checkpoint.iterdir())):
        file.rename(store / str(number))
        file.symlink_to(os.path.relpath(store / str(number), checkpoint))
    return checkpoint


def test_all_links_out_of_the_checkpoint_are_named_and_the_hint_works(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = stored_elsewhere(checkpoint).rename(checkpoint.with_name("two words"))
    monkeypatch.setattr("funnel_export.exporter.build.build_graphs", None)  # calling it would raise a TypeError
    with pytest.raises(CheckpointError, match="links out of it") as caught:
        export(stored, stored.parent / "out", funnel="1:3:2", task="text-generation")
    names = [line.split(" -> ")[0] for line in caught.value.details["got"].splitlines()]
    assert names == ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    assert not (stored.parent / "out").exists()
    command = caught.value.details["hint"].split(": ", 1)[1].split(", and ")[0]
    subprocess.run(shlex.split(command), check=True)
    copy = Checkpoint.open(f"{stored}-copy")
    assert copy.companions()["tokenizer.json"] == b"{}"
    assert not any(path.is_symlink() for path in copy.path.iterdir())


def test_a_link_does_not_copy_a_file_of_this_machine(checkpoint: Path) -> None:
    (checkpoint.parent / "secret").write_text("a key")
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "tokenizer.json").symlink_to("../secret")
    with pytest.raises(CheckpointError, match="links out of it"):
        export(checkpoint, checkpoint.parent / "out", funnel="1:3:2", task="text-generation")
    assert not (checkpoint.parent / "out").exists()


def kubernetes(checkpoint: Path) -> None:
    """Lay out the files like a mounted Kubernetes volume: links to files through a link to an inner folder."""
    inner = checkpoint / "..2024_01_01"
    inner.mkdir()
    (checkpoint / "..data").symlink_to(inner.name)
    for file in [path for path in checkpoint.iterdir() if path.is_file()]:
        file.rename(inner / file.name)
        file.symlink_to(f"..data/{file.name}")


def deep(checkpoint: Path) -> None:
    inner = checkpoint / "files" / "of" / "mine"
    inner.mkdir(parents=True)
    (checkpoint / "tokenizer.json").rename(inner / "t")
    (checkpoint / "tokenizer.json").symlink_to(inner / "t")


@pytest.mark.parametrize("arrange", [kubernetes, deep])
def test_links_within_the_checkpoint(arrange: Callable[[Path], None], checkpoint: Path) -> None:
    arrange(checkpoint)
    bundle = export(checkpoint, checkpoint.parent / "out", funnel="1:3:2", task="text-generation")
    for name in ("config.json", "tokenizer.json", WEIGHTS):
        assert not (bundle.path / name).is_symlink()
    assert (bundle.path / "tokenizer.json").read_bytes() == b"{}"


@pytest.mark.parametrize("within", ["", "inner"])
def test_a_snapshot_of_the_hubs_cache(within: str, tmp_path: Path) -> None:
    model = tmp_path / "models--somebody--tiny"
    snapshot = model / "snapshots" / "1" / within
    (model / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in copied(tmp_path).iterdir():
        file.rename(model / "blobs" / file.name)
        (snapshot / file.name).symlink_to(os.path.relpath(model / "blobs" / file.name, snapshot))
    assert Checkpoint.open(snapshot).companions()["tokenizer.json"] == b"{}"


def test_a_folder_named_blobs_is_not_the_hubs_cache(checkpoint: Path) -> None:
    blobs = checkpoint.parent / "blobs"
    checkpoint = checkpoint.rename(checkpoint.with_name("snapshots")) / "1"
    checkpoint.mkdir()
    for path in [path for path in checkpoint.parent.iterdir() if path.is_file()]:
        path.rename(checkpoint / path.name)
    blobs.mkdir()
    (checkpoint / "tokenizer.json").rename(blobs / "t")
    (checkpoint / "tokenizer.json").symlink_to(blobs / "t")
    with pytest.raises(CheckpointError, match="links out of it"):
        Checkpoint.open(checkpoint).companions()


@pytest.mark.parametrize(
    "spoil",
    [os.mkfifo, Path.mkdir, lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 30)],
    ids=["pipe", "folder", "gigabyte"],
)
def test_a_tokenizer_file_that_is_not_a_regular_file(
    spoil: Callable[[Path], object], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("funnel_export.exporter.build.build_graphs", None)
    (checkpoint / "tokenizer.json").unlink()
    spoil(checkpoint / "tokenizer.json")
    with pytest.raises(CheckpointError, match="file of the checkpoint cannot be read"):
        export(checkpoint, checkpoint.parent / "out", funnel="1:3:2", task="text-generation")


@pytest.mark.parametrize(
    "names", [["adapter_config.json", "adapter_model.safetensors"], ["adapter_model.bin"]], ids=str
)
@pytest.mark.parametrize("model", [True, False])
def test_an_adapter(names: list[str], model: bool, checkpoint: Path) -> None:
    for name in names:
        (checkpoint / name).write_bytes(b"{}")
    if not model:
        (checkpoint / WEIGHTS).unlink()
        (checkpoint / "config.json").unlink()
    error = refused(checkpoint)
    assert "PEFT adapter" in error["what"]
    assert all(name in error["got"] for name in names)
    assert ("beside a model" in error["got"]) is model
    assert "merge_and_unload().save_pretrained" in error["hint"]


FORMATS: dict[tuple[str, ...], tuple[str, str]] = {
    ("model.fp16.safetensors",): ("a variant", 'variant="NAME"'),
    ("model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"): ("a variant", 'variant="NAME"'),
    ("model.safetensors.incomplete",): ("incomplete", "hf download"),
    ("model.safetensors.dvc",): ("DVC has not fetched", "dvc --cd"),
    ("consolidated.safetensors", "params.json"): ("other tensor names", "Hugging Face format"),
    ("weights.safetensors",): ("Hugging Face does not load", "save_pretrained"),
    ("pytorch_model.bin",): ("pickle, which can run code", "where you trust it"),
    ("consolidated.00.pth",): ("pickle, which can run code", "where you trust it"),
    ("gemma-2-2b-it-Q4_K_M.gguf",): ("GGUF", "gguf_file"),
    ("tf_model.h5",): ("TensorFlow", "from_tf"),
    ("model.ckpt.index", "model.ckpt.data-00000-of-00001"): ("TensorFlow", "from_tf"),
    ("flax_model.msgpack",): ("Flax", "from_flax"),
    ("global_step500", "zero_to_fp32.py"): ("training run", "zero_to_fp32.py"),
    ("pytorch_model_fsdp_0",): ("training run", "merge-weights"),
    ("model.onnx",): ("an ONNX graph", "made from"),
}


@pytest.mark.parametrize("config", [True, False])
@pytest.mark.parametrize("names", FORMATS, ids=lambda names: names[0])
def test_other_formats(names: tuple[str, ...], config: bool, checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    if not config:
        (checkpoint / "config.json").unlink()
    for name in names:
        (checkpoint / name).write_bytes(b"x")
    what, hint = FORMATS[names]
    error = refused(checkpoint)
    assert ("no config.json" in error["what"]) is not config
    assert names[0] in error["got"]
    assert what in error["got"]
    assert hint in error["hint"]


def test_the_hint_is_for_the_format_that_is_easiest_to_convert(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    for name in ("flax_model.msgpack", "pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (checkpoint / name).write_bytes(b"x")
    error = refused(checkpoint)
    assert error["got"] == "pytorch_model.bin: pickle, which can run code and is never read; flax_model.msgpack: Flax"
    assert "save_pretrained" in error["hint"]


def test_shards_without_an_index(tmp_path: Path) -> None:
    checkpoint = copied(tmp_path, SHARDED)
    (checkpoint / INDEX).unlink()
    assert "none of them is missing" in refused(checkpoint)["got"]
    shards = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    (checkpoint / shards[0]).unlink()
    (checkpoint / shards[-1]).unlink()
    error = refused(checkpoint)
    assert f"no {INDEX} beside {shards[1]}" in error["got"]
    assert f"2 of {len(shards)} are missing: {shards[0]}, {shards[-1]}" in error["got"]
    assert error["hint"] == f"hf download MODEL --local-dir {checkpoint}"


def test_an_index_without_some_of_its_shards(tmp_path: Path) -> None:
    checkpoint = copied(tmp_path, SHARDED)
    shards = sorted(path.name for path in checkpoint.glob("*.safetensors"))
    (checkpoint / shards[0]).unlink()
    (checkpoint / shards[2]).unlink()
    assert refused(checkpoint)["got"] == f"2 of {len(shards)} are missing: {shards[0]}, {shards[2]}"


def test_a_folder_of_checkpoints(checkpoint: Path) -> None:
    parent = checkpoint.parent
    shutil.copytree(checkpoint, parent / "checkpoint-500")
    error = refused(parent)
    assert error["what"] == "there is no config.json in this folder"
    assert error["hint"] == f"{checkpoint} or {checkpoint}-500"


def test_an_empty_folder_and_a_file(tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty")["got"] == "an empty folder"
    error = refused(checkpoint / WEIGHTS)
    assert error["what"] == "the checkpoint is not a folder"
    assert error["hint"] == str(checkpoint)


@contextmanager
def another_user() -> Iterator[None]:
    """Drop root, who can read any file."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def readable() -> Iterator[Path]:
    """A checkpoint that every user can read."""
    with tempfile.TemporaryDirectory(prefix="funnel-export-") as name:
        Path(name).chmod(0o755)
        checkpoint = save_modules(copied(Path(name)), width=40)
        for path in (checkpoint, *checkpoint.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        Checkpoint.open(checkpoint)  # runs its imports before root is dropped
        yield checkpoint


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("config.json", r"config\.json cannot be read"),
        (WEIGHTS, "a weight file cannot be read"),
        ("tokenizer.json", "a file of the checkpoint cannot be read"),
        ("modules.json", "a file of the checkpoint cannot be read"),
        ("2_Dense", "a file of the checkpoint cannot be read"),
        ("2_Dense/model.safetensors", "a file of the checkpoint cannot be read"),
        ("", "the checkpoint's folder cannot be read"),
        ("..", "the path of the checkpoint cannot be accessed"),
    ],
)
def test_no_permission(place: str, message: str, readable: Path) -> None:
    (readable / place).chmod(0)
    with tempfile.TemporaryDirectory() as writable:
        Path(writable).chmod(0o777)
        with another_user(), pytest.raises(CheckpointError, match=message) as caught:
            export(readable, Path(writable) / "out", funnel="1:3:2", task="feature-extraction")
    (readable / place).chmod(0o755)
    assert "Permission denied" in caught.value.details["got"]
    assert caught.value.details["hint"].startswith("check its permissions: ls -ld ")
    assert "download" not in str(caught.value)
