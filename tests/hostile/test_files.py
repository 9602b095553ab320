"""Files that are not what their names say: pipes, folders, holes of a gigabyte, and headers that lie."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from exported import COMPACT, Recipe
from fuzz.watch import limit, listing

from funnel_export import check, export, load_bundle
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import BundleError, CheckpointError

KINDS: dict[str, Callable[[Path], object]] = {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "gigabyte of nothing": lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 30),
    "link to itself": lambda path: path.symlink_to(path),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return shutil.copytree(Recipe().bundle().path, tmp_path / "bundle")


def put(path: Path, kind: str) -> None:
    path.unlink()
    KINDS[kind](path)


def in_one_shard(folder: Path, name: str) -> None:
    """Rename the weights' file, and let an index say so."""
    (folder / "model.safetensors").rename(folder / name)
    index = {"weight_map": dict.fromkeys(Checkpoint.open(Recipe().checkpoint()).tensors, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "shard.safetensors"])
def test_a_checkpoint_of_other_things(file: str, kind: str, checkpoint: Path) -> None:
    if file == "shard.safetensors":
        in_one_shard(checkpoint, file)
    put(checkpoint / file, kind)
    with pytest.raises(CheckpointError), limit():
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", ["manifest.json", "config.json", "model.onnx", "model.safetensors"])
def test_a_bundle_of_other_things(file: str, kind: str, bundle: Path) -> None:
    put(bundle / file, kind)
    with pytest.raises(BundleError), limit():
        load_bundle(bundle)


def rewrite_header(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the header of the weights; what `change` returns is written in its place, if anything."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    changed = change(header)
    new = changed if isinstance(changed, bytes) else json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + content[8 + length :])


NAME = "model.norm.weight"


def entry(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header[NAME].update(values)


def twice(header: dict[str, Any]) -> bytes:
    text = json.dumps(header)
    return f"{text[:-1]}, {json.dumps(NAME)}: {json.dumps(header[NAME])}}}".encode()


HEADERS: dict[str, Callable[[dict[str, Any]], object]] = {
    "negative offset": lambda h: h[NAME].update(data_offsets=[-1, h[NAME]["data_offsets"][1]]),
    "reversed offsets": lambda h: h[NAME]["data_offsets"].reverse(),
    "offsets beyond the file": entry(data_offsets=[1 << 40, (1 << 40) + 160]),
    "overlap": lambda h: h[NAME].update(data_offsets=[0, 160]),
    "hole": lambda h: h.pop(NAME),
    "another shape than its bytes": entry(shape=[41]),
    "huge shape": entry(shape=[1 << 63, 1 << 63]),
    "no list": entry(shape=40),
    "a number that is not whole": entry(shape=[40.0]),
    "unknown dtype": entry(dtype="F77"),
    "dtype of another size": entry(dtype="F64"),
    "tensor named twice": twice,
    "metadata that is no object": lambda h: h.update(__metadata__=5),
    "a list": lambda _: b"[]",
    "empty": lambda _: b"",
    "not UTF-8": lambda _: b'{"\xff": 1}',
    "deep": lambda _: b"[" * 100_000,
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_that_lie(name: str, checkpoint: Path) -> None:
    rewrite_header(checkpoint, HEADERS[name])
    with pytest.raises(CheckpointError, match="weight file cannot be read"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 1 << 30, 0])
def test_a_header_of_another_length(length: int, checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="weight file cannot be read"):
        Checkpoint.open(checkpoint)


def test_bytes_after_the_end(checkpoint: Path) -> None:
    with (checkpoint / "model.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match="weight file cannot be read"):
        Checkpoint.open(checkpoint)


def test_integers_for_weights(checkpoint: Path) -> None:
    rewrite_header(checkpoint, entry(dtype="I32"))
    with pytest.raises(CheckpointError, match="unsupported dtype"):
        export(checkpoint, checkpoint.parent / "out", funnel="1:3:2", task="text-generation")


@pytest.mark.parametrize("name", ["manifest.json", "model.onnx", "tokenizer.json"])
def test_weights_under_a_name_that_a_bundle_needs(name: str, checkpoint: Path) -> None:
    """Hard-linked as manifest.json, the checkpoint's weights were overwritten by the bundle's manifest."""
    in_one_shard(checkpoint, name)
    before = listing(checkpoint.parent)
    with pytest.raises(CheckpointError, match=r"ends in \.safetensors"):
        export(checkpoint, checkpoint.parent / "out", funnel="1:3:2", task="text-generation")
    assert listing(checkpoint.parent) == before


@pytest.mark.parametrize("file", ["..", "../x.safetensors", "/x.safetensors", "a\0.safetensors", ".", ""])
def test_shards_elsewhere(file: str, checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": file}}))
    with pytest.raises(CheckpointError, match=r"outside the checkpoint|the suffix of safetensors"):
        Checkpoint.open(checkpoint)


@pytest.mark.parametrize("file", ["model.onnx", "config.json", "manifest.json", "model.safetensors"])
def test_files_of_two_bundles_swapped(file: str, bundle: Path) -> None:
    other = COMPACT.bundle().path
    shutil.copyfile(other / file, bundle / file)
    with pytest.raises(BundleError):
        load_bundle(bundle)


def agree(bundle: Path) -> None:
    """Let the manifest have the digests of what is there now."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["graphs"]["model"]["sha256"] = hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    manifest["config_sha256"] = hashlib.sha256((bundle / "config.json").read_bytes()).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_config_of_another_model_is_found_before_its_weights_are_made(bundle: Path) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (bundle / "config.json").write_text(json.dumps(config | {"intermediate_size": 1 << 20}))
    agree(bundle)
    with pytest.raises(CheckpointError, match="another shape than"):
        check(bundle, targets=["onnxruntime"], max_length=2)


def test_a_graph_that_goes_round_in_circles(bundle: Path) -> None:
    """The audit follows a graph backwards, and would follow this one for ever."""
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    nodes = [onnx.helper.make_node("And", ["a", "a"], ["b"]), onnx.helper.make_node("And", ["b", "b"], ["a"])]
    model.graph.node.extend(nodes)
    (bundle / "model.onnx").write_bytes(model.SerializeToString())
    agree(bundle)
    with pytest.raises(BundleError, match=r"cannot be read(.|\n)*topologically sorted"):
        load_bundle(bundle)
