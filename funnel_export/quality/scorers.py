"""Scorers: a model in PyTorch or in a target, which gives the outputs for a batch of rows."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from funnel_export.bundle.load import Bundle
from funnel_export.bundle.ports import PortKind, feed
from funnel_export.families.registry import family_of
from funnel_export.funnel import is_patched, unpatch_forward
from funnel_export.quality.rows import Batch
from funnel_export.runtime.stepper import Stepper
from funnel_export.targets.base import Session


class Scorer(Protocol):
    """A loaded model."""

    device: str
    """Device that it runs on, under the runtime's name."""
    precision: str
    """Dtype that it computes in, as far as the runtime reports it."""

    def outputs(self, batch: Batch, chunk: int) -> Iterator[Tensor]:
        """Logits of the next `chunk` columns of all rows, [rows, columns, width], until the last column.

        A text classifier has one column.
        """
        ...

    def close(self) -> None:
        """Free memory."""
        ...


class InPyTorch:
    """Hugging Face's model, with or without a funnel."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model = model.to(device)
        self._device = device
        family, task = family_of(model)
        self._base, self._head = family.base_of(model), None
        if task.generates:
            self._head = _HeadOnly(model, self._base)
        self.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.precision = str(model.dtype).removeprefix("torch.")

    @torch.no_grad()
    def outputs(self, batch: Batch, chunk: int) -> Iterator[Tensor]:
        """See `Scorer.outputs`. A language model's head runs on one chunk at a time, since logits are large."""
        ids = torch.from_numpy(batch.tokens).to(self._device)
        mask = torch.from_numpy(batch.mask).to(self._device)
        if self._head is None:
            yield from _chunks(self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits, chunk)
            return
        found = self._base(input_ids=ids, attention_mask=mask, use_cache=False)
        for columns in torch.arange(ids.shape[1], device=self._device).split(chunk):
            yield self._head.logits(ids, found, columns)

    def close(self) -> None:
        """See `Scorer.close`. A funnel is removed, since its forward refers to the model."""
        if is_patched(self._base):
            unpatch_forward(self.model)
        del self.model, self._base, self._head


class _HeadOnly:
    """Hugging Face's causal language model on given hidden states: its own head and cap on the logits."""

    def __init__(self, model: Any, base: nn.Module) -> None:
        self._given = _Given()
        self._model = copy.copy(model)
        self._model._modules = {
            name: self._given if module is base else module for name, module in model._modules.items()
        }

    def logits(self, ids: Tensor, found: Any, columns: Tensor) -> Tensor:
        """Logits of some columns, [rows, columns, vocabulary], from the output of the base for these ids."""
        self._given.output = found
        logits: Tensor = self._model(input_ids=ids, logits_to_keep=columns).logits
        return logits


class _Given(nn.Module):
    """Stands for a base that has run already."""

    output: Any = None

    def forward(self, **_: Any) -> Any:
        """The output that it was given."""
        return self.output


def with_same_weights(model: Any) -> Any:
    """A copy of a model that has the same parameters and buffers, so that a funnel can be applied to it alone."""
    return copy.deepcopy(model, {id(each): each for each in itertools.chain(model.parameters(), model.buffers())})


class InOnePass:
    """The graph of a bundle that takes whole texts, or an engine of it."""

    def __init__(self, bundle: Bundle, session: Session) -> None:
        self._bundle, self._session = bundle, session
        self.device, self.precision = session.device, session.precision

    def outputs(self, batch: Batch, chunk: int) -> Iterator[Tensor]:
        """See `Scorer.outputs`."""
        inputs = feed(self._bundle.model.inputs, {PortKind.TOKENS: batch.tokens, PortKind.MASK: batch.mask})
        yield from _chunks(torch.from_numpy(self._session.run(inputs)[self._bundle.output.name]), chunk)

    def close(self) -> None:
        """See `Scorer.close`."""
        self._session.close()


class InSteps:
    """The graphs of a bundle with a cache, or engines of them: they read rows chunk by chunk."""

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Session]) -> None:
        self.bundle, self.stepper = bundle, Stepper(bundle, sessions)
        last = list(sessions.values())[-1]
        self.device, self.precision = last.device, last.precision

    def outputs(self, batch: Batch, chunk: int) -> Iterator[Tensor]:
        """See `Scorer.outputs`."""
        state = self.stepper.new_state(len(batch.lengths))
        for at in range(0, batch.tokens.shape[1], chunk):
            tokens = batch.tokens[:, at : at + chunk]
            counts = np.clip(batch.lengths - at, 0, tokens.shape[1])
            columns = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
            yield torch.from_numpy(self.stepper.step(state, tokens, counts, columns))

    def close(self) -> None:
        """See `Scorer.close`."""
        self.stepper.close()


def _chunks(logits: Tensor, chunk: int) -> Iterator[Tensor]:
    """Logits [rows, columns, width], or [rows, width] of one column, in chunks of columns."""
    yield from (logits if logits.ndim == 3 else logits[:, None]).split(chunk, dim=1)
