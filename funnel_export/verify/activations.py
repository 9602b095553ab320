"""Eager PyTorch with activations of 8 bits, as runtimes compute products with quantized weights if options say so."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from funnel_export.checkpoint.checkpoint import Checkpoint

LARGEST = 127
"""The largest code of 8 bits."""


def round_activations(model: Any, source: Checkpoint, group: int) -> None:
    """Let the products of a model whose weights are quantized round their inputs to 8 bits, in place.

    Args:
        model: Hugging Face's model of the checkpoint.
        source: the checkpoint with quantized weights.
        group: inputs that share a scale, which is that of the largest; all of them if it does not divide their number.
    """
    for product in _quantized_products(model, source):
        product.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], group), *inputs[1:]))


def rounded(x: Tensor, group: int) -> Tensor:
    """Values [..., width] rounded to 8 bits, with a scale for each group, in their own dtype."""
    groups = x.unflatten(-1, (-1, group if x.shape[-1] % group == 0 else x.shape[-1]))
    scales = groups.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / LARGEST
    values: Tensor = ((groups / scales).round() * scales).flatten(-2).to(x.dtype)
    return values


def _quantized_products(model: Any, source: Checkpoint) -> Iterator[nn.Module]:
    bare = source.family.bare_name
    quantized = {bare(name) for name, weight in source.quantized.items() if not weight.by_rows}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and bare(f"{name}.weight") in quantized:
            yield module
