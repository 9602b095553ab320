"""Reading a checkpoint: invalid ones are refused with the right error."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exported import Recipe

from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.errors import CheckpointError
from funnel_export.spec.choices import Dtype, Task

SHARDED = Recipe(stored=torch.float16, shards="20KB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")


def config(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(values))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_outside(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../x.safetensors"}}))


def cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


SPOILS: dict[Callable[[Path], object], str] = {
    lambda f: shutil.rmtree(f): "checkpoint not found",
    lambda f: (f / "config.json").unlink(): r"no config\.json in this folder",
    lambda f: (f / "config.json").write_text("{"): "is not JSON",
    lambda f: (f / "config.json").write_text("[]"): "not a JSON object",
    lambda f: config(f, model_type="llama"): "this kind of model is not supported",
    lambda f: config(f, transformers_weights="other.safetensors"): "transformers_weights in config",
    lambda f: config(f, sliding_window=None): "sliding_window is null",
    lambda f: config(f, sliding_window=None, layer_types=["full_attention"] * 4): "sliding_window is null: Hugging",
    lambda f: config(f, quantization_config={"bits": 4}): "quantized",
    lambda f: (f / "model.safetensors").unlink(): "no safetensors",
    pickle_only: "pickle, which can run code",
    index_outside: "outside the checkpoint",
    cut: "weight file cannot be read",
    lambda f: (f / "model.safetensors").write_bytes(b""): "weight file cannot be read",
}


@pytest.mark.parametrize("spoil", SPOILS, ids=[message.replace(" ", "-") for message in SPOILS.values()])
def test_refused(spoil: Callable[[Path], object], folder: Path) -> None:
    Checkpoint.open(folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=SPOILS[spoil]):
        Checkpoint.open(folder)


def test_offsets_find_the_bytes(folder: Path) -> None:
    from safetensors.torch import load_file

    checkpoint = Checkpoint.open(folder)
    for name, tensor in load_file(folder / "model.safetensors").items():
        stored = checkpoint.tensors[name]
        content = (folder / stored.file).read_bytes()[stored.offset : stored.offset + stored.nbytes]
        assert content == tensor.numpy().tobytes()
        assert stored.shape == tuple(tensor.shape)


def test_shards() -> None:
    checkpoint = Checkpoint.open(SHARDED.checkpoint())
    assert len(checkpoint.weights) > 2
    assert checkpoint.dtype is Dtype.FLOAT16
    assert checkpoint.find("layers.0.mlp.up_proj.weight") == checkpoint.find("model.layers.0.mlp.up_proj.weight")


@pytest.mark.parametrize("task", [task for task in Task if not task.has_past])
def test_the_task_follows_from_the_architecture(task: Task) -> None:
    assert Checkpoint.open(Recipe(task=task).checkpoint()).task is task


def test_the_task_is_unknown_without_architectures(folder: Path) -> None:
    config(folder, architectures=["SomethingElse"])
    with pytest.raises(CheckpointError, match="task of the checkpoint is unknown"):
        Checkpoint.open(folder).task  # noqa: B018


def test_a_single_file_wins_over_an_index_beside_it(folder: Path) -> None:
    for file in SHARDED.checkpoint().glob("model*"):
        shutil.copyfile(file, folder / file.name)
    assert [file.file for file in Checkpoint.open(folder).weights] == ["model.safetensors"]
