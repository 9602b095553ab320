"""Where the tokens of each row stand in the columns of a batch."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from funnel_export.errors import SpecError
from funnel_export.funnel.windows import token_numbers


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of a batch: a chunk of columns, and the columns of earlier chunks before it."""

    keys: Int[Tensor, "batch column"]
    """Token number of every column so far, `ABSENT` for padding."""
    queries: Int[Tensor, "batch new"]
    """Token number of the chunk's columns."""
    length: Int[Tensor, "batch 1"]
    """Real tokens so far."""
    before: Int[Tensor, "batch 1"] | int
    """Real tokens before this chunk; 0 if it is the first."""
    first: Int[Tensor, "batch 1"]
    """Column of the chunk in which token 0 stands; negative where it stands in an earlier chunk."""

    @classmethod
    def of(cls, real: Bool[Tensor, "batch column"], past: int) -> "Rows":
        """Read the rows off the mask of real tokens, of which `past` columns belong to earlier chunks.

        Raises:
            SpecError: if padding stands between the tokens of a row (not checked while tracing).
        """
        if has_values(real):
            _check_padding(real)
        count = real.long().cumsum(-1)
        keys = token_numbers(real, count)
        if past == 0:
            first = (count == 0).sum(-1, keepdim=True)
            return cls(keys=keys, queries=keys, length=count[:, -1:], before=0, first=first)
        before = count[:, past - 1 : past]
        first = (count[:, past:] == before).sum(-1, keepdim=True) - before
        return cls(keys=keys, queries=keys[:, past:], length=count[:, -1:], before=before, first=first)


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor can be looked into; while tracing it has a shape only."""
    return not torch.compiler.is_compiling() and not isinstance(tensor, FakeTensor)


def _check_padding(real: Bool[Tensor, "batch column"]) -> None:
    starts = (real[:, 1:] & ~real[:, :-1]).sum(-1) + real[:, 0].long()
    if bool((starts > 1).any()):
        raise SpecError(
            "padding stands between the tokens of a row",
            got=f"attention_mask with holes in row {int((starts > 1).nonzero()[0])}",
            wanted="each row's tokens side by side, with padding left or right of them",
        )
