"""Quantized bundles: what they contain, what they compute, and what is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from breaks import node
from exported import PAST, Recipe, forward_of_bundle
from rounded_by_loops import dequantized
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tamper import listing, rewrite_json
from tiers import slow

from funnel_export import (
    Bundle,
    BundleError,
    CheckpointError,
    FunnelSpec,
    Quantization,
    SpecError,
    check,
    export,
    load_bundle,
    quantize,
)
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.quantized import QUANTIZED
from funnel_export.exporter.audit import find_faults
from funnel_export.latency.traffic import step_bytes
from funnel_export.quantization import write
from funnel_export.spec.choices import Task
from funnel_export.spec.quantization import Part

FOUR, EIGHT = Quantization(bits=4, block_size=16), Quantization(bits=8)
WIDE = (("hidden_size", 48), ("vocab_size", 62))
"""Blocks of 16 divide the hidden size, and two codes of 4 bits fill a byte."""
SMALL = Recipe(overrides=WIDE)


def quantized(recipe: Recipe, quantization: Quantization) -> Bundle:
    return replace(recipe, quantization=quantization).bundle()


def test_outputs_are_those_of_the_rounded_weights() -> None:
    """The oracle rounds the checkpoint's weights by loops, and lets Hugging Face compute."""
    dense = replace(SMALL, funnel=None)
    for quantization in (FOUR, EIGHT, replace(FOUR, symmetric=False), replace(EIGHT, block_size=32, keep=("head",))):
        model = dense.cls.from_pretrained(dense.checkpoint(), attn_implementation="eager").eval()
        untied = torch.nn.Parameter(model.model.embed_tokens.weight.detach().clone())
        model.config.tie_word_embeddings, model.lm_head.weight = False, untied
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2 or (
                "head" in quantization.keep and name in ("lm_head.weight", "model.embed_tokens.weight")
            ):
                continue
            rows = name == "model.embed_tokens.weight"
            block = None if rows else quantization.block_of(parameter.shape[1])
            bits, symmetric = (8, True) if rows else (quantization.bits, quantization.symmetric)
            rounded = dequantized(parameter.detach().numpy(), bits, block, symmetric=symmetric)
            parameter.data = torch.from_numpy(rounded)
        tokens = torch.arange(1, 12)[None]
        expected = model(input_ids=tokens, use_cache=False).logits.detach()
        torch.testing.assert_close(
            forward_of_bundle(quantized(dense, quantization))(tokens, None), expected, atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(overrides=WIDE, quantization=FOUR),
        Recipe(overrides=WIDE, quantization=replace(FOUR, symmetric=False), dtype="bfloat16", stored=torch.bfloat16),
        Recipe(
            task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse("1:3:3", recovery="linear"), quantization=EIGHT
        ),
        Recipe(task=Task.TEXT_CLASSIFICATION, quantization=EIGHT),
        *map(
            slow,
            (
                Recipe(
                    task=Task.TEXT_GENERATION_WITH_PAST,
                    funnel=FunnelSpec.parse("1:3:drop", recovery="linear"),
                    quantization=FOUR,
                ),
                Recipe(task=Task.FEATURE_EXTRACTION, quantization=replace(FOUR, block_size=32)),
                Recipe(family="gemma3_text", quantization=FOUR),
                Recipe(family="gemma", quantization=replace(EIGHT, block_size=32, symmetric=False)),
            ),
        ),
    ],
)
def test_every_target_computes_what_the_graph_says(recipe: Recipe, tmp_path: Path) -> None:
    report = check(recipe.bundle(), max_length=12, reports=tmp_path)
    assert report.passed, [target.error for target in report.targets]


def test_quantize_gives_what_export_gives(tmp_path: Path) -> None:
    made = quantize(SMALL.bundle(), tmp_path / "quantized", FOUR)
    exported = quantized(SMALL, FOUR)
    assert (made.path / QUANTIZED).read_bytes() == (exported.path / QUANTIZED).read_bytes()
    assert made.model.path.read_bytes() == exported.model.path.read_bytes()
    assert made.manifest == exported.manifest
    assert made.spec.quantization == FOUR
    assert not list(made.path.glob("model*.safetensors"))


def test_the_file_does_not_depend_on_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "CHUNK", 200)
    made = quantize(SMALL.bundle(), tmp_path / "quantized", replace(FOUR, symmetric=False))
    assert (made.path / QUANTIZED).read_bytes() == (
        quantized(SMALL, replace(FOUR, symmetric=False)).path / QUANTIZED
    ).read_bytes()


def test_the_file_is_a_valid_safetensors_file_with_aligned_tensors() -> None:
    path = quantized(SMALL, FOUR).path / QUANTIZED
    with safe_open(path, framework="numpy") as stored:
        names = set(stored.keys())
    assert "model.layers.0.mlp.up_proj.weight.codes" in names
    assert "lm_head.weight.scales" in names  # the tied head has weights of its own
    assert "model.norm.weight" in names
    for tensor in Checkpoint.open(path.parent).tensors.values():
        assert tensor.offset % {"F32": 4, "U8": 1, "I8": 1}[tensor.dtype] == 0


