"""Checkpoints packed as GPTQ, AWQ and compressed-tensors do, by loops from their definitions alone."""

import json
import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from exported import Recipe
from safetensors.torch import load_file, save_file
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ's word has the codes of these outputs, from the low bits on."""


@dataclass(frozen=True)
class Form:
    """How somebody packs weights: hashable, so that it can be a parameter of a test."""

    method: str
    bits: int = 4
    group: int | None = 16
    symmetric: bool = True
    kind: str = ""
    """The version of GPTQ, or the format of compressed-tensors."""
    scales: torch.dtype = torch.float16

    @property
    def config(self) -> dict[str, Any]:
        """`quantization_config` in config.json."""
        if self.method == "compressed-tensors":
            strategy = (
                {"strategy": "channel"} if self.group is None else {"strategy": "group", "group_size": self.group}
            )
            weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric, **strategy}
            return {
                "quant_method": self.method,
                "format": self.kind,
                "quantization_status": "compressed",
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}},
                "ignore": ["lm_head"],
                "kv_cache_scheme": None,
            }
        common = {"quant_method": self.method, "bits": self.bits, "group_size": self.group or -1}
        if self.method == "awq":
            return common | {"zero_point": not self.symmetric, "version": "gemm"}
        return common | {"sym": self.symmetric, "desc_act": False, "checkpoint_format": self.kind}


GPTQ = Form("gptq", kind="gptq")
AWQ = Form("awq", symmetric=False)
PACKED = Form("compressed-tensors", kind="pack-quantized", scales=torch.bfloat16)
BYTES = Form("compressed-tensors", 8, group=None, kind="int-quantized", scales=torch.bfloat16)


@dataclass(frozen=True)
class Packed:
    """One quantized weight."""

    codes: np.ndarray
    """[outputs, inputs], 0 to 2^bits - 1."""
    scales: Tensor
    """[outputs, groups]."""
    zeros: np.ndarray
    """[outputs, groups], 1 to 2^bits - 1."""

    def values(self) -> Tensor:
        """(code - zero) * scale in float32, [outputs, inputs]."""
        outputs, inputs = self.codes.shape
        size = inputs // self.zeros.shape[1]
        found = torch.empty(outputs, inputs)
        for column in range(inputs):
            group = column // size
            steps = torch.from_numpy(self.codes[:, column].astype(np.int64) - self.zeros[:, group])
            found[:, column] = steps.float() * self.scales[:, group].float()
        return found


def random_weight(form: Form, outputs: int, inputs: int, generator: np.random.Generator) -> Packed:
    """Random codes; every code, scale and zero point differs from its neighbours by more than rounding."""
    groups = 1 if form.group is None else inputs // form.group
    codes = generator.integers(0, 2**form.bits, (outputs, inputs))
    zeros = generator.integers(1, 2**form.bits, (outputs, groups))
    if form.symmetric:
        zeros[:] = 2 ** (form.bits - 1)
    scales = torch.from_numpy(generator.uniform(0.4, 1.2, (outputs, groups)) / 2 ** (form.bits - 1)).to(form.scales)
    return Packed(codes, scales, zeros)


def pack(form: Form, weight: Packed) -> dict[str, Tensor]:
    """The tensors of a weight, by what follows the name of its module."""
    packers = {"gptq": _gptq, "awq": _awq, "compressed-tensors": _compressed}
    return {name: tensor.contiguous() for name, tensor in packers[form.method](form, weight).items()}


def _gptq(form: Form, weight: Packed) -> dict[str, Tensor]:
    outputs, inputs = weight.codes.shape
    each, groups = 32 // form.bits, weight.zeros.shape[1]
    less = 1 if form.kind == "gptq" else 0
    qweight = [
        [_word([weight.codes[o, r * each + k] for k in range(each)], form.bits) for o in range(outputs)]
        for r in range(inputs // each)
    ]
    qzeros = [
        [_word([weight.zeros[c * each + k, g] - less for k in range(each)], form.bits) for c in range(outputs // each)]
        for g in range(groups)
    ]
    size = inputs // groups
    return {
        "qweight": _words(qweight),
        "qzeros": _words(qzeros),
        "scales": weight.scales.T,
        "g_idx": torch.tensor([i // size for i in range(inputs)], dtype=torch.int32),
    }


def _awq(form: Form, weight: Packed) -> dict[str, Tensor]:
    outputs, inputs = weight.codes.shape

    def word(values: np.ndarray, column: int) -> int:
        return _word([values[column * 8 + place] for place in AWQ_ORDER], form.bits)

    return {
        "qweight": _words([[word(weight.codes[:, i], c) for c in range(outputs // 8)] for i in range(inputs)]),
        "qzeros": _words([[word(row, c) for c in range(outputs // 8)] for row in weight.zeros.T]),
        "scales": weight.scales.T,
    }


def _compressed(form: Form, weight: Packed) -> dict[str, Tensor]:
    outputs, inputs = weight.codes.shape
    middle = 2 ** (form.bits - 1)
    if form.kind != "pack-quantized":
        found = {
            "weight": torch.from_numpy(weight.codes - middle).to(torch.int8),
            "weight_scale": weight.scales,
            "weight_zero_point": torch.from_numpy(weight.zeros - middle).to(torch.int8),
        }
    else:
        found = {
            "weight_packed": _words([_row(list(row), form.bits) for row in weight.codes]),
            "weight_scale": weight.scales,
            "weight_zero_point": _words([_row(list(row), form.bits) for row in weight.zeros.T]).T,
            "weight_shape": torch.tensor([outputs, inputs]),
        }
    if form.symmetric:
        del found["weight_zero_point"]
    return found


def _row(codes: list[int], bits: int) -> list[int]:
    each = 32 // bits
    return [_word(codes[first : first + each], bits) for first in range(0, len(codes), each)]


def _word(codes: Sequence[int], bits: int) -> int:
    return sum(int(code) << (bits * place) for place, code in enumerate(codes))


def _words(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.from_numpy(np.array(rows, np.uint32).view(np.int32))


def is_product(name: str) -> bool:
    """Whether a weight is one that others quantize by default."""
    return name.endswith("_proj.weight")


def packed_checkpoint(
    folder: Path,
    form: Form,
    recipe: Recipe,
    quantized: Callable[[str], bool] = is_product,
    left: Collection[str] = (),
) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint whose products have random codes, and the values of these weights by their names.

    Args:
        folder: where to write `checkpoint`.
        form: how the weights are packed.
        recipe: of the checkpoint; its other weights stay.
        quantized: whether a weight is quantized.
        left: names of weights that are not.
    """
    checkpoint = shutil.copytree(recipe.checkpoint(), folder / "checkpoint")
    tensors, values = load_file(checkpoint / "model.safetensors"), {}
    generator = np.random.default_rng(0)
    for name in [each for each in sorted(tensors) if quantized(each) and each not in left]:
        weight = random_weight(form, *tensors.pop(name).shape, generator)
        tensors |= {name.removesuffix("weight") + suffix: each for suffix, each in pack(form, weight).items()}
        values[name] = weight.values()
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"quantization_config": form.config}))
    return checkpoint, values
