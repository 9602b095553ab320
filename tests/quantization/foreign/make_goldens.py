"""Writes the files beside it: weights that other libraries packed, and what these libraries read in them.

Run it where compressed-tensors 0.20.0 is installed. Of the others it needs only the unpacked packages:

    python make_goldens.py AUTO_GPTQ_0.7.1 AUTOAWQ_0.2.9

Each file has the tensors of one linear layer, and `expected`, [outputs, inputs], as the library
dequantizes it. Its metadata has the `quantization_config` of a checkpoint.
"""

import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import save_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent
OUTPUTS, INPUTS, GROUP = 32, 32, 16


def grid(bits: int, groups: int, *, symmetric: bool, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random codes [outputs, inputs], scales and zero points [outputs, groups], all unsigned."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (OUTPUTS, INPUTS), generator=generator)
    scales = (torch.rand(OUTPUTS, groups, generator=generator) * 0.02 + 0.01).half()
    zeros = torch.randint(1, 2**bits, (OUTPUTS, groups), generator=generator)
    return codes, scales, torch.full_like(zeros, 2 ** (bits - 1)) if symmetric else zeros


def weights(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The weights of these codes in float32, so that a library finds the same codes."""
    each = INPUTS // scales.shape[1]
    return (codes - zeros.repeat_interleave(each, 1)) * scales.float().repeat_interleave(each, 1)


def layer(values: Tensor, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=dtype)
    linear.weight.data = values.to(dtype)
    return linear


def save(name: str, tensors: dict[str, Tensor], expected: Tensor, config: dict[str, Any], library: str) -> None:
    stored = {f"layer.{key}": value.contiguous() for key, value in tensors.items()}
    stored["expected"] = expected.contiguous()
    metadata = {"quantization_config": json.dumps(config), "library": library}
    save_file(stored, FOLDER / f"{name}.safetensors", metadata=metadata)


def gptq(module: Any, bits: int, *, symmetric: bool, seed: int) -> None:
    codes, scales, zeros = grid(bits, INPUTS // GROUP, symmetric=symmetric, seed=seed)
    packed = module.QuantLinear(bits, GROUP, INPUTS, OUTPUTS, bias=False, weight_dtype=torch.float16)
    packed.pack(layer(weights(codes, scales, zeros), torch.float16), scales, zeros.half(), packed.g_idx)
    expected = packed(torch.eye(INPUTS, dtype=torch.float16)).T
    tensors = {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "sym": symmetric, "desc_act": False}
    save(f"gptq-{bits}-{'sym' if symmetric else 'asym'}", tensors, expected, config, "auto-gptq 0.7.1")


def awq(gemm: Any, packing: Any) -> None:
    codes, scales, zeros = grid(4, INPUTS // GROUP, symmetric=False, seed=3)
    linear = layer(weights(codes, scales, zeros), torch.float32)
    packed = gemm.WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales.T, zeros=zeros.T)
    expected = packing.dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, GROUP).T
    tensors = {key: getattr(packed, key) for key in ("qweight", "qzeros", "scales")}
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    save("awq-4", tensors, expected, config, "autoawq 0.2.9")


def compressed(form: str, bits: int, *, group: int | None, symmetric: bool, seed: int) -> None:
    codes, scales, zeros = grid(bits, INPUTS // (group or INPUTS), symmetric=symmetric, seed=seed)
    strategy = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    args = QuantizationArgs(num_bits=bits, symmetric=symmetric, **strategy)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(form)
    state = {
        "weight": weights(codes, scales, zeros),
        "weight_scale": scales.bfloat16(),
        "weight_zero_point": (zeros - 2 ** (bits - 1)).to(torch.int8),
    }
    state["weight"] = weights(codes, state["weight_scale"], zeros)
    tensors = compressor.compress(state, scheme)
    expected = compressor.decompress(tensors, scheme)["weight"]
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args.model_dump(mode="json")}},
        "ignore": ["lm_head"],
    }
    name = f"{form}-{bits}-{'channel' if group is None else 'group'}-{'sym' if symmetric else 'asym'}"
    save(name, tensors, expected, config, "compressed-tensors 0.20.0")


def load(path: Path) -> Any:
    """A module from its file, without the package around it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(auto_gptq: Path, autoawq: Path) -> None:
    qlinear = load(auto_gptq / "auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py")
    gptq(qlinear, 4, symmetric=True, seed=0)
    gptq(qlinear, 4, symmetric=False, seed=1)
    gptq(qlinear, 8, symmetric=False, seed=2)
    for name in ("awq", "awq.utils", "awq.modules", "awq.modules.linear"):  # without what their __init__ import
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(autoawq / name.replace(".", "/"))]
    awq(importlib.import_module("awq.modules.linear.gemm"), importlib.import_module("awq.utils.packing_utils"))
    compressed("pack-quantized", 4, group=GROUP, symmetric=True, seed=4)
    compressed("pack-quantized", 4, group=GROUP, symmetric=False, seed=5)
    compressed("pack-quantized", 4, group=None, symmetric=True, seed=6)
    compressed("pack-quantized", 8, group=None, symmetric=False, seed=7)
    compressed("int-quantized", 8, group=None, symmetric=True, seed=8)
    compressed("int-quantized", 8, group=GROUP, symmetric=False, seed=9)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
