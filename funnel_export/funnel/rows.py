"""Which columns of a batch hold the tokens of each row."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from funnel_export.errors import SpecError
from funnel_export.funnel.windows import token_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of a batch: the columns of one chunk and of the chunks before it."""

    keys: Int[Tensor, "batch column"]
    """Token number of every column so far, `ABSENT` for padding."""
    queries: Int[Tensor, "batch new"]
    """Token number of each column of the chunk."""
    length: Int[Tensor, "batch 1"]
    """Number of real tokens so far."""
    before: Int[Tensor, "batch 1"] | int
    """Number of real tokens before this chunk; 0 for the first chunk."""
    first: Int[Tensor, "batch 1"]
    """Column of token 0, counted from the chunk's first column; negative if it is in an earlier chunk."""

    @classmethod
    def of(cls, real: Bool[Tensor, "batch column"], past: int) -> "Rows":
        """Make the rows from a mask that is true for real tokens; its first `past` columns are earlier chunks.

        Raises:
            SpecError: if a row has padding between its tokens (not checked while tracing).
        """
        if has_values(real):
            check_padding(real)
        count = real.long().cumsum(-1)
        keys = token_numbers(real, count)
        if past == 0:
            first = (count == 0).sum(-1, keepdim=True)
            return cls(keys=keys, queries=keys, length=count[:, -1:], before=0, first=first)
        before = count[:, past - 1 : past]
        first = (count[:, past:] == before).sum(-1, keepdim=True) - before
        return cls(keys=keys, queries=keys[:, past:], length=count[:, -1:], before=before, first=first)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor's values can be read; while tracing, tensors have only shapes."""
    return not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)


def check_padding(real: Bool[Tensor, "batch column"]) -> None:
    """Raise `SpecError` if a row's real tokens are not contiguous; `real` is true for them."""
    starts = (real[:, 1:] & ~real[:, :-1]).sum(-1) + real[:, 0].long()
    if bool((starts > 1).any()):
        raise SpecError(
            "there is padding between the tokens of a row",
            got=f"attention_mask with holes in row {int((starts > 1).nonzero()[0])}",
            wanted="contiguous tokens in each row, with padding only before or after them",
        )
