"""The model that is trained, as Hugging Face's `Trainer` wants it: a module that returns the loss of a batch."""

from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from funnel_export.training.batches import TrainingBatch
from funnel_export.training.objectives import Loss


class Student(nn.Module):
    """Has only the weights that are trained, so these alone are optimized, saved and exchanged between devices.

    The models of the loss share all other weights. They are moved with this module.
    """

    def __init__(self, loss: Loss, trained: Mapping[str, nn.Parameter], dtype: torch.dtype) -> None:
        super().__init__()
        self._loss, self._dtype = loss, dtype
        self.weights = trained
        self.trained = nn.ParameterDict({name.replace(".", "/"): weight for name, weight in trained.items()})

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, rows: Tensor, columns: Tensor, targets: Tensor
    ) -> dict[str, Tensor]:
        """The loss of a batch; see `TrainingBatch` for the arguments."""
        with autocast(input_ids.device, self._dtype):
            return {"loss": self._loss(TrainingBatch(input_ids, attention_mask, rows, columns, targets))}

    def train(self, mode: bool = True) -> Self:
        """Set the trained model to training; the dense model always evaluates."""
        self._loss.models[0].train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        for model in self._loss.models:
            model._apply(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Products in `dtype`, though the trained weights are in float32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32)
