"""What quantized weights cost, in words."""

from funnel_export.report import numbers
from funnel_export.verify.quantization_report import OutputCost, QuantizationCost, TextCost, WeightError


def describe_cost(cost: QuantizationCost) -> list[str]:
    """Lines about weights, outputs and documents, then about what is wrong."""
    verdict = "passed" if cost.passed else "FAILED"
    lines = [f"quantized weights against {cost.original}: {verdict}", *(map(_weight, cost.worst.values()))]
    lines.append(f"outputs: {_outputs(cost.outputs, cost.max_kl)}")
    if cost.text is not None:
        lines.append(f"documents: {_text(cost.text)}")
    return [*lines, *(f"FAILED: {fault}" for fault in cost.faults)]


def _weight(weight: WeightError) -> str:
    found, limit = numbers.error(weight.rms_rel), numbers.error(weight.limit)
    return f"largest error of {weight.bits} bits: {found} of {weight.name} (limit {limit})"


def _outputs(found: OutputCost, max_kl: float) -> str:
    error = f"rms error {numbers.error(found.rms_rel)}"
    if found.kl is None:
        return error
    return f"mean KL {found.kl:.2g} nats (limit {max_kl:g}), top-1 {numbers.share(found.top1)}, {error}"


def _text(found: TextCost) -> str:
    known = found.loss_low is not None and found.loss_high is not None
    span = f" [{found.loss_low:+.3f}, {found.loss_high:+.3f}]" if known else ""
    return (
        f"loss {found.original_loss:.3f} {found.loss:+.3f}{span} nats, mean KL {found.kl:.2g}, "
        f"top-1 {numbers.share(found.top1)}, {found.scored:,} predictions in {found.documents:,} documents"
    )
