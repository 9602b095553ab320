"""Method `gptq` with its library: outputs are nearer to the original ones, and the stored layout loses nothing."""

import weakref
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from command_line import run_alone
from corpora import bundle_of, checkpoint_of, corpus, ids_of
from exported import Recipe
from freed import uncollected
from tiers import slow_but
from torch import nn

from funnel_export import CheckpointError, FunnelSpec, Quantization, check, export, quantize
from funnel_export.checkpoint.quantized import QUANTIZED
from funnel_export.quality.gptq import Product
from funnel_export.quantization.rounding import Rounded, round_to_nearest
from funnel_export.spec.quantization import QUANTIZED_OPSET

pytest.importorskip("neural_compressor", reason="the extra gptq is not installed")

SMALL = Recipe(overrides=(("hidden_size", 48), ("vocab_size", 62)))
GPTQ = Quantization(bits=4, block_size=16, method="gptq")
FLOAT32 = np.dtype(np.float32)
INPUTS, OUTPUTS, TOKENS = 64, 24, 500


def correlated(tokens: int = TOKENS) -> torch.Tensor:
    """Inputs of a product as models have them: they depend on each other, and some are much larger than others."""
    rng = torch.Generator().manual_seed(0)
    mixed = torch.randn(tokens, 16, generator=rng) @ torch.randn(16, INPUTS, generator=rng)
    return (mixed + 0.3 * torch.randn(tokens, INPUTS, generator=rng)) * torch.linspace(0.1, 3, INPUTS)


def linear(seed: int = 0) -> nn.Linear:
    made = nn.Linear(INPUTS, OUTPUTS, bias=False).requires_grad_(False)
    nn.init.normal_(made.weight, generator=torch.Generator().manual_seed(seed))
    return made