@pytest.mark.parametrize("part", Part)
def test_kept_parts_are_stored_as_they_were(part: Part) -> None:
    checkpoint = Checkpoint.open(quantized(SMALL, replace(FOUR, keep=(part,))).path)
    plain, original = set(checkpoint.tensors), load_file(SMALL.checkpoint() / "model.safetensors")
    kept = [name for name in checkpoint.parameters if checkpoint.family.part_of(name) is part and name in plain]
    assert bool(kept) == (part is not Part.HEAD)  # a tied head that is kept is the embedding
    with safe_open(checkpoint.path / QUANTIZED, framework="pt") as stored:
        assert all(torch.equal(stored.get_tensor(name), original[name]) for name in kept)
    assert checkpoint.architecture.tie_word_embeddings == (part is Part.HEAD)


@pytest.mark.parametrize("funnel", ["1:3:2", "1:3:drop"])
def test_maps_are_stored_as_they_were(funnel: str) -> None:
    recipe = replace(SMALL, funnel=FunnelSpec.parse(funnel, recovery="linear"))
    original = load_file(recipe.checkpoint() / "model.safetensors")
    maps = {name for name in original if ".funnel." in f".{name}"}
    assert maps
    stored = load_file(quantized(recipe, FOUR).path / QUANTIZED)
    assert all(torch.equal(stored[name], original[name]) for name in maps)


def test_a_product_with_an_odd_number_of_outputs_has_8_bits() -> None:
    head = Checkpoint.open(quantized(Recipe(), FOUR).path).quantized["lm_head.weight"]
    assert (head.shape, head.bits) == ((61, 40), 8)


def test_a_quantized_bundle_is_exported_again_as_it_is(tmp_path: Path) -> None:
    first = quantized(SMALL, FOUR)
    dense = export(first.path, tmp_path / "dense", funnel="none", task=first.spec.task)
    assert (dense.spec.funnel, dense.spec.quantization) == (None, FOUR)
    assert check(dense, max_length=6, reports=tmp_path).passed
    for run in (
        lambda: quantize(first, tmp_path / "twice", EIGHT),
        lambda: export(first.path, tmp_path / "twice", quantization=EIGHT),
    ):
        with pytest.raises(CheckpointError, match="quantized already"):
            run()
    assert not (tmp_path / "twice").exists()


def test_hugging_face_does_not_load_it_with_random_weights() -> None:
    with pytest.raises(OSError, match=r"model\.safetensors"):
        SMALL.cls.from_pretrained(quantized(SMALL, FOUR).path)


def test_weights_that_are_not_numbers_leave_nothing_behind(tmp_path: Path) -> None:
    checkpoint = shutil.copytree(SMALL.checkpoint(), tmp_path / "checkpoint")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"infinite or not numbers[\s\S]*layers\.1\.mlp\.up_proj"):
        export(checkpoint, tmp_path / "bundle", funnel="1:3:2", task="text-generation", quantization=FOUR)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_an_opset_without_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="opset 21 or later"):
        export(SMALL.checkpoint(), tmp_path / "bundle", funnel="1:3:2", quantization=EIGHT, opset=20)


def test_a_bundle_is_not_replaced_by_its_own_quantized_form(tmp_path: Path) -> None:
    bundle = load_bundle(shutil.copytree(SMALL.bundle().path, tmp_path / "bundle"))
    before = listing(bundle.path)
    with pytest.raises(BundleError, match="would replace the checkpoint"):
        quantize(bundle, bundle.path, EIGHT)
    assert listing(bundle.path) == before


def _float_product(model: ir.Model) -> None:
    """One product in floating point, from a weight that is not quantized."""
    dequantize = node(model, "weights/", "DequantizeLinear")
    value = ir.Value(
        name="model.layers.0.mlp.up_proj.weight", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([48, 64])
    )
    value.const_value = ir.ExternalTensor(
        QUANTIZED, 0, 48 * 64 * 4, ir.DataType.FLOAT, shape=value.shape, name=str(value.name)
    )
    model.graph.register_initializer(value)
    ir.convenience.replace_all_uses_with(dequantize.outputs[0], value)
    model.graph.remove(dequantize, safe=True)


def _other_block(model: ir.Model) -> None:
    for each in model.graph:
        if each.op_type == "DequantizeLinear":
            each.attributes["block_size"] = ir.AttrInt64("block_size", 32)


def _other_scales(model: ir.Model) -> None:
    first, second = [each for each in model.graph if each.op_type == "DequantizeLinear"][:2]
    first.replace_input_with(1, second.inputs[1])


