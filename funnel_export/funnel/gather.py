"""Gathering columns of a batch, row by row."""

import torch
from jaxtyping import Int, Num
from torch import Tensor


def take_columns(
    x: Num[Tensor, "batch column width"], columns: Int[Tensor, "batch taken"]
) -> Num[Tensor, "batch taken width"]:
    """Gather columns of each row with one gather over all rows, which every runtime supports.

    Columns outside the tensor are clamped; only absent slots and padding have such columns.
    """
    batch, length, width = x.shape
    rows = torch.arange(batch, device=x.device)[:, None] * length
    flat = (rows + columns.clamp(min=0, max=length - 1)).reshape(-1)
    return x.reshape(batch * length, width).index_select(0, flat).reshape(batch, columns.shape[1], width)
