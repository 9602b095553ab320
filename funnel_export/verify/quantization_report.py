"""What quantized weights cost, as data: a part of `reports/parity.json`. This module does not import torch."""

import math

from pydantic import BaseModel, ConfigDict


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")


class WeightError(_Report):
    """A stored weight against the original one. Errors are root mean squares, over that of the original."""

    name: str
    bits: int | None
    """None if it is not quantized."""
    rms_rel: float
    limit: float
    """A small multiple of the error of rounding to nearest in the same form; 0 for a weight that is not quantized."""

    @property
    def passed(self) -> bool:
        """Whether the error is within its limit; NaN is not."""
        return self.rms_rel <= self.limit < math.inf


class OutputCost(_Report):
    """Outputs with quantized weights against those with the original weights, both in eager PyTorch."""

    rms_rel: float
    """Root mean square of the difference over that of the original outputs."""
    kl: float | None = None
    """Mean KL(original || quantized) of all positions, in nats; for logits only, like the rest."""
    largest_kl: float | None = None
    """The largest at a position."""
    top1: float | None = None
    """Share of positions at which both have the same highest logit, 0 to 1."""


class TextCost(_Report):
    """The same on documents, with the loss."""

    documents: int
    scored: int
    """Tokens that were predicted, or labels."""
    original_loss: float
    """Cross entropy with the original weights, in nats for each scored token or label."""
    loss: float
    """What the quantized weights add to it."""
    loss_low: float | None = None
    """Lower end of the 95 % bootstrap interval of that, over documents; None for fewer than two documents."""
    loss_high: float | None = None
    kl: float
    """Mean KL(original || quantized) of the scored tokens, in nats."""
    top1: float


class QuantizationCost(_Report):
    """The outcome of a comparison with the original weights."""

    original: str
    """The bundle or checkpoint that has them, as it was named."""
    weights: list[WeightError]
    outputs: OutputCost
    """On the batches of the parity check."""
    text: TextCost | None = None
    max_kl: float
    """The largest mean KL divergence that is allowed, in nats."""

    @property
    def faults(self) -> list[str]:
        """What is wrong, empty if nothing is."""
        wrong = [_fault(weight) for weight in self.weights if not weight.passed]
        costs = {"the batches of the check": self.outputs.kl, "the documents": self.text.kl if self.text else None}
        for place, kl in costs.items():
            if kl is not None and not kl <= self.max_kl:
                wrong.append(f"the mean KL divergence on {place} is {kl:.2g} nats, and {self.max_kl:g} is allowed")
        return wrong

    @property
    def passed(self) -> bool:
        """Whether the weights are what rounding makes of the original ones, and the outputs are near enough."""
        return not self.faults

    @property
    def worst(self) -> dict[int, WeightError]:
        """The weight with the largest error, by number of bits."""
        found: dict[int, WeightError] = {}
        for weight in self.weights:
            if weight.bits is not None and not weight.rms_rel <= getattr(found.get(weight.bits), "rms_rel", -1.0):
                found[weight.bits] = weight
        return found


def _fault(weight: WeightError) -> str:
    if weight.bits is None:
        return f"{weight.name} is not quantized, but differs from the original weight"
    return f"{weight.name} differs by {weight.rms_rel:.2g} from the original weight, and {weight.limit:.2g} is allowed"