def _other_rows(model: ir.Model) -> None:
    gathers = [each for each in model.graph if each.op_type == "Gather" and "row_scales" in str(each.inputs[0].name)]
    gathers[0].replace_input_with(1, model.graph.inputs[1])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_float_product, "is not quantized"),
        (_other_block, "dtype, axis and block size"),
        (_other_scales, "its inputs are"),
        (_other_rows, "the scales of other tokens"),
    ],
)
def test_a_graph_that_reads_weights_otherwise_fails_its_audit(change: Callable[[ir.Model], None], fault: str) -> None:
    bundle = quantized(SMALL, FOUR)
    model = ir.load(bundle.model.path)
    arguments = ("model", model, bundle.family, bundle.architecture, bundle.spec, {QUANTIZED})
    assert find_faults(*arguments) == []
    change(model)
    assert any(fault in found for found in find_faults(*arguments))


def test_an_audit_with_another_quantization_fails() -> None:
    bundle = quantized(SMALL, FOUR)
    for other in (None, EIGHT, replace(FOUR, symmetric=False), replace(FOUR, keep=("mlp",))):
        model, spec = ir.load(bundle.model.path), replace(bundle.spec, quantization=other)
        assert find_faults("model", model, bundle.family, bundle.architecture, spec, {QUANTIZED})


def _swapped_nibbles(folder: Path) -> None:
    path = folder / QUANTIZED
    content = bytearray(path.read_bytes())
    tensor = Checkpoint.open(folder).tensors["model.layers.0.mlp.up_proj.weight.codes"]
    place = slice(tensor.offset, tensor.offset + tensor.nbytes)
    content[place] = bytes((each >> 4) | ((each & 15) << 4) for each in content[place])
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change",
    [
        _swapped_nibbles,
        lambda folder: rewrite_json(folder / "config.json", lambda c: c["quantization_config"].update(bits=8)),
        lambda folder: rewrite_json(folder / "manifest.json", lambda m: m["quantization"].update(symmetric=False)),
        lambda folder: (folder / QUANTIZED).unlink(),
    ],
)
def test_a_changed_bundle_is_refused(change: Callable[[Path], None], tmp_path: Path) -> None:
    copy = shutil.copytree(quantized(SMALL, FOUR).path, tmp_path / "bundle", ignore=shutil.ignore_patterns("reports"))
    change(copy)
    with pytest.raises(BundleError):
        load_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.update(
            {
                "model.layers.0.mlp.up_proj.weight.scales": t["model.layers.0.mlp.up_proj.weight.scales"][
                    :, :5
                ].contiguous()
            }
        ),
        lambda t: t.update(
            {"model.layers.0.mlp.up_proj.weight.codes": t["model.layers.0.mlp.up_proj.weight.codes"].float()}
        ),
        lambda t: t.pop("model.layers.0.mlp.up_proj.weight.scales"),
        lambda t: t.update(
            {"model.embed_tokens.weight.row_scales": t["model.embed_tokens.weight.row_scales"].T.contiguous()}
        ),
        lambda t: t.update({"model.layers.0.mlp.up_proj.weight.zeros": torch.zeros(3, 64, dtype=torch.uint8)}),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(change: Callable[[dict], object], tmp_path: Path) -> None:
    folder = shutil.copytree(quantized(SMALL, FOUR).path, tmp_path / "checkpoint")
    tensors = load_file(folder / QUANTIZED)
    change(tensors)
    (folder / QUANTIZED).unlink()
    save_file(tensors, folder / QUANTIZED)
    with pytest.raises(CheckpointError, match="not stored as this version"):
        export(folder, tmp_path / "bundle", funnel="1:3:2", task="text-generation")


def test_codes_without_a_quantization_in_the_config_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(quantized(SMALL, FOUR).path, tmp_path / "checkpoint")
    (folder / QUANTIZED).rename(folder / "model.safetensors")
    rewrite_json(folder / "config.json", lambda config: config.pop("quantization_config"))
    with pytest.raises(CheckpointError, match="quantized checkpoints are not supported"):
        export(folder, tmp_path / "bundle", funnel="1:3:2")


def test_the_manifest_says_how_the_weights_are_stored() -> None:
    bundle = quantized(PAST, EIGHT)
    assert json.loads((bundle.path / "manifest.json").read_text())["quantization"] == EIGHT.to_dict()
    for graph in bundle.graphs.values():
        model = onnx.load(graph.path, load_external_data=False)
        products = [each for each in model.graph.node if each.op_type == "DequantizeLinear"]
        assert len(products) == 7 * len(
            {each.name.split("layers.")[1][0] for each in products if "layers." in each.name}
        ) + (graph.role == "exit")
        assert np.all(
            [
                each.data_location == onnx.TensorProto.EXTERNAL
                for each in model.graph.initializer
                if "codes" in each.name
            ]
        )


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_bytes_of_a_step_are_those_in_the_file(symmetric: bool) -> None:
    bundle = quantized(replace(SMALL, funnel=None), replace(FOUR, symmetric=symmetric))
    products = [each for each in Checkpoint.open(bundle.path).quantized.values() if not each.by_rows]
    stored = sum(part.nbytes for each in products for part in (each.codes, each.scales, each.zeros) if part)
    past = replace(bundle.spec, task=Task.TEXT_GENERATION_WITH_PAST)
    assert step_bytes(bundle.family, bundle.architecture, past, 0) == stored
