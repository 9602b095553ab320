"""Eager PyTorch on a bundle: what every target is compared with."""

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.utils import logging

from funnel_export.bundle import Bundle
from funnel_export.config import Task
from funnel_export.funnel import TASK_CLASSES, patch_forward, unpatch_forward
from funnel_export.funnel.model import Part


class Eager:
    """The bundle's own weights in Hugging Face's model, with the bundle's funnel.

    A dense bundle is compared with the model as Hugging Face has it, unpatched.
    """

    def __init__(self, bundle: Bundle, dtype: torch.dtype) -> None:
        self.spec = bundle.manifest.spec
        self.dense = self.spec is None
        self.output = "last_hidden_state" if bundle.manifest.task is Task.FEATURE_EXTRACTION else "logits"
        with _no_progress_bar():
            self.model: Any = TASK_CLASSES[bundle.manifest.task].from_pretrained(
                bundle.path, dtype=dtype, attn_implementation="eager", local_files_only=True
            )
        self.model.eval().requires_grad_(False)
        self._seen: dict[str, Tensor | None] = {}
        if not self.dense:
            patch_forward(self.model, self.spec, self._run)

    def _run(self, name: str, part: Part, *tensors: Tensor, length: int) -> Tensor:  # noqa: ARG002 - a Runner
        result = part(*tensors)
        if name in self._seen:
            self._seen[name] = result
        return result

    def run(self, inputs: Mapping[str, NDArray[Any]], boundaries: Sequence[str] = ()) -> dict[str, Tensor]:
        """The output, and the hidden states at the boundaries that are asked for, in the dtype of the model."""
        ids, mask = (torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask"))
        if self.dense and boundaries:
            patch_forward(self.model, None, self._run)
        self._seen = dict.fromkeys(boundaries)
        try:
            # Rows are numbered from their first real token, as `generate` does it.
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
        finally:
            if self.dense and boundaries:
                unpatch_forward(self.model)
        seen = {name: value for name, value in self._seen.items() if value is not None}
        return {self.output: getattr(out, self.output), **seen}

    def close(self) -> None:
        """Give the weights' memory back."""
        del self.model
        gc.collect()


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hugging Face draws a bar for every load; here a check shows its own progress."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