def product(weights: nn.Linear, seen: torch.Tensor, **options: object) -> Product:
    made = Product(weights, **{"bits": 4, "block_size": 16, "symmetric": True, "dtype": FLOAT32} | options)
    for part in seen.split(100):
        made.see(part[None])
    made.finish()
    return made


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "block"), [(4, 16), (4, 64), (8, 64), (8, 32)])
def test_outputs_are_nearer_than_with_rounding_to_nearest(bits: int, block: int, symmetric: bool) -> None:
    layer, seen = linear(), correlated()
    made = product(layer, seen, bits=bits, block_size=block, symmetric=symmetric).round(layer.weight)
    nearest = round_to_nearest(layer.weight.numpy(), bits, block, FLOAT32, symmetric=symmetric)
    errors = [(seen @ (torch.from_numpy(each.values()) - layer.weight).T).norm() for each in (made, nearest)]
    assert errors[0] < 0.8 * errors[1]
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert made.codes.min() >= low
    assert made.codes.max() <= high
    assert made.scales.shape == made.zeros.shape == (OUTPUTS, INPUTS // block)
    assert (made.zeros == 0).all() == symmetric


def test_stored_values_are_the_librarys() -> None:
    """Scales in bfloat16 are rounded before the codes are chosen: the product of both is exact."""
    layer, seen = linear(), correlated()
    dtype = np.dtype(ml_dtypes.bfloat16)
    made = product(layer, seen, dtype=dtype)
    found: list[torch.Tensor] = []
    codes = made._codes
    made._codes = lambda values, *rest: found.append(values) or codes(values, *rest)
    rounded = made.round(layer.weight)
    scales = rounded.scales.astype(np.float32)
    stored = (rounded.codes.reshape(OUTPUTS, -1, 16) * scales[..., None]).reshape(OUTPUTS, INPUTS)
    np.testing.assert_array_equal(stored, found[0].numpy())


def test_rows_do_not_depend_on_the_others() -> None:
    layer, seen = linear(), correlated()
    whole = product(layer, seen).round(layer.weight)
    made = product(layer, seen)
    parts = [made.round(part) for part in layer.weight.split(10)]
    np.testing.assert_array_equal(np.concatenate([part.codes for part in parts]), whole.codes)
    np.testing.assert_array_equal(np.concatenate([part.scales for part in parts]), whole.scales)


def test_weights_of_unseen_inputs_and_positive_blocks_are_kept() -> None:
    layer, seen = linear(), correlated()
    seen[:, 3] = 0
    layer.weight[:, 16:32] = layer.weight[:, 16:32].abs()
    layer.weight[0] = 0
    made = product(layer, seen).round(layer.weight)
    values = torch.from_numpy(made.values())
    step = torch.from_numpy(made.scales).repeat_interleave(16, dim=1)
    assert ((values - layer.weight).abs() <= 8 * step)[:, 3].all()
    assert (values[1:, 3] != 0).any()
    assert values[0].abs().max() == 0
    largest = layer.weight[1:, 16:32].max(dim=1).values
    assert (values[1:, 16:32].max(dim=1).values > 0.8 * largest).all()


def test_the_weights_and_sums_are_freed_at_once() -> None:
    layer, seen = linear(), correlated()
    made = product(layer, seen)
    with uncollected():
        made.round(layer.weight)
        kept = [weakref.ref(made), weakref.ref(layer.weight), weakref.ref(made._sums)]
        del made, layer
        assert [each() for each in kept] == [None] * 3


def test_values_that_are_not_finite_are_refused() -> None:
    layer = linear()
    with pytest.raises(CheckpointError, match="infinite or not numbers"):
        product(layer, correlated() * float("nan"))
    made = product(layer, correlated())
    layer.weight[0, 0] = float("inf")
    with pytest.raises(CheckpointError, match="infinite or not numbers"):
        made.round(layer.weight)


@pytest.mark.parametrize("funnel", slow_but((None,), (None, FunnelSpec.parse("1:3:2", recovery="linear"))))
def test_models_are_nearer_and_pass_the_gates(funnel: FunnelSpec | None, tmp_path: Path) -> None:
    untied = (*SMALL.overrides, ("tie_word_embeddings", False))
    recipe = replace(SMALL, funnel=funnel, overrides=untied, opset=QUANTIZED_OPSET)  # traced once for all weights
    bundle, texts = bundle_of(recipe, tmp_path / "bundle"), corpus(tmp_path, ids_of((400,) * 5))
    options = {"targets": ["onnxruntime"], "max_length": 8, "unquantized": bundle, "data": texts, "max_kl": 5}
    costs = []
    for method, data in (("rtn", None), ("gptq", texts)):
        made = quantize(bundle, tmp_path / method, replace(GPTQ, method=method), data=data)
        report = check(made, reports=tmp_path / "reports", **options)
        assert report.passed
        costs.append(report.quantization.text.kl)
    assert costs[1] < costs[0]


@pytest.mark.parametrize("symmetric", [True, False])
def test_wrong_codes_are_refused(symmetric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit for the error of a weight is wider than with rounding to nearest, and still refuses these."""
    right = Product.round

    def wrong(self: Product, weights: torch.Tensor) -> Rounded:
        made = right(self, weights)
        if symmetric:
            return replace(made, scales=np.roll(made.scales, 1, axis=1))
        return replace(made, zeros=made.zeros + np.int16(1))

    monkeypatch.setattr(Product, "round", wrong)
    bundle, texts = bundle_of(SMALL, tmp_path / "bundle"), corpus(tmp_path, ids_of((400,) * 5))
    made = quantize(bundle, tmp_path / "made", replace(GPTQ, symmetric=symmetric), data=texts)
    report = check(
        made, targets=["onnxruntime"], max_length=8, unquantized=bundle, max_kl=99, reports=tmp_path / "reports"
    )
    assert all(target.passed for target in report.targets)
    assert report.quantization.faults


@pytest.mark.slow
def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    bundle, texts = bundle_of(SMALL, tmp_path / "bundle"), corpus(tmp_path, ids_of((100, 50)))
    first = quantize(bundle, tmp_path / "one", GPTQ, data=texts)
    options = ("--bits", 4, "--block", 16, "--method", "gptq", "--data", texts)
    done = run_alone("quantize", bundle, tmp_path / "two", *options)  # where nobody has imported anything
    assert done.returncode == 0, done.stderr
    assert "Auto detect" not in done.stderr
    checkpoint = checkpoint_of(SMALL, tmp_path / "checkpoint")
    exported = export(
        checkpoint, tmp_path / "three", funnel=SMALL.funnel, task=SMALL.task, quantization=GPTQ, data=[texts]
    )
    content = (first.path / QUANTIZED).read_bytes()
    assert (tmp_path / "two" / QUANTIZED).read_bytes() == content
    assert (exported.path / QUANTIZED).read_bytes() == content
    settings = first.manifest.weights[0].recipe.settings
    assert settings["library"].startswith("neural-compressor ")
    assert settings["tokens"] == 150
