"""What training minimizes: a function of a batch for each objective."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from funnel_export.families.registry import family_of
from funnel_export.spec.funnel import FunnelSpec
from funnel_export.training.batches import TrainingBatch
from funnel_export.training.reader import Reader

LOGITS = {"cpu": 1 << 25, "cuda": 1 << 28}
"""Most logits of a model that are made at once, by device: 134 MB and 1.1 GB in float32."""


class Loss(Protocol):
    """The loss of a batch."""

    models: tuple[Any, ...]
    """The models that run: the trained one first."""

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """The mean over the scored tokens, with a gradient."""
        ...


class TargetLoss:
    """Cross entropy of the targets."""

    def __init__(self, model: Any) -> None:
        self.models = (model,)
        self._reader = Reader(model)

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """See `Loss`."""

        def cross_entropy(values: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(self._reader.logits(values), targets, reduction="sum")

        return _in_parts(cross_entropy, self._reader.width(None), self._reader.values(batch), batch.targets)


class KLLoss:
    """KL(dense || model) of the predictions, in nats.

    With a `vocabulary`, probabilities are those among its tokens: its product with the hidden states is most of the
    cost on a CPU.
    """

    def __init__(self, model: Any, dense: Any, vocabulary: Tensor | None) -> None:
        self.models = (model, dense)
        self._own, self._dense, self._vocabulary = Reader(model), Reader(dense), vocabulary

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """See `Loss`."""
        kept = None if self._vocabulary is None else self._vocabulary.to(batch.input_ids.device)
        with torch.no_grad():
            wanted = self._dense.values(batch)

        def divergence(values: Tensor, wanted: Tensor) -> Tensor:
            with torch.no_grad():
                target = self._dense.logits(wanted, kept).log_softmax(-1)
            own = self._own.logits(values, kept).log_softmax(-1)
            return F.kl_div(own, target, reduction="sum", log_target=True)

        return _in_parts(divergence, self._own.width(kept), self._own.values(batch), wanted)


class HiddenLoss:
    """Squared distance from the dense model's hidden states at the recover layer, relative to their square.

    A text's first token is left out: its large states would be most of the loss.
    """

    def __init__(self, model: Any, dense: Any, spec: FunnelSpec) -> None:
        self.models, self._layer = (model, dense), spec.recover_layer

    def __call__(self, batch: TrainingBatch) -> Tensor:
        """See `Loss`."""
        with torch.no_grad():
            wanted = _state_before(self.models[1], self._layer, batch)
        own, real = _state_before(self.models[0], self._layer, batch), batch.attention_mask.bool()
        real = real & (torch.arange(real.shape[1], device=real.device) > 0)
        distance = (own - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=1e-12)
        return distance[real].mean()


class _Found(Exception):  # noqa: N818 - it ends a forward, and is no error
    """The hidden states that were looked for."""


def _state_before(model: Any, layer: int, batch: TrainingBatch) -> Tensor:
    """[rows, longest, width] in float32, what a layer or the final norm takes. It and what follows do not run."""

    def end(_: Any, inputs: tuple[Tensor, ...]) -> None:
        raise _Found(inputs[0])

    family = family_of(model)[0]
    base = family.base_of(model)
    module = base.layers[layer] if layer < len(base.layers) else family.final_norm(base)
    hook = module.register_forward_pre_hook(end)
    try:
        base(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    except _Found as found:
        state: Tensor = found.args[0].float()
        return state
    finally:
        hook.remove()
    raise AssertionError(f"the forward did not reach layer {layer}")


def _in_parts(total: Callable[[Tensor, Tensor], Tensor], width: int, values: Tensor, wanted: Tensor) -> Tensor:
    """The mean of a loss over scored tokens. Logits are made for some tokens at a time, and again for the gradient."""
    size = max(1, LOGITS[values.device.type] // width)
    sums = [
        checkpoint(total, *parts, use_reentrant=False)
        for parts in zip(values.split(size), wanted.split(size), strict=True)
    ]
    return torch.stack(sums).sum() / len(values)
