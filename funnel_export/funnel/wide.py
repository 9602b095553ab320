"""The dtype in which sums accumulate."""

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in float32 if its dtype has 16 bits (Hugging Face accumulates so too); otherwise `x` itself."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
