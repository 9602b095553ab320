"""Checkpoints that others quantized: their codes are exported as they are, or they are refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checkpoint.spoiled import configured, retensor
from exported import Recipe, forward_of_bundle
from packed_by_others import AWQ, BYTES, GPTQ, PACKED, Form, Packed, is_product, pack, packed_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file
from tiers import slow
from torch import Tensor

from funnel_export import CheckpointError, FunnelSpec, Quantization, SpecError, check, export, load_bundle, quantize
from funnel_export.checkpoint.checkpoint import Checkpoint
from funnel_export.checkpoint.foreign import read_layout
from funnel_export.checkpoint.foreign_tensor import foreign_tensor
from funnel_export.checkpoint.foreign_values import unpack_foreign
from funnel_export.checkpoint.quantized import QUANTIZED
from funnel_export.checkpoint.safetensors import WeightFile
from funnel_export.checkpoint.values import unpack
from funnel_export.errors import FunnelExportWarning
from funnel_export.exporter.audit import find_faults
from funnel_export.spec.choices import Task
from funnel_export.spec.quantization import Method, Origin, Part

GOLDENS = sorted((Path(__file__).parent / "foreign").glob("*.safetensors"))
"""Weights that the other libraries packed; see `make_goldens.py` beside them."""
WIDE = (("hidden_size", 48),)
"""Groups of 16 divide it."""
DENSE = Recipe(overrides=WIDE, funnel=None)
UP = "model.layers.0.mlp.up_proj"
FORMS = [
    GPTQ,
    replace(GPTQ, symmetric=False),
    replace(GPTQ, kind="gptq_v2", symmetric=False),
    replace(GPTQ, bits=8, group=None),
    AWQ,
    PACKED,
    replace(PACKED, symmetric=False),
    replace(PACKED, group=None),
    replace(PACKED, bits=8),
    BYTES,
    replace(BYTES, group=16, symmetric=False),
]


def label(form: Form) -> str:
    group = "outputs" if form.group is None else f"groups{form.group}"
    return "-".join(filter(None, (form.method, form.kind, str(form.bits), group, "" if form.symmetric else "asym")))


def golden(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a golden file."""
    with safe_open(path, framework="pt") as stored:
        return json.loads(stored.metadata()["quantization_config"]), load_file(path)


def unpacked(path: Path) -> Packed:
    config, tensors = golden(path)
    layout = read_layout({"quantization_config": config})
    assert layout is not None
    weight = foreign_tensor(WeightFile.read(path).tensors, "layer.weight", layout)
    assert weight is not None
    found = unpack_foreign(path.parent, weight)
    scales = next(each for name, each in tensors.items() if name.endswith(("scales", "weight_scale")))
    scales = scales.T if layout.origin is not Origin.COMPRESSED_TENSORS else scales
    assert np.array_equal(found.scales.T.astype(np.float32), scales.float().numpy())
    return Packed(found.codes.T.astype(np.int64), scales, found.zeros.T.astype(np.int64))


def test_there_are_goldens_of_every_library() -> None:
    assert {path.stem.split("-")[0] for path in GOLDENS} == {"gptq", "awq", "pack", "int"}


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_weights_are_those_that_their_library_reads(path: Path) -> None:
    expected = golden(path)[1]["expected"]
    assert torch.equal(unpacked(path).values().to(expected.dtype), expected)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.stem)
def test_the_packing_of_these_tests_is_theirs(path: Path) -> None:
    config, tensors = golden(path)
    tensors.pop("expected")
    if config["quant_method"] == "compressed-tensors":
        weights = config["config_groups"]["group_0"]["weights"]
        kind, group = config["format"], weights.get("group_size")
        form = Form(config["quant_method"], weights["num_bits"], group, weights["symmetric"], kind)
    else:
        symmetric = config.get("sym", not config.get("zero_point", True))
        form = Form(config["quant_method"], config["bits"], config["group_size"], symmetric, "gptq")
    packed = pack(form, unpacked(path))
    assert {f"layer.{name}" for name in packed} == tensors.keys()
    assert all(torch.equal(packed[name.removeprefix("layer.")], each) for name, each in tensors.items())


