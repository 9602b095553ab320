"""A bundle is whole or refused, and an export that fails leaves what was there."""

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from exported import Recipe
from models import save_tiny_checkpoint
from safetensors.torch import load_file, save_file
from tamper import agree_with_graph, listing, rewrite_graph, rewrite_json

from funnel_export import FunnelSpec, check, export, load_bundle
from funnel_export.errors import BundleError, CheckpointError, ExportError, FunnelExportError, SpecError
from funnel_export.spec.choices import Task
from funnel_export.system.atomic import replace_folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle of its own for a test to spoil."""
    return shutil.copytree(Recipe().bundle().path, tmp_path / "bundle")


def external(model: onnx.ModelProto) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL)


def place(tensor: onnx.TensorProto, **changes: str) -> None:
    for entry in tensor.external_data:
        entry.value = changes.get(entry.key, entry.value)


def constant_outside(model: onnx.ModelProto) -> None:
    """Hide the reference in a node of a subgraph instead of an initializer."""
    tensor = onnx.TensorProto()
    tensor.CopyFrom(external(model))
    place(tensor, location="/etc/passwd")
    inner = onnx.helper.make_graph([onnx.helper.make_node("Constant", [], ["c"], value=tensor)], "inner", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def garbage(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(b"\xff\xff\xff")
    agree_with_graph(folder)


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def link_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.rename(folder.parent / "elsewhere")
    weights.symlink_to(folder.parent / "elsewhere")


def append_to_graph(folder: Path) -> None:
    with (folder / "model.onnx").open("ab") as stream:
        stream.write(b"\x00")


def other_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_tiny_checkpoint(folder.parent / "other", vocab_size=62)
    shutil.copyfile(folder.parent / "other" / "model.safetensors", folder / "model.safetensors")


def trained_further(folder: Path) -> None:
    """Weights of the same names, dtypes and shapes: the header is the same."""
    file = folder / "model.safetensors"
    weights, header = load_file(file), file.read_bytes()[:2000]
    weights["model.layers.2.post_attention_layernorm.weight"] += 0.01
    save_file(weights, file, metadata={"format": "pt"})
    assert file.read_bytes()[:2000] == header


def graph_of(manifest: dict[str, Any]) -> dict[str, Any]:
    graph: dict[str, Any] = manifest["graphs"]["model"]
    return graph


def port(manifest: dict[str, Any], end: str) -> dict[str, Any]:
    """The first input or output of a manifest's graph."""
    first: dict[str, Any] = graph_of(manifest)[end][0]
    return first


def retype(model: onnx.ModelProto, elem_type: int) -> None:
    """Give the first input another dtype."""
    model.graph.input[0].type.tensor_type.elem_type = elem_type


SPOILS: dict[Callable[[Path], object], str] = {
    append_to_graph: "model.onnx is not the one that was exported",
    lambda f: (f / "model.onnx").unlink(): "the bundle's model.onnx is missing",
    truncate: "a weight file of the bundle is damaged",
    other_weights: "a weight file is not the one that was exported",
    trained_further: "a weight file is not the one that was exported",
    link_weights: "a file of the bundle is a symbolic link",
    lambda f: rewrite_graph(f, lambda m: place(external(m), location="../secret")): "refers to data outside",
    lambda f: rewrite_graph(f, lambda m: place(external(m), offset="-4")): "refers to data outside",
    lambda f: rewrite_graph(f, lambda m: place(external(m), offset="99999999999")): "refers to data outside",
    lambda f: rewrite_graph(f, lambda m: place(external(m), offset="four")): "cannot be read",
    lambda f: rewrite_graph(f, constant_outside): "refers to data outside",
    garbage: "cannot be read",
    lambda f: (f / "manifest.json").unlink(): "there is no bundle here",
    lambda f: (f / "manifest.json").write_text("{"): "is not a manifest",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m.update(schema_version=1)): "by an earlier version",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m.update(schema_version=3)): "by a later version",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m.update(more=1)): "is not a manifest",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m.update(opset=22)): "have different opset",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m.update(opset=10**9)): "have different opset",
    lambda f: rewrite_json(
        f / "manifest.json", lambda m: m.update(dtype="bfloat16")
    ): "not have the inputs and outputs",
    lambda f: rewrite_json(
        f / "manifest.json", lambda m: m.update(task="text-classification")
    ): "have the inputs and outputs",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m.update(logits="last")): "not have the inputs and outputs",
    lambda f: rewrite_json(f / "manifest.json", lambda m: port(m, "inputs").update(name="ids")): "different inputs",
    lambda f: rewrite_json(f / "manifest.json", lambda m: port(m, "outputs").update(shape=[-7])): "different outputs",
    lambda f: rewrite_graph(f, lambda m: retype(m, 999)): "(?s)have different inputs.*type 999",
    lambda f: rewrite_graph(f, lambda m: m.graph.input[0].type.sequence_type.elem_type.Clear()): "different inputs",
    lambda f: rewrite_json(
        f / "manifest.json", lambda m: port(m, "inputs").update(kind="mask")
    ): "have the inputs and outputs",
    lambda f: rewrite_json(f / "manifest.json", lambda m: graph_of(m)["inputs"].pop()): "have different inputs",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m["weights"][0].update(size=-1)): "is not a manifest",
    lambda f: rewrite_json(
        f / "manifest.json", lambda m: m["graphs"]["model"].update(file="../x")
    ): "is not a manifest",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m["funnel"].update(stride=3)): "have different funnels",
    lambda f: rewrite_json(f / "manifest.json", lambda m: m["funnel"].update(stride=0)): "stride must be at least 1",
    lambda f: rewrite_json(f / "config.json", lambda c: c["funnel"].update(stride=3)): "config.json is not the one",
    lambda f: (f / "config.json").unlink(): "config.json is missing",
    lambda f: (f / "config.json").rename(f / "c") and (f / "config.json").symlink_to("c"): "is a symbolic link",
}


