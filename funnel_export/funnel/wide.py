"""The dtype in which sums accumulate."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in float32 if it has 16 bits, as Hugging Face accumulates; else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