def expected_logits(recipe: Recipe, values: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Hugging Face's logits with these values in place of the checkpoint's."""
    model = recipe.cls.from_pretrained(recipe.checkpoint(), attn_implementation="eager").eval()
    parameters = dict(model.named_parameters())
    for name, value in values.items():
        parameters[name].data = value
    return model(input_ids=tokens, use_cache=False).logits.detach()


@pytest.mark.parametrize("form", FORMS, ids=label)
def test_outputs_are_those_of_the_codes(form: Form, tmp_path: Path) -> None:
    checkpoint, values = packed_checkpoint(tmp_path, form, DENSE)
    bundle = export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    assert bundle.spec.quantization == Quantization(
        bits=form.bits,
        block_size=form.group,
        symmetric=form.symmetric,
        keep=(Part.EMBEDDING, Part.HEAD),
        origin=Origin(form.method),
    )
    tokens = torch.arange(1, 12)[None]
    expected = expected_logits(DENSE, values, tokens)
    torch.testing.assert_close(forward_of_bundle(bundle)(tokens, None), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("form", [GPTQ, AWQ, replace(PACKED, symmetric=False), BYTES], ids=label)
def test_codes_are_stored_as_they_were(form: Form, tmp_path: Path) -> None:
    checkpoint, values = packed_checkpoint(tmp_path, form, DENSE)
    bundle = export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    stored = load_file(bundle.path / QUANTIZED)
    codes = stored[f"{UP}.weight.codes"].numpy()
    whole = unpack(codes, signed=form.symmetric) if form.bits == 4 else codes
    scales = stored[f"{UP}.weight.scales"].reshape(-1, whole.shape[1])
    zeros = stored.get(f"{UP}.weight.zeros")
    steps = whole.astype(np.float32)
    if zeros is not None:
        steps -= np.repeat(unpack(zeros.numpy(), signed=False), form.group or len(steps), axis=0)
    wide = scales.repeat_interleave(len(steps) // len(scales), 0)
    assert torch.equal((torch.from_numpy(steps) * wide).T, values[f"{UP}.weight"])
    original = load_file(DENSE.checkpoint() / "model.safetensors")
    assert all(torch.equal(stored[name], each) for name, each in original.items() if not is_product(name))


@pytest.mark.parametrize(
    ("form", "recipe"),
    [
        (GPTQ, Recipe(overrides=WIDE, family="gemma3_text")),
        slow(AWQ, Recipe(overrides=WIDE, task=Task.TEXT_GENERATION_WITH_PAST, funnel=FunnelSpec.parse("1:3:3"))),
        slow(replace(PACKED, symmetric=False), Recipe(overrides=WIDE, family="vaultgemma", stored=torch.bfloat16)),
        slow(BYTES, Recipe(overrides=WIDE, family="gemma", task=Task.TEXT_CLASSIFICATION)),
    ],
    ids=["gptq", "awq", "packed", "bytes"],
)
def test_targets_compute_what_eager_pytorch_does(form: Form, recipe: Recipe, tmp_path: Path) -> None:
    checkpoint, _ = packed_checkpoint(tmp_path, form, recipe)
    bundle = export(checkpoint, tmp_path / "bundle", funnel=recipe.funnel, task=recipe.task)
    report = check(bundle, max_length=12, reports=tmp_path)
    assert report.passed, [target.error for target in report.targets]


def test_a_bundle_of_others_is_quantized_already(tmp_path: Path) -> None:
    checkpoint, _ = packed_checkpoint(tmp_path, GPTQ, DENSE)
    bundle = export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    again = export(bundle.path, tmp_path / "again", funnel="1:3:2", task="text-generation")
    assert again.spec.quantization == bundle.spec.quantization
    assert (again.path / QUANTIZED).read_bytes() == (bundle.path / QUANTIZED).read_bytes()
    eight = Quantization(bits=8)
    for run in (
        lambda: quantize(bundle, tmp_path / "twice", eight),
        lambda: export(checkpoint, tmp_path / "twice", funnel="none", quantization=eight),
    ):
        with pytest.raises(CheckpointError, match=r"quantized already[\s\S]*codes of gptq"):
            run()
    assert not (tmp_path / "twice").exists()


def test_the_manifest_says_who_quantized(tmp_path: Path) -> None:
    checkpoint, _ = packed_checkpoint(tmp_path, AWQ, DENSE, left=[f"{UP}.weight"])
    bundle = export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    stored = json.loads((bundle.path / "manifest.json").read_text())
    assert stored["quantization"] == {
        "bits": 4,
        "block_size": 16,
        "symmetric": False,
        "keep": ["embedding", "head"],
        "method": None,
        "origin": "awq",
        "kept_weights": ["layers.0.mlp.up_proj.weight"],
    }
    assert stored["weights"][0]["recipe"]["name"] == "convert"
    assert str(bundle.spec.quantization) == (
        "4 bits, blocks of 16, asymmetric, without embedding, head, without 1 more weights, codes of awq"
    )
    assert load_bundle(bundle.path).spec == bundle.spec


def test_weights_that_others_left_stay_as_they_are(tmp_path: Path) -> None:
    left = [f"{UP}.weight", "model.layers.2.self_attn.q_proj.weight"]
    checkpoint, values = packed_checkpoint(tmp_path, replace(GPTQ, symmetric=False), DENSE, left=left)
    bundle = export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    tokens = torch.arange(1, 12)[None]
    expected = expected_logits(DENSE, values, tokens)
    torch.testing.assert_close(forward_of_bundle(bundle)(tokens, None), expected, atol=2e-5, rtol=1e-4)
    assert bundle.spec.quantization is not None
    for kept in ((), bundle.spec.quantization.kept_weights[:1], ("layers.1.mlp.up_proj.weight",)):
        spec = replace(bundle.spec, quantization=replace(bundle.spec.quantization, kept_weights=kept))
        model = ir.load(bundle.model.path)
        assert find_faults("model", model, bundle.family, bundle.architecture, spec, {QUANTIZED})


def test_a_part_that_others_left_is_kept(tmp_path: Path) -> None:
    checkpoint, _ = packed_checkpoint(
        tmp_path, PACKED, DENSE, quantized=lambda name: is_product(name) and "mlp" in name
    )
    quantization = Checkpoint.open(checkpoint, foreign=True).quantization
    assert quantization is not None
    assert quantization.keep == (Part.EMBEDDING, Part.HEAD, Part.ATTENTION)
    assert quantization.kept_weights == ()


def test_a_quantized_head_with_an_odd_number_of_outputs_has_8_bits(tmp_path: Path) -> None:
    recipe = replace(DENSE, overrides=(*WIDE, ("tie_word_embeddings", False)))
    form = replace(PACKED, symmetric=False)
    checkpoint, values = packed_checkpoint(
        tmp_path, form, recipe, quantized=lambda name: is_product(name) or name == "lm_head.weight"
    )
    bundle = export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    head = Checkpoint.open(bundle.path).quantized["lm_head.weight"]
    assert (head.shape, head.bits) == ((61, 48), 8)
    tokens = torch.arange(1, 12)[None]
    expected = expected_logits(recipe, values, tokens)
    torch.testing.assert_close(forward_of_bundle(bundle)(tokens, None), expected, atol=2e-5, rtol=1e-4)
    configured(checkpoint, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"not supported[\s\S]*ties the head"):
        export(checkpoint, tmp_path / "tied", funnel="none", task="text-generation")


def test_scales_that_a_dtype_cannot_hold_are_said(tmp_path: Path) -> None:
    checkpoint, values = packed_checkpoint(tmp_path, GPTQ, DENSE)
    with pytest.warns(FunnelExportWarning, match="scales are not exact in bfloat16: they change by up to 0.00"):
        bundle = export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation", dtype="bfloat16")
    stored = load_file(bundle.path / QUANTIZED)[f"{UP}.weight.scales"]
    assert stored.dtype is torch.bfloat16
    retensor(checkpoint, lambda tensors: tensors | {f"{UP}.scales": tensors[f"{UP}.scales"].float() * 1e6})
    with (
        pytest.warns(FunnelExportWarning, match="known to overflow"),
        pytest.raises(CheckpointError, match=r"infinite or not numbers[\s\S]*up_proj"),
    ):
        export(checkpoint, tmp_path / "half", funnel="none", task="text-generation", dtype="float16")
    assert not (tmp_path / "half").exists()
    assert len(values) == 28


def scheme(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["config_groups"]["group_0"]["weights"].update(values)


def group(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["config_groups"]["group_0"].update(values)


def top(**values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(values)


ACTIVATIONS = {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"}


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        (GPTQ, top(bits=3), "gptq with 3 bits"),
        (GPTQ, top(bits=2), "gptq with 2 bits"),
        (GPTQ, top(group_size=256), "gptq with groups of 256"),
        (GPTQ, top(group_size=0), "gptq with groups of 0"),
        (GPTQ, top(checkpoint_format="marlin"), "gptq in the format marlin"),
        (GPTQ, top(is_marlin_format=True), "gptq in the format marlin"),
        (GPTQ, top(bits="4"), "is invalid[\\s\\S]*bits"),
        (AWQ, top(version="gemv"), "awq with 4 bits in the layout gemv"),
        (AWQ, top(version="GEMV_FAST"), "layout gemv_fast"),
        (AWQ, top(backend="llm-awq"), "layout llm-awq"),
        (AWQ, top(bits=8), "awq with 8 bits"),
        (PACKED, scheme(num_bits=2), "with 2 bits"),
        (PACKED, scheme(type="float"), "not integers"),
        (PACKED, scheme(actorder="group"), "act-order"),
        (PACKED, scheme(strategy="tensor"), "strategy tensor"),
        (PACKED, scheme(group_size=256), "groups of 256"),
        (PACKED, group(input_activations=ACTIVATIONS), "quantized activations"),
        (PACKED, group(format="nvfp4-pack-quantized"), "format nvfp4-pack-quantized"),
        (PACKED, top(format="marlin-24"), "format marlin-24"),
        (PACKED, top(format="float-quantized"), "format float-quantized"),
        (PACKED, top(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme"),
        (PACKED, top(transform_config={"config_groups": {}}), "transform_config"),
        (PACKED, top(sparsity_config={"format": "sparse-24-bitmask"}), "sparsity sparse-24-bitmask"),
        (PACKED, top(quantization_status="frozen"), "status frozen"),
        (PACKED, lambda config: config["config_groups"].update(other={"weights": None}), "not integers"),
        (
            PACKED,
            lambda config: config["config_groups"].update(
                other=replace(PACKED, bits=8).config["config_groups"]["group_0"]
            ),
            "2 different schemes",
        ),
        (BYTES, scheme(num_bits=4), "with 4 bits in the format int-quantized"),
        (GPTQ, top(quant_method="fp8"), "quant_method fp8"),
        (GPTQ, top(quant_method="bitsandbytes"), "bitsandbytes[\\s\\S]*gptq with 4 or 8[\\s\\S]*model.dequantize()"),
    ],
    ids=lambda value: "" if isinstance(value, Form) or callable(value) else value,
)
def test_other_forms_are_refused_by_name(
    form: Form, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    checkpoint = packed_checkpoint(tmp_path, form, DENSE, quantized=lambda name: name == f"{UP}.weight")[0]
    config = json.loads(json.dumps(form.config))
    change(config)
    configured(checkpoint, quantization_config=config)
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    assert not (tmp_path / "bundle").exists()


def _changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: tensors | {f"{UP}.{name}": change(tensors[f"{UP}.{name}"]).contiguous()}


def _without(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda tensors: {each: tensor for each, tensor in tensors.items() if each != f"{UP}.{name}"}


@pytest.mark.parametrize(
    ("form", "change", "message"),
    [
        (GPTQ, _changed("g_idx", lambda groups: groups.flip(0)), "act-order"),
        (GPTQ, _changed("g_idx", torch.zeros_like), "act-order"),
        (GPTQ, _changed("qzeros", lambda words: words + 1), "says that it is symmetric"),
        (replace(GPTQ, symmetric=False), _changed("qzeros", lambda words: words | 15), "ambiguous"),
        (GPTQ, _changed("qweight", lambda words: words.repeat(2, 1)), "not stored as config.json says"),
        (GPTQ, _changed("scales", lambda scales: scales[:1]), "not stored as config.json says"),
        (GPTQ, _changed("scales", lambda scales: scales / 0), "infinite or not numbers"),
        (GPTQ, _changed("qweight", lambda words: words.long()), "not stored as config.json says"),
        (GPTQ, _without("scales"), "only qweight, qzeros, g_idx"),
        (replace(GPTQ, symmetric=False), _without("qzeros"), "not stored as config.json says"),
        (GPTQ, lambda tensors: tensors | {f"{UP}.weight": torch.zeros(64, 48)}, "not stored as config.json says"),
        (GPTQ, lambda tensors: tensors | {f"{UP}.absmax": torch.zeros(4)}, "not supported[\\s\\S]*absmax"),
        (AWQ, _changed("qweight", lambda words: words.T), "not stored as config.json says"),
        (PACKED, _changed("weight_shape", lambda shape: shape - 1), "whole words"),
        (PACKED, _changed("weight_scale", lambda scales: scales.T), "not stored as config.json says"),
        (BYTES, _changed("weight", lambda codes: codes.float()), "not stored as config.json says"),
    ],
)
def test_weights_that_do_not_fit_the_config_are_refused(
    form: Form, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str, tmp_path: Path
) -> None:
    checkpoint = packed_checkpoint(tmp_path, form, DENSE, quantized=lambda name: name == f"{UP}.weight")[0]
    retensor(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_symmetric_zero_points_may_be_stored(tmp_path: Path) -> None:
    """Old versions of compressed-tensors store zero points of symmetric weights, which are 0."""
    checkpoint = packed_checkpoint(tmp_path, PACKED, DENSE)[0]
    for zero in (0, 1):
        retensor(
            checkpoint, lambda t, z=zero: t | {f"{UP}.weight_zero_point": torch.full((64, 3), z, dtype=torch.int8)}
        )
        if zero:
            with pytest.raises(CheckpointError, match="says that it is symmetric"):
                export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")
        else:
            export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "nothing"])
def test_a_quantized_embedding_or_nothing_quantized_is_refused(name: str, tmp_path: Path) -> None:
    checkpoint = packed_checkpoint(tmp_path, BYTES, DENSE, quantized=lambda each: each == name)[0]
    with pytest.raises(CheckpointError, match="a quantized embedding" if "embed" in name else "no weight"):
        export(checkpoint, tmp_path / "bundle", funnel="none", task="text-generation")


def test_other_commands_name_the_export(tmp_path: Path) -> None:
    checkpoint = packed_checkpoint(tmp_path, GPTQ, DENSE)[0]
    with pytest.raises(CheckpointError, match=r"can only be exported[\s\S]*funnel-export export"):
        Checkpoint.open(checkpoint)


def test_nobody_can_ask_for_the_codes_of_others(tmp_path: Path) -> None:
    chosen = Quantization(bits=4, origin=Origin.GPTQ)
    assert chosen.method is None
    for run in (
        lambda: quantize(DENSE.bundle(), tmp_path / "bundle", chosen),
        lambda: export(DENSE.checkpoint(), tmp_path / "bundle", funnel="none", quantization=chosen),
    ):
        with pytest.raises(SpecError, match="as others do it"):
            run()
    with pytest.raises(SpecError, match="single weights"):
        Quantization(bits=4, kept_weights=("layers.0.mlp.up_proj.weight",))
    assert Quantization.from_dict(chosen.to_dict()) == chosen
    assert Quantization(bits=4).to_dict().keys() == {"bits", "block_size", "symmetric", "keep", "method"}
    assert Quantization(bits=4).method is Method.RTN