@pytest.mark.parametrize("spoil", SPOILS, ids=[f"{n}-{m.replace(' ', '-')}" for n, m in enumerate(SPOILS.values())])
def test_a_spoiled_bundle_is_refused(spoil: Callable[[Path], object], bundle: Path) -> None:
    load_bundle(bundle)
    spoil(bundle)
    with pytest.raises(BundleError, match=SPOILS[spoil]):
        load_bundle(bundle)


def test_a_bundle_is_a_checkpoint_with_a_funnel(tmp_path: Path) -> None:
    again = export(Recipe().bundle().path, tmp_path / "again", task="text-generation")
    assert again.spec.funnel == Recipe().funnel
    assert again.model.path.read_bytes() == Recipe().bundle().model.path.read_bytes()


def test_companions_are_copied_byte_by_byte(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")
    (checkpoint / "tokenizer.json").write_bytes(b'{"not": "touched" }\r\n')
    (checkpoint / "train.py").write_text("print('not taken along')")
    made = export(checkpoint, tmp_path / "out", funnel="1:3:2", task="text-generation")
    assert (made.path / "tokenizer.json").read_bytes() == b'{"not": "touched" }\r\n'
    assert not (made.path / "train.py").exists()


def test_the_tokenizers_class_has_a_name_that_transformers_4_knows(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(Recipe().checkpoint(), tmp_path / "checkpoint")
    (checkpoint / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    made = export(checkpoint, tmp_path / "out", funnel="1:3:2", task="text-generation")
    assert (made.path / "tokenizer_config.json").read_text() == '{"tokenizer_class": "PreTrainedTokenizerFast"}'


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"funnel": "1:9:2"}, SpecError),
        ({"funnel": "3:1:2"}, SpecError),
        ({"funnel": "1:3:2", "dtype": "int8"}, SpecError),
        ({"funnel": "1:3:2", "opset": 23}, SpecError),
        ({"funnel": "1:3:2", "task": "translation"}, SpecError),
        ({"funnel": "1:3:2", "weights": "move"}, SpecError),
        ({"funnel": "auto"}, SpecError),
        ({"funnel": FunnelSpec.parse("1:3:2", lookahead=True)}, SpecError),
        ({"funnel": "1:3:2", "task": Task.TOKEN_CLASSIFICATION}, CheckpointError),
    ],
    ids=str,
)
def test_a_failed_export_leaves_the_earlier_bundle(
    options: dict[str, Any], error: type[FunnelExportError], bundle: Path
) -> None:
    before = listing(bundle)
    with pytest.raises(error):
        export(Recipe().checkpoint(), bundle, **options)
    assert listing(bundle) == before
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_a_graph_that_fails_its_audit_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.exporter.audit.LARGEST_CONSTANT", 3)
    with pytest.raises(ExportError, match="failed its audit"):
        export(Recipe().checkpoint(), tmp_path / "out", funnel="1:3:2", task="text-generation")
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_replaced_and_other_folders_are_not(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with replace_folder(target, lambda _: False) as fresh:
        (fresh / "one").write_text("1")
    with replace_folder(target, lambda folder: (folder / "one").exists()) as fresh:
        (fresh / "two").write_text("2")
    assert listing(target) == {"two": b"2"}
    with pytest.raises(BundleError, match="holds something else"), replace_folder(target, lambda _: False):
        pass
    assert listing(target) == {"two": b"2"}
    assert list(tmp_path.iterdir()) == [target]


def test_only_what_dead_writers_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "out"
    foreign = [tmp_path / ".out.partial-notes-of-mine", tmp_path / ".outer.partial-abcdefgh", tmp_path / "out.partial"]
    left = [tmp_path / ".out.partial-abcdefgh", tmp_path / ".out.partial-abcdefg_.old"]
    for folder in (*foreign, *left):
        folder.mkdir()
        (folder / "file").write_text("content")
    with replace_folder(target, lambda _: True) as fresh:
        (fresh / "one").write_text("1")
        with replace_folder(target, lambda _: True) as second:  # the first still writes
            (second / "two").write_text("2")
            assert fresh.exists()
    assert listing(target) == {"one": b"1"}  # the last to end
    assert sorted(tmp_path.iterdir()) == sorted([*foreign, target])


def test_a_bundle_that_was_set_aside_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".out.partial-abcdefgh.old"  # where a kill between two renames leaves it
    aside.mkdir()
    (aside / "one").write_text("1")
    with pytest.raises(KeyError), replace_folder(tmp_path / "out", lambda _: True) as fresh:
        half_write(fresh)
    assert listing(tmp_path / "out") == {"one": b"1"}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_locked_parent_folder_is_waited_for_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.system.locks.PATIENCE", 0.05)
    (tmp_path / ".out.partial-abcdefgh").mkdir()
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as `flock FOLDER funnel-export ...` does
    with replace_folder(tmp_path / "out", lambda _: False) as fresh:
        (fresh / "one").write_text("1")
    os.close(handle)
    assert listing(tmp_path / "out") == {"one": b"1"}
    assert (tmp_path / ".out.partial-abcdefgh").exists()


def test_replacing_without_an_atomic_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("funnel_export.system.atomic._exchange", lambda one, other: False)
    test_a_bundle_is_replaced_and_other_folders_are_not(tmp_path)


def half_write(folder: Path) -> None:
    (folder / "two").write_text("2")
    raise KeyError


def test_an_error_inside_leaves_the_target(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with replace_folder(target, lambda _: False) as fresh:
        (fresh / "one").write_text("1")
    with pytest.raises(KeyError), replace_folder(target, lambda _: True) as fresh:
        half_write(fresh)
    assert listing(target) == {"one": b"1"}
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("make", [lambda p: p.write_text("x"), lambda p: p.symlink_to(p.parent)], ids=["file", "link"])
def test_an_output_that_is_no_folder_is_refused(make: Callable[[Path], object], tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(BundleError, match="is not a folder"):
        export(Recipe().checkpoint(), tmp_path / "out", funnel="1:3:2", task="text-generation")


def test_other_weights_beside_the_bundles_are_refused(tmp_path: Path) -> None:
    recipe = Recipe(stored=torch.float16, shards="20KB", dtype="float32")
    bundle = shutil.copytree(recipe.bundle().path, tmp_path / "bundle")
    load_bundle(bundle)
    save_tiny_checkpoint(tmp_path / "other")
    shutil.copyfile(tmp_path / "other" / "model.safetensors", bundle / "model.safetensors")  # which would be preferred
    with pytest.raises(BundleError, match="weight files differ from the manifest"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("extra.safetensors", "weight files differ from the manifest"),
        ("pytorch_model.bin", "weight files differ from the manifest"),
        ("adapter_0.safetensors", "weight files differ from the manifest"),
        ("adapter_config.json", "has a PEFT adapter"),
    ],
)
def test_weights_that_the_manifest_does_not_name_are_refused(name: str, message: str, bundle: Path) -> None:
    (bundle / name).write_bytes(b"{}")
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_a_report_is_not_written_through_a_link(bundle: Path) -> None:
    (bundle.parent / "elsewhere").mkdir()
    shutil.rmtree(bundle / "reports", ignore_errors=True)
    (bundle / "reports").symlink_to(bundle.parent / "elsewhere")
    with pytest.raises(BundleError, match="is a symbolic link"):
        check(bundle, targets=["onnxruntime"], max_length=2)
    assert not list((bundle.parent / "elsewhere").iterdir())
